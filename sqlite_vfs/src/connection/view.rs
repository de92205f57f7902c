//! Which version the transactions of a connection begin with, and what can be done with old ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_proto::{DatabaseName, Moment, PageSize, TagName, Version};

use super::{Connection, LockLevel, State};
use crate::client::{CommitPart, IfTaken};
use crate::database::{CommitMember, Database, Looked, Pin, commit};
use crate::error::{Error, Kind, Result};
use crate::settings::ConnectionSettings;

/// In SQL, the moment that is always now. No tag.
const HEAD: &str = "head";
/// How long a restore waits for the write lease at most: an SQL function can't use SQLite's busy handler.
const RESTORE_WAIT: Duration = Duration::from_secs(5);
const RESTORE_PAUSE: Duration = Duration::from_millis(20);

/// See the file's header.
pub(super) enum View {
    /// Each transaction begins with the newest version.
    Head,
    /// SQLite never locks: one version for the life of the connection.
    Fixed(Pin),
    /// The version of a moment, until another one is chosen.
    At(Looked),
}

impl View {
    pub(super) fn of_new(
        database: &Database,
        looked: Option<Looked>,
        settings: &ConnectionSettings,
    ) -> Result<Self> {
        Ok(match (looked, settings.unlocked) {
            (Some(looked), _) => View::At(looked),
            // It will never ask again, so it asks now (P4).
            (None, true) => View::Fixed(database.begin_read(settings)?),
            (None, false) => View::Head,
        })
    }

    /// The one version that is looked at.
    pub(super) fn pin(&self) -> Option<&Pin> {
        match self {
            View::Head => None,
            View::Fixed(pin) => Some(pin),
            View::At(looked) => Some(&looked.pin),
        }
    }

    /// Version and time, or nothing for the newest one: the answer of `PRAGMA pagewire_at`.
    pub(super) fn describe(&self) -> String {
        match self {
            View::Head => String::new(),
            View::Fixed(pin) => pin.snapshot().version.to_string(),
            View::At(Looked { entry, .. }) => {
                format!("{} {}", entry.snapshot.version, entry.time)
            }
        }
    }
}

impl Connection {
    /// The snapshot of a transaction that begins now.
    pub(super) fn begin_read(&self) -> Result<Pin> {
        match self.view.pin() {
            None => self.database.begin_read(&self.settings),
            Some(pin) => {
                self.database.keep(pin, self.settings.timeout)?;
                Ok(pin.clone())
            }
        }
    }

    /// An error where nothing may be written.
    pub(super) fn check_writable(&self) -> Result<()> {
        let reason = match &self.view {
            View::At(Looked { entry, .. }) => format!(
                "the connection looks at version {}, which can't be changed",
                entry.snapshot.version
            ),
            View::Fixed(_) | View::Head if self.settings.read_only => {
                "the connection was opened read-only".to_owned()
            }
            View::Fixed(_) | View::Head => return Ok(()),
        };
        Err(Error::new(
            Kind::ReadOnly,
            format!("{}: {reason}", self.database.describe()),
        ))
    }

    fn refused(&self, reason: &str) -> Error {
        Error::new(
            Kind::Refused,
            format!("{}: {reason}", self.database.describe()),
        )
    }

    fn check_idle(&self, what: &str) -> Result<()> {
        if matches!(self.state, State::Idle) {
            return Ok(());
        }
        Err(self.refused(&format!(
            "{what} is not possible inside a transaction, while a statement runs, or with locking_mode=EXCLUSIVE"
        )))
    }

    /// The moment of a text; `None` for the newest version.
    fn moment_of(&self, text: &str) -> Result<Option<Moment>> {
        let text = text.trim();
        if text.is_empty() || text.eq_ignore_ascii_case(HEAD) {
            return Ok(None);
        }
        let moment = text.parse::<Moment>();
        moment
            .map(Some)
            .map_err(|invalid| self.refused(&format!("at {}", invalid.problem)))
    }

    /// `PRAGMA pagewire_at`: from here on the connection looks at the version of a moment, or at the newest one again. SQLite
    /// drops its cache since the change counter is derived from the version (T4), and its schema since no schema cookie ever
    /// stands for two schemas.
    pub(super) fn look_at(&mut self, text: &str) -> Result<()> {
        self.check_idle("pagewire_at")?;
        if self.settings.unlocked {
            return Err(self.refused(
                "a connection with immutable or nolock looks at one version for life: open another one with at=",
            ));
        }
        self.view = match self.moment_of(text)? {
            None => View::Head,
            Some(at) => View::At(self.database.look_at(&at, self.settings.timeout)?),
        };
        Ok(())
    }

    /// What a moment means that was not given: the version that is looked at.
    fn moment_or_here(&self, text: Option<&str>) -> Result<(Moment, Option<Pin>)> {
        if let Some(text) = text
            && let Some(moment) = self.moment_of(text)?
        {
            return Ok((moment, None));
        }
        let pin = match &self.state {
            State::Idle => self.begin_read()?,
            State::Reading { base } => base.clone(),
            State::Writing { .. } | State::Failed { .. } | State::Refusing { .. } => {
                return Err(self.refused(
                    "a transaction that is being written has no version yet: commit it first",
                ));
            }
        };
        // Kept until the call has ended.
        Ok((Moment::Version(pin.snapshot().version), Some(pin)))
    }

    /// The number of the version of a text, for `pagewire_diff`; "head" is the newest one.
    pub fn version_of(&self, text: &str) -> Result<Version> {
        match self.moment_of(text)? {
            Some(at) => self.database.version_of(&at, self.settings.timeout),
            None => Ok(self.database.begin_read(&self.settings)?.snapshot().version),
        }
    }

    /// `pagewire_tag` and `pagewire_move_tag`: names a version, the one that is looked at where no moment is given.
    pub fn tag(&self, name: &str, at: Option<&str>, if_taken: IfTaken) -> Result<Version> {
        if self.settings.read_only {
            self.check_writable()?;
        }
        if name.eq_ignore_ascii_case(HEAD) {
            return Err(self.refused("\"head\" is no tag: it stands for the newest version"));
        }
        let name = self.tag_name(name)?;
        let (at, _pin) = self.moment_or_here(at)?;
        let timeout = self.settings.timeout;
        let found = self.database.set_tag(&name, &at, if_taken, timeout)?;
        Ok(found.snapshot.version)
    }

    /// `pagewire_untag`: whether there was such a tag.
    pub fn untag(&self, name: &str) -> Result<bool> {
        if self.settings.read_only {
            self.check_writable()?;
        }
        let name = self.tag_name(name)?;
        self.database.delete_tag(&name, self.settings.timeout)
    }

    fn tag_name(&self, name: &str) -> Result<TagName> {
        TagName::try_from(name)
            .map_err(|invalid| self.refused(&format!("the tag {name:?} {}", invalid.problem)))
    }

    /// `pagewire_branch`: makes a database from a version of this one, and returns which version that was.
    pub fn branch(&self, name: &str, at: Option<&str>) -> Result<Version> {
        let name = DatabaseName::try_from(name).map_err(|invalid| {
            self.refused(&format!("the database name {name:?} {}", invalid.problem))
        })?;
        let (at, _pin) = self.moment_or_here(at)?;
        let found = self.database.branch(&name, &at, self.settings.timeout)?;
        Ok(found.snapshot.version)
    }

    /// `pagewire_restore`: the content of an old version becomes the next one, by the ordinary way of a commit (B4).
    pub fn restore(&mut self, at: &str) -> Result<Version> {
        self.check_idle("a restore")?;
        self.check_writable()?;
        let Some(at) = self.moment_of(at)? else {
            return Err(self.refused("the newest version is what is there already"));
        };
        let looked = self.database.look_at(&at, self.settings.timeout)?;
        self.lock_for_restore()?;
        let outcome = self.commit_restore(&looked);
        self.unlock(LockLevel::None);
        outcome
    }

    /// Makes the connection the writer on the newest version.
    fn lock_for_restore(&mut self) -> Result<()> {
        let until = Instant::now() + self.settings.timeout.min(RESTORE_WAIT);
        loop {
            let locked = self
                .lock(LockLevel::Shared)
                .and_then(|()| self.lock(LockLevel::Reserved));
            let Err(error) = locked else { return Ok(()) };
            self.unlock(LockLevel::None);
            let may_wait = matches!(error.kind, Kind::Busy | Kind::BusySnapshot);
            if !may_wait || Instant::now() + RESTORE_PAUSE > until {
                return Err(error);
            }
            self.database.pause(RESTORE_PAUSE);
        }
    }

    fn commit_restore(&self, looked: &Looked) -> Result<Version> {
        let State::Writing { base, .. } = &self.state else {
            return Err(Error::new(
                Kind::Bug,
                "a restore outside of a write transaction",
            ));
        };
        let base = base.snapshot();
        let from = looked.pin.snapshot();
        if from.version == base.version {
            return Ok(base.version);
        }
        // Of an empty version the page size says nothing, but a commit has one.
        let page_size = from.page_size.or(base.page_size).unwrap_or(PageSize::MIN);
        let member = CommitMember {
            database: Arc::clone(&self.database),
            writer: self.writer,
            base,
            part: CommitPart {
                id: self.database.state.id(),
                base: base.version,
                page_size,
                page_count: from.page_count,
                pages: Vec::new(),
                spill: None,
                stagings: Vec::new(),
                restore: Some(from.version),
            },
        };
        let heads = commit(vec![member], self.settings.timeout)?;
        Ok(heads.first().map_or(base.version, |head| head.version))
    }
}
