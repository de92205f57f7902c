//! What waits for the committer, and what of it goes into its next transaction: a tenant that writes much does not hold up the others.
//!
//! Two lines: *bulk* (pages by the megabyte, and what has to stay in order with them), and everything else. Commands that wait at the same
//! time have no order that their senders could count on; each line keeps its own all the same.
//!
//! * **Q-1** What is not bulk is in the next group, unless as many wait before it as a group takes, or as many bytes: of all the bulk that waits
//!   it pays for what is being written already, and no more.
//! * **Q-2** Where bulk waits each group has some of it: it is never put off.
//! * **Q-3** A group takes no more bulk once it has [`MAX_GROUP_BYTES`], and never more than [`MAX_GROUP`] commands.
//! * **Q-4** Without bulk a group goes through the log, with one sync: of small ones it has no more than a record has room for.

use std::collections::VecDeque;

/// Commands in one transaction.
pub(crate) const MAX_GROUP: usize = 1024;
/// Bytes of pages at which a transaction takes no more small ones: what is left of a record is for the keys, and for what is collected beside.
const MAX_SMALL_BYTES: usize = 1 << 20;
/// Bytes of pages at which a transaction takes no more bulk.
const MAX_GROUP_BYTES: usize = 16 << 20;
/// What writes more is bulk: about the pages of a transaction that somebody waits for at a terminal.
const BULK_BYTES: usize = 256 << 10;

/// What the queue wants to know of a command.
pub(crate) trait Waits {
    /// Bytes of pages that it writes.
    fn bytes(&self) -> usize;

    /// It has to stay in order with bulk, however small it is.
    fn is_of_bulk(&self) -> bool;
}

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Queue<C> {
    small: VecDeque<C>,
    bulk: VecDeque<C>,
}

impl<C> Default for Queue<C> {
    fn default() -> Self {
        Self {
            small: VecDeque::new(),
            bulk: VecDeque::new(),
        }
    }
}

impl<C: Waits> Queue<C> {
    /// A command came.
    pub(crate) fn push(&mut self, command: C) {
        if command.is_of_bulk() || command.bytes() > BULK_BYTES {
            self.bulk.push_back(command);
        } else {
            self.small.push_back(command);
        }
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.bulk.is_empty()
    }

    /// What goes into the next transaction, and how many bytes of pages that is.
    pub(crate) fn next_group(&mut self) -> (Vec<C>, usize) {
        let room = MAX_GROUP - usize::from(!self.bulk.is_empty());
        let (mut group, mut bytes) = (Vec::new(), 0);
        while group.len() < room
            && let Some(next) = self.small.front()
            && (group.is_empty() || bytes + next.bytes() <= MAX_SMALL_BYTES)
        {
            bytes += next.bytes();
            group.extend(self.small.pop_front());
        }
        let mut has_bulk = false;
        while group.len() < MAX_GROUP && (!has_bulk || bytes < MAX_GROUP_BYTES) {
            let Some(next) = self.bulk.pop_front() else {
                break;
            };
            bytes += next.bytes();
            group.push(next);
            has_bulk = true;
        }
        (group, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes, and a name.
    #[derive(Debug, PartialEq, Eq)]
    struct Command(usize, usize);

    impl Waits for Command {
        fn bytes(&self) -> usize {
            self.0
        }

        fn is_of_bulk(&self) -> bool {
            false
        }
    }

    const MIB: usize = 1 << 20;

    fn queue(commands: impl IntoIterator<Item = Command>) -> Queue<Command> {
        let mut queue = Queue::default();
        commands.into_iter().for_each(|command| queue.push(command));
        queue
    }

    #[test]
    fn q1_a_small_commit_behind_a_gigabyte_of_another_is_in_the_next_group() {
        let bulk = (0..256).map(|name| Command(4 * MIB, name));
        let mut queue = queue(bulk.chain([Command(8192, 1000)]));
        let (group, bytes) = queue.next_group();
        assert_eq!(group.first(), Some(&Command(8192, 1000)));
        assert!(bytes < MAX_GROUP_BYTES + 4 * MIB, "{bytes}");
        // The rest in its order.
        let mut next = 0;
        for command in group.into_iter().skip(1) {
            assert_eq!(command.1, next);
            next += 1;
        }
        while !queue.is_empty() {
            for command in queue.next_group().0 {
                assert_eq!(command.1, next);
                next += 1;
            }
        }
        assert_eq!(next, 256);
    }

    #[test]
    fn q2_bulk_is_never_put_off_by_however_many_small_ones() {
        let small = (0..10 * MAX_GROUP).map(|name| Command(20_000, name));
        let mut queue = queue_of_bulk_and(small);
        let (group, bytes) = queue.next_group();
        assert_eq!(group.len(), 1 + MAX_SMALL_BYTES / 20_000);
        assert_eq!(group.last(), Some(&Command(MIB, 77_777)));
        assert!(bytes <= MAX_SMALL_BYTES + MIB);
        let small = (0..10 * MAX_GROUP).map(|name| Command(20, name));
        let (group, _) = queue_of_bulk_and(small).next_group();
        assert_eq!(group.len(), MAX_GROUP);
        assert_eq!(group.last(), Some(&Command(MIB, 77_777)));
    }

    fn queue_of_bulk_and(small: impl Iterator<Item = Command>) -> Queue<Command> {
        queue([Command(MIB, 77_777)].into_iter().chain(small))
    }

    #[test]
    fn q4_a_group_of_small_ones_fits_a_record_and_keeps_their_order() {
        let mut queue = queue((0..40).map(|name| Command(BULK_BYTES, name)));
        let mut next = 0;
        while !queue.is_empty() {
            let (group, bytes) = queue.next_group();
            assert!(bytes <= MAX_SMALL_BYTES && group.len() == MAX_SMALL_BYTES / BULK_BYTES);
            for command in group {
                assert_eq!(command.1, next);
                next += 1;
            }
        }
        assert_eq!(next, 40);
        const { assert!(MAX_SMALL_BYTES + MAX_SMALL_BYTES / 4 < crate::log::record::MAX_RECORD) };
    }

    #[test]
    fn q3_a_group_is_bounded_and_never_empty_where_something_waits() {
        let mut queue = queue((0..40).map(|name| Command(64 * MIB * (name % 2), name)));
        let mut groups = 0;
        while !queue.is_empty() {
            let (group, _) = queue.next_group();
            let large = group.iter().filter(|command| command.0 > MIB).count();
            assert!(!group.is_empty() && large <= 1);
            groups += 1;
        }
        assert_eq!(groups, 20);
    }
}
