"""What the end-to-end scripts share: where things are built, and a page server that can be started, killed and
started again on the same port.

Never mends anything: a server that does not come up, or stops by itself, is an error of the test.
"""

import os
import pathlib
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
# PAGEWIRE_PROFILE=release: the long forms run on optimised binaries, of `cargo build --release --workspace`.
TARGET = TOP / "target" / os.environ.get("PAGEWIRE_PROFILE", "debug")
# PAGEWIRE_TEST_LIBRARY: another build of the extension, with what a sanitizer adds to it.
BUILT_LIBRARY = TARGET / "libpagewire.so"
LIBRARY = pathlib.Path(os.environ.get("PAGEWIRE_TEST_LIBRARY", BUILT_LIBRARY))
COMMAND = TARGET / "pagewire"
GUEST = TARGET / "pagewire-guest"
STATIC_SHELL = TOP / ".test-tools" / "static-shell" / "sqlite3"
OLD_SQLITE = TOP / ".test-tools" / "sqlite-3.31"
DEBIAN_SHELL = pathlib.Path("/usr/bin/sqlite3")
DEBIAN_PYTHON = pathlib.Path("/usr/bin/python3")
VENV_PYTHON = TOP / ".test-tools" / "venv" / "bin" / "python"

READY = re.compile(r"^(pagewire )?listening on (\S+):(\d+)")
START_SECONDS = 30
# For a cluster that was killed, on a loaded machine.
SETTLE_SECONDS = 120
TAKEN = "Address already in use"


def free_port():
    """A port that nobody listens on now. Servers that are restarted on their port need to know it beforehand."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def guest_environment(endpoint=None, **settings):
    """The environment of a host program: nothing of Pagewire's but what is named here."""
    environment = {key: text for key, text in os.environ.items() if not key.startswith("PAGEWIRE_")}
    if endpoint is not None:
        environment["PAGEWIRE_ENDPOINT"] = endpoint
    environment.update(settings)
    return environment


class Cluster:
    """A FoundationDB cluster of one `fdbserver` on a free loopback port, which ends with this object: its cluster file is `file`."""

    def __init__(self, folder, engine="ssd"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "fdb.cluster"
        address = f"127.0.0.1:{free_port()}"
        self.file.write_text(f"test:test@{address}\n")
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        self.command = [self.program("fdbserver"), "-p", address, "-C", self.file, "-d", data, "-L", data]
        self.process = None
        self.is_killed = False
        self.turn = threading.Lock()
        self.start()
        for _ in range(60):
            done = subprocess.run(
                [self.program("fdbcli"), "-C", self.file, "--timeout", "10", "--exec", f"configure new single {engine}"],
                stdout=subprocess.PIPE,
                # It says there that the one before, which took too long, has done it.
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
            )
            if "Database created" in done.stdout or "already exists" in done.stdout:
                return
        self.stop()
        raise RuntimeError(f"the cluster does not begin: {done.stdout}")

    @staticmethod
    def program(name):
        return os.environ.get(f"PAGEWIRE_{name.upper()}", name)

    @classmethod
    def is_possible(cls):
        """Whether there are fdbserver and fdbcli on this machine."""
        return all(shutil.which(cls.program(name)) for name in ("fdbserver", "fdbcli"))

    def start(self):
        """Starts it, and again whenever it ends by itself, as `fdbmonitor` would: it does where the disk takes nothing for two minutes."""
        self.is_stopped = False
        self._run()
        threading.Thread(target=self._watch, daemon=True).start()

    def _run(self):
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _watch(self):
        while True:
            process = self.process
            process.wait()
            with self.turn:
                if self.is_stopped:
                    return
                if self.is_killed:
                    self.is_killed = False
                else:
                    print(f"cluster: fdbserver ended by itself ({process.returncode}), and is started again", flush=True)
                self._run()

    def kill(self):
        """kill -9, and it is started again."""
        with self.turn:
            self.is_killed = True
            self.process.kill()

    def settle(self):
        """Until it takes transactions again."""
        until = time.monotonic() + SETTLE_SECONDS
        while True:
            command = [self.program("fdbcli"), "-C", self.file, "--timeout", "10", "--exec", "status minimal"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
            if "The database is available" in done.stdout and not self.is_killed:
                return
            if time.monotonic() > until:
                raise RuntimeError(f"the cluster does not come back: {done.stdout}")
            time.sleep(0.1)

    def stop(self):
        """kill -9."""
        with self.turn:
            self.is_stopped = True
            self.process.kill()
        self.process.wait()


class Server:
    """A `pagewire serve` process, or another page server: `command` is its command line, with {store}, {address} and
    {lease_ttl_ms} in it, and it says "listening on ADDRESS:PORT"."""

    def __init__(self, store, log, port=None, lease_ttl_ms=None, command=None, arguments=()):
        self.store = store
        self.command = command
        self.log = log
        self.may_move = port is None
        self.port = port or free_port()
        self.lease_ttl_ms = lease_ttl_ms
        self.arguments = arguments
        self.process = None

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """On the port that was found free: if somebody else has taken it since, on another one, before anybody knows it."""
        while True:
            try:
                self._start()
            except RuntimeError:
                if not self.may_move or TAKEN not in pathlib.Path(self.log).read_text(errors="replace"):
                    raise
                pathlib.Path(self.log).unlink()
                self.port = free_port()
                continue
            self.may_move = False
            return self

    def _start(self):
        command = [COMMAND, "serve", "--store", self.store, "--listen", f"127.0.0.1:{self.port}"]
        if self.lease_ttl_ms is not None:
            command += ["--lease-ttl-ms", str(self.lease_ttl_ms)]
        if self.command is not None:
            values = {"store": self.store, "address": f"127.0.0.1:{self.port}", "lease_ttl_ms": self.lease_ttl_ms or 5000}
            command = [part.format(**values) for part in shlex.split(self.command)]
        command += self.arguments
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=guest_environment()
            )
        lines = queue.Queue()
        threading.Thread(target=self._read, args=(self.process.stdout, lines), daemon=True).start()
        try:
            line = lines.get(timeout=START_SECONDS)
        except queue.Empty:
            self.kill()
            raise RuntimeError(f"the server said nothing within {START_SECONDS} s, see {self.log}") from None
        if not READY.match(line):
            self.kill()
            raise RuntimeError(f"the server did not come up (it said {line!r}), see {self.log}")

    @staticmethod
    def _read(stream, lines):
        for line in stream:
            lines.put(line)
        lines.put("")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self):
        """SIGTERM, and how it ended."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
