#!/usr/bin/python3
"""Test suites of applications that use SQLite, as they are, in Debian's own Python, once on files and once on remote pages.

    run.py FOLDER BIN [--short] [--no-stubs] [--store versioned-memory|local] [SUITE]...

Which tests pass on a file and not on remote pages is compared with differences.tsv beside this script: what it does not name is a
failure, and so is a name that does not differ. How many tests pass at least is in counts.tsv: with fewer, or without a line there, it fails. Each suite has to make round trips, or it proves nothing. tests/applications.sh makes
what is needed and calls this. The last line has the form that tests/run.sh reads.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import harness  # noqa: E402

TIMEOUT = 1500
DJANGO_LABELS = "backends transactions transaction_hooks schema migrations queries lookup aggregation introspection inspectdb bulk_create"


def cpython(folder, short):
    command = ["/usr/bin/python3", "-m", "test", "-v", "test_sqlite3"]
    return command, None, {"PYTHONPATH": str(folder / "cpython")}


def sqlalchemy(folder, short):
    command = [folder / "venv/bin/python", "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no", "--db", "sqlite_file"]
    files = ["test/dialect/sqlite"] if short else ["test/dialect/test_suite.py", "test/dialect/sqlite"]
    return command + files, folder / "sqlalchemy", {}


def django(folder, short):
    labels = "backends transactions" if short else DJANGO_LABELS
    command = [folder / "venv/bin/python", "runtests.py", "--settings=django_settings", "--parallel=1", "-v2", *labels.split()]
    return command, folder / "django/tests", {}


SUITES = {"cpython": cpython, "sqlalchemy": sqlalchemy, "django": django}

# A test and what became of it: unittest's verbose lines (a docstring may stand on a line between), and pytest's.
UNITTEST = re.compile(r"^(\w+) \(([\w.]+)\)(?:[^\n]*\n)??[^\n]*?\.\.\. (?:[^\n]*?)(ok|FAIL|ERROR|skipped|expected failure)\b", re.M)
# What the end of the run lists, also of set-up and tear-down, and where a test's output tore its line apart.
UNITTEST_BAD = re.compile(r"^(?:FAIL|ERROR): (\w+) \(([\w.]+)\)", re.M)
PYTEST = re.compile(r"^(\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.M)
TOTAL = re.compile(r"^Ran (\d+) tests? in|^=+ .*?(\d+) passed", re.M)


def outcomes(text):
    """The tests that passed, and those that failed or had an error."""
    passed, bad = set(), set()
    for match in UNITTEST.finditer(text):
        name = match[2] if match[2].endswith("." + match[1]) else f"{match[2]}.{match[1]}"
        if match[3] in ("ok", "expected failure"):
            passed.add(name)
        elif match[3] != "skipped":
            bad.add(name)
    for match in UNITTEST_BAD.finditer(text):
        bad.add(match[2] if match[2].endswith("." + match[1]) else f"{match[2]}.{match[1]}")
    for match in PYTEST.finditer(text):
        if match[2] in ("PASSED", "XFAIL", "XPASS"):
            passed.add(match[1])
        elif match[2] != "SKIPPED":
            bad.add(match[1])
    return passed - bad, bad


def differences(mode):
    """SUITE, MODE (stubs or no-stubs, * for both), TEST (* stands for any text), REASON."""
    found = []
    for line in (HERE / "differences.tsv").read_text().splitlines():
        if line and not line.startswith("#"):
            suite, of_mode, test, _ = line.split("\t")
            if of_mode in ("*", mode):
                found.append((suite, test, re.compile(re.escape(test).replace(r"\*", ".*") + "$")))
    return found


def compare_counts(name, form, mode, on_file, remote):
    """What is wrong with the numbers, by counts.tsv: None if nothing is. Says it where they may be raised."""
    for line in (HERE / "counts.tsv").read_text().splitlines():
        fields = line.split("\t")
        column = {"stubs": 3, "no-stubs": 4}[mode]
        if line.startswith("#") or fields[:2] != [name, form] or len(fields) <= column:
            continue
        least_on_file, least = int(fields[2]), int(fields[column])
        if on_file < least_on_file or remote < least:
            return f"{on_file} tests on a file and {remote} on remote pages, counts.tsv wants {least_on_file} and {least}"
        if (on_file, remote) != (least_on_file, least):
            print(f"counts.tsv may be changed to {on_file} and {remote} for {name}, {form}, {mode}")
        return None
    return f"counts.tsv has no number for {form}, {mode}: {on_file} tests on a file, {remote} on remote pages"


def run(name, options, log, remote):
    command, cwd, settings = SUITES[name](options.folder, options.short)
    work = pathlib.Path(tempfile.mkdtemp(prefix="pwa."))
    settings = {**settings, "APPLICATION_WORK": str(work), "TMPDIR": str(work), "PYTHONDONTWRITEBYTECODE": "1"}
    settings["PYTHONPATH"] = ":".join([str(HERE), *filter(None, [settings.get("PYTHONPATH")])])
    counts = work / "counts"
    server = None
    if remote:
        store = f"local:{work / 'store'}" if options.store == "local" else options.store
        server = harness.Server(store, str(log) + ".server").start()
        settings.update(
            APPLICATION_LIBRARY=str(options.bin / "libpagewire.so"),
            APPLICATION_LAYER=str(options.folder / "layer.so"),
            APPLICATION_COUNTS=str(counts),
            PROOF_COUNTS=str(work / "opens"),
            PROOF_STUBS="0" if options.no_stubs else "1",
        )
    started = time.monotonic()
    try:
        with open(log, "wb") as out:
            status = subprocess.run(
                [str(part) for part in command],
                cwd=cwd or work,
                env=harness.guest_environment(server and server.endpoint, **settings),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
            ).returncode
    except subprocess.TimeoutExpired:
        status = "timeout"
    finally:
        if server:
            lives = server.alive()
            server.kill()
            status = status if lives else "the server ended"
    lines = counts.read_text().splitlines() if counts.exists() else []
    trips = [sum(int(line.split("\t")[column]) for line in lines) for column in range(3)]
    opens = sum(int(line.split("\t")[0]) for line in (work / "opens").read_text().splitlines()) if (work / "opens").exists() else 0
    shutil.rmtree(work, ignore_errors=True)
    text = log.read_text(errors="replace")
    return status, outcomes(text), text, trips, opens, time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("suites", nargs="*", default=[])
    parser.add_argument("--short", action="store_true", help="less: without Django where no suite is named")
    parser.add_argument("--no-stubs", action="store_true", help="nothing at a database's path")
    parser.add_argument("--store", default="versioned-memory", choices=["memory", "versioned-memory", "local"])
    # Suites behind an option too: parse_args() takes none of them there.
    options = parser.parse_intermixed_args()
    options.folder, options.bin = options.folder.resolve(), options.bin.resolve()
    harness.COMMAND = options.bin / "pagewire"
    mode = "no-stubs" if options.no_stubs else "stubs"
    known = differences(mode)
    passed_in_all = failed = 0
    logs = options.folder / "logs"
    logs.mkdir(exist_ok=True)
    for name in options.suites or (["cpython", "sqlalchemy"] if options.short else SUITES):
        kind = f"{name}{'-short' if options.short else ''}"
        _, (on_file, bad_on_file), _, _, _, _ = run(name, options, logs / f"{kind}.file.log", remote=False)
        status, (passed, bad), text, trips, opens, seconds = run(name, options, logs / f"{kind}.{mode}.log", remote=True)
        lost = sorted(on_file - passed)
        unexplained = [test for test in lost if not any(s == name and p.match(test) for s, _, p in known)]
        stale = [t for s, t, p in known if s == name and not options.short and not any(p.match(test) for test in lost)]
        new = sorted(bad - bad_on_file - on_file)
        print(
            f"{name}: {len(on_file)} tests pass on a file, {len(passed & on_file)} on remote pages in {seconds:.0f} s; {len(lost)} differ; "
            f"{opens} opens, {trips[0]} round trips, {trips[2]} of them commits, {trips[1]} in the background"
        )
        for test in unexplained:
            print(f"FAILED {name}: {test}")
        for test in stale:
            print(f"FAILED {name}: differences.tsv is out of date: {test} passes")
        for test in new:
            print(f"FAILED {name}: {test} (not among those that pass on a file)")
        problems = len(unexplained) + len(stale) + len(new)
        short = compare_counts(name, "short" if options.short else "full", mode, len(on_file), len(passed & on_file))
        if short:
            problems += 1
            print(f"FAILED {name}: {short}")
        if not TOTAL.search(text) or not on_file or trips[0] == 0 or opens == 0 or status in ("timeout", "the server ended"):
            problems += 1
            print(f"FAILED {name}: it did not get to its end, or made no round trip ({status}), see {logs}")
        failed += problems
        passed_in_all += len(passed & on_file)
    print(f"applications: {passed_in_all} passed, {failed} failed")
    return 0 if failed == 0 and passed_in_all else 1


if __name__ == "__main__":
    sys.exit(main())
