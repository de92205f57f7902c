"""What LZ4 and zstd make of pages: prints the table of docs/performance.md. Needs cargo and the Python that comes with the system.

    python3 tests/compression.py
"""

import json
import random
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
WORDS = """page server version lease commit writer reader cache branch tag store token order customer invoice total price
shipped street city country first last name account balance transfer agent message summary request answer""".split()
# Of each database, about so many bytes.
SIZE = 8 << 20


def text(numbers, count):
    return " ".join(numbers.choice(WORDS) for _ in range(count))


def rows_of_text(numbers):
    return (text(numbers, 12), numbers.randrange(10**6), numbers.random())


def events(numbers):
    event = {
        "id": f"{numbers.getrandbits(128):032x}",
        "at": f"2026-0{numbers.randrange(1, 9)}-1{numbers.randrange(9)}T10:{numbers.randrange(60):02}:00Z",
        "kind": numbers.choice(["message", "tool_call", "answer"]),
        "tokens": numbers.randrange(4000),
        "text": text(numbers, 20),
    }
    return (json.dumps(event), None, None)


def random_bytes(numbers):
    return (numbers.randbytes(600), None, None)


def make(path, row):
    numbers = random.Random(1)
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b, c)")
    database.execute("CREATE INDEX i ON t(b)")
    while path.stat().st_size < SIZE:
        database.executemany("INSERT INTO t(a, b, c) VALUES (?, ?, ?)", (row(numbers) for _ in range(2000)))
        database.commit()
    database.close()


def change(path):
    """One value in some pages of the table."""
    database = sqlite3.connect(path)
    database.execute("UPDATE t SET c = 'changed' WHERE id % 97 = 0")
    database.commit()
    database.close()


def main():
    manifest = TESTS / "compression" / "Cargo.toml"
    subprocess.run(["cargo", "build", "--release", "--quiet", "--manifest-path", manifest], check=True)
    program = TESTS / "compression" / "target" / "release" / "pagewire-compression"
    print("| pages | codec | bytes of 4,096 | compress, us a page | expand, us a page |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for label, row in [("rows of words and numbers", rows_of_text), ("events in JSON", events), ("random bytes", random_bytes)]:
            older, newer = Path(directory, "older.db"), Path(directory, "newer.db")
            make(older, row)
            shutil.copy(older, newer)
            change(newer)
            subprocess.run([program, label, older], check=True)
            subprocess.run([program, f"{label}, one row changed", newer, older], check=True)
            older.unlink()
            newer.unlink()


if __name__ == "__main__":
    main()
