"""A writer and eight readers in nine processes: each snapshot of each reader is what the bank was after some transfer, and a
strict reader never misses one that was acknowledged (P3, P4).

bank.py [--transfers N] [--store local|versioned-memory|fdb | --server-command COMMAND] [--spill-every K] [--seed S] [--keep DIR]

The writer moves money between 1,000 accounts, whose sum is constant; every K-th transaction is a spilled one, which is larger
than SQLite's cache and is sent before its COMMIT, and some of those are rolled back. Four readers are strict, four bounded. See
bank_client.py for what each of them asserts:
 1. every snapshot sums right, through the table and through its index, twice, and its accounts are those of the transfer that it
    names; nothing is seen whose COMMIT was not called;
 2. a strict reader sees what was acknowledged before it began, told by a side channel; a bounded one what was acknowledged longer
    ago than its bound; no connection goes back;
 3. each small transfer costs the writer one commit call and no other, a spilled one its stage calls and one commit call, a rolled
    back one no call but those: what the readers do adds none;
 4. a reader never writes, and its BEGIN asks once at most.
With --store fdb two page servers serve a FoundationDB cluster that is begun for it: the writer begins with one of them, every other
reader with the other, and all know both. --server-command takes another page server, as torture.py does: "target/debug/directory-store {store}
{address} {lease_ttl_ms}" is the shadow-paging adapter over a directory of files. Its readers open with mode=rw: a store that keeps no old versions has
no read-only connections.
Versions are kept for no longer than somebody reads them, so a collection runs beside all of this. At the end the accounts are
what the transfers make of them, and integrity_check says ok.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from bank_client import ACKNOWLEDGED, FINGERPRINTS, OVER, ACCOUNTS, OPENING_BALANCE, board
from harness import DEBIAN_PYTHON, LIBRARY, TOP, Cluster, Server, guest_environment

CLIENT_PROGRAM = TOP / "tests" / "bank_client.py"
STORES = ("local", "versioned-memory", "fdb")
# (bound in ms or "strict", more parameters of the URI): who asks at each BEGIN, who is told by push, and who goes from one to the
# other. A bound is kept by push only where it is longer than the pause between two heartbeats.
READERS = (
    ("strict", ""),
    ("strict", ""),
    ("strict", "&subscribe=always"),
    ("strict", "&subscribe=never"),
    ("100", ""),
    ("1000", ""),
    ("5000", "&subscribe=always"),
    ("30000", "&subscribe=always"),
)
LEASE_TTL_MS = 10_000
# So that a spilled transaction of a few hundred KiB is staged.
STAGE_BYTES = 65_536
# Fewer snapshots than this of any reader would show nothing; of so many different moments, where a reader is told of each commit.
LEAST_SNAPSHOTS = 20
LEAST_DIFFERENT = 10
# A loaded machine does a transfer in some milliseconds; nothing may hang.
SECONDS_A_TRANSFER = 0.25
REST_SECONDS = 120


class Broken(Exception):
    """A promise was not kept, or a client did not end as it should."""


class Bank:
    def __init__(self, options, scratch):
        self.options = options
        self.scratch = pathlib.Path(scratch)
        self.random = random.Random(options.seed)
        self.cluster = Cluster(self.scratch / "cluster") if options.store == "fdb" else None
        store = f"local:{scratch}/store" if options.store == "local" else options.store
        if self.cluster is not None:
            store = f"fdb:{self.cluster.file}"
        command, arguments = options.server_command, ["--retention", "0"]
        if command is not None:
            store, arguments = f"{scratch}/store", []
        self.servers = [
            Server(store, f"{scratch}/server{number or ''}.log", None, LEASE_TTL_MS, command, arguments).start()
            for number in range(1 if self.cluster is None else 2)
        ]
        endpoints = [server.endpoint for server in self.servers]
        self.uris = [f"file:bank/main.db?vfs=pagewire&endpoint={','.join(turn)}" for turn in (endpoints, endpoints[::-1])]
        self.uri = self.uris[0]
        self.environment = guest_environment(PAGEWIRE_STAGE_BYTES=str(STAGE_BYTES))
        self.board_file = self.scratch / "board"
        with open(self.board_file, "wb") as file:
            file.truncate(8 * (FINGERPRINTS + options.transfers + 1))
        self.board = board(self.board_file)
        self.board[FINGERPRINTS] = OPENING_BALANCE * ACCOUNTS * (ACCOUNTS + 1) // 2
        self.clients = {}

    def output(self, name):
        return self.scratch / f"{name}.out"

    def start(self, name, verb, uri, *arguments):
        with open(self.output(name), "w") as output:
            self.clients[name] = subprocess.Popen(
                [DEBIAN_PYTHON, CLIENT_PROGRAM, verb, uri, LIBRARY, *map(str, arguments)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def figures(self, name):
        """What a client that has ended said, unless it found something wrong."""
        text = self.output(name).read_text()
        if self.clients[name].returncode != 0:
            raise Broken(f"{name} ended with {self.clients[name].returncode}:\n{text[-3000:]}")
        return json.loads(text.splitlines()[-1])

    def wait(self, name, seconds):
        """Until the client ends; a reader that ends before it is told to is reported at once."""
        until = time.monotonic() + seconds
        told = 0
        while self.clients[name].poll() is None:
            for other, client in self.clients.items():
                if client.poll() not in (None, 0):
                    self.figures(other)
            for server in self.servers:
                if not server.alive():
                    raise Broken(f"a server ended by itself with {server.process.returncode}")
            if time.monotonic() > until:
                raise Broken(f"{name} did not end within {seconds:.0f} s, after {self.board[ACKNOWLEDGED]} transfers")
            if self.board[ACKNOWLEDGED] >= told + 10_000:
                told = self.board[ACKNOWLEDGED]
                print(f"bank: {told} transfers", flush=True)
            time.sleep(0.1)
        return self.figures(name)

    def run(self):
        options = self.options
        self.start("make", "make", self.uri)
        self.wait("make", REST_SECONDS)
        readers = [f"reader{i}-{kind}" for i, (kind, _) in enumerate(READERS)]
        for turn, (name, (kind, more)) in enumerate(zip(readers, READERS)):
            if kind != "strict":
                more += f"&consistency=bounded&max_staleness_ms={kind}"
            mode = "ro" if options.server_command is None else "rw"
            self.start(name, "read", f"{self.uris[turn % 2]}&mode={mode}{more}", self.board_file, self.random.randrange(1 << 32), kind)
        seed = self.random.randrange(1 << 32)
        self.start("writer", "write", self.uri, self.board_file, options.transfers, options.spill_every, seed)
        begun = time.monotonic()
        writer = self.wait("writer", REST_SECONDS + SECONDS_A_TRANSFER * options.transfers)
        seconds = time.monotonic() - begun
        self.board[OVER] = 1
        print(f"bank: writer in {seconds:.0f} s: {writer}")
        for name in readers:
            figures = self.wait(name, REST_SECONDS)
            print(f"bank: {name}: {figures}")
            least_different = LEAST_DIFFERENT if name.endswith("strict") else 2
            if figures["snapshots"] < LEAST_SNAPSHOTS or figures["different"] < least_different:
                raise Broken(f"{name} has seen too little to show anything: {figures}")

    def stop(self):
        for client in self.clients.values():
            client.kill()
            client.wait()
        for server in self.servers:
            server.kill()
        if self.cluster is not None:
            self.cluster.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--transfers", type=int, default=2000)
    parser.add_argument("--store", choices=STORES, default="local")
    parser.add_argument("--server-command", help="another page server; see above")
    parser.add_argument("--spill-every", type=int, default=25, help="every K-th transfer is a spilled one")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", help="a folder that stays afterwards, with the store and the logs")
    options = parser.parse_args()
    if options.transfers < 1 or options.spill_every < 1:
        parser.error("--transfers and --spill-every are at least 1")
    if options.server_command is not None and options.store != "local":
        parser.error("--server-command is in place of --store")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    if options.store == "fdb" and not Cluster.is_possible():
        print("bank: NOT RUN: there is no fdbserver (on the path, or PAGEWIRE_FDBSERVER) or no fdbcli")
        print("bank: 0 passed, 0 failed")
        return 0
    store = options.server_command or options.store
    print(f"bank: --transfers {options.transfers} --store {store} --seed {options.seed}", flush=True)
    scratch = options.keep or tempfile.mkdtemp(prefix="pagewire-bank-")
    pathlib.Path(scratch).mkdir(parents=True, exist_ok=True)
    # The clients and the server end with it, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bank: ended by SIGTERM"))
    bank = Bank(options, scratch)
    failed = False
    try:
        bank.run()
    except Broken as broken:
        failed = True
        print(f"FAILED bank --store {options.store} --seed {options.seed}: {broken}\nkept: {scratch}")
    finally:
        bank.stop()
    if not failed and not options.keep:
        subprocess.run(["rm", "-rf", scratch], check=True)
    print(f"bank: {int(not failed)} passed, {int(failed)} failed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
