#!/usr/bin/env bash
# Every server of this repository and every example earns the tier that its text claims, by `pagewire conformance`; a server that is
# not there, or has less, is told so; and the programs among the examples do what they say. The last line says how many did.
#   tests/conformance.sh BIN_DIRECTORY PYTHON
set -uo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "$1" && pwd)
python=$2
work=$(mktemp -d)
passed=0
failed=0
# How many of them there are: one that is not run is missed.
expected=20
server=

stop() {
    # The server itself too: `timeout` that is killed leaves it.
    [ -z "$server" ] || kill -9 $(cat "/proc/$server/task/$server/children" 2>/dev/null) "$server" 2>/dev/null
    [ ! -f "$work/pid" ] || kill -9 "$(cat "$work/pid")" 2>/dev/null
    server=
    rm -f "$work/pid"
}
trap 'stop; rm -rf "$work"' EXIT

# start COMMAND...: waits until it says where it listens, and sets $url.
start() {
    stop
    : >"$work/out"
    timeout 1200 "$@" >"$work/out" 2>"$work/err" &
    server=$!
    for _ in $(seq 300); do
        url=$(sed -nE 's/.*listening on ([0-9.:]+).*/http:\/\/\1/p' "$work/out")
        [ -z "$url" ] || return 0
        sleep 0.1
    done
    echo "$* does not listen"
    cat "$work/err"
    return 1
}

# expect NAME EXIT_CODE TEXT ARGUMENTS...: the run ends with this code and says this.
expect() {
    local name=$1 code=$2 text=$3 got
    shift 3
    timeout 900 "$bin/pagewire" conformance "$url" "$@" >"$work/report" 2>&1
    got=$?
    if [ "$got" = "$code" ] && grep -q "$text" "$work/report"; then
        echo "ok      $name: $(tail -n 1 "$work/report")"
        passed=$((passed + 1))
    else
        echo "FAILED  $name: exit code $got, wanted $code and: $text"
        cut -c1-400 "$work/report"
        failed=$((failed + 1))
    fi
}

start "$bin/pagewire" serve --store memory --listen 127.0.0.1:0 --lease-ttl-ms 2000 &&
    expect "memory is leased" 0 "0 failed, .* tiers earned: minimal, leased$" --tier leased
expect "memory is not durable" 1 "0 kept, 0 failed, 1 not tried" --rule c07
start "$bin/pagewire" serve --store versioned-memory --listen 127.0.0.1:0 --lease-ttl-ms 2000 &&
    expect "versioned memory has branches" 0 "0 failed, .* tiers earned: minimal, leased, versioned, branching$" --tier branching

# again STORE [LEASE_TTL_MS]: a server that can be killed and started again at the same place; $url.
again() {
    stop
    port=$((20000 + RANDOM % 20000))
    cat >"$work/again" <<END
old=\$(cat "$work/pid" 2>/dev/null)
[ -z "\$old" ] || kill -9 \$old
# It holds its directory until it is gone.
while [ -n "\$old" ] && kill -0 \$old 2>/dev/null; do sleep 0.05; done
timeout 1200 "$bin/pagewire" serve --store "$1" --listen 127.0.0.1:$port --lease-ttl-ms ${2:-2000} >"$work/out" 2>"$work/err" </dev/null &
pid=\$!
for _ in \$(seq 100); do child=\$(cat /proc/\$pid/task/\$pid/children 2>/dev/null); [ -z "\$child" ] || break; sleep 0.05; done
echo \$child >"$work/pid"
END
    sh "$work/again"
    url=http://127.0.0.1:$port
    for _ in $(seq 100); do grep -q listening "$work/out" && break; sleep 0.1; done
}

again "local:$work/data"
expect "local earns every tier" 0 "0 failed, .* tiers earned: minimal, leased, durable, versioned, branching$" --tier branching --restart "sh $work/again"
again memory
expect "memory that is restarted is not durable" 1 "not tried  d01.*restart leaves nothing" --tier durable --restart "sh $work/again"
stop
expect "nobody is there" 2 "no page server answers"
if command -v "${PAGEWIRE_FDBSERVER:-fdbserver}" >/dev/null && command -v "${PAGEWIRE_FDBCLI:-fdbcli}" >/dev/null; then
    mkfifo "$work/hold"
    /usr/bin/python3 tests/fdb_cluster.py "$work/cluster" <"$work/hold" >"$work/cluster.out" &
    exec 9>"$work/hold"
    for _ in $(seq 1200); do [ -s "$work/cluster.out" ] && break; sleep 0.1; done
    again "fdb:$(cat "$work/cluster.out")" 4000
    # Up to 90 s (docs/foundationdb.md), and some more on a loaded machine.
    expect "FoundationDB earns every tier" 0 "0 failed, .* tiers earned: minimal, leased, durable, versioned, branching$" --tier branching --restart "sh $work/again" --dead-after-s 120
    stop
    # It goes with this script too, however that ends.
    exec 9>&-
    expected=$((expected + 1))
else
    echo "NOT RUN: FoundationDB earns every tier (no fdbserver)"
fi

# Less than 200 lines each, as servers/README.md says.
for example in examples/minimal_store.rs examples/directory_store.rs examples/minimal_server.py examples/typescript/minimal_server.ts; do
    lines=$(wc -l <"$example")
    if [ "$lines" -lt 200 ]; then
        echo "ok      $example has $lines lines"
        passed=$((passed + 1))
    else
        echo "FAILED  $example has $lines lines"
        failed=$((failed + 1))
    fi
done

start "$bin/minimal-store" 127.0.0.1:0 &&
    expect "examples/minimal_store.rs is leased" 0 "0 failed, .* minimal, leased$" --tier leased
start "$bin/directory-store" "$work/directory" 127.0.0.1:0 &&
    expect "examples/directory_store.rs is leased" 0 "0 failed, .* minimal, leased$" --tier leased
export PAGEWIRE_LEASE_TTL_MS=2000
start "$python" examples/minimal_server.py 0 &&
    expect "examples/minimal_server.py is minimal" 0 "tiers earned: minimal$" --tier minimal
expect "examples/minimal_server.py is not leased" 1 "FAILED     l01" --rule l01
start node .test-tools/node/build/minimal_server.js 0 proto &&
    expect "examples/typescript/minimal_server.ts is minimal" 0 "tiers earned: minimal$" --tier minimal

# says NAME TEXT COMMAND...: the command succeeds and says this.
says() {
    local name=$1 text=$2
    shift 2
    if timeout 60 "$@" >"$work/said" 2>&1 && grep -q "$text" "$work/said"; then
        echo "ok      $name: $(tail -n 1 "$work/said")"
        passed=$((passed + 1))
    else
        echo "FAILED  $name, wanted: $text"
        cut -c1-400 "$work/said"
        failed=$((failed + 1))
    fi
}

stop
says "examples/embed.rs with its own server" "^1 visits at version 1$" "$bin/embed" "$work/embedded"
says "examples/embed.rs finds what it wrote" "^2 visits at version 2$" "$bin/embed" "$work/embedded"
start "$bin/pagewire" serve --store versioned-memory --listen 127.0.0.1:0 &&
    says "examples/embed.rs with an endpoint" "^1 visits at version 1$" "$bin/embed" "$url"
for how in strict bounded; do
    most=
    [ $how = strict ] || most=1000
    timeout 60 "$bin/replica" "$url" visits.db 3 $most >"$work/replica" 2>&1 &
    replica=$!
    for _ in $(seq 100); do grep -q "^replica of" "$work/replica" && break; sleep 0.1; done
    for _ in 1 2 3; do timeout 60 "$bin/embed" "$url" >>"$work/err" 2>&1; done
    wait $replica
    says "examples/replica.rs, $how, is told of three versions" "^3$" sh -c "grep -c '^version [0-9]*, 1 tables' '$work/replica' || cat '$work/replica'"
done

echo "conformance: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" = "$expected" ]
