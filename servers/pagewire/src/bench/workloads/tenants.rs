//! Many tenants that write at once, each a database and a client of its own: what group commit is for.

use std::sync::Barrier;

use rusqlite::Connection;

use super::operations::Insert;
use super::*;
use crate::bench::rounds::Operation;

const TENANTS: usize = 64;

impl Scene<'_> {
    /// 64 tenants against one that makes as many commits, and against as many local files.
    pub(super) fn tenants(&self) -> anyhow::Result<Row> {
        let commits = self.sizes.tenant_commits;
        let all = (0..TENANTS)
            .map(|tenant| self.remote.open_cold(&format!("tenant-{tenant}")))
            .collect::<anyhow::Result<_>>()?;
        let one = vec![self.remote.open_cold("tenant")?];
        let total = commits * TENANTS as u64;
        let mut ours = Tenants::new(all, commits)?;
        let echo = self.echo_of(&mut ours, 1)?;
        let mut contestants = vec![
            Contestant::new(format!("{}, {TENANTS} tenants", self.ours()), ours),
            echo,
            Contestant::new(
                format!("{}, one tenant", self.ours()),
                Tenants::new(one, total)?,
            ),
        ];
        for local in [Local::WalNormal, Local::WalFull] {
            let files = (0..TENANTS)
                .map(|tenant| {
                    let name = self.local_name(&format!("tenant-{tenant}"));
                    local.open(self.directory, &name)
                })
                .collect::<anyhow::Result<_>>()?;
            contestants.push(Contestant::new(
                format!("{}, {TENANTS} files and threads", local.name()),
                Tenants::new(files, commits)?,
            ));
        }
        let one_of_ours = format!("{}, one", self.ours());
        let fifth: &[_] = &[(one_of_ours.as_str(), 0.2)];
        let mut row = self.row(
            format!(
                "{TENANTS} tenants commit at once, {} store",
                self.remote.store
            ),
            Unit::Rate { operations: total },
            self.sizes.long(),
            contestants,
            // Where no disk is waited for there is nothing to share.
            if self.durable { fifth } else { &[] },
        )?;
        row.calls_aim = Some(total as f64);
        Ok(row)
    }
}

/// Connections that write at once, each in a thread of its own.
pub struct Tenants {
    inserts: Vec<Insert>,
    commits: u64,
}

impl Tenants {
    /// So many commits by each.
    pub fn new(connections: Vec<Connection>, commits: u64) -> anyhow::Result<Self> {
        let inserts = connections
            .into_iter()
            .map(Insert::new)
            .collect::<Result<_, _>>()?;
        Ok(Self { inserts, commits })
    }
}

impl Operation for Tenants {
    fn run(&mut self) -> anyhow::Result<()> {
        let (commits, begin) = (self.commits, Barrier::new(self.inserts.len()));
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .inserts
                .iter_mut()
                .map(|insert| {
                    let begin = &begin;
                    scope.spawn(move || {
                        begin.wait();
                        (0..commits).try_for_each(|_| insert.run())
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("the thread of a tenant panicked"))?
            })
        })
    }
}
