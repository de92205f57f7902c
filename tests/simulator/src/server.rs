//! Server processes over the store of the simulation, which may outlive them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use pagewire_local::faults::Faults;
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_memory::MemoryStore;
use pagewire_server::store::PageStore;
use pagewire_server::{Server, Settings};
use pagewire_shadow::testing::{Medium, TestKeyValue, Weather};
use pagewire_shadow::{KeyValue, KeyValueError, ShadowOptions, ShadowStore, Swap, Tag, Value};
use pagewire_versioned_memory::VersionedMemoryStore;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::counts::{Event, count};
use crate::defect::Defective;
use crate::machine::disk::{self, DiskWeather};
use crate::machine::{self, ProcessId};
use crate::nemesis;
use crate::net;
use crate::older::Release;
use crate::plan::{self, Store};
use crate::random::Random;
use crate::watched::Watched;

static MEDIUM: Mutex<Option<Arc<Medium>>> = Mutex::new(None);

/// Of a machine that was killed, and has not started again: what it had not synced may be gone.
static POWER_WAS_LOST: AtomicBool = AtomicBool::new(false);

/// Of the local store's files: what it asks the operating system about its room would be another answer every time.
const FREE_BYTES: u64 = 1 << 40;
/// How soon the operator starts a server again whose disk has failed.
const REPAIR_NS: u64 = 2_000_000_000;

/// Of the newest server of each node.
static RELEASES: Mutex<BTreeMap<usize, Release>> = Mutex::new(BTreeMap::new());

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

/// Whether a server is asked to stop, and another one takes its place.
pub fn is_stopping(process: ProcessId) -> bool {
    let stops = STOPS.lock();
    stops
        .get(&process)
        .is_some_and(|stop| stop.then.lock().is_some())
}

/// Whether the server of a node has no calls of history.
pub fn lacks_history(node: usize) -> bool {
    let releases = RELEASES.lock();
    let release = releases.get(&node);
    release.is_some_and(|release| release.server.lacks_history())
}

/// The machine of a server was killed, its disk with it.
pub fn lost_power() {
    POWER_WAS_LOST.store(true, Ordering::SeqCst);
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
    let release = match random.percent(plan.older_percent) {
        true => Release::older(random, plan.may_lack_history() && !calm),
        false => Release::default(),
    };
    machine::trace(format_args!(
        "server {node} starts as p{process}, release: {release:?}"
    ));
    let older = release != Release::default();
    if older {
        count(Event::ServerOlder);
    }
    let before = RELEASES.lock().insert(node, release.clone());
    match before.map(|before| before != Release::default()) {
        Some(false) if older => count(Event::Downgraded),
        Some(true) if !older => count(Event::Upgraded),
        _ => {}
    }
    let folder = match plan.store {
        Store::Local => folder(process, random, calm),
        Store::Memory | Store::Versioned | Store::Shadow => None,
    };
    let stop = Arc::new(Stop::default());
    STOPS.lock().insert(process, Arc::clone(&stop));
    machine::spawn(process, "server", move || {
        let start = Start {
            seed,
            calm,
            release,
            folder,
        };
        serve(node, start, &stop)
    });
    process
}

/// With what a server begins.
struct Start {
    seed: u64,
    calm: bool,
    release: Release,
    /// Of the local store.
    folder: Option<PathBuf>,
}

/// What the server before it has left on the disk, and how the disk will treat it.
fn folder(process: ProcessId, random: &mut Random, calm: bool) -> Option<PathBuf> {
    let power_was_lost = POWER_WAS_LOST.swap(false, Ordering::SeqCst);
    let percent = if calm { 0 } else { plan::get().weather_percent };
    let weather = DiskWeather {
        random: random.fork(),
        full_percent: percent,
        copies_on_write: plan::get().copies_on_write,
        failing_per_mille: percent,
        failed: |process| {
            machine::at(machine::now() + REPAIR_NS, move || {
                nemesis::server_ended(process, 0, 0);
            });
        },
    };
    disk::set_weather(process, weather);
    match disk::next_folder(random, power_was_lost) {
        Ok(folder) => Some(folder),
        Err(error) => {
            machine::stop(Some(format!("the simulated disk: {error}")));
            None
        }
    }
}

fn serve(node: usize, start: Start, stop: &Arc<Stop>) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return machine::stop(Some(format!("no runtime: {error}"))),
    };
    runtime.block_on(async {
        let mut start = start;
        let server = loop {
            match build(&start).await {
                Ok(server) => break server,
                // The operator starts it again.
                Err(error) => {
                    machine::trace(format_args!("server {node} can't start: {error}"));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    // Other weather: the same again would be a medium that is full for ever.
                    start.seed = Random::new(start.seed).next();
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
    // It stays there, so that it can be told that this one ends.
    let Some((node, pause)) = *stop.then.lock() else {
        return;
    };
    let ended = server.close().await;
    machine::trace(format_args!("server {node} has ended: {ended:?}"));
    count(Event::ServerEnded);
    nemesis::server_ended(machine::process(), node, pause);
}

async fn build(start: &Start) -> anyhow::Result<Server> {
    let plan = plan::get();
    let Start {
        seed,
        calm,
        ref release,
        ref folder,
    } = *start;
    let store: Arc<dyn PageStore> = match plan.store {
        Store::Memory => Arc::new(MemoryStore::new()?),
        Store::Versioned => Arc::new(VersionedMemoryStore::new()?),
        Store::Local => {
            let faults = Arc::new(Faults::default());
            faults.set_free_bytes(Some(FREE_BYTES));
            let options = LocalOptions {
                map_bytes: 1 << 30,
                // So that stagings are written before their commit.
                staging_buffer_bytes: 64 << 10,
                retention: plan.retention_ms.map(Duration::from_millis),
                faults: Some(faults),
                ..LocalOptions::default()
            };
            let folder = folder.as_ref().context("a store without a disk")?;
            Arc::new(LocalStore::open_with(folder, options)?)
        }
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
    let store = release.around(Defective::around(Watched::around(store), plan.defect));
    let settings = Settings {
        lease_ttl: Duration::from_millis(plan.ttl_ms),
        grace: Duration::from_millis(plan.ttl_ms),
        older: release.server.clone(),
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
            true => {
                count(Event::MediumFull);
                Err(KeyValueError::Full("the disk".to_owned()))
            }
            false => Ok(()),
        }
    }
}

fn heard<T>(done: Result<T, KeyValueError>) -> Result<T, KeyValueError> {
    if done.is_err() {
        count(Event::MediumFailed);
    }
    done
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
        let done = heard(self.inner.put(key, value).await);
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
        let done = heard(self.inner.swap(key, expected, value).await);
        self.pause().await;
        done
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        self.pause().await;
        let done = heard(self.inner.delete(key).await);
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
