//! Tests of the versioned memory store.

mod conformance;
