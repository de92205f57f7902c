//! Names, epochs, what became of commits, and the identity of the installation.

use pagewire_proto::{DatabaseId, DatabaseName, Epoch, Incarnation, Version};
use pagewire_server::store::{DatabaseEntry, Resolution, Resolve, StoreError};

use futures_util::future::{try_join, try_join_all};

use crate::Inner;
use crate::engine::{Fail, Read, Target, Txn, senseless, transact};
use crate::keys::Key;
use crate::values::{Database, Head};

/// The version of the format. Another one is another layout of keys or values, or the same bytes with another meaning: a server of an earlier one that went on
/// beside this one would take them for what it knows. In 5 `Due` counted rows instead of pages, and a server had one row of pins in each database.
pub(crate) const FORMAT: u32 = 6;
/// Names of a list that are looked at together.
const LOOKS: usize = 64;

/// The identity of the installation under the prefix of an engine, which comes into being with the first call.
pub(crate) async fn incarnation(
    engine: &crate::engine::Engine,
    directory: &str,
) -> Result<Incarnation, StoreError> {
    let new = Incarnation::random().map_err(no_randomness)?;
    transact!(engine, |txn| {
        let format = txn.get(&Key::Format, Read::Firm).await?;
        match format.as_deref().map(<[u8; 4]>::try_from) {
            None => {
                txn.put(&Key::Format, &FORMAT.to_be_bytes());
                txn.put(&Key::Incarnation, new.as_bytes());
                return Ok(new);
            }
            Some(Ok(format)) if u32::from_be_bytes(format) == FORMAT => {}
            Some(Ok(format)) => {
                return Err(StoreError::Unavailable(format!(
                    "directory {directory} has format {}, this program reads format {FORMAT}: use the program that wrote it",
                    u32::from_be_bytes(format)
                ))
                .into());
            }
            Some(Err(_)) => return Err(senseless(&Key::Format).into()),
        }
        let decode = |body: &[u8]| Incarnation::try_from(body).ok();
        let found = txn.row(&Key::Incarnation, Read::Firm, decode).await?;
        found.ok_or_else(|| senseless(&Key::Incarnation).into())
    })
}

impl Txn {
    pub(crate) async fn named(
        &self,
        name: &DatabaseName,
        read: Read,
    ) -> Result<Option<DatabaseId>, Fail> {
        let decode = |body: &[u8]| DatabaseId::try_from(body).ok();
        self.row(&Key::Name(name.clone()), read, decode).await
    }

    pub(crate) async fn epoch(&self, database: DatabaseId, read: Read) -> Result<Epoch, Fail> {
        let epoch = self.number(&Key::Epoch(database), read).await?;
        Ok(Epoch::new(epoch))
    }

    /// A database that is not removed before this transaction is committed either: whoever writes a row of it may not come behind its removal. Commits do
    /// not conflict with this: they leave the epoch as it is, and a removal takes it away.
    pub(crate) async fn lasting(&self, database: DatabaseId) -> Result<Database, Fail> {
        let there = self.database(database, Read::Loose);
        let (there, _) = try_join(there, self.epoch(database, Read::Firm)).await?;
        Ok(there)
    }

    /// Somebody means to commit to a database that has this row: a name without a commit is kept for a while from now on (REM2).
    pub(crate) fn is_wanted_still(
        &self,
        database: DatabaseId,
        row: Database,
        now_ms: u64,
    ) -> Result<(), Fail> {
        if row.head.snapshot.version > Version::ZERO {
            return Ok(());
        }
        let key = Key::Head(database);
        self.claim(&self.space.encode(&key))?;
        let created_ms = now_ms.max(row.created_ms);
        let row = Database { created_ms, ..row };
        self.put(&key, &row.encode());
        Ok(())
    }

    /// Advances an epoch that was read firmly.
    pub(crate) fn advance(&self, database: DatabaseId, epoch: Epoch) -> Epoch {
        let next = epoch.get() + 1;
        self.put(&Key::Epoch(database), &next.to_be_bytes());
        Epoch::new(next)
    }
}

impl Inner {
    pub(crate) async fn lookup(
        &self,
        name: &DatabaseName,
        create: bool,
    ) -> Result<DatabaseId, StoreError> {
        let new = DatabaseId::random().map_err(no_randomness)?;
        transact!(self.engine, |txn| {
            if let Some(id) = txn.named(name, Read::Firm).await? {
                return Ok(id);
            }
            if !create {
                return Err(StoreError::DatabaseNotFound.into());
            }
            let row = Database {
                head: Head::EMPTY,
                time_ms: 0,
                created_ms: self.options.clock.now_ms(),
                name: name.clone(),
            };
            txn.put(&Key::Name(name.clone()), new.as_bytes());
            txn.put(&Key::Head(new), &row.encode());
            Ok(new)
        })
    }

    /// Each look is a transaction of its own: a list may be long.
    pub(crate) async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        let mut entries = Vec::new();
        let mut range = self.engine.space.names(prefix, after);
        loop {
            let (last, some) = transact!(self.engine, |txn| {
                let rows = txn.scan(&range, LOOKS, false, Read::Loose).await?;
                let last = rows.last().map(|row| row.key.clone());
                let mut found = Vec::new();
                for row in &rows {
                    let id = txn.decode(row, |body| DatabaseId::try_from(body).ok())?;
                    if let Key::Name(name) = txn.key(row)? {
                        found.push((name, id));
                    }
                }
                let heads = found.into_iter().map(|(name, database)| async move {
                    let head = txn.database(database, Read::Loose).await?.head.snapshot;
                    Ok::<_, Fail>(DatabaseEntry {
                        name,
                        database,
                        head,
                    })
                });
                let last = last.filter(|_| rows.len() == LOOKS);
                Ok((last, try_join_all(heads).await?))
            })?;
            let born = some.into_iter().filter(|e| e.head.version > Version::ZERO);
            entries.extend(born.take(limit - entries.len()));
            match last {
                Some(last) if entries.len() < limit => range = range.after(&last),
                _ => return Ok(entries),
            }
        }
    }

    pub(crate) async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        let target = Target::new();
        let removed = transact!(self.engine, |txn| {
            let Some(id) = target.find(txn.named(name, Read::Firm).await?) else {
                return Ok(target.first().ok_or(StoreError::DatabaseNotFound)?);
            };
            txn.take_away(id, name, txn.now(&self.options).await?);
            Ok(id)
        })?;
        self.forget(removed);
        Ok(removed)
    }

    pub(crate) async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        transact!(self.engine, |txn| {
            // The head loosely: a writer that never pauses makes versions faster than this could be read and committed. A removal is
            // noticed by the epoch, which goes with it.
            let there = txn.database(database, Read::Loose);
            let (row, epoch) = try_join(there, txn.epoch(database, Read::Firm)).await?;
            txn.is_wanted_still(database, row, self.options.clock.now_ms())?;
            Ok(txn.advance(database, epoch))
        })
    }

    pub(crate) async fn resolve(&self, resolve: &Resolve) -> Result<Resolution, StoreError> {
        let Some((first, base, named)) = resolve.participants.first().copied() else {
            return Err(StoreError::Limit("a commit names no database".to_owned()));
        };
        let made = base.next();
        transact!(self.engine, |txn| {
            // Firmly: a commit that comes in between has to see the new epoch, or this its version.
            let head = txn.database(first, Read::Firm);
            let (there, mut epoch) = try_join(head, txn.epoch(first, Read::Firm)).await?;
            if made <= there.head.snapshot.version {
                match txn.past(first, made, Read::Loose).await? {
                    None => {
                        return Ok(Resolution::Unknown(format!(
                            "the record of version {made} is not kept any more"
                        )));
                    }
                    Some(past) if past.commit == resolve.id => {
                        let versions = resolve.participants.iter().map(|p| p.1.next());
                        return Ok(Resolution::Committed(versions.collect()));
                    }
                    Some(_) => {}
                }
            } else if epoch == named {
                epoch = txn.advance(first, epoch);
                txn.granted_again(first, named, epoch).await?;
            }
            let others = resolve.participants.iter().skip(1);
            let others = others.map(|(id, _, _)| txn.epoch(*id, Read::Loose));
            let mut current = vec![epoch];
            current.extend(try_join_all(others).await?);
            Ok(Resolution::Aborted { current })
        })
    }
}

pub(crate) fn no_randomness(error: pagewire_proto::Invalid) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
