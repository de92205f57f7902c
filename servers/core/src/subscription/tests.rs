//! Each invariant by its number, then all of them after random steps.

use std::time::Duration;

use super::*;

const TTL: Duration = Duration::from_secs(5);
const EPOCH: Epoch = Epoch::new(7);

fn version(number: u64) -> Version {
    Version::new(number)
}

/// A table with a clock and some sessions.
struct World {
    table: Subscriptions,
    sessions: Vec<Arc<Session>>,
    now: Instant,
}

impl World {
    fn new(sessions: u8) -> Self {
        let now = Instant::now();
        Self {
            table: Subscriptions::default(),
            sessions: (0..sessions)
                .map(|n| Arc::new(Session::new(SessionId::from_bytes([n; 16]), now)))
                .collect(),
            now,
        }
    }

    /// With a strict subscription of each session, told of version 1.
    fn trusting(sessions: u8) -> Self {
        let mut world = Self::new(sessions);
        for n in 0..sessions.into() {
            world.ask(n, 1, true);
            assert!(world.accept(n, 1, 1));
        }
        world
    }

    fn id(&self, n: usize) -> SessionId {
        self.sessions[n].id
    }

    fn ask(&mut self, n: usize, number: u64, strict: bool) {
        let asked = Asked {
            number,
            strict,
            wants_page_1: false,
            known: Version::ZERO,
        };
        self.table.ask(&self.sessions[n], asked);
    }

    fn accept(&mut self, n: usize, number: u64, head: u64) -> bool {
        self.table.accept(self.id(n), number, version(head))
    }

    fn subscriber(&self, n: usize, number: u64) -> Subscriber {
        Subscriber {
            session: Arc::clone(&self.sessions[n]),
            number,
            strict: true,
            wants_page_1: false,
        }
    }

    fn warn(&mut self, n: usize, to: u64) -> Option<Version> {
        let subscriber = self.subscriber(n, 1);
        let until = self.now + TTL;
        self.table
            .warn(&subscriber, Some(version(to)), until, false)
    }

    fn wind_down(&mut self, n: usize) -> Option<Version> {
        let subscriber = self.subscriber(n, 1);
        let until = self.now + TTL;
        self.table.warn(&subscriber, None, until, true)
    }

    fn answer(&mut self, n: usize, of: u64) -> Answered {
        self.table.answer(self.id(n), 1, version(of))
    }

    fn publish(&mut self, n: usize, head: u64) -> bool {
        let subscriber = self.subscriber(n, 1);
        self.table
            .publish(&subscriber, Version::ZERO, version(head))
    }

    fn abort(&mut self, n: usize, of: u64) -> bool {
        let subscriber = self.subscriber(n, 1);
        self.table.abort(&subscriber, version(of))
    }

    fn expire(&mut self, n: usize) -> Option<Expired> {
        let subscriber = self.subscriber(n, 1);
        self.table.expire(&subscriber, self.now)
    }
}

#[test]
fn news_since_a_version_are_not_for_who_knows_less() {
    let mut world = World::new(2);
    world.ask(0, 1, false);
    world.ask(1, 1, false);
    assert!(world.accept(0, 1, 7));
    // While the news since version 7 were on their way.
    assert!(world.accept(1, 1, 5));
    let (first, second) = (world.subscriber(0, 1), world.subscriber(1, 1));
    assert!(world.table.publish(&first, version(7), version(8)));
    assert!(!world.table.publish(&second, version(7), version(8)));
    assert_eq!(world.table.behind(version(8)), Some(version(5)));
    assert!(world.table.publish(&second, version(5), version(8)));
    assert_eq!(world.table.behind(version(8)), None);
}

#[test]
fn u1_a_newer_subscribe_replaces_the_older_also_while_it_is_answered() {
    let mut world = World::new(1);
    world.ask(0, 1, true);
    world.ask(0, 2, false);
    assert!(!world.accept(0, 1, 5), "it is not the present one");
    assert!(world.accept(0, 2, 5));
    assert!(!world.accept(0, 2, 6), "once");
    world.ask(0, 3, true);
    assert_eq!(world.table.subscribers().len(), 0, "not accepted yet");
    let id = world.id(0);
    assert!(!world.table.remove(id, 2));
    assert!(world.table.remove(id, 3));
    assert_eq!(world.table.asked(&world.sessions[0]), None);
}

#[test]
fn u2_only_an_answer_the_end_of_the_window_or_the_end_lets_a_commit_go_on() {
    let mut world = World::trusting(3);
    for n in 0..3 {
        assert_eq!(world.warn(n, 2), Some(version(2)));
        assert_eq!(world.warn(n, 2), None, "told once");
    }
    assert_eq!(world.table.awaited(), Some(world.now + TTL));
    assert_eq!(world.answer(0, 1), Answered::Ignored, "of another version");
    assert_eq!(world.answer(0, 2), Answered::Stays);
    assert_eq!(world.answer(0, 2), Answered::Ignored, "once");
    world.table.remove_session(world.id(1));
    assert!(world.table.awaited().is_some());
    world.now += TTL - Duration::from_millis(1);
    assert_eq!((world.expire(0), world.expire(2)), (None, None));
    world.now += Duration::from_millis(1);
    assert_eq!(world.expire(0), None, "it has answered");
    assert_eq!(world.expire(2), Some(Expired::Silent));
    assert_eq!(world.table.awaited(), None);
    assert_eq!(world.answer(2, 2), Answered::Ignored, "too late");
    assert!(world.publish(0, 2) && !world.publish(2, 2));
}

#[test]
fn u3_a_subscription_that_may_be_trusted_ends_only_after_a_warning() {
    let mut world = World::trusting(2);
    assert_eq!(world.warn(0, 2), Some(version(2)));
    assert_eq!(world.answer(0, 2), Answered::Stays);
    assert_eq!(world.wind_down(0), None, "it is warned already");
    let expired = world.expire(0);
    assert_eq!(expired, Some(Expired::Answered), "waits for its end alone");
    assert_eq!(world.wind_down(1), Some(version(2)));
    assert_eq!(world.expire(1), None);
    assert!(world.table.has_strict());
    assert!(!world.publish(1, 2), "it would be trusted again");
    assert!(!world.abort(1, 2));
    assert_eq!(world.answer(1, 2), Answered::Ended);
    assert!(!world.table.has_strict());
}

#[test]
fn u4_a_window_does_not_grow_after_the_warning() {
    let mut world = World::trusting(1);
    world.warn(0, 2);
    let until = world.table.awaited();
    world.now += TTL / 2;
    world.warn(0, 2);
    world.wind_down(0);
    assert_eq!(world.table.awaited(), until);
}

#[test]
fn u5_an_unknown_outcome_is_settled_by_the_head_or_by_a_fence_alone() {
    let mut world = World::new(0);
    let table = &mut world.table;
    assert!(table.is_settled(version(0), EPOCH));
    table.unsettle(version(9), EPOCH);
    assert!(!table.is_settled(version(8), EPOCH));
    assert!(table.is_settled(version(9), EPOCH), "somebody made it");
    table.unsettle(version(9), EPOCH);
    table.fenced(EPOCH);
    assert!(!table.is_settled(version(8), EPOCH), "it may still apply");
    table.unsettle(version(10), Epoch::new(6));
    assert!(
        !table.is_settled(version(9), EPOCH),
        "both have to be known"
    );
    table.fenced(Epoch::new(8));
    assert!(table.is_settled(version(0), EPOCH));
}

#[test]
fn the_first_news_ends_the_warning_and_nobody_is_told_twice() {
    let mut world = World::trusting(2);
    assert_eq!(world.table.behind(version(1)), None);
    assert_eq!(world.table.behind(version(2)), Some(version(1)));
    world.warn(0, 2);
    world.answer(0, 2);
    assert!(world.publish(0, 2) && world.publish(1, 2));
    assert!(!world.publish(0, 2));
    assert_eq!(world.warn(0, 2), None, "it knows that version");
    assert_eq!(world.warn(0, 3), Some(version(3)));
    assert!(!world.abort(0, 2) && world.abort(0, 3) && !world.abort(0, 3));
    assert_eq!(world.table.behind(version(3)), Some(version(2)));
}

#[test]
fn a_subscription_that_is_not_strict_is_told_and_not_warned() {
    let mut world = World::new(1);
    world.ask(0, 1, false);
    world.accept(0, 1, 1);
    assert_eq!(world.warn(0, 2), None);
    assert_eq!(world.wind_down(0), None);
    assert_eq!(world.table.awaited(), None);
    assert!(!world.table.has_strict());
    assert!(world.publish(0, 2));
}

/// What a client makes of its messages.
#[derive(Clone, Copy, Default)]
struct Client {
    trusts: bool,
    knows: u64,
}

#[test]
fn s2_no_version_is_made_while_somebody_trusts_the_one_before() {
    let mut random = 1u64;
    let mut below = |bound: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut world = World::new(4);
    let mut clients = [Client::default(); 4];
    let (mut head, mut made) = (1, 0);
    // One that is prepared, and the client that makes it.
    let mut commit: Option<usize> = None;
    for _ in 0..200_000 {
        let n = below(4) as usize;
        let id = world.id(n);
        match below(9) {
            0 if world.table.asked(&world.sessions[n]).is_none() && !clients[n].trusts => {
                world.table.remove_session(id);
                world.ask(n, 1, true);
            }
            1 if commit.is_none() && world.accept(n, 1, head) => {
                clients[n] = Client {
                    trusts: true,
                    knows: head,
                };
            }
            2 if commit.is_none() => {
                commit = Some(n);
                for other in (0..4).filter(|other| *other != n) {
                    world.warn(other, head + 1);
                }
            }
            // The messages of a stream may be under way for long: its client goes on trusting until it takes them.
            3 if world.answer(n, head + 1) != Answered::Ignored => clients[n].trusts = false,
            4 => {
                world.now += Duration::from_millis(below(2000));
                for (n, client) in clients.iter_mut().enumerate() {
                    client.trusts &= world.expire(n).is_none();
                }
            }
            5 | 6 if world.table.awaited().is_none() => {
                let Some(writer) = commit.take() else {
                    continue;
                };
                let made_it = below(2) == 0;
                for (n, client) in clients.iter().enumerate() {
                    assert!(n == writer || !client.trusts, "{n} begins at {head}");
                }
                let knows = head + u64::from(made_it);
                for (n, client) in clients.iter_mut().enumerate() {
                    let told = match made_it {
                        true => world.publish(n, knows),
                        false => world.abort(n, knows + 1),
                    };
                    if told {
                        *client = Client {
                            trusts: true,
                            knows,
                        };
                    }
                }
                if made_it {
                    head += 1;
                    made += 1;
                }
            }
            7 => {
                world.table.remove(id, 1);
                clients[n].trusts = false;
            }
            8 if below(50) == 0 && commit.is_none() => {
                for n in 0..4 {
                    world.wind_down(n);
                }
            }
            _ => {}
        }
        for client in clients.iter().filter(|client| client.trusts) {
            assert_eq!(client.knows, head);
        }
    }
    assert!(made > 1000, "{made}");
}
