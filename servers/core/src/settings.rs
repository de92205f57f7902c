//! What an operator can set, with the reason for each default. Reads no environment: the command does that.

use std::time::Duration;

use crate::memory;

/// Settings of a page server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a session and its leases live without a heartbeat. Five seconds: longer than a pause of a busy machine, short
    /// enough that a vanished writer is noticed while a user still waits.
    pub lease_ttl: Duration,
    /// Connections that may be open at a time on all listeners: one more is closed at once. A client process has one.
    pub max_connections: usize,
    /// Bytes that requests on their way in and answers on their way out may take in all: what peers can make the server hold,
    /// whoever they are, beside sessions and what they have open. [`Settings::CONNECTION_BYTES`] of it are kept for each
    /// connection that may be open, the rest is shared.
    pub memory_bytes: usize,
    /// Sessions that may live at a time: each is a process, not a connection.
    pub max_sessions: usize,
    /// Databases that one session may have open.
    pub max_open_databases: usize,
    /// Databases that all sessions together may have open: bounds the tables of the server, about a kilobyte each.
    pub max_open_databases_in_total: usize,
    /// Stagings that all sessions together may have: about 200 bytes each, beside what the store keeps.
    pub max_stagings_in_total: usize,
    /// How long running transactions may go on after the server was asked to stop.
    pub grace: Duration,
    /// How long the server waits for the next message of an upload.
    pub upload_idle: Duration,
    /// How long a call other than a commit may wait for the store.
    pub store_wait: Duration,
    /// What it lacks as a server of an older release.
    #[cfg(feature = "simulation")]
    pub older: crate::older::Older,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(5),
            max_connections: 1024,
            memory_bytes: 1 << 30,
            max_sessions: 10_000,
            max_open_databases: pagewire_proto::limits::MAX_OPEN_DATABASES,
            max_open_databases_in_total: 200_000,
            max_stagings_in_total: 100_000,
            grace: Duration::from_secs(5),
            upload_idle: Duration::from_secs(30),
            store_wait: Duration::from_secs(30),
            #[cfg(feature = "simulation")]
            older: crate::older::Older::default(),
        }
    }
}

impl Settings {
    /// The shortest TTL: below it a heartbeat every third of it is lost in the scheduling of an ordinary machine.
    pub const MIN_LEASE_TTL: Duration = Duration::from_millis(100);
    /// The longest TTL: a vanished writer blocks a database no longer than this.
    pub const MAX_LEASE_TTL: Duration = Duration::from_secs(600);

    /// What a connection may make the server hold in any case: enough to commit and to read page by page, whatever others do.
    pub const CONNECTION_BYTES: usize = memory::CONNECTION_BYTES;
    /// What has to be left of `memory_bytes` for all connections together.
    pub const MIN_SHARED_BYTES: usize = memory::MIN_SHARED_BYTES;

    /// Everything that is wrong with the settings, each as a sentence.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(Self::MIN_LEASE_TTL..=Self::MAX_LEASE_TTL).contains(&self.lease_ttl) {
            problems.push(format!(
                "lease_ttl is {} ms, must be from {} to {}",
                self.lease_ttl.as_millis(),
                Self::MIN_LEASE_TTL.as_millis(),
                Self::MAX_LEASE_TTL.as_millis()
            ));
        }
        for (name, value) in [
            ("max_connections", self.max_connections),
            ("max_sessions", self.max_sessions),
            ("max_open_databases", self.max_open_databases),
            (
                "max_open_databases_in_total",
                self.max_open_databases_in_total,
            ),
            ("max_stagings_in_total", self.max_stagings_in_total),
        ] {
            if value == 0 {
                problems.push(format!("{name} is 0, must be at least 1"));
            }
        }
        let least = self
            .max_connections
            .saturating_mul(Self::CONNECTION_BYTES)
            .saturating_add(Self::MIN_SHARED_BYTES);
        if self.memory_bytes < least {
            problems.push(format!(
                "memory_bytes is {}, must be at least {least} for {} connections",
                self.memory_bytes, self.max_connections
            ));
        }
        problems
    }

    /// The TTL as the protocol sends it.
    pub(crate) fn lease_ttl_ms(&self) -> u32 {
        u32::try_from(self.lease_ttl.as_millis()).unwrap_or(u32::MAX)
    }
}
