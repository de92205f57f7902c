//! The client library and its network thread: one of each in a process, started with the first store and stopped when the process ends.

// The one place of this crate that has to promise something to the library: that its network is stopped before the process ends.
#![expect(unsafe_code, reason = "the network thread is stopped at exit")]

use std::path::Path;
use std::sync::OnceLock;

use foundationdb::api::{FdbApiBuilder, NetworkAutoStop};
use pagewire_server::store::StoreError;
use parking_lot::Mutex;

static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
static NETWORK: Mutex<Option<NetworkAutoStop>> = Mutex::new(None);

/// Opens the client library: the one that is named, or that of the system.
pub(crate) fn load(library: Option<&Path>) -> Result<(), StoreError> {
    foundationdb_sys::load(library).map_err(|missing| {
        // Not remembered: another call may name another library.
        StoreError::Unavailable(format!(
            "the FoundationDB client library cannot be opened ({missing}): install the package foundationdb-clients 7.3 or \
             name the file libfdb_c.so in PAGEWIRE_FDB_LIBRARY"
        ))
    })
}

/// Starts the network of the library, which was opened; later calls answer as the first one.
pub(crate) fn start() -> Result<Network, StoreError> {
    let started = STARTED.get_or_init(boot);
    started.clone().map_err(StoreError::Unavailable)?;
    let network = Network(());
    // For a process that ends while it waits for the cluster.
    network.stops_at_exit();
    Ok(network)
}

/// Somebody who uses the network: see [`Network::stops_at_exit`].
#[derive(Debug)]
pub(crate) struct Network(());

fn boot() -> Result<(), String> {
    let api = FdbApiBuilder::default().build();
    let api =
        api.map_err(|e| format!("the FoundationDB client library is not of version 7.3: {e}"))?;
    // SAFETY: `stop` below drops the handle before the process ends: see `Network::stops_at_exit`.
    let network = unsafe { api.boot() };
    let network =
        network.map_err(|e| format!("the network of FoundationDB cannot be started: {e}"))?;
    *NETWORK.lock() = Some(network);
    Ok(())
}

impl Network {
    /// Has the network stopped when the process ends, before what the library made up to now is torn down.
    ///
    /// Handlers of `atexit` run in the reverse order of their registration, and the library registers some whenever it makes a static for the
    /// first time, most of them on its network thread, which begins beside us. What was torn down before the network was stopped, that
    /// thread reads as it ends (SIGSEGV). So this is called again once a transaction was answered, after which the thread makes
    /// hardly anything new, and when the last of a store is dropped, for what it did make. A process that ends before its first store is open has
    /// the first call only, which may be too early.
    pub(crate) fn stops_at_exit(&self) {
        // SAFETY: a function without parameters, which does not unwind: it only drops what is in a static.
        if unsafe { libc::atexit(stop) } != 0 {
            tracing::warn!("the network of FoundationDB will not be stopped when the process ends");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stops_at_exit();
    }
}

extern "C" fn stop() {
    drop(NETWORK.lock().take());
}
