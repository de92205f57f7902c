//! Rollback journals and super-journals: private, in this process, gone with it.
//!
//! A journal belongs to one connection (T3): another connection of the process, or another machine, must never find it
//! (T2). SQLite asks for journals by name, without a file; the owner is found by the *address* of the name, since each pager
//! passes its own. By text they are found only for the clean-up of a super-journal, which reads the names from a file.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::spool::Spool;
use crate::connection::{Connection, LockLevel};

/// A super-journal: the list of journals of a transaction over several databases.
#[derive(Default)]
pub struct SuperJournal {
    /// What SQLite wrote.
    pub content: Spool,
    /// Connections that have staged their part of the commit.
    pub members: Vec<Weak<Mutex<Connection>>>,
    /// The endpoint of all of them.
    pub endpoint: Option<String>,
    /// The journals that it lists.
    pub children: Vec<ChildJournal>,
}

/// Journals and super-journals of the process.
#[derive(Default)]
pub struct Journals {
    by_address: HashMap<usize, ChildJournal>,
    supers: HashMap<String, Arc<Mutex<SuperJournal>>>,
}

/// The journal of a connection.
#[derive(Clone)]
pub struct ChildJournal {
    name: String,
    connection: Weak<Mutex<Connection>>,
    /// Whether it exists; asked without the connection's lock, which another thread may hold for as long as a call takes.
    exists: Arc<AtomicBool>,
}

impl ChildJournal {
    /// Whose it is.
    pub fn connection(&self) -> Option<Arc<Mutex<Connection>>> {
        self.connection.upgrade()
    }

    fn is_live(&self, name: &str) -> bool {
        self.name == name && self.exists.load(Ordering::SeqCst)
    }
}

impl Journals {
    /// A connection was opened whose pager uses the journal name at this address.
    pub fn register(
        &mut self,
        address: usize,
        name: String,
        connection: &Arc<Mutex<Connection>>,
        exists: Arc<AtomicBool>,
    ) {
        self.by_address.insert(
            address,
            ChildJournal {
                name,
                connection: Arc::downgrade(connection),
                exists,
            },
        );
    }

    /// The connection was closed.
    pub fn unregister(&mut self, address: usize) {
        self.by_address.remove(&address);
    }

    /// The journal whose name lies at this address.
    pub fn child(&self, address: usize) -> Option<ChildJournal> {
        self.by_address.get(&address).cloned()
    }

    /// The existing journal of this name whose connection is writing.
    pub fn writing_child_named(&self, name: &str) -> Option<ChildJournal> {
        let is_writing = |child: &&ChildJournal| {
            // One that is locked is in a call of another thread: it is not about to commit together with the caller.
            child.is_live(name)
                && child.connection().is_some_and(|connection| {
                    connection
                        .try_lock()
                        .is_some_and(|connection| connection.level() >= LockLevel::Reserved)
                })
        };
        self.by_address.values().find(is_writing).cloned()
    }

    /// Whose journal name lies at this address.
    pub fn owner(&self, address: usize) -> Option<Arc<Mutex<Connection>>> {
        self.by_address.get(&address)?.connection()
    }

    /// Whether a journal exists: the one whose owner asks by its address, a super-journal, or a child journal that the
    /// clean-up of a super-journal asks for by its text.
    pub fn exists(&self, address: usize, name: &str) -> bool {
        match self.by_address.get(&address) {
            Some(own) => own.exists.load(Ordering::SeqCst),
            None => self.supers.contains_key(name) || self.live_journal_named(name).is_some(),
        }
    }

    /// The owner of an existing journal of this name that a super-journal lists. Other connections may have journals of the
    /// same name, which have nothing to do with it.
    pub fn live_journal_named(&self, name: &str) -> Option<Arc<Mutex<Connection>>> {
        self.supers.values().find_map(|journal| {
            journal
                .lock()
                .children
                .iter()
                .find(|child| child.is_live(name))?
                .connection()
        })
    }

    /// The super-journal of the name.
    pub fn super_journal(&self, name: &str) -> Option<Arc<Mutex<SuperJournal>>> {
        self.supers.get(name).cloned()
    }

    /// The super-journal of the name, made if there is none.
    pub fn create_super_journal(&mut self, name: &str) -> Arc<Mutex<SuperJournal>> {
        Arc::clone(self.supers.entry(name.to_owned()).or_default())
    }

    /// Removes a super-journal and returns it.
    pub fn remove_super_journal(&mut self, name: &str) -> Option<Arc<Mutex<SuperJournal>>> {
        self.supers.remove(name)
    }
}
