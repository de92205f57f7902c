//! Switches that make this server wrong on purpose, so that what tests it can be tested. Not in any release build.

use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(not(debug_assertions))]
compile_error!("the feature \"defects\" is for tests: no release build can have it");

/// What can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Defect {
    /// Commits do not wait until nobody trusts an earlier lease any more.
    Barriers = 1,
    /// Commits do not wait for the answers of strict subscribers (S2).
    PrepareAnswers = 2,
}

static OFF: AtomicU8 = AtomicU8::new(0);

/// Switches one off, or everything on again.
pub fn switch_off(defect: Option<Defect>) {
    OFF.store(defect.map_or(0, |defect| defect as u8), Ordering::SeqCst);
}

pub(crate) fn is_off(defect: Defect) -> bool {
    OFF.load(Ordering::SeqCst) == defect as u8
}
