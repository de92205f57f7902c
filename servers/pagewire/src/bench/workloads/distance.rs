//! What a long way to the server costs: the same operations through a proxy that adds a round trip.

use super::operations::{ColdRead, ColdScan, Insert, OpenAndAsk};
use super::*;
use crate::bench::delay;
use crate::bench::rounds::{Operation, traffic_of};

/// Milliseconds that are added to a round trip.
const ADDED_MS: [u64; 5] = [0, 1, 5, 20, 100];

impl Scene<'_> {
    /// One row for each operation and distance, against bare calls over the same way; scans against those over a shorter one.
    pub(super) fn distance(&self) -> anyhow::Result<Vec<Row>> {
        if self.remote.endpoint.starts_with("unix:") {
            // There is no long way to a unix socket.
            return Ok(Vec::new());
        }
        self.fill_once("point", self.sizes.point_rows)?;
        self.fill_once("scan", self.sizes.table_rows())?;
        let mut rows = Vec::new();
        for added in ADDED_MS {
            rows.push(self.distant(added, "commit of one INSERT", 1.0, |remote| {
                Insert::new(remote.open("distant-commit")?)
            })?);
        }
        let count = self.sizes.point_rows;
        for added in ADDED_MS {
            let operation = format!("cold point read, {count} rows");
            rows.push(self.distant(added, &operation, 3.0, |remote| {
                let opener = Opener::Remote(remote, "point".to_owned());
                Ok(ColdRead::new(opener, count))
            })?);
        }
        for added in ADDED_MS {
            rows.push(self.distant(added, "open + first query", 3.0, |remote| {
                Ok(OpenAndAsk::new(Opener::Remote(remote, "point".to_owned())))
            })?);
        }
        rows.extend(self.distant_scans()?);
        Ok(rows)
    }

    fn at(&self, added_ms: u64) -> anyhow::Result<Remote> {
        Ok(Remote {
            store: self.remote.store,
            endpoint: delay::proxy(&self.remote.endpoint, Duration::from_millis(added_ms))?,
        })
    }

    fn distant<O: Operation + 'static>(
        &self,
        added_ms: u64,
        operation: &str,
        calls_aim: f64,
        make: impl Fn(Remote) -> anyhow::Result<O>,
    ) -> anyhow::Result<Row> {
        let mut ours = make(self.at(added_ms)?)?;
        let traffic = traffic_of(&mut ours, 4)?;
        let echo = delay::proxy(self.echo, Duration::from_millis(added_ms))?;
        let contestants = vec![
            Contestant::new(self.ours(), ours),
            self.echo_at(&echo, traffic)?,
        ];
        let mut row = self.row(
            format!("{operation}, {added_ms} ms added"),
            Unit::Microseconds,
            self.sizes.connecting(),
            contestants,
            &[],
        )?;
        row.calls_aim = Some(calls_aim);
        Ok(row)
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
