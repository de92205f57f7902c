"""Runs the steps of a transcript through Python's sqlite3 module or apsw and prints the answers.

transcript_client.py sqlite3|apsw plain|pagewire LIBRARY STEPS
STEPS is a file of steps that are separated by NUL; a step is an SQL statement or `@directive argument...`.
Prints errors and goes on, as the shell does. Knows nothing of what the answers should be.
"""

import os
import sys


class StandardModule:
    """Debian's Python: URIs that name VFS and endpoint, the library not default."""

    def __init__(self, remote, library):
        import sqlite3

        wanted = os.environ.get("PAGEWIRE_TEST_SQLITE", sqlite3.sqlite_version)
        if sqlite3.sqlite_version != wanted:
            raise RuntimeError(f"SQLite {wanted} was to be tested, this is {sqlite3.sqlite_version}")
        self.module = sqlite3
        self.error = sqlite3.Error
        self.remote = remote
        if remote:
            self.loader = sqlite3.connect(":memory:")
            self.loader.enable_load_extension(True)
            self.loader.load_extension(library)

    def open(self, name):
        if self.remote:
            name = f"file:{name}?vfs=pagewire&endpoint={os.environ['PAGEWIRE_ENDPOINT']}"
        return self.module.connect(name, uri=self.remote, isolation_level=None)

    def run(self, connection, statement):
        return connection.execute(statement).fetchall()

    def copy(self, source, target):
        source.backup(target)

    def blob(self, connection, table, column, rowid, write):
        return connection.blobopen(table, column, rowid, readonly=not write)


class Apsw:
    """apsw with its own SQLite, which exports no symbol; the VFS is named in the call."""

    def __init__(self, remote, library):
        import apsw

        self.module = apsw
        self.error = apsw.Error
        self.remote = remote
        if remote:
            self.loader = apsw.Connection(":memory:")
            self.loader.enable_load_extension(True)
            self.loader.load_extension(library)

    def open(self, name):
        return self.module.Connection(name, vfs="pagewire" if self.remote else None)

    def run(self, connection, statement):
        return list(connection.execute(statement))

    def copy(self, source, target):
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(7)

    def blob(self, connection, table, column, rowid, write):
        return connection.blob_open("main", table, column, rowid, write)


def text(value):
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return repr(value) if isinstance(value, float) else str(value)


class Player:
    """The connections of one transcript."""

    def __init__(self, client):
        self.client = client
        self.connections = {}
        self.names = {}
        self.current = "0"

    def step(self, step):
        if not step.startswith("@"):
            for row in self.client.run(self.connections[self.current], step):
                print("|".join(text(value) for value in row))
            return
        directive, *arguments = step.split(" ")
        getattr(self, directive[1:])(*arguments)

    def open(self, name):
        self.close()
        self.connections[self.current] = self.client.open(name)
        self.names[self.current] = name

    def reopen(self):
        self.open(self.names[self.current])

    def close(self):
        connection = self.connections.pop(self.current, None)
        if connection is not None:
            connection.close()

    def connection(self, number):
        self.current = number

    def backup(self, name):
        other = self.client.open(name)
        self.client.copy(self.connections[self.current], other)
        other.close()

    def restore(self, name):
        other = self.client.open(name)
        self.client.copy(other, self.connections[self.current])
        other.close()

    def blob_write(self, table, column, rowid, offset, content):
        with self.client.blob(self.connections[self.current], table, column, int(rowid), True) as blob:
            blob.seek(int(offset))
            blob.write(bytes.fromhex(content))

    def blob_read(self, table, column, rowid, offset, length):
        with self.client.blob(self.connections[self.current], table, column, int(rowid), False) as blob:
            blob.seek(int(offset))
            print(blob.read(int(length)).hex())


def main():
    kind, mode, library, steps = sys.argv[1:]
    client = {"sqlite3": StandardModule, "apsw": Apsw}[kind](mode == "pagewire", library)
    player = Player(client)
    with open(steps, encoding="utf-8") as file:
        for step in file.read().split("\0"):
            try:
                player.step(step)
            except client.error as error:
                print(f"error: {type(error).__name__}: {error}")
            sys.stdout.flush()
    for player.current in list(player.connections):
        player.close()


if __name__ == "__main__":
    main()
