//! The table of sessions: how they are found, begin, resume, break and end.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::SessionId;
use pagewire_proto::status::Reason;
use tokio::time::Instant;
use tonic::Status;

use super::opens::forget;
use super::{End, Hub};
use crate::process::Process;
use crate::session::{Open, Session};
use crate::status;

/// How long a call waits for the Hello of its session, which travels on another stream.
const HELLO_WAIT: Duration = Duration::from_secs(1);
/// When to look whether the process behind a broken stream is dead: the kernel closes its sockets before it leaves `/proc`.
const DEATH_CHECKS_MS: [u64; 8] = [0, 2, 5, 10, 20, 40, 60, 80];

impl Hub {
    /// The session of a call; waits for its Hello.
    pub(crate) async fn session(&self, id: &[u8]) -> Result<Arc<Session>, Status> {
        let id = SessionId::try_from(id)?;
        let mut arrivals = self.arrivals.subscribe();
        let deadline = Instant::now() + HELLO_WAIT;
        loop {
            if let Some(session) = self.calling_session(id) {
                return Ok(session);
            }
            if !matches!(
                tokio::time::timeout_at(deadline, arrivals.changed()).await,
                Ok(Ok(()))
            ) {
                return Err(match self.is_draining() {
                    true => status::draining(),
                    false => status::session_unknown(),
                });
            }
        }
    }

    /// The session, if it can act now.
    pub(crate) fn live_session(&self, id: SessionId) -> Option<Arc<Session>> {
        let session = self.sessions.lock().get(&id).cloned()?;
        session
            .is_live(Instant::now(), self.settings.lease_ttl)
            .then_some(session)
    }

    /// The session, if it can act now and its calls are answered: not before its first Welcome.
    pub(crate) fn calling_session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.live_session(id)
            .filter(|session| session.state.lock().has_begun())
    }

    /// The session to which a Hello belongs: the one that lives, or a new one, which no call finds before its first stream.
    pub(crate) fn session_for_hello(
        self: &Arc<Self>,
        id: SessionId,
    ) -> Result<Arc<Session>, Status> {
        let now = Instant::now();
        if let Some(session) = self.live_session(id) {
            return Ok(session);
        }
        let lapsed = self.sessions.lock().get(&id).cloned();
        if let Some(lapsed) = lapsed {
            self.end_session(&lapsed, End::Lapsed);
        }
        if self.is_draining() {
            return Err(status::draining());
        }
        let session = Arc::new(Session::new(id, now));
        Ok(match self.insert_session(&session)? {
            Some(known) => known,
            None => session,
        })
    }

    /// The session that has the id already, if there is one.
    fn insert_session(&self, session: &Arc<Session>) -> Result<Option<Arc<Session>>, Status> {
        let mut sessions = self.sessions.lock();
        if let Some(known) = sessions.get(&session.id) {
            return Ok(Some(Arc::clone(known)));
        }
        if sessions.len() >= self.settings.max_sessions {
            return Err(Reason::Limit.status(format!(
                "{} sessions are open, no more are allowed",
                self.settings.max_sessions
            )));
        }
        sessions.insert(session.id, Arc::clone(session));
        Ok(None)
    }

    /// A new session can be found: wakes the calls that came before their Hello.
    pub(crate) fn announce_session(&self) {
        self.arrivals.send_replace(());
    }

    pub(crate) fn all_sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().values().cloned().collect()
    }

    /// Ends a session: what it has is given to others at once, for it trusts nothing any more.
    pub(crate) fn end_session(self: &Arc<Self>, session: &Arc<Session>, end: End) {
        let (opens, stagings) = {
            let mut state = session.state.lock();
            let still_live = state.is_live(Instant::now(), self.settings.lease_ttl);
            if state.ended || (end == End::Lapsed && still_live) {
                return;
            }
            state.ended = true;
            state.leases.clear();
            state.stop_stream(match end {
                End::Goodbye => None,
                End::Dead | End::Lapsed => Some(status::session_unknown()),
                End::Drained => Some(status::draining()),
            });
            (std::mem::take(&mut state.opens), state.take_stagings(None))
        };
        tracing::debug!(?end, databases = opens.len(), "a session ended");
        for Open { database, .. } in opens.values() {
            let mut lease = database.lease.lock();
            forget(database, session.id, &mut lease, &mut session.state.lock());
        }
        {
            // After that: a new session with this id would lose what it is given meanwhile.
            let mut sessions = self.sessions.lock();
            if sessions
                .get(&session.id)
                .is_some_and(|known| Arc::ptr_eq(known, session))
            {
                sessions.remove(&session.id);
            }
        }
        for Open { database, .. } in opens.values() {
            self.forgotten(database);
        }
        self.discard(stagings);
    }

    /// Ends a session that was found to have lapsed.
    pub(crate) fn end_lapsed(self: &Arc<Self>, id: SessionId) {
        let session = self.sessions.lock().get(&id).cloned();
        if let Some(session) = session {
            self.end_session(&session, End::Lapsed);
        }
    }

    /// A message came on the stream with this number. False where the session has ended, or another stream replaced it.
    pub(crate) fn heard(&self, session: &Session, stream: u64) -> bool {
        let now = Instant::now();
        let mut state = session.state.lock();
        let counts = state.streams_so_far == stream && state.is_live(now, self.settings.lease_ttl);
        if counts {
            state.last_heard = now;
        }
        counts
    }

    /// Whether messages of the stream with this number still count.
    pub(crate) fn is_current(&self, session: &Session, stream: u64) -> bool {
        let state = session.state.lock();
        state.streams_so_far == stream && state.is_live(Instant::now(), self.settings.lease_ttl)
    }

    /// The stream with this number has ended without a goodbye: that proves nothing about the process behind it.
    pub(crate) fn stream_broken(self: &Arc<Self>, session: &Arc<Session>, stream: u64) {
        let (process, leased) = {
            let mut state = session.state.lock();
            if state.ended || state.streams_so_far != stream {
                return;
            }
            state.stream = None;
            let leased: Vec<_> = state
                .leases
                .keys()
                .filter_map(|id| state.opens.get(id))
                .map(|open| Arc::clone(&open.database))
                .collect();
            (state.process, leased)
        };
        tracing::debug!(leases = leased.len(), "the stream of a session broke");
        for database in &leased {
            self.settle(database);
        }
        if let Some(process) = process {
            self.spawn_death_checks(session, stream, process);
        }
    }

    fn spawn_death_checks(self: &Arc<Self>, session: &Arc<Session>, stream: u64, process: Process) {
        let (hub, session) = (Arc::clone(self), Arc::clone(session));
        tokio::spawn(async move {
            for wait_ms in DEATH_CHECKS_MS {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                {
                    let state = session.state.lock();
                    if state.ended || state.streams_so_far != stream {
                        return;
                    }
                }
                if process.is_dead() {
                    hub.end_session(&session, End::Dead);
                    return;
                }
            }
        });
    }
}
