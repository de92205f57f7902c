//! Old versions of a database: looked at, listed, compared, named, branched from, restored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pagewire_proto::status::Reason;
use pagewire_proto::{
    DatabaseId, DatabaseName, Moment, PageNumber, TagName, Version, VersionEntry,
};
use tokio::time::Instant;

use super::{Database, NO_VERSIONS, Pin};
use crate::client::{Description, IfTaken, VersionList};
use crate::error::{CallError, Error, Kind, Result};

/// An old version that a connection looks at.
#[derive(Clone)]
pub struct Looked {
    /// What is known of it.
    pub entry: VersionEntry,
    /// Keeps it.
    pub pin: Pin,
}

/// The pages that differ between two versions, fetched as they are taken.
pub struct VersionPages {
    database: Arc<Database>,
    from: Version,
    to: Version,
    timeout: Duration,
    pages: std::vec::IntoIter<PageNumber>,
    last: Option<PageNumber>,
    more: bool,
}

impl Database {
    /// Finds the version of a moment and holds it (K1).
    pub fn look_at(&self, at: &Moment, timeout: Duration) -> Result<Looked> {
        self.look(at, Instant::now() + timeout)
            .map_err(|error| self.explain(error))
    }

    fn look(&self, at: &Moment, deadline: Instant) -> std::result::Result<Looked, Failure> {
        let core = &self.client.core;
        let pin = core.session.pin_begins();
        let lapses = AtomicU64::new(0);
        let entry = self.try_call(deadline, || {
            lapses.store(core.session.lapses(), Ordering::Relaxed);
            core.find_version(self.state.id(), at, Some(&pin), deadline)
        })?;
        self.state.check()?;
        let lapses = core.session.lapses_of_pin(lapses.into_inner());
        // Before the call counts as ended: from then on heartbeats let go of what is not held.
        let held = self.state.hold(entry.snapshot, lapses);
        drop(pin);
        Ok(Looked { entry, pin: held })
    }

    /// Makes sure that the version is kept for this process, also after its session had lapsed. Gone is gone (K2).
    pub fn keep(&self, pin: &Pin, timeout: Duration) -> Result<()> {
        if pin.is_told(&self.client.core.session) {
            return Ok(());
        }
        let at = Moment::Version(pin.snapshot().version);
        self.look_at(&at, timeout).map(drop)
    }

    /// After the session was begun anew: what is held is told to it. A version that is gone is noticed by who reads it.
    pub(super) fn hold_again(&self, deadline: Instant) -> Result<()> {
        let core = &self.client.core;
        for version in self.state.held_in_vain(&core.session) {
            let at = Moment::Version(version);
            let pin = core.session.pin_begins();
            let lapses = core.session.lapses();
            let found = core.find_version(self.state.id(), &at, Some(&pin), deadline);
            match self.client.wait(found) {
                Ok(entry) => drop(self.state.hold(entry.snapshot, lapses)),
                Err(error) if error.reason == Reason::VersionGone => {}
                // The session has lapsed again. The call for which it was begun anew will hear that too, and come back here.
                Err(error) if error.wants_reopen() => return Ok(()),
                Err(error) => return Err(Error::from(error).within(&self.describe())),
            }
        }
        Ok(())
    }

    /// The number of the version of a moment. Nothing keeps it.
    pub fn version_of(&self, at: &Moment, timeout: Duration) -> Result<Version> {
        if let Moment::Version(version) = at {
            return Ok(*version);
        }
        let deadline = Instant::now() + timeout;
        let core = &self.client.core;
        self.try_call(deadline, || {
            core.find_version(self.state.id(), at, None, deadline)
        })
        .map(|entry| entry.snapshot.version)
        .map_err(|error| self.explain(error))
    }

    /// Kept versions before `before`, or from the newest one on.
    pub fn list_versions(
        &self,
        before: Option<Version>,
        limit: usize,
        timeout: Duration,
    ) -> Result<VersionList> {
        let deadline = Instant::now() + timeout;
        let core = &self.client.core;
        self.try_call(deadline, || {
            core.list_versions(self.state.id(), before, limit, deadline)
        })
        .map_err(|error| self.explain(error))
    }

    /// The pages that differ between two versions.
    pub fn diff(self: &Arc<Self>, from: Version, to: Version, timeout: Duration) -> VersionPages {
        VersionPages {
            database: Arc::clone(self),
            from,
            to,
            timeout,
            pages: Vec::new().into_iter(),
            last: None,
            more: true,
        }
    }

    /// Names the version of a moment.
    pub fn set_tag(
        &self,
        tag: &TagName,
        at: &Moment,
        if_taken: IfTaken,
        timeout: Duration,
    ) -> Result<VersionEntry> {
        let deadline = Instant::now() + timeout;
        let core = &self.client.core;
        self.try_call(deadline, || {
            core.set_tag(self.state.id(), tag, at, if_taken, deadline)
        })
        .map_err(|failure| {
            let is_taken = matches!(&failure, Failure::Call(error) if error.reason == Reason::NameTaken);
            let mut error = self.explain_change(failure);
            if is_taken {
                let way_out = format!(
                    "{} already: pagewire_move_tag('{tag}', ...) moves it, pagewire_untag('{tag}') removes it",
                    error.message
                );
                error.message = way_out;
            }
            error
        })
    }

    /// Removes a tag; whether there was one.
    pub fn delete_tag(&self, tag: &TagName, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        let core = &self.client.core;
        self.try_call(deadline, || core.delete_tag(self.state.id(), tag, deadline))
            .map_err(|error| self.explain_change(error))
    }

    /// Makes a database from the version of a moment: what it was made from.
    pub fn branch(
        &self,
        name: &DatabaseName,
        at: &Moment,
        timeout: Duration,
    ) -> Result<VersionEntry> {
        let deadline = Instant::now() + timeout;
        let core = &self.client.core;
        // One id for all attempts: the call may be repeated.
        let branch = DatabaseId::random().map_err(|error| Error::io(error.to_string()))?;
        self.try_call(deadline, || {
            core.create_branch(self.state.id(), at, branch, name, deadline)
        })
        .map_err(|error| self.explain_change(error))
    }

    /// Where the database comes from, what is kept of it and what that takes.
    pub fn description(&self, timeout: Duration) -> Result<Description> {
        let deadline = Instant::now() + timeout;
        let core = &self.client.core;
        self.try_call(deadline, || {
            core.describe_database(self.state.id(), deadline)
        })
        .map_err(|error| self.explain(error))
    }

    fn explain(&self, failure: Failure) -> Error {
        match failure {
            Failure::Call(error) if error.reason == Reason::Unsupported => {
                Error::new(Kind::Refused, format!("{}: {NO_VERSIONS}", self.describe()))
            }
            Failure::Call(error) => Error::from(error).within(&self.describe()),
            Failure::Before(error) => error,
        }
    }

    /// Of what makes, moves or removes something. A server that took the place of the one that was asked first, and has no such call, can't tell what that
    /// one did.
    fn explain_change(&self, failure: Failure) -> Error {
        match failure {
            Failure::Call(error) if error.reason == Reason::Unsupported && error.may_be_done => {
                Error::io(format!(
                    "{}: it is not known whether this was done: the answer was lost, and the server that is there now has no such call: look when \
                     there is one that keeps old versions",
                    self.describe()
                ))
            }
            failure => self.explain(failure),
        }
    }

    /// Makes a call, opening the database anew where the server has forgotten the session.
    pub(super) fn try_call<T: Send, F, Fut>(
        &self,
        deadline: Instant,
        call: F,
    ) -> std::result::Result<T, Failure>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = std::result::Result<T, CallError>> + Send,
    {
        let mut may_be_done = false;
        loop {
            let mut outcome = self.client.wait(call());
            if let Err(error) = &mut outcome {
                error.may_be_done |= may_be_done;
                may_be_done = error.may_be_done;
            }
            match outcome {
                Err(error)
                    if error.wants_reopen() && Instant::now() + super::REOPEN_PAUSE < deadline =>
                {
                    self.client.wait(super::tokio_sleep(super::REOPEN_PAUSE));
                    self.reopen_as_before(deadline)?;
                }
                Err(error) => return Err(Failure::Call(error)),
                Ok(answer) => return Ok(answer),
            }
        }
    }
}

/// Why a call gave nothing.
pub(super) enum Failure {
    /// It failed.
    Call(CallError),
    /// It could not be made.
    Before(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Before(error)
    }
}

impl Iterator for VersionPages {
    type Item = Result<PageNumber>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(page) = self.pages.next() {
                self.last = Some(page);
                return Some(Ok(page));
            }
            if !self.more {
                return None;
            }
            let deadline = Instant::now() + self.timeout;
            let database = &self.database;
            let core = &database.client.core;
            let answer = database.try_call(deadline, || {
                core.diff_versions(database.state.id(), self.from, self.to, self.last, deadline)
            });
            match answer {
                Ok((pages, more)) => {
                    self.pages = pages.into_iter();
                    self.more = more;
                }
                Err(failure) => {
                    self.more = false;
                    return Some(Err(database.explain(failure)));
                }
            }
        }
    }
}
