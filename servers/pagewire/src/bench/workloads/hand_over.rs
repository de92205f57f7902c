//! Two clients that write to one database at once: the lease goes from one to the other.

use super::tenants::Tenants;
use super::*;

/// Eager writers, each a process as far as the server can tell.
const WRITERS: u64 = 2;

impl Scene<'_> {
    /// Two writers against one alone that makes as many commits, and against two on a local file.
    pub(super) fn hand_over(&self) -> anyhow::Result<Row> {
        let commits = self.sizes.hand_over_commits;
        let total = commits * WRITERS;
        let both = (0..WRITERS)
            .map(|_| self.remote.open_cold("hand-over"))
            .collect::<anyhow::Result<_>>()?;
        let one = vec![self.remote.open_cold("hand-over-alone")?];
        let name = self.local_name("hand-over");
        let mut ours = Tenants::new(both, commits)?;
        let echo = self.echo_of(&mut ours, 1)?;
        let mut contestants = vec![
            Contestant::new(format!("{}, {WRITERS} writers", self.ours()), ours),
            echo,
            Contestant::new(
                format!("{}, one writer", self.ours()),
                Tenants::new(one, total)?,
            ),
        ];
        for local in [Local::WalNormal, Local::WalFull] {
            let files = (0..WRITERS)
                .map(|_| local.open(self.directory, &name))
                .collect::<anyhow::Result<_>>()?;
            contestants.push(Contestant::new(
                format!("{}, {WRITERS} threads", local.name()),
                Tenants::new(files, commits)?,
            ));
        }
        // A hand-over takes no longer than a commit: with one before each commit it would be twice the time.
        let alone = format!("{}, one", self.ours());
        self.row(
            format!(
                "{WRITERS} clients write to one database at once, {} store",
                self.remote.store
            ),
            Unit::Rate { operations: total },
            self.sizes.long(),
            contestants,
            &[(alone.as_str(), 2.0)],
        )
    }
}
