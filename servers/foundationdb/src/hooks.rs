//! What tests ask of a store beside its contract, and what they do to its rows. Nothing else may use it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pagewire_proto::{CommitId, DatabaseId, PageNumber, Version};
use pagewire_server::store::{StoreError, StoredPage};

use crate::FoundationDbStore;
use crate::engine::{Read, transact};
use crate::keys::Key;
use crate::names::{FORMAT, no_randomness};
use crate::values::{Changed, Record, Removed};

pub use crate::engine::trouble::{Lost, Trouble};

/// Runs a call whose transactions have this trouble: those that begin in the same task. For tests.
pub fn in_trouble<F: Future>(
    trouble: &Arc<Trouble>,
    call: F,
) -> impl Future<Output = F::Output> + use<F> {
    trouble.during(call)
}

impl FoundationDbStore {
    /// What is wrong in the cluster, a sentence each; nothing may be under way meanwhile. For tests.
    #[doc(hidden)]
    pub async fn audit(&self) -> Result<Vec<String>, StoreError> {
        self.0.audit().await
    }

    /// Transactions of the cluster begun so far, repetitions included, and how many of them, about, said that this server lives. For tests.
    #[doc(hidden)]
    pub fn transactions(&self) -> (u64, u64) {
        let begun = self.0.engine.asked.begun.load(Ordering::Relaxed);
        (begun, self.0.beats.load(Ordering::Relaxed))
    }

    /// Commits of the cluster so far whose outcome was not known. For tests.
    #[doc(hidden)]
    pub fn unknown_outcomes(&self) -> u64 {
        self.0.engine.asked.unknown.load(Ordering::Relaxed)
    }

    /// Rows and ranges that were read in the cluster so far. For tests.
    #[doc(hidden)]
    pub fn reads(&self) -> u64 {
        self.0.engine.asked.reads.load(Ordering::Relaxed)
    }

    /// Rows that the ranges of [`FoundationDbStore::reads`] had. For tests.
    #[doc(hidden)]
    pub fn rows_read(&self) -> u64 {
        self.0.engine.asked.rows.load(Ordering::Relaxed)
    }

    /// Bytes of those rows, keys and values. For tests.
    #[doc(hidden)]
    pub fn bytes_read(&self) -> u64 {
        self.0.engine.asked.bytes.load(Ordering::Relaxed)
    }

    /// Since the last call of this: bytes of the largest answer, and how many ranges were waited for at once at most. For tests.
    #[doc(hidden)]
    pub fn most_read(&self) -> (u64, u64) {
        let asked = &self.0.engine.asked;
        let look = |most: &AtomicU64| most.swap(0, Ordering::Relaxed);
        (look(&asked.largest), look(&asked.at_once))
    }

    /// In how many segments a page of the newest version is looked for at most. For tests.
    #[doc(hidden)]
    pub async fn depth(&self, database: DatabaseId) -> Result<usize, StoreError> {
        self.0.depth(database).await
    }

    /// How many ends of segments, and how many segments to flatten, wait for a collection. For tests.
    #[doc(hidden)]
    pub async fn to_do(&self) -> Result<(usize, usize), StoreError> {
        self.0.to_do().await
    }

    /// How many page servers have a row. For tests.
    #[doc(hidden)]
    pub async fn live_servers(&self) -> Result<usize, StoreError> {
        transact!(self.0.engine, |txn| {
            let servers = txn.space.servers();
            Ok(txn.keys(&servers, usize::MAX, Read::Loose).await?.len())
        })
    }

    /// How many of those rows are damaged. For tests.
    #[doc(hidden)]
    pub async fn damaged_servers(&self) -> Result<usize, StoreError> {
        self.0.damaged_servers().await
    }

    /// Collects what dead servers left of a database, as it would be with a list of servers from before there were others. For tests.
    #[doc(hidden)]
    pub async fn collect_unaware(&self, database: DatabaseId) -> Result<bool, StoreError> {
        let alone = HashSet::from([self.0.server]);
        self.0.drop_of_the_dead(database, &alone).await
    }

    /// Flips a bit in the row of a page, as a medium might. For tests.
    #[doc(hidden)]
    pub async fn damage(
        &self,
        database: DatabaseId,
        page: PageNumber,
        version: Version,
    ) -> Result<bool, StoreError> {
        transact!(self.0.engine, |txn| {
            let range = txn.space.page(database, page, version, version);
            let rows = txn.scan(&range, 1, true, Read::Firm).await?;
            Ok(rows.first().is_some_and(|row| txn.damage(row)))
        })
    }

    /// As [`FoundationDbStore::damage`], of the row that says how a version was made. For tests.
    #[doc(hidden)]
    pub async fn damage_record(
        &self,
        database: DatabaseId,
        version: Version,
    ) -> Result<bool, StoreError> {
        self.damage_row(&Key::Record(database, version)).await
    }

    /// As [`FoundationDbStore::damage`], of the row of a removed database. For tests.
    #[doc(hidden)]
    pub async fn damage_removed(&self, database: DatabaseId) -> Result<bool, StoreError> {
        self.damage_row(&Key::Removed(database)).await
    }

    /// As [`FoundationDbStore::damage`], of the rows of all other page servers. For tests.
    #[doc(hidden)]
    pub async fn damage_servers(&self) -> Result<bool, StoreError> {
        transact!(self.0.engine, |txn| {
            let own = txn.space.encode(&Key::Server(self.0.server));
            let servers = txn.space.servers();
            let rows = txn.scan(&servers, usize::MAX, false, Read::Firm).await?;
            let others = rows.iter().filter(|row| row.key != own);
            Ok(others.fold(false, |any, row| any | txn.damage(row)))
        })
    }

    /// Says that the installation has another format, so much later than this one. For tests.
    #[doc(hidden)]
    pub async fn set_format(&self, later: i32) -> Result<(), StoreError> {
        let format = FORMAT.saturating_add_signed(later);
        transact!(self.0.engine, |txn| {
            txn.put(&Key::Format, &format.to_be_bytes());
            Ok(())
        })
    }

    async fn damage_row(&self, key: &Key) -> Result<bool, StoreError> {
        transact!(self.0.engine, |txn| {
            let row = txn.stored(key, Read::Firm).await?;
            Ok(row.is_some_and(|row| txn.damage(&row)))
        })
    }

    /// Reads pages as from a cluster that does only so many of them within 5 s, and takes this time to say so of more. For tests.
    #[doc(hidden)]
    pub async fn read_slowly(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
        (most, time): (usize, Duration),
    ) -> Result<Vec<StoredPage>, StoreError> {
        let read = self.0.in_pieces(pages, |txn, some| {
            Box::pin(async move {
                if some.len() > most {
                    tokio::time::sleep(time).await;
                    // Which the cluster has forgotten.
                    txn.claims_since(1);
                }
                txn.pages(database, version, some).await
            })
        });
        read.await
    }

    /// One step of flattening a database: to which of how many segments below it has come. For tests.
    #[doc(hidden)]
    pub async fn flatten_once(
        &self,
        database: DatabaseId,
    ) -> Result<Option<(u32, usize)>, StoreError> {
        self.0.flatten_once(database).await
    }

    /// Ends two segments at once; whether the later one was repeated. For tests.
    #[doc(hidden)]
    pub async fn end_together(
        &self,
        segments: [(DatabaseId, Version); 2],
    ) -> Result<bool, StoreError> {
        self.0.end_together(segments).await
    }

    /// The row of a removed database. For tests.
    #[doc(hidden)]
    pub async fn removed(&self, database: DatabaseId) -> Result<Option<Removed>, StoreError> {
        let key = Key::Removed(database);
        transact!(self.0.engine, |txn| {
            txn.row(&key, Read::Loose, Removed::decode).await
        })
    }

    /// Forgets a removed database as who saw this row of it. For tests.
    #[doc(hidden)]
    pub async fn forget_as_seen(
        &self,
        database: DatabaseId,
        removed: Removed,
    ) -> Result<bool, StoreError> {
        self.0.forget_removed(database, removed).await
    }

    /// Makes the steps of a collection as small as they get, until some of them were done. For tests.
    #[doc(hidden)]
    pub fn smallest_steps(&self) {
        self.0.smallest_steps();
    }

    /// Makes so many versions without changes on a database that has one, some thousand in a transaction. Nobody else may use the database meanwhile.
    /// For tests.
    #[doc(hidden)]
    pub async fn make_versions(&self, database: DatabaseId, many: u64) -> Result<(), StoreError> {
        const AT_ONCE: u64 = 2000;
        for begun in (0..many).step_by(AT_ONCE as usize) {
            transact!(self.0.engine, |txn| {
                let mut row = txn.database(database, Read::Firm).await?;
                for _ in begun..many.min(begun + AT_ONCE) {
                    row.head.snapshot.version = row.head.snapshot.version.next();
                    let record = Record {
                        commit: CommitId::random().map_err(no_randomness)?,
                        time_ms: row.time_ms,
                        ended_ms: 0,
                        restored_from: Version::ZERO,
                        pages_changed: 0,
                        head: row.head.clone(),
                        changed: Changed::Inline(Vec::new()),
                    };
                    txn.add_version(database, &row, &record);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Bytes of each row by which servers protect what their sessions read of a database. For tests.
    #[doc(hidden)]
    pub async fn protecting_rows(&self, database: DatabaseId) -> Result<Vec<usize>, StoreError> {
        transact!(self.0.engine, |txn| {
            let range = txn.space.protections(database);
            let rows = txn.scan(&range, usize::MAX, false, Read::Loose).await?;
            Ok(rows.iter().map(|row| row.stored.len()).collect())
        })
    }

    /// Has a version looked at as one that has lost a reader. For tests.
    #[doc(hidden)]
    pub async fn lose_reader(
        &self,
        database: DatabaseId,
        version: Version,
    ) -> Result<(), StoreError> {
        self.0.lose_reader(database, version).await
    }
}
