//! The conformance suite of the store contract: one function for each rule C1 to C17 and V1 to V7 of [`crate::store`], and a random test
//! against a model. Library code, so that every store, and every endpoint behind a store-shaped client, runs the same.
//!
//! Says what a store did wrong; never looks inside one. What cannot be seen from outside (a restart, damage to the
//! medium) is asked of [`StoreUnderTest`], and a rule that cannot be tried says so instead of passing.

mod branches;
mod changes;
mod collection;
mod commits;
mod contents;
pub mod endpoint;
mod fixture;
mod leases;
mod medium;
mod model;
mod model_versions;
mod names;
mod oracle;
mod reads;
mod stagings;
mod versions;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{DatabaseId, Invalid, PageNumber, Version};

use crate::store::{PageStore, StoreError};

/// What the suite has to be told to try a store.
#[async_trait]
pub trait StoreUnderTest: Send + Sync {
    /// A store to try. May have content: the suite uses names of its own.
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError>;

    /// Whether [`StoreUnderTest::reopen`] can be called.
    fn can_restart(&self) -> bool {
        false
    }

    /// Ends the store as a killed process would (no `end_service`) and opens its content anew. The store given is the
    /// last one: nobody else holds it.
    async fn reopen(&self, _store: Arc<dyn PageStore>) -> Result<Arc<dyn PageStore>, StoreError> {
        Err(StoreError::Unsupported("a restart in tests"))
    }

    /// For how long after [`StoreUnderTest::reopen`] the server that was killed may be taken for one that lives, where several servers may stand on a store: a
    /// deletion of what its sessions had open is refused meanwhile, and what they protected stays. Zero where nobody else can have the store.
    fn killed_is_believed_for(&self) -> Duration {
        Duration::ZERO
    }

    /// A store that keeps versions for this long, and whose clock is the one of [`StoreUnderTest::advance_clock`]; a store
    /// opened anew keeps both. `None` where that cannot be had.
    async fn open_with_retention(
        &self,
        _retention: Duration,
    ) -> Result<Option<Arc<dyn PageStore>>, StoreError> {
        Ok(None)
    }

    /// Moves the clock of a store opened by [`StoreUnderTest::open_with_retention`], which otherwise stands still.
    fn advance_clock(&self, _by: Duration) {}

    /// What is wrong inside, a sentence each, as far as the store can tell; asked when a collection has nothing left to do.
    async fn audit(&self, _store: &Arc<dyn PageStore>) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// Whether the store is seen through a page server. What the protocol does not have, and so cannot show, is:
    ///
    /// * A staging that outlives a commit of its database which does not name it, or the lease under which it was uploaded: by
    ///   `StagePages` in the protocol the end of any commit of its database drops it, and a server may at any other time. What a
    ///   store does with such a staging nobody can ask for.
    /// * The beginning and the end of a service: they are the server's own calls. What follows from them for clients is tried by
    ///   a rule of sessions, d01.
    ///
    /// Everything else holds through a server as it does without.
    fn behind_a_server(&self) -> bool {
        false
    }

    /// Does damage; `false` where it cannot be done to this store.
    async fn damage(
        &self,
        _store: &Arc<dyn PageStore>,
        _damage: Damage,
    ) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// What the medium of a store can suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// One bit of the stored content of a page flips.
    FlipBit(DatabaseId, PageNumber, Version),
    /// The next write or sync of a commit fails; later ones would succeed.
    FailNextCommit,
}

/// What became of the trial of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The store keeps the rule.
    Kept,
    /// It could not be tried, and why.
    NotTried(&'static str),
}

/// What the store did against a rule.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

impl From<StoreError> for Violation {
    fn from(error: StoreError) -> Self {
        Self(format!("an error where none belongs: {error} ({error:?})"))
    }
}

impl From<Invalid> for Violation {
    fn from(error: Invalid) -> Self {
        Self(error.to_string())
    }
}

/// How the trial of a rule ends.
pub type Outcome = Result<Verdict, Violation>;

/// A trial under way.
pub type Trial<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// What a rule is tried with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The store.
    pub store: &'a dyn StoreUnderTest,
    /// Of everything that is random in the trial.
    pub seed: u64,
}

/// A rule that can be tried.
#[derive(Clone, Copy)]
pub struct Rule {
    /// As in the contract, with what it says in short.
    pub name: &'static str,
    /// Tries it.
    pub run: for<'a> fn(Context<'a>) -> Trial<'a>,
}

/// Hands the list of all rules, `name: function;`, to a macro: the only place where they are listed.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_conformance_rule {
    ($callback:path, $($argument:tt)*) => {
        $callback! { ($($argument)*)
            c01_names_are_not_identities: names::c01;
            c02_list_shows_what_was_committed_in_byte_order: names::c02;
            c03_a_commit_is_seen_whole_or_not_at_all: commits::c03;
            c04_a_commit_on_another_base_is_a_conflict: commits::c04;
            c05_a_commit_of_another_epoch_has_lost_the_lease: commits::c05;
            c06_a_repeated_commit_answers_alike_and_changes_nothing: commits::c06;
            c07_acknowledged_commits_survive_where_the_store_is_durable: commits::c07;
            c08_a_version_has_the_pages_of_its_base_and_of_its_commit: contents::c08;
            c09_pages_come_as_of_the_version_in_the_order_asked: reads::c09;
            c10_protected_versions_stay_and_others_are_right_or_gone: reads::c10;
            c11_changes_name_every_page_that_differs: changes::c11;
            c12_epochs_rise_and_fence: leases::c12;
            c13_resolve_settles_for_ever: leases::c13;
            c14_records_are_kept: leases::c14;
            c15_staged_pages_wait_for_their_commit: stagings::c15;
            c16_damaged_content_is_never_returned: medium::c16;
            c17_after_a_failed_medium_no_commit_is_taken: medium::c17;
            v01_history_tells_what_the_commits_made: versions::v01;
            v02_what_has_to_be_kept_is_and_nothing_else: collection::v02;
            v03_tags_name_versions_and_keep_them: versions::v03;
            v04_branches_share_pages_and_nothing_else: branches::v04;
            v05_a_restore_is_a_commit_with_the_pages_of_an_old_version: branches::v05;
            v06_a_collection_drops_what_is_not_kept_beside_everything: collection::v06;
            v07_history_survives_a_restart: collection::v07;
            trust_of_earlier_processes_is_told: medium::service;
            random_histories_match_the_model: model::random;
        }
    };
}

macro_rules! rule_table {
    (() $($name:ident: $module:ident :: $function:ident;)*) => {
        /// All rules.
        pub const RULES: &[Rule] = &[$(Rule {
            name: stringify!($name),
            run: |context| Box::pin($module::$function(context)),
        }),*];
    };
}
for_each_conformance_rule!(rule_table,);

/// The rule whose name begins with this.
pub fn rule(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name.starts_with(name))
}

/// Tries one rule in a runtime of its own, with the seed of the environment variable `SEED` or a random one.
///
/// # Panics
/// Where the store breaks the rule. For tests: see [`crate::conformance_tests`].
pub fn run_as_test(name: &str, store: &dyn StoreUnderTest) {
    #[expect(clippy::disallowed_methods, reason = "only tests call this")]
    let given = std::env::var("SEED").ok();
    let seed = match given.map(|text| text.parse()) {
        Some(Ok(seed)) => seed,
        Some(Err(_)) => panic!("SEED must be a decimal number"),
        None => fixture::random_seed().expect("random numbers"),
    };
    let rule = rule(name).unwrap_or_else(|| panic!("there is no rule {name}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    match runtime.block_on((rule.run)(Context { store, seed })) {
        Ok(Verdict::Kept) => {}
        Ok(Verdict::NotTried(why)) => println!("{name} was not tried: {why}"),
        Err(violation) => panic!("{name} with SEED={seed}: {violation}"),
    }
}

/// A test for each rule. The expression makes a [`StoreUnderTest`], a fresh one for each test.
#[macro_export]
macro_rules! conformance_tests {
    ($store:expr) => {
        $crate::for_each_conformance_rule!($crate::conformance_tests_of, $store);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests_of {
    (($store:expr) $($name:ident: $module:ident :: $function:ident;)*) => {$(
        #[test]
        fn $name() {
            $crate::conformance::run_as_test(stringify!($name), &$store);
        }
    )*};
}
