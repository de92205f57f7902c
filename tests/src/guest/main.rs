//! A host program of SQLite with the VFS in it: what tests start, drive and kill.
//!
//! `pagewire-guest transcript plain|pagewire LIBRARY STEPS` plays a transcript, `drive` takes statements from its standard
//! input, `increment URI TABLE TIMES` adds one to a row so many times, `crowd URI THREADS BUSY_TIMEOUT_MS MS` writes on so many threads, `torture ...` is a client of the torture program.

mod drive;
mod torture;
mod transcript;

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        // The library is linked in; the argument is there because every transcript client gets it.
        ["transcript", mode, _library, steps] => {
            transcript::play(*mode == "pagewire", steps.as_ref())
        }
        ["drive"] => drive::serve(),
        ["increment", uri, times] => drive::increment(uri, times.parse().context("TIMES")?),
        ["crowd", uri, threads, busy_timeout_ms, ms] => drive::crowd(
            uri,
            threads.parse().context("THREADS")?,
            busy_timeout_ms.parse().context("BUSY_TIMEOUT_MS")?,
            ms.parse().context("MS")?,
        ),
        ["torture", rest @ ..] => torture::run(rest),
        _ => bail!("usage: pagewire-guest transcript|drive|increment|crowd|torture ..."),
    }
}
