//! Versions, snapshots, changes between them, and lease epochs.

use super::{Invalid, PageCount, PageNumber, PageSize};
use crate::limits::MAX_CHANGED_PAGES;
use crate::pb;

/// The number of a version of a database. Version 0 is empty; each commit makes the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(u64);

impl Version {
    /// Nothing was ever committed.
    pub const ZERO: Version = Version(0);

    /// The version with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The version that a commit on this one makes.
    pub const fn next(self) -> Version {
        Version(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The fencing number of a write lease: rises with each grant. 0 was never granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(u64);

impl Epoch {
    /// Never granted.
    pub const NONE: Epoch = Epoch(0);

    /// The epoch with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A version of a database with everything that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which version.
    pub version: Version,
    /// `None` if and only if the database has no pages.
    pub page_size: Option<PageSize>,
    /// How many pages it has.
    pub page_count: PageCount,
}

impl Snapshot {
    /// A database to which nothing was ever committed.
    pub const EMPTY: Snapshot = Snapshot {
        version: Version::ZERO,
        page_size: None,
        page_count: PageCount::ZERO,
    };

    /// The size of the database in bytes.
    pub fn byte_size(&self) -> u64 {
        self.page_size.map_or(0, |size| u64::from(size.get())) * u64::from(self.page_count.get())
    }
}

impl From<Snapshot> for pb::Snapshot {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            version: snapshot.version.get(),
            page_size: snapshot.page_size.map_or(0, PageSize::get),
            page_count: snapshot.page_count.get(),
        }
    }
}

impl TryFrom<pb::Snapshot> for Snapshot {
    type Error = Invalid;

    fn try_from(wire: pb::Snapshot) -> Result<Self, Invalid> {
        let page_count = PageCount::try_from(wire.page_count)?;
        let page_size = match (wire.page_size, wire.page_count) {
            (0, 0) => None,
            (size, count) if count > 0 => Some(PageSize::try_from(size)?),
            _ => {
                return Err(Invalid::new(
                    "page_size",
                    "must be 0 for a database without pages",
                ));
            }
        };
        Ok(Self {
            version: Version::new(wire.version),
            page_size,
            page_count,
        })
    }
}

impl TryFrom<Option<pb::Snapshot>> for Snapshot {
    type Error = Invalid;

    fn try_from(wire: Option<pb::Snapshot>) -> Result<Self, Invalid> {
        wire.ok_or_else(|| Invalid::missing("head"))?.try_into()
    }
}

/// Which pages differ between two versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Any of them may: too many, or not known any more.
    All,
    /// Only these, each once.
    Pages(Vec<PageNumber>),
}

impl From<Changes> for pb::Changes {
    fn from(changes: Changes) -> Self {
        match changes {
            Changes::All => Self {
                all: true,
                pages: Vec::new(),
            },
            Changes::Pages(pages) if pages.len() > MAX_CHANGED_PAGES => Self {
                all: true,
                pages: Vec::new(),
            },
            Changes::Pages(pages) => Self {
                all: false,
                pages: pages.into_iter().map(PageNumber::get).collect(),
            },
        }
    }
}

impl TryFrom<Option<pb::Changes>> for Changes {
    type Error = Invalid;

    fn try_from(wire: Option<pb::Changes>) -> Result<Self, Invalid> {
        let wire = wire.ok_or_else(|| Invalid::missing("changes"))?;
        if wire.all {
            return Ok(Changes::All);
        }
        if wire.pages.len() > MAX_CHANGED_PAGES {
            return Err(Invalid::new(
                "changes",
                format!(
                    "{} pages, at most {MAX_CHANGED_PAGES} are allowed",
                    wire.pages.len()
                ),
            ));
        }
        let pages = wire
            .pages
            .into_iter()
            .map(PageNumber::try_from)
            .collect::<Result<_, _>>()?;
        Ok(Changes::Pages(pages))
    }
}

/// The right to commit, with what its holder has to know to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// The fencing number of the grant.
    pub epoch: Epoch,
    /// The newest version at the time of the grant.
    pub head: Snapshot,
    /// What differs from the version that the caller named.
    pub changes: Changes,
}

impl From<LeaseGrant> for pb::LeaseGrant {
    fn from(grant: LeaseGrant) -> Self {
        Self {
            epoch: grant.epoch.get(),
            head: Some(grant.head.into()),
            changes: Some(grant.changes.into()),
            pages: Vec::new(),
        }
    }
}

/// Without the pages that may come along: whoever has asked for them takes them out before.
impl TryFrom<pb::LeaseGrant> for LeaseGrant {
    type Error = Invalid;

    fn try_from(wire: pb::LeaseGrant) -> Result<Self, Invalid> {
        if wire.epoch == 0 {
            return Err(Invalid::new("epoch", "is 0, which is never granted"));
        }
        Ok(Self {
            epoch: Epoch::new(wire.epoch),
            head: wire.head.try_into()?,
            changes: wire.changes.try_into()?,
        })
    }
}
