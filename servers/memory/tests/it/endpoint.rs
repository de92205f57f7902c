//! The suite through gRPC: a right store behind a server keeps the rules, and each wrong one is caught by a rule that names it.

use std::sync::Arc;
use std::time::Duration;

use pagewire_server::conformance::endpoint::{Endpoint, Trialled};
use pagewire_server::store::PageStore;
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
