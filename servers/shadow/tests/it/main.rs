//! The adapter over a store that changes one key at a time.

mod calls;
mod conformance;
mod crash;
mod endpoint;
mod peers;
mod scene;
mod servers;
mod stagings;
mod upkeep;
