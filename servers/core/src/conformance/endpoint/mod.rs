//! The suite against any endpoint, through gRPC: [`Endpoint`] runs the rules of stores and those of sessions and says which tier is
//! earned (the table is in `proto/README.md`).
//!
//! Touches only databases whose names begin with `conformance/` and a random number of its own, and deletes them.

mod encodings;
mod history;
mod leases;
mod remote;
mod served;
mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{DatabaseName, SessionId, pb};
use parking_lot::Mutex;

use super::{Context, Outcome, RULES, StoreUnderTest, Trial, Verdict, Violation};
use crate::store::{PageStore, StoreError};
use encodings::Announced;
use remote::{Names, RemoteStore};
pub use served::Served;
use wire::{Exchanges, Wire, connect};

/// How long a server may take to start again.
const RESTART_PATIENCE: Duration = Duration::from_secs(60);
/// How long sessions that ended may be thought to have a database open.
const DELETION_PATIENCE: Duration = Duration::from_secs(10);
/// A deletion that was refused is tried again after this.
const DELETION_PAUSE: Duration = Duration::from_millis(100);

/// What a server may call itself; each includes the minimal one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Atomic commits, one version kept.
    Minimal,
    /// Leases that go round between sessions.
    Leased,
    /// What was acknowledged survives.
    Durable,
    /// Old versions stay readable.
    Versioned,
    /// Branches.
    Branching,
}

impl Tier {
    /// All of them, the lowest first.
    pub const ALL: &[Tier] = &[
        Tier::Minimal,
        Tier::Leased,
        Tier::Durable,
        Tier::Versioned,
        Tier::Branching,
    ];

    /// As in `proto/README.md`.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Minimal => "minimal",
            Tier::Leased => "leased",
            Tier::Durable => "durable",
            Tier::Versioned => "versioned",
            Tier::Branching => "branching",
        }
    }

    /// The tier that needs a rule; `None` for what cannot be tried from outside.
    fn of(rule: &str) -> Option<Tier> {
        match rule.split('_').next().unwrap_or_default() {
            "c07" | "v07" | "d01" => Some(Tier::Durable),
            "c16" | "c17" | "trust" => None,
            "v04" => Some(Tier::Branching),
            name if name.starts_with('v') => Some(Tier::Versioned),
            name if name.starts_with('l') => Some(Tier::Leased),
            _ => Some(Tier::Minimal),
        }
    }
}

/// Restarts the server as a death would: `kill -9`, then a new start on the same store.
#[async_trait]
pub trait Restart: Send + Sync {
    /// Returns when the new server has been started, whether or not it can be connected to yet.
    async fn restart(&self) -> Result<(), StoreError>;
}

/// A server to be tried.
pub struct Endpoint {
    address: String,
    restart: Option<Box<dyn Restart>>,
    /// How long a server that was killed may be taken for one that lives.
    dead_after: Duration,
    /// A server was killed in the trial that runs.
    killed: AtomicBool,
    names: Names,
    /// What could not be deleted yet since a server that was killed may have it open.
    left: Mutex<Vec<DatabaseName>>,
    exchanges: Exchanges,
}

/// How the trial of a rule ended.
#[derive(Debug)]
pub struct Trialled {
    /// Which rule.
    pub rule: &'static str,
    /// The tier that needs it.
    pub tier: Option<Tier>,
    /// What became of it.
    pub outcome: Outcome,
    /// The last exchanges, where it failed.
    pub exchanges: Vec<String>,
}

/// The trial of a rule on an endpoint.
type SessionTrial = for<'a> fn(&'a Endpoint) -> Trial<'a>;

/// Rules of sessions and leases, which no store has.
const SESSION_RULES: &[(&str, SessionTrial)] = &[
    ("s01_a_session_lives_by_its_heartbeats", |endpoint| {
        Box::pin(leases::s01(endpoint))
    }),
    (
        "l01_a_lease_goes_to_the_next_ticket_when_it_is_recalled",
        |endpoint| Box::pin(leases::l01(endpoint)),
    ),
    (
        "l02_a_holder_that_keeps_its_lease_says_so_at_once",
        |endpoint| Box::pin(leases::l02(endpoint)),
    ),
    ("l03_a_broken_stream_resumes_with_its_leases", |endpoint| {
        Box::pin(leases::l03(endpoint))
    }),
    (
        "d01_after_a_death_nothing_becomes_visible_while_leases_may_be_trusted",
        |endpoint| Box::pin(leases::d01(endpoint)),
    ),
    (
        "l04_nothing_becomes_visible_while_a_lost_holder_may_trust_its_lease",
        |endpoint| Box::pin(leases::l04(endpoint)),
    ),
    (
        "e01_pages_in_an_announced_encoding_are_the_pages_that_were_encoded",
        |endpoint| Box::pin(encodings::e01(endpoint)),
    ),
];

impl Endpoint {
    /// A server at `http://HOST:PORT`; with a way to restart it, where it can be.
    pub fn new(address: impl Into<String>, restart: Option<Box<dyn Restart>>) -> Self {
        Self {
            address: address.into(),
            restart,
            dead_after: Duration::ZERO,
            killed: AtomicBool::new(false),
            names: Names::default(),
            left: Mutex::default(),
            exchanges: Arc::new(Mutex::new(VecDeque::new())),
        }
    }

    /// On a store that several servers share: so long a server that was killed may count as one that lives, with what its sessions have open and protect.
    /// A store of one server has no such time.
    #[must_use]
    pub fn on_a_shared_store(self, dead_after: Duration) -> Self {
        Self { dead_after, ..self }
    }

    /// The names of all rules, those of sessions last.
    pub fn rules() -> impl Iterator<Item = &'static str> {
        let stores = RULES.iter().map(|rule| rule.name);
        stores.chain(SESSION_RULES.iter().map(|(name, _)| *name))
    }

    /// Connects and asks who is there.
    pub async fn welcome(&self) -> Result<pb::Welcome, StoreError> {
        Ok(self.session().await?.welcome.clone())
    }

    /// Tries a rule, and deletes what it made, or leaves that to [`Endpoint::finish`].
    pub async fn try_rule(&self, name: &'static str, seed: u64) -> Trialled {
        let tier = Tier::of(name);
        self.exchanges.lock().clear();
        self.killed.store(false, Ordering::Relaxed);
        let session_rule = SESSION_RULES.iter().find(|(rule, _)| *rule == name);
        let outcome = match (session_rule, RULES.iter().find(|rule| rule.name == name)) {
            (Some((_, run)), _) => run(self).await,
            (None, Some(_)) if tier.is_none() => {
                Ok(Verdict::NotTried("it can't be tried from outside"))
            }
            (None, Some(rule)) => (rule.run)(Context { store: self, seed }).await,
            (None, None) => Err(Violation(format!("there is no rule {name}"))),
        };
        let exchanges = match &outcome {
            Ok(_) => Vec::new(),
            Err(_) => self.exchanges.lock().iter().cloned().collect(),
        };
        let outcome = match self.clean_up().await {
            Err(error) if outcome.is_ok() => Err(Violation(format!(
                "what the rule made could not be deleted: {error}"
            ))),
            _ => outcome,
        };
        Trialled {
            rule: name,
            tier,
            outcome,
            exchanges,
        }
    }

    async fn session(&self) -> Result<Wire, StoreError> {
        let id = SessionId::random().map_err(|error| StoreError::Internal(error.to_string()))?;
        self.session_as(id, true).await
    }

    async fn session_as(&self, id: SessionId, heartbeats: bool) -> Result<Wire, StoreError> {
        let calls = connect(&self.address).await?;
        Wire::begin(calls, id, heartbeats, Arc::clone(&self.exchanges)).await
    }

    async fn store(&self) -> Result<RemoteStore, StoreError> {
        RemoteStore::new(self.session().await?, Arc::clone(&self.names))
    }

    /// Deletes every database that was opened; sessions that had it open may be about to end. Those of a server that was killed may, on a store that
    /// several servers share, take longer than anybody would wait for after each rule.
    async fn clean_up(&self) -> Result<(), StoreError> {
        let names: Vec<_> = self.names.lock().drain().map(|(_, name)| name).collect();
        let killed = self.killed.load(Ordering::Relaxed) && !self.dead_after.is_zero();
        let patience = match killed {
            true => Duration::ZERO,
            false => DELETION_PATIENCE,
        };
        match self.delete(names, patience).await {
            Err((left, _)) if killed => {
                self.left.lock().extend(left);
                Ok(())
            }
            Err((_, error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    /// Deletes what the rules left that killed a server. To be called when all rules were tried.
    pub async fn finish(&self) -> Result<(), StoreError> {
        let left = std::mem::take(&mut *self.left.lock());
        let patience = self.dead_after + DELETION_PATIENCE;
        let deleted = self.delete(left, patience).await;
        deleted.map_err(|(_, error)| error)
    }

    /// Deletes databases; those that still could not be deleted when the patience was over, and why.
    async fn delete(
        &self,
        mut names: Vec<DatabaseName>,
        patience: Duration,
    ) -> Result<(), (Vec<DatabaseName>, StoreError)> {
        let deadline = tokio::time::Instant::now() + patience;
        while !names.is_empty() {
            let mut refused = None;
            let mut left = Vec::new();
            match connect(&self.address).await {
                Ok(mut calls) => {
                    for name in names {
                        let request = pb::DeleteDatabaseRequest {
                            name: name.as_str().to_owned(),
                        };
                        let answer = calls.delete_database(request).await;
                        match answer.map_err(wire::of_status) {
                            Ok(_)
                            | Err(StoreError::DatabaseNotFound | StoreError::Unsupported(_)) => {}
                            Err(error) => {
                                refused = Some(error);
                                left.push(name);
                            }
                        }
                    }
                }
                Err(error) => (refused, left) = (Some(error), names),
            }
            names = left;
            if let Some(error) = refused {
                if tokio::time::Instant::now() >= deadline {
                    return Err((names, error));
                }
                tokio::time::sleep(DELETION_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Kills the server and starts it again, where that is possible.
    async fn kill(&self) -> Result<(), StoreError> {
        let Some(restart) = &self.restart else {
            return Err(StoreError::Unsupported("a restart without a command"));
        };
        self.killed.store(true, Ordering::Relaxed);
        restart.restart().await
    }
}

#[async_trait]
impl StoreUnderTest for Endpoint {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        Ok(Arc::new(self.store().await?))
    }

    fn can_restart(&self) -> bool {
        self.restart.is_some()
    }

    async fn reopen(&self, store: Arc<dyn PageStore>) -> Result<Arc<dyn PageStore>, StoreError> {
        self.kill().await?;
        drop(store);
        let deadline = tokio::time::Instant::now() + RESTART_PATIENCE;
        loop {
            match self.store().await {
                Ok(store) => return Ok(Arc::new(store)),
                Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn behind_a_server(&self) -> bool {
        true
    }

    fn killed_is_believed_for(&self) -> Duration {
        self.dead_after
    }
}

/// The tiers that were earned: all rules of a tier and of the minimal one kept, and at least one of its own tried.
pub fn earned(trials: &[Trialled], welcome: &pb::Welcome) -> Vec<Tier> {
    let store = welcome.store.clone().unwrap_or_default();
    let has = |tier: Tier| {
        // Versions survive a restart where there are any, and encodings are kept where they are announced.
        let asked = |trial: &&Trialled| {
            (store.versions || !trial.rule.starts_with("v07"))
                && (Announced::by(welcome).any() || !trial.rule.starts_with("e01"))
        };
        let mut own = trials
            .iter()
            .filter(|trial| trial.tier == Some(tier))
            .filter(asked)
            .peekable();
        let tried =
            own.peek().is_some() && own.all(|trial| matches!(trial.outcome, Ok(Verdict::Kept)));
        let says = match tier {
            Tier::Minimal | Tier::Leased => true,
            Tier::Durable => store.durable,
            Tier::Versioned => store.versions,
            Tier::Branching => store.branches,
        };
        tried && says
    };
    let minimal = has(Tier::Minimal);
    let earned = Tier::ALL
        .iter()
        .copied()
        .filter(|tier| minimal && has(*tier));
    earned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a store of one server that takes its former life for another server would pass.
    #[test]
    fn a_killed_server_counts_for_nothing_unless_the_store_is_said_to_be_shared() {
        let endpoint = || Endpoint::new("http://127.0.0.1:1", None);
        assert_eq!(endpoint().killed_is_believed_for(), Duration::ZERO);
        let minute = Duration::from_secs(60);
        let shared = endpoint().on_a_shared_store(minute);
        assert_eq!(shared.killed_is_believed_for(), minute);
    }
}
