//! The write transactions of this process, as the server tells them apart: one for each connection of SQLite that writes, over all of
//! the databases that it has attached.
//!
//! Every database is a file of its own to a VFS. Which files belong to one connection of SQLite is known by what SQLite says when it has
//! opened them ([`Owner`]); where it does not say, a transaction has no number, and no deadlock with it is found.
//! There is one of these for all clients of the process: a transaction may be over databases of several endpoints, or credentials.
//!
//! * **T-1** A number is never used for two transactions: it ends with the last database to which its connection writes.
//! * **T-2** What a transaction holds it holds until its end: only of such databases, and only while one of them is held, does a request
//!   for a further one name its number.
//! * **T-3** It is known of each whether its write lease is the one under which it was locked: what was read there has not been changed
//!   only for as long as that is so, whether it is written or not.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

/// A connection of SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub usize);

/// Whether the write lease of a database is still there (T-3).
type IsLocked = Arc<dyn Fn() -> bool + Send + Sync>;

/// See the file's header.
#[derive(Debug, Default)]
pub struct Transactions {
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    by_owner: HashMap<Owner, Transaction>,
    begun: u64,
    joined: u64,
}

struct Transaction {
    number: u64,
    /// By the order in which they joined.
    databases: BTreeMap<u64, IsLocked>,
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction")
            .field("number", &self.number)
            .field("databases", &self.databases.len())
            .finish()
    }
}

/// The part of one database in a transaction: from before its write lock is there until it is given up.
#[derive(Debug)]
pub struct Membership {
    transactions: Arc<Transactions>,
    owner: Option<Owner>,
    number: u64,
    joined: u64,
}

impl Transactions {
    /// A connection is about to write to one more database. What says whether that is locked is called without any lock of this.
    pub fn join(
        self: &Arc<Self>,
        owner: Option<Owner>,
        is_locked: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Membership {
        let (number, joined) = owner.map_or((0, 0), |owner| {
            let running = &mut *self.running.lock();
            running.joined += 1;
            let joined = running.joined;
            let next = running.begun + 1;
            let transaction = running.by_owner.entry(owner).or_insert(Transaction {
                number: next,
                databases: BTreeMap::new(),
            });
            transaction.databases.insert(joined, Arc::new(is_locked));
            let number = transaction.number;
            running.begun = running.begun.max(number);
            (number, joined)
        });
        Membership {
            transactions: Arc::clone(self),
            owner,
            number,
            joined,
        }
    }

    /// Whether the connection has locked a database for writing.
    pub fn is_writing(&self, owner: Option<Owner>) -> bool {
        owner.is_some_and(|owner| self.running.lock().by_owner.contains_key(&owner))
    }
}

impl Membership {
    /// The number of the transaction; 0 where it has none.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The number, where the transaction holds something beside this (T-2); 0 otherwise.
    pub fn number_of_holder(&self) -> u64 {
        match self.databases() {
            Some(databases) if databases > 1 => self.number,
            _ => 0,
        }
    }

    /// How many databases the transaction has locked for writing, this one among them; `None` where SQLite has not said whose it is.
    pub fn databases(&self) -> Option<usize> {
        let running = self.transactions.running.lock();
        let transaction = self.owner.and_then(|owner| running.by_owner.get(&owner));
        transaction.map(|transaction| transaction.databases.len())
    }

    /// Whether no database of the transaction is known to have lost the lease under which it was locked (T-3). Where SQLite has not said whose it
    /// is, nothing is known of the others.
    pub fn are_all_locked(&self) -> bool {
        // Whether one is locked, a lock tells under which memberships end.
        let databases: Vec<IsLocked> = {
            let running = self.transactions.running.lock();
            let transaction = self.owner.and_then(|owner| running.by_owner.get(&owner));
            transaction.map_or_else(Vec::new, |it| it.databases.values().cloned().collect())
        };
        databases.iter().all(|is_locked| is_locked())
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let Some(owner) = self.owner else { return };
        let mut running = self.transactions.running.lock();
        if let Some(transaction) = running.by_owner.get_mut(&owner) {
            transaction.databases.remove(&self.joined);
            if transaction.databases.is_empty() {
                running.by_owner.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn t1_a_number_lasts_from_the_first_database_to_the_last_and_never_comes_again() {
        let transactions = Arc::new(Transactions::default());
        let owner = Some(Owner(1));
        let first = transactions.join(owner, || true);
        let number = first.number();
        let second = transactions.join(owner, || true);
        assert_eq!(second.number(), number);
        drop(first);
        assert_eq!(transactions.join(owner, || true).number(), number);
        let other = transactions.join(Some(Owner(2)), || true);
        assert_ne!(other.number(), number);
        drop(second);
        let next = transactions.join(owner, || true).number();
        assert!(next != number && next != other.number());
    }

    #[test]
    fn t2_only_who_holds_something_waits_as_a_transaction() {
        let transactions = Arc::new(Transactions::default());
        let owner = Some(Owner(1));
        let wanted = transactions.join(owner, || true);
        assert_eq!(wanted.number_of_holder(), 0);
        let held = wanted;
        let wanted = transactions.join(owner, || true);
        assert_eq!(wanted.number_of_holder(), held.number());
        assert_eq!(held.databases(), Some(2));
        drop(held);
        assert_eq!(wanted.number_of_holder(), 0);
        let (nobody, nothing) = (
            transactions.join(None, || true),
            transactions.join(None, || true),
        );
        assert_eq!((nobody.number(), nothing.number_of_holder()), (0, 0));
        assert_eq!(nobody.databases(), None);
    }

    #[test]
    fn t3_it_is_known_of_each_database_whether_it_is_locked() {
        let transactions = Arc::new(Transactions::default());
        let owner = Some(Owner(1));
        let is_there = Arc::new(AtomicBool::new(true));
        let (read, other) = (Arc::clone(&is_there), Transactions::default());
        let held = transactions.join(owner, move || read.load(Ordering::Relaxed));
        let written = transactions.join(owner, || true);
        assert!(written.are_all_locked());
        is_there.store(false, Ordering::Relaxed);
        assert!(!written.are_all_locked());
        // Of other connections nothing is asked.
        let of_another = transactions.join(Some(Owner(2)), || true);
        assert!(of_another.are_all_locked());
        assert!(Arc::new(other).join(owner, || true).are_all_locked());
        drop(held);
        assert!(written.are_all_locked());
    }
}
