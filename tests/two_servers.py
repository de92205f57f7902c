"""Two page servers on a FoundationDB cluster, killed under a writer that knows both: it goes on with the other one, its
transaction and its lease with it.

two_servers.py [--kills N]

Not run, and says so, where there is no fdbserver.
 1. A server is killed in the middle of a transaction: COMMIT says OK, through the other one, and nobody asked for the lease again.
 2. The same between transactions, many times, with the servers started again in turns: no statement fails.
 3. A bounded reader at the other server is told of each commit by push, at once, and asks for nothing.
 4. Another process that wants to write while that goes on gets its turns, and every row of both is there once.
 5. The way to a server is cut, and the server lives: the writer goes to the other one with its lease. That one dies, and the writer comes back to
    the first, which never missed it: with its lease where nobody else had one, and with nothing where another session has written meanwhile,
    whose row it then sees.
 6. A database that is open at one server is not removed through the other, and is when it was closed.
The lease TTL is so long that a lease which was lost with its server would be free again long after the test has failed.
"""

import argparse
import os
import pathlib
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from harness import COMMAND, LIBRARY, Cluster, Server, free_port

# Twice this passes before anybody else takes what a dead server had claimed.
LEASE_TTL_MS = 30_000
# Far less than that, on a loaded machine.
MOVES_WITHIN = 12
PUSHED_WITHIN = 2.5


class Broken(Exception):
    """A promise was not kept."""


class Gate:
    """The way to a server, which can be cut."""

    def __init__(self, server):
        self.server = server
        self.port = free_port()
        self.listener = None
        self.sockets = []
        self.open()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def open(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _accept(self, listener):
        while True:
            try:
                inner, _ = listener.accept()
                outer = socket.create_connection(("127.0.0.1", self.server.port))
            except OSError:
                return
            for one in (inner, outer):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets += [inner, outer]
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source, sink):
        try:
            while some := source.recv(1 << 16):
                sink.sendall(some)
        except OSError:
            pass

    def cut(self):
        """For the client only: the server goes on waiting for it."""
        # An accept that is under way would keep it open.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for inner in self.sockets[::2]:
            try:
                inner.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # It was gone.
        self.sockets.clear()


class TwoServers:
    def __init__(self, scratch, kills):
        self.kills = kills
        self.cluster = Cluster(scratch / "cluster", "memory")
        self.servers = []
        for number in range(2):
            self.servers.append(Server(f"fdb:{self.cluster.file}", scratch / f"server{number}.log", lease_ttl_ms=LEASE_TTL_MS))
            self.servers[-1].start()
        endpoint = ",".join(server.endpoint for server in self.servers)
        self.uri = f"file:t/app.db?vfs=pagewire&endpoint={endpoint}&timeout_ms=20000"
        self.library = sqlite3.connect(":memory:")
        self.library.enable_load_extension(True)
        self.library.load_extension(str(LIBRARY))
        self.writer = self.connect()
        self.writer.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, who TEXT)")

    def connect(self):
        return sqlite3.connect(self.uri, uri=True, isolation_level=None, timeout=60)

    def in_use(self):
        endpoint = self.ask("SELECT value FROM pagewire_status WHERE key = 'endpoint_in_use'")
        return next(server for server in self.servers if server.endpoint == endpoint)

    def ask(self, query):
        return self.writer.execute(query).fetchone()[0]

    def acquires(self):
        return self.ask("SELECT coalesce(sum(count), 0) FROM pagewire_rpc WHERE kind = 'acquire'")

    def said(self):
        return self.library.execute("SELECT pagewire_last_error()").fetchone()[0]

    def in_the_middle_of_a_transaction(self):
        before = self.acquires()
        self.writer.execute("BEGIN IMMEDIATE")
        self.writer.execute("INSERT INTO t(who) VALUES('in the middle')")
        killed = self.in_use()
        killed.kill()
        begun = time.monotonic()
        self.writer.execute("COMMIT")
        took = time.monotonic() - begun
        if took > MOVES_WITHIN:
            raise Broken(f"COMMIT took {took:.1f} s")
        if self.in_use() is killed:
            raise Broken("nobody went anywhere")
        if self.acquires() != before:
            raise Broken("the lease was asked for again")
        killed.start()
        return took

    def many_times(self):
        before = self.acquires()
        for turn in range(self.kills):
            killed = self.in_use()
            killed.kill()
            for _ in range(3):
                self.writer.execute("INSERT INTO t(who) VALUES('alone')")
            if self.in_use() is killed:
                raise Broken(f"kill {turn}: nobody went anywhere")
            killed.start()
        if self.acquires() != before:
            raise Broken("the lease was asked for again")
        rows = self.ask("SELECT count(*) FROM t WHERE who = 'alone'")
        if rows != 3 * self.kills:
            raise Broken(f"{rows} rows, {3 * self.kills} were acknowledged")

    def told_of_each_commit(self):
        in_use = self.in_use()
        other = next(server for server in self.servers if server is not in_use)
        # With a credential of its own it has neither the session of the writer nor its lease.
        uri = f"file:t/app.db?vfs=pagewire&endpoint={other.endpoint},{in_use.endpoint}&token=reader&mode=ro&consistency=bounded"
        # One that asks, and subscribes for all connections of the process; the other begins with what it is told.
        asking = sqlite3.connect(f"{uri}&max_staleness_ms=1&subscribe=always", uri=True, isolation_level=None)
        reader = sqlite3.connect(f"{uri}&max_staleness_ms=600000", uri=True, isolation_level=None)
        count = "SELECT count(*) FROM t"
        began = "SELECT coalesce(sum(count), 0) FROM pagewire_rpc WHERE kind = 'begin'"
        until = time.monotonic() + MOVES_WITHIN
        while reader.execute("SELECT value FROM pagewire_status WHERE key = 'subscription'").fetchone()[0] != "bounded":
            asking.execute(count).fetchone()
            if time.monotonic() > until:
                raise Broken("it is not subscribed")
        before, slowest = reader.execute(began).fetchone()[0], 0
        for _ in range(20):
            self.writer.execute("INSERT INTO t(who) VALUES('told')")
            rows = self.ask(count)
            begun = time.monotonic()
            while reader.execute(count).fetchone()[0] != rows:
                # Far below the time between two heartbeats, and between two looks for a bell that was not heard.
                if time.monotonic() > begun + PUSHED_WITHIN:
                    raise Broken(f"a commit was not told of within {PUSHED_WITHIN} s")
            slowest = max(slowest, time.monotonic() - begun)
        asked = reader.execute(began).fetchone()[0] - before
        if asked:
            raise Broken(f"it asked {asked} times")
        return f"told within {slowest * 1000:.0f} ms"

    def beside_another(self):
        over = threading.Event()
        program = (
            "import sqlite3, sys\n"
            "library = sqlite3.connect(':memory:'); library.enable_load_extension(True); library.load_extension(sys.argv[2])\n"
            "db = sqlite3.connect(sys.argv[1], uri=True, isolation_level=None, timeout=60)\n"
            "for i in range(10):\n"
            "    db.execute('INSERT INTO t(who) VALUES(?)', ('other',))\n"
            "    print(i, flush=True)\n"
        )
        other = subprocess.Popen([sys.executable, "-c", program, self.uri, str(LIBRARY)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

        def kill():
            for turn in range(self.kills // 2):
                server = self.servers[turn % 2]
                server.kill()
                time.sleep(0.3)
                server.start()
                if over.wait(1):
                    return

        killer = threading.Thread(target=kill)
        killer.start()
        mine = failed = 0
        while other.poll() is None:
            try:
                self.writer.execute("INSERT INTO t(who) VALUES('beside')")
                mine += 1
            except sqlite3.OperationalError as error:
                # A lease on its way between two sessions is in no server when its own is killed.
                failed += 1
                print(f"two_servers: beside another: {error}: {self.said()}", flush=True)
        over.set()
        killer.join()
        if other.returncode != 0:
            raise Broken(f"the other one ended with {other.returncode}: {other.stderr.read()[-2000:]}")
        theirs = self.ask("SELECT count(*) FROM t WHERE who = 'other'")
        rows = self.ask("SELECT count(*) FROM t WHERE who = 'beside'")
        if theirs != 10 or not mine <= rows <= mine + failed:
            raise Broken(f"{theirs} rows of the other, {rows} rows of {mine} acknowledged and {failed} failed ones")
        if self.ask("PRAGMA integrity_check") != "ok":
            raise Broken("integrity_check")
        return mine, failed

    def to_and_fro(self):
        first, other = self.servers
        gate = Gate(first)
        uri = f"file:t/fro.db?vfs=pagewire&endpoint={gate.endpoint},{other.endpoint}&timeout_ms=20000"
        writer = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)

        def ask(query):
            return writer.execute(query).fetchone()[0]

        def in_use():
            return ask("SELECT value FROM pagewire_status WHERE key = 'endpoint_in_use'")

        acquires = "SELECT coalesce(sum(count), 0) FROM pagewire_rpc WHERE kind = 'acquire'"
        writer.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, who TEXT)")
        rows = 0
        for is_alone in (True, False):
            writer.execute("INSERT INTO t(who) VALUES('at the first')")
            if in_use() != gate.endpoint:
                raise Broken(f"it began with {in_use()}")
            before = ask(acquires)
            gate.cut()
            writer.execute("INSERT INTO t(who) VALUES('at the other')")
            if in_use() != other.endpoint:
                raise Broken("nobody went anywhere")
            if ask(acquires) != before:
                raise Broken("the lease was asked for on the way to the other")
            rows += 2
            if not is_alone:
                beside = f"file:t/fro.db?vfs=pagewire&endpoint={other.endpoint}&token=beside&timeout_ms=20000"
                beside = sqlite3.connect(beside, uri=True, isolation_level=None, timeout=60)
                beside.execute("INSERT INTO t(who) VALUES('beside')")
                beside.close()
                rows += 1
            gate.open()
            other.kill()
            begun = time.monotonic()
            if ask("SELECT count(*) FROM t") != rows:
                raise Broken(f"it does not see {rows} rows when it is back")
            # The lease that the other process had goes with its server, and is free when that counts as dead.
            if is_alone:
                writer.execute("INSERT INTO t(who) VALUES('back')")
                rows += 1
                if ask(acquires) != before:
                    raise Broken("the lease was asked for on the way back")
            if in_use() != gate.endpoint:
                raise Broken("it did not come back")
            took = time.monotonic() - begun
            if took > MOVES_WITHIN:
                raise Broken(f"it took {took:.1f} s to come back")
            other.start()
        if ask("SELECT count(*) FROM t") != rows or ask("PRAGMA integrity_check") != "ok":
            raise Broken(f"there are not {rows} rows")
        writer.close()
        gate.cut()
        return f"{rows} rows"

    def not_removed_while_open_elsewhere(self):
        first, other = self.servers
        uri = f"file:t/gone.db?vfs=pagewire&endpoint={first.endpoint}&timeout_ms=20000"
        # A credential of its own: its session has nothing else open.
        opened = sqlite3.connect(f"{uri}&token=opened", uri=True, isolation_level=None)
        opened.execute("CREATE TABLE t(i)")

        def remove():
            command = [COMMAND, "db", "--endpoint", other.endpoint, "delete", "t/gone.db"]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
            return done.returncode, done.stderr

        status, said = remove()
        if status == 0 or "open at 1 other page server" not in said:
            raise Broken(f"it was removed while it was open: {status}: {said}")
        opened.execute("INSERT INTO t VALUES(1)")
        if opened.execute("SELECT count(*) FROM t").fetchone()[0] != 1:
            raise Broken("its row is not there")
        opened.close()
        until = time.monotonic() + MOVES_WITHIN
        # The server hears of the close, and says so, behind it.
        while (answer := remove())[0] != 0:
            if time.monotonic() > until:
                raise Broken(f"it cannot be removed after it was closed: {answer}")
            time.sleep(0.1)
        return "refused, then removed"

    def stop(self):
        for server in self.servers:
            server.kill()
        self.cluster.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=8)
    options = parser.parse_args()
    if not Cluster.is_possible():
        print("two_servers: NOT RUN: there is no fdbserver (on the path, or PAGEWIRE_FDBSERVER) or no fdbcli")
        print("twoservers: 0 passed, 0 failed")
        return 0
    os.environ.pop("PAGEWIRE_ENDPOINT", None)
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="pagewire-two-servers-") as scratch:
        servers = TwoServers(pathlib.Path(scratch), options.kills)
        try:
            for test in (servers.in_the_middle_of_a_transaction, servers.many_times, servers.told_of_each_commit, servers.beside_another, servers.to_and_fro, servers.not_removed_while_open_elsewhere):
                try:
                    print(f"two_servers: {test.__name__}: {test()}", flush=True)
                    passed += 1
                except (Broken, sqlite3.Error) as broken:
                    failed += 1
                    print(f"FAILED two_servers {test.__name__}: {broken}: {servers.said()}")
        finally:
            servers.stop()
    print(f"twoservers: {passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
