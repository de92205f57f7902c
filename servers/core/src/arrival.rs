//! A session that comes from another page server with the leases that it has from there, and one that comes back.
//!
//! A client trusts a lease for a TTL from the sending of what was acknowledged last, whichever server that was: a Hello to another server takes nothing of
//! that trust away before its Welcome was read. So between the Hello and the end of that time the lease must be with a server that waits for it.
//! For a lease that a Hello lists, at the server that the Hello reaches:
//!
//! ```text
//!            turn, guard                          the store: moved            Welcome lists it
//!   listed --------------> asked (guard: now + TTL) ------------> confirmed ------------------> held here
//!                            |            |                           |
//!                            |            | no answer, or a late one  | the session is refused, or has gone
//!                            | not moved  v                           v
//!                            |          guarded: nobody's, and nothing becomes visible here before its time
//!                            +--> as before the question; what the session has here under another word is taken from it (barrier)
//! ```
//! * **PEER6** (a take-over of which the session never hears) The guard stands before the store is asked and is lifted only by the answer that nothing
//!   was moved, or when the session has the lease. So whatever becomes of the question, the stream, or this server's patience: from
//!   the moment at which the claim is here commits of others wait until the client trusts nothing. A server that does not acknowledge, or drains, does not ask.
//! * **PEER7** (to and fro) A Hello has a number that rises with each Hello of the session that may have reached a server: one for which no connection came
//!   about is none, and the next has its number. The grant keeps the largest with which it was
//!   confirmed, and the store confirms only a larger one: what a Hello on a slow way would move to a server that was left is not moved. A server keeps
//!   what it has of a session in memory without asking only where the number follows on that of the newest Hello that it has taken, and has
//!   answered with a Welcome: then the client has said Hello to nobody in between, and what is here is what it was told. Otherwise each lease that the store does not confirm is taken from the session
//!   before its Welcome, whatever is believed here.
//!
//! Interleavings that were looked at, A and B servers, S the session, C another client. *A is slow*: S goes to B while a fence of A for C is under way. One
//! of the two transactions comes first: either S is refused, and C's commits wait for the barrier that A set when it took the lease from S; or
//! A's fence finds the claim gone. *A Hello to A is late*, S is at B since: its number is below the one that B's confirmation left. *A is cut off from S*, which B
//! serves: A may go on believing that S holds the lease, which costs whoever asks at A a barrier and a wish to B, and gives nobody
//! anything: the epoch of a grant needs the claim. *A is cut off from the cluster*: its acknowledgements end (PEER3), S moves, and A
//! finds the claim gone. *S comes back to A*, which never knew that S was gone: the number does not follow, so the store is asked. *C got the lease in
//! between*, at A or B: the epoch is another, the store says no, and C's commits have waited for the barrier of the server that took the lease from S,
//! which is later than what S trusts: that server acknowledged last. *B dies after the store has moved the lease to it*: another server takes B's claim after the silence of two TTLs, or S goes
//! back to A with a larger number. *The transaction of a question that was given up is applied late*: it finds a larger number, another epoch or another claim; or
//! it moves the claim to B while S trusts nothing of after the question, and the guard is as long as what it trusted before.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;
use pagewire_proto::{DatabaseId, Epoch, SessionId, Version};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::database::Database;
use crate::hub::Hub;
use crate::peers::Peers;
use crate::session::{Session, SessionState};

/// A lease that a Hello lists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed {
    pub(crate) database: DatabaseId,
    pub(crate) epoch: Epoch,
    /// The oldest version that the session reads.
    pub(crate) floor: Version,
}

/// The session of a Hello, as the store is asked for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) session: SessionId,
    pub(crate) hello: u64,
}

/// One that the store has confirmed, and that is for this server to serve now. Dropped without [`Hub::bring`] it stays guarded.
#[derive(Debug)]
pub(crate) struct Confirmed {
    lease: Listed,
    database: Arc<Database>,
    /// Until when an earlier holder may trust it.
    guarded_until: Instant,
    /// Nobody else is granted it meanwhile.
    _turn: OwnedMutexGuard<()>,
}

/// What a Hello that was read says about the leases of its session here.
#[derive(Debug)]
pub(crate) enum Leases {
    /// What this server believes is true: the client has been nowhere else.
    AsBefore,
    /// These, and no other.
    Only(Vec<Confirmed>),
}

/// Whether what is here of a session is what its client believes: the Hello before this one was answered here, and was the one before.
pub(crate) fn is_next(state: &SessionState, number: u64) -> bool {
    state.hello == state.answered && follows(state.answered, number)
}

/// Whether a client that has sent these Hellos, one to this server and then another, has sent none in between.
fn follows(before: u64, number: u64) -> bool {
    number == before.saturating_add(u64::from(number != 0))
}

impl Hub {
    /// Where sessions take their leases along, which is also where what is believed of one may be old.
    pub(crate) fn movable(&self) -> Option<Arc<dyn Peers>> {
        self.store.peers().filter(|peers| peers.moves_leases())
    }

    /// Asks the store which of the leases that a session lists are its own (PEER6, PEER7). What it does not confirm soon the session has lost.
    pub(crate) async fn confirm(&self, caller: Caller, mut listed: Vec<Listed>) -> Vec<Confirmed> {
        let Some(peers) = self.movable().filter(|_| caller.hello != 0) else {
            return Vec::new();
        };
        let deadline = Instant::now() + (self.settings.lease_ttl / 2).min(self.settings.store_wait);
        // Turns are taken in one order, each once.
        listed.sort_unstable_by_key(|lease| (lease.database, Reverse(lease.epoch)));
        listed.dedup_by_key(|lease| lease.database);
        let mut asked = Vec::new();
        for lease in listed {
            let database = self.known_or_new(lease.database);
            let turn = Arc::clone(&database.turn).lock_owned();
            match tokio::time::timeout_at(deadline, turn).await {
                Ok(turn) => asked.push((lease, database, turn)),
                Err(_) => break,
            }
        }
        let questions = asked.into_iter().map(|(lease, database, turn)| {
            self.ask(&*peers, caller, lease, database, turn, deadline)
        });
        join_all(questions).await.into_iter().flatten().collect()
    }

    async fn ask(
        &self,
        peers: &dyn Peers,
        caller: Caller,
        lease: Listed,
        database: Arc<Database>,
        turn: OwnedMutexGuard<()>,
        deadline: Instant,
    ) -> Option<Confirmed> {
        let before = database
            .lease
            .lock()
            .guard(Instant::now() + self.settings.lease_ttl);
        // After the guard: a server that stops looks whether there is one when it drains already.
        let answer = match self.is_draining() {
            true => Ok(None),
            false => {
                let Caller { session, hello } = caller;
                let asking = peers.take_over(lease.database, session, hello, lease.epoch);
                match tokio::time::timeout_at(deadline, asking).await {
                    Ok(answer) => answer,
                    Err(_) => return None,
                }
            }
        };
        match answer {
            Ok(Some(guard)) => {
                let guarded_until = Some(Instant::now() + guard).max(before);
                Some(Confirmed {
                    lease,
                    database,
                    guarded_until: guarded_until.unwrap_or_else(Instant::now),
                    _turn: turn,
                })
            }
            Ok(None) => {
                database.lease.lock().lift_guard(before);
                self.barriers.send_replace(());
                None
            }
            Err(error) => {
                tracing::debug!(%error, "a lease of another server could not be taken over");
                None
            }
        }
    }

    /// Gives a session the leases that were confirmed for a Hello, and takes all others from it. It has no stream yet that could tell of them: where a later
    /// Hello has come, which may have one, nothing is done.
    pub(crate) fn bring(
        self: &Arc<Self>,
        session: &Arc<Session>,
        hello: u64,
        confirmed: &[Confirmed],
    ) {
        self.take_unconfirmed(session, hello, confirmed);
        for Confirmed {
            lease,
            database,
            guarded_until,
            ..
        } in confirmed
        {
            let id = lease.database;
            // No room: it stays guarded, and is nobody's.
            if self
                .register_open(session, id, true, 0, lease.floor)
                .is_err()
            {
                continue;
            }
            let mut table = database.lease.lock();
            if let Some((other, epoch)) = table.holder()
                && (other != session.id && epoch < lease.epoch)
            {
                // It has left this server, and its lease went on from where it is: whoever let it go waited for it.
                table.release(other, epoch, false, Instant::now());
                if let Some(other) = self.live_session(other) {
                    other.state.lock().leases.remove(&id);
                }
            }
            let mut state = session.state.lock();
            if !state.ended
                && state.hello == hello
                && table.take_over(session.id, lease.epoch, *guarded_until)
            {
                state.leases.insert(id, lease.epoch);
                state.barriers.remove(&id);
                tracing::debug!(epoch = %lease.epoch, "a lease came with its session from another server");
            }
        }
        self.barriers.send_replace(());
    }

    /// What a session that was elsewhere has here, and the store has not confirmed, is not its own any more (PEER7).
    fn take_unconfirmed(self: &Arc<Self>, session: &Session, hello: u64, confirmed: &[Confirmed]) {
        let confirmed: HashSet<_> = confirmed
            .iter()
            .map(|confirmed| (confirmed.lease.database, confirmed.lease.epoch))
            .collect();
        let doubtful: Vec<_> = {
            let state = session.state.lock();
            let doubtful = state
                .leases
                .iter()
                .filter(|(id, epoch)| !confirmed.contains(&(**id, **epoch)));
            let doubtful = doubtful.filter_map(|(id, _)| state.opens.get(id));
            doubtful.map(|open| Arc::clone(&open.database)).collect()
        };
        for database in doubtful {
            let mut lease = database.lease.lock();
            let mut state = session.state.lock();
            if state.hello != hello {
                return;
            }
            let trusted_until = Instant::now() + self.settings.lease_ttl;
            let broken = state.streams_so_far;
            if lease.take(session.id, trusted_until, broken) {
                state.leases.remove(&database.id);
                state.barriers.insert(database.id, broken);
            }
        }
    }

    /// After the Welcome: others may wait for what the session has brought, or has lost.
    pub(crate) fn brought(self: &Arc<Self>, confirmed: Vec<Confirmed>) {
        for Confirmed {
            database, _turn, ..
        } in confirmed
        {
            drop(_turn);
            self.schedule_protect(&database);
            self.settle(&database);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer7_only_the_next_number_follows_and_no_number_follows_on_none() {
        assert!(follows(0, 0) && follows(0, 1) && follows(7, 8));
        assert!(!follows(7, 7) && !follows(7, 9) && !follows(8, 7) && !follows(7, 0));
        assert!(!follows(u64::MAX, 0));
    }
}
