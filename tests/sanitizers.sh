#!/usr/bin/env bash
# sanitizers.sh [shell] [contract] [asan] [miri]
# Looks for undefined behaviour of the library as a guest; all of it without arguments. Each ends with "ok" or fails.
#   shell     the extension in Debian's own sqlite3, under valgrind memcheck: the transcripts of tests/sql (TRANSCRIPTS="name..." for some)
#   contract  the VFS through its C interface, with poisoned buffers, under valgrind memcheck
#   asan      the extension, built with AddressSanitizer, in Debian's own sqlite3: the same transcripts
#   miri      what runs without SQLite and the operating system, in miri: the protocol crate, and of the VFS the code of ffi/ and what reads pages
# Needs `valgrind`, a nightly toolchain with miri and rust-src, and gcc's libasan; without them they fail.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
logs=.test-tools/sanitizers
rm -rf "$logs"
mkdir -p "$logs"
# Who is watched is slow, and shall not lose its leases or its patience for that: for the library, and for the servers of the tests.
export PAGEWIRE_TIMEOUT_MS=120000 PAGEWIRE_LEASE_TTL_MS=60000
# Without --fair-sched the thread that drives the connection may get no turn for seconds.
memcheck=(valgrind --fair-sched=yes --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite
    --show-leak-kinds=definite --child-silent-after-fork=yes --num-callers=40 "--log-file=$PWD/$logs/%p")

# Every program that was watched has written a summary, and it says that nothing was found.
judge() {
    local summaries
    summaries=$(cat "$logs"/[0-9]* | grep -c 'ERROR SUMMARY')
    if grep -L 'ERROR SUMMARY: 0 errors' "$logs"/[0-9]* | grep .; then
        echo "valgrind has found something in these"
        return 1
    fi
    echo "valgrind: $summaries processes, 0 errors"
    rm "$logs"/[0-9]*
}

shell() {
    cargo build --quiet --workspace
    # shellcheck disable=SC2086
    /usr/bin/python3 tests/transcripts.py --client debian-shell --under "${memcheck[*]}" ${TRANSCRIPTS:-}
    judge
}

contract() {
    cargo build --quiet --workspace
    # One test at a time: the host's threads are not what is looked at. Its child processes are the server.
    env "CARGO_TARGET_${host}_RUNNER=${memcheck[*]}" \
        cargo test --quiet -p pagewire-tests --test it contract:: -- --test-threads 1
    judge
}

asan() {
    local triple runtime options
    triple=$(rustc -vV | sed -n 's/^host: //p')
    # Rust links the runtime to programs only: a library finds it in the program, or before it.
    runtime=$(gcc -print-file-name=libasan.so)
    RUSTFLAGS=-Zsanitizer=address cargo +nightly build --quiet -p pagewire-vfs --lib --target "$triple" --target-dir target/asan
    cargo build --quiet --workspace
    # What is left at the end is valgrind's matter: this build of sqlite3 does not free all either.
    options=abort_on_error=0:exitcode=99:detect_leaks=0:detect_stack_use_after_return=1:log_path=$PWD/$logs/asan
    # shellcheck disable=SC2086
    PAGEWIRE_TEST_LIBRARY="$PWD/target/asan/$triple/debug/libpagewire.so" /usr/bin/python3 tests/transcripts.py \
        --client debian-shell --under "env LD_PRELOAD=$runtime ASAN_OPTIONS=$options" ${TRANSCRIPTS:-}
    if cat "$logs"/asan* 2>/dev/null | grep .; then
        echo "AddressSanitizer has found something"
        return 1
    fi
}

# Where miri stands in for the machine nothing foreign can be called, no sockets, threads or SQLite: a test that does so fails there.
miri() {
    export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-strict-provenance" PROPTEST_CASES=4
    cargo +nightly miri test --quiet -p pagewire-proto --lib -- $MIRI_PROTO
    cargo +nightly miri test --quiet -p pagewire-vfs --lib -- $MIRI_VFS
}

for part in "${@:-shell contract asan miri}"; do
    for name in $part; do
        echo "== $name"
        "$name"
        echo "ok $name"
    done
done
