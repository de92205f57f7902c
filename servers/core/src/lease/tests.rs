//! Every transition of the lease, each invariant by its number, then all of them after random steps.

use super::*;

const A: SessionId = SessionId::from_bytes([0xa; 16]);
const B: SessionId = SessionId::from_bytes([0xb; 16]);
const C: SessionId = SessionId::from_bytes([0xc; 16]);

/// A lease with a clock and epochs of its own.
struct World {
    lease: Lease,
    now: Instant,
    epoch: u64,
}

impl World {
    fn new() -> Self {
        Self {
            lease: Lease::default(),
            now: Instant::now(),
            epoch: 0,
        }
    }

    fn held_by(session: SessionId) -> Self {
        let mut world = Self::new();
        assert_eq!(world.request(session), Request::Turn);
        world.grant(session);
        world
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
    }

    fn request(&mut self, session: SessionId) -> Request {
        self.lease.request(session, Version::ZERO, self.now)
    }

    fn grant(&mut self, session: SessionId) -> Epoch {
        self.epoch += 1;
        let epoch = Epoch::new(self.epoch);
        assert!(self.lease.grant(session, epoch, self.now));
        epoch
    }

    fn epoch(&self) -> Epoch {
        Epoch::new(self.epoch)
    }

    fn next(&mut self) -> Option<SessionId> {
        self.lease.next_turn(self.now).map(|turn| turn.session)
    }

    fn barrier_ms(&mut self) -> Option<u128> {
        let until = self.lease.barrier(self.now)?;
        Some((until - self.now).as_millis())
    }
}

fn queued(ahead: u32) -> Request {
    Request::Queued { ahead, kept: false }
}

#[test]
fn l1_nobody_is_granted_a_lease_that_another_holds() {
    let mut world = World::held_by(A);
    assert_eq!(world.request(B), queued(1));
    assert_eq!(world.next(), None);
    assert!(!world.lease.grant(B, Epoch::new(99), world.now));
    assert_eq!(world.lease.holder(), Some((A, world.epoch())));
}

#[test]
fn l1_a_grant_without_a_ticket_or_out_of_turn_changes_nothing() {
    let mut world = World::new();
    assert!(!world.lease.grant(A, Epoch::new(1), world.now));
    world.request(A);
    world.request(B);
    assert!(!world.lease.grant(B, Epoch::new(1), world.now));
    assert_eq!(world.lease.holder(), None);
}

#[test]
fn l2_an_epoch_that_does_not_rise_is_not_granted() {
    let mut world = World::held_by(A);
    let first = world.epoch();
    assert!(world.lease.release(A, first, false, world.now));
    world.request(B);
    assert!(!world.lease.grant(B, first, world.now));
    assert!(!world.lease.grant(B, Epoch::NONE, world.now));
    assert!(world.grant(B) > first);
}

#[test]
fn l2_an_epoch_that_the_store_advanced_is_taken_over_once_and_only_from_the_present_one() {
    let mut world = World::held_by(A);
    let first = world.epoch();
    assert!(!world.lease.advance_epoch(B, first, Epoch::new(7)));
    assert!(!world.lease.advance_epoch(A, Epoch::new(5), Epoch::new(7)));
    assert!(!world.lease.advance_epoch(A, first, first));
    assert!(world.lease.advance_epoch(A, first, Epoch::new(7)));
    assert!(!world.lease.advance_epoch(A, first, Epoch::new(8)));
    assert_eq!(world.lease.epoch_of(A), Some(Epoch::new(7)));
}

#[test]
fn l3_asking_again_files_no_second_ticket_and_the_holder_files_none() {
    let mut world = World::held_by(A);
    assert_eq!(
        world.request(A),
        Request::Held {
            epoch: world.epoch()
        }
    );
    assert!(!world.lease.is_wanted(world.now));
    world.request(B);
    world.request(B);
    assert_eq!(world.request(C), queued(2));
}

#[test]
fn l4_tickets_are_served_in_order_and_renewing_keeps_the_place() {
    let mut world = World::held_by(A);
    assert_eq!(world.request(B), queued(1));
    assert_eq!(world.request(C), queued(2));
    world.pass(TICKET_TTL_MS - 1);
    assert_eq!(world.request(B), queued(1), "renewed");
    assert_eq!(world.request(C), queued(2), "renewed");
    world.pass(TICKET_TTL_MS - 1);
    let epoch = world.epoch();
    assert!(world.lease.release(A, epoch, true, world.now));
    assert_eq!(world.next(), Some(B));
    let epoch = world.grant(B);
    assert!(world.lease.release(B, epoch, false, world.now));
    assert_eq!(world.next(), Some(C));
    let epoch = world.grant(C);
    assert!(world.lease.release(C, epoch, false, world.now));
    assert_eq!(world.next(), Some(A), "wanted it back: at the end");
}

#[test]
fn l4_a_free_lease_with_a_queue_is_not_for_a_newcomer() {
    let mut world = World::held_by(A);
    world.request(B);
    let epoch = world.epoch();
    world.lease.release(A, epoch, false, world.now);
    assert!(!world.lease.is_free(world.now));
    assert_eq!(world.request(C), queued(1));
    assert_eq!(world.request(B), Request::Turn);
}

#[test]
fn l5_a_ticket_that_is_not_renewed_is_passed_over() {
    let mut world = World::held_by(A);
    world.request(B);
    world.pass(TICKET_TTL_MS / 2);
    world.request(C);
    world.pass(TICKET_TTL_MS / 2);
    let epoch = world.epoch();
    world.lease.release(A, epoch, false, world.now);
    assert_eq!(world.next(), Some(C));
    assert!(!world.lease.grant(B, Epoch::new(50), world.now));
}

#[test]
fn l5_a_ticket_with_a_waiting_call_does_not_age_and_ages_from_its_end_on() {
    let mut world = World::held_by(A);
    world.request(B);
    world.lease.begin_wait(B);
    world.lease.begin_wait(B);
    world.pass(10 * TICKET_TTL_MS);
    assert!(world.lease.is_wanted(world.now));
    world.lease.end_wait(B, world.now);
    world.pass(10 * TICKET_TTL_MS);
    assert!(world.lease.is_wanted(world.now), "one call still waits");
    world.lease.end_wait(B, world.now);
    world.pass(TICKET_TTL_MS - 1);
    assert!(world.lease.is_wanted(world.now));
    world.pass(1);
    assert!(!world.lease.is_wanted(world.now));
}

#[test]
fn l6_a_holding_is_recalled_once_and_only_when_somebody_waits() {
    let mut world = World::held_by(A);
    assert_eq!(world.lease.recall(world.now), None);
    world.request(B);
    assert_eq!(world.lease.recall(world.now), Some((A, world.epoch())));
    world.request(C);
    assert_eq!(world.lease.recall(world.now), None);
    let epoch = world.epoch();
    world.lease.release(A, epoch, false, world.now);
    let epoch = world.grant(B);
    assert_eq!(world.lease.recall(world.now), Some((B, epoch)), "C waits");
}

#[test]
fn l6_a_kept_lease_is_not_recalled_again_and_waiters_are_told() {
    let mut world = World::held_by(A);
    world.request(B);
    world.lease.recall(world.now);
    let epoch = world.epoch();
    assert!(world.lease.keep(A, epoch, 0));
    assert_eq!(
        world.request(B),
        Request::Queued {
            ahead: 1,
            kept: true
        }
    );
    assert_eq!(world.lease.recall(world.now), None);
    world.lease.release(A, epoch, false, world.now);
    assert_eq!(world.request(B), Request::Turn);
}

/// The holder of a kept lease gives it back unasked, but only once: a release that was lost with its stream left the lease
/// with a session that did not have it, and everybody else waiting for as long as that session lived.
#[test]
fn l6_a_kept_lease_is_recalled_again_on_the_next_stream() {
    let mut world = World::held_by(A);
    world.request(B);
    world.lease.recall(world.now);
    let epoch = world.epoch();
    assert!(world.lease.keep(A, epoch, 0));
    world.lease.forget_recall(A);
    assert_eq!(world.lease.recall(world.now), Some((A, epoch)));
    assert!(
        world.lease.keep(A, epoch, 0),
        "still writing: says so again"
    );
    assert_eq!(world.lease.recall(world.now), None);
}

#[test]
fn l6_a_recall_lost_with_its_stream_is_sent_again() {
    let mut world = World::held_by(A);
    world.request(B);
    world.lease.recall(world.now);
    world.lease.forget_recall(B);
    assert_eq!(world.lease.recall(world.now), None);
    world.lease.forget_recall(A);
    assert!(world.lease.recall(world.now).is_some());
}

#[test]
fn l7_a_lease_taken_leaves_a_barrier_and_one_given_back_leaves_none() {
    let mut world = World::held_by(A);
    let until = world.now + Duration::from_millis(700);
    assert!(!world.lease.take(B, until, 1), "not the holder");
    assert!(world.lease.take(A, until, 1));
    assert_eq!(world.lease.holder(), None);
    assert_eq!(world.barrier_ms(), Some(700));

    let mut world = World::held_by(A);
    let epoch = world.epoch();
    world.lease.release(A, epoch, false, world.now);
    assert_eq!(world.barrier_ms(), None);
    let mut world = World::held_by(A);
    world.lease.remove(A);
    assert_eq!(world.lease.holder(), None);
    assert_eq!(world.barrier_ms(), None);
}

#[test]
fn l8_barriers_of_several_sessions_add_up_to_the_longest() {
    let mut world = World::held_by(A);
    let now = world.now;
    world.lease.take(A, now + Duration::from_millis(700), 1);
    world.request(B);
    world.grant(B);
    world.lease.take(B, now + Duration::from_millis(500), 1);
    assert_eq!(world.barrier_ms(), Some(700));
    world.lease.remove(A);
    assert_eq!(world.barrier_ms(), Some(500));
    world.pass(499);
    assert_eq!(world.barrier_ms(), Some(1));
    world.pass(1);
    assert_eq!(world.barrier_ms(), None);
}

#[test]
fn l8_a_barrier_does_not_shrink_when_its_session_loses_the_lease_twice() {
    let mut world = World::held_by(A);
    let now = world.now;
    world.lease.take(A, now + Duration::from_millis(700), 1);
    world.request(A);
    world.grant(A);
    world.lease.take(A, now + Duration::from_millis(300), 1);
    assert_eq!(world.barrier_ms(), Some(700));
    assert!(!world.lease.is_idle(world.now));
}

#[test]
fn l8_a_barrier_falls_with_the_welcome_of_a_later_stream_and_of_no_other_session() {
    let mut world = World::held_by(A);
    let until = world.now + Duration::from_millis(700);
    world.lease.take(A, until, 3);
    // Of the stream that was broken, which may still deliver what was sent; and of somebody else.
    world.lease.welcomed(A, 3);
    world.lease.welcomed(B, 4);
    assert_eq!(world.barrier_ms(), Some(700));
    world.lease.welcomed(A, 4);
    assert_eq!(world.barrier_ms(), None);
    // Taken again after it had the lease on the later stream.
    world.request(A);
    world.grant(A);
    world.lease.take(A, until, 4);
    world.lease.welcomed(A, 4);
    assert_eq!(world.barrier_ms(), Some(700));
}

#[test]
fn l9_messages_about_another_epoch_or_of_another_session_change_nothing() {
    let mut world = World::held_by(A);
    let old = world.epoch();
    world.lease.release(A, old, false, world.now);
    world.request(A);
    let new = world.grant(A);
    assert!(!world.lease.release(A, old, true, world.now));
    assert!(!world.lease.release(B, new, false, world.now));
    assert!(!world.lease.keep(A, old, 0));
    assert!(!world.lease.keep(B, new, 0));
    assert_eq!(world.lease.holder(), Some((A, new)));
    assert!(!world.lease.is_wanted(world.now), "no ticket was filed");
}

#[test]
fn a_removed_session_has_neither_lease_nor_ticket() {
    let mut world = World::held_by(A);
    world.request(B);
    world.lease.remove(B);
    assert!(!world.lease.concerns(B));
    world.lease.remove(A);
    assert!(world.lease.is_idle(world.now));
}

/// L-1 to L-4, L-7 and L-9 after each of many steps that a seed chooses. `SEED=n` repeats one.
#[test]
fn invariants_hold_after_any_sequence_of_steps() {
    #[expect(
        clippy::disallowed_methods,
        reason = "a failed seed is repeated by hand"
    )]
    let seeds = match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
        Err(_) => 1..=300_u64,
    };
    for seed in seeds {
        println!("SEED={seed}");
        let mut random = seed;
        let mut world = World::new();
        let mut last_epoch = Epoch::NONE;
        for _ in 0..200 {
            step(&mut world, &mut random);
            check(&mut world, &mut last_epoch);
        }
    }
}

fn below(random: &mut u64, bound: u64) -> u64 {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*random >> 33) % bound
}

fn step(world: &mut World, random: &mut u64) {
    let session = [A, B, C][below(random, 3) as usize];
    let now = world.now;
    let epoch = match below(random, 4) {
        0 => Epoch::new(below(random, world.epoch + 2)),
        _ => world.lease.holder().map_or(Epoch::NONE, |(_, epoch)| epoch),
    };
    match below(random, 10) {
        0..=2 => {
            world.request(session);
        }
        3 | 4 => {
            if let Some(next) = world.next() {
                world.grant(next);
            }
        }
        5 => {
            let held = world.lease.holder() == Some((session, epoch));
            let barrier = world.lease.barrier(now);
            let released = world
                .lease
                .release(session, epoch, below(random, 2) == 0, now);
            assert_eq!(released, held, "L-9");
            assert_eq!(world.lease.barrier(now), barrier, "L-7");
        }
        6 => {
            world.lease.keep(session, epoch, 0);
        }
        7 => {
            let until = now + Duration::from_millis(below(random, 3000));
            if world.lease.take(session, until, 1) {
                assert!(
                    world
                        .lease
                        .barrier(now)
                        .is_none_or(|barrier| barrier >= until),
                    "L-7"
                );
            }
        }
        8 => world.lease.remove(session),
        _ => world.pass(below(random, 1500)),
    }
}

fn check(world: &mut World, last_epoch: &mut Epoch) {
    let holder = world.lease.holder();
    if let Some((_, epoch)) = holder {
        assert!(epoch >= *last_epoch, "L-2");
        *last_epoch = epoch;
    }
    for session in [A, B, C] {
        let tickets = world
            .lease
            .tickets
            .iter()
            .filter(|ticket| ticket.session == session)
            .count();
        let most = usize::from(holder.map(|(holder, _)| holder) != Some(session));
        assert!(tickets <= most, "L-3");
    }
    assert!(world.lease.barriers.len() <= 3, "one barrier a session");
    if holder.is_some() {
        assert_eq!(world.next(), None, "L-1");
    }
}

#[test]
fn l2_a_lease_that_comes_from_another_server_keeps_its_epoch() {
    let mut world = World::new();
    let until = world.now + Duration::from_millis(300);
    assert!(world.lease.take_over(A, Epoch::new(7), until));
    assert_eq!(world.lease.holder(), Some((A, Epoch::new(7))));
    // What an earlier holder may trust is waited for, as behind any barrier.
    assert_eq!(world.barrier_ms(), Some(300));
    assert!(!world.lease.is_unheld(world.now));
    assert_eq!(world.request(B), queued(1));
    assert_eq!(world.lease.recall(world.now), Some((A, Epoch::new(7))));
    assert!(world.lease.release(A, Epoch::new(7), false, world.now));
    assert!(!world.lease.grant(B, Epoch::new(7), world.now));
    assert!(world.lease.grant(B, Epoch::new(8), world.now));
    world.pass(300);
    assert_eq!(world.barrier_ms(), None);
}

#[test]
fn l1_a_lease_that_another_has_here_is_not_taken_over() {
    let mut world = World::held_by(B);
    let (now, epoch) = (world.now, world.epoch());
    assert!(!world.lease.take_over(A, Epoch::new(9), now));
    world.lease.remove(B);
    // It was granted to another since.
    assert!(!world.lease.take_over(A, Epoch::new(0), now));
    assert!(world.lease.take_over(A, epoch, now));
}

#[test]
fn l10_a_guard_falls_to_what_was_before_and_never_below() {
    let mut world = World::new();
    let now = world.now;
    let after = |ms| now + Duration::from_millis(ms);
    let before = world.lease.guard(after(300));
    assert_eq!((before, world.barrier_ms()), (None, Some(300)));
    assert!(!world.lease.is_unheld(now) && !world.lease.is_idle(now));
    // A shorter one inside it takes nothing away.
    let outer = world.lease.guard(after(100));
    assert_eq!(world.barrier_ms(), Some(300));
    world.lease.lift_guard(outer);
    assert_eq!(world.barrier_ms(), Some(300));
    // No answer: it falls with its time.
    world.pass(300);
    assert_eq!(world.barrier_ms(), None);
    world.lease.guard(after(900));
    world.lease.lift_guard(before);
    assert_eq!(world.barrier_ms(), None);
}

#[test]
fn l10_who_has_the_lease_is_not_guarded_against() {
    let mut world = World::held_by(A);
    let (now, epoch) = (world.now, world.epoch());
    assert!(world.lease.take(A, now + Duration::from_millis(500), 1));
    world.lease.guard(now + Duration::from_millis(800));
    assert!(world.lease.take_over(A, epoch, now));
    assert_eq!(
        (world.lease.holder(), world.barrier_ms()),
        (Some((A, epoch)), None)
    );
    // Said once more of the same.
    assert!(world.lease.take_over(A, epoch, now));
    assert!(!world.lease.take_over(B, epoch, now));
}
