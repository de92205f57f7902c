#!/usr/bin/env bash
# torture.sh [--long] [torture.py arguments]: the torture program; --long is at least 1,000 kills (about a quarter of an hour).
# Builds what it needs in the dev profile. Run it again with the seed it printed to see the same kills.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh
cargo build --quiet -p pagewire -p pagewire-vfs -p pagewire-tests
if [ "${1:-}" = --long ]; then
    shift
    set -- --kills 1000 "$@"
fi
exec /usr/bin/python3 tests/torture.py "$@"
