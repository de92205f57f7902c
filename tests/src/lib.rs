//! What the end-to-end tests are made of: a real server process, proxies that lose things on purpose, and guests.
//!
//! Nothing in here imitates Pagewire: the server is the built command and every database goes through the built VFS.

pub mod connection;
pub mod delay;
pub mod process;
pub mod proxy;
pub mod random;
pub mod server;
pub mod shim;
pub mod wire;
