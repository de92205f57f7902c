# The statically linked sqlite3 shell with pagewire as its default VFS:
#   docker build -f static_dev.Dockerfile -t pagewire-sqlite3 .
#   docker run --rm -it --network host pagewire-sqlite3 app.db
# Everything is built by tests/static_shell.sh, which the tests run too.
FROM rust:1-bookworm AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends dpkg-dev tcl
WORKDIR /pagewire
COPY . .
RUN cargo build --release -p pagewire-vfs && tests/static_shell.sh /out target/release/libpagewire.a sqlite_vfs/include

FROM debian:bookworm-slim
COPY --from=build /out/sqlite3 /usr/local/bin/sqlite3
ENTRYPOINT ["/usr/local/bin/sqlite3"]
