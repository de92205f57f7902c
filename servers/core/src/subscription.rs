//! Who hears of the new versions of one database, and for whom a commit has to wait.
//!
//! A synchronous state machine like the one of the lease: time is a parameter, nothing here waits, sends or logs;
//! `push.rs` does. The client's side of it, and S1 to S7, are in `docs/versions.md`. A strict subscription at the server:
//!
//! ```text
//!   ask            accept(head)             warn(n, until)                    answer n
//!  ─────▶ Asked ─────────────────▶ Trusting ───────────────▶ Warned, awaited ──────────▶ Warned, answered
//!           │                        ▲                        │  │ until is over          │ │
//!           │ refuse                 ├── published, aborted ──│──│────────────────────────┘ │ ends
//!           ▼                        └────────────────────────┘  ▼                          ▼
//!         gone ◀───────────── unsubscribe · close · new stream · end of the session · told of the end
//! ```
//! A subscription that is not strict is never warned.
//!
//! Invariants, cited by the tests:
//! * **U-1** A session has at most one subscription to a database: the one of its newest Subscribe on its present stream.
//! * **U-2** Only an answer, the end of its window, or its own end makes a warned subscription not awaited (S2).
//! * **U-3** The server ends a strict subscription only where its client can't trust it: warned and answered, or its window over.
//!   One that is to end and may be trusted is warned first.
//! * **U-4** A window is counted from what was heard before the warning: the acknowledgement of a later heartbeat stands
//!   behind the warning on the stream. So who never answers delays a commit once, by one TTL at most.
//! * **U-5** While the outcome of a commit is not known there is no strict subscription that is not about to end, and none begins (S6).
//! * **U-6** A session that let a warning run into its window has no strict subscription until it has answered a Prepare: its strict
//!   Subscribe is refused, and followed by a Prepare of that subscription for which nobody waits. So a client that never answers
//!   delays a commit once, however often it subscribes; one that slept has answered when it has read what came meanwhile.
//! * **U-7** For one session and database at most one task waits to answer a Subscribe, however many come and go meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use pagewire_proto::{Epoch, SessionId, Version};
use tokio::time::Instant;

use crate::session::Session;

/// The subscriptions to one database.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    by_session: HashMap<SessionId, Subscription>,
    unsettled: Option<Unsettled>,
}

#[derive(Debug)]
struct Subscription {
    session: Weak<Session>,
    number: u64,
    strict: bool,
    wants_page_1: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not answered yet. The client knows everything up to this version.
    Asked { known: Version },
    /// The client was told of everything up to this version, and may begin without asking.
    Trusting { told: Version },
    /// The client is not to begin without asking.
    Warned {
        told: Version,
        /// The version it was warned of.
        version: Version,
        /// When its window is over; `None` where it has answered.
        until: Option<Instant>,
        /// It ends with the answer.
        ends: bool,
    },
}

/// A commit whose outcome is not known, or several.
#[derive(Clone, Copy, Debug)]
struct Unsettled {
    /// The newest version that one of them would make.
    version: Version,
    /// The newest epoch that one of them names.
    epoch: Epoch,
}

/// A subscription, as the one who sends its news needs it.
#[derive(Clone, Debug)]
pub(crate) struct Subscriber {
    pub(crate) session: Arc<Session>,
    pub(crate) number: u64,
    pub(crate) strict: bool,
    /// With each version.
    pub(crate) wants_page_1: bool,
}

/// A Subscribe that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) number: u64,
    pub(crate) strict: bool,
    pub(crate) wants_page_1: bool,
    pub(crate) known: Version,
}

/// What an answer to a warning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// It stays, and hears how it ends.
    Stays,
    /// It was to end, and is gone.
    Ended,
    /// Not awaited: too late, or about another.
    Ignored,
}

/// Why a subscription ended without a word of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// It was to end with its answer, which has come.
    Answered,
    /// It did not answer within its window (U-6).
    Silent,
}

impl Subscriptions {
    /// A Subscribe came (U-1).
    pub(crate) fn ask(&mut self, session: &Arc<Session>, asked: Asked) {
        self.by_session.insert(
            session.id,
            Subscription {
                session: Arc::downgrade(session),
                number: asked.number,
                strict: asked.strict,
                wants_page_1: asked.wants_page_1,
                state: State::Asked { known: asked.known },
            },
        );
    }

    /// The Subscribe of a session that waits for its answer.
    pub(crate) fn asked(&self, session: &Arc<Session>) -> Option<Asked> {
        let subscription = self.by_session.get(&session.id)?;
        if !std::ptr::eq(subscription.session.as_ptr(), Arc::as_ptr(session)) {
            // Of a session that began later under the same id.
            return None;
        }
        match subscription.state {
            State::Asked { known } => Some(Asked {
                number: subscription.number,
                strict: subscription.strict,
                wants_page_1: subscription.wants_page_1,
                known,
            }),
            State::Trusting { .. } | State::Warned { .. } => None,
        }
    }

    /// The answer is given now. False where the question is not the same any more.
    pub(crate) fn accept(&mut self, session: SessionId, number: u64, head: Version) -> bool {
        match self.of(session, number) {
            Some(subscription) if matches!(subscription.state, State::Asked { .. }) => {
                subscription.state = State::Trusting { told: head };
                true
            }
            _ => false,
        }
    }

    /// The subscription of a session that was accepted.
    pub(crate) fn accepted(&self, session: SessionId) -> Option<u64> {
        let subscription = self.by_session.get(&session)?;
        subscription.told().map(|_| subscription.number)
    }

    /// Ends a subscription. False where the number is not that of the present one.
    pub(crate) fn remove(&mut self, session: SessionId, number: u64) -> bool {
        self.of(session, number).is_some() && self.by_session.remove(&session).is_some()
    }

    /// Ends whatever the session has.
    pub(crate) fn remove_session(&mut self, session: SessionId) {
        self.by_session.remove(&session);
    }

    /// Nobody has subscribed.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_session.is_empty()
    }

    /// Everybody whose Subscribe was accepted.
    pub(crate) fn subscribers(&self) -> Vec<Subscriber> {
        self.by_session
            .values()
            .filter(|subscription| subscription.told().is_some())
            .filter_map(|subscription| {
                Some(Subscriber {
                    session: subscription.session.upgrade()?,
                    number: subscription.number,
                    strict: subscription.strict,
                    wants_page_1: subscription.wants_page_1,
                })
            })
            .collect()
    }

    /// Warns a strict subscriber of a version, or of the one after the last that it was told of; `ends` where it is to end with the
    /// answer. The version of which it is to be told, if anything.
    pub(crate) fn warn(
        &mut self,
        subscriber: &Subscriber,
        version: Option<Version>,
        until: Instant,
        ends: bool,
    ) -> Option<Version> {
        let subscription = self.of(subscriber.session.id, subscriber.number)?;
        match &mut subscription.state {
            &mut State::Trusting { told } if subscription.strict => {
                let version = version.unwrap_or(told.next());
                // It exists already: the commit can only be refused, or repeat one that was applied.
                if version <= told {
                    return None;
                }
                subscription.state = State::Warned {
                    told,
                    version,
                    until: Some(until),
                    ends,
                };
                Some(version)
            }
            // Of the same version, for none becomes visible without an end of the warning.
            State::Warned { ends: to_end, .. } => {
                *to_end |= ends;
                None
            }
            State::Asked { .. } | State::Trusting { .. } => None,
        }
    }

    /// The client has answered the warning of this version.
    pub(crate) fn answer(&mut self, session: SessionId, number: u64, version: Version) -> Answered {
        let Some(subscription) = self.of(session, number) else {
            return Answered::Ignored;
        };
        match &mut subscription.state {
            State::Warned {
                version: of,
                until: until @ Some(_),
                ends,
                ..
            } if *of == version => {
                *until = None;
                if *ends {
                    self.by_session.remove(&session);
                    return Answered::Ended;
                }
                Answered::Stays
            }
            _ => Answered::Ignored,
        }
    }

    /// Ends the subscription if it may be ended without a word of its client (U-3). The client is to be told.
    pub(crate) fn expire(&mut self, subscriber: &Subscriber, now: Instant) -> Option<Expired> {
        let subscription = self.of(subscriber.session.id, subscriber.number)?;
        let expired = match subscription.state {
            State::Warned {
                until: Some(until), ..
            } if until <= now => Expired::Silent,
            State::Warned {
                until: None,
                ends: true,
                ..
            } => Expired::Answered,
            State::Warned { .. } | State::Asked { .. } | State::Trusting { .. } => return None,
        };
        self.remove(subscriber.session.id, subscriber.number)
            .then_some(expired)
    }

    /// Until when an answer is awaited.
    pub(crate) fn awaited(&self) -> Option<Instant> {
        self.by_session
            .values()
            .filter_map(|subscription| match subscription.state {
                State::Warned { until, .. } => until,
                State::Asked { .. } | State::Trusting { .. } => None,
            })
            .max()
    }

    /// The oldest version up to which somebody was told, of those who were not told of this one.
    pub(crate) fn behind(&self, version: Version) -> Option<Version> {
        self.by_session
            .values()
            .filter_map(Subscription::told)
            .filter(|told| *told < version)
            .min()
    }

    /// The subscriber is told of this version: that ends a warning (S3). False where it knows it, or is to end: from the news on
    /// it would be trusted. Nor is he told who knows less than the version since which the news are.
    pub(crate) fn publish(
        &mut self,
        subscriber: &Subscriber,
        since: Version,
        head: Version,
    ) -> bool {
        let Some(subscription) = self.of(subscriber.session.id, subscriber.number) else {
            return false;
        };
        match subscription.state {
            State::Trusting { told }
            | State::Warned {
                told, ends: false, ..
            } if (since..head).contains(&told) => {
                subscription.state = State::Trusting { told: head };
                true
            }
            State::Asked { .. } | State::Trusting { .. } | State::Warned { .. } => false,
        }
    }

    /// The version was not made: that ends a warning of it (S3). True where the subscriber is to be told.
    pub(crate) fn abort(&mut self, subscriber: &Subscriber, version: Version) -> bool {
        let Some(subscription) = self.of(subscriber.session.id, subscriber.number) else {
            return false;
        };
        match subscription.state {
            State::Warned {
                told,
                version: of,
                ends: false,
                ..
            } if of == version => {
                subscription.state = State::Trusting { told };
                true
            }
            State::Asked { .. } | State::Trusting { .. } | State::Warned { .. } => false,
        }
    }

    /// There is a strict subscription that may be trusted.
    pub(crate) fn has_strict(&self) -> bool {
        self.by_session
            .values()
            .any(|subscription| subscription.strict && subscription.told().is_some())
    }

    // -------------------------------------------------------------------------------------------- unknown outcomes

    /// The outcome of a commit that would make this version is not known (U-5).
    pub(crate) fn unsettle(&mut self, version: Version, epoch: Epoch) {
        let unsettled = self.unsettled.get_or_insert(Unsettled { version, epoch });
        unsettled.version = unsettled.version.max(version);
        unsettled.epoch = unsettled.epoch.max(epoch);
    }

    /// The store has said that this is the current epoch.
    pub(crate) fn fenced(&mut self, current: Epoch) {
        self.is_settled(Version::ZERO, current);
    }

    /// The outcome of no commit is unknown.
    pub(crate) fn all_known(&self) -> bool {
        self.unsettled.is_none()
    }

    /// Whether every outcome is known, given the head and an epoch below which the store refuses all commits.
    ///
    /// A version that exists was made by one of them or by another: the others are refused by C4. One that does not exist is
    /// never made under an epoch that is not the current one (C5).
    pub(crate) fn is_settled(&mut self, head: Version, current: Epoch) -> bool {
        self.unsettled = self
            .unsettled
            .filter(|unsettled| unsettled.version > head && unsettled.epoch >= current);
        self.unsettled.is_none()
    }

    fn of(&mut self, session: SessionId, number: u64) -> Option<&mut Subscription> {
        self.by_session
            .get_mut(&session)
            .filter(|subscription| subscription.number == number)
    }
}

impl Subscription {
    fn told(&self) -> Option<Version> {
        match self.state {
            State::Asked { .. } => None,
            State::Trusting { told } | State::Warned { told, .. } => Some(told),
        }
    }
}

#[cfg(test)]
mod tests;
