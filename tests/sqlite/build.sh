#!/usr/bin/env bash
# build.sh OUTDIR LIBPAGEWIRE_A HEADER_DIR PROGRAM...
# SQLite's own test programs (testfixture sqlite3 sqldiff mptester speedtest1 kvtest threadtest3) with pagewire as their default VFS, in
# OUTDIR/build/proof; with proofstock.so libpagewire.so what a plain tclsh needs for it. SQLite's source is Debian's source package, fetched through private apt folders: no address is written down
# here, the system's settings stay as they are, and nothing of SQLite is kept in this repository. What is built is kept.
set -euo pipefail
[ $# -ge 4 ] || { sed -n 2,5p "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
library=$(realpath "$2")
headers=$(realpath "$3")
shift 3

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
for package in gcc libc6-dev make dpkg-dev tcl tcl-dev zlib1g-dev libsqlite3-tcl; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$out/apt.log"
fi

if [ ! -f "$out/src/configure" ]; then
    parts=$out/apt lists=$out/lists
    rm -rf "$parts" "$lists" "$out/download" "$out/unpacked"
    mkdir -p "$parts" "$lists/partial" "$out/download"
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sed 's/^Types: .*$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$parts/src.sources"
    else
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$parts/src.list"
    fi
    options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$parts" -o "Dir::State::lists=$lists"
        -o APT::Sandbox::User=root -o Acquire::Retries=3)
    apt-get "${options[@]}" update -qq
    (cd "$out/download" && apt-get "${options[@]}" source -qq --download-only sqlite3 >/dev/null) ||
        { echo "SQLite's source package cannot be had from this machine's apt sources" >&2; exit 1; }
    dpkg-source --no-check --skip-patches -x "$out"/download/sqlite3_*.dsc "$out/unpacked" >/dev/null 2>&1
    mv "$out/unpacked" "$out/src"
fi
mkdir -p "$out/build"
cd "$out/build"
[ -f Makefile ] || ../src/configure --enable-all --with-tcl=/usr/lib/tcl8.6 --disable-readline >configure.log 2>&1
# Another profile's library may be older than the programs, which depend on this file too.
mkdir -p proof
[ "$(cat proof/library 2>/dev/null)" = "$library" ] || echo "$library" >proof/library
suite=(make -j"$(nproc)" -f "$here/suite.mk" HERE="$here" LIBRARY="$library" HEADERS="$headers")
{ make sqlite3.c shell.c opcodes.h && "${suite[@]}" "${@/#/proof/}"; } >make.log 2>&1 ||
    { tail -n 30 make.log >&2; exit 1; }
