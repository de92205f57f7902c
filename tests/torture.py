"""Kills clients and the server at random moments and looks afterwards whether anything that was acknowledged is missing,
or anything that was not is half there.

torture.py [--kills N] [--seed S] [--clients N] [--memory | --plain | --fdb [CLUSTER_FILE] | --server-command COMMAND]
           [--keep DIR]

Clients of two kinds (Debian's Python, Rust) work on two databases; see torture_client.py for what they write. A round lets
them work, kills some of them and the server with SIGKILL and starts them again; at its end all clients are killed and the
databases are compared with the clients' journals:
 1. every `ok` is there exactly once, in each database that it wrote;
 2. `rolled` and every `err` is absent, unless COMMIT failed and said that the outcome is unknown;
 3. what has no answer, or an unknown one, is there whole or not at all, and stays so;
 4. the sum of all balances is what it was, each database's own total fits, a client's slots bear one id, no reader saw
    anything torn, and integrity_check says ok.
At the end everybody works undisturbed: each client has to get somewhere (nothing is stuck).
--fdb takes two page servers on a FoundationDB cluster, in a directory of its own there, or on a cluster that is begun for it; clients
know both of them and go on with the other when theirs is killed. Some kills are of the fdbserver of a cluster that is begun for it, under servers and
clients that go on: an acknowledged commit is there all the same, and a lost one is told as one.
--memory takes the memory store, of which only clients are killed. --plain works on plain files with no server: SQLite
itself has to pass. --server-command takes another page server, which has to be durable: its command line with {store} (a
folder), {address} and {lease_ttl_ms} in it, for example "target/debug/directory-store {store} {address} {lease_ttl_ms}": the
shadow-paging adapter over a directory of files, which changes one file at a time.
"""

import argparse
import collections
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from harness import DEBIAN_PYTHON, GUEST, LIBRARY, TOP, Cluster, Server, free_port, guest_environment

CLIENT_PROGRAM = TOP / "tests" / "torture_client.py"
# Short: after a kill of the server nothing becomes visible for so long, and that is time in which nothing is tested.
LEASE_TTL_MS = 500
OPENING_SUM = 20 * 1000
CALM_SECONDS = 6
# The library's words; of an earlier commit it says "an earlier commit".
OUTCOME_UNKNOWN = "not known whether the commit was applied"
CHECK_SECONDS = 180
# Of the kills in the middle of a round, where there is a cluster that may be killed.
CLUSTER_SHARE = 0.2
# So many kills without one of the cluster are no accident.
LEAST_KILLS = 60


class Broken(Exception):
    """A promise was not kept."""


class Torture:
    def __init__(self, options, scratch):
        self.random = random.Random(options.seed)
        self.scratch = scratch
        self.kills = 0
        self.cluster_kills = 0
        self.servers = []
        self.cluster = None
        self.server_dies = not options.plain and not options.memory
        self.library = []
        environment = {}
        if options.plain:
            self.uris = [f"file:{scratch}/{name}.db?vfs=unix" for name in "ab"]
        else:
            store = "memory" if options.memory else f"local:{scratch}/store"
            command, arguments = options.server_command, []
            if command is not None:
                store = f"{scratch}/store"
            if options.fdb is not None:
                if not options.fdb:
                    self.cluster = Cluster(f"{scratch}/cluster")
                store = f"fdb:{options.fdb or self.cluster.file}"
                arguments = ["--fdb-directory", f"torture/{options.seed}-{time.time_ns()}"]
            for number in range(1 if options.fdb is None else 2):
                log = f"{scratch}/server{number or ''}.log"
                self.servers.append(Server(store, log, free_port(), LEASE_TTL_MS, command, arguments).start())
            self.uris = [f"file:torture/{name}.db?vfs=pagewire" for name in "ab"]
            self.library = [str(LIBRARY)]
            environment = {"PAGEWIRE_TIMEOUT_MS": "6000"}
        self.environment = guest_environment(**environment)
        self.clients = {f"{'py' if i % 2 else 'rs'}{i}": None for i in range(options.clients)}
        self.read_to = collections.Counter()
        self.begun = {}
        self.outcome = {}
        self.settled_present = set()
        self.settled_absent = set()
        self.errors = collections.Counter()

    def journal(self, name):
        return pathlib.Path(self.scratch) / f"{name}.journal"

    def environment_of(self, index):
        """The environment of a client: it knows all servers, and they take turns in being the first."""
        if not self.servers:
            return self.environment
        first = index % len(self.servers)
        endpoints = [server.endpoint for server in self.servers[first:] + self.servers[:first]]
        return {**self.environment, "PAGEWIRE_ENDPOINT": ",".join(endpoints)}

    def start(self, name):
        program = [DEBIAN_PYTHON, CLIENT_PROGRAM, "work"] if name.startswith("py") else [GUEST, "torture"]
        seed = str(self.random.randrange(1 << 32))
        with open(f"{self.scratch}/{name}.log", "a") as log:
            self.clients[name] = subprocess.Popen(
                [*program, name, seed, self.journal(name), *self.uris, *self.library],
                # py0 and rs1 begin with one server, py2 and rs3 with the other.
                env=self.environment_of(list(self.clients).index(name) // 2),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill_client(self, name):
        client = self.clients[name]
        if client.poll() is not None:
            text = pathlib.Path(f"{self.scratch}/{name}.log").read_text()[-2000:]
            raise Broken(f"client {name} ended by itself with {client.returncode}:\n{text}")
        client.kill()
        client.wait()
        self.kills += 1

    def tool(self, verb):
        done = subprocess.run(
            [DEBIAN_PYTHON, CLIENT_PROGRAM, verb, *self.uris, *self.library],
            env=self.environment_of(0),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=CHECK_SECONDS,
        )
        if done.returncode != 0:
            raise Broken(f"{verb} failed:\n{done.stderr[-3000:]}")
        return done.stdout

    def round(self):
        for name in self.clients:
            self.start(name)
        time.sleep(self.random.uniform(0.3, 1.5))
        for _ in range(self.random.randrange(1, 6)):
            if self.cluster is not None and self.random.random() < CLUSTER_SHARE:
                self.cluster.kill()
                self.kills += 1
                self.cluster_kills += 1
            elif self.server_dies and self.random.random() < 0.4:
                server = self.random.choice(self.servers)
                if not server.alive():
                    raise Broken(f"the server ended by itself with {server.process.returncode}")
                server.kill()
                self.kills += 1
                time.sleep(self.random.choice([0, 0.05, 0.3]))
                self.start_server(server)
            else:
                name = self.random.choice(list(self.clients))
                self.kill_client(name)
                self.start(name)
            time.sleep(self.random.choice([0.02, 0.1, 0.4, 1.2]))
        # Everybody at one moment, and sometimes the server in the middle of it.
        names = list(self.clients)
        self.random.shuffle(names)
        server_too = self.server_dies and self.random.random() < 0.3
        for at, name in enumerate(names):
            if server_too and at == len(names) // 2:
                for server in self.servers:
                    server.kill()
                    self.kills += 1
            self.kill_client(name)
        if server_too:
            for server in self.servers:
                self.start_server(server)
        if self.cluster is not None:
            # What is looked at next needs it.
            self.cluster.settle()

    def start_server(self, server):
        """One that begins needs the cluster; those that are there wait for it."""
        if self.cluster is not None:
            self.cluster.settle()
        server.start()

    def read_journals(self):
        """Takes in what the clients have written since the last time; returns the number of oks by client."""
        oks = collections.Counter()
        for name in self.clients:
            path = self.journal(name)
            if not path.exists():
                continue
            with open(path, "rb") as journal:
                journal.seek(self.read_to[name])
                content = journal.read()
            self.read_to[name] += len(content)
            if content and not content.endswith(b"\n"):
                raise Broken(f"the journal of {name} has half a line")
            for line in content.decode().splitlines():
                verb, id, *rest = line.split(" ", 3)
                if verb == "begin":
                    self.begun[id] = rest[0]
                elif verb == "torn":
                    raise Broken(f"a reader saw {line}")
                elif verb == "err":
                    stage, code = rest[0], rest[1].split(" ")[0]
                    self.errors[f"{stage} {code}"] += 1
                    said_so = stage == "commit" and OUTCOME_UNKNOWN in line
                    self.outcome[id] = "unknown" if said_so else f"err: {line}"
                else:
                    self.outcome[id] = verb
                    oks[name] += verb == "ok" and self.begun[id] != "read"
        return oks

    def check(self):
        oks = self.read_journals()
        found = json.loads(self.tool("check"))
        for schema, content in found.items():
            if content["integrity"] != ["ok"]:
                raise Broken(f"{schema}: integrity_check says {content['integrity'][:5]}")
            if content["balance"] != content["total"]:
                raise Broken(f"{schema}: balances are {content['balance']}, their total says {content['total']}")
        money = found["main"]["balance"] + found["b"]["balance"]
        if money != 2 * OPENING_SUM:
            raise Broken(f"the sum of all balances is {money}, it was {2 * OPENING_SUM}")
        present = {schema: collections.Counter(id for id, _ in content["ledger"]) for schema, content in found.items()}
        for schema, ids in present.items():
            for id, times in ids.items():
                if times != 1:
                    raise Broken(f"{schema}: {id} is there {times} times")
                if id not in self.begun:
                    raise Broken(f"{schema}: {id} was never begun")
        for id, kind in self.begun.items():
            self.check_one(id, kind, id in present["main"], id in present["b"])
        self.check_slots(found["main"])
        return oks

    def check_one(self, id, kind, in_main, in_b):
        outcome = self.outcome.get(id, "none")
        if kind == "read":
            if in_main or in_b:
                raise Broken(f"the reader {id} has written")
            return
        if in_b != (in_main and kind == "two"):
            raise Broken(f"{id} ({kind}, {outcome}) is half there: main {in_main}, b {in_b}")
        if outcome == "ok" and not in_main:
            raise Broken(f"{id} ({kind}) was acknowledged and is missing")
        if outcome not in ("ok", "unknown", "none") and in_main:
            raise Broken(f"{id} ({kind}) is there although the client was told: {outcome}")
        # Its writer is dead and the check held the write lock: nothing can change any more.
        settled, other = (self.settled_present, self.settled_absent) if in_main else (self.settled_absent, self.settled_present)
        if id in other:
            raise Broken(f"{id} ({kind}, {outcome}) {'appeared' if in_main else 'vanished'} after an earlier check")
        settled.add(id)

    def check_slots(self, content):
        newest = {}
        for id, kind in content["ledger"]:
            if kind == "large":
                newest[id.split("-")[0]] = id
        slots = {client: (id, count) for client, id, count in content["slots"]}
        if len(slots) != len(content["slots"]):
            raise Broken(f"a client's slots bear several ids: {content['slots']}")
        for client, id in newest.items():
            if slots.get(client) != (id, 300):
                raise Broken(f"the newest large transaction of {client} is {id}, its slots say {slots.get(client)}")

    def calm(self):
        """Without kills everybody gets somewhere."""
        for name in self.clients:
            self.start(name)
        time.sleep(CALM_SECONDS)
        for name in self.clients:
            self.kill_client(name)
        oks = self.check()
        for name in self.clients:
            if oks[name] == 0:
                raise Broken(f"{name} got nothing done in {CALM_SECONDS} undisturbed seconds")

    def run(self, wanted):
        self.tool("make")
        rounds = acknowledged = 0
        while self.kills < wanted:
            self.round()
            acknowledged += self.check().total()
            rounds += 1
            if rounds % 10 == 0:
                print(f"torture: {rounds} rounds, {self.kills} kills, {acknowledged} acknowledged commits", flush=True)
        if self.cluster is not None and wanted >= LEAST_KILLS and self.cluster_kills == 0:
            raise Broken("the cluster was never killed: this has shown nothing of it")
        if acknowledged == 0:
            raise Broken("nothing was ever acknowledged: this has shown nothing")
        self.calm()
        unknown = sum(outcome == "unknown" for outcome in self.outcome.values())
        unanswered = len(self.begun) - len(self.outcome)
        print(
            f"torture: {rounds} rounds, {self.kills} kills, {self.cluster_kills} of them of fdbserver, {acknowledged} acknowledged commits, all there;"
            f" {unanswered} without an answer, {unknown} of unknown outcome; errors by stage and code: {dict(self.errors)}"
        )

    def stop(self):
        for client in self.clients.values():
            if client is not None:
                client.kill()
                client.wait()
        for server in self.servers:
            server.kill()
        if self.cluster is not None:
            self.cluster.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--server-command", help="another page server; see above")
    parser.add_argument(
        "--fdb", nargs="?", const="", metavar="CLUSTER_FILE", help="two page servers on this FoundationDB cluster, or on one of its own"
    )
    parser.add_argument("--keep", help="a folder that stays afterwards, with the store, the journals and the logs")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    if options.fdb == "" and not Cluster.is_possible():
        print("torture: NOT RUN: there is no fdbserver (on the path, or PAGEWIRE_FDBSERVER) or no fdbcli")
        print("torture: 0 passed, 0 failed")
        return 0
    print(f"torture: --kills {options.kills} --seed {options.seed}", flush=True)
    scratch = options.keep or tempfile.mkdtemp(prefix="pagewire-torture-")
    pathlib.Path(scratch).mkdir(parents=True, exist_ok=True)
    torture = Torture(options, scratch)
    failed = False
    try:
        torture.run(options.kills)
    except Broken as broken:
        failed = True
        print(f"FAILED torture --seed {options.seed}: {broken}\nkept: {scratch}")
    finally:
        torture.stop()
    if not failed and not options.keep:
        subprocess.run(["rm", "-rf", scratch], check=True)
    print(f"torture: {int(not failed)} passed, {int(failed)} failed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
