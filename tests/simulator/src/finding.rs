//! What is wrong with a run, by kind: the simulator's own tests want the kind that the switch brings about, and no other will do.

use std::fmt;

/// A kind of wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No order of the transactions explains what they saw.
    Order,
    /// Acknowledged, and not there.
    Lost,
    /// A part of a transaction without the rest.
    Torn,
    /// A value that nobody wrote, that was aborted, or that is there twice.
    Value,
    /// Something of another database.
    Foreign,
    /// A transaction saw two contents in one snapshot.
    Snapshot,
    /// A version has two contents, or versions do not follow time.
    Version,
    /// Not what a plain SQLite, or arithmetic, has, or what its row says.
    Content,
    /// SQLite finds the database damaged.
    Damage,
    /// An error that no fault explains.
    Error,
    /// A panic, wherever it was caught.
    Panic,
    /// A statement took longer than its deadlines.
    Slow,
    /// Somebody does not get on though nothing goes wrong any more.
    Stuck,
    /// The simulation itself did not come to its end.
    Machine,
}

impl Kind {
    /// As it is told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Lost => "lost",
            Self::Torn => "torn",
            Self::Value => "value",
            Self::Foreign => "foreign",
            Self::Snapshot => "snapshot",
            Self::Version => "version",
            Self::Content => "content",
            Self::Damage => "damage",
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Slow => "slow",
            Self::Stuck => "stuck",
            Self::Machine => "machine",
        }
    }

    /// A finding of this kind.
    pub fn finding(self, what: impl Into<String>) -> Finding {
        Finding {
            kind: self,
            what: what.into(),
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// See there.
    pub kind: Kind,
    /// For people.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.kind.name(), self.what)
    }
}
