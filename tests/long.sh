#!/usr/bin/env bash
# Everything in its long form, on optimised builds; the last line says how many passed and failed.
#
#   tests/long.sh [--resume] [--bin DIR] [PART...]     these parts or groups of parts; all of them without a name
#   tests/long.sh --list                               the parts, their groups, the minutes that each takes
#
# --resume   leaves out what has passed already, at this commit, and goes on with a suite of SQLite's where it was ended
# --bin DIR  takes libpagewire.a, libpagewire.so, pagewire, pagewire-guest and directory-store of an earlier `cargo build --release
#            --workspace && cargo build --release`, for the parts that run programs; those that are tests of cargo are built all the same
#
# The times are minutes on 2 processors without other work. The output of each part is in .test-tools/long/PART.log, the results in
# results.tsv beside it. Parts on FoundationDB need fdbserver and fdbcli on PATH (or PAGEWIRE_FDBSERVER, PAGEWIRE_FDBCLI) and fail without.
# FUZZ_SECONDS (600 for each target), SIM_SEEDS (100000..114000), KILLS (1000), TRANSFERS (100000) change the sizes.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
python=/usr/bin/python3
logs=$PWD/.test-tools/long
results=$logs/results.tsv
kills=${KILLS:-1000}
transfers=${TRANSFERS:-100000}
seeds=${SIM_SEEDS:-100000..114000}

# NAME GROUP MINUTES WHAT
parts() {
    cat <<'LIST'
veryquick-memory            sqlite    4  SQLite's veryquick, 1,109 files, on the memory store
veryquick-versioned-memory  sqlite    3  the same on the versioned memory
veryquick-local             sqlite    4  the same on the local store
inmemory_journal            sqlite   35  SQLite's permutation of that name, 1,141 files
journaltest                 sqlite   30  the same, 1,064 files
atomic-batch-write          sqlite   25  the same, 1,088 files
full                        sqlite  120  all of SQLite's files
no-batch-atomic             sqlite    5  the files that skip themselves under batch-atomic writes, without them
stubs                       sqlite    1  the files that look at the disk, with an empty file at the path of each database
stock                       sqlite   10  the short list with Debian's libsqlite3.so.0
fault                       sqlite   40  I/O errors, full disks, crashes: 50 files
fault-local                 sqlite   60  the same on the local store
mptest                      sqlite    1  several processes on one database
tools                       sqlite    3  speedtest1 --verify, kvtest, threadtest3
applications                apps      4  CPython, SQLAlchemy, Django in full, on the versioned memory
applications-local          apps      3  the same on the local store
applications-no-stubs       apps      4  the same on the versioned memory, with nothing at a database's path
sanitizers                  watch    60  valgrind, AddressSanitizer, miri
fuzz                        watch   140  each fuzz target for FUZZ_SECONDS
fuzz-corpus                 watch    20  300,000 inputs near to the corpus for each target
power                       crash    20  the local store: each state of the disk that a loss of power may leave
tree                        crash    10  the local store: the pass over the tree of the engine's file, all of its bits
disk-cache-power            crash     6  the disk cache: 108,000 disks that a loss of power may leave
local-store                 crash    20  the local store: 300 kills of a collection, a million versions, 100 restarts, 1 GiB branched
histories                   random   30  random histories of branches, deltas, failures, snapshots, in their long form
simulator-defects           random   10  each part of the product that is switched off is found
simulation                  random  300  tests/simulation.sh long: SIM_SEEDS, about a million transactions; 500 seeds twice; a lease that expires at every turn
torture                     random   15  KILLS kills of clients and server, local store
torture-adapter             random   10  half as many, the shadow-paging adapter over a directory
torture-fdb                 random   10  half as many, two servers on FoundationDB
two-servers                 random    5  a writer whose servers are killed 100 times, on FoundationDB
bank-local                  random   15  TRANSFERS transfers, each snapshot of eight readers compared
bank-versioned-memory       random    7  the same
bank-adapter                random    5  the same, the shadow-paging adapter
bank-fdb                    random   15  the same, two servers on FoundationDB
gib                         random   10  one transaction of 1 GiB, and four kills, on the local store
gib-fdb                     random   15  the same on FoundationDB
store-gib-fdb               random   10  one transaction of 1 GiB into the store on FoundationDB, without a server
sizes-gib                   random    5  opening and a first query of 1 MB and 1 GB make the same calls
open-sizes                  random   10  opening and a first query, of 1 MiB to 10 GiB, in at most three calls (20 GiB of disk)
disk-cache-gib              random   10  a restarted process reads 1 GiB out of its disk cache after at most one round trip
cache-hit                   random    1  a hit in the page cache takes less than 1 us, prefetch at most half of it
LIST
}

usage() {
    sed -n 2,5p "$0" >&2
    exit 2
}

resume=
built=
chosen=()
while [ $# -gt 0 ]; do
    case $1 in
        --list)
            parts
            parts | awk '{ sum += $3 } END { printf "in all about %d hours\n", sum / 60 + 0.5 }'
            exit
            ;;
        --resume) resume=1 ;;
        --bin)
            built=$(realpath "${2:?}")
            shift
            ;;
        -*) usage ;;
        *)
            found=$(parts | awk -v name="$1" '$1 == name { print $1; exit }')
            [ -n "$found" ] || found=$(parts | awk -v name="$1" '$2 == name { print $1 }')
            [ -n "$found" ] || { echo "there is no part $1" >&2; usage; }
            # shellcheck disable=SC2206
            chosen+=($found)
            ;;
    esac
    shift
done
# shellcheck disable=SC2207
[ ${#chosen[@]} -gt 0 ] || chosen=($(parts | awk '{ print $1 }'))
mkdir -p "$logs"
[ -n "$resume" ] || rm -f "$results"
touch "$results"
commit=$(git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)

if [ -z "$built" ]; then
    # What is shipped comes last: with all of the workspace it has what the simulator and the fuzz targets need.
    cargo build --quiet --release --workspace && cargo build --quiet --release || { echo "0 passed, 1 failed"; exit 1; }
    built=$PWD/target/release
fi
# harness.py takes a profile, or the folder itself.
export PAGEWIRE_PROFILE=$built
adapter="$built/directory-store {store} {address} {lease_ttl_ms}"

sqlite() {
    tests/sqlite/run.sh "$@" --bin "$built" ${resume:+--resume}
}
has_fdb() {
    command -v "${PAGEWIRE_FDBSERVER:-fdbserver}" >/dev/null && command -v "${PAGEWIRE_FDBCLI:-fdbcli}" >/dev/null ||
        { echo "there are no fdbserver and fdbcli"; return 1; }
}
cargo_test() {
    cargo test --release --quiet "$@"
}

run() {
    case $1 in
        veryquick-*) sqlite veryquick --store "${1#veryquick-}" --timeout 1800 ;;
        inmemory_journal | journaltest | atomic-batch-write) sqlite "$1" --timeout 3600 ;;
        full) sqlite full --timeout 7200 --env PROOF_KEEP=1 ;;
        no-batch-atomic | stubs | stock) sqlite "$1" --timeout 3600 ;;
        fault) sqlite fault --timeout 7200 --env PROOF_KEEP=1 ;;
        fault-local) sqlite fault --store local --timeout 7200 --env PROOF_KEEP=1 ;;
        mptest) tests/sqlite/mptest.sh --bin "$built" ;;
        tools) tests/sqlite/tools.sh --bin "$built" ;;
        applications) tests/applications.sh --bin "$built" ;;
        applications-local) tests/applications.sh --bin "$built" --store local ;;
        applications-no-stubs) tests/applications.sh --bin "$built" --no-stubs ;;
        sanitizers) PAGEWIRE_PROFILE=debug tests/sanitizers.sh shell contract asan miri ;;
        fuzz) FUZZ_SECONDS=${FUZZ_SECONDS:-600} tests/sanitizers.sh fuzz ;;
        fuzz-corpus) PAGEWIRE_TEST_FUZZ_INPUTS=300000 cargo_test -p pagewire-tests --test it fuzz_corpus ;;
        power)
            # c16 starts processes, each of which has the locks of all stores of this one until it is itself.
            local first=0
            PAGEWIRE_TEST_POWER_CUTS=all cargo_test -p pagewire-local --test power -- --skip c16_ || first=$?
            PAGEWIRE_TEST_POWER_CUTS=all cargo_test -p pagewire-local --test power -- c16_ && [ "$first" = 0 ]
            ;;
        tree) PAGEWIRE_TEST_POWER_CUTS=all cargo_test -p pagewire-local --lib tree ;;
        disk-cache-power) PAGEWIRE_LONG_TESTS=1 cargo_test -p pagewire-vfs --lib loss_of_power ;;
        local-store)
            PAGEWIRE_TEST_KILLS=300 PAGEWIRE_TEST_VERSIONS=1000000 PAGEWIRE_TEST_RESTARTS=100 PAGEWIRE_TEST_BRANCH_PAGES=262144 \
                cargo_test -p pagewire-local --test it
            ;;
        histories)
            PAGEWIRE_LONG_TESTS=1 cargo_test -p pagewire-tests --test it -- history causal deltas failed_transactions restarts
            ;;
        simulator-defects) cargo test --quiet --profile simulation -p pagewire-simulator --features defects --test it ;;
        simulation) SIMULATION_SEEDS=$seeds tests/simulation.sh long ;;
        torture) $python tests/torture.py --kills "$kills" ;;
        torture-adapter) $python tests/torture.py --kills "$((kills / 2))" --server-command "$adapter" ;;
        torture-fdb) has_fdb && $python tests/torture.py --kills "$((kills / 2))" --fdb ;;
        two-servers) has_fdb && $python tests/two_servers.py --kills 100 ;;
        bank-adapter) $python tests/bank.py --transfers "$transfers" --server-command "$adapter" ;;
        bank-fdb) has_fdb && $python tests/bank.py --transfers "$transfers" --store fdb ;;
        bank-*) $python tests/bank.py --transfers "$transfers" --store "${1#bank-}" ;;
        gib) $python tests/big_transaction.py --mib 1024 --kills 4 ;;
        gib-fdb) has_fdb && $python tests/big_transaction.py --mib 1024 --kills 4 --fdb ;;
        store-gib-fdb) has_fdb && cargo_test -p pagewire-foundationdb --test it a_transaction_of_a_gibibyte -- --ignored ;;
        sizes-gib) cargo_test -p pagewire-tests --test it at_1_mb_and_at_1_gb -- --ignored ;;
        open-sizes) $python tests/open_sizes.py --mib 1,100,1024,10240 ;;
        disk-cache-gib) cargo_test -p pagewire-tests --test it a_restarted_process_reads_1_gib -- --ignored ;;
        cache-hit) cargo_test -p pagewire-vfs --lib -- --ignored a_hit_costs r6_a_page_in_no_stream ;;
    esac
}

# "PASSED FAILED" of what a part has counted itself: scripts, cargo test (several binaries), the simulator.
counts() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        /^[a-z-]+: [0-9]+ passed, [0-9]+ failed$/ { passed += $2; failed += $4; seen = 1 }
        /^test result: / { passed += $4; failed += $6; seen = 1 }
        /^ok [a-z]+$/ { passed++; seen = 1 }
        END { if (seen) print passed + 0, failed + 0 }'
}

passed=0
failed=0
for part in "${chosen[@]}"; do
    before=$(awk -F'\t' -v part="$part" -v commit="$commit" '$1 == part && $2 == commit && $4 == 0 { n = $3 } END { print n }' "$results")
    if [ -n "$resume" ] && [ -n "$before" ]; then
        echo "== $part: passed before"
        passed=$((passed + before))
        continue
    fi
    echo "== $part, $(date -u +%H:%M) UTC, about $(parts | awk -v part="$part" '$1 == part { print $3 }') minutes"
    started=$SECONDS
    run "$part" </dev/null >"$logs/$part.log" 2>&1
    status=$?
    found=$(counts "$logs/$part.log")
    # What counts nothing counts as one.
    [ -n "$found" ] || found="$((status == 0)) $((status != 0))"
    read -r good bad <<<"$found"
    # Nor can it have failed without one that failed.
    [ "$status" = 0 ] || [ "$bad" -gt 0 ] || bad=1
    # Nor have passed where it ran nothing: a test that has another name now.
    [ "$good" -gt 0 ] || [ "$bad" -gt 0 ] || bad=1
    passed=$((passed + good))
    failed=$((failed + bad))
    printf '%s\t%s\t%s\t%s\t%s\n' "$part" "$commit" "$good" "$bad" "$((SECONDS - started))" >>"$results"
    [ "$bad" = 0 ] || { echo "FAILED $part, see $logs/$part.log"; grep -a '^FAILED' "$logs/$part.log" | head -n 20; tail -n 3 "$logs/$part.log"; }
    echo "$part: $good passed, $bad failed in $((SECONDS - started)) s"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
