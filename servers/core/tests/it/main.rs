//! The page server over loopback TCP with the memory store, through the generated client: no part of it is replaced.

mod commits;
mod harness;
