//! The FoundationDB store against a real cluster, which the tests start. Without an `fdbserver` they say that they were not run.

mod cluster;
mod conformance;
mod crash;
mod large;
mod servers;
mod sessions;
