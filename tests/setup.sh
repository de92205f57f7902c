#!/usr/bin/env bash
# Installs what the tests need on a Debian machine that has Rust and apt: gcc, Node, Debian's own sqlite3 and Python, apsw and grpcio in
# a private venv, grpc-js and tsc in a folder of their own, and cargo-nextest. Says nothing and changes nothing where all of it is there.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
tools=$top/.test-tools
mkdir -p "$tools"
cd "$top"

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "setup: '$*' has to be run as root, and there is no sudo" >&2
        return 1
    fi
}

missing=()
for package in gcc libc6-dev make sqlite3 python3 python3-venv; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
command -v npm >/dev/null || missing+=(nodejs npm)
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$tools/apt.log"
fi

# Debian's own Python: others are often built without loadable extensions.
if ! "$tools/venv/bin/python" -c 'import apsw, grpc_tools' 2>/dev/null; then
    echo "setup: making .test-tools/venv with apsw and grpcio"
    rm -rf "$tools/venv"
    /usr/bin/python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: apsw grpcio grpcio-tools
fi

# The example in TypeScript, as its package.json says: fetched once, and built anew when it changed. Node has to be there.
node=$tools/node
mkdir -p "$node"
if ! cmp -s examples/typescript/package.json "$node/package.json" || [ ! -d "$node/node_modules/typescript" ]; then
    echo "setup: fetching what examples/typescript needs into .test-tools/node"
    cp examples/typescript/package.json "$node/"
    (cd "$node" && npm install --no-package-lock --no-audit --no-fund --silent)
fi
if ! cmp -s examples/typescript/minimal_server.ts "$node/minimal_server.ts" || [ ! -f "$node/build/minimal_server.js" ]; then
    cp examples/typescript/minimal_server.ts "$node/"
    (cd "$node" && npm run --silent build)
fi

if ! cargo nextest --version >/dev/null 2>&1; then
    echo "setup: building cargo-nextest (some minutes)"
    cargo install --quiet --locked cargo-nextest
fi

"$top/tests/old_sqlite.sh" "$tools/sqlite-3.31"
