"""The Python client of the torture program; its twin is `pagewire-guest torture`.

torture_client.py work CLIENT SEED JOURNAL URI_A URI_B [LIBRARY]    works until it is killed
torture_client.py make URI_A URI_B [LIBRARY]                        makes the two databases
torture_client.py check URI_A URI_B [LIBRARY]                       prints what is in them as JSON

Each transaction has an id and writes it into the databases that it touches. Before it begins, and after it has ended, a
line goes to the client's own journal:
    begin ID KIND | ok ID | rolled ID | err ID body|commit CODE MESSAGE | torn TEXT
The client never decides what is right: the controller compares journals and databases.
"""

import json
import os
import random
import sqlite3
import sys
import time

ACCOUNTS = 20
OPENING_BALANCE = 1000
SLOTS = 300
BUSY_SECONDS = 8
# Errors in a row on one connection before it is opened anew: recovery without reopening is what is hoped for.
PATIENCE = 20

SCHEMA = f"""
CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INT NOT NULL);
CREATE TABLE total(n INT NOT NULL);
CREATE TABLE ledger(id TEXT NOT NULL, kind TEXT NOT NULL);
CREATE INDEX ledger_id ON ledger(id);
CREATE TABLE slots(client TEXT, i INT, id TEXT, filler TEXT, PRIMARY KEY(client, i));
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
  INSERT INTO accounts SELECT i, {OPENING_BALANCE} FROM n;
INSERT INTO total VALUES({ACCOUNTS * OPENING_BALANCE});
"""


def load(library):
    """Makes the VFS known to this process."""
    connection = sqlite3.connect(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(library)
    return connection


def connect(uri_a, uri_b=None):
    connection = sqlite3.connect(uri_a, uri=True, isolation_level=None, timeout=BUSY_SECONDS)
    if uri_b is not None:
        connection.execute("ATTACH ? AS b", (uri_b,))
        connection.execute("PRAGMA b.cache_size = 10")
    connection.execute("PRAGMA cache_size = 10")
    return connection


class Client:
    def __init__(self, name, seed, journal, uri_a, uri_b, remote):
        self.name = name
        self.random = random.Random(seed)
        self.incarnation = f"{time.monotonic_ns():x}"
        self.journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.uris = {"one": (uri_a,), "two": (uri_a, uri_b)}
        self.connections = {}
        self.failures = {"one": 0, "two": 0}
        self.remote = remote
        self.sequence = 0

    def note(self, line):
        os.write(self.journal, (line.replace("\n", " ") + "\n").encode())

    def work(self):
        kinds = ["small"] * 5 + ["two"] * 3 + ["large"] * 2 + ["read"] * 2 + ["rollback"]
        while True:
            self.transaction(self.random.choice(kinds))

    def transaction(self, kind):
        self.sequence += 1
        id = f"{self.name}-{self.incarnation}-{self.sequence}"
        which = "two" if kind == "two" else "one"
        self.note(f"begin {id} {kind}")
        stage = "body"
        connection = None
        try:
            connection = self.connections.get(which)
            if connection is None:
                connection = self.connections[which] = connect(*self.uris[which])
            getattr(self, kind)(connection, id)
            stage = "commit"
            connection.execute("ROLLBACK" if kind == "rollback" else "COMMIT")
            self.note(f"{'rolled' if kind == 'rollback' else 'ok'} {id}")
            self.failures[which] = 0
        except sqlite3.Error as error:
            self.failed(id, which, stage, connection, error)

    def failed(self, id, which, stage, connection, error):
        said = ""
        if self.remote and stage == "commit":
            said = sqlite3.connect(":memory:").execute("SELECT pagewire_last_error()").fetchone()[0]
        self.note(f"err {id} {stage} {getattr(error, 'sqlite_errorcode', 0)} {error}: {said}")
        if connection is not None and connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass
        self.failures[which] += 1
        if connection is not None and (self.failures[which] >= PATIENCE or connection.in_transaction):
            self.failures[which] = 0
            del self.connections[which]
            connection.close()
        # What fails at once would otherwise fill the journal while the server is away.
        time.sleep(0.01)

    def move(self, connection, source, target):
        amount = self.random.randrange(1, 50)
        for schema, sign in ((source, -1), (target, 1)):
            account = self.random.randrange(1, ACCOUNTS + 1)
            connection.execute(f"UPDATE {schema}.accounts SET balance = balance + ? WHERE id = ?", (sign * amount, account))
            connection.execute(f"UPDATE {schema}.total SET n = n + ?", (sign * amount,))

    def small(self, connection, id):
        connection.execute(self.random.choice(["BEGIN", "BEGIN IMMEDIATE"]))
        connection.execute("INSERT INTO ledger VALUES(?, 'small')", (id,))
        self.move(connection, "main", "main")

    def two(self, connection, id):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO main.ledger VALUES(?, 'two')", (id,))
        self.move(connection, *self.random.choice([("main", "b"), ("b", "main")]))
        connection.execute("INSERT INTO b.ledger VALUES(?, 'two')", (id,))

    def large(self, connection, id):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO ledger VALUES(?, 'large')", (id,))
        connection.execute(
            f"WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {SLOTS})"
            " INSERT OR REPLACE INTO slots SELECT ?1, i, ?2, printf('%0*d', 100 + ?3 + i % 200, i) FROM n",
            (self.name, id, self.random.randrange(100)),
        )
        self.move(connection, "main", "main")

    def rollback(self, connection, id):
        self.large(connection, id)

    def read(self, connection, id):
        connection.execute("BEGIN")
        seen = []
        for _ in range(2):
            seen.append(
                connection.execute(
                    "SELECT (SELECT sum(balance) FROM accounts), (SELECT n FROM total), (SELECT count(*) FROM ledger),"
                    " (SELECT max(k) FROM (SELECT count(DISTINCT id) AS k FROM slots GROUP BY client))"
                ).fetchone()
            )
        if seen[0] != seen[1] or seen[0][0] != seen[0][1] or seen[0][3] not in (None, 1):
            self.note(f"torn {id} {seen}")


def make(uri_a, uri_b):
    for uri in (uri_a, uri_b):
        connection = connect(uri)
        connection.executescript("BEGIN;" + SCHEMA + "COMMIT;")
        connection.close()


def check(uri_a, uri_b):
    """Everything, under the write locks of both: what the dead had under way cannot come afterwards."""
    connection = sqlite3.connect(uri_a, uri=True, isolation_level=None, timeout=60)
    connection.execute("ATTACH ? AS b", (uri_b,))
    connection.execute("BEGIN IMMEDIATE")
    found = {}
    for schema in ("main", "b"):
        found[schema] = {
            "integrity": [row[0] for row in connection.execute(f"PRAGMA {schema}.integrity_check")],
            "balance": connection.execute(f"SELECT sum(balance) FROM {schema}.accounts").fetchone()[0],
            "total": connection.execute(f"SELECT sum(n) FROM {schema}.total").fetchone()[0],
            "ledger": connection.execute(f"SELECT id, kind FROM {schema}.ledger ORDER BY rowid").fetchall(),
            "slots": connection.execute(f"SELECT client, id, count(*) FROM {schema}.slots GROUP BY 1, 2").fetchall(),
        }
    connection.execute("COMMIT")
    connection.close()
    json.dump(found, sys.stdout)


def main():
    verb, *arguments = sys.argv[1:]
    expected = {"work": 5, "make": 2, "check": 2}[verb]
    library = arguments[expected] if len(arguments) > expected else None
    keep = load(library) if library else None
    arguments = arguments[:expected]
    if verb == "work":
        Client(*arguments, remote=keep is not None).work()
    elif verb == "make":
        make(*arguments)
    else:
        check(*arguments)


if __name__ == "__main__":
    main()
