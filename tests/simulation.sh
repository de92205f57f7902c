#!/usr/bin/env bash
# Simulates a range of seeds, the expiry of leases at the turns of a small plan, and the parts that are switched off to test the simulator; the last
# line says how many passed and failed. docs/simulation.md tells what is simulated.
#
#   tests/simulation.sh          # what tests/run.sh runs
#   tests/simulation.sh long     # more than a million transactions: hours
#
# SIMULATION_SEEDS (A..B) sets the seeds, SIMULATION_SWEEP behind every how many turns a lease expires.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
case ${1:-short} in
short) seeds=0..1500 calm_seeds=2000..2100 twice=0..60 sweep_seeds=1..2 sweep=${SIMULATION_SWEEP:-250} patience=120 same=0..8 ;;
long) seeds=100000..114000 calm_seeds=300000..301000 twice=200000..200500 sweep_seeds=1..5 sweep=${SIMULATION_SWEEP:-1} patience=600 same=0..100 ;;
*) echo "use: $0 [long]"; exit 2 ;;
esac
seeds=${SIMULATION_SEEDS:-$seeds}
passed=0
failed=0

# count NAME SED_PATTERN COMMAND...: the pattern turns a line into "PASSED FAILED"; without one it is one failure.
count() {
    local name=$1 pattern=$2 text status counts
    shift 2
    echo "-- $name: $*"
    text=$("$@" 2>&1)
    status=$?
    printf '%s\n' "$text"
    counts=$(sed 's/\x1b\[[0-9;]*m//g' <<<"$text" | sed -nE "$pattern" | tail -n 1)
    if [ -z "$counts" ]; then
        failed=$((failed + 1))
        return
    fi
    set -- $counts
    passed=$((passed + $1 ${3:+- $2}))
    failed=$((failed + ${2:-0}))
    if [ "$status" != 0 ] && [ "${2:-0}" = 0 ]; then
        failed=$((failed + 1))
        echo "FAILED $name: exit status $status"
    fi
}

# One build serves all: what the feature switches off is on unless it is asked for. `pagewire sim` comes from it too, so that both have the same parts.
parts=(-p pagewire-simulator -p pagewire --features pagewire-simulator/defects,pagewire/simulation)
cargo build --quiet --profile simulation "${parts[@]}" --bins || {
    echo "simulation: 0 passed, 1 failed"
    exit 1
}
sim=target/simulation/pagewire-sim

# The command of pagewire does what the program does: each seed's trace, the table and the last line. Counts as one.
same() {
    local by_command by_program
    by_command=$(RUST_LOG=off target/simulation/pagewire sim "$@")
    local status=$?
    by_program=$($sim "$@")
    if [ "$status" = 0 ] && [ "$by_command" = "$by_program" ]; then
        tail -n 1 <<<"$by_command"
        echo "1 same, 0 not"
    else
        diff <(echo "$by_program") <(echo "$by_command")
        echo "0 same, 1 not"
        return 1
    fi
}
# The third word says that the first one counts those that failed too.
seeds_counted='s/^([0-9]+) seeds, ([0-9]+) failed;.*$/\1 \2 all/p'
count seeds "$seeds_counted" $sim --seeds "$seeds" --everything --keep-going --patience $patience
# Where nothing goes wrong no error has an excuse.
count calm "$seeds_counted" $sim --seeds $calm_seeds --no-faults --keep-going --patience $patience
count twice "$seeds_counted" $sim --seeds $twice --twice --keep-going --patience $patience
sweep() {
    count "leases $*" "$seeds_counted" $sim --seeds $sweep_seeds --sweep "$sweep" --keep-going --patience $patience "$@"
}
sweep
sweep --workload large
sweep --workload large --store local
sweep --workload pages
sweep --workload pages --store shadow
sweep --workload versions --store local
sweep --workload append --store shadow
count "pagewire sim" 's/^([0-9]+) same, ([0-9]+) not$/\1 \2/p' same --seeds $same --verbose --patience $patience
count switches 's/^ +Summary .*: ([0-9]+) passed( \([^)]*\))?(, ([0-9]+) failed)?.*$/\1 \4/p' \
    cargo nextest run --cargo-profile simulation "${parts[@]}" --test it --no-fail-fast \
    --status-level fail --final-status-level fail --hide-progress-bar defects::
echo "simulation: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
