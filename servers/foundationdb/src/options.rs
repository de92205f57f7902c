//! How a store is opened, and what holds unless somebody says otherwise.

use std::path::PathBuf;
use std::time::Duration;

use pagewire_server::clock::Clock;

use crate::age;

/// How long versions are kept unless somebody says otherwise.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// How a [`crate::FoundationDbStore`] is opened.
#[derive(Clone, Debug)]
pub struct FoundationDbOptions {
    /// The directory of the cluster under which everything lies: one for each installation.
    pub directory: Vec<String>,
    /// The client library; `None` for the one that the system has.
    pub library: Option<PathBuf>,
    /// How long a version is kept after the next one was made; `None` for ever.
    pub retention: Option<Duration>,
    /// For the times of versions.
    pub clock: Clock,
    /// Largest commit that is one transaction, in bytes of pages as they are stored: well under the 10 MB of the cluster.
    pub commit_bytes: usize,
    /// Pages of a staging that wait in the memory of the server, in bytes.
    pub staging_buffer_bytes: usize,
    /// For how long a call is repeated while the cluster does not answer.
    pub patience: Duration,
    /// A server that says nothing for so long is dead: what it wrote ahead and what its sessions read need not be kept.
    pub dead_after: Duration,
    /// How long a name to which nobody commits is kept after it, or the lease of its database, was taken last.
    pub unborn_after: Duration,
    /// For how long, by the clock of the cluster, the commit of a dropped version and the id of a removed database are known. What the contract asks for
    /// (C14, V4), and not less but in tests.
    pub remembered: Duration,
    /// How often this server looks for what is not kept any more.
    pub collect_every: Duration,
}

impl Default for FoundationDbOptions {
    fn default() -> Self {
        Self {
            directory: vec!["pagewire".to_owned()],
            library: None,
            retention: Some(DEFAULT_RETENTION),
            clock: Clock::wall(),
            commit_bytes: 4 << 20,
            staging_buffer_bytes: 1 << 20,
            patience: Duration::from_secs(10),
            dead_after: Duration::from_secs(60),
            unborn_after: Duration::from_secs(24 * 3600),
            remembered: age::REMEMBERED,
            collect_every: Duration::from_secs(15),
        }
    }
}
