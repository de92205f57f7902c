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

/// Opens the client library (the one that is named, or that of the system) and starts its network; later calls answer as the first one.
pub(crate) fn start(library: Option<&Path>) -> Result<(), StoreError> {
    if let Err(missing) = foundationdb_sys::load(library) {
        // Not remembered: another call may name another library.
        return Err(StoreError::Unavailable(format!(
            "the FoundationDB client library cannot be opened ({missing}): install the package foundationdb-clients 7.3 or \
             name the file libfdb_c.so in PAGEWIRE_FDB_LIBRARY"
        )));
    }
    let started = STARTED.get_or_init(boot);
    started.clone().map_err(StoreError::Unavailable)
}

fn boot() -> Result<(), String> {
    let api = FdbApiBuilder::default().build();
    let api =
        api.map_err(|e| format!("the FoundationDB client library is not of version 7.3: {e}"))?;
    // SAFETY: `stop` below drops the handle before the process ends: see `stop_at_exit`.
    let network = unsafe { api.boot() };
    let network =
        network.map_err(|e| format!("the network of FoundationDB cannot be started: {e}"))?;
    *NETWORK.lock() = Some(network);
    stop_at_exit();
    Ok(())
}

/// Has the network stopped when the process ends, before what the library made up to now is torn down.
///
/// Handlers run in the reverse order of their registration, and the library registers some whenever it makes a static for the first
/// time. So this is called again when a store is dropped: whoever has no store makes nothing new.
pub(crate) fn stop_at_exit() {
    // SAFETY: a function without parameters, which does not unwind: it only drops what is in a static.
    if unsafe { libc::atexit(stop) } != 0 {
        tracing::warn!("the network of FoundationDB will not be stopped when the process ends");
    }
}

extern "C" fn stop() {
    drop(NETWORK.lock().take());
}
