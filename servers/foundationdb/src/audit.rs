//! What is wrong in the cluster, for tests: rows that nothing reads, sums that do not add up, ends that lead nowhere.

use std::sync::Arc;

use pagewire_proto::{DatabaseId, Version};
use pagewire_server::store::StoreError;

use crate::Inner;
use crate::collect::body_len;
use crate::engine::{Fail, Read, Txn, transact};
use crate::keys::{Key, OF_A_DATABASE, Sum, serial_of};
use crate::values::{Database, Left, Record, Removed, Segment};

impl Inner {
    /// A sentence for each thing that is wrong; nothing may be under way meanwhile.
    pub(crate) async fn audit(&self) -> Result<Vec<String>, StoreError> {
        let heads = transact!(self.engine, |txn| {
            txn.keys(&txn.space.heads(), usize::MAX, Read::Loose).await
        })?;
        let mut wrong = Vec::new();
        for key in heads {
            if let Key::Head(database) = key {
                wrong.extend(self.audit_database(database).await?);
            }
        }
        let post = transact!(self.engine, |txn| {
            let mut gone = Vec::new();
            for key in txn.keys(&txn.space.post(), usize::MAX, Read::Loose).await? {
                if let Key::Bell(server) | Key::Mail(server, ..) = key
                    && txn.get(&Key::Server(server), Read::Loose).await?.is_none()
                {
                    gone.push("post of a server that is gone".to_owned());
                }
            }
            Ok(gone)
        })?;
        wrong.extend(post);
        let removed = transact!(self.engine, |txn| {
            txn.keys(&txn.space.removed(), usize::MAX, Read::Loose)
                .await
        })?;
        for key in removed {
            if let Key::Removed(database) = key {
                wrong.extend(self.audit_removed(database).await?);
            }
        }
        Ok(wrong)
    }

    /// A removed database is there only because something stands on it, and that is where it says it is.
    async fn audit_removed(&self, database: DatabaseId) -> Result<Vec<String>, StoreError> {
        transact!(self.engine, |txn| {
            let mut wrong = Vec::new();
            let mut say = |what: &str| wrong.push(format!("removed database {database}: {what}"));
            let children = txn.space.children(database);
            let children = txn.keys(&children, usize::MAX, Read::Loose).await?;
            let row = txn.row(&Key::Removed(database), Read::Loose, Removed::decode);
            if row.await?.is_none_or(|row| row.left == Left::Nothing) {
                for kind in OF_A_DATABASE {
                    let range = txn.space.of(kind, database);
                    if !txn.scan(&range, 1, false, Read::Loose).await?.is_empty() {
                        say(&format!("rows ({kind}) of it are left"));
                    }
                }
            } else if children.is_empty() {
                say("nothing stands on it, and it is still there");
            }
            for key in children {
                if let Key::Child(_, _, child, first) = key
                    && txn
                        .get(&Key::Segment(child, first), Read::Loose)
                        .await?
                        .is_none()
                {
                    say("what is to stand on it is gone");
                }
            }
            for first in txn.unread_segments(database).await? {
                say(&format!(
                    "nothing reads its segment from version {first} on"
                ));
            }
            let records = txn.space.records(database);
            if txn.first(&records, Read::Loose).await?.is_some() {
                say("a version has a record");
            }
            Ok(wrong)
        })
    }

    async fn audit_database(&self, database: DatabaseId) -> Result<Vec<String>, StoreError> {
        let stagings: Vec<_> = self.stagings.lock().values().map(Arc::clone).collect();
        let mut live = Vec::new();
        for staging in stagings {
            let staging = staging.lock().await;
            let ahead = staging.ahead.as_ref();
            live.extend(ahead.map(|ahead| (staging.database, ahead.serial)));
        }
        transact!(self.engine, |txn| {
            let mut wrong = Vec::new();
            let mut say = |what: String| wrong.push(format!("database {database}: {what}"));
            let row = txn.row(&Key::Head(database), Read::Loose, Database::decode);
            let Some(row) = row.await? else {
                return Ok(wrong);
            };
            let records = txn.space.records(database);
            let records = txn.scan(&records, usize::MAX, false, Read::Loose).await?;
            let versions = txn.sum(&Key::Sum(database, Sum::Versions)).await?;
            if versions != records.len() as i64 {
                say(format!(
                    "{versions} versions counted, {} there",
                    records.len()
                ));
            }
            match records.last() {
                None if row.head.snapshot.version == Version::ZERO => {}
                Some(last) if txn.decode(last, Record::decode)?.head == row.head => {}
                _ => say("the newest record is not that of the head".to_owned()),
            }
            let pages = txn.space.pages(database);
            let pages = txn.scan(&pages, usize::MAX, false, Read::Loose).await?;
            let attempts = txn.attempts(database, Read::Loose).await?;
            let mut counting = Vec::new();
            for row in &pages {
                let Key::Page(_, _, _, layer) = txn.key(row)? else {
                    continue;
                };
                if serial_of(layer).is_none_or(|serial| !attempts.contains_key(&serial)) {
                    counting.push(row);
                }
            }
            let bytes: u64 = counting.iter().map(|row| body_len(row)).sum();
            let counted = (
                txn.sum(&Key::Sum(database, Sum::Pages)).await?,
                txn.sum(&Key::Sum(database, Sum::Bytes)).await?,
            );
            if attempts
                .keys()
                .any(|serial| !live.contains(&(database, *serial)))
            {
                say("what somebody wrote ahead was left".to_owned());
            }
            if counted != (counting.len() as i64, bytes as i64) {
                let there = (counting.len(), bytes);
                say(format!(
                    "{counted:?} pages and bytes counted, {there:?} there"
                ));
            }
            let segments = txn.space.segments(database);
            for row in txn.scan(&segments, usize::MAX, false, Read::Loose).await? {
                let Key::Segment(_, first) = txn.key(&row)? else {
                    continue;
                };
                if let Some(base) = txn.decode(&row, Segment::decode)? {
                    let stood_on = base.head.snapshot.version;
                    let child = Key::Child(base.database, stood_on, database, first);
                    if txn.get(&child, Read::Loose).await?.is_none() {
                        say(format!("{key} is not there", key = child));
                    }
                }
            }
            for first in txn.unread_segments(database).await? {
                say(format!("nothing reads its segment from version {first} on"));
            }
            let children = txn.space.children(database);
            for key in txn.keys(&children, usize::MAX, Read::Loose).await? {
                if let Key::Child(_, _, child, first) = key
                    && txn
                        .get(&Key::Segment(child, first), Read::Loose)
                        .await?
                        .is_none()
                {
                    say(format!(
                        "a segment of {child} is gone, and was to stand on it"
                    ));
                }
            }
            Ok(wrong)
        })
    }
}

impl Txn {
    /// Segments that should have gone (SEG3).
    async fn unread_segments(&self, database: DatabaseId) -> Result<Vec<Version>, Fail> {
        let mut unread = Vec::new();
        let segments = self.space.segments(database);
        for key in self.keys(&segments, usize::MAX, Read::Loose).await? {
            if let Key::Segment(_, first) = key {
                let end = self.segment_end(database, first).await?;
                let reader = self.newest_reader(database, end).await?;
                if reader.is_none_or(|reader| reader.version < first) {
                    unread.push(first);
                }
            }
        }
        Ok(unread)
    }
}
