#!/usr/bin/env bash
# Sets up what the tests need and runs all of them; the last line says how many passed and failed.
# One build in the dev profile serves everything. PAGEWIRE_TORTURE_KILLS and
# PAGEWIRE_BANK_TRANSFERS make the torture and the bank longer or shorter.
set -uo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh || { echo "0 passed, 1 failed"; exit 1; }
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
logs=.test-tools/logs
rm -rf "$logs"
mkdir -p "$logs"
passed=0
failed=0

# step NAME COMMAND...: a check that passes or fails as a whole.
step() {
    local name=$1
    shift
    echo "== $name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $name"
    fi
}

# suite NAME SED_PATTERN COMMAND...: something that counts its own tests; the pattern turns its last count into
# "PASSED FAILED". One that fails without such a count, or with none failed, counts as one failure.
suite() {
    local name=$1 pattern=$2 status counts
    shift 2
    echo "== $name"
    "$@" 2>&1 | tee "$logs/$name"
    status=${PIPESTATUS[0]}
    counts=$(sed 's/\x1b\[[0-9;]*m//g' "$logs/$name" | sed -nE "$pattern" | tail -n 1)
    if [ -z "$counts" ]; then
        failed=$((failed + 1))
        echo "FAILED $name: it did not get as far as counting its tests"
        return
    fi
    set -- $counts
    passed=$((passed + $1))
    failed=$((failed + ${2:-0}))
    if [ "$status" != 0 ] && [ "${2:-0}" = 0 ]; then
        failed=$((failed + 1))
        echo "FAILED $name: exit status $status"
    fi
}

script_counts='s/^[a-z]+: ([0-9]+) passed, ([0-9]+) failed$/\1 \2/p'

# What needs a FoundationDB cluster is left out where there can be none, and said: tests that return at once would count as passed.
fdb_tests='binary_id(pagewire-foundationdb::it)'
fdb_is_there() {
    command -v "${PAGEWIRE_FDBSERVER:-fdbserver}" >/dev/null && command -v "${PAGEWIRE_FDBCLI:-fdbcli}" >/dev/null &&
        /usr/bin/python3 -c 'import ctypes, os; ctypes.CDLL(os.environ.get("PAGEWIRE_FDB_LIBRARY", "libfdb_c.so"))' 2>/dev/null
}
which_tests='all()'
fdb_is_there || which_tests="not $fdb_tests"

step "format" cargo fmt --all --check
step "clippy" cargo clippy --quiet --workspace --all-targets -- -D warnings
step "build" cargo build --workspace --quiet
step "static-shell" tests/static_shell.sh .test-tools/static-shell target/debug/libpagewire.a sqlite_vfs/include
suite "nextest" 's/^ +Summary .*: ([0-9]+) passed( \([^)]*\))?(, ([0-9]+) failed)?.*$/\1 \4/p' \
    cargo nextest run --workspace -E "$which_tests" --no-fail-fast --status-level fail --final-status-level fail --hide-progress-bar
if ! fdb_is_there; then
    left_out=$(cargo nextest list --workspace -E "$fdb_tests" --message-format oneline 2>/dev/null | wc -l)
    echo "NOT RUN: $left_out tests of pagewire-foundationdb (no fdbserver)"
    # A filter that names nothing would leave them in, and counted as passed.
    [ "$left_out" -gt 0 ] || step "the tests of pagewire-foundationdb are found" false
fi
step "doctests" cargo test --workspace --doc --quiet
suite "simulation" "$script_counts" tests/simulation.sh
suite "conformance" "$script_counts" tests/conformance.sh target/debug .test-tools/venv/bin/python
suite "sqlite" "$script_counts" tests/sqlite/run.sh ci
# Of the files that look at the disk those to which a file at the database's path makes a difference; all of them take minutes with this build.
suite "sqlite-stubs" "$script_counts" tests/sqlite/run.sh stubs --only '/(attach|backup[24]|capi3e|delete|swarmvtab3|symlink|temptable|unixexcl|vtabH)\.'
suite "applications" "$script_counts" tests/applications.sh --short
suite "hosts" "$script_counts" /usr/bin/python3 tests/hosts.py
suite "transcripts" "$script_counts" /usr/bin/python3 tests/transcripts.py
suite "big-transaction" "$script_counts" /usr/bin/python3 tests/big_transaction.py --mib 64 --kills 2
suite "big-transaction-on-fdb" "$script_counts" /usr/bin/python3 tests/big_transaction.py --mib 64 --kills 2 --fdb
suite "open-sizes" "$script_counts" /usr/bin/python3 tests/open_sizes.py
suite "bench" "$script_counts" /usr/bin/python3 tests/performance.py --check
suite "idle-memory" "$script_counts" /usr/bin/python3 tests/idle_memory.py --databases 300
suite "torture" "$script_counts" /usr/bin/python3 tests/torture.py --kills "${PAGEWIRE_TORTURE_KILLS:-100}"
suite "torture-of-the-adapter" "$script_counts" /usr/bin/python3 tests/torture.py --kills "$((${PAGEWIRE_TORTURE_KILLS:-100} / 4 + 5))" \
    --server-command "target/debug/directory-store {store} {address} {lease_ttl_ms}"

suite "torture-of-two-servers" "$script_counts" /usr/bin/python3 tests/torture.py --fdb --kills "$((${PAGEWIRE_TORTURE_KILLS:-100} / 4 + 5))"
suite "two-servers" "$script_counts" /usr/bin/python3 tests/two_servers.py

for store in local versioned-memory fdb; do
    suite "bank-$store" "$script_counts" /usr/bin/python3 tests/bank.py --transfers "${PAGEWIRE_BANK_TRANSFERS:-3000}" --store $store
done
suite "bank-of-the-adapter" "$script_counts" /usr/bin/python3 tests/bank.py --transfers "$((${PAGEWIRE_BANK_TRANSFERS:-3000} / 4 + 50))" \
    --server-command "target/debug/directory-store {store} {address} {lease_ttl_ms}"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
