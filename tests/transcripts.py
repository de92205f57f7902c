"""Golden SQL transcripts: each file of tests/sql through six kinds of SQLite, on pages of a page server and on a plain
file, compared byte by byte.

transcripts.py [--client NAME]... [--store NAME]... [--plain-only] [--under COMMAND] [TRANSCRIPT]...

The expectation is made at run time by the same client on a plain file, so no SQLite version is written down here.
Checked beside the answers: the last line of each transcript says `ok` (its integrity_check), nothing was left in the
working directory (no database went to a local file in silence), and a dump of each database taken afterwards by
Debian's shell is the dump of the plain file.

`--under 'valgrind OPTION...'` runs the clients on pagewire, not those on plain files, under a tool that watches them.

In a transcript `-- @directive` lines are: open NAME, reopen, connection N, backup NAME, restore NAME, blob_write, blob_read
(the shells skip the last two), and `each VARIABLE value...`, which repeats the whole file. `{NAME}` is a database's name.
"""

import argparse
import concurrent.futures
import difflib
import pathlib
import re
import shlex
import sqlite3
import subprocess
import sys
import tempfile

from harness import (
    BUILT_LIBRARY,
    DEBIAN_PYTHON,
    DEBIAN_SHELL,
    GUEST,
    LIBRARY,
    OLD_SQLITE,
    STATIC_SHELL,
    TOP,
    VENV_PYTHON,
    Server,
    guest_environment,
)

CLIENTS = ["debian-shell", "debian-python", "old-python", "apsw", "rusqlite", "static-shell"]
STORES = ["memory", "local"]
STEP_SECONDS = 300
SHELL_DIRECTIVES = {"open": ".open", "backup": ".backup main", "restore": ".restore main", "connection": ".connection"}


class Transcript:
    """A file of tests/sql, cut into steps."""

    def __init__(self, path):
        self.name = path.stem
        self.steps = []
        source = path.read_text()
        each = re.search(r"^-- @each (\w+) (.*)$", source, re.MULTILINE)
        if each is None:
            self._cut(source)
        else:
            for value in each.group(2).split():
                self._cut(source.replace("{%s}" % each.group(1), value))

    def _cut(self, source):
        pending = ""
        for line in source.splitlines():
            if not pending and line.startswith("--"):
                if line.startswith("-- @") and not line.startswith("-- @each"):
                    self.steps.append(line[3:])
                continue
            pending = f"{pending}\n{line}" if pending else line
            if sqlite3.complete_statement(pending):
                self.steps.append(pending)
                pending = ""
        if pending:
            raise ValueError(f"{self.name}: the last statement has no end: {pending}")

    def databases(self):
        """Names of all databases that the transcript makes."""
        names = set()
        for step in self.steps:
            if step.startswith(("@open ", "@backup ")):
                names.add(step.split(" ")[1])
            names.update(re.findall(r"^ATTACH '\{(\w+)\}'", step))
        return sorted(names)

    def steps_named(self, name_of):
        """Steps with the names of databases as the run has them."""
        for step in self.steps:
            if step.startswith(("@open ", "@backup ", "@restore ")):
                directive, name = step.split(" ")
                yield f"{directive} {name_of(name)}"
            else:
                yield re.sub(r"'\{(\w+)\}'", lambda found: f"'{name_of(found.group(1))}'", step)


def shell_script(steps):
    """Steps as input of the `sqlite3` shell."""
    lines = [".bail off"]
    names, current = {}, "0"
    for step in steps:
        if not step.startswith("@"):
            lines.append(step)
            continue
        directive, *arguments = step[1:].split(" ")
        if directive == "reopen":
            directive, arguments = "open", [names[current]]
        if directive == "open":
            names[current] = arguments[0]
        if directive == "connection":
            current = arguments[0]
        if directive in SHELL_DIRECTIVES:
            lines.append(" ".join([SHELL_DIRECTIVES[directive], *arguments]))
    return "\n".join(lines) + "\n"


def play(client, transcript, directory, server, prefix, under=()):
    """The output of a transcript; `server` is None for plain files in `directory`, which nothing watches."""
    remote = server is not None
    name_of = (lambda name: f"{prefix}/{name}.db") if remote else (lambda name: f"{name}.db")
    steps = list(transcript.steps_named(name_of))
    # Both ways of naming the VFS: the shells have it as their default, the others name it. The static shell has it
    # linked in and would put plain files on a server too.
    settings = {"PAGEWIRE_DEFAULT": "0"} if not remote or not client.endswith("shell") else {}
    environment = guest_environment(server.endpoint if remote else None, **settings)
    watched = under if remote else ()
    if watched:
        environment["PAGEWIRE_TIMEOUT_MS"] = "120000"
    if client == "old-python":
        # SQLite 3.31.0, the oldest that the VFS supports, in place of Debian's.
        environment["LD_LIBRARY_PATH"] = str(OLD_SQLITE)
        environment["PAGEWIRE_TEST_SQLITE"] = "3.31.0"
    if client.endswith("shell"):
        if client == "debian-shell":
            command = [DEBIAN_SHELL, *(["-cmd", f".load {LIBRARY}"] if remote else []), ":memory:"]
        else:
            command = [STATIC_SHELL, ":memory:"]
        source = shell_script(steps)
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".steps", delete=False, encoding="utf-8") as file:
            file.write("\0".join(steps))
        mode = "pagewire" if remote else "plain"
        program = {
            "debian-python": [DEBIAN_PYTHON, TOP / "tests" / "transcript_client.py", "sqlite3"],
            "old-python": [DEBIAN_PYTHON, TOP / "tests" / "transcript_client.py", "sqlite3"],
            "apsw": [VENV_PYTHON, TOP / "tests" / "transcript_client.py", "apsw"],
            "rusqlite": [GUEST, "transcript"],
        }[client]
        command = [*program, mode, LIBRARY, file.name]
        source = ""
    try:
        done = subprocess.run(
            [*watched, *command],
            input=source,
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=STEP_SECONDS * (5 if watched else 1),
        )
    except subprocess.TimeoutExpired as late:
        return f"{late.output or ''}\nthe client did not end within {STEP_SECONDS} s\n"
    finally:
        if not client.endswith("shell"):
            pathlib.Path(file.name).unlink()
    output = done.stdout
    if done.returncode < 0 or (done.returncode > 0 and not client.endswith("shell")):
        output += f"\nthe client ended with {done.returncode}\n"
    return output


def dump(name, directory, server):
    """A database as SQL, by Debian's shell in a process of its own; FTS5 needs nothing more than that."""
    # Not the one that is watched: nobody watches here.
    load = [] if server is None else ["-cmd", f".load {BUILT_LIBRARY}"]
    script = f".open {name}\nPRAGMA integrity_check;\nPRAGMA page_size;\nPRAGMA page_count;\n.dump\n"
    done = subprocess.run(
        [DEBIAN_SHELL, *load, ":memory:"],
        input=script,
        cwd=directory,
        env=guest_environment(server.endpoint if server else None),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_SECONDS,
    )
    return done.stdout


def difference(expected, got, what):
    if expected == got:
        return None
    lines = difflib.unified_diff(
        expected.splitlines(), got.splitlines(), f"{what} on a plain file", f"{what} on pagewire", lineterm="", n=2
    )
    return "\n".join(line[:300] for line in list(lines)[:40])


def run_client(client, transcripts, servers, under):
    """All transcripts of one client: a list of (name, problem or None)."""
    outcomes = []
    for transcript in transcripts:
        with tempfile.TemporaryDirectory() as plain:
            expected = play(client, transcript, plain, None, "")
            problem = None
            if not expected.rstrip().endswith("ok"):
                problem = f"does not end with ok on a plain file:\n{expected[-2000:]}"
            names = transcript.databases()
            dumps = {name: dump(f"{name}.db", plain, None) for name in names}
        outcomes.append((f"{client} plain {transcript.name}", problem))
        for store, server in servers.items():
            with tempfile.TemporaryDirectory() as directory:
                prefix = f"transcripts/{client}"
                got = play(client, transcript, directory, server, prefix, under)
                problem = difference(expected, got, "answers")
                left = sorted(path.name for path in pathlib.Path(directory).iterdir())
                if problem is None and left:
                    problem = f"left behind in the working directory: {left}"
                for name in names if problem is None else []:
                    problem = problem or difference(dumps[name], dump(f"{prefix}/{name}.db", directory, server), f"dump of {name}")
                if problem is None and not server.alive():
                    problem = "the server stopped"
            outcomes.append((f"{client} {store} {transcript.name}", problem))
    return outcomes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", action="append", choices=CLIENTS)
    parser.add_argument("--store", action="append", choices=STORES)
    parser.add_argument("--plain-only", action="store_true")
    parser.add_argument("--under", type=shlex.split, default=[], metavar="COMMAND")
    parser.add_argument("transcript", nargs="*")
    options = parser.parse_args()
    paths = sorted((TOP / "tests" / "sql").glob("*.sql"))
    transcripts = [Transcript(path) for path in paths if not options.transcript or path.stem in options.transcript]
    if not transcripts:
        parser.error(f"no transcript has such a name: {options.transcript}")
    servers = {}
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for store in [] if options.plain_only else options.store or STORES:
                where = "memory" if store == "memory" else f"local:{scratch}/store"
                # A client that is watched is slow, and shall not lose its leases for that.
                ttl_ms = 60_000 if options.under else None
                servers[store] = Server(where, f"{scratch}/{store}.log", lease_ttl_ms=ttl_ms).start()
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                runs = [pool.submit(run_client, client, transcripts, servers, options.under) for client in options.client or CLIENTS]
                for run in concurrent.futures.as_completed(runs):
                    for name, problem in run.result():
                        if problem is None:
                            passed += 1
                        else:
                            failed += 1
                            print(f"FAILED transcript {name}\n{problem}\n", flush=True)
            for store, server in servers.items():
                if not server.alive():
                    print(pathlib.Path(server.log).read_text()[-2000:])
        finally:
            for server in servers.values():
                server.kill()
    print(f"transcripts: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
