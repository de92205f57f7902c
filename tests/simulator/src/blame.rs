//! Whether a fault explains an error. What none explains is a violation, wherever it comes up: "the database disk image is malformed" is no
//! transaction that was merely aborted.
//!
//! SQLite's number alone does not tell: the library makes I/O errors of damage and of its own bugs. So the library says beside it which kind of
//! error it was ([`pagewire::simulation::World::failed`]), and which refusals came from servers.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use pagewire::simulation::Kind as Reported;
use pagewire::simulation::pages;
use pagewire_proto::status::Reason;
use pagewire_server::older;
use rusqlite::ErrorCode;

use crate::counts::{Event, count};
use crate::finding::Kind;
use crate::history;
use crate::plan::{self, Plan, Store, Workload};

/// How a server says that retention has taken a version away.
const NOT_KEPT: &str = "is not kept any more";

/// How a server begins that finds an encoding, or pages for which it knows none, not valid.
const OF_AN_ENCODING: [&str; 2] = ["encoding", "content"];

/// How the same reads where it gets as far as SQLite: such pages are sent again as they are, so it never does.
const TOLD_OF_AN_ENCODING: [&str; 2] = ["encoding: ", "content: page"];

/// For so long a client may go by the Welcome of a server without calls of history that was there until the calm: longer than any call takes.
const STALE_NS: u64 = 10_000_000_000;

/// How the library says that a database has no such tag.
const NO_TAG: &str = "there is no tag";

/// How the library says that a store has one version only, for which nobody may ask it.
const NO_VERSIONS: &str = "keeps no old versions";

thread_local! {
    static REPORTED: RefCell<Vec<(Reported, String)>> = const { RefCell::new(Vec::new()) };
}

/// What can be the reason of an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Messages, processes and machines.
    pub anything: bool,
    /// Of the medium or the disk.
    pub medium: bool,
    /// The medium takes its time, now and then longer than half of a lease: a server that does not reach it in time says so.
    pub slow: bool,
    /// Versions are asked for that are not there, names that may be taken.
    pub refusals: bool,
    /// Versions are taken away with time, or there is only one.
    pub forgets: bool,
    /// Servers of older releases take the place of others: what a client may still send them, they may not know.
    pub older: bool,
    /// And may have no calls of history, or may have had none a moment ago.
    pub lacks_history: bool,
}

impl Faults {
    /// Of a plan.
    pub fn of(plan: &Plan) -> Self {
        let medium = plan.weather_percent > 0 && plan.store.is_durable();
        Self {
            anything: plan.fault_every_ms > 0 || plan.sweep.is_some() || medium,
            medium,
            slow: plan.store == Store::Shadow,
            refusals: matches!(plan.workload, Workload::Mixed | Workload::Versions),
            forgets: plan.forgets_versions() || !plan.store.keeps_versions(),
            older: plan.older_percent > 0 && plan.store.is_durable(),
            lacks_history: plan.may_lack_history() && plan::calm_ns() < STALE_NS,
        }
    }
}

/// The library has told SQLite of an error on this thread.
pub fn reported(kind: Reported, message: &str) {
    REPORTED.with(|reported| reported.borrow_mut().push((kind, message.to_owned())));
    if matches!(kind, Reported::Corrupt | Reported::Bug) {
        history::violation(
            Kind::Error,
            format!("SQLite was told of {kind:?}: {message}"),
        );
    }
}

/// A server has refused a call of a client.
pub fn refused(reason: Reason, message: &str) {
    if !refusal_is_explained(reason, message, Faults::of(plan::get())) || is_one_too_many(reason) {
        history::violation(
            Kind::Error,
            format!("a server answered {}: {message}", reason.as_str()),
        );
    }
}

/// Whether more calls were refused as not valid than servers have met pages in an encoding that they have not.
fn is_one_too_many(reason: Reason) -> bool {
    static REFUSED: AtomicU64 = AtomicU64::new(0);
    reason == Reason::Invalid && REFUSED.fetch_add(1, Ordering::SeqCst) >= older::met().encodings
}

/// What this thread does next is to be explained by what is reported from now on.
pub fn forget() {
    REPORTED.with(|reported| reported.borrow_mut().clear());
}

/// Whether the library has told SQLite on this thread that there is no such tag, since [`forget`].
pub fn is_without_tag() -> bool {
    REPORTED.with(|reported| {
        let reported = reported.borrow();
        reported.iter().any(|(_, what)| what.contains(NO_TAG))
    })
}

/// A violation unless a fault explains the error.
pub fn judge(what: &str, error: &rusqlite::Error) {
    let reported = REPORTED.with(|reported| reported.borrow().clone());
    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) {
        count(Event::Busy);
    }
    if reported.iter().any(|(_, what)| what.contains(NOT_KEPT)) {
        count(Event::Gone);
    }
    if !is_explained(error, &reported, Faults::of(plan::get())) {
        history::violation(
            Kind::Error,
            format!("{what} failed: {error} ({error:?}, the library reported {reported:?})"),
        );
    }
}

/// The same for what the library says itself, without SQLite.
pub fn judge_pages(what: &str, error: &pages::Error) {
    if error.message.contains(NOT_KEPT) {
        count(Event::Gone);
    }
    if !is_explained_without_sqlite(error, Faults::of(plan::get())) {
        history::violation(
            Kind::Error,
            format!("{what} failed: {error} ({:?})", error.kind),
        );
    }
}

fn is_explained_without_sqlite(error: &pages::Error, faults: Faults) -> bool {
    let is_gone = faults.forgets && error.message.contains(NOT_KEPT);
    if is_of_an_encoding(&error.message) {
        return false;
    }
    match error.kind {
        Reported::Busy | Reported::BusySnapshot | Reported::Deadlock => true,
        Reported::Io | Reported::OutcomeUnknown | Reported::CantOpen => {
            (!error.message.contains(NO_VERSIONS) || faults.lacks_history)
                && (faults.anything || is_gone)
        }
        Reported::Full => faults.medium,
        // Nothing that is refused is asked for, and there is memory.
        Reported::ReadOnly
        | Reported::Refused
        | Reported::NoMemory
        | Reported::Corrupt
        | Reported::Bug => false,
    }
}

fn is_of_an_encoding(message: &str) -> bool {
    TOLD_OF_AN_ENCODING
        .iter()
        .any(|told| message.contains(told))
}

fn refusal_is_explained(reason: Reason, message: &str, faults: Faults) -> bool {
    match reason {
        // What a server of an older release has not, and what a store has not that keeps one version.
        Reason::Unsupported => true,
        // The client sends them as they are.
        Reason::EncodingRefused => true,
        Reason::VersionGone => faults.forgets,
        Reason::SessionUnknown
        | Reason::DatabaseNotOpen
        | Reason::StagingUnknown
        | Reason::Draining => faults.anything,
        Reason::Unavailable => faults.anything || faults.slow,
        Reason::DatabaseNotFound | Reason::TagNotFound | Reason::NameTaken => faults.refusals,
        Reason::StoreFull | Reason::Internal => faults.medium,
        // As long as a client goes by the Welcome of the server before it.
        Reason::Invalid => faults.older && OF_AN_ENCODING.iter().any(|of| message.starts_with(of)),
        Reason::ProtocolVersion | Reason::Limit | Reason::Overloaded | Reason::Corrupt => false,
    }
}

fn is_explained(error: &rusqlite::Error, reported: &[(Reported, String)], faults: Faults) -> bool {
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        // A row that is not there, a column of another type: nothing of the kind is ever asked for.
        return false;
    };
    let said = |kinds: &[Reported]| reported.iter().any(|(kind, _)| kinds.contains(kind));
    let is_gone = faults.forgets && reported.iter().any(|(_, what)| what.contains(NOT_KEPT));
    let is_refused = faults.refusals && said(&[Reported::Refused]);
    let is_encoding = reported.iter().any(|(_, what)| is_of_an_encoding(what));
    if said(&[Reported::Corrupt, Reported::Bug]) || is_encoding {
        return false;
    }
    match failure.code {
        ErrorCode::DatabaseBusy => true,
        ErrorCode::SystemIoFailure => {
            failure.extended_code != rusqlite::ffi::SQLITE_IOERR_DATA
                && failure.extended_code != rusqlite::ffi::SQLITE_IOERR_CORRUPTFS
                && !reported.is_empty()
                && (faults.anything || is_gone || is_refused)
        }
        // The store cannot do it, with or without faults.
        ErrorCode::CannotOpen if reported.iter().any(|(_, what)| what.contains(NO_VERSIONS)) => {
            faults.lacks_history
        }
        ErrorCode::CannotOpen => !reported.is_empty() && (faults.anything || is_gone || is_refused),
        ErrorCode::DiskFull => faults.medium && said(&[Reported::Full]),
        // What was asked for is not there any more, or is there already.
        ErrorCode::Unknown => is_refused,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    const STORM: Faults = Faults {
        anything: true,
        medium: true,
        slow: true,
        refusals: true,
        forgets: true,
        older: true,
        lacks_history: false,
    };

    fn explained(code: i32, reported: &[Reported], faults: Faults) -> bool {
        let failure = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let reported: Vec<_> = reported.iter().map(|kind| (*kind, String::new())).collect();
        is_explained(&failure, &reported, faults)
    }

    #[test]
    fn a_lock_that_is_held_needs_no_fault() {
        assert!(explained(ffi::SQLITE_BUSY, &[], Faults::default()));
        assert!(explained(ffi::SQLITE_BUSY_SNAPSHOT, &[], Faults::default()));
    }

    #[test]
    fn no_storm_explains_what_is_no_fault_of_the_network() {
        for code in [
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_CORRUPT_INDEX,
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_INTERNAL,
            ffi::SQLITE_MISUSE,
            ffi::SQLITE_ERROR,
            ffi::SQLITE_CONSTRAINT,
            ffi::SQLITE_SCHEMA,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_ABORT,
            ffi::SQLITE_IOERR_DATA,
        ] {
            assert!(!explained(code, &[Reported::Io], STORM), "{code}");
        }
        assert!(!is_explained(
            &rusqlite::Error::QueryReturnedNoRows,
            &[],
            STORM
        ));
    }

    #[test]
    fn an_i_o_error_is_explained_by_a_fault_and_by_what_the_library_said() {
        let calm = Faults::default();
        assert!(explained(ffi::SQLITE_IOERR_READ, &[Reported::Io], STORM));
        assert!(!explained(ffi::SQLITE_IOERR_READ, &[Reported::Io], calm));
        assert!(!explained(ffi::SQLITE_IOERR_READ, &[], STORM));
        for kind in [Reported::Corrupt, Reported::Bug] {
            assert!(!explained(
                ffi::SQLITE_IOERR_READ,
                &[Reported::Io, kind],
                STORM
            ));
        }
        let network = Faults {
            medium: false,
            ..STORM
        };
        assert!(explained(ffi::SQLITE_FULL, &[Reported::Full], STORM));
        assert!(!explained(ffi::SQLITE_FULL, &[Reported::Full], network));
    }

    #[test]
    fn without_sqlite_the_same_is_explained() {
        let explained = |kind, message: &str, faults| {
            is_explained_without_sqlite(&pages::Error::new(kind, message), faults)
        };
        let calm = Faults::default();
        for kind in [Reported::Busy, Reported::BusySnapshot, Reported::Deadlock] {
            assert!(explained(kind, "", calm));
        }
        for kind in [Reported::Io, Reported::OutcomeUnknown, Reported::CantOpen] {
            assert!(explained(kind, "", STORM) && !explained(kind, "", calm));
            assert!(!explained(kind, NO_VERSIONS, STORM));
        }
        assert!(explained(Reported::Full, "", STORM) && !explained(Reported::Full, "", calm));
        for kind in [
            Reported::ReadOnly,
            Reported::Refused,
            Reported::Corrupt,
            Reported::Bug,
        ] {
            assert!(!explained(kind, "", STORM), "{kind:?}");
        }
    }

    #[test]
    fn what_a_store_can_never_do_is_no_fault() {
        let failure = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), None);
        let said = |what: &str| [(Reported::CantOpen, what.to_owned())];
        assert!(is_explained(&failure, &said("no answer"), STORM));
        let never = said("the store of this server keeps no old versions");
        assert!(!is_explained(&failure, &never, STORM));
        let older = Faults {
            lacks_history: true,
            ..STORM
        };
        assert!(is_explained(&failure, &never, older));
    }

    #[test]
    fn a_server_that_is_broken_is_no_fault_of_the_network() {
        let network = Faults {
            anything: true,
            ..Faults::default()
        };
        for reason in Reason::ALL {
            let always = matches!(
                reason,
                Reason::ProtocolVersion
                    | Reason::Invalid
                    | Reason::Limit
                    | Reason::Overloaded
                    | Reason::Corrupt
            );
            let explained = refusal_is_explained(*reason, "", STORM);
            assert_eq!(!explained, always, "{reason:?}");
        }
        assert!(!refusal_is_explained(Reason::Internal, "", network));
        let of_an_encoding = "content has 70 bytes";
        let unknown = |faults| refusal_is_explained(Reason::Invalid, of_an_encoding, faults);
        assert!(unknown(STORM) && !unknown(network));
        let slow = Faults {
            slow: true,
            ..Faults::default()
        };
        assert!(refusal_is_explained(Reason::Unavailable, "", slow));
        assert!(!refusal_is_explained(
            Reason::Unavailable,
            "",
            Faults::default()
        ));
        assert!(!explained(ffi::SQLITE_IOERR_LOCK, &[Reported::Io], slow));
        assert!(!refusal_is_explained(
            Reason::SessionUnknown,
            "",
            Faults::default()
        ));
    }
}
