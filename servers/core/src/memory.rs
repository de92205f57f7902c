//! How much memory peers can make the server hold, and who gets it.
//!
//! The operator sets one number (`memory_bytes`). A part of it belongs to the connections, a fixed floor each, so that whoever sends
//! small requests and reads single pages is served whatever the others do; the rest is four pools that all share:
//!
//! | pool | what is charged | when there is none |
//! |---|---|---|
//! | messages | headers of calls; a message from its length prefix until the next one, or the end of the call | a call is refused, a message waits |
//! | answers | pages of an answer, twice (as read, as sent), until the transport has sent them | fewer pages are answered |
//! | answers | news of a session, from the queue until the transport has sent them, beyond the floor of news | the client hears less, or loses its stream |
//! | uploads | pages of commits that were checked and wait for the rest | they are staged in the store |
//! | uploads | pages that are not raw: as they came, as they will be, and their bases (`service/encoded.rs`) | the client sends them raw |
//! | windows | what HTTP/2 lets a peer send before anybody reads it | a narrower window |
//!
//! * **M-1** Nothing is buffered before it is charged, and everything charged is given back when it is dropped.
//! * **M-2** Who waits for a pool holds nothing of that pool, and waits at most [`WAIT`]: no two calls wait for each other.
//! * **M-3** In a pool at most one call of a connection waits at a time: connections are served in turn, however many calls they make.
//! * **M-4** No connection has more than a quarter of a pool.
//! * **M-5** A message that was begun is complete within [`MESSAGE_WAIT`], an answer is taken within [`ANSWER_WAIT`]; otherwise the
//!   call, or the connection, ends. What an idle peer holds comes back.
//! * **M-6** News have a floor of their own, and are charged once, from the queue until they are sent; an answer of [`SMALL_ANSWER`] at
//!   most is part of what its call costs. So no answer, however large or slow, breaks the stream of a session, and none takes
//!   the outcome of a commit away: a client loses its stream only by news that it does not take itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pagewire_proto::limits::MAX_REQUEST_BYTES;
use pagewire_proto::status::Reason;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;

/// How long a call waits for memory before it is told to try again: longer than an ordinary burst.
pub(crate) const WAIT: Duration = Duration::from_secs(5);
/// How long one message may be on its way once it was begun: 2 MiB at 1.2 Mbit/s.
pub(crate) const MESSAGE_WAIT: Duration = Duration::from_secs(15);
/// How long a client may take an answer to itself: 4 MiB at 600 kbit/s.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// Messages of a connection that need nothing from the pool: one with a page of the largest size, and a few small ones.
const MESSAGE_FLOOR: usize = 128 << 10;
/// Answers of a connection that need nothing from the pool: one page of the largest size, as read and as sent.
const ANSWER_FLOOR: usize = 144 << 10;
/// News of a connection that need nothing from the pool: a few hundred small ones, or a few with the longest list of pages. A client
/// that takes what it is sent has far fewer under way.
const NEWS_FLOOR: usize = 64 << 10;
/// Longest answer that is no more than what its call costs anyway: the outcome of a commit, a grant, a head with a few changes.
pub(crate) const SMALL_ANSWER: usize = 1 << 10;
/// The smallest window of a connection: HTTP/2 allows no smaller one.
const MIN_WINDOW: usize = 64 << 10;
/// The largest: with half of it for each stream, 80 MB/s at 100 ms of delay.
const MAX_WINDOW: usize = 16 << 20;
/// What of the windows that are left a new connection gets: the first ones get wide ones, none is left without.
const WINDOW_SHARE: usize = 16;
/// Frames are collected before they are counted.
const MIN_FRAME: usize = 16 << 10;
const MAX_FRAME: usize = 1 << 20;

/// What each connection may make the server hold in any case.
pub(crate) const CONNECTION_BYTES: usize =
    MESSAGE_FLOOR + ANSWER_FLOOR + NEWS_FLOOR + MIN_WINDOW + MIN_FRAME;
/// The least that has to be left for the pools: below it a single connection could not send the largest message.
pub(crate) const MIN_SHARED_BYTES: usize = 16 * MAX_REQUEST_BYTES;
const POOLS: usize = 4;
const SHARES: usize = 4;

/// The pools of a server.
#[derive(Debug)]
pub(crate) struct Memory {
    messages: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    windows: Arc<Semaphore>,
    pool_bytes: usize,
}

/// What one connection holds.
#[derive(Debug)]
pub(crate) struct Account {
    /// Calls and their messages.
    pub(crate) messages: Lane,
    answers: Lane,
    /// Without a floor: what finds no room here has another way.
    uploads: Lane,
    /// With a floor of its own; beyond it the part of the answers (M-4, M-6).
    news: Lane,
    _window: Option<OwnedSemaphorePermit>,
    window_bytes: usize,
    /// When the answers and news that were not taken yet were begun, in their order.
    unsent: Mutex<BTreeMap<u64, Instant>>,
    answers_so_far: AtomicU64,
}

/// The part of a connection in one pool.
#[derive(Debug)]
pub(crate) struct Lane {
    floor: Arc<Semaphore>,
    floor_bytes: usize,
    share: Arc<Semaphore>,
    pool: Arc<Semaphore>,
    /// Held by the one call that waits for the pool.
    turn: tokio::sync::Mutex<()>,
}

/// Memory that was given out; it goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    permit: OwnedSemaphorePermit,
    /// The same amount of the connection's share, for what comes from the pool.
    share: Option<OwnedSemaphorePermit>,
}

/// The charge of an answer; it goes back when the transport has sent the last of its bytes.
#[derive(Clone, Debug)]
pub(crate) struct AnswerCharge {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    charge: Mutex<Charge>,
    _unsent: Unsent,
}

/// Something on its way to the client that the client has to take in time (M-5).
#[derive(Debug)]
pub(crate) struct Unsent {
    number: u64,
    account: Arc<Account>,
}

fn overloaded() -> Status {
    Reason::Overloaded
        .status("the server has no memory for this call now (memory_bytes): try again")
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Memory {
    /// `memory_bytes` for so many connections.
    pub(crate) fn new(memory_bytes: usize, max_connections: usize) -> Arc<Self> {
        let shared = memory_bytes.saturating_sub(max_connections.saturating_mul(CONNECTION_BYTES));
        let pool_bytes = (shared.max(MIN_SHARED_BYTES) / POOLS).min(Semaphore::MAX_PERMITS);
        let pool = || Arc::new(Semaphore::new(pool_bytes));
        Arc::new(Self {
            messages: pool(),
            answers: pool(),
            uploads: pool(),
            windows: pool(),
            pool_bytes,
        })
    }

    /// The account of a new connection.
    pub(crate) fn open_account(&self) -> Arc<Account> {
        let window = (self.windows.available_permits() / WINDOW_SHARE).min(MAX_WINDOW);
        // The frame that is collected counts too.
        let granted = (window > MIN_WINDOW)
            .then(|| {
                Arc::clone(&self.windows)
                    .try_acquire_many_owned(permits(window))
                    .ok()
            })
            .flatten();
        let window_bytes = granted
            .as_ref()
            .map_or(MIN_WINDOW, |granted| granted.num_permits() / 8 * 7);
        let answers = self.lane(&self.answers, ANSWER_FLOOR);
        Arc::new(Account {
            messages: self.lane(&self.messages, MESSAGE_FLOOR),
            news: answers.beside(NEWS_FLOOR),
            answers,
            uploads: self.lane(&self.uploads, 0),
            _window: granted,
            window_bytes: window_bytes.max(MIN_WINDOW),
            unsent: Mutex::default(),
            answers_so_far: AtomicU64::new(0),
        })
    }

    fn lane(&self, pool: &Arc<Semaphore>, floor_bytes: usize) -> Lane {
        Lane {
            floor: Arc::new(Semaphore::new(floor_bytes)),
            floor_bytes,
            share: Arc::new(Semaphore::new(self.pool_bytes / SHARES)),
            pool: Arc::clone(pool),
            turn: tokio::sync::Mutex::default(),
        }
    }
}

impl Lane {
    /// Another floor, for what comes out of the same part of the pool.
    fn beside(&self, floor_bytes: usize) -> Self {
        Self {
            floor: Arc::new(Semaphore::new(floor_bytes)),
            floor_bytes,
            share: Arc::clone(&self.share),
            pool: Arc::clone(&self.pool),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Memory without waiting for it.
    pub(crate) fn try_take(&self, bytes: usize) -> Result<Charge, Status> {
        self.try_floor(bytes)
            .or_else(|| self.try_pool(bytes))
            .ok_or_else(overloaded)
    }

    /// Memory, in order (M-2, M-3).
    pub(crate) async fn take(&self, bytes: usize) -> Result<Charge, Status> {
        if let Ok(charge) = self.try_take(bytes) {
            return Ok(charge);
        }
        let waiting = async {
            if bytes <= self.floor_bytes {
                tokio::select! {
                    charge = self.wait_for_floor(bytes) => charge,
                    charge = self.wait_for_pool(bytes) => charge,
                }
            } else {
                self.wait_for_pool(bytes).await
            }
        };
        match tokio::time::timeout(WAIT, waiting).await {
            Ok(Some(charge)) => Ok(charge),
            Ok(None) | Err(_) => Err(overloaded()),
        }
    }

    fn try_floor(&self, bytes: usize) -> Option<Charge> {
        let permit = Arc::clone(&self.floor).try_acquire_many_owned(permits(bytes));
        permit.ok().map(|permit| Charge {
            permit,
            share: None,
        })
    }

    fn try_pool(&self, bytes: usize) -> Option<Charge> {
        let bytes = permits(bytes);
        let share = Arc::clone(&self.share).try_acquire_many_owned(bytes).ok()?;
        let permit = Arc::clone(&self.pool).try_acquire_many_owned(bytes).ok()?;
        Some(Charge {
            permit,
            share: Some(share),
        })
    }

    async fn wait_for_floor(&self, bytes: usize) -> Option<Charge> {
        let permit = Arc::clone(&self.floor).acquire_many_owned(permits(bytes));
        permit.await.ok().map(|permit| Charge {
            permit,
            share: None,
        })
    }

    async fn wait_for_pool(&self, bytes: usize) -> Option<Charge> {
        let bytes = permits(bytes);
        let _turn = self.turn.lock().await;
        let share = Arc::clone(&self.share)
            .acquire_many_owned(bytes)
            .await
            .ok()?;
        let permit = Arc::clone(&self.pool)
            .acquire_many_owned(bytes)
            .await
            .ok()?;
        Some(Charge {
            permit,
            share: Some(share),
        })
    }
}

impl Charge {
    /// How much it is.
    pub(crate) fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// Both of them as one; of the same connection and pool.
    pub(crate) fn merge(&mut self, other: Self) {
        self.permit.merge(other.permit);
        match (&mut self.share, other.share) {
            (Some(share), Some(other)) => share.merge(other),
            (share @ None, other) => *share = other,
            (Some(_), None) => {}
        }
    }

    /// Gives back what is above this.
    fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes().saturating_sub(bytes);
        drop(self.permit.split(surplus));
        if let Some(share) = &mut self.share {
            drop(share.split(surplus));
        }
    }
}

impl Account {
    /// What HTTP/2 lets the peer send before anybody reads it, of a whole connection.
    pub(crate) fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    /// The largest frame: it is collected before it is counted.
    pub(crate) fn frame_bytes(&self) -> usize {
        (self.window_bytes / 8).clamp(MIN_FRAME, MAX_FRAME)
    }

    /// Room for pages of an upload, if there is any.
    pub(crate) fn try_keep_upload(&self, bytes: usize) -> Option<Charge> {
        self.uploads.try_pool(bytes)
    }

    /// Memory for an answer: as much as is wanted, or less where there is little, but never less than `least`.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        most: usize,
        least: usize,
    ) -> Result<AnswerCharge, Status> {
        let mut wanted = most.max(least);
        let charge = loop {
            match self.answers.try_take(wanted) {
                Ok(charge) => break charge,
                Err(_) if wanted > least => wanted = (wanted / 2).max(least),
                Err(_) => break self.answers.take(least).await?,
            }
        };
        Ok(self.hold(charge))
    }

    /// Memory for an answer that is there already, if there is any.
    pub(crate) fn try_answer(self: &Arc<Self>, bytes: usize) -> Result<AnswerCharge, Status> {
        self.answers.try_take(bytes).map(|charge| self.hold(charge))
    }

    /// Memory for news, if there is any (M-6).
    pub(crate) fn try_news(self: &Arc<Self>, bytes: usize) -> Result<AnswerCharge, Status> {
        self.news.try_take(bytes).map(|charge| self.hold(charge))
    }

    fn hold(self: &Arc<Self>, charge: Charge) -> AnswerCharge {
        AnswerCharge {
            held: Arc::new(Held {
                charge: Mutex::new(charge),
                _unsent: self.sending(),
            }),
        }
    }

    /// The client has to take what is sent from now on, in time.
    pub(crate) fn sending(self: &Arc<Self>) -> Unsent {
        let number = self.answers_so_far.fetch_add(1, Ordering::Relaxed);
        self.unsent.lock().insert(number, Instant::now());
        Unsent {
            number,
            account: Arc::clone(self),
        }
    }

    /// The peer does not take its answers (M-5).
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        let unsent = self.unsent.lock();
        unsent
            .first_key_value()
            .is_some_and(|(_, begun)| now.duration_since(*begun) > ANSWER_WAIT)
    }
}

impl AnswerCharge {
    /// How much it is.
    pub(crate) fn bytes(&self) -> usize {
        self.held.charge.lock().bytes()
    }

    /// The answer became smaller than it could have been.
    pub(crate) fn shrink_to(&self, bytes: usize) {
        self.held.charge.lock().shrink_to(bytes);
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.account.unsent.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests;
