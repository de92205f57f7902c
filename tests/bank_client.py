"""The clients of the bank: one writer, and readers.

bank_client.py make URI LIBRARY                                                      makes the database
bank_client.py write URI LIBRARY BOARD TRANSFERS SPILL_EVERY SEED                    works to its end
bank_client.py read URI LIBRARY BOARD SEED STALENESS_MS|strict                       reads until the writer is through

Each prints one line of JSON at its end. The board is the side channel: a file of 64-bit numbers that all of them map. The writer
says there what it is about to commit and what was acknowledged, and for each transfer what the accounts are after it; so a reader
knows at any moment what it has to see at least, what it can see at most, and what it must see at each number. What is wrong ends
the client with a message.
"""

import collections
import json
import mmap
import random
import sqlite3
import sys
import time

ACCOUNTS = 1000
OPENING_BALANCE = 1000
TOTAL = ACCOUNTS * OPENING_BALANCE
# Places of the board; the fingerprint after transfer n is at FINGERPRINTS + n.
BEGUN, ACKNOWLEDGED, OVER, FINGERPRINTS = range(4)
# Pages: a fifth of the accounts at most. What does not fit is written before the COMMIT, and read again in the same snapshot.
CACHE_PAGES = 10
MOVES_OF_A_SPILLED = 300
BUSY_SECONDS = 60
# A reader opens its connections anew after so many snapshots: an open begins beside commits too.
SNAPSHOTS_OF_A_CONNECTION = 400

# Filler, so that the accounts are on 60 pages or so, and a second tree of their balances that each transfer changes.
SCHEMA = f"""
CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INT NOT NULL, filler TEXT NOT NULL);
CREATE INDEX accounts_balance ON accounts(balance);
CREATE TABLE progress(n INT NOT NULL);
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
  INSERT INTO accounts SELECT i, {OPENING_BALANCE}, printf('%0200d', i) FROM n;
INSERT INTO progress VALUES(0);
"""
LOOK = """
SELECT (SELECT n FROM progress),
       (SELECT sum(balance) FROM accounts NOT INDEXED),
       (SELECT sum(balance) FROM accounts INDEXED BY accounts_balance),
       (SELECT sum(id * balance) FROM accounts NOT INDEXED)
"""


class Wrong(Exception):
    """A promise was not kept."""


def load(library):
    """A connection without a database, which knows the library's tables: reading them there begins no transaction."""
    own = sqlite3.connect(":memory:")
    own.enable_load_extension(True)
    own.load_extension(library)
    return own


def connect(uri):
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)
    connection.execute(f"PRAGMA cache_size = {CACHE_PAGES}")
    return connection


def board(path):
    """The board as an array; a number is written and read in one piece."""
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


def calls(own):
    """Round trips that somebody waited for, and the others of StagePages, by kind."""
    rows = own.execute("SELECT kind, count, background FROM pagewire_rpc").fetchall()
    counts = collections.Counter({kind: count for kind, count, _ in rows})
    counts["staged"] = sum(count + background for kind, count, background in rows if kind == "stage")
    return counts


class Writer:
    def __init__(self, uri, library, path, seed):
        self.own = load(library)
        self.connection = connect(uri)
        self.board = board(path)
        self.random = random.Random(seed)
        self.balances = [OPENING_BALANCE] * (ACCOUNTS + 1)
        self.fingerprint = OPENING_BALANCE * ACCOUNTS * (ACCOUNTS + 1) // 2
        self.n = 0
        self.figures = collections.Counter()

    def moves(self, count):
        """So many (source, target, amount)."""
        pairs = (self.random.sample(range(1, ACCOUNTS + 1), 2) for _ in range(count))
        return [(source, target, self.random.randrange(1, 50)) for source, target in pairs]

    def begin(self, moves):
        """All that a transaction does before its end: what is taken is nowhere until the second half."""
        change = "UPDATE accounts SET balance = balance + ? WHERE id = ?"
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(change, [(-amount, source) for source, _, amount in moves])
        self.connection.executemany(change, [(amount, target) for _, target, amount in moves])
        self.connection.execute("UPDATE progress SET n = ?", (self.n + 1,))

    def transfer(self, count):
        moves = self.moves(count)
        fingerprint = self.fingerprint + sum((target - source) * amount for source, target, amount in moves)
        self.board[FINGERPRINTS + self.n + 1] = fingerprint
        self.begin(moves)
        self.board[BEGUN] = self.n + 1
        self.connection.execute("COMMIT")
        self.board[ACKNOWLEDGED] = self.n + 1
        self.n += 1
        self.fingerprint = fingerprint
        for source, target, amount in moves:
            self.balances[source] -= amount
            self.balances[target] += amount

    def give_up(self):
        """A spilled transaction that never was."""
        self.begin(self.moves(MOVES_OF_A_SPILLED))
        self.connection.execute("ROLLBACK")

    def counted(self, what, action, commits, may_stage):
        """`action`, of which each call is accounted for."""
        before = calls(self.own)
        action()
        cost = calls(self.own) - before
        staged = cost.pop("staged", 0)
        stage_waits = cost.pop("stage", 0)
        if cost != collections.Counter(commit=commits) or (staged and not may_stage):
            raise Wrong(f"{what} after {self.n} transfers cost {dict(cost)} and {staged} stage calls")
        self.figures[what] += 1
        self.figures["commit_calls"] += commits
        self.figures["stage_calls"] += staged
        self.figures["stage_waits"] += stage_waits

    def work(self, transfers, spill_every):
        # The first one gets the lease, and everything into the cache.
        self.transfer(MOVES_OF_A_SPILLED)
        while self.n < transfers:
            if self.n % spill_every == 0:
                if self.random.randrange(2) == 0:
                    self.counted("rolled_back", self.give_up, 0, True)
                self.counted("spilled", lambda: self.transfer(MOVES_OF_A_SPILLED), 1, True)
            else:
                self.counted("small", lambda: self.transfer(1), 1, False)
        if self.figures["stage_calls"] == 0:
            raise Wrong("no spilled page was ever sent before its COMMIT: this has shown nothing")
        found = [row[0] for row in self.connection.execute("SELECT balance FROM accounts ORDER BY id")]
        if found != self.balances[1:]:
            raise Wrong("the accounts are not what the transfers made of them")
        sound = [row[0] for row in self.connection.execute("PRAGMA integrity_check")]
        if sound != ["ok"]:
            raise Wrong(f"integrity_check says {sound[:5]}")
        return self.figures | collections.Counter(transfers=self.n)


class Reader:
    """Two connections, so that an old snapshot is held while newer ones are read beside it (W11)."""

    def __init__(self, uri, library, path, seed, staleness):
        self.own = load(library)
        self.uri = uri
        self.board = board(path)
        self.random = random.Random(seed)
        self.staleness = None if staleness == "strict" else int(staleness) / 1000
        # (moment, what was acknowledged then): of a bounded reader only what is older than its bound counts.
        self.known = collections.deque()
        self.figures = collections.Counter()
        self.numbers = set()
        self.open()

    def open(self):
        self.connections = [connect(self.uri), connect(self.uri)]
        self.newest = [0, 0]
        self.figures["connections"] += 2

    def least(self):
        """What a transaction has to see that begins now."""
        acknowledged = self.board[ACKNOWLEDGED]
        if self.staleness is None:
            return acknowledged
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.known.append((now, acknowledged))
        while len(self.known) > 1 and self.known[1][0] <= now - self.staleness:
            self.known.popleft()
        moment, acknowledged = self.known[0]
        return acknowledged if moment <= now - self.staleness else 0

    def look(self, connection):
        n, table, index, fingerprint = connection.execute(LOOK).fetchone()
        if table != TOTAL or index != TOTAL:
            raise Wrong(f"at transfer {n} the sum is {table}, of the index {index}; it is {TOTAL}")
        if fingerprint != self.board[FINGERPRINTS + n]:
            raise Wrong(f"the snapshot says transfer {n}, its accounts are those of another moment")
        return n

    def begin(self, which):
        """Begins a transaction and looks at everything."""
        connection = self.connections[which]
        least = self.least()
        connection.execute("BEGIN")
        n = self.look(connection)
        if n < least:
            raise Wrong(f"transfer {least} was acknowledged before this transaction began, which sees {n}")
        if n > self.board[BEGUN]:
            raise Wrong(f"this transaction sees transfer {n}, whose COMMIT was not called")
        if n < self.newest[which]:
            raise Wrong(f"this connection has seen transfer {self.newest[which]}, and sees {n} now")
        self.newest[which] = n
        self.figures["snapshots"] += 1
        self.numbers.add(n)
        return n

    def end(self, which, n):
        """Looks once more and ends the transaction."""
        again = self.look(self.connections[which])
        if again != n:
            raise Wrong(f"a snapshot of transfer {n} became one of {again}")
        self.connections[which].execute("COMMIT")

    def turn(self):
        held = self.random.randrange(2)
        n = self.begin(held)
        for _ in range(self.random.choice([0, 0, 1, 5])):
            self.end(1 - held, self.begin(1 - held))
            self.figures["beside_another"] += 1
        self.end(held, n)

    def work(self):
        while not self.board[OVER]:
            self.turn()
            if self.figures["snapshots"] > SNAPSHOTS_OF_A_CONNECTION * self.figures["connections"] / 2:
                for connection in self.connections:
                    connection.close()
                self.open()
            # Readers that never pause would leave the writer no processor, and all see the same few transfers.
            time.sleep(self.random.choice([0, 0.01, 0.1, 0.3]))
        n = self.begin(0)
        if self.staleness is None and n != self.board[ACKNOWLEDGED]:
            raise Wrong(f"the last transfer is {self.board[ACKNOWLEDGED]}, not {n}")
        self.connections[0].execute("COMMIT")
        cost = calls(self.own)
        for kind in ("acquire", "stage", "commit", "resolve"):
            if cost[kind]:
                raise Wrong(f"a reader called {kind} {cost[kind]} times")
        # Each connection reads the schema in a transaction of its own, when it is opened.
        transactions = self.figures["snapshots"] + self.figures["connections"]
        if cost["begin"] > transactions or cost["open"] > self.figures["connections"]:
            raise Wrong(f"{dict(cost)} for {dict(self.figures)}: a BEGIN asks once at most")
        self.figures |= {kind: cost[kind] for kind in ("begin", "read", "open")}
        return self.figures | collections.Counter(different=len(self.numbers))


def make(uri, library):
    _own = load(library)
    connect(uri).executescript("BEGIN;" + SCHEMA + "COMMIT;")
    return {}


def main():
    verb, uri, library, *more = sys.argv[1:]
    try:
        if verb == "make":
            figures = make(uri, library)
        elif verb == "write":
            path, transfers, spill_every, seed = more
            figures = Writer(uri, library, path, seed).work(int(transfers), int(spill_every))
        else:
            figures = Reader(uri, library, *more).work()
    except Wrong as wrong:
        sys.exit(f"wrong: {wrong}")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
