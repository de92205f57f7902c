//! Tests of the versioned memory store.

mod conformance;
mod wrong_stores;
