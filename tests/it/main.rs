//! End-to-end tests: the built server in a process of its own, the built VFS in this one and in others.
//!
//! Counts are per process, so these tests want a process each: `cargo nextest run`. Tests that are named after a letter
//! and a number (`w5_...`) keep a failure out that was seen in systems of this kind: W silently wrong data, H the host
//! dies, L leases and hangs, U unusable; most of those that concern host programs are in `tests/hosts.py`.

mod after_the_commit_point;
mod building;
mod causal;
mod commit_faults;
mod compression;
mod concurrency;
mod contract;
mod deltas;
mod disk_cache;
mod failed_transactions;
mod fairness;
mod first_transaction;
mod fuzz_corpus;
mod handover;
mod history;
mod hostile_memory;
mod hot_list;
mod leases;
mod local_files;
mod lost_messages;
mod outages;
mod prefetch;
mod readers;
mod regain;
mod removals;
mod roots;
mod round_trips;
mod set_back;
mod several_servers;
mod shared_cache;
mod silent_wrong_data;
mod sizes;
mod staging;
mod tenants;
mod versions;
