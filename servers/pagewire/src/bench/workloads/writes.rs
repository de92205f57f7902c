//! Bulk loads and index builds.

use super::operations::*;
use super::*;
use crate::bench::rounds::traffic_of;

impl Scene<'_> {
    pub(super) fn bulk_load(&self) -> anyhow::Result<Row> {
        let bytes = self.sizes.table_bytes;
        let mut ours = BulkLoad::new(self.opener("bulk"), bytes);
        let traffic = traffic_of(&mut ours, 1)?;
        let mut contestants = vec![Contestant::new(self.ours(), ours)];
        // The bytes of one call, in messages of the size that the protocol uses.
        contestants.push(self.echo(Traffic {
            calls: traffic.sent.div_ceil(1 << 20).max(1),
            ..traffic
        })?);
        for local in [Local::WalNormal, Local::WalFull, Local::Delete] {
            let opener = self.local_opener(local, "bulk");
            contestants.push(Contestant::new(local.name(), BulkLoad::new(opener, bytes)));
        }
        let mut row = self.row(
            self.of_table("bulk load in one transaction"),
            self.throughput(),
            self.sizes.long(),
            contestants,
            &[("local", if self.durable { 1.3 } else { 1.0 })],
        )?;
        row.calls_aim = Some(1.0);
        Ok(row)
    }

    pub(super) fn index(&self) -> anyhow::Result<Row> {
        let rows = self.sizes.table_rows();
        let remote = self.remote.open("index")?;
        fill(&remote, rows)?;
        let mut ours = BuildIndex(remote);
        let echo = self.echo_of(&mut ours, 1)?;
        let mut contestants = vec![Contestant::new(self.ours(), ours), echo];
        for local in self.journal_modes() {
            let connection = local.open(self.directory, &self.local_name("index"))?;
            fill(&connection, rows)?;
            contestants.push(Contestant::new(local.name(), BuildIndex(connection)));
        }
        self.row(
            self.of_table("index build"),
            self.throughput(),
            self.sizes.long(),
            contestants,
            &[],
        )
    }
}
