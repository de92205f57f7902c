//! The log: what makes a commit durable with one sync, so that the engine needs none of its own.
//!
//! The engine runs without syncs. What a transaction of it puts and deletes is first appended to the log and synced, then committed to the
//! engine, which only writes to the cache of the operating system. Now and then everything so far is synced in the background: a
//! *checkpoint*. Opening goes back to the last checkpoint and does again what the log has since.
//!
//! # Files
//! * `data.mdb`: the engine's. It never writes to a page that its root, or the root of an open read transaction, reaches; a
//!   freed page is used again only when no reader is as old as the transaction that freed it (LMDB, `mdb_page_alloc`, `mdb_find_oldest`). Its
//!   two roots are the first two pages, transaction T in the place T & 1 (`mdb_env_write_meta`), and are all that is ever written in place.
//! * `log.0`, `log.1`: records, one for each transaction, at multiples of 4 KiB, in one file until a checkpoint begins, then in the other. They
//!   are as long as they will be, and written once, before they are used: overwriting needs no sync of the file system's own tables.
//! * `checkpoint`: two slots, each with the number of a transaction S, both roots as they were then, and which log file has what is after S.
//!
//! A record has the number of its transaction in the engine, the *run* (a random number of this opening of the store), its length, CRC-32 of its body, of
//! its header, and that of the record before it.
//!
//! # States
//! ```text
//!             begin: roots of T copied, T pinned, the log goes on in the other file
//!   Settled(S) ------------------------------------------------------------------> UnderWay(S, T)
//!       ^                                                                             | data.mdb synced
//!       |   S let go, its log file free                                               | slot 0 := T, synced
//!       +-----------------------------------------------------------------------------+ slot 1 := T, synced
//!
//!   Opening: slots -> records after S -> roots of S put back -> engine opened, S pinned -> records done again -> checkpoint, closed
//!            -> a new run in the engine and in the log files -> checkpoint, serving
//! ```
//! A failed write or sync leads from any of them to Failed, where nothing is written, until the store is opened anew.
//!
//! # Invariants
//! * **LOG1** A record is durable before its transaction is committed to the engine: nothing is answered, and nothing is shown to a reader,
//!   that a loss of power takes back. (Committing first would show it before: pages of a version that is gone afterwards, and whose number another gets.)
//! * **LOG2** A record is written when the one before it is durable, into blocks of its own, which are not written again while a slot
//!   needs them. So at most one can be torn, the last one, of which nobody was told; one that is not whole *and has whole ones behind
//!   it* was acknowledged and is damaged: the store is refused (Corrupt), nothing behind it is dropped in silence.
//! * **LOG3** While a slot names S a read transaction of S is open: no page that S reaches is written. With its roots put back S is
//!   there, whatever else was written to the file or lost, in any order; what is free in S may have any content.
//! * **LOG4** S is let go, and its log file written anew, when *both* slots name a later one. So each whole slot can be opened from: one of them may be
//!   torn or damaged at any time. A slot is written when the data that it names is synced, and the second when the first is.
//! * **LOG5** Numbers in the log are those of the engine, one by one; no transaction is without one. A root of the engine in the file with a higher number than
//!   the last record tells that the log has lost one (it was cut short, is an older copy, or its last record is damaged);
//!   one that is lower than S, that the file is an older copy than the checkpoint. Both are refused. The run is a row of the engine,
//!   in the slots, and in the header of each log file: files of different stores, copies or times do not go together, and are refused.
//! * **LOG6** Opening is one path, after a stop, a kill and a loss of power. It can end anywhere and begin again: until its checkpoint is
//!   in a slot it writes only roots, and pages that S does not reach. What it builds on it first makes durable: after a sync that failed the cache
//!   of the operating system has what the disk may not have, so slots and the last record are written again, as they are, and synced.
//! * **LOG7** A transaction that does not fit a record (stagings, large groups) is announced by a *mark* in the log with its number T; then
//!   the engine commits it with syncs of its own, data before root, and a checkpoint of T is made before anything else. If the mark is the last record and
//!   the file has the root T, T is whole and is the base; if it has not, T never was.
//! * **LOG8** What the engine refuses after it was logged (no room: `room.rs`) is taken back in the log, durably, before that is
//!   answered; the next record takes its number and its place.
//! * **LOG9** After a failed write or sync nothing is written. After a failed sync of `data.mdb` nothing is read either: pages that were
//!   committed since the last checkpoint may have been lost from the cache, and older ones be read in their place.
//! * **LOG10** A checkpoint begins when half of a log file is used, when as much was written as [`WORK_BYTES`], or [`MOST_AGE`] after
//!   the first commit since: so the file grows by what is pinned meanwhile and no more, and a store that is left alone needs no log. A
//!   commit waits for one only when the log file is full. Where room is short one is made before each transaction, so that
//!   nothing is pinned (ROOM6).
//!
//! # Attacked
//! * *Loss of power in a commit.* Before the sync of the log ends: the record is torn or whole, nobody was told; LOG2. After it: it is done
//!   again. Pages of the engine are there in any part: LOG3.
//! * *In a checkpoint.* Data is synced with everything up to T and perhaps more: S is whole and the log behind it too. Slot 0 torn: slot 1
//!   has S. Slot 0 has T, slot 1 torn or S: T, whose log is the other file. In none of these was a page of S or of T written, nor their log.
//! * *In an opening.* Slots first get what they have; roots are put back by each opening; doing again starts over from S. The first
//!   transaction of the new run is in no log: between it and the slots the file may have a root S + 1 beside a slot that says *closed*, and no other.
//! * *Roots are torn or reordered.* They are not believed: the slots have them. Only their numbers are evidence (LOG5): a root
//!   with number n was written when record n was durable, or after the mark n.
//! * *The free list.* It is a tree of the engine like the other, reached from its root: LOG3 is of it too. Its head in memory is of a
//!   transaction, and is read anew by the next.
//! * *Long readers* hold back the same pages as ever. *The engine's lock file* is made anew by the only process that has the directory.
//! * *The log's last record rots before a restart.* Like a torn one: only the root of the engine tells (LOG5), if it was written back in time. It is exposed
//!   for [`MOST_AGE`] at most: with a checkpoint after it the record is not needed.
