#!/usr/bin/env bash
# Every server of this repository and every example earns the tier that its text claims, by `pagewire conformance`; a server that is
# not there, or has less, is told so. The last line says how many did.
#   tests/conformance.sh BIN_DIRECTORY PYTHON
set -uo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "$1" && pwd)
python=$2
work=$(mktemp -d)
passed=0
failed=0
server=

stop() {
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null
    [ ! -f "$work/pid" ] || kill -9 "$(cat "$work/pid")" 2>/dev/null
    server=
    rm -f "$work/pid"
}
trap 'stop; rm -rf "$work"' EXIT

# start COMMAND...: waits until it says where it listens, and sets $url.
start() {
    stop
    : >"$work/out"
    timeout 600 "$@" >"$work/out" 2>"$work/err" &
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
    timeout 400 "$bin/pagewire" conformance "$url" "$@" >"$work/report" 2>&1
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

# A server that can be killed and started again at the same place.
port=$((20000 + RANDOM % 20000))
cat >"$work/again" <<END
old=\$(cat "$work/pid" 2>/dev/null)
[ -z "\$old" ] || kill -9 \$old
# It holds its directory until it is gone.
while [ -n "\$old" ] && kill -0 \$old 2>/dev/null; do sleep 0.05; done
timeout 600 "$bin/pagewire" serve --store "local:$work/data" --listen 127.0.0.1:$port --lease-ttl-ms 2000 >"$work/out" 2>"$work/err" </dev/null &
pid=\$!
for _ in \$(seq 100); do child=\$(cat /proc/\$pid/task/\$pid/children 2>/dev/null); [ -z "\$child" ] || break; sleep 0.05; done
echo \$child >"$work/pid"
END
stop
sh "$work/again"
url=http://127.0.0.1:$port
for _ in $(seq 100); do grep -q listening "$work/out" && break; sleep 0.1; done
expect "local is durable" 0 "0 failed, .* tiers earned: minimal, leased, durable$" --tier durable --restart "sh $work/again"
stop
expect "nobody is there" 2 "no page server answers"

start "$bin/minimal-store" 127.0.0.1:0 &&
    expect "examples/minimal_store.rs is leased" 0 "0 failed, .* minimal, leased$" --tier leased
start "$bin/directory-store" "$work/directory" 127.0.0.1:0 &&
    expect "examples/directory_store.rs is leased" 0 "0 failed, .* minimal, leased$" --tier leased
export PAGEWIRE_LEASE_TTL_MS=2000
start "$python" examples/minimal_server.py 0 &&
    expect "examples/minimal_server.py is minimal" 0 "tiers earned: minimal$" --tier minimal
expect "examples/minimal_server.py is not leased" 1 "FAILED     l01" --rule l01

echo "conformance: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" = 8 ]
