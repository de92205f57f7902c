//! Point reads, opening, scans and sorts.

use rusqlite::Connection;

use super::operations::*;
use super::*;
use crate::bench::rounds::traffic_of;

impl Scene<'_> {
    pub(super) fn warm_read(&self) -> anyhow::Result<Vec<Row>> {
        // SQLite's own cache holds 2 MB: the small table stays in it, the larger one is read through the VFS.
        let sizes = [
            ("1 MB, within SQLite's cache", 10_000),
            ("11 MB, beyond it", 100_000),
        ];
        let mut rows = Vec::new();
        for (text, count) in sizes {
            let name = format!("warm-read-{count}");
            let remote = self.remote.open(&name)?;
            fill(&remote, count)?;
            let mut contestants = vec![Contestant::new(self.ours(), PointRead::new(remote, count))];
            for local in [Local::WalNormal, Local::Delete] {
                let connection = local.open(self.directory, &name)?;
                fill(&connection, count)?;
                let read = PointRead::new(connection, count);
                contestants.push(Contestant::new(local.name(), read));
            }
            let shape = Shape {
                warm_up: self.sizes.operations,
                operations: self.sizes.operations * 5,
                ..self.sizes.short()
            };
            let mut row = self.row(
                format!("warm point read, table of {text}"),
                Unit::Microseconds,
                shape,
                contestants,
                &[("local", 1.0)],
            )?;
            row.calls_aim = Some(0.0);
            rows.push(row);
        }
        Ok(rows)
    }

    pub(super) fn cold_read(&self) -> anyhow::Result<Row> {
        let count = self.sizes.point_rows;
        self.fill_once("point", count)?;
        let mut ours = ColdRead::new(self.opener("point"), count);
        // The first ones leave a list of hot pages.
        traffic_of(&mut ours, 4)?;
        let traffic = traffic_of(&mut ours, 4)?;
        let local = Local::WalNormal;
        let contestants = vec![
            Contestant::new(self.ours(), ours),
            self.echo(traffic)?,
            Contestant::new(
                format!("{}, new connection", local.name()),
                ColdRead::new(self.local_opener(local, "point"), count),
            ),
        ];
        let mut row = self.row(
            format!(
                "cold point read, {count} rows, schema loaded, new client, {} store",
                self.remote.store
            ),
            Unit::Microseconds,
            self.sizes.connecting(),
            contestants,
            &[],
        )?;
        row.calls_aim = Some(2.0);
        Ok(row)
    }

    pub(super) fn open(&self) -> anyhow::Result<Row> {
        self.fill_once("point", self.sizes.point_rows)?;
        let mut ours = OpenAndAsk::new(self.opener("point"));
        let traffic = traffic_of(&mut ours, 4)?;
        let (endpoint, calls) = (self.echo.to_owned(), traffic.calls.max(1));
        let request = EchoRequest::new(
            (traffic.sent / calls) as usize,
            (traffic.received / calls) as usize,
        );
        let local = Local::WalNormal;
        let contestants = vec![
            Contestant::new(self.ours(), ours),
            Contestant::new(
                format!("connect + bare gRPC echo, {calls} calls"),
                move || {
                    let mut client = EchoClient::new(&endpoint)?;
                    (0..calls).try_for_each(|_| client.call(&request))
                },
            ),
            Contestant::new(
                local.name(),
                OpenAndAsk::new(self.local_opener(local, "point")),
            ),
        ];
        let mut row = self.row(
            format!(
                "open + first query, new client, {} store",
                self.remote.store
            ),
            Unit::Microseconds,
            self.sizes.connecting(),
            contestants,
            &[],
        )?;
        row.calls_aim = Some(3.0);
        Ok(row)
    }

    pub(super) fn cold_scan(&self) -> anyhow::Result<Row> {
        let rows = self.sizes.table_rows();
        self.fill_once("scan", rows)?;
        let mut ours = ColdScan::new(self.opener("scan"));
        let traffic = traffic_of(&mut ours, 1)?;
        let local = Local::WalNormal;
        let contestants = vec![
            Contestant::new(self.ours(), ours),
            self.echo(traffic)?,
            Contestant::new(
                format!("{}, new connection", local.name()),
                ColdScan::new(self.local_opener(local, "scan")),
            ),
        ];
        self.row(
            self.of_table("cold scan, new client"),
            self.throughput(),
            self.sizes.long(),
            contestants,
            &[("local", 2.0)],
        )
    }

    pub(super) fn warm_scan(&self) -> anyhow::Result<Row> {
        self.on_warm_table("warm scan", &[("local", 1.0)], |connection| {
            Contestant::new("", move || ask(&connection, "SELECT sum(length(v)) FROM t"))
        })
    }

    /// DISTINCT and ORDER BY, and temporary tables.
    pub(super) fn distinct(&self) -> anyhow::Result<Vec<Row>> {
        let query = "SELECT count(*) FROM (SELECT DISTINCT v FROM t ORDER BY v DESC)";
        let aims = [("local", 1.0)];
        Ok(vec![
            self.on_warm_table("DISTINCT and ORDER BY", &aims, |connection| {
                Contestant::new("", move || ask(&connection, query))
            })?,
            self.on_warm_table("temporary table and index", &aims, |connection| {
                Contestant::new("", TemporaryTable(connection))
            })?,
        ])
    }

    /// A query over the whole table by connections that have read all of it.
    fn on_warm_table(
        &self,
        operation: &str,
        aims: &[(&str, f64)],
        contestant: impl Fn(Connection) -> Contestant,
    ) -> anyhow::Result<Row> {
        let bytes = self.sizes.warm_bytes;
        self.fill_once("warm", bytes / ROW_BYTES)?;
        let local = Local::WalNormal;
        let mut contestants = Vec::new();
        for (name, connection) in [
            (self.ours(), self.remote.open("warm")?),
            (
                local.name().to_owned(),
                local.open(self.directory, &self.local_name("warm"))?,
            ),
        ] {
            ask(&connection, "SELECT sum(length(v)) FROM t")?;
            let mut one = contestant(connection);
            one.name = name;
            contestants.push(one);
        }
        let mut row = self.row(
            format!(
                "{operation}, {} MiB, {} store",
                bytes >> 20,
                self.remote.store
            ),
            Unit::Throughput { bytes },
            self.sizes.long(),
            contestants,
            aims,
        )?;
        row.calls_aim = Some(0.0);
        Ok(row)
    }
}
