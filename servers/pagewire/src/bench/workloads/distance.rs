//! What a long way to the server costs: the same operations through a proxy that adds a round trip.

use super::mixed::{MIX_A, MIX_E, Mix, Ycsb};
use super::new_order::NewOrder;
use super::operations::{BulkLoad, ColdIndex, ColdRead, ColdScan, Insert, OpenAndAsk};
use super::*;
use crate::bench::delay;
use crate::bench::rounds::{Operation, traffic_of};

/// Milliseconds that are added to a round trip.
const ADDED_MS: [u64; 5] = [0, 1, 5, 20, 100];
/// Bytes of what is loaded and indexed: most of the time is the way, and not the work.
const TABLE_BYTES: u64 = 8 << 20;
/// Records of the YCSB mixes: they fit into the cache, so that what is asked for over the way is what is written.
const RECORDS: u64 = 10_000;
/// Operations of a mix that are timed together: 20 make the mixes of 5 in 100 whole.
const BATCH: u64 = 20;

/// What all distances of an operation have in common.
struct Distant<'a> {
    operation: &'a str,
    unit: Unit,
    shape: Shape,
    calls_aim: Option<f64>,
    /// Turns by which the echo learns its calls and bytes.
    turns: u64,
}

impl Scene<'_> {
    /// One row for each operation and distance, against bare calls over the same way; scans against those over a shorter one.
    pub(super) fn distance(&self) -> anyhow::Result<Vec<Row>> {
        if self.remote.endpoint.starts_with("unix:") {
            // There is no long way to a unix socket.
            return Ok(Vec::new());
        }
        self.fill_once("point", self.sizes.point_rows)?;
        self.fill_once("scan", self.sizes.table_rows())?;
        let short = |operation, calls_aim| Distant {
            operation,
            unit: Unit::Microseconds,
            shape: self.sizes.connecting(),
            calls_aim: Some(calls_aim),
            turns: 4,
        };
        let mut rows = self.distant(&short("commit of one INSERT", 1.0), |remote, _| {
            Insert::new(remote.open("distant-commit")?)
        })?;
        let count = self.sizes.point_rows;
        let read = format!("cold point read, {count} rows");
        rows.extend(self.distant(&short(&read, 2.0), |remote, _| {
            let opener = Opener::Remote(remote, "point".to_owned());
            Ok(ColdRead::new(opener, count))
        })?);
        rows.extend(
            self.distant(&short("open + first query", 3.0), |remote, _| {
                Ok(OpenAndAsk::new(Opener::Remote(remote, "point".to_owned())))
            })?,
        );
        rows.extend(self.distant_scans()?);
        rows.extend(self.distant_writes()?);
        Ok(rows)
    }

    /// Loads, indexes and transactions by a client that holds the lease, each distance with a database of its own.
    fn distant_writes(&self) -> anyhow::Result<Vec<Row>> {
        let long = |operation, calls_aim| Distant {
            operation,
            unit: Unit::Throughput { bytes: TABLE_BYTES },
            shape: Shape {
                warm_up: 0,
                operations: 1,
                ..self.sizes.distant()
            },
            calls_aim,
            turns: 1,
        };
        let size = TABLE_BYTES >> 20;
        let load = format!("bulk load in one transaction, {size} MiB");
        let mut rows = self.distant(&long(&load, Some(1.0)), |remote, added| {
            let opener = Opener::Remote(remote, format!("distant-bulk-{added}"));
            Ok(BulkLoad::new(opener, TABLE_BYTES))
        })?;
        let index = format!("index build, {size} MiB, new client");
        rows.extend(self.distant(&long(&index, None), |remote, added| {
            let name = format!("distant-index-{added}");
            fill(&self.remote.open_cold(&name)?, TABLE_BYTES / ROW_BYTES)?;
            Ok(ColdIndex::new(Opener::Remote(remote, name)))
        })?);
        for mix in [MIX_A, MIX_E] {
            let operation = format!("YCSB {}, {RECORDS} records", mix.name);
            let distant = Distant {
                operation: &operation,
                unit: Unit::Rate { operations: BATCH },
                shape: Shape {
                    operations: 1,
                    ..self.sizes.distant()
                },
                // A commit each, and a read costs none.
                calls_aim: Some((BATCH * mix.others) as f64 / 100.0),
                turns: 2,
            };
            rows.extend(self.distant(&distant, |remote, added| ycsb(&remote, added, mix))?);
        }
        let order = Distant {
            operation: "new order of TPC-C",
            unit: Unit::Microseconds,
            shape: self.sizes.distant(),
            calls_aim: Some(1.0),
            turns: 4,
        };
        rows.extend(self.distant(&order, |remote, added| {
            NewOrder::new(remote.open(&format!("distant-order-{added}"))?)
        })?);
        Ok(rows)
    }

    fn at(&self, added_ms: u64) -> anyhow::Result<Remote> {
        Ok(Remote {
            store: self.remote.store,
            endpoint: delay::proxy(&self.remote.endpoint, Duration::from_millis(added_ms))?,
        })
    }

    /// A row for each distance; `make` has the server at that distance, and the milliseconds.
    fn distant<O: Operation + 'static>(
        &self,
        what: &Distant<'_>,
        make: impl Fn(Remote, u64) -> anyhow::Result<O>,
    ) -> anyhow::Result<Vec<Row>> {
        let one = |added_ms: u64| {
            let mut ours = make(self.at(added_ms)?, added_ms)?;
            let traffic = traffic_of(&mut ours, what.turns)?;
            let echo = delay::proxy(self.echo, Duration::from_millis(added_ms))?;
            let contestants = vec![
                Contestant::new(self.ours(), ours),
                self.echo_at(&echo, traffic)?,
            ];
            let mut row = self.row(
                format!("{}, {added_ms} ms added", what.operation),
                what.unit,
                fewer_if_far(what.shape, added_ms),
                contestants,
                &[],
            )?;
            row.calls_aim = what.calls_aim;
            Ok(row)
        };
        ADDED_MS.into_iter().map(one).collect()
    }

    fn distant_scans(&self) -> anyhow::Result<Vec<Row>> {
        let at = |added_ms: u64| -> anyhow::Result<Contestant> {
            let opener = Opener::Remote(self.at(added_ms)?, "scan".to_owned());
            Ok(Contestant::new(
                format!("{}, {added_ms} ms added", self.ours()),
                ColdScan::new(opener),
            ))
        };
        let nearer = format!("{}, 5 ms", self.ours());
        let aim = [(nearer.as_str(), 1.5)];
        // It is one for 100 MB: a small table is over before the window is wide.
        let is_full = self.sizes.table_bytes >= Sizes::FULL.table_bytes;
        let aim = match is_full {
            true => &aim[..],
            false => &[],
        };
        let aims = [&[], &[], aim, &[]];
        ADDED_MS
            .windows(2)
            .zip(aims)
            .map(|(pair, aims)| {
                let mut row = self.row(
                    self.of_table(&format!("cold scan, {} ms added", pair[1])),
                    self.throughput(),
                    self.sizes.long(),
                    vec![at(pair[1])?, at(pair[0])?],
                    aims,
                )?;
                row.throughput_aim = (is_full && pair[1] == 5).then_some(100.0);
                Ok(row)
            })
            .collect()
    }
}

/// A far server takes seconds for a round, in which the way is nearly all: few of them tell as much.
fn fewer_if_far(shape: Shape, added_ms: u64) -> Shape {
    let most = if added_ms >= 100 { 7 } else { usize::MAX };
    Shape {
        rounds: shape.rounds.min(most),
        ..shape
    }
}

fn ycsb(remote: &Remote, added_ms: u64, mix: Mix) -> anyhow::Result<Ycsb> {
    let name = format!("distant-ycsb-{}-{added_ms}", &mix.name[..1]);
    Ycsb::new(remote.open(&name)?, mix, RECORDS, BATCH)
}
