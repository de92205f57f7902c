//! What the connections of a process share: clients by endpoint and credential, and the private journals.
//!
//! After fork() the child has the parent's memory but none of its threads, and shares its sockets. So everything hangs on
//! the process id: a child gets a `Process` of its own, and the parent's is left alone, neither used nor dropped (T16).

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use pagewire_proto::DatabaseName;
use parking_lot::Mutex;

use crate::client::{Client, Transactions};
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::ffi::{ForkLocal, process_id};
use crate::file::journal::Journals;
use crate::settings::{ConnectionSettings, DiskSettings, ProcessSettings};

/// See the file's header.
pub struct Process {
    pid: u32,
    /// Read once, when the first database is opened.
    pub settings: Result<ProcessSettings>,
    /// Journals of all connections.
    pub journals: Mutex<Journals>,
    /// Over the databases of all clients.
    transactions: Arc<Transactions>,
    clients: Mutex<HashMap<ClientKey, Weak<Client>>>,
}

/// Endpoint and credential.
pub type ClientKey = (Endpoint, Option<String>);

static CURRENT: ForkLocal<Process> = ForkLocal::new();

impl Process {
    /// The process that is running now.
    pub fn current() -> &'static Process {
        #[cfg(feature = "simulation")]
        if let Some(simulated) = crate::simulation::process(|| Self::new(process_id())) {
            return simulated;
        }
        CURRENT.get(Self::new)
    }

    fn new(pid: u32) -> Self {
        Self {
            pid,
            settings: ProcessSettings::from_environment(),
            journals: Mutex::new(Journals::default()),
            transactions: Arc::default(),
            clients: Mutex::new(HashMap::new()),
        }
    }

    /// An error in a child that uses what its parent opened.
    pub fn check_not_forked(&self) -> Result<()> {
        if process_id() == self.pid {
            return Ok(());
        }
        Err(Error::new(
            Kind::Io,
            "the connection was opened before fork(): a child has to open its own",
        ))
    }

    /// Opens a connection.
    pub fn open(&self, settings: ConnectionSettings) -> Result<Connection> {
        use pagewire_proto::pb::OpenMode;
        let client = self.client(
            &settings.endpoint,
            settings.token.as_deref(),
            settings.disk.as_ref(),
        )?;
        let mode = match (settings.read_only, settings.create) {
            (true, _) => OpenMode::ReadOnly,
            (false, false) => OpenMode::ReadWrite,
            (false, true) => OpenMode::Create,
        };
        let (database, looked) =
            client.database_named(&settings.name, mode, settings.at.as_ref(), settings.timeout)?;
        if settings.read_only {
            database.check_versions()?;
        }
        Connection::new(database, looked, settings)
    }

    /// Removes a database of the process's endpoint and all of its versions; `false` if there is none.
    pub fn delete_database(&self, name: &DatabaseName) -> Result<bool> {
        let settings = self.settings.as_ref().map_err(Clone::clone)?;
        // As for a connection: one that opens meanwhile shares the client, and its disk cache.
        let disk = settings.disk();
        self.client(&settings.endpoint, settings.token.as_deref(), disk.as_ref())?
            .delete_database(name, settings.timeout)
    }

    fn client(
        &self,
        endpoint: &Endpoint,
        token: Option<&str>,
        disk: Option<&DiskSettings>,
    ) -> Result<Arc<Client>> {
        let process_settings = self.settings.as_ref().map_err(Clone::clone)?;
        let mut clients = self.clients.lock();
        let key = (endpoint.clone(), token.map(str::to_owned));
        if let Some(client) = clients.get(&key).and_then(Weak::upgrade) {
            return Ok(client);
        }
        clients.retain(|_, client| client.strong_count() > 0);
        let client = Arc::new(Client::new(
            endpoint,
            token,
            process_settings.cache_bytes,
            process_settings.compression,
            disk,
            &self.transactions,
        )?);
        clients.insert(key, Arc::downgrade(&client));
        Ok(client)
    }
}
