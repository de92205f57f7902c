#!/usr/bin/env bash
# Applications that no one here wrote, with pagewire as the default VFS of Debian's own Python and SQLite: CPython's test_sqlite3,
# SQLAlchemy's SQLite dialect suite, Django's database tests. What passes on a file has to pass on remote pages, or is named with its
# reason in tests/applications/differences.tsv.
#
#   tests/applications.sh [--profile debug|simulation|release | --bin DIR] [--short] [--no-stubs] [--store versioned-memory|local]
#                         [cpython|sqlalchemy|django]...
#
# Debian's source package and the packages from the Python registry are fetched into .test-tools/applications; nothing of them is kept
# in the repository. --short is the part that tests/run.sh runs: CPython's and the tests of the dialect itself. The last line says how
# many tests passed.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
# The tests belong to the version, so both have to be the same always.
sqlalchemy=2.1.9
django=5.2.19
pytest=9.2.0
out=$top/.test-tools/applications
profile=${PAGEWIRE_PROFILE:-debug}
built=
others=()
while [ $# -gt 0 ]; do
    case $1 in
        --profile) profile=$2; shift 2 ;;
        --bin) built=$(realpath "$2"); shift 2 ;;
        *) others+=("$1"); shift ;;
    esac
done
set -- ${others[@]+"${others[@]}"}
mkdir -p "$out"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
for package in gcc libc6-dev libsqlite3-dev python3 python3-venv libpython3-stdlib dpkg-dev; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$out/apt.log"
fi
if [ ! -d "$out/cpython/test/test_sqlite3" ]; then
    # Debian leaves this folder of tests out of its packages; its source package has it. The rest of the package `test` is installed.
    parts=$out/apt lists=$out/lists
    rm -rf "$parts" "$lists" "$out/download" "$out/cpython"
    mkdir -p "$parts" "$lists/partial" "$out/download" "$out/cpython"
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sed 's/^Types: .*$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$parts/src.sources"
    else
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$parts/src.list"
    fi
    options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$parts" -o "Dir::State::lists=$lists"
        -o APT::Sandbox::User=root -o Acquire::Retries=3)
    version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt-get "${options[@]}" update -qq
    (cd "$out/download" && apt-get "${options[@]}" source -qq --download-only --tar-only "python$version" >/dev/null)
    cp -a "/usr/lib/python$version/test" "$out/cpython/test"
    mkdir "$out/download/tests"
    tar -xf "$out"/download/python*.orig.tar.* -C "$out/download/tests" --strip-components=3 --wildcards '*/Lib/test/test_sqlite3/*'
    mv "$out/download/tests/test_sqlite3" "$out/cpython/test/"
    rm -rf "$out/download" "$lists"
fi
if [ ! -x "$out/venv/bin/pytest" ]; then
    rm -rf "$out/venv"
    /usr/bin/python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet "pytest==$pytest" "django==$django" "sqlalchemy==$sqlalchemy"
fi
# The tests are in the source distributions only.
projects=("sqlalchemy $sqlalchemy" "django $django")
[ "$*" != --short ] || projects=("sqlalchemy $sqlalchemy")
for project in "${projects[@]}"; do
    read -r name version <<<"$project"
    if [ ! -d "$out/$name" ]; then
        rm -rf "$out/sdist"
        "$out/venv/bin/pip" download --quiet --no-deps --no-binary "$name" --dest "$out/sdist" "$name==$version" >"$out/pip.log" 2>&1 ||
            { tail -n 5 "$out/pip.log" >&2; exit 1; }
        tar -xf "$out/sdist"/*.tar.gz -C "$out/sdist"
        mv "$out/sdist/$name-$version" "$out/$name"
        rm -rf "$out/sdist"
    fi
done
if [ -z "$built" ]; then
    flag=()
    [ "$profile" = debug ] || flag=(--profile "$profile")
    cargo build --quiet "${flag[@]}" -p pagewire-vfs -p pagewire
    built=target/$profile
fi
gcc -O1 -fPIC -shared -DPROOF_EXTENSION -Isqlite_vfs/include -o "$out/layer.so" tests/sqlite/proof_vfs.c -l:libsqlite3.so.0
/usr/bin/python3 tests/applications/run.py "$out" "$built" "$@"
