//! Tests of the local store: the contract, crashes, faults, and what is refused at opening.

mod conformance;
mod crash;
mod crash_collect;
mod measure;
mod opening;
mod places;
mod scene;
mod versions;
