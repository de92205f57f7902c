//! The suite through gRPC: a right store behind a server keeps the rules, and each wrong one is caught by a rule that names it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_memory::MemoryStore;
use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::conformance::Verdict;
use pagewire_server::conformance::endpoint::{Endpoint, Trialled};
use pagewire_server::layer::Layer;
use pagewire_server::store::{Capabilities, PageStore, StoreError, StoredPage};
use pagewire_server::{Server, bind_tcp};

use crate::wrong_stores::{Fault, wrong_store};

/// Some faults and the rule that has to notice, as `pagewire conformance` tells it; all of them are tried in `wrong_stores.rs`.
const SEEN: &[(Fault, &[&str])] = &[
    (Fault::ListIsReversed, &["c02"]),
    (Fault::CommitIsTorn, &["c03"]),
    (Fault::ConflictNamesTheFirstDatabase, &["c04"]),
    (Fault::RepeatedCommitAppliesTwice, &["c06"]),
    (Fault::GrownPagesShowOldBytes, &["c08"]),
    (Fault::PagesAreOffByOneFrom256, &["c09"]),
    (Fault::ProtectedVersionsShowTheHead, &["c10"]),
    (Fault::ChangesForgetTheLastPage, &["c11"]),
    (Fault::CommitsAreNotRemembered, &["c13", "c14"]),
];

async fn trial(store: Arc<dyn PageStore>, rule: &str) -> Trialled {
    let server = Server::builder(store).lease_ttl(Duration::from_secs(20));
    let server = server.build().await.unwrap();
    let (listener, address) = bind_tcp("127.0.0.1:0").await.unwrap();
    let serving = tokio::spawn(server.serve_tcp(listener, std::future::pending()));
    let endpoint = Endpoint::new(format!("http://{address}"), None);
    let rule = Endpoint::rules()
        .find(|name| name.starts_with(rule))
        .unwrap();
    let trial = endpoint.try_rule(rule, 1).await;
    serving.abort();
    trial
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_stores_behind_a_server_are_caught_by_name() {
    for (fault, rules) in SEEN {
        for rule in *rules {
            let right = trial(Arc::new(pagewire_memory::MemoryStore::new().unwrap()), rule).await;
            assert!(right.outcome.is_ok(), "{rule}: {:?}", right.outcome);
            let wrong = trial(wrong_store(*fault), rule).await;
            let violation = wrong
                .outcome
                .expect_err(&format!("{fault:?} passed {rule}"));
            assert!(!wrong.exchanges.is_empty());
            println!("{fault:?} by {}: {violation}", wrong.rule);
        }
    }
}

/// What a server stands on that announces deltas.
#[derive(Debug)]
struct Bases {
    right: MemoryStore,
    fault: Option<BaseFault>,
    exclusive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BaseFault {
    /// A base is always found, and is that of the head.
    Head,
    /// A single page that is read is the one beside it.
    Neighbour,
    /// None is ever found.
    Gone,
}

#[async_trait]
impl Layer for Bases {
    fn inner(&self) -> &dyn PageStore {
        &self.right
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            exclusive: self.exclusive,
            ..self.right.capabilities()
        }
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        // The bases of a portion; all pages at a time are what the rule reads itself.
        let fault = self.fault.filter(|_| pages.len() <= 16);
        match fault {
            None => self.right.read(database, version, pages).await,
            Some(BaseFault::Gone) => Err(StoreError::VersionGone { version }),
            Some(BaseFault::Head) => {
                let head = self.right.head(database).await?.version;
                self.right.read(database, head, pages).await
            }
            Some(BaseFault::Neighbour) => {
                let beside = pages
                    .iter()
                    .map(|page| PageNumber::try_from(page.get() ^ 1));
                let beside: Vec<_> = beside.map(Result::unwrap).collect();
                self.right.read(database, version, &beside).await
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e01_catches_servers_that_put_pages_together_from_wrong_bases() {
    let over = |fault, exclusive| {
        let right = MemoryStore::new().unwrap();
        Arc::new(Bases {
            right,
            fault,
            exclusive,
        })
    };
    for exclusive in [true, false] {
        let right = trial(over(None, exclusive), "e01").await;
        assert!(
            matches!(right.outcome, Ok(Verdict::Kept)),
            "{exclusive} {:?}",
            right.outcome
        );
    }
    for fault in [BaseFault::Head, BaseFault::Neighbour, BaseFault::Gone] {
        let wrong = trial(over(Some(fault), true), "e01").await;
        let violation = wrong.outcome.expect_err(&format!("{fault:?} passed"));
        println!("{fault:?} by e01: {violation}");
        // Without deltas nobody asks for a base.
        let raw = trial(over(Some(fault), false), "e01").await;
        assert!(
            matches!(raw.outcome, Ok(Verdict::Kept)),
            "{:?}",
            raw.outcome
        );
    }
}
