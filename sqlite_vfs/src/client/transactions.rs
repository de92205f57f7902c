//! The write transactions of this process, as the server tells them apart: one for each connection of SQLite that writes, over all of
//! the databases that it has attached.
//!
//! Every database is a file of its own to a VFS. Which files belong to one connection of SQLite is known by what SQLite says when it has
//! opened them ([`Owner`]); where it does not say, a transaction has no number, and no deadlock with it is found.
//!
//! * **T-1** A number is never used for two transactions: it ends with the last database to which its connection writes.
//! * **T-2** What a transaction holds it holds until its end: only of such databases, and only while one of them is held, does a request
//!   for a further one name its number.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// A connection of SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub usize);

/// See the file's header.
#[derive(Debug, Default)]
pub struct Transactions {
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    by_owner: HashMap<Owner, Transaction>,
    begun: u64,
}

#[derive(Debug)]
struct Transaction {
    number: u64,
    databases: usize,
}

/// The part of one database in a transaction: from before its write lock is there until it is given up.
#[derive(Debug)]
pub struct Membership {
    transactions: Arc<Transactions>,
    owner: Option<Owner>,
    number: u64,
}

impl Transactions {
    /// A connection is about to write to one more database.
    pub fn join(self: &Arc<Self>, owner: Option<Owner>) -> Membership {
        let number = owner.map_or(0, |owner| {
            let mut running = self.running.lock();
            let next = running.begun + 1;
            let transaction = running.by_owner.entry(owner).or_insert(Transaction {
                number: next,
                databases: 0,
            });
            transaction.databases += 1;
            let number = transaction.number;
            running.begun = running.begun.max(number);
            number
        });
        Membership {
            transactions: Arc::clone(self),
            owner,
            number,
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
        transaction.map(|transaction| transaction.databases)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let Some(owner) = self.owner else { return };
        let mut running = self.transactions.running.lock();
        if let Some(transaction) = running.by_owner.get_mut(&owner) {
            transaction.databases -= 1;
            if transaction.databases == 0 {
                running.by_owner.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t1_a_number_lasts_from_the_first_database_to_the_last_and_never_comes_again() {
        let transactions = Arc::new(Transactions::default());
        let owner = Some(Owner(1));
        let first = transactions.join(owner);
        let number = first.number();
        let second = transactions.join(owner);
        assert_eq!(second.number(), number);
        drop(first);
        assert_eq!(transactions.join(owner).number(), number);
        let other = transactions.join(Some(Owner(2)));
        assert_ne!(other.number(), number);
        drop(second);
        let next = transactions.join(owner).number();
        assert!(next != number && next != other.number());
    }

    #[test]
    fn t2_only_who_holds_something_waits_as_a_transaction() {
        let transactions = Arc::new(Transactions::default());
        let owner = Some(Owner(1));
        let wanted = transactions.join(owner);
        assert_eq!(wanted.number_of_holder(), 0);
        let held = wanted;
        let wanted = transactions.join(owner);
        assert_eq!(wanted.number_of_holder(), held.number());
        assert_eq!(held.databases(), Some(2));
        drop(held);
        assert_eq!(wanted.number_of_holder(), 0);
        let (nobody, nothing) = (transactions.join(None), transactions.join(None));
        assert_eq!((nobody.number(), nothing.number_of_holder()), (0, 0));
        assert_eq!(nobody.databases(), None);
    }
}
