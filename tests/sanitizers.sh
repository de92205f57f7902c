#!/usr/bin/env bash
# sanitizers.sh [shell] [contract] [asan] [miri] [fuzz]
# Looks for undefined behaviour of the library as a guest, and for what a stranger's bytes do to either side; all of it without arguments.
# Each ends with "ok" or fails.
#   shell     the extension in Debian's own sqlite3, under valgrind memcheck: the transcripts of tests/sql (TRANSCRIPTS="name..." for some)
#   contract  the VFS through its C interface, with poisoned buffers, under valgrind memcheck
#   asan      the extension, built with AddressSanitizer, in Debian's own sqlite3: the same transcripts
#   miri      what of ffi/ runs without SQLite and the operating system, in miri, with stand-ins for both
#   fuzz      each target of proto/fuzz for FUZZ_SECONDS (60), with libFuzzer and AddressSanitizer; TARGETS="name..." for some
# shell and contract need `valgrind`, miri a nightly toolchain with miri and rust-src, asan and fuzz `cargo-fuzz`, asan gcc's libasan too;
# without them they fail. The stable compiler will do for asan and fuzz.
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

# What a nightly compiler takes, or the stable one that is told to.
unstable() {
    if cargo +nightly --version >/dev/null 2>&1; then
        cargo +nightly "$@"
    else
        RUSTC_BOOTSTRAP=1 cargo "$@"
    fi
}

# The library as cargo-fuzz builds it, so that one build serves both.
asan() {
    local triple runtime status=0
    triple=$(rustc -vV | sed -n 's/^host: //p')
    cargo build --quiet --workspace
    (cd proto/fuzz && unstable fuzz build --fuzz-dir . --target "$triple" name)
    # Rust links the runtime to programs only: a library finds it in the program, or before it.
    runtime=$(gcc -print-file-name=libasan.so)
    # What is left at the end is valgrind's matter: this build of sqlite3 does not free all either.
    local options=abort_on_error=0:exitcode=99:detect_leaks=0:detect_stack_use_after_return=1:log_path=$PWD/$logs/asan
    # shellcheck disable=SC2086
    PAGEWIRE_TEST_LIBRARY="$PWD/proto/fuzz/target/$triple/release/deps/libpagewire.so" /usr/bin/python3 tests/transcripts.py \
        --client debian-shell --under "env LD_PRELOAD=$runtime ASAN_OPTIONS=$options" ${TRANSCRIPTS:-} || status=$?
    if cat "$logs"/asan* 2>/dev/null | grep .; then
        echo "AddressSanitizer has found something"
        return 1
    fi
    return "$status"
}

# Miri stands in for the machine: nothing foreign can be called, no SQLite, no sockets, no fork. All unsafe code is in ffi/.
miri() {
    MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-strict-provenance" \
        cargo +nightly miri test --quiet -p pagewire-vfs --lib -- ffi:: --skip ffi::os --skip never_gives_up
}

fuzz() {
    local target
    cd proto/fuzz
    for target in ${TARGETS:-$(sed -n 's/^libfuzzer_sys.*targets::\(\w*\).*/\1/p' fuzz_targets/*.rs)}; do
        echo "-- $target"
        mkdir -p "found/$target"
        # What is found goes into the first folder; the second is the kept corpus.
        unstable fuzz run --fuzz-dir . "$target" "found/$target" "corpus/$target" -- \
            -max_total_time="${FUZZ_SECONDS:-60}" -timeout=20 -rss_limit_mb=4096 -verbosity=0 -print_final_stats=1
    done
    cd ../..
}

for part in "${@:-shell contract asan miri fuzz}"; do
    for name in $part; do
        echo "== $name"
        "$name"
        echo "ok $name"
    done
done
