//! Cycles of transactions that wait for each other's leases, and who of them is told to end.
//!
//! A transaction of SQLite writes to several ATTACHed databases and waits for their leases one after the other; two that take them in
//! opposite order would wait until the busy timeout of one of them. The graph:
//!
//! ```text
//!   T ──waits for the lease of D──▶ D ──whose holder has said (KeepLease) that it runs──▶ U
//! ```
//! A transaction waits for one database at a time, and a lease has one holder: from each transaction leads at most one edge, so a
//! walk comes back to its beginning or proves that it is in no cycle. Cited by the tests:
//!
//! * **W-1** An edge leads from and to a *transaction*, never a session: a process shares its leases among its connections, and one that
//!   waits does not keep another from committing. Numbers of transactions are never used again, so what is still said of one that is
//!   over (a release, or a Keep, under way on the stream) makes no edge to one that runs.
//! * **W-2** A transaction waits while a call of it does, and [`STILL_WAITS`] longer: the busy handler of SQLite sleeps in between. What
//!   gave up is no part of a cycle after that.
//! * **W-3** Of a cycle the one that began to wait last is refused, and no other: all walks of a cycle find the same one.
//! * **W-4** The others are not touched: they go on when the refused one has ended its transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::{DatabaseId, SessionId};
use tokio::time::Instant;

use crate::database::Database;
use crate::hub::Hub;
use crate::session::Session;

/// How long a transaction counts as waiting after its call was answered. SQLite's busy handler sleeps up to 100 ms.
const STILL_WAITS: Duration = Duration::from_millis(500);
/// Transactions of a session that are known to wait; of more than these no cycle is found, and their busy timeouts end it.
const MAX_WAITS: usize = 256;
/// The longest cycle that is looked for.
const MAX_CYCLE: u32 = 64;

/// What the transactions of a session wait for.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    by_transaction: HashMap<u64, Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    database: DatabaseId,
    since: Instant,
    until: Instant,
}

impl Waits {
    /// The transaction asks for the lease, by a call that lasts until then or shorter.
    pub(crate) fn ask(
        &mut self,
        transaction: u64,
        database: DatabaseId,
        now: Instant,
        call_until: Instant,
    ) {
        let until = call_until + STILL_WAITS;
        match self.by_transaction.get_mut(&transaction) {
            Some(wait) if wait.database == database && wait.until > now => wait.until = until,
            _ => {
                if self.by_transaction.len() >= MAX_WAITS {
                    self.by_transaction.retain(|_, wait| wait.until > now);
                }
                if self.by_transaction.len() < MAX_WAITS {
                    let wait = Wait {
                        database,
                        since: now,
                        until,
                    };
                    self.by_transaction.insert(transaction, wait);
                }
            }
        }
    }

    /// Its call has ended without the lease (W-2).
    pub(crate) fn asked(&mut self, transaction: u64, now: Instant) {
        if let Some(wait) = self.by_transaction.get_mut(&transaction) {
            wait.until = now + STILL_WAITS;
        }
    }

    /// It waits no more: it has the lease, or was told to end.
    pub(crate) fn end(&mut self, transaction: u64) {
        self.by_transaction.remove(&transaction);
    }

    /// The session has got this lease.
    pub(crate) fn granted(&mut self, database: DatabaseId) {
        self.by_transaction
            .retain(|_, wait| wait.database != database);
    }

    fn of(&self, transaction: u64, now: Instant) -> Option<Wait> {
        self.by_transaction
            .get(&transaction)
            .copied()
            .filter(|wait| wait.until > now)
    }
}

impl Hub {
    /// How many transactions are in the cycle in which this one waits, if it is the one that has to end (W-3).
    pub(crate) fn deadlock(&self, session: &Session, transaction: u64) -> Option<u32> {
        let now = Instant::now();
        let start = (session.id, transaction);
        let mut wait = session.state.lock().waits.of(transaction, now)?;
        let mut youngest = (wait.since, start, wait.database);
        let mut transactions = 1;
        loop {
            let next = self.runs_under(wait.database)?;
            if next == start {
                break;
            }
            if transactions == MAX_CYCLE {
                return None;
            }
            transactions += 1;
            let holder = self.live_session(next.0)?;
            wait = holder.state.lock().waits.of(next.1, now)?;
            youngest = youngest.max((wait.since, next, wait.database));
        }
        let (_, refused, waits_for) = youngest;
        if refused == start {
            return Some(transactions);
        }
        // Its call looks again; one that sleeps will.
        if let Some(database) = self.known(waits_for) {
            database.notify();
        }
        None
    }

    /// The transaction for which the lease of the database is kept.
    fn runs_under(&self, database: DatabaseId) -> Option<(SessionId, u64)> {
        let database: Arc<Database> = self.known(database)?;
        let lease = database.lease.lock();
        lease.kept_for()
    }
}
