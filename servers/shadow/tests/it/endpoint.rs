//! The adapter behind a page server: the same rules through gRPC, in fair weather and in foul.

use std::sync::Arc;
use std::time::Duration;

use pagewire_server::conformance::Verdict;
use pagewire_server::conformance::endpoint::{Endpoint, Tier};
use pagewire_server::{Server, bind_tcp};
use pagewire_shadow::ShadowStore;
use pagewire_shadow::testing::{Medium, TestKeyValue, Weather};

async fn keeps_all_rules(weather: Weather) {
    let medium = Arc::new(Medium::default());
    let kv = TestKeyValue::in_weather(&medium, weather);
    let store = ShadowStore::open(kv).await.unwrap();
    let server = Server::builder(Arc::new(store)).lease_ttl(Duration::from_secs(20));
    let server = server.build().await.unwrap();
    let (listener, address) = bind_tcp("127.0.0.1:0").await.unwrap();
    let serving = tokio::spawn(server.serve_tcp(listener, std::future::pending()));
    let endpoint = Endpoint::new(format!("http://{address}"), None);
    let mut kept = 0;
    // The rules of sessions wait for whole TTLs, and are not about the store.
    for name in Endpoint::rules().filter(|name| name.starts_with('c') || name.starts_with("random"))
    {
        let trial = endpoint.try_rule(name, 1).await;
        match trial.outcome {
            Ok(Verdict::Kept) => kept += usize::from(trial.tier == Some(Tier::Minimal)),
            Ok(Verdict::NotTried(_)) => {}
            Err(violation) => panic!("{name}: {violation}\n{:#?}", trial.exchanges),
        }
    }
    assert_eq!(kept, 15);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_hold_through_a_page_server() {
    keeps_all_rules(Weather::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_hold_through_a_page_server_in_foul_weather() {
    let weather = Weather {
        lost_answers: 3,
        late: 2,
        twice: 2,
        refused: 2,
        seed: 7,
    };
    keeps_all_rules(weather).await;
}
