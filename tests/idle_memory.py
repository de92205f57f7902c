"""What an idle open database costs in memory: many of them, each with a connection of its own, opened, read once, and left alone.

idle_memory.py [--databases N] [--store memory|local]

For the memory store and the local one:
 1. The server keeps a few KiB for each of them.
 2. So does the client, beyond what SQLite itself keeps for a connection to a local file.
 3. A round of reads over all of them costs no call: each of them is still subscribed.
Anonymous memory (RssAnon) is what is measured; the local store's file is mapped and no part of that.
"""

import argparse
import os
import pathlib
import sqlite3
import subprocess
import sys
import tempfile

from harness import LIBRARY, Server

SERVER_KIB = 8
CLIENT_KIB = 32
# Allocators and tables have grown to their usual size by then.
FIRST = 100
STORES = ("memory", "local")


class Broken(Exception):
    """A promise was not kept."""


def anonymous_kib(pid):
    """What a process has in memory that no file stands behind."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise Broken(f"process {pid} does not say how much memory it has")


def opened(uri):
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
    connection.execute("SELECT count(*) FROM t").fetchone()
    return connection


def made(uri):
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
    connection.executescript("CREATE TABLE t(i INTEGER PRIMARY KEY, x TEXT); INSERT INTO t(x) VALUES('one')")
    connection.close()


class Growth:
    """How much a process has grown for each of so many databases."""

    def __init__(self, pid):
        self.pid = pid
        self.before = anonymous_kib(pid)

    def of_each(self, databases):
        return (anonymous_kib(self.pid) - self.before) / databases


def run(store, folder, databases, library):
    server = Server(store, folder / "server.log").start()
    try:
        remote = [f"file:tenant/{number}.db?vfs=pagewire&endpoint={server.endpoint}" for number in range(FIRST + databases)]
        local = [f"file:{folder}/{number}.db?vfs=unix" for number in range(FIRST + databases)]
        for uri in remote + local:
            made(uri)
        kept = [opened(uri) for uri in remote[:FIRST] + local[:FIRST]]
        client = Growth(os.getpid())
        kept += [opened(uri) for uri in local[FIRST:]]
        sqlite_kib = client.of_each(databases)
        at_server, client = Growth(server.process.pid), Growth(os.getpid())
        open_now = [opened(uri) for uri in remote[FIRST:]]
        server_kib, client_kib = at_server.of_each(databases), client.of_each(databases) - sqlite_kib
        print(
            f"{databases} idle databases, {store.split(':')[0]} store: {server_kib:.1f} KiB each at the server, {client_kib:.1f} KiB at the client "
            f"beyond the {sqlite_kib:.1f} KiB of a connection to a file",
            flush=True,
        )
        calls = "SELECT coalesce(sum(count), 0) FROM pagewire_rpc WHERE kind <> 'heartbeat'"
        before = library.execute(calls).fetchone()[0]
        for connection in open_now:
            connection.execute("SELECT count(*) FROM t").fetchone()
        asked = library.execute(calls).fetchone()[0] - before
        for connection in kept + open_now:
            connection.close()
        if server_kib > SERVER_KIB:
            raise Broken(f"{server_kib:.1f} KiB at the server, {SERVER_KIB} are a few")
        if client_kib > CLIENT_KIB:
            raise Broken(f"{client_kib:.1f} KiB at the client, {CLIENT_KIB} are enough")
        if asked:
            raise Broken(f"{asked} calls for reads of what is there")
    finally:
        server.kill()


def library():
    connection = sqlite3.connect(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(str(LIBRARY))
    return connection


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--databases", type=int, default=500, help=f"idle databases, beside {FIRST} that are opened first")
    parser.add_argument("--store", choices=STORES, help="only this one")
    options = parser.parse_args()
    failed = 0
    for store in [options.store] if options.store else STORES:
        if not options.store:
            # A process for each, or what one leaves to the allocator is not counted for the next.
            failed += subprocess.run([sys.executable, __file__, "--store", store, "--databases", str(options.databases)]).returncode != 0
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            try:
                run("memory" if store == "memory" else f"local:{folder}/store", folder, options.databases, library())
            except Broken as broken:
                print(f"FAILED {store}: {broken}")
                return 1
    if not options.store:
        print(f"idle: {len(STORES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
