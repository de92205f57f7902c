//! Small commits.

use super::operations::*;
use super::*;
use crate::bench::rounds::traffic_of;
use crate::bench::subjects::SyncedFile;

impl Scene<'_> {
    pub(super) fn commit(&self) -> anyhow::Result<Row> {
        let mut ours = Insert::new(self.remote.open("commit")?)?;
        let traffic = traffic_of(&mut ours, 8)?;
        let directory = tempfile::tempdir_in(self.directory)?;
        let mut growing = SyncedFile::growing(directory.path(), traffic.sent as usize)?;
        let mut preallocated = SyncedFile::preallocated(directory.path(), traffic.sent as usize)?;
        let mut contestants = vec![
            Contestant::new(self.ours(), ours),
            self.echo(traffic)?,
            Contestant::new("append + fdatasync", move || growing.write()),
            Contestant::new("overwrite + fdatasync", move || preallocated.write()),
        ];
        for local in [Local::WalNormal, Local::WalFull, Local::Delete] {
            let connection = local.open(directory.path(), "commit")?;
            contestants.push(Contestant::new(local.name(), Insert::new(connection)?));
        }
        let aims: &[_] = if self.durable {
            &[]
        } else {
            &[("bare gRPC echo", 1.3)]
        };
        let mut row = self.row(
            format!("commit of one INSERT, {} store", self.remote.store),
            Unit::Microseconds,
            self.sizes.short(),
            contestants,
            aims,
        )?;
        row.calls_aim = Some(1.0);
        if self.durable {
            for (name, index) in [
                ("echo + append + fdatasync", 2),
                ("echo + overwrite + fdatasync", 3),
            ] {
                row.floors.push(Floor {
                    name: name.to_owned(),
                    parts: vec![(1, 1.0), (index, 1.0)],
                    aim: Some(1.3),
                });
            }
        }
        Ok(row)
    }

    /// Commits of a process that does something else in between: its network runtime sleeps, and so does the server's.
    pub(super) fn commit_after_pause(&self) -> anyhow::Result<Row> {
        let mut ours = Insert::new(self.remote.open("pause")?)?;
        let traffic = traffic_of(&mut ours, 8)?;
        let calls = traffic.calls.max(1);
        let request = EchoRequest::new((traffic.sent / calls) as usize, traffic.received as usize);
        let mut client = EchoClient::new(self.echo)?;
        let directory = tempfile::tempdir_in(self.directory)?;
        let local = Local::WalNormal;
        let connection = local.open(directory.path(), "pause")?;
        let contestants = vec![
            Contestant::new(self.ours(), Paused(ours)),
            Contestant::new("bare gRPC echo", Paused(move || client.call(&request))),
            Contestant::new(local.name(), Paused(Insert::new(connection)?)),
        ];
        let shape = Shape {
            warm_up: 1,
            operations: 20,
            ..self.sizes.short()
        };
        let mut row = self.row(
            format!(
                "commit after a pause of {} ms, {} store",
                PAUSE.as_millis(),
                self.remote.store
            ),
            Unit::Microseconds,
            shape,
            contestants,
            &[("bare gRPC echo", 1.3)],
        )?;
        row.calls_aim = Some(1.0);
        Ok(row)
    }
}
