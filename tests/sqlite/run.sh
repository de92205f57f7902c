#!/usr/bin/env bash
# SQLite's own test suite, unmodified, on remote pages: builds what it needs, runs it and compares it with the unix VFS.
#
#   tests/sqlite/run.sh [WHAT] [--store versioned-memory|memory|local] [--profile debug|simulation|release | --bin DIR] [OPTION OF run.py]...
#
# WHAT  ci               the slice that tests/run.sh runs (the default)
#       fast | fault     the short list; the files that inject I/O errors, full disks and crashes
#       no-batch-atomic  the files that skip themselves where the VFS has batch-atomic writes, without them
#       stubs            the files that look at the disk, with an empty file at the path of each database, as applications have it
#       stock            the short list in a plain tclsh with the system's own library of SQLite and its Tcl binding, in which pagewire is loaded
#                        as an extension; files that need testfixture's own commands are counted by what they lack
#       veryquick | full | inmemory_journal | journaltest | ...   a suite or permutation of SQLite's own permutations.test
#
# The pass and fail of each file, with counts, is in .test-tools/sqlite-suite/*.tsv, its output in logs/ beside it. What may differ from
# the unix VFS, and why, is in manifest.tsv. The last line says how many files did what is expected of them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
what=ci
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    what=$1
    shift
fi
profile=debug
built=
options=()
while [ $# -gt 0 ]; do
    if [ "$1" = --profile ]; then
        profile=$2
        shift 2
    elif [ "$1" = --bin ]; then
        built=$(realpath "$2")
        shift 2
    else
        options+=("$1")
        shift
    fi
done
case $what in
    ci | fast | fault) options+=(--list "$what") ;;
    stubs) options+=(--list stubs --stubs) ;;
    stock) options+=(--list fast --stock) ;;
    no-batch-atomic) options+=(--list selfskip --no-batch-atomic) ;;
    veryquick | full) options+=(--list "$what" --jobs "$(nproc)") ;;
    *) options+=(--list "$what" --permutation "$what") ;;
esac
if [ -z "$built" ]; then
    flag=()
    [ "$profile" = debug ] || flag=(--profile "$profile")
    cargo build --quiet "${flag[@]}" -p pagewire-vfs -p pagewire
    built=$top/target/$profile
fi
suite=$top/.test-tools/sqlite-suite
# The suite refuses to run as root, so another user has to get at its programs.
if [ "$(id -u)" = 0 ]; then
    id sqltest >/dev/null 2>&1 || useradd --create-home sqltest
    mkdir -p "$suite"
    setpriv --reuid sqltest --regid sqltest --clear-groups test -x "$suite" || suite=/var/tmp/pagewire-sqlite-suite
fi
programs=(testfixture sqlite3 sqldiff)
[ "$what" != stock ] || programs=(proofstock.so libpagewire.so)
"$here/build.sh" "$suite" "$built/libpagewire.a" "$top/sqlite_vfs/include" "${programs[@]}"
python3 "$here/run.py" --suite "$suite" --bin "$built" "${options[@]}"
