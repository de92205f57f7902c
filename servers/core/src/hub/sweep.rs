//! What nobody sends a message about: sessions that lapse, databases that nobody has open any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{End, Hub};
use crate::process::Process;

impl Hub {
    pub(super) fn spawn_sweeper(self: &Arc<Self>) {
        let hub = Arc::downgrade(self);
        let every = (self.settings.lease_ttl / 16)
            .clamp(Duration::from_millis(5), Duration::from_millis(100));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(hub) = hub.upgrade() else { return };
                hub.sweep();
            }
        });
    }

    /// Ends sessions that were not heard, and forgets databases that nobody has open.
    fn sweep(self: &Arc<Self>) {
        let now = Instant::now();
        for session in self.all_sessions() {
            if !session.is_live(now, self.settings.lease_ttl) {
                self.end_session(&session, End::Lapsed);
                continue;
            }
            let broken = {
                let state = session.state.lock();
                state.process.filter(|_| state.stream.is_none())
            };
            // It may die long after its stream broke; its leases and barriers end with it.
            if broken.is_some_and(Process::is_dead) {
                self.end_session(&session, End::Dead);
            }
        }
        let mut unborn = Vec::new();
        self.databases.lock().retain(|_, database| {
            // A session or a call that has it holds another reference.
            if Arc::strong_count(database) > 1 || !database.lease.lock().is_idle(now) {
                return true;
            }
            let unprotected = database
                .protected
                .try_lock()
                .is_ok_and(|told| told.is_nothing());
            if !unprotected {
                // The store did not take it the last time.
                self.schedule_protect(database);
            }
            if unprotected && let Some(name) = database.unborn.lock().take() {
                unborn.push((name, database.id));
            }
            // Whoever subscribes has to learn that the outcome of a commit is not known.
            !unprotected || !database.subscriptions.lock().all_known()
        });
        if !unborn.is_empty() {
            self.drop_unborn(unborn);
        }
    }
}
