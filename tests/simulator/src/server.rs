//! Server processes over the store of the simulation, which may outlive them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pagewire_memory::MemoryStore;
use pagewire_server::store::PageStore;
use pagewire_server::{Server, Settings};
use pagewire_shadow::testing::{Medium, TestKeyValue, Weather};
use pagewire_shadow::{KeyValue, KeyValueError, ShadowOptions, ShadowStore, Swap, Tag, Value};
use pagewire_versioned_memory::VersionedMemoryStore;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::defect::Defective;
use crate::machine::{self, ProcessId};
use crate::nemesis;
use crate::net;
use crate::older::Older;
use crate::plan::{self, Store};
use crate::random::Random;

static MEDIUM: Mutex<Option<Arc<Medium>>> = Mutex::new(None);

/// Those that may be asked to stop, and what follows: the node, and how long until the next one starts.
static STOPS: Mutex<BTreeMap<ProcessId, Arc<Stop>>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Stop {
    asked: Notify,
    then: Mutex<Option<(usize, u64)>>,
}

/// The operator stops a server in order, and starts another one at the node so many nanoseconds after it has ended.
pub fn ask_to_stop(process: ProcessId, node: usize, pause: u64) {
    if let Some(stop) = STOPS.lock().get(&process) {
        *stop.then.lock() = Some((node, pause));
        stop.asked.notify_one();
    }
}

/// What survives all processes.
fn medium() -> Arc<Medium> {
    Arc::clone(MEDIUM.lock().get_or_insert_default())
}

/// Starts a server process at a node; in the calm its medium does what it is asked.
pub fn start(node: usize, random: &mut Random, calm: bool) -> ProcessId {
    let plan = plan::get();
    let drift = i64::try_from(random.below(2 * plan.drift_ppm + 1)).unwrap_or(0);
    let process = machine::new_process(random, drift - i64::try_from(plan.drift_ppm).unwrap_or(0));
    net::server_starts(process, node);
    let seed = random.next();
    let older = random.percent(plan.older_percent);
    machine::trace(format_args!(
        "server {node} starts as p{process}, older: {older}"
    ));
    let stop = Arc::new(Stop::default());
    STOPS.lock().insert(process, Arc::clone(&stop));
    machine::spawn(process, "server", move || {
        serve(node, seed, calm, older, &stop)
    });
    process
}

fn serve(node: usize, seed: u64, calm: bool, older: bool, stop: &Arc<Stop>) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return machine::stop(Some(format!("no runtime: {error}"))),
    };
    runtime.block_on(async {
        let server = loop {
            match build(seed, calm, older).await {
                Ok(server) => break server,
                // The operator starts it again.
                Err(error) => {
                    machine::trace(format_args!("server {node} can't start: {error}"));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        tokio::spawn(stop_when_asked(server.clone(), Arc::clone(stop)));
        loop {
            let socket = net::accept(node).await;
            tokio::spawn(server.clone().serve_stream(socket));
        }
    });
}

async fn stop_when_asked(server: Server, stop: Arc<Stop>) {
    stop.asked.notified().await;
    let Some((node, pause)) = stop.then.lock().take() else {
        return;
    };
    let ended = server.close().await;
    machine::trace(format_args!("server {node} has ended: {ended:?}"));
    nemesis::server_ended(machine::process(), node, pause);
}

async fn build(seed: u64, calm: bool, older: bool) -> anyhow::Result<Server> {
    let plan = plan::get();
    let store: Arc<dyn PageStore> = match plan.store {
        Store::Memory => Arc::new(MemoryStore::new()?),
        Store::Versioned => Arc::new(VersionedMemoryStore::new()?),
        Store::Shadow => {
            let percent = if calm { 0 } else { plan.weather_percent };
            let weather = Weather {
                lost_answers: percent,
                late: percent,
                twice: percent,
                refused: percent,
                seed,
            };
            let disk = Disk {
                inner: TestKeyValue::in_weather(&medium(), weather),
                random: Mutex::new(Random::new(seed)),
                full_percent: percent,
            };
            let options = ShadowOptions {
                keep_replaced: Duration::from_secs(60),
                ..ShadowOptions::default()
            };
            Arc::new(ShadowStore::open_with(Arc::new(disk), options).await?)
        }
    };
    let store = Older::around(Defective::around(store, plan.defect), older);
    let settings = Settings {
        lease_ttl: Duration::from_millis(plan.ttl_ms),
        grace: Duration::from_millis(plan.ttl_ms),
        ..Settings::default()
    };
    Ok(Server::builder(store).settings(settings).build().await?)
}

/// A medium that takes its time, before a call happens and after it: a server that is killed meanwhile dies at either moment.
#[derive(Debug)]
struct Disk {
    inner: Arc<TestKeyValue>,
    random: Mutex<Random>,
    full_percent: u64,
}

impl Disk {
    async fn pause(&self) {
        let us = {
            let mut random = self.random.lock();
            let slow = random.percent(2);
            let us = random.between(20, 2_000);
            if slow { us * 50 } else { us }
        };
        tokio::time::sleep(Duration::from_micros(us)).await;
    }

    fn check_room(&self) -> Result<(), KeyValueError> {
        match self.random.lock().percent(self.full_percent) {
            true => Err(KeyValueError::Full("the disk".to_owned())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl KeyValue for Disk {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn durable(&self) -> bool {
        self.inner.durable()
    }

    async fn get(&self, key: &str) -> Result<Option<Value>, KeyValueError> {
        self.pause().await;
        self.inner.get(key).await
    }

    async fn get_range(
        &self,
        key: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Bytes>, KeyValueError> {
        self.pause().await;
        self.inner.get_range(key, offset, length).await
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<(), KeyValueError> {
        self.pause().await;
        self.check_room()?;
        let done = self.inner.put(key, value).await;
        self.pause().await;
        done
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Tag>,
        value: Bytes,
    ) -> Result<Swap, KeyValueError> {
        self.pause().await;
        self.check_room()?;
        let done = self.inner.swap(key, expected, value).await;
        self.pause().await;
        done
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        self.pause().await;
        let done = self.inner.delete(key).await;
        self.pause().await;
        done
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>, KeyValueError> {
        self.pause().await;
        self.inner.list(prefix, after, limit).await
    }
}
