"""One transaction that is larger than any message and than the memory that may be taken for it (P7, P1, P2).

big_transaction.py [--mib N] [--kills K] [--seed S] [--fdb] [--keep DIR]    the test
big_transaction.py work TAG MIB URI LIBRARY                          its client: one transaction, then figures
big_transaction.py check URI LIBRARY                                 what is in the database, as JSON

Debian's Python with the loadable library writes N MiB of random bytes (default 1024) in one transaction to
`pagewire serve --store local:DIR`. Asserted:
 * the anonymous memory (RssAnon + RssShmem of /proc/PID/status) of client and server stays below 256 MiB all the time. VmRSS
   less RssFile, that is: the local store maps its file, and the pages of that mapping are the kernel's page cache, which it
   takes back as it likes. VmHWM, which has them, is printed beside it;
 * the COMMIT is exactly one commit call, and no other comes before it. Most pages were staged by then: the call carries no more
   bytes than a small transaction may have, and takes less than half of the time of the whole;
 * another process finds all of it, and integrity_check says ok.
Then K times (default 4): the same transaction on top, and client or server killed with SIGKILL at a random moment before or
during COMMIT (a kill that comes after its end is looked at in the same way, and does not count). Afterwards the transaction is there whole or not at all: whole if COMMIT had returned, not at all if it had
not begun or had failed without saying that its outcome is unknown. At last one more transaction without a kill. The file of
the store never shrinks, so the space of the dead is seen to be used again: it may not have grown by more than the versions
that were kept, and the space of one transaction for what was under way and not yet dropped.
--fdb takes two page servers on a FoundationDB cluster that is begun for it (the ssd engine): clients know both and begin with the first, which
is the one that is killed. How much the files of the cluster take is the cluster's affair, and only printed. So is, at the end, how fast the same cluster takes
bytes that no page server writes, in transactions of 1 MiB, four at a time: what the figures are to be seen beside.
"""

import argparse
import json
import pathlib
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from fdb_client import Fdb
from harness import DEBIAN_PYTHON, LIBRARY, Cluster, Server, free_port, guest_environment

MIB = 1 << 20
MEMORY_LIMIT = 256 * MIB
SAMPLE_SECONDS = 0.01
LEASE_TTL_MS = 2000
# A server on a cluster that takes nothing for two TTLs ends its sessions, and their transactions with them (PEER4): one of a single process on a
# loaded machine, in the middle of hundreds of MiB, is silent for some seconds.
FDB_LEASE_TTL_MS = 15_000
# What a COMMIT carries at most that stages nothing: the default of PAGEWIRE_STAGE_BYTES. A small test takes less, so as to stage too.
STAGE_BYTES = 64 * MIB
# Bytes of the random part of a row: most fit into a page with others, every 256th takes a chain of overflow pages.
ROW_BYTES = "iif(i % 256 = 0, 16000, 200 + i * 7919 % 1600)"
ROW_BYTES_MEAN = 16000 / 256 + 999.5 * 255 / 256
# Nothing takes so long, on a loaded machine either: a test that hangs ends. For each MiB of a transaction, and beside it: what a test with kills looks at
# in the end is several of them.
CLIENT_SECONDS_A_MIB = 4
CLIENT_SECONDS = 1500
# A kill that comes after the end of the transaction is tried again, so often.
ATTEMPTS = 8
# Of the process that looks at everything afterwards, whose memory is not what is tried here.
CHECK_CACHE_BYTES = 8 << 30
# It waits for a store that is busy with what the dead left, on a loaded machine.
CHECK_TIMEOUT_MS = 120_000
# Written to the cluster without a page server, at most.
BESIDE_MIB = 128
# The library's words, as in torture.py.
OUTCOME_UNKNOWN = "not known whether the commit was applied"


class Broken(Exception):
    """A promise was not kept."""


# ------------------------------------------------------------------------------------------------------- client


def connect(uri, library):
    """Returns the database, and a connection of the same process that can always be asked about the library."""
    own = sqlite3.connect(":memory:")
    own.enable_load_extension(True)
    own.load_extension(library)
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60), own


def say(*words):
    print(*words, flush=True)


def work(tag, mib, uri, library):
    """Says how far it is, a line for each step, so that the controller knows what a kill has met."""
    connection, own = connect(uri, library)

    def calls():
        """Commit calls and their bytes, stage calls and their bytes."""
        rpc = "SELECT count + background, bytes_sent FROM pagewire_rpc WHERE kind = ?"
        return " ".join(str(n) for kind in ("commit", "stage") for n in own.execute(rpc, (kind,)).fetchone())

    try:
        connection.executescript(
            "CREATE TABLE IF NOT EXISTS big(tag TEXT, i INTEGER, body BLOB);"
            # So that pages of a second tree are in each transaction; integrity_check compares it with the table.
            "CREATE INDEX IF NOT EXISTS big_rows ON big(tag, i);"
            "CREATE TABLE IF NOT EXISTS done(tag TEXT PRIMARY KEY, rows INTEGER);"
        )
        rows = int(mib * MIB / ROW_BYTES_MEAN)
        say("begin", calls())
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < ?2)"
            f" INSERT INTO big SELECT ?1, i, randomblob({ROW_BYTES}) FROM n",
            (tag, rows),
        )
        connection.execute("INSERT INTO done VALUES(?, ?)", (tag, rows))
        say("commit", calls())
        connection.execute("COMMIT")
        say("committed", calls())
    except sqlite3.Error as error:
        text = own.execute("SELECT pagewire_last_error()").fetchone()[0]
        say("error", f"{error}: {text}".replace("\n", " "))
        return 1
    connection.close()
    return 0


def check(uri, library):
    """Everything, under the write lock: what the dead had under way cannot come afterwards."""
    connection, own = connect(uri, library)
    try:
        return look(connection, own)
    except sqlite3.Error as error:
        text = own.execute("SELECT pagewire_last_error()").fetchone()[0]
        sys.exit(f"{error}: {text}")


def look(connection, own):
    connection.execute("BEGIN IMMEDIATE")
    # Every byte in the order of rows first: integrity_check goes through the pages backwards, each a call of its own where it
    # is not cached.
    rows = "SELECT tag, count(*), sum(i), sum(body > x'') FROM big NOT INDEXED GROUP BY +tag"
    found = {
        "done": dict(connection.execute("SELECT tag, rows FROM done")),
        # Of a tag with n rows the sum of i is n * (n + 1) / 2 only if each is there once.
        "big": {tag: rest for tag, *rest in connection.execute(rows)},
        "integrity": [row[0] for row in connection.execute("PRAGMA integrity_check")],
    }
    connection.execute("COMMIT")
    reads = "SELECT sum(count), sum(background), sum(bytes_received) FROM pagewire_rpc WHERE kind IN ('read', 'prefetch')"
    found["reads"] = own.execute(reads).fetchone()
    json.dump(found, sys.stdout)
    return 0


# --------------------------------------------------------------------------------------------------- controller


class Memory(threading.Thread):
    """Peaks of the memory of a process while it lives."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.path = pathlib.Path(f"/proc/{pid}/status")
        self.over = threading.Event()
        self.peak = 0
        self.peak_with_files = 0
        self.samples = 0
        self.start()

    def run(self):
        while not self.over.wait(SAMPLE_SECONDS):
            try:
                status = dict(line.split(":", 1) for line in self.path.read_text().splitlines())
                kib = {name: int(status[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmHWM")}
            except (OSError, KeyError):
                # It has ended; the state of a zombie has no memory.
                return
            self.peak = max(self.peak, (kib["RssAnon"] + kib["RssShmem"]) * 1024)
            self.peak_with_files = kib["VmHWM"] * 1024
            self.samples += 1

    def end(self, who):
        self.over.set()
        self.join()
        if self.samples < 10:
            raise Broken(f"the memory of the {who} was looked at {self.samples} times only")
        if self.peak >= MEMORY_LIMIT:
            raise Broken(f"the {who} took {self.peak / MIB:.0f} MiB of memory")
        return f"{who} {self.peak / MIB:.0f} MiB ({self.peak_with_files / MIB:.0f} with mapped files)"


class Client:
    """A client at work, and what it has said."""

    def __init__(self, test, tag):
        self.tag = tag
        self.patience = test.patience
        self.process = subprocess.Popen(
            [DEBIAN_PYTHON, __file__, "work", tag, str(test.mib), test.uri, LIBRARY],
            env=test.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=test.log,
            text=True,
        )
        self.said = {}
        self.at = {}
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            step, _, rest = line.strip().partition(" ")
            with self.changed:
                self.said[step] = rest
                self.at[step] = time.monotonic()
                self.changed.notify_all()
        with self.changed:
            self.said["end"] = ""
            self.changed.notify_all()

    def wait_for(self, *steps):
        """Waits until it has said one of them, or has ended."""
        with self.changed:
            if not self.changed.wait_for(lambda: {*steps, "end"} & self.said.keys(), self.patience):
                raise Broken(f"{self.tag} said {self.said} and then nothing for {self.patience} s")

    def end(self):
        self.process.wait(self.patience)
        self.reader.join()


class BigTransaction:
    def __init__(self, options, scratch):
        self.mib = options.mib
        self.patience = CLIENT_SECONDS + CLIENT_SECONDS_A_MIB * self.mib
        self.random = random.Random(options.seed)
        self.scratch = pathlib.Path(scratch)
        self.log = open(self.scratch / "clients.log", "a")
        self.cluster = Cluster(self.scratch / "store") if options.fdb else None
        store = f"fdb:{self.cluster.file}" if options.fdb else f"local:{scratch}/store"
        self.servers = [
            Server(store, f"{scratch}/server{number or ''}.log", free_port(), FDB_LEASE_TTL_MS if options.fdb else LEASE_TTL_MS).start()
            for number in range(1 + options.fdb)
        ]
        self.server = self.servers[0]
        endpoint = ",".join(server.endpoint for server in self.servers)
        self.uri = f"file:big.db?vfs=pagewire&endpoint={endpoint}"
        self.stage_bytes = min(STAGE_BYTES, self.mib * MIB // 4)
        self.environment = guest_environment(self.server.endpoint, PAGEWIRE_STAGE_BYTES=str(self.stage_bytes))
        self.present = set()

    def store_bytes(self):
        return sum(path.stat().st_size for path in (self.scratch / "store").rglob("*") if path.is_file())

    def check(self):
        begun = time.monotonic()
        done = subprocess.run(
            [DEBIAN_PYTHON, __file__, "check", self.uri, LIBRARY],
            env={**self.environment, "PAGEWIRE_CACHE_BYTES": str(CHECK_CACHE_BYTES), "PAGEWIRE_TIMEOUT_MS": str(CHECK_TIMEOUT_MS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=self.patience,
        )
        if done.returncode != 0:
            raise Broken(f"check failed:\n{done.stderr[-3000:]}")
        found = json.loads(done.stdout)
        if found["integrity"] != ["ok"]:
            raise Broken(f"integrity_check says {found['integrity'][:5]}")
        if found["done"].keys() != found["big"].keys():
            raise Broken(f"half there: {found['done']} and {found['big']}")
        for tag, rows in found["done"].items():
            if found["big"][tag] != [rows, rows * (rows + 1) // 2, rows]:
                raise Broken(f"{tag} has {rows} rows, found were (rows, sum of numbers, rows with a body) {found['big'][tag]}")
        lost = self.present - found["done"].keys()
        if lost:
            raise Broken(f"{lost} was there and is missing")
        self.check_seconds, self.check_reads = time.monotonic() - begun, found["reads"]
        return found["done"].keys()

    def whole(self, tag):
        """A transaction that nobody kills, with all figures."""
        client = Client(self, tag)
        memory = Memory(client.process.pid), Memory(self.server.process.pid)
        client.wait_for("committed", "error")
        client.end()
        if "committed" not in client.said:
            raise Broken(f"{tag} was not committed: {client.said}")
        if not self.server.alive():
            raise Broken("the server ended by itself")
        figures = ", ".join(one.end(who) for one, who in zip(memory, ("client", "server")))
        begin, commit, committed = ([int(n) for n in client.said[step].split()] for step in ("begin", "commit", "committed"))
        if (commit[0] - begin[0], committed[0] - commit[0]) != (0, 1):
            raise Broken(f"{begin[0]}, {commit[0]} and {committed[0]} commit calls at BEGIN, before and after COMMIT: not one by COMMIT")
        carried, staged = committed[1] - begin[1], committed[3] - begin[3]
        if carried > self.stage_bytes:
            raise Broken(f"COMMIT carried {carried / MIB:.1f} MiB itself, {staged / MIB:.1f} MiB had been staged")
        if carried + staged < self.mib * MIB:
            raise Broken(f"{carried} + {staged} bytes were sent for {self.mib} MiB: the figures are wrong")
        self.body_seconds = client.at["commit"] - client.at["begin"]
        self.commit_seconds = client.at["committed"] - client.at["commit"]
        if self.commit_seconds > self.body_seconds:
            raise Broken(f"COMMIT took {self.commit_seconds:.1f} s, everything before it {self.body_seconds:.1f} s")
        self.present.add(tag)
        if self.check() != self.present:
            raise Broken(f"{tag} is not all there is: {self.present}")
        print(
            f"big transaction: {tag}: {self.mib} MiB; rows written in {self.body_seconds:.1f} s, COMMIT {self.commit_seconds:.1f} s"
            f" in 1 commit call with {carried / MIB:.1f} MiB, {staged / MIB:.1f} MiB in {committed[2] - begin[2]} stage calls, looked at by another process in {self.check_seconds:.1f} s (read calls waited for, behind it, bytes: {self.check_reads}); memory: {figures};"
            f" store {self.store_bytes() / MIB:.0f} MiB",
            flush=True,
        )

    def killed(self, number, attempt):
        """The same with a kill; which moment is by chance, which half and whom by turns: two show both halves, four everything. Whether it came before
        the end."""
        tag = f"killed-{number}-{attempt}"
        during = ("begin", "commit")[number % 2]
        whom = ("client", "server")[(number + number // 2) % 2]
        usual = self.commit_seconds if during == "commit" else self.body_seconds
        delay = self.random.uniform(0, usual)
        client = Client(self, tag)
        client.wait_for(during, "error")
        if during not in client.said:
            raise Broken(f"{tag} was never begun: {client.said}")
        # Whatever it says meanwhile, it is the moment that counts.
        time.sleep(delay)
        if not self.server.alive():
            raise Broken("the server ended by itself")
        killed_at = time.monotonic()
        if whom == "client":
            client.process.kill()
        else:
            self.server.kill()
            self.server.start()
        client.end()
        said = client.said
        there = tag in self.check()
        if "committed" in said and not there:
            raise Broken(f"{tag} was acknowledged and is missing")
        may_be_there = "commit" in said and ("error" not in said or OUTCOME_UNKNOWN in said["error"])
        if there and not may_be_there:
            raise Broken(f"{tag} is there although {said}")
        if there:
            self.present.add(tag)
        # A client whose server dies in mid-COMMIT asks the next one what became of it and sends it again: it says "committed"
        # too, but later.
        over = "committed" in said and client.at["committed"] < killed_at
        # The first transaction may have been slower: a moment that lies behind the end is one that is not tried.
        if "commit" in said:
            self.body_seconds = min(self.body_seconds, client.at["commit"] - client.at["begin"])
        if over:
            self.commit_seconds = min(self.commit_seconds, client.at["committed"] - client.at["commit"])
        print(
            f"big transaction: {tag}: {whom} killed {delay:.2f} s after {during}: {'there' if there else 'not there'},"
            f" {'after' if over else 'before'} its end,"
            f" it had said {[step for step in said if step != 'end']}{': ' + said['error'] if 'error' in said else ''};"
            f" store {self.store_bytes() / MIB:.0f} MiB",
            flush=True,
        )
        return not over

    def run(self, kills):
        self.whole("first")
        one = self.store_bytes()
        for number in range(kills):
            if not any(self.killed(number, attempt) for attempt in range(ATTEMPTS)):
                raise Broken(f"the transaction was over {ATTEMPTS} times before the kill: this has shown nothing")
        self.whole("last")
        if self.cluster is not None:
            self.beside()
        most = one * (len(self.present) + 1)
        if self.cluster is None and self.store_bytes() > most:
            raise Broken(
                f"{len(self.present)} transactions are there, one takes {one / MIB:.0f} MiB,"
                f" and the store has {self.store_bytes() / MIB:.0f} MiB: the space of the dead is not used again"
            )

    def beside(self):
        """What the cluster does by itself."""
        for server in self.servers:
            server.kill()
        fdb = Fdb(self.cluster.file)
        mib = min(self.mib, BESIDE_MIB)
        rate = fdb.bulk(mib)
        fdb.stop()
        print(f"big transaction: the cluster by itself: {mib} MiB at {rate:.1f} MiB/s", flush=True)

    def stop(self):
        for server in self.servers:
            server.kill()
        if self.cluster is not None:
            self.cluster.stop()
        self.log.close()


def main():
    if sys.argv[1:2] == ["work"]:
        tag, mib, uri, library = sys.argv[2:]
        return work(tag, int(mib), uri, library)
    if sys.argv[1:2] == ["check"]:
        return check(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--fdb", action="store_true", help="two page servers on a FoundationDB cluster")
    parser.add_argument("--keep", help="a folder that stays afterwards, with the store and the logs")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    if options.fdb and not Cluster.is_possible():
        print("big transaction: NOT RUN: there is no fdbserver (on the path, or PAGEWIRE_FDBSERVER) or no fdbcli")
        print("big: 0 passed, 0 failed")
        return 0
    print(f"big transaction: --mib {options.mib} --kills {options.kills} --seed {options.seed}", flush=True)
    scratch = options.keep or tempfile.mkdtemp(prefix="pagewire-big-")
    pathlib.Path(scratch).mkdir(parents=True, exist_ok=True)
    test = BigTransaction(options, scratch)
    failed = False
    try:
        test.run(options.kills)
    except Broken as broken:
        failed = True
        print(f"FAILED big transaction --mib {options.mib} --seed {options.seed}: {broken}\nkept: {scratch}")
    finally:
        test.stop()
    if not failed and not options.keep:
        subprocess.run(["rm", "-rf", scratch], check=True)
    print(f"big: {int(not failed)} passed, {int(failed)} failed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
