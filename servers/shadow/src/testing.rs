//! A key-value store for tests that keeps the contract of [`KeyValue`] and nothing more: in memory, with processes that die between
//! any two calls, answers that get lost, calls that happen twice or late, and calls that a test holds back.
//!
//! The [`Medium`] survives; a [`TestKeyValue`] is what one process has of it. Tags are hashes of the content, as ETags are.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{KeyValue, KeyValueError, Swap, Tag, Value};

/// What all processes see.
#[derive(Debug, Default)]
pub struct Medium {
    values: Mutex<BTreeMap<String, Bytes>>,
    late: Mutex<VecDeque<Late>>,
}

/// A call that was given up and still happens.
#[derive(Debug)]
enum Late {
    Put(String, Bytes),
    Swap(String, Option<Tag>, Bytes),
    Delete(String),
}

/// Calls by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// `get` and `get_if_changed`.
    pub gets: u64,
    /// `get_range`.
    pub ranges: u64,
    /// `put`.
    pub puts: u64,
    /// `swap`.
    pub swaps: u64,
    /// `delete`.
    pub deletes: u64,
    /// `list`.
    pub lists: u64,
    /// Bytes of values that were put and swapped in.
    pub bytes_written: u64,
}

/// When a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The call that it dies in has no effect.
    Before(u64),
    /// The call has happened, and nobody hears of it.
    After(u64),
}

/// How unpleasant a process has it; percentages of calls that write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Happened, but answers with an error.
    pub lost_answers: u64,
    /// Answers with an error, and happens some calls later.
    pub late: u64,
    /// Happens now and once more some calls later.
    pub twice: u64,
    /// Answers with an error and never happens.
    pub refused: u64,
    /// Of the random choices.
    pub seed: u64,
}

#[derive(Debug, Default)]
struct Process {
    calls: Calls,
    total: u64,
    death: Option<Death>,
    dead: bool,
    fail_next_put: bool,
    /// What happens to the next swaps of keys that begin so.
    troubles: (String, VecDeque<Trouble>),
    weather: Weather,
    random: u64,
    /// Keys that begin so are held back until they are let go: kind of call, beginning.
    held: Option<(Kind, String)>,
    waiting: bool,
}

/// What a swap meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Answers with an error, and happens when [`Medium::let_late_calls_happen`] says so, or some calls later.
    Late,
    /// There is no room.
    Full,
}

/// A kind of call that can be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `get`
    Get,
    /// `put`
    Put,
    /// `swap`
    Swap,
    /// `delete`
    Delete,
}

/// The medium as one process sees it.
#[derive(Debug)]
pub struct TestKeyValue {
    medium: Arc<Medium>,
    process: Mutex<Process>,
    let_go: Notify,
    reached: Notify,
}

/// What happens to a call.
enum Fate {
    Happens,
    LostAnswer,
    Late,
    Twice,
    Refused,
    DiesBefore,
    DiesAfter,
}

impl Medium {
    /// Keys that begin so.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let values = self.values.lock();
        let keys = values.keys().filter(|key| key.starts_with(prefix));
        keys.cloned().collect()
    }

    /// Flips a bit of a value.
    pub fn damage(&self, key: &str, byte: usize) {
        let mut values = self.values.lock();
        if let Some(value) = values.get_mut(key) {
            let mut bytes = value.to_vec();
            if let Some(byte) = bytes.get_mut(byte) {
                *byte ^= 0x10;
            }
            *value = Bytes::from(bytes);
        }
    }

    /// Lets everything happen that was given up.
    pub fn let_late_calls_happen(&self) {
        while self.one_late_call() {}
    }

    fn one_late_call(&self) -> bool {
        let Some(late) = self.late.lock().pop_front() else {
            return false;
        };
        match late {
            Late::Put(key, value) => self.put(&key, value),
            Late::Swap(key, expected, value) => {
                self.swap(&key, expected.as_ref(), value);
            }
            Late::Delete(key) => {
                self.values.lock().remove(&key);
            }
        }
        true
    }

    fn put(&self, key: &str, value: Bytes) {
        self.values.lock().insert(key.to_owned(), value);
    }

    fn swap(&self, key: &str, expected: Option<&Tag>, value: Bytes) -> Swap {
        let mut values = self.values.lock();
        if values.get(key).map(|value| tag(value)).as_ref() != expected {
            return Swap::Lost;
        }
        let tag = tag(&value);
        values.insert(key.to_owned(), value);
        Swap::Done(tag)
    }
}

fn tag(value: &[u8]) -> Tag {
    Tag(format!("{:08x}-{}", crc32fast::hash(value), value.len()))
}

impl TestKeyValue {
    /// A process.
    pub fn new(medium: &Arc<Medium>) -> Arc<Self> {
        Self::in_weather(medium, Weather::default())
    }

    /// A process whose calls do not go as it wishes.
    pub fn in_weather(medium: &Arc<Medium>, weather: Weather) -> Arc<Self> {
        Arc::new(Self {
            medium: Arc::clone(medium),
            process: Mutex::new(Process {
                weather,
                random: weather.seed,
                ..Process::default()
            }),
            let_go: Notify::new(),
            reached: Notify::new(),
        })
    }

    /// Calls so far.
    pub fn calls(&self) -> Calls {
        self.process.lock().calls
    }

    /// All calls so far.
    pub fn total(&self) -> u64 {
        self.process.lock().total
    }

    /// The process dies in this call, counted from now on; from then on it hears nothing but errors.
    pub fn dies(&self, death: Death) {
        let mut process = self.process.lock();
        process.total = 0;
        process.death = Some(death);
    }

    /// The next put fails as on a broken medium: commits put, collections only swap and delete.
    pub fn fail_next_put(&self) {
        self.process.lock().fail_next_put = true;
    }

    /// The next swaps of keys that begin so meet this, one after the other.
    pub fn next_swaps(&self, prefix: &str, troubles: &[Trouble]) {
        self.process.lock().troubles = (prefix.to_owned(), troubles.iter().copied().collect());
    }

    fn trouble(&self, key: &str) -> Option<Trouble> {
        let mut process = self.process.lock();
        let (prefix, troubles) = &mut process.troubles;
        match !prefix.is_empty() && key.starts_with(prefix.as_str()) {
            true => troubles.pop_front(),
            false => None,
        }
    }

    /// Calls of this kind for keys that begin so do not get on before [`TestKeyValue::let_go`].
    pub fn hold(&self, kind: Kind, prefix: &str) {
        self.process.lock().held = Some((kind, prefix.to_owned()));
    }

    /// Returns when a call is held back.
    pub async fn held(&self) {
        while !self.process.lock().waiting {
            self.reached.notified().await;
        }
    }

    /// The call that was held back gets on.
    pub fn let_go(&self) {
        let mut process = self.process.lock();
        process.held = None;
        process.waiting = false;
        self.let_go.notify_waiters();
    }

    async fn wait_if_held(&self, kind: Kind, key: &str) {
        loop {
            let notified = self.let_go.notified();
            {
                let mut process = self.process.lock();
                let held = process.held.as_ref();
                if held.is_none_or(|(held, prefix)| *held != kind || !key.starts_with(prefix)) {
                    return;
                }
                process.waiting = true;
                self.reached.notify_one();
            }
            notified.await;
        }
    }

    fn fate(&self, writes: bool, count: impl Fn(&mut Calls)) -> Result<Fate, KeyValueError> {
        let mut process = self.process.lock();
        if process.dead {
            return Err(KeyValueError::Unavailable("the process is dead".to_owned()));
        }
        count(&mut process.calls);
        process.total += 1;
        if let Some(death) = process.death {
            let (at, fate) = match death {
                Death::Before(at) => (at, Fate::DiesBefore),
                Death::After(at) => (at, Fate::DiesAfter),
            };
            if process.total == at {
                process.dead = true;
                return Ok(fate);
            }
        }
        process.random = process
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let dice = (process.random >> 33) % 100;
        if dice.is_multiple_of(3) {
            self.medium.one_late_call();
        }
        if !writes {
            return Ok(Fate::Happens);
        }
        let weather = process.weather;
        let mut bound = 0;
        for (percent, fate) in [
            (weather.lost_answers, Fate::LostAnswer),
            (weather.late, Fate::Late),
            (weather.twice, Fate::Twice),
            (weather.refused, Fate::Refused),
        ] {
            bound += percent;
            if dice < bound {
                return Ok(fate);
            }
        }
        Ok(Fate::Happens)
    }

    /// Lets a call that writes happen as its fate says.
    fn write<T>(
        &self,
        fate: &Fate,
        now: impl FnOnce() -> T,
        late: impl FnOnce() -> Late,
    ) -> Result<T, KeyValueError> {
        let lost = || KeyValueError::Unavailable("no answer".to_owned());
        match fate {
            Fate::Happens => Ok(now()),
            Fate::Twice => {
                let answer = now();
                self.medium.late.lock().push_back(late());
                Ok(answer)
            }
            Fate::LostAnswer | Fate::DiesAfter => {
                now();
                Err(lost())
            }
            Fate::Late => {
                self.medium.late.lock().push_back(late());
                Err(lost())
            }
            Fate::Refused | Fate::DiesBefore => Err(lost()),
        }
    }

    async fn read(&self, count: impl Fn(&mut Calls)) -> Result<(), KeyValueError> {
        // Calls of different tasks go in any order.
        tokio::task::yield_now().await;
        match self.fate(false, count)? {
            Fate::DiesBefore | Fate::DiesAfter => {
                Err(KeyValueError::Unavailable("no answer".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl KeyValue for TestKeyValue {
    fn name(&self) -> String {
        "test".to_owned()
    }

    fn durable(&self) -> bool {
        true
    }

    async fn get(&self, key: &str) -> Result<Option<Value>, KeyValueError> {
        self.wait_if_held(Kind::Get, key).await;
        self.read(|calls| calls.gets += 1).await?;
        let values = self.medium.values.lock();
        Ok(values.get(key).map(|content| Value {
            content: content.clone(),
            tag: tag(content),
        }))
    }

    async fn get_range(
        &self,
        key: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Bytes>, KeyValueError> {
        self.read(|calls| calls.ranges += 1).await?;
        let values = self.medium.values.lock();
        Ok(values.get(key).map(|content| {
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(content.len());
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            content.slice(from..from.saturating_add(length).min(content.len()))
        }))
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<(), KeyValueError> {
        tokio::task::yield_now().await;
        self.wait_if_held(Kind::Put, key).await;
        if std::mem::take(&mut self.process.lock().fail_next_put) {
            return Err(KeyValueError::Failed("the disk is broken".to_owned()));
        }
        let fate = self.fate(true, |calls| {
            calls.puts += 1;
            calls.bytes_written += value.len() as u64;
        })?;
        self.write(
            &fate,
            || self.medium.put(key, value.clone()),
            || Late::Put(key.to_owned(), value.clone()),
        )
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Tag>,
        value: Bytes,
    ) -> Result<Swap, KeyValueError> {
        tokio::task::yield_now().await;
        self.wait_if_held(Kind::Swap, key).await;
        let mut fate = self.fate(true, |calls| {
            calls.swaps += 1;
            calls.bytes_written += value.len() as u64;
        })?;
        match self.trouble(key) {
            None => {}
            Some(Trouble::Late) => fate = Fate::Late,
            Some(Trouble::Full) => return Err(KeyValueError::Full("the disk".to_owned())),
        }
        self.write(
            &fate,
            || self.medium.swap(key, expected, value.clone()),
            || Late::Swap(key.to_owned(), expected.cloned(), value.clone()),
        )
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        tokio::task::yield_now().await;
        self.wait_if_held(Kind::Delete, key).await;
        let fate = self.fate(true, |calls| calls.deletes += 1)?;
        self.write(
            &fate,
            || {
                self.medium.values.lock().remove(key);
            },
            || Late::Delete(key.to_owned()),
        )
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>, KeyValueError> {
        self.read(|calls| calls.lists += 1).await?;
        let values = self.medium.values.lock();
        let keys = values
            .keys()
            .filter(|key| key.starts_with(prefix) && key.as_str() > after);
        Ok(keys.take(limit).cloned().collect())
    }
}
