//! What was chosen for the calls of the VFS, beside what it could have been: who drives the runtime, what carries the bytes, how
//! HTTP/2's windows are set.
//!
//! An echo at each end, neither SQLite nor a store: what is chosen is the first contestant of each row. The echo's client has not what the
//! VFS has against small packets (`sqlite_vfs/src/client/gather.rs`, `body.rs`), so Nagle's algorithm meets all of them here.

use super::*;
use crate::bench::callers::{ServedBy, Tuning, Worker};
use crate::bench::child::ServerProcess;
use crate::bench::delay;

/// A commit of one row, and its answer.
const SMALL: Traffic = Traffic {
    calls: 1,
    sent: 8 << 10,
    received: 16,
};
/// Bytes of an answer of a scan, and how many are asked for ahead of the reader.
const LARGE_BYTES: usize = 512 << 10;
const AT_ONCE: usize = 8;
/// Milliseconds that are added to a round trip.
const ADDED_MS: [u64; 2] = [0, 5];
/// What HTTP/2 begins with (RFC 9113, section 6.5.2).
const DEFAULT_WINDOW_BYTES: u32 = 65_535;
const DEFAULT_FRAME_BYTES: u32 = 16 << 10;

impl Scene<'_> {
    /// A row for runtimes and sockets, one for Nagle's algorithm, and one of windows for each distance.
    pub(super) fn calls(&self) -> anyhow::Result<Vec<Row>> {
        // Whatever the other workloads use, here it is TCP beside a unix socket. A path of a socket is short: not in `self.directory`.
        let sockets = tempfile::Builder::new().prefix("pagewire-").tempdir()?;
        let tcp = ServerProcess::echo(None)?;
        let unix = ServerProcess::echo(Some(sockets.path()))?;
        let nagle = ServerProcess::echo_with_nagle()?;
        let mut rows = vec![
            self.runtimes(&tcp.endpoint, &unix.endpoint)?,
            self.nagle(&tcp.endpoint, &nagle.endpoint)?,
        ];
        for added in ADDED_MS {
            rows.push(self.windows(&tcp.endpoint, added)?);
        }
        Ok(rows)
    }

    fn runtimes(&self, tcp: &str, unix: &str) -> anyhow::Result<Row> {
        let mut worker = Worker::start(tcp)?;
        let request = small();
        let contestants = vec![
            small_calls("calling thread drives, TCP", EchoClient::new(tcp)?),
            Contestant::new("worker thread behind a channel", move || {
                worker.call(&request)
            }),
            small_calls("runtime of two threads", EchoClient::with_threads(tcp)?),
            small_calls("unix socket", EchoClient::new(unix)?),
            small_calls(
                "in-process pipe to two threads",
                EchoClient::in_process(ServedBy::Threads)?,
            ),
            small_calls(
                "in-process pipe, caller serves",
                EchoClient::in_process(ServedBy::Caller)?,
            ),
        ];
        self.choice(
            "call with 8 KiB, calling thread drives, TCP".to_owned(),
            Unit::Microseconds,
            self.sizes.short(),
            contestants,
            SMALL,
        )
    }

    /// A row of its own: with Nagle's algorithm a call may wait for a delayed acknowledgement, 40 ms.
    fn nagle(&self, nodelay: &str, nagle: &str) -> anyhow::Result<Row> {
        let tuning = Tuning {
            nodelay: false,
            ..Tuning::AS_IT_IS
        };
        let contestants = vec![
            small_calls("TCP, nodelay", EchoClient::new(nodelay)?),
            small_calls("Nagle at the client", EchoClient::tuned(nodelay, tuning)?),
            small_calls("Nagle at both ends", EchoClient::tuned(nagle, tuning)?),
        ];
        self.choice(
            "call with 8 KiB, TCP, nodelay".to_owned(),
            Unit::Microseconds,
            self.sizes.batches(),
            contestants,
            SMALL,
        )
    }

    fn windows(&self, tcp: &str, added_ms: u64) -> anyhow::Result<Row> {
        let endpoint = delay::proxy(tcp, Duration::from_millis(added_ms))?;
        let of = |window_bytes| Tuning {
            window_bytes,
            ..Tuning::AS_IT_IS
        };
        let small_frames = Tuning {
            frame_bytes: DEFAULT_FRAME_BYTES,
            ..Tuning::AS_IT_IS
        };
        let answers = self.sizes.answers;
        let contestants = [
            ("windows of 16 MiB", Tuning::AS_IT_IS),
            ("windows of 1 MiB", of(1 << 20)),
            ("windows of 64 KiB", of(DEFAULT_WINDOW_BYTES)),
            ("16 MiB, frames of 16 KiB", small_frames),
        ]
        .into_iter()
        .map(|(name, tuning)| {
            let mut client = EchoClient::tuned(&endpoint, tuning)?;
            // Connected before it is timed.
            client.call(&small())?;
            let request = EchoRequest::new(0, LARGE_BYTES);
            Ok(Contestant::new(name, move || {
                client.call_many(&request, answers, AT_ONCE)
            }))
        })
        .collect::<anyhow::Result<_>>()?;
        let bytes = (answers * LARGE_BYTES) as u64;
        self.choice(
            format!("{answers} answers of 512 KiB, {AT_ONCE} at once, {added_ms} ms added, windows of 16 MiB"),
            Unit::Throughput { bytes },
            self.sizes.long(),
            contestants,
            Traffic {
                calls: answers as u64,
                sent: 4 * answers as u64,
                received: bytes,
            },
        )
    }

    fn choice(
        &self,
        operation: String,
        unit: Unit,
        shape: Shape,
        contestants: Vec<Contestant>,
        traffic: Traffic,
    ) -> anyhow::Result<Row> {
        let mut row = self.row(operation, unit, shape, contestants, &[])?;
        row.counted = Counted::Known(traffic);
        Ok(row)
    }
}

fn small() -> EchoRequest {
    EchoRequest::new(SMALL.sent as usize, SMALL.received as usize)
}

fn small_calls(name: &str, mut client: EchoClient) -> Contestant {
    let request = small();
    Contestant::new(name, move || client.call(&request))
}
