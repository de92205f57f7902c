//! The bodies of the targets.

pub mod targets;
