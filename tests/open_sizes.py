"""What opening costs, a first query, and a row, by the size of the database: opening and a first query at most three round trips, of any size;
a row that is nowhere in a cache at most three more.

open_sizes.py [--mib N,N,...] [--store memory|local] [--rounds N]

Fills a database of each size, lets a process read some rows of it and close it (which leaves the hot list), and then lets processes of their own, each with
an empty cache, open it, ask for the schema, and look for one row by its rowid. Every call is counted for which somebody waits; the times are
without the start of the process. With `--mib 1,100,1024,10240` it takes some minutes and twice as much disk; 1,16,64 without it.
"""

import argparse
import pathlib
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

from harness import LIBRARY, TARGET, Server, guest_environment

MOST_CALLS = 3
ROW_BYTES = 3800
ROWS_OF_A_MIB = 256
# A transaction of this size is staged, and needs no memory to speak of.
MIB_OF_A_COMMIT = 256
SUMMED = "SELECT coalesce(sum(count), 0) FROM pagewire_rpc WHERE kind <> 'heartbeat'"


class Broken(Exception):
    """A promise was not kept."""


def connected(uri):
    library = sqlite3.connect(":memory:")
    library.enable_load_extension(True)
    library.load_extension(str(LIBRARY))
    begun = time.monotonic()
    return library, begun, sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)


def fill(uri, mib):
    _, _, connection = connected(uri)
    connection.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, v BLOB)")
    rows, done = mib * ROWS_OF_A_MIB, 0
    while done < rows:
        step = min(rows - done, MIB_OF_A_COMMIT * ROWS_OF_A_MIB)
        connection.execute(
            f"WITH RECURSIVE c(x) AS (SELECT {done + 1} UNION ALL SELECT x + 1 FROM c WHERE x < {done + step}) "
            f"INSERT INTO t SELECT x, randomblob({ROW_BYTES}) FROM c"
        )
        done += step
    connection.close()


def look(uri, row):
    """In a process of its own: how many calls, and milliseconds."""
    library, begun, connection = connected(uri)
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    opening, opened = library.execute(SUMMED).fetchone()[0], time.monotonic()
    found = connection.execute("SELECT length(v) FROM t WHERE i = ?", [row]).fetchone()
    found_at = time.monotonic()
    calls = library.execute(SUMMED).fetchone()[0]
    if found != (ROW_BYTES,):
        raise Broken(f"row {row} is {found}")
    print(opening, calls - opening, (opened - begun) * 1000, (found_at - opened) * 1000)
    connection.close()


def looked(uri, row):
    # The same build of the library as this process has.
    environment = guest_environment(PAGEWIRE_PROFILE=TARGET.name, PAGEWIRE_TEST_LIBRARY=str(LIBRARY))
    command = [sys.executable, __file__, "--look", uri, str(row)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if answer.returncode != 0:
        raise Broken(answer.stderr)
    opening, calls, opened, found = answer.stdout.split()
    return int(opening), int(calls), float(opened), float(found)


def most(calls):
    """Of several numbers the least and the most."""
    return str(max(calls)) if min(calls) == max(calls) else f"{min(calls)} to {max(calls)}"


def run(store, sizes, rounds):
    chosen = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        server = Server("memory" if store == "memory" else f"local:{folder / 'store'}", folder / "server.log").start()
        try:
            for mib in sizes:
                uri = f"file:size/{mib}.db?vfs=pagewire&endpoint={server.endpoint}"
                begun = time.monotonic()
                fill(uri, mib)
                filled = time.monotonic() - begun
                rows = mib * ROWS_OF_A_MIB
                # It leaves the list.
                looked(uri, chosen.randint(1, rows))
                seen = [looked(uri, chosen.randint(1, rows)) for _ in range(rounds)]
                openings, row_calls, opened, found = zip(*seen)
                print(
                    f"{mib} MiB, filled in {filled:.1f} s: opened with {most(openings)} calls in {statistics.median(opened):.1f} ms, "
                    f"a row with {most(row_calls)} in {statistics.median(found):.1f} ms",
                    flush=True,
                )
                for calls, what in ((openings, "opening"), (row_calls, "a row")):
                    if max(calls) > MOST_CALLS:
                        raise Broken(f"{max(calls)} calls for {what} of {mib} MiB")
        finally:
            server.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", default="1,16,64", help="sizes")
    parser.add_argument("--store", choices=("memory", "local"), default="local")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        look(options.look[0], int(options.look[1]))
        return 0
    sizes = [int(size) for size in options.mib.split(",")]
    failed = 0
    try:
        run(options.store, sizes, options.rounds)
    except Broken as broken:
        print(f"FAILED: {broken}")
        failed = 1
    print(f"sizes: {1 - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
