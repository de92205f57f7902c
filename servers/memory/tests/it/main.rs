//! Tests of the memory store, and of the conformance suite by stores that are wrong.

mod conformance;
mod endpoint;
mod limits;
mod wrong_stores;
