//! The subscription of this process to one database: what it was told, and whether that is enough to begin a transaction.
//!
//! Pure: it decides, [`super::DatabaseState`] sends and takes over. The invariants are those of `docs/versions.md`, "Push".
//!
//! ```text
//!         Subscribe              Subscribed{accepted}            Prepare n, answered PrepareAck
//!   None -----------> Asked ------------------------> Open -------------------------------------> Open{warned: n}
//!    ^                  | not accepted                ^   ^                                             |
//!    |<-----------------+                             |   +------ Published n / PrepareAborted n -------+
//!    |                                                +-- Published: told = its version
//!    |<---- Subscribed{not accepted}, stream lost, Unsubscribe (unused, or news that makes no sense): from anywhere
//! ```
//! * **S1** Only *Open*, strict and not warned lets a strict transaction begin without asking.
//! * **S3** A Prepare is ended by PrepareAborted of its version, Published of it or a later one, or the end of the subscription.
//! * **S5** Told of [`UNUSED_NEWS`] versions without a transaction in between, it ends.

use std::collections::VecDeque;
use std::time::Duration;

use pagewire_proto::{Changes, Snapshot, Version};

use crate::clock::Moment;
use crate::settings::SubscribeWhen;

/// With `subscribe=auto` a database is subscribed to when it was asked so often ...
const ASKS: usize = 3;
/// ... within this time. A reader that comes every few seconds costs less when it asks.
const WITHIN: Duration = Duration::from_secs(5);
/// Versions told of without a transaction in between after which the writers are not made to wait any longer.
const UNUSED_NEWS: u32 = 8;
/// After it was refused or ended by the server it is not subscribed to for so long.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// What the server says of a subscription.
#[derive(Clone, Debug)]
pub enum News {
    /// It is told of everything after this head; the changes are those since the version that was named.
    Subscribed(Snapshot, Changes),
    /// Refused, or ended by the server: it has to ask.
    Refused,
    /// This version is about to become visible.
    Prepare(Version),
    /// This version became visible; the changes are those from one that was told before.
    Published(Snapshot, Changes),
    /// The version that was prepared will not become visible.
    Aborted(Version),
}

/// What follows from news.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to be sent.
    Quiet,
    /// Take over the head and its changes.
    Advance(Snapshot, Changes),
    /// The same, and it ends: tell the server.
    AdvanceAndEnd(Snapshot, Changes),
    /// Subscribed: the same, and the head is certain unless something happened since the question.
    Begin(Snapshot, Changes, u64),
    /// Answer PrepareAck.
    Acknowledge(Version),
    /// Answer Unsubscribe.
    End,
}

/// See the file's header.
#[derive(Debug, Default)]
pub struct Subscription {
    phase: Phase,
    /// When the newest questions were asked, the oldest first.
    asks: VecDeque<Moment>,
    /// Until when it would be refused again.
    refused_until: Moment,
    /// Versions told of since a transaction began.
    unused: u32,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    None,
    Asked {
        number: u64,
        strict: bool,
        sent_at: Moment,
        doubts: u64,
    },
    Open {
        number: u64,
        strict: bool,
        sent_at: Moment,
        told: Version,
        warned: Option<Version>,
    },
}

impl Subscription {
    /// S1, as far as the subscription goes.
    pub fn is_trusting(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                strict: true,
                warned: None,
                ..
            }
        )
    }

    /// Whether news is on its way that will make it trusting again.
    pub fn is_warned(&self) -> bool {
        matches!(
            self.phase,
            Phase::Open {
                strict: true,
                warned: Some(_),
                ..
            }
        )
    }

    /// For people: `none`, `asked`, `strict`, `warned` (strict, and a commit is under way) or `bounded`.
    pub fn describe(&self) -> &'static str {
        match self.phase {
            Phase::None => "none",
            Phase::Asked { .. } => "asked",
            Phase::Open { strict: false, .. } => "bounded",
            Phase::Open { warned: None, .. } => "strict",
            Phase::Open {
                warned: Some(_), ..
            } => "warned",
        }
    }

    /// Since when it is told of everything.
    pub fn open_since(&self) -> Option<Moment> {
        match self.phase {
            Phase::Open { sent_at, .. } => Some(sent_at),
            Phase::None | Phase::Asked { .. } => None,
        }
    }

    /// A transaction begins without asking.
    pub fn used(&mut self) {
        self.unused = 0;
    }

    /// A transaction asks. Whether the database should be subscribed to now.
    pub fn asked(&mut self, now: Moment, strict: bool, when: SubscribeWhen) -> bool {
        self.unused = 0;
        let enough = match when {
            SubscribeWhen::Never => return false,
            SubscribeWhen::Always => true,
            SubscribeWhen::Auto => {
                self.asks.push_back(now);
                while self.asks.len() > ASKS {
                    self.asks.pop_front();
                }
                let first = self.asks.front().copied();
                self.asks.len() == ASKS && first.is_some_and(|first| now < first.after(WITHIN))
            }
        };
        let has_one = match self.phase {
            Phase::None => false,
            Phase::Asked { strict: has, .. } | Phase::Open { strict: has, .. } => has || !strict,
        };
        enough && !has_one && now >= self.refused_until
    }

    /// The number of a subscription that a new one replaces.
    pub fn number(&self) -> Option<u64> {
        match self.phase {
            Phase::None => None,
            Phase::Asked { number, .. } | Phase::Open { number, .. } => Some(number),
        }
    }

    /// Subscribe was sent.
    pub fn sent(&mut self, number: u64, strict: bool, now: Moment, doubts: u64) {
        self.phase = Phase::Asked {
            number,
            strict,
            sent_at: now,
            doubts,
        };
        self.unused = 0;
        self.asks.clear();
    }

    /// The stream is lost, or the database has lost its meaning.
    pub fn ends(&mut self) {
        *self = Self::default();
    }

    /// The server says something about the subscription with this number.
    pub fn told(&mut self, number: u64, news: News, now: Moment) -> Outcome {
        if self.number() != Some(number) {
            return match news {
                // Of one that has ended here. The server may not know it yet, and waits.
                News::Prepare(_) => Outcome::End,
                _ => Outcome::Quiet,
            };
        }
        match (&mut self.phase, news) {
            (
                Phase::Asked {
                    strict,
                    sent_at,
                    doubts,
                    ..
                },
                News::Subscribed(head, changes),
            ) => {
                let doubts = *doubts;
                self.phase = Phase::Open {
                    number,
                    strict: *strict,
                    sent_at: *sent_at,
                    told: head.version,
                    warned: None,
                };
                Outcome::Begin(head, changes, doubts)
            }
            (Phase::Asked { .. } | Phase::Open { .. }, News::Refused) => {
                self.phase = Phase::None;
                self.refused_until = now.after(REFUSED_FOR);
                Outcome::Quiet
            }
            (Phase::Open { warned, told, .. }, News::Prepare(version)) => {
                let follows = version > *told && warned.is_none_or(|warned| warned == version);
                if !follows || self.unused >= UNUSED_NEWS {
                    self.phase = Phase::None;
                    return Outcome::End;
                }
                *warned = Some(version);
                Outcome::Acknowledge(version)
            }
            (Phase::Open { warned, told, .. }, News::Published(head, changes)) => {
                let version = head.version;
                if version <= *told {
                    return Outcome::Quiet;
                }
                if warned.is_some_and(|warned| warned > version) {
                    self.phase = Phase::None;
                    return Outcome::End;
                }
                *told = version;
                *warned = None;
                self.unused += 1;
                if self.unused > UNUSED_NEWS {
                    self.phase = Phase::None;
                    return Outcome::AdvanceAndEnd(head, changes);
                }
                Outcome::Advance(head, changes)
            }
            (Phase::Open { warned, .. }, News::Aborted(version)) => {
                if *warned == Some(version) {
                    *warned = None;
                }
                Outcome::Quiet
            }
            // Subscribed twice, or news before Subscribed.
            (
                Phase::Open { .. } | Phase::Asked { .. } | Phase::None,
                News::Subscribed(..)
                | News::Refused
                | News::Prepare(_)
                | News::Published(..)
                | News::Aborted(_),
            ) => {
                self.phase = Phase::None;
                Outcome::End
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pagewire_proto::{PageCount, PageSize};

    use super::*;

    fn at(version: u64) -> Snapshot {
        Snapshot {
            version: Version::new(version),
            page_size: PageSize::try_from(4096).ok(),
            page_count: PageCount::try_from(1).unwrap(),
        }
    }

    const NOW: Moment = Moment(1 << 40);

    fn told_now(subscription: &mut Subscription, number: u64, news: News) -> Outcome {
        subscription.told(number, news, NOW)
    }

    fn nothing() -> Changes {
        Changes::Pages(Vec::new())
    }

    fn open(strict: bool) -> Subscription {
        let mut subscription = Subscription::default();
        subscription.sent(1, strict, Moment(5), 0);
        assert!(!subscription.is_trusting());
        let outcome = told_now(&mut subscription, 1, News::Subscribed(at(10), nothing()));
        assert_eq!(outcome, Outcome::Begin(at(10), nothing(), 0));
        assert_eq!(subscription.is_trusting(), strict);
        subscription
    }

    fn published(version: u64) -> News {
        News::Published(at(version), nothing())
    }

    #[test]
    fn s1_a_warned_subscription_lets_nothing_begin() {
        let mut subscription = open(true);
        let outcome = told_now(&mut subscription, 1, News::Prepare(Version::new(11)));
        assert_eq!(outcome, Outcome::Acknowledge(Version::new(11)));
        assert!(!subscription.is_trusting() && subscription.is_warned());
        let outcome = told_now(&mut subscription, 1, published(11));
        assert_eq!(outcome, Outcome::Advance(at(11), nothing()));
        assert!(subscription.is_trusting());
    }

    #[test]
    fn s3_only_its_own_end_ends_a_prepare() {
        let mut subscription = open(true);
        told_now(&mut subscription, 1, News::Prepare(Version::new(11)));
        told_now(&mut subscription, 1, News::Aborted(Version::new(10)));
        told_now(&mut subscription, 1, published(10));
        told_now(&mut subscription, 7, published(11));
        assert!(subscription.is_warned(), "ended by something else");
        told_now(&mut subscription, 1, News::Aborted(Version::new(11)));
        assert!(subscription.is_trusting());
    }

    #[test]
    fn what_is_told_twice_changes_nothing() {
        let mut subscription = open(true);
        for _ in 0..2 {
            let outcome = told_now(&mut subscription, 1, News::Prepare(Version::new(11)));
            assert_eq!(outcome, Outcome::Acknowledge(Version::new(11)));
        }
        told_now(&mut subscription, 1, published(11));
        assert_eq!(
            told_now(&mut subscription, 1, published(11)),
            Outcome::Quiet
        );
        assert!(subscription.is_trusting());
        // A Prepare of what is visible already: whoever sends that is not believed any more.
        let outcome = told_now(&mut subscription, 1, News::Prepare(Version::new(11)));
        assert_eq!(outcome, Outcome::End);
        assert!(!subscription.is_trusting());
    }

    #[test]
    fn s3_a_later_version_ends_a_prepare_and_an_earlier_one_does_not() {
        let mut subscription = open(true);
        told_now(&mut subscription, 1, News::Prepare(Version::new(11)));
        let outcome = told_now(&mut subscription, 1, published(13));
        assert_eq!(outcome, Outcome::Advance(at(13), nothing()));
        assert!(subscription.is_trusting());
        told_now(&mut subscription, 1, News::Prepare(Version::new(15)));
        assert_eq!(told_now(&mut subscription, 1, published(14)), Outcome::End);
        assert!(!subscription.is_trusting());
    }

    #[test]
    fn s3_the_server_may_end_it_in_place_of_news() {
        let mut subscription = open(true);
        told_now(&mut subscription, 1, News::Prepare(Version::new(11)));
        assert_eq!(
            told_now(&mut subscription, 1, News::Refused),
            Outcome::Quiet
        );
        assert!(!subscription.is_trusting() && !subscription.is_warned());
    }

    #[test]
    fn s3_a_lost_stream_ends_it_and_a_late_prepare_is_answered() {
        let mut subscription = open(true);
        subscription.ends();
        assert!(!subscription.is_trusting());
        assert_eq!(
            told_now(&mut subscription, 1, published(11)),
            Outcome::Quiet
        );
        let outcome = told_now(&mut subscription, 1, News::Prepare(Version::new(11)));
        assert_eq!(outcome, Outcome::End);
    }

    #[test]
    fn s5_who_does_not_read_is_not_waited_for() {
        let mut subscription = open(true);
        let mut version = 10;
        let mut told = |subscription: &mut Subscription| {
            version += 1;
            let outcome = told_now(subscription, 1, News::Prepare(Version::new(version)));
            let goes_on = outcome == Outcome::Acknowledge(Version::new(version));
            if goes_on {
                told_now(subscription, 1, published(version));
            }
            goes_on
        };
        for _ in 0..UNUSED_NEWS {
            assert!(told(&mut subscription));
        }
        subscription.used();
        for _ in 0..UNUSED_NEWS {
            assert!(told(&mut subscription));
        }
        assert!(!told(&mut subscription), "it goes on for ever");
        // It is subscribed to again when it is asked again and again.
        for turn in 1..=ASKS {
            let wants = subscription.asked(Moment(turn as u64), true, SubscribeWhen::Auto);
            assert_eq!(wants, turn == ASKS);
        }
    }

    #[test]
    fn s5_bounded_ones_that_nobody_uses_end_too() {
        let mut subscription = open(false);
        for version in 11..=10 + u64::from(UNUSED_NEWS) {
            let outcome = told_now(&mut subscription, 1, published(version));
            assert!(matches!(outcome, Outcome::Advance(..)), "{version}");
        }
        let last = told_now(&mut subscription, 1, published(11 + u64::from(UNUSED_NEWS)));
        assert!(matches!(last, Outcome::AdvanceAndEnd(..)), "{last:?}");
        assert!(subscription.number().is_none());
    }

    #[test]
    fn asking_now_and_then_subscribes_to_nothing() {
        let mut subscription = Subscription::default();
        let mut now = Moment(0);
        for _ in 0..20 {
            now = now.after(WITHIN);
            assert!(!subscription.asked(now, true, SubscribeWhen::Auto));
            assert!(!subscription.asked(now, true, SubscribeWhen::Never));
        }
        assert!(subscription.asked(now, true, SubscribeWhen::Always));
    }

    #[test]
    fn after_a_refusal_it_asks_for_a_while() {
        let mut subscription = Subscription::default();
        let always = SubscribeWhen::Always;
        assert!(subscription.asked(Moment(1), true, always));
        subscription.sent(1, true, Moment(1), 0);
        assert_eq!(
            told_now(&mut subscription, 1, News::Refused),
            Outcome::Quiet
        );
        assert!(!subscription.asked(NOW.after(REFUSED_FOR / 2), true, always));
        assert!(subscription.asked(NOW.after(REFUSED_FOR), true, always));
    }

    #[test]
    fn a_strict_reader_is_not_content_with_a_bounded_subscription() {
        let mut subscription = open(false);
        assert!(!subscription.asked(Moment(1), false, SubscribeWhen::Always));
        assert!(subscription.asked(Moment(1), true, SubscribeWhen::Always));
        let mut subscription = open(true);
        assert!(!subscription.asked(Moment(1), false, SubscribeWhen::Always));
    }
}
