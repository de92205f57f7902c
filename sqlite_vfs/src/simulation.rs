//! What a simulator puts in place of the world outside: several processes in one, and a network that is none.
//!
//! Only with the feature `simulation`, and without effect until [`install`] was called. Time, randomness and threads need no
//! seam: the simulator stands in for the operating system there.

pub mod pages;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use pagewire_proto::status::Reason;

use crate::error::{CallError, Error};
use crate::process::Process;

pub use crate::error::Kind;

/// A connection of the simulated network.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that is coming about.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// The world outside.
pub trait World: Send + Sync {
    /// Which simulated process the calling thread belongs to.
    fn process(&self) -> u64;
    /// Whether it is a client of an older release: it names no capabilities, uses none that a server names, and numbers nothing.
    fn is_older(&self) -> bool {
        false
    }
    /// Connects to `host:port`.
    fn connect(&self, authority: &str) -> Connecting;
    /// SQLite is told of an error, on the calling thread. SQLite's number says less: damage and bugs are I/O errors there.
    fn failed(&self, kind: Kind, message: &str);
    /// So many leases that the calling process had were over before its server heard of it again, and are somebody else's or nobody's.
    fn leases_expired(&self, _count: usize) {}
    /// Whether pages that a server calls invalid in another encoding go again raw. If not, the simulator has to find it.
    fn sends_raw_again(&self) -> bool {
        true
    }
    /// A message of the session was not sent, since the server is of an older release and may not know it.
    fn withheld(&self) {}
    /// A server has refused a call and said why, whether or not anybody else is told of it.
    fn refused(&self, reason: Reason, message: &str);
}

/// What the disk caches of all simulated processes were worth.
pub fn disk_cache() -> crate::client::counters::DiskCount {
    crate::client::counters::DISK.read()
}

static WORLD: OnceLock<&'static dyn World> = OnceLock::new();
static PROCESSES: Mutex<BTreeMap<u64, &'static Process>> = Mutex::new(BTreeMap::new());

/// From now on this process is a simulated world. A second call changes nothing.
pub fn install(world: &'static dyn World) {
    let _ = WORLD.set(world);
}

pub(crate) fn world() -> Option<&'static dyn World> {
    WORLD.get().copied()
}

/// See [`World::is_older`].
pub(crate) fn is_older() -> bool {
    world().is_some_and(World::is_older)
}

/// See [`World::failed`].
pub(crate) fn failed(error: &Error) {
    if let Some(world) = world() {
        world.failed(error.kind, &error.message);
    }
}

/// See [`World::refused`].
pub(crate) fn refused(error: &CallError) {
    if let (Some(world), true) = (world(), error.explicit) {
        world.refused(error.reason, &error.message);
    }
}

/// See [`World::sends_raw_again`].
pub(crate) fn sends_raw_again() -> bool {
    world().is_none_or(World::sends_raw_again)
}

/// See [`World::withheld`].
pub(crate) fn withheld() {
    if let Some(world) = world() {
        world.withheld();
    }
}

/// See [`World::leases_expired`].
pub(crate) fn leases_expired(count: usize) {
    if let Some(world) = world() {
        world.leases_expired(count);
    }
}

/// What the connections of the simulated process share. It stays when the process is killed, as memory that nobody reaches.
pub(crate) fn process(make: impl FnOnce() -> Process) -> Option<&'static Process> {
    let number = world()?.process();
    let mut processes = PROCESSES.lock();
    Some(
        processes
            .entry(number)
            .or_insert_with(|| Box::leak(Box::new(make()))),
    )
}
