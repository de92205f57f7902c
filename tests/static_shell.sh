#!/usr/bin/env bash
# static_shell.sh OUTDIR LIBPAGEWIRE_A HEADER_DIR
# Builds OUTDIR/sqlite3, SQLite's own shell, with pagewire linked in as its default VFS.
# SQLite's source is fetched, never kept here: from the npm package `sqlite3`, which carries SQLite's release tarball, or,
# where there is no npm, from Debian's source package through private apt folders that leave the system's settings alone.
set -euo pipefail
[ $# = 3 ] || { echo "usage: static_shell.sh OUTDIR LIBPAGEWIRE_A HEADER_DIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
library=$(realpath "$2")
headers=$(realpath "$3")
work=$out/sqlite-source
npm_version=6.0.1

fetch_from_npm() {
    (cd "$work" && npm pack --silent "sqlite3@$npm_version" >/dev/null && tar xzf sqlite3-*.tgz)
    mkdir -p "$work/src"
    tar xzf "$work"/package/deps/sqlite-autoconf-*.tar.gz -C "$work/src" --strip-components=1
}

fetch_from_debian() {
    local parts=$work/apt lists=$work/lists tree=$work/tree
    mkdir -p "$parts" "$lists/partial"
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sed 's/^Types: .*$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$parts/src.sources"
    else
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$parts/src.list"
    fi
    local options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$parts" -o "Dir::State::lists=$lists")
    apt-get "${options[@]}" update -qq
    (cd "$work" && apt-get "${options[@]}" source -qq --download-only sqlite3 >/dev/null &&
        dpkg-source --no-check --skip-patches -x sqlite3_*.dsc tree >/dev/null)
    mkdir -p "$work/src"
    (cd "$work/src" && ../tree/configure --disable-tcl --disable-readline >configure.log 2>&1 &&
        make sqlite3.c shell.c >make.log 2>&1)
}

if [ ! -f "$work/src/shell.c" ]; then
    rm -rf "$work"
    mkdir -p "$work"
    if command -v npm >/dev/null; then fetch_from_npm; else fetch_from_debian; fi
fi

options=(
    -DSQLITE_THREADSAFE=1 -DSQLITE_ENABLE_FTS5 -DSQLITE_ENABLE_RTREE -DSQLITE_ENABLE_MATH_FUNCTIONS
    -DSQLITE_ENABLE_DBSTAT_VTAB -DSQLITE_ENABLE_DBPAGE_VTAB -DSQLITE_ENABLE_COLUMN_METADATA
    -DSQLITE_ENABLE_EXPLAIN_COMMENTS -DHAVE_READLINE=0
)
# SQLite is the slow part of the build and does not depend on our library.
if [ ! -f "$out/sqlite3.o" ]; then
    gcc -O1 "${options[@]}" -DSQLITE_EXTRA_INIT=pagewire_static_init -c "$work/src/sqlite3.c" -o "$out/sqlite3.o.part"
    mv "$out/sqlite3.o.part" "$out/sqlite3.o"
fi
[ -f "$out/shell.o" ] || gcc -O1 "${options[@]}" -c "$work/src/shell.c" -o "$out/shell.o"
gcc -O1 -I"$work/src" -I"$headers" -c "$headers/pagewire_static_init.c" -o "$out/pagewire_static_init.o"
# The list is what `rustc --print native-static-libs` says for a static library on Debian.
gcc -o "$out/sqlite3" "$out/shell.o" "$out/sqlite3.o" "$out/pagewire_static_init.o" "$library" \
    -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
