"""Found by Python at its start: makes pagewire the default VFS of Debian's SQLite library, so that an application runs as it is.

Loads libpagewire.so and, on it, the layer of the test build that gives absolute paths names and makes stub files. At the end of the
process a line goes to APPLICATION_COUNTS: what `pagewire_rpc` says of it. Does nothing without APPLICATION_LIBRARY.
"""

import atexit
import os
import sqlite3


def count(connection):
    """Reading pagewire_rpc needs no round trip; a forked child that ends by os._exit is not counted."""
    waited, background = connection.execute("SELECT total(count), total(background) FROM pagewire_rpc").fetchone()
    commits = connection.execute("SELECT total(count) FROM pagewire_rpc WHERE kind LIKE '%ommit%'").fetchone()[0]
    with open(os.environ["APPLICATION_COUNTS"], "a") as out:
        out.write(f"{waited:.0f}\t{background:.0f}\t{commits:.0f}\n")


def begin():
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.enable_load_extension(True)
    for library in (os.environ["APPLICATION_LIBRARY"], os.environ["APPLICATION_LAYER"]):
        connection.load_extension(library)
    connection.close()
    # The functions of pagewire come with each connection that is opened from now on.
    atexit.register(lambda: count(sqlite3.connect(":memory:")))


if os.environ.get("APPLICATION_LIBRARY"):
    begin()
