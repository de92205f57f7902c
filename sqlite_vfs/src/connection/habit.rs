//! Whether the next transaction of a connection will write from its beginning: then the lease can be asked for together with the snapshot.
//!
//! ```text
//! None -- begins --> Fresh -- a page is read ----------------> Reads --+ ends: the habit is over
//!                      |  \-- ends: the habit is over          |       |
//!                      |                                        \-- wants to write: the habit is over --> Counted
//!                      \-- wants to write --> Wants -- has the write lock: once more --> Counted
//!                                               \-- ends (it is begun again): as before
//! ```
//! A guess: what depends on it is right either way (W4 of `database/write.rs`). A look at page 1 is no read: each transaction begins with it.
//! A guess that was wrong costs a reader a call, so after each one it takes twice as many writes in turn to make a habit; each right one takes one off again.

/// So many transactions in turn make a habit where no guess was wrong.
const ENOUGH: u8 = 2;
/// And so many after many that were.
const MOST: u8 = 64;

/// See the file's header.
#[derive(Debug)]
pub struct Habit {
    writes: u8,
    enough: u8,
    now: Now,
}

impl Default for Habit {
    fn default() -> Self {
        Self {
            writes: 0,
            enough: ENOUGH,
            now: Now::None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    None,
    Fresh,
    Reads,
    Wants,
    Counted,
}

impl Habit {
    /// Whether the next transaction probably writes before it reads.
    pub fn is_to_write(&self) -> bool {
        self.writes >= self.enough
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
        self.now = match self.now {
            Now::Fresh => Now::Wants,
            Now::Reads => {
                self.is_over();
                Now::Counted
            }
            Now::None | Now::Wants | Now::Counted => self.now,
        };
    }

    /// It has the write lock.
    pub fn writes(&mut self) {
        if self.now == Now::Wants {
            if self.is_to_write() {
                self.enough = (self.enough - 1).max(ENOUGH);
            }
            self.writes = (self.writes + 1).min(MOST);
            self.now = Now::Counted;
        }
    }

    /// It ends.
    pub fn ends(&mut self) {
        if matches!(self.now, Now::Fresh | Now::Reads) {
            self.is_over();
        }
        self.now = Now::None;
    }

    /// Also where a guess that would have been right was of no use: the lease did not come.
    pub fn is_over(&mut self) {
        if self.is_to_write() {
            self.enough = (2 * self.enough).min(MOST);
        }
        self.writes = 0;
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
            habit.writes();
            // After the write lock it may read what it likes.
            habit.reads();
        }
        habit.ends();
    }

    /// Transactions of a connection that writes so often and then reads, over and over: how many of them were guessed wrong.
    fn wrong_guesses(habit: &mut Habit, rounds: usize, writes: usize) -> usize {
        let mut wrong = 0;
        for _ in 0..rounds {
            (0..writes).for_each(|_| transaction(habit, false, true));
            wrong += usize::from(habit.is_to_write());
            transaction(habit, true, false);
        }
        wrong
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
    fn a_guess_that_was_wrong_is_not_made_again_in_each_round() {
        let mut habit = Habit::default();
        assert_eq!(wrong_guesses(&mut habit, 100, 2), 1);
        // Nor is one of many.
        let mut habit = Habit::default();
        assert_eq!(wrong_guesses(&mut habit, 1, 2), 1);
        assert!(wrong_guesses(&mut habit, 100, 5) <= 2);
        // Whoever only writes has the habit again, soon, and for good.
        (0..200).for_each(|_| transaction(&mut habit, false, true));
        assert!(habit.is_to_write());
        assert_eq!(habit.enough, ENOUGH);
    }

    #[test]
    fn the_tries_of_one_transaction_are_one() {
        let mut habit = Habit::default();
        for _ in 0..5 {
            habit.begins();
            habit.wants_to_write();
            habit.ends();
        }
        assert!(!habit.is_to_write(), "it has not written yet");
        transaction(&mut habit, false, true);
        assert!(!habit.is_to_write(), "once is no habit");
        habit.begins();
        habit.wants_to_write();
        habit.ends();
        transaction(&mut habit, false, true);
        assert!(habit.is_to_write());
    }
}
