//! The FoundationDB store against a real cluster, which the tests start. Without an `fdbserver` they say that they were not run.

mod cluster;
mod conformance;
mod counts;
mod crash;
mod damaged;
mod depth;
mod known;
mod large;
mod left;
mod pins;
mod reads;
mod removed;
mod servers;
mod sessions;
mod skew;
mod slow;
mod unknown;
