//! Bulk loads and index builds.

use super::operations::*;
use super::*;
use crate::bench::rounds::traffic_of;

/// `PAGEWIRE_STAGE_BYTES` as it is set by default.
const STAGE_BYTES: u64 = 64 << 20;

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
        // One COMMIT. Beyond the bound of staging the pages go ahead of it in calls of 8 MiB that nobody waits for, but for the one
        // that is under way when COMMIT begins: what was staged counts only once it is answered. A store that is slower than SQLite is
        // waited for more often, since only so much may lie unsent; the aim does not allow for that.
        let is_staged = bytes > STAGE_BYTES;
        row.calls_aim = Some(if is_staged { 2.0 } else { 1.0 });
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
