//! Whether the next transaction of a connection will write from its beginning: then the lease can be asked for together with the snapshot.
//!
//! ```text
//! None -- begins --> Fresh -- a page is read -------------------> Reads --+ ends: the habit is over
//!                      |  \-- ends: the habit is over             |       |
//!                      \-- wants to write: once more --> Writes   \-- wants to write: the habit is over --> Writes
//! ```
//! A guess: what depends on it is right either way (W4 of `database/write.rs`). A look at page 1 is no read: each transaction begins with it.

/// So many transactions in turn make a habit.
const ENOUGH: u8 = 2;

/// See the file's header.
#[derive(Debug, Default)]
pub struct Habit {
    writes: u8,
    now: Now,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Now {
    #[default]
    None,
    Fresh,
    Reads,
    Writes,
}

impl Habit {
    /// Whether the next transaction probably writes before it reads.
    pub fn is_to_write(&self) -> bool {
        self.writes >= ENOUGH
    }

    /// A transaction begins.
    pub fn begins(&mut self) {
        self.now = Now::Fresh;
    }

    /// It reads a page other than page 1. Whether this was its first, before it asked for the write lock.
    pub fn reads(&mut self) -> bool {
        let is_first = self.now == Now::Fresh;
        if is_first {
            self.now = Now::Reads;
        }
        is_first
    }

    /// It asks for the write lock, in vain or not.
    pub fn wants_to_write(&mut self) {
        match self.now {
            Now::Fresh => self.writes = (self.writes + 1).min(ENOUGH),
            Now::Reads => self.writes = 0,
            Now::None | Now::Writes => {}
        }
        self.now = Now::Writes;
    }

    /// It ends.
    pub fn ends(&mut self) {
        if self.now != Now::Writes {
            self.writes = 0;
        }
        self.now = Now::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(habit: &mut Habit, reads: bool, writes: bool) {
        habit.begins();
        if reads {
            habit.reads();
        }
        if writes {
            habit.wants_to_write();
            // After the write lock it may read what it likes.
            habit.reads();
        }
        habit.ends();
    }

    #[test]
    fn whoever_writes_from_the_beginning_twice_in_turn_has_the_habit() {
        let mut habit = Habit::default();
        transaction(&mut habit, false, true);
        assert!(!habit.is_to_write());
        transaction(&mut habit, false, true);
        assert!(habit.is_to_write());
    }

    #[test]
    fn a_transaction_that_only_reads_or_reads_first_ends_it() {
        for (reads, writes) in [(true, false), (true, true), (false, false)] {
            let mut habit = Habit::default();
            (0..3).for_each(|_| transaction(&mut habit, false, true));
            transaction(&mut habit, reads, writes);
            assert!(!habit.is_to_write(), "reads {reads}, writes {writes}");
            transaction(&mut habit, false, true);
            assert!(!habit.is_to_write(), "once is no habit");
        }
    }

    #[test]
    fn one_that_is_refused_and_begun_again_counts() {
        let mut habit = Habit::default();
        transaction(&mut habit, false, true);
        transaction(&mut habit, false, true);
        assert!(habit.is_to_write());
    }
}
