"""FoundationDB without Pagewire, through the C API of its client library: what a cluster takes by itself, beside which a page server is measured."""

import concurrent.futures
import ctypes
import os
import threading
import time

API_VERSION = 730
VALUE_BYTES = 4096
# BATCHES of servers/foundationdb/src/staging.rs.
AT_A_TIME = 4
# Too old, not committed, of unknown outcome, and process behind.
RETRIED = (1007, 1020, 1021, 1037)


class Refused(Exception):
    """An error of the cluster."""


class Fdb:
    """As much of the C API as a transaction takes."""

    def __init__(self, cluster_file):
        self.c = ctypes.CDLL(os.environ.get("PAGEWIRE_FDB_LIBRARY", "libfdb_c.so"))
        pointer = ctypes.c_void_p
        for name, arguments, result in (
            ("fdb_create_database", [ctypes.c_char_p, ctypes.POINTER(pointer)], ctypes.c_int),
            ("fdb_database_create_transaction", [pointer, ctypes.POINTER(pointer)], ctypes.c_int),
            ("fdb_transaction_set", [pointer, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int], None),
            ("fdb_transaction_get", [pointer, ctypes.c_char_p, ctypes.c_int, ctypes.c_int], pointer),
            ("fdb_transaction_commit", [pointer], pointer),
            ("fdb_transaction_destroy", [pointer], None),
            ("fdb_future_block_until_ready", [pointer], ctypes.c_int),
            ("fdb_future_get_error", [pointer], ctypes.c_int),
            ("fdb_future_destroy", [pointer], None),
        ):
            function = getattr(self.c, name)
            function.argtypes, function.restype = arguments, result
        self.check(self.c.fdb_select_api_version_impl(API_VERSION, API_VERSION))
        self.check(self.c.fdb_setup_network())
        self.network = threading.Thread(target=self.c.fdb_run_network, daemon=True)
        self.network.start()
        self.database = pointer()
        self.check(self.c.fdb_create_database(str(cluster_file).encode(), ctypes.byref(self.database)))

    @staticmethod
    def check(code):
        if code:
            raise Refused(f"FoundationDB error {code}", code)

    def wait(self, future):
        self.check(self.c.fdb_future_block_until_ready(future))
        self.check(self.c.fdb_future_get_error(future))
        self.c.fdb_future_destroy(future)

    def transaction(self, number, size, reads):
        """Writes so many bytes; how long that took. One that the cluster was too busy for does not count."""
        while True:
            try:
                return self.attempt(number, size, reads)
            except Refused as refused:
                if refused.args[1] not in RETRIED:
                    raise

    def attempt(self, number, size, reads):
        begun = time.monotonic()
        transaction = ctypes.c_void_p()
        self.check(self.c.fdb_database_create_transaction(self.database, ctypes.byref(transaction)))
        head = b"pagewire latency"
        if reads:
            self.wait(self.c.fdb_transaction_get(transaction, head, len(head), 0))
        self.c.fdb_transaction_set(transaction, head, len(head), b"%d" % number, len(b"%d" % number))
        for chunk in range(0, size, VALUE_BYTES):
            key = b"pagewire latency %d %d" % (number, chunk)
            value = os.urandom(min(VALUE_BYTES, size - chunk))
            self.c.fdb_transaction_set(transaction, key, len(key), value, len(value))
        self.wait(self.c.fdb_transaction_commit(transaction))
        self.c.fdb_transaction_destroy(transaction)
        return time.monotonic() - begun

    def bulk(self, mib):
        """Writes so many MiB in transactions of one MiB, as many at a time as a page server has under way that writes ahead; MiB a second."""
        begun = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as threads:
            for done in [threads.submit(self.transaction, -1 - number, 1 << 20, False) for number in range(mib)]:
                done.result()
        return mib / (time.monotonic() - begun)

    def stop(self):
        self.check(self.c.fdb_stop_network())
        self.network.join()
