#!/usr/bin/env bash
# sanitizers.sh [shell] [contract]
# Looks for undefined behaviour of the library as a guest; both without arguments. Each ends with "ok" or fails.
#   shell     the extension in Debian's own sqlite3, under valgrind memcheck: the transcripts of tests/sql (TRANSCRIPTS="name..." for some)
#   contract  the VFS through its C interface, with poisoned buffers, under valgrind memcheck
# Needs `valgrind`; without it they fail.
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

for part in "${@:-shell contract}"; do
    for name in $part; do
        echo "== $name"
        "$name"
        echo "ok $name"
    done
done
