//! The page server with the memory store, through the generated client, over loopback TCP or (where time is paused) pipes
//! in memory: no part of it is replaced.

mod barriers;
mod commit_each;
mod commits;
mod contention;
mod deadlocks;
mod encodings;
mod gate;
mod harness;
mod history;
mod hostile;
mod leases;
mod memory;
mod opens;
mod peers;
mod push;
mod push_at_random;
mod push_outcomes;
mod push_page_1;
mod push_silent;
mod serving;
mod sessions;
mod settling;
mod staging;
mod wrong_sessions;
