//! Tests of the local store: the contract, crashes, faults, and what is refused at opening.

mod bench;
mod conformance;
mod crash;
mod crash_collect;
mod damage;
mod log;
mod measure;
mod opening;
mod places;
mod room;
mod scene;
mod steps;
mod versions;
