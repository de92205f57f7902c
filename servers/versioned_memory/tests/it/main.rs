//! Tests of the versioned memory store.

mod conformance;
mod old_versions;
mod wrong_processes;
mod wrong_stores;
