#!/usr/bin/env bash
# SQLite's mptest on remote pages: several processes write to one database, and some of them crash. SQLite's own counts of tests are
# required. The last line says how many scripts passed.
#   tests/sqlite/mptest.sh [--profile debug|simulation|release | --bin DIR] [SCRIPT...]      (crash01 multiwrite01 config02)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
profile=debug
built=
if [ "${1:-}" = --profile ]; then
    profile=$2
    shift 2
elif [ "${1:-}" = --bin ]; then
    built=$2
    shift 2
fi
[ $# -gt 0 ] || set -- crash01 multiwrite01 config02
if [ -z "$built" ]; then
    flag=()
    [ "$profile" = debug ] || flag=(--profile "$profile")
    cargo build --quiet "${flag[@]}" -p pagewire-vfs -p pagewire
    built=target/$profile
fi
suite=$top/.test-tools/sqlite-suite
"$here/build.sh" "$suite" "$built/libpagewire.a" sqlite_vfs/include mptester
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "$server" 2>/dev/null; rm -rf "$work"' EXIT
"$built/pagewire" serve --store versioned-memory --listen 127.0.0.1:0 >"$work/out" 2>"$work/err" &
server=$!
disown "$server"
for _ in $(seq 300); do
    port=$(sed -nE 's/.*listening on [0-9.]+:([0-9]+).*/\1/p' "$work/out")
    [ -z "$port" ] || break
    sleep 0.1
done
export PAGEWIRE_ENDPOINT=http://127.0.0.1:$port PROOF_COUNTS=$work/counts
passed=0
failed=0
for script in "$@"; do
    case $script in
        crash01) tests=94 ;;
        multiwrite01) tests=81 ;;
        config02) tests=627 ;;
        *) tests=0 ;;
    esac
    # A name of its own: mptester removes the file of its database, which is not there. It waits ten seconds for its clients, which is
    # not enough on a machine with much other work: where nothing else is wrong it is run again.
    for turn in 1 2 3; do
        (cd "$work" && timeout 900 "$suite/build/proof/mptester" "$script.$turn.db" "$suite/src/mptest/$script.test") >"$work/log" 2>&1 || true
        errors=$(grep -a ERROR "$work/log" | grep -cvE 'ERROR: (line [0-9]+ of |timeout waiting for )' || true)
        grep -aq "^Summary: [1-9][0-9]* errors out of $tests tests" "$work/log" && [ "$errors" = 0 ] || break
    done
    if grep -aq "^Summary: 0 errors out of $tests tests" "$work/log"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $script: $(grep -a '^Summary' "$work/log" || tail -n 1 "$work/log")"
        grep -a ERROR "$work/log" | head -n 5 | cut -c1-300 || true
    fi
done
opens=$(awk '{ n += $1 } END { print n + 0 }' "$work/counts" 2>/dev/null || echo 0)
echo "mptest: $opens opens on pagewire"
[ "$opens" -gt 0 ] || failed=$((failed + 1))
echo "mptest: $passed passed, $failed failed"
[ "$failed" = 0 ]
