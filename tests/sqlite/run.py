#!/usr/bin/env python3
"""Runs files of SQLite's TCL suite on remote pages, a process and a page server for each, and compares them with the unix VFS.

    run.py --suite DIR --list FILE|NAME [--store memory|versioned-memory|local] [--no-batch-atomic | --stubs | --stock | --permutation NAME]
           [--jobs 2] [--timeout 900] [--only REGEX] [--shard I/N] [--bin DIR] [--keep] [--resume [--again REGEX]]

Result of a file: what testfixture counted, and the names of the cases that failed. It is right if the manifest says so: without
an entry no case fails and no test is missing that the unix VFS runs. The last line has the form that tests/run.sh reads.

With --stock the files run in a plain tclsh with the system's own library of SQLite and its Tcl binding, on both sides (stock.tcl). A file
that needs commands of testfixture which are not there does not get to its end on unix either; it is counted by what it lacks. The
manifest names those files ("unix"): another one that unix does not get through is a failure, and its result is not kept.

Each result is kept in LABEL.jsonl as soon as it is there. With --resume the files that have one are not run again, only judged by the
manifest of now, so a run that was ended goes on; --again names those that are run all the same.

A whole run (no --only, no --shard) is compared with counts.tsv: with fewer files or tests than it says there it fails.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import pwd
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
import harness  # noqa: E402

MANIFEST = HERE / "manifest.tsv"
COUNTS = HERE / "counts.tsv"
# Counted up where the results of the unix VFS become other ones by a change of this file.
BASELINE = 2
# Runs that were made in full: without their line nothing would notice that they have become smaller.
COUNTED = {("veryquick", store) for store in ("memory", "versioned-memory", "local")}
COUNTED |= {(run, "versioned-memory") for run in ("ci", "fast", "stubs", "stock", "no-batch-atomic")}
COUNTED |= {("fault", store) for store in ("versioned-memory", "local")}
COUNTED |= {(run, "versioned-memory") for run in ("full", "inmemory_journal", "journaltest", "atomic-batch-write")}
# The permutation of SQLite that ends in an error where the default VFS has no batch-atomic writes, as unix has none. It sets nothing, so
# on unix the same file is run as one of "veryquick", and the manifest's lines of plain runs, which have batch-atomic writes, hold.
BATCH_ATOMIC = "atomic-batch-write"
# Cases that SQLite's permutations.test adds to each file: all files closed, the setting of the shared cache as before.
ADDED = 2
# The suite does not run as root.
USER = "sqltest"
MAX_FILES = 512
SUMMARY = re.compile(r"^(\d+) errors out of (\d+) tests", re.M)
FAILED = re.compile(r"^! (\S+) expected|^(\S+)\.\.\.\s*\nError:|^!?\s*Failures on these tests: (.*)$", re.M)
LACKS = re.compile(r"^(?:Error: )?(invalid command name \"[^\"]*\"|can't read \"[^\"]*\"|no such function: \S+|no such module: \S+)", re.M)
PASSED = re.compile(r"\.\.\. Ok$", re.M)
# Of a file that is run command by command, see prelude.tcl.
OUTSIDE = re.compile(r"^proof: an error outside of a case: ", re.M)
PANIC = re.compile(r"panicked at|a bug in pagewire|stack backtrace|Segmentation|AddressSanitizer")


def identity():
    """The user that runs testfixture: this one, or sqltest where this one is root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--create-home", USER], check=True)
        return pwd.getpwnam(USER)


class Outcome:
    """What became of one file."""

    def __init__(self, status, tests, failed, seconds, counts, note="", done=0, lacks="", outside=-1):
        self.status = status
        self.tests = tests
        self.done = done
        self.failed = failed
        self.seconds = seconds
        self.counts = counts
        self.note = note
        # Of a file that stops before its summary: what was not there.
        self.lacks = lacks
        # Of a file that is run command by command: errors outside of a case. -1: it was run as a whole.
        self.outside = outside


class Kept:
    """The results of one kind of run, a JSON line each, in the order in which they came; the last one of a file counts."""

    def __init__(self, path, resume):
        self.path = path
        self.lock = threading.Lock()
        self.outcomes = {}
        if not resume:
            path.unlink(missing_ok=True)
        elif path.exists():
            for line in path.read_text().splitlines():
                kept = json.loads(line)
                file = kept.pop("file")
                self.outcomes[file] = Outcome(**kept)

    def add(self, path, outcome):
        with self.lock, open(self.path, "a") as out:
            out.write(json.dumps({"file": path, **vars(outcome)}) + "\n")


class Runner:
    def __init__(self, options, who):
        self.options = options
        self.who = who
        self.suite = pathlib.Path(options.suite).resolve()
        self.programs = self.suite / "build" / "proof"
        self.program = [str(self.programs / "testfixture")]
        if options.stock:
            self.program = ["tclsh", str(self.suite / "stock.tcl")]
            shutil.copy(HERE / "stock.tcl", self.suite / "stock.tcl")
            (self.suite / "stock.tcl").chmod(0o644)
        self.logs = self.suite / "logs" / options.label
        if not options.resume:
            shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        # Beside the program: the user that runs it need not be able to read this folder.
        self.prelude = self.suite / "prelude.tcl"
        shutil.copy(HERE / "prelude.tcl", self.prelude)
        self.prelude.chmod(0o644)
        # A short path: a database's name has at most 400 bytes. Without "_", with which vtabH.test leaves a part out. Everybody may pass
        # through, each file's folder is its own.
        self.work = pathlib.Path(tempfile.gettempdir()) / f"pw.{secrets.token_hex(4)}"
        self.work.mkdir()
        self.work.chmod(0o755)
        # What is under way, each in a process group of its own, or a server: it ends with this program.
        self.groups = set()
        self.servers = set()

    def take(self, uid_files):
        if self.who:
            for path in uid_files:
                os.chown(path, self.who.pw_uid, self.who.pw_gid)

    def end(self, number, _frame):
        for server in list(self.servers):
            server.kill()
        for group in list(self.groups):
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.work, ignore_errors=True)
        os._exit(128 + number)

    def become(self):
        os.setsid()
        # Some files use all of them up.
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
        if self.who:
            os.setgroups([self.who.pw_gid])
            os.setgid(self.who.pw_gid)
            os.setuid(self.who.pw_uid)

    def run(self, path, store, in_steps=False):
        name = re.sub(r"[^A-Za-z0-9_-]", "_", pathlib.PurePath(path).stem)
        folder = self.work / f"{name}.{store}"
        cwd = folder / "d"
        tmp = folder / "t"
        cwd.mkdir(parents=True)
        tmp.mkdir()
        self.take([folder, cwd, tmp])
        # The tests of the shell look for it where testfixture was started, and leave themselves out without a word.
        if not self.options.stock:
            for program in ("sqlite3", "sqldiff"):
                (cwd / program).symlink_to(self.programs / program)
        log = self.logs / f"{name}.{store}.log"
        pathlib.Path(f"{log}.server").unlink(missing_ok=True)
        settings = {"PROOF_COUNTS": str(folder / "counts"), "PROOF_TMP": str(tmp), "SQLITE_TMPDIR": str(tmp)}
        if self.who:
            settings["HOME"] = self.who.pw_dir
        if store != "unix":
            settings["PROOF_PRELUDE"] = str(self.prelude)
        else:
            settings["PROOF_VFS"] = "unix"
        if self.options.stock:
            settings["PROOF_STOCK"] = str(self.programs)
        if self.options.no_batch_atomic:
            settings["PAGEWIRE_BATCH_ATOMIC"] = "0"
        if self.options.stubs:
            settings["PROOF_STUBS"] = "1"
        if in_steps:
            settings["PROOF_PRELUDE"] = str(self.prelude)
            settings["PROOF_STEPS"] = str(self.suite / "src" / path)
        settings.update(pair.split("=", 1) for pair in self.options.env)
        server = None
        if store != "unix":
            where = f"local:{folder / 'store'}" if store == "local" else store
            server = harness.Server(where, str(log) + ".server", port=None).start()
            self.servers.add(server)
        command = list(self.program)
        permutation = self.options.permutation
        if permutation == BATCH_ATOMIC and store == "unix":
            permutation = "veryquick"
        if permutation:
            command += [str(self.suite / "src/test/permutations.test"), permutation, pathlib.PurePath(path).name]
        else:
            command += [str(self.suite / "src" / path)]
        # Without testfixture's counters ioerr.test fails in each round of a loop without end, on unix too; elsewhere a file is not given up.
        command += [f"--maxerror={1000 if self.options.stock else 100000}"]
        started = time.monotonic()
        expired = False
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=harness.guest_environment(server and server.endpoint, **settings),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=self.become,
            )
            self.groups.add(process.pid)
            try:
                code = process.wait(self.options.timeout)
            except subprocess.TimeoutExpired:
                expired = True
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            code = process.wait()
            self.groups.discard(process.pid)
        seconds = time.monotonic() - started
        note = ""
        if server:
            if not server.alive():
                note = f"the server ended with {server.process.poll()}"
            else:
                server.kill()
            self.servers.discard(server)
            said = pathlib.Path(str(log) + ".server")
            text = said.read_text(errors="replace")
            if PANIC.search(text):
                note = "the server panicked"
            if not text:
                said.unlink()
        outcome = self.judge(log, code, expired, seconds, folder / "counts", note)
        if in_steps:
            outcome.outside = len(OUTSIDE.findall(log.read_bytes().decode("utf8", "replace")))
        if not self.options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    @staticmethod
    def judge(log, code, expired, seconds, counts, note):
        text = log.read_bytes().decode("utf8", "replace")
        summaries = SUMMARY.findall(text)
        failed = []
        for match in FAILED.finditer(text):
            names = match.group(3).split() if match.group(3) else [match.group(1) or match.group(2)]
            failed += [name for name in names if name not in failed]
        if PANIC.search(text) and not note:
            note = "a panic in the client"
        # Of a file that stops before its summary: the tests that it got through.
        tests = int(summaries[-1][1]) if summaries else -1
        done = len(PASSED.findall(text)) + len(failed)
        errors = int(summaries[-1][0]) if summaries else -1
        if expired:
            status = "timeout"
        elif code < 0:
            status = f"signal {-code}"
        elif not summaries:
            status = "no summary"
        elif errors or code or note:
            status = "fail"
        else:
            status = "pass"
        if status == "fail" and not failed:
            failed = [note or f"exit status {code}"]
        # The last one: it is what the script ended with.
        lacks = (LACKS.findall(text) or [""])[-1] if status == "no summary" else ""
        lines = counts.read_text().splitlines() if counts.exists() else []
        sums = [sum(int(line.split("\t")[column]) for line in lines) for column in range(5)]
        return Outcome(status, tests, failed, seconds, sums, note, done, lacks)


def read_list(suite, name):
    """A list of files beside this script, a path, or a suite of SQLite's own permutations.test."""
    for candidate in (HERE / f"{name}.txt", pathlib.Path(name)):
        if candidate.is_file():
            lines = [line.split("#")[0].strip() for line in candidate.read_text().splitlines()]
            return [line for line in lines if line]
    source = (pathlib.Path(suite) / "src").resolve()
    out = subprocess.run(
        ["tclsh", str(HERE / "listsuite.tcl"), str(source), name], check=True, capture_output=True, text=True
    ).stdout
    return [os.path.relpath(line, source) for line in out.split()]


class Manifest:
    """What may differ from the unix VFS in one kind of run; the fields are described in the file."""

    def __init__(self, run, store):
        # From the general to the special: a later line takes the place of an earlier one.
        ranks = [f"{kind}{of}" for kind in ["*"] + ["plain"] * (run == BATCH_ATOMIC) + [run] for of in ("", f"/{store}")]
        found = [{} for _ in ranks]
        for number, line in enumerate(MANIFEST.read_text().splitlines(), 1):
            if not line or line.startswith("#"):
                continue
            fields = line.split("\t")
            if len(fields) != 6 or not all(fields):
                sys.exit(f"{MANIFEST}:{number}: must have 6 fields")
            of_run, path, _, tests, cases, _ = fields
            # What ends before its summary has that of the permutation.
            if of_run == "plain" and run == BATCH_ATOMIC and cases == "unix":
                continue
            if of_run in ranks:
                where = found[ranks.index(of_run)]
                if path in where:
                    sys.exit(f"{MANIFEST}:{number}: a second line for {path}")
                where[path] = (tests, [] if cases == "-" else cases.split(","))
        self.entries = {path: entry for where in found for path, entry in where.items()}

    def cases(self, path):
        return self.entries.get(path, ("-", []))[1]

    def skips(self, path):
        return self.cases(path) == ["all"]

    def unix_fails(self, path):
        """Whether the programs of this kind of run do not get through the file with the unix VFS."""
        return self.cases(path) == ["unix"]

    def outside(self, path):
        """How many errors outside of a case the file has when it is run command by command; None if it is run as a whole."""
        found = [case.removeprefix("steps=") for case in self.cases(path) if case.startswith("steps=")]
        return int(found[0]) if found else None

    def judge(self, path, outcome, unix_tests):
        """None if the outcome is what is said here; otherwise what is wrong."""
        tests, cases = self.entries.get(path, ("-", []))
        stops = "stops" in cases
        outside = self.outside(path)
        cases = [case for case in cases if case != "stops" and not case.startswith("steps=")]
        patterns = {case: self.pattern(case) for case in cases}
        unexplained = [case for case in outcome.failed if not any(known.match(case) for known in patterns.values())]
        if unexplained:
            return f"{outcome.status}: {' '.join(unexplained[:12])}"
        if outcome.note:
            return outcome.note
        if stops:
            if outcome.tests >= 0:
                return "the manifest is out of date: the file gets to its end"
            if outcome.status == "timeout" or outcome.done < int(tests.removeprefix(">=")):
                return f"{outcome.status}: {outcome.done} tests until then, {tests} in the manifest"
            return self.stale(patterns, outcome)
        if outcome.status not in ("pass", "fail"):
            return outcome.status
        if outside is not None and outcome.outside != outside:
            return f"{outcome.outside} errors outside of a case, {outside} in the manifest"
        exact = tests.isdigit()
        least = int(tests.removeprefix(">=")) if tests != "-" else unix_tests
        if outcome.tests < least:
            return f"{outcome.tests} tests, {least} on unix or in the manifest"
        if exact and outcome.tests > least or (tests != "-" and least >= unix_tests):
            return f"the manifest is out of date: {outcome.tests} tests, it says {tests}, and {unix_tests} on unix"
        return self.stale(patterns, outcome)

    @staticmethod
    def split(case):
        """Of `a*=12` the name and how many cases have it; of anything else the name and None."""
        counted = re.fullmatch(r"(.*\*.*)=(\d+)", case)
        return (counted[1], int(counted[2])) if counted else (case.rstrip("?"), None)

    @classmethod
    def pattern(cls, case):
        return re.compile(re.escape(cls.split(case)[0]).replace(r"\*", ".*") + "$")

    @classmethod
    def stale(cls, patterns, outcome):
        """What the manifest says of cases that did not fail."""
        for case, known in patterns.items():
            wanted = cls.split(case)[1]
            found = sum(bool(known.match(failed)) for failed in outcome.failed)
            if wanted is not None and found != wanted:
                return f"{found} cases of {cls.split(case)[0]} failed, {wanted} in the manifest"
        names = [
            case
            for case, known in patterns.items()
            if not case.endswith("?") and not any(known.match(failed) for failed in outcome.failed)
        ]
        return f"the manifest is out of date: {' '.join(names)} did not fail" if names else None


def compare_counts(run, store, files, tests, unix_failed):
    """What is wrong with a whole run, by counts.tsv: None if nothing is. Says it where the numbers there may be raised."""
    for number, line in enumerate(COUNTS.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 6 or not all(fields):
            sys.exit(f"{COUNTS}:{number}: must have 6 fields")
        if fields[:2] != [run, store]:
            continue
        least_files, least_tests, most_failed = map(int, fields[2:5])
        if files < least_files or tests < least_tests:
            return f"{files} files and {tests} tests, {COUNTS.name} wants {least_files} and {least_tests}"
        if unix_failed > most_failed:
            return f"{unix_failed} cases fail on unix too, {COUNTS.name} has {most_failed}"
        if (files, tests, unix_failed) != (least_files, least_tests, most_failed):
            print(f"{COUNTS.name} may be changed to {files} files, {tests} tests, {unix_failed} that fail on unix for {run} on {store}")
        return None
    seen = f"{files} files, {tests} tests, {unix_failed} that fail on unix too"
    if (run, store) in COUNTED:
        return f"{COUNTS.name} has no line for {run} on {store}, which has been run in full: {seen}"
    print(f"NOT COMPARED: {COUNTS.name} has no line for {run} on {store}, so no number of files or tests is too small: {seen}")
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=str(TOP / ".test-tools" / "sqlite-suite"))
    parser.add_argument("--list", required=True)
    parser.add_argument("--store", default="versioned-memory", choices=["memory", "versioned-memory", "local"])
    parser.add_argument("--no-batch-atomic", action="store_true")
    parser.add_argument("--stubs", action="store_true", help="an empty file at the path of a database that was created")
    parser.add_argument("--stock", action="store_true", help="the system's library of SQLite in place of testfixture")
    parser.add_argument("--permutation")
    parser.add_argument("--label")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=900)
    parser.add_argument("--only")
    parser.add_argument("--shard", help="I/N: the I-th of N parts of the list, from 0")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    parser.add_argument("--bin", help="where the command `pagewire` is built, in place of target/debug")
    parser.add_argument("--resume", action="store_true", help="go on with the run of this label that was ended")
    parser.add_argument("--again", help="with --resume: a regular expression of files that are run again")
    options = parser.parse_args()
    if options.bin:
        harness.COMMAND = pathlib.Path(options.bin).resolve() / "pagewire"
    options.label = options.label or "-".join(
        [pathlib.PurePath(options.list).stem, options.store]
        + ["no-batch-atomic"] * options.no_batch_atomic
        + ["stubs"] * (options.stubs and options.list != "stubs")
        + ["stock"] * options.stock
    )
    files = read_list(options.suite, options.list)
    if options.only:
        files = [path for path in files if re.search(options.only, path)]
    if options.shard:
        index, count = map(int, options.shard.split("/"))
        files = files[index::count]
    kind = "stock" if options.stock else options.permutation or "plain"
    mode = "no-batch-atomic" if options.no_batch_atomic else "stubs" if options.stubs else kind
    manifest = Manifest(mode, options.store)
    runner = Runner(options, identity())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, runner.end)
    kept = Kept(pathlib.Path(options.suite) / f"{options.label}.jsonl", options.resume)
    # What the unix VFS does there does not depend on us: kept for as long as the source is the same.
    source = (pathlib.Path(options.suite) / "src" / "manifest.uuid").read_text().strip()[:12]
    baseline = Kept(pathlib.Path(options.suite) / f"unix-{kind}-{source}-{BASELINE}.jsonl", resume=True)
    passed = failed = tests = theirs = 0
    nowhere = collections.Counter()
    total = [0] * 5
    skipped = [path for path in files if manifest.skips(path)]
    files = [path for path in files if not manifest.skips(path)]
    started = time.monotonic()

    def one(path):
        unix = baseline.outcomes.get(path)
        # Without a summary it proves nothing, and may have been the machine's load.
        if unix is None or (unix.tests < 0 and not manifest.unix_fails(path)):
            unix = runner.run(path, "unix")
            # A test may be wrong by itself.
            if unix.status == "no summary" and manifest.outside(path) is not None:
                unix = runner.run(path, "unix", in_steps=True)
            if unix.tests >= 0 or (manifest.unix_fails(path) and unix.status != "timeout"):
                baseline.add(path, unix)
        if unix.tests < 0:
            return unix, None
        outcome = kept.outcomes.get(path)
        in_steps = manifest.outside(path) is not None
        if outcome is None or in_steps != (outcome.outside >= 0) or (options.again and re.search(options.again, path)):
            outcome = runner.run(path, options.store, in_steps)
            kept.add(path, outcome)
        return unix, outcome

    results = pathlib.Path(options.suite) / f"{options.label}.tsv"
    with open(results, "w") as out, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for path, (unix, outcome) in zip(files, pool.map(one, files)):
            if outcome is None:
                out.write(f"{path}\tnot run\t-\t-\t-\t-\t-\t{unix.lacks or unix.status} on unix\n")
                if manifest.unix_fails(path):
                    nowhere[unix.lacks or unix.status] += 1
                else:
                    failed += 1
                    print(f"FAILED {path}: unix does not get through it: {unix.lacks or unix.status}", flush=True)
                continue
            if manifest.unix_fails(path):
                failed += 1
                print(f"FAILED {path}: the manifest is out of date: unix gets through it", flush=True)
                continue
            theirs += len(unix.failed)
            # A permutation puts its name before those of the cases.
            outcome.failed = [case.removeprefix(f"{mode}.") for case in outcome.failed if case not in unix.failed]
            if not outcome.failed and outcome.status == "fail" and not outcome.note:
                outcome.status = "pass"
            own = unix.tests
            if options.permutation and outcome.tests >= 0:
                outcome.tests -= ADDED
                own -= ADDED
            problem = manifest.judge(path, outcome, own)
            opens = outcome.counts[0]
            row = [path, outcome.status, outcome.tests, own, len(outcome.failed), f"{outcome.seconds:.1f}", opens,
                   problem or "ok", " ".join(outcome.failed)]
            out.write("\t".join(map(str, row)) + "\n")
            out.flush()
            tests += outcome.tests if outcome.tests >= 0 else outcome.done
            total = [a + b for a, b in zip(total, outcome.counts)]
            if problem:
                failed += 1
                print(f"FAILED {path}: {problem}", flush=True)
            else:
                passed += 1
    if not options.keep:
        shutil.rmtree(runner.work, ignore_errors=True)
    if total[0] == 0:
        failed += 1
        print("FAILED: no database was opened on pagewire, so this run proves nothing")
    if not options.only and not options.shard:
        what = mode if mode != "plain" else pathlib.PurePath(options.list).stem
        short = compare_counts(what, options.store, passed + failed, tests, theirs)
        if short:
            failed += 1
            print(f"FAILED: {short}")
    if nowhere:
        print("not on unix: " + ", ".join(f"{count} {why}" for why, count in nowhere.most_common()))
    if theirs:
        print(f"not counted: {theirs} cases that fail on unix too")
    print(
        f"{options.label}: {passed + failed} files and {tests} tests in {time.monotonic() - started:.0f} s; {len(skipped)} files left "
        f"out by the manifest, {nowhere.total()} that unix does not get through; on "
        "pagewire {} opens, {} reads, {} writes, {} locks, {} syncs; results in {}".format(*total, results)
    )
    print(f"sqlite: {passed} passed, {failed} failed")
    return 0 if failed == 0 and passed else 1


if __name__ == "__main__":
    sys.exit(main())
