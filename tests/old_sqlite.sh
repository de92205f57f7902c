#!/usr/bin/env bash
# Builds the oldest SQLite that the VFS supports, 3.31.0, as a shared library that Debian's Python takes in place of its own.
# The source is the one bundled in a crate of 2020; Debian's archive has none so old.
# old_sqlite.sh DIRECTORY
set -euo pipefail
directory=$1
[ -f "$directory/libsqlite3.so.0" ] && exit 0
mkdir -p "$directory/src"
: >"$directory/src/lib.rs"
cat >"$directory/Cargo.toml" <<'END'
[package]
name = "old-sqlite"
version = "0.0.0"
edition = "2021"
[dependencies]
libsqlite3-sys = { version = "=0.17.3", features = ["bundled"] }
[workspace]
END
source=$(cargo metadata --quiet --manifest-path "$directory/Cargo.toml" --format-version 1 | /usr/bin/python3 -c '
import json, pathlib, sys
packages = json.load(sys.stdin)["packages"]
[manifest] = [package["manifest_path"] for package in packages if package["name"] == "libsqlite3-sys"]
print(pathlib.Path(manifest).parent / "sqlite3")')
grep -q '#define SQLITE_VERSION *"3.31.0"' "$source/sqlite3.h"
gcc -O1 -fPIC -shared -Wl,-soname,libsqlite3.so.0 -DSQLITE_THREADSAFE=1 \
    -DSQLITE_ENABLE_FTS5 -DSQLITE_ENABLE_RTREE -DSQLITE_ENABLE_JSON1 -DSQLITE_ENABLE_DESERIALIZE \
    "$source/sqlite3.c" -o "$directory/libsqlite3.so.0.part" -ldl -lpthread -lm
mv "$directory/libsqlite3.so.0.part" "$directory/libsqlite3.so.0"
