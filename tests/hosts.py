"""Host programs in which the library is a guest: loading it never harms them, whatever is wrong.

Run with Debian's Python: `python3 tests/hosts.py [NAME]...`. Tests are named after the letter and number of a failure that
was seen in systems of this kind. Each host is a process of its own, so that a crash is seen as one.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap
import unittest

from harness import DEBIAN_PYTHON, DEBIAN_SHELL, LIBRARY, STATIC_SHELL, VENV_PYTHON, Server, free_port, guest_environment

SECONDS = 60


class Hosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.server = Server("memory", f"{cls.scratch.name}/server.log").start()
        cls.nobody = f"http://127.0.0.1:{free_port()}"

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()
        cls.scratch.cleanup()

    def run_host(self, command, source="", endpoint=None, **settings):
        with tempfile.TemporaryDirectory() as directory:
            done = subprocess.run(
                command,
                input=source,
                cwd=directory,
                env=guest_environment(endpoint or self.server.endpoint, **settings),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
            )
            left = sorted(path.name for path in pathlib.Path(directory).iterdir())
        self.assertGreaterEqual(done.returncode, 0, f"killed by a signal: {done.stdout}")
        self.assertEqual(left, [], f"files were left behind: {done.stdout}")
        return done.stdout

    def shell(self, source, load=LIBRARY, **settings):
        return self.run_host([DEBIAN_SHELL, "-cmd", f".load {load}", ":memory:"], textwrap.dedent(source), **settings)

    def python(self, source, program=DEBIAN_PYTHON, **settings):
        prelude = f"""\
            import os, sqlite3, sys
            LIBRARY = {str(LIBRARY)!r}
            def load():
                connection = sqlite3.connect(":memory:")
                connection.enable_load_extension(True)
                connection.load_extension(LIBRARY)
                return connection
            def connect(name, more=""):
                return sqlite3.connect(f"file:{{name}}?vfs=pagewire{{more}}", uri=True, isolation_level=None)
        """
        return self.run_host([program, "-c", textwrap.dedent(prelude) + textwrap.dedent(source)], **settings)

    def test_h1_no_server_at_load_time_is_no_error(self):
        self.assertEqual(self.shell("SELECT 1 + 1;", endpoint=self.nobody), "2\n")

    def test_h1_the_static_shell_says_its_version_and_works_in_memory_without_a_server(self):
        self.assertRegex(self.run_host([STATIC_SHELL, "--version"], endpoint=self.nobody), r"^3\.\d+")
        self.assertEqual(self.run_host([STATIC_SHELL, ":memory:"], "SELECT 7;", endpoint=self.nobody), "7\n")

    def test_h1_opening_without_a_server_is_an_error_that_names_the_endpoint(self):
        output = self.python(
            """
            keep = load()
            try:
                connect("t.db").execute("SELECT * FROM sqlite_schema")
            except sqlite3.OperationalError as error:
                print(error.sqlite_errorcode & 0xff, keep.execute("SELECT pagewire_last_error()").fetchone()[0])
            """,
            endpoint=self.nobody,
            PAGEWIRE_TIMEOUT_MS="3000",
        )
        self.assertTrue(output.startswith("14 "), output)
        self.assertIn(self.nobody, output)

    def test_h4_bad_settings_are_harmless_at_load_and_are_all_named_at_open(self):
        settings = {"PAGEWIRE_CACHE_BYTES": "many", "PAGEWIRE_TIMEOUT_MS": "-1"}
        output = self.shell("SELECT 1;", endpoint="gopher://x", **settings)
        self.assertEqual(output, "1\n")
        output = self.python(
            """
            keep = load()
            try:
                connect("t.db").execute("SELECT * FROM sqlite_schema")
            except sqlite3.OperationalError as error:
                print(error, keep.execute("SELECT pagewire_last_error()").fetchone()[0])
            """,
            endpoint="gopher://x",
            **settings,
        )
        for name in ["PAGEWIRE_ENDPOINT", "PAGEWIRE_CACHE_BYTES", "PAGEWIRE_TIMEOUT_MS"]:
            self.assertIn(name, output)

    def test_h3_loading_twice_and_from_two_connections_does_no_harm(self):
        output = self.python(
            """
            first = load()
            first.load_extension(LIBRARY)
            second = load()
            a, b = connect("h3.db"), connect("h3.db")
            a.execute("CREATE TABLE t(x)")
            b.execute("INSERT INTO t VALUES(1)")
            print(a.execute("SELECT count(*) FROM t").fetchone(), b.execute("SELECT count(*) > 0 FROM pagewire_rpc").fetchone())
            """
        )
        self.assertEqual(output, "(1,) (1,)\n")

    def test_h3_a_program_that_links_the_library_keeps_its_functions_when_it_loads_another_copy(self):
        """Both have the name of the VFS. The functions of the second asked the files of the first for their handles and took them for its
        own: undefined behaviour where the two are not the same build, and counters that nobody counts with."""
        calls = "SELECT sum(count) > 0 FROM pagewire_rpc;\n"
        version = "BEGIN;\nSELECT count(*) FROM t;\nSELECT pagewire_version();\nCOMMIT;\n"
        source = f".open copies.db\nCREATE TABLE t(x);\n.load {LIBRARY}\n{calls}{version}.open copies.db\n{calls}{version}"
        self.assertEqual(self.run_host([STATIC_SHELL], source), "1\n0\n1\n" * 2)
        logged = self.run_host([STATIC_SHELL], f".log stdout\n.load {LIBRARY}\n")
        self.assertIn("another copy of this library", logged)

    def test_h7_names_with_printf_directives_are_names(self):
        name = "h7/%25s%25n%25d%25s.db"
        source = f"""\
            .log stdout
            .open 'file:{name}?vfs=pagewire'
            CREATE TABLE t(x);
            INSERT INTO t VALUES('%s%n');
            SELECT * FROM t;
            SELECT * FROM missing;
            PRAGMA integrity_check;
        """
        output = self.shell(source)
        self.assertIn("%s%n\n", output)
        self.assertTrue(output.endswith("ok\n"), output)
        self.shell(source, endpoint=self.nobody, PAGEWIRE_TIMEOUT_MS="2000")

    def test_h9_wal_page_size_and_exclusive_mode_are_survived(self):
        output = self.shell(
            """\
            .open h9.db
            CREATE TABLE t(x);
            PRAGMA journal_mode = WAL;
            PRAGMA journal_mode = OFF;
            INSERT INTO t VALUES(1);
            PRAGMA locking_mode = EXCLUSIVE;
            INSERT INTO t VALUES(2);
            PRAGMA journal_mode = WAL;
            INSERT INTO t VALUES(3);
            PRAGMA locking_mode = NORMAL;
            INSERT INTO t VALUES(4);
            PRAGMA page_size = 8192;
            VACUUM;
            PRAGMA page_size;
            SELECT count(*) FROM t;
            .open h9.db
            PRAGMA journal_mode;
            SELECT count(*) FROM t;
            PRAGMA integrity_check;
            """
        )
        lines = output.splitlines()
        self.assertNotIn("wal", lines)
        self.assertNotIn("off", lines)
        self.assertEqual(lines[-5:], ["8192", "4", "delete", "4", "ok"], output)

    def test_h9_wal_in_a_process_that_is_exclusive_from_the_start_does_not_brick_the_database(self):
        output = self.shell(
            """\
            ATTACH 'file:h9b.db?vfs=pagewire' AS a;
            PRAGMA locking_mode = EXCLUSIVE;
            PRAGMA journal_mode = WAL;
            CREATE TABLE a.t(x);
            INSERT INTO a.t VALUES(1);
            """
        )
        after = self.shell(".open h9b.db\nPRAGMA integrity_check;\nPRAGMA journal_mode;\n")
        self.assertEqual(after, "ok\ndelete\n", output)

    def test_h10_two_sqlite_libraries_in_one_process(self):
        output = self.python(
            """
            import apsw
            keep = load()
            other = apsw.Connection(":memory:")
            other.enable_load_extension(True)
            other.load_extension(LIBRARY)
            assert apsw.sqlite_lib_version() != sqlite3.sqlite_version
            a = connect("h10.db")
            b = apsw.Connection("h10.db", vfs="pagewire")
            b.set_busy_timeout(10000)
            a.execute("CREATE TABLE t(x)")
            for turn in range(20):
                a.execute("INSERT INTO t VALUES(?)", (turn,))
                b.execute("INSERT INTO t VALUES(?)", (turn,))
            print(a.execute("SELECT count(*) FROM t").fetchone()[0], list(b.execute("PRAGMA integrity_check"))[0][0])
            """,
            program=VENV_PYTHON,
        )
        self.assertEqual(output, "40 ok\n")

    def test_u1_load_needs_neither_suffix_nor_entry_point(self):
        for load in [LIBRARY, LIBRARY.with_suffix("")]:
            output = self.shell(".open u1.db\nCREATE TABLE IF NOT EXISTS t(x);\nINSERT INTO t VALUES(1);\n", load=load)
            self.assertEqual(output, "")
        self.assertEqual(self.shell(".open u1.db\nSELECT count(*) FROM t;\n"), "2\n")

    def test_u2_the_library_uses_no_sqlite_symbol_and_brings_none(self):
        undefined = subprocess.run(["nm", "-D", "--undefined-only", LIBRARY], stdout=subprocess.PIPE, text=True, check=True)
        self.assertNotRegex(undefined.stdout, r"\bsqlite3_")
        defined = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], stdout=subprocess.PIPE, text=True, check=True)
        exported = set(re.findall(r"\b(sqlite3_\w+|pagewire_\w+)", defined.stdout))
        self.assertEqual(exported, {"sqlite3_pagewire_init", "sqlite3_extension_init", "pagewire_auto_init"})

    def test_u3_functions_are_there_after_open(self):
        output = self.shell(".open u3.db\nSELECT count(*) > 0 FROM pagewire_rpc;\nSELECT typeof(pagewire_last_error());\n")
        self.assertRegex(output, r"^1\n(text|null)\n$")

    def test_u4_names_may_have_folders_and_a_local_path_is_never_made_remote_in_silence(self):
        output = self.shell(".open tenant/eu/app.db\nCREATE TABLE t(x);\nSELECT count(*) FROM t;\n")
        self.assertEqual(output, "0\n")
        for path in ["/tmp/never/there.db", "./there.db", "../there.db", "a//b.db"]:
            output = self.shell(f".open {path}\nCREATE TABLE t(x);\n")
            self.assertRegex(output, "(?i)error|unable to open", path)

    def test_u6_the_library_needs_no_newer_libc_than_debian_12s(self):
        symbols = subprocess.run(["objdump", "-T", LIBRARY], stdout=subprocess.PIPE, text=True, check=True).stdout
        versions = [tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_([\d.]+)", symbols)]
        self.assertLessEqual(max(versions), (2, 36))

    def test_not_being_the_default_leaves_plain_files_alone(self):
        with tempfile.TemporaryDirectory() as directory:
            source = f".open {directory}/plain.db\nCREATE TABLE t(x);\nSELECT count(*) FROM t;\n"
            self.assertEqual(self.shell(source, PAGEWIRE_DEFAULT="0"), "0\n")
            self.assertTrue(pathlib.Path(directory, "plain.db").exists())

    def test_l7_fork_leaves_parent_and_child_working(self):
        output = self.python(
            """
            import multiprocessing
            keep = load()
            parent = connect("l7.db")
            parent.execute("PRAGMA busy_timeout = 15000")
            parent.execute("CREATE TABLE t(who TEXT, turn INT)")
            parent.execute("INSERT INTO t VALUES('parent', 0)")
            def child(number):
                own = connect("l7.db")
                own.execute("PRAGMA busy_timeout = 15000")
                for turn in range(10):
                    own.execute("INSERT INTO t VALUES(?, ?)", (f"child {number}", turn))
                own.close()
            fork = multiprocessing.get_context("fork")
            children = [fork.Process(target=child, args=(number,)) for number in range(3)]
            for process in children:
                process.start()
            for turn in range(1, 11):
                parent.execute("INSERT INTO t VALUES('parent', ?)", (turn,))
            for process in children:
                process.join(50)
            print([process.exitcode for process in children])
            print(parent.execute("SELECT count(*), count(DISTINCT who) FROM t").fetchone())
            print(parent.execute("PRAGMA integrity_check").fetchone()[0])
            """
        )
        self.assertEqual(output, "[0, 0, 0]\n(41, 4)\nok\n")

    def test_l7_a_connection_of_the_parent_is_refused_in_the_child_and_still_works_in_the_parent(self):
        output = self.python(
            """
            keep = load()
            inherited = connect("l7b.db")
            inherited.execute("CREATE TABLE t(x)")
            inherited.execute("INSERT INTO t VALUES(1)")
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                try:
                    inherited.execute("INSERT INTO t VALUES('by the child')")
                    os._exit(1)
                except sqlite3.Error:
                    os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            inherited.execute("INSERT INTO t VALUES(2)")
            print(inherited.execute("SELECT group_concat(x) FROM t").fetchone()[0])
            """
        )
        self.assertEqual(output, "0\n1,2\n")


def main():
    names = sys.argv[1:]
    loader = unittest.TestLoader()
    suite = unittest.TestSuite(
        test for test in loader.loadTestsFromTestCase(Hosts) if not names or any(name in test.id() for name in names)
    )
    result = unittest.TextTestRunner(verbosity=1).run(suite)
    failed = len({test.id() for test, _ in result.failures + result.errors})
    print(f"hosts: {result.testsRun - failed} passed, {failed} failed")
    # A set-up that failed ran no test at all.
    return int(failed > 0 or result.testsRun == 0)


if __name__ == "__main__":
    sys.exit(main())
