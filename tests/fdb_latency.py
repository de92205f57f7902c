"""What a commit through a page server on FoundationDB takes beside its floor, in one run and by turns: a bare transaction of the same bytes on the
same cluster, and the gRPC echo.

fdb_latency.py [--rounds N] [--pause SECONDS] [--cluster FILE]

A commit is an autocommit INSERT with the lease held. The bare transactions go through the C API of the client library from this process: one that
writes only, and one that reads a row first and conflicts over it, as whatever decides something does. The echo is the one of
`pagewire bench`. Nothing is asserted: on a loaded machine times say little, and a ratio of medians of turns somewhat more. --cluster: one that is
there already, in which everything that is written has the prefix `pagewire latency` or is in the directory `latency`.
--pause: the writer waits so long before each commit. After 3 s the server knows nothing of the database any more and asks for it again (M3): three waits for the
cluster instead of one.
Not run, and says so, where there is no fdbserver.
"""

import argparse
import json
import pathlib
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

from fdb_client import VALUE_BYTES, Fdb
from harness import COMMAND, LIBRARY, Cluster, Server, guest_environment

def echo_ms():
    """The median echo of an autocommit's bytes, as `pagewire bench` finds it, and beside it the commit through a page server on a memory store."""
    done = subprocess.run(
        [COMMAND, "bench", "--quick", "--only", "commit", "--store", "memory", "--json"],
        env=guest_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    series = {one["name"]: one["p50_us"] / 1000 for one in json.loads(done.stdout)[0]["series"]}
    return series["bare gRPC echo"], series["pagewire, memory store"]


def measure(cluster_file, scratch, rounds, pause):
    server = Server(f"fdb:{cluster_file}", scratch / "server.log", lease_ttl_ms=30_000, arguments=["--fdb-directory", "latency"]).start()
    fdb = Fdb(cluster_file)
    try:
        own = sqlite3.connect(":memory:")
        own.enable_load_extension(True)
        own.load_extension(str(LIBRARY))
        uri = f"file:latency.db?vfs=pagewire&endpoint={server.endpoint}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)
        connection.execute("CREATE TABLE IF NOT EXISTS t(i INTEGER PRIMARY KEY, body BLOB)")

        def sent():
            return own.execute("SELECT count, bytes_sent FROM pagewire_rpc WHERE kind = 'commit'").fetchone()

        times = {"commit": [], "bare, writes only": [], "bare, reads first": []}
        size = VALUE_BYTES
        # A connection that nobody used, and the first commits, are another matter.
        first = 3 if pause else 10
        for number in range(rounds + first):
            time.sleep(pause)
            before = sent()
            begun = time.monotonic()
            connection.execute("INSERT INTO t(body) VALUES(randomblob(100))")
            took = time.monotonic() - begun
            calls, bytes_sent = (now - then for now, then in zip(sent(), before))
            if calls != 1:
                raise RuntimeError(f"{calls} commit calls for one INSERT")
            size = bytes_sent
            writes, reads = fdb.transaction(2 * number, size, False), fdb.transaction(2 * number + 1, size, True)
            if number >= first:
                for name, seconds in zip(times, (took, writes, reads)):
                    times[name].append(seconds * 1000)
        return size, {name: statistics.median(some) for name, some in times.items()}
    finally:
        fdb.stop()
        server.kill()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--cluster")
    options = parser.parse_args()
    if not Cluster.is_possible():
        print("fdb latency: NOT RUN: there is no fdbserver (on the path, or PAGEWIRE_FDBSERVER) or no fdbcli")
        return 0
    with tempfile.TemporaryDirectory(prefix="pagewire-latency-") as scratch:
        scratch = pathlib.Path(scratch)
        cluster = None if options.cluster else Cluster(scratch / "cluster", "memory")
        try:
            size, found = measure(options.cluster or cluster.file, scratch, options.rounds, options.pause)
        finally:
            if cluster is not None:
                cluster.stop()
    echo, in_memory = echo_ms()
    print(f"fdb latency: {size} bytes sent with each commit, medians of {options.rounds} turns with a pause of {options.pause} s")
    for name, milliseconds in found.items():
        print(f"fdb latency: {name}: {milliseconds:.2f} ms")
    print(f"fdb latency: the echo {echo:.2f} ms, a commit to a store in memory {in_memory:.2f} ms")
    for name in ("bare, writes only", "bare, reads first"):
        print(f"fdb latency: commit / ({name} + echo) = {found['commit'] / (found[name] + echo):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
