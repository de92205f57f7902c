//! Transactions that wait for each other's leases: W-1 to W-4 of `deadlock.rs`.

use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::acquire_lease_response::Outcome;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use tokio::task::JoinHandle;

use crate::harness::{Client, LONG_TTL, Opened, TestServer};

/// A client in whose session one transaction runs that writes to one database.
struct Writer {
    client: Client,
    /// All databases of the test.
    databases: Vec<Opened>,
    transaction: u64,
    writes_to: usize,
    epoch: u64,
}

impl Writer {
    /// With the lease of the database, which it does not give back before its transaction ends.
    async fn begin(server: &TestServer, names: &[&str], writes_to: usize) -> Self {
        let mut client = server.client().await;
        let mut databases = Vec::new();
        for name in names {
            databases.push(client.open(name).await);
        }
        let epoch = client.acquire(&databases[writes_to]).await;
        Self {
            client,
            databases,
            transaction: 70 + writes_to as u64,
            writes_to,
            epoch,
        }
    }

    /// Asks for the lease of another database; the call lasts a second at most.
    fn ask(&self, database: usize, transaction: u64) -> JoinHandle<Outcome> {
        let mut request = self.client.acquire_request(&self.databases[database], 1000);
        request.transaction = transaction;
        let mut calls = self.client.calls.clone();
        tokio::spawn(async move {
            let answer = calls.acquire_lease(request).await.unwrap();
            answer.into_inner().outcome.unwrap()
        })
    }

    fn wait_for(&self, database: usize) -> JoinHandle<Outcome> {
        self.ask(database, self.transaction)
    }

    /// Answers the recall: a transaction is running.
    async fn keep(&mut self, transaction: u64) {
        match self.client.news().await {
            News::LeaseRecall(recall) => {
                assert_eq!(recall.epoch, self.epoch);
                self.client.send(Request::KeepLease(pb::KeepLease {
                    database_id: recall.database_id,
                    epoch: recall.epoch,
                    transaction,
                }));
            }
            other => panic!("{other:?}"),
        }
    }

    fn roll_back(&self) {
        let database = &self.databases[self.writes_to];
        self.client.release(database, self.epoch, false);
    }
}

async fn writers<const N: usize>(server: &TestServer) -> [Writer; N] {
    let names = ["a.db", "b.db", "c.db", "d.db"];
    let mut writers = Vec::new();
    for index in 0..N {
        writers.push(Writer::begin(server, &names[..N], index).await);
    }
    writers.try_into().ok().unwrap()
}

fn is_pending(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Pending(_))
}

/// A, B, C... each wait for the next one's database, and all have said that they are writing.
async fn cycle<const N: usize>(writers: &mut [Writer; N]) -> Vec<Outcome> {
    let mut calls = Vec::new();
    for index in 0..N {
        calls.push(writers[index].wait_for((index + 1) % N));
        // Of two that begin to wait at the same moment either may be the younger one.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let holder = &mut writers[(index + 1) % N];
        let transaction = holder.transaction;
        holder.keep(transaction).await;
    }
    let mut outcomes = Vec::new();
    for call in calls {
        outcomes.push(call.await.unwrap());
    }
    outcomes
}

#[tokio::test(start_paused = true)]
async fn w3_of_a_cycle_the_one_that_began_to_wait_last_is_refused_and_no_other() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut two = writers::<2>(&server).await;
    let outcomes = cycle(&mut two).await;
    assert!(is_pending(&outcomes[0]), "{outcomes:?}");
    let refused = Outcome::Deadlock(pb::LeaseDeadlock { transactions: 2 });
    assert_eq!(outcomes[1], refused);
    // It may ask again before it ends, as a busy handler does: it is refused again, and the first one is not.
    for _ in 0..3 {
        assert!(is_pending(&two[0].wait_for(1).await.unwrap()));
        assert_eq!(two[1].wait_for(0).await.unwrap(), refused);
    }
    // W-4: when it has ended the other one goes on.
    let waiting = two[0].wait_for(1);
    two[1].roll_back();
    let outcome = waiting.await.unwrap();
    assert!(
        matches!(outcome, Outcome::Granted(_)) || is_pending(&outcome),
        "{outcome:?}"
    );
    if is_pending(&outcome) {
        assert!(matches!(two[0].client.news().await, News::LeaseGranted(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn w3_a_cycle_of_four_is_found_by_its_youngest() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut four = writers::<4>(&server).await;
    let outcomes = cycle(&mut four).await;
    assert!(outcomes[..3].iter().all(is_pending), "{outcomes:?}");
    let refused = Outcome::Deadlock(pb::LeaseDeadlock { transactions: 4 });
    assert_eq!(outcomes[3], refused);
}

/// The youngest may have asked before the last holder had said that it keeps its lease.
#[tokio::test(start_paused = true)]
async fn w3_the_youngest_is_refused_whoever_closes_the_cycle() {
    let server = TestServer::in_process(LONG_TTL).await;
    let [mut a, mut b] = writers::<2>(&server).await;
    let older = a.wait_for(1);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let younger = b.wait_for(0);
    let (of_a, of_b) = (a.transaction, b.transaction);
    a.keep(of_a).await;
    b.keep(of_b).await;
    assert!(is_pending(&older.await.unwrap()));
    let outcome = match younger.await.unwrap() {
        // Its first call ended when the first of them kept its lease.
        Outcome::Pending(_) => b.wait_for(0).await.unwrap(),
        outcome => outcome,
    };
    assert!(matches!(outcome, Outcome::Deadlock(_)), "{outcome:?}");
}

/// A process shares its lease among its connections: another one of them waits, or another one is writing.
#[tokio::test(start_paused = true)]
async fn w1_another_transaction_of_the_same_session_makes_no_cycle() {
    let server = TestServer::in_process(LONG_TTL).await;
    for (waits, keeps) in [(99, 71), (71, 99), (0, 71), (71, 0)] {
        let [mut a, mut b] = writers::<2>(&server).await;
        let first = a.wait_for(1);
        b.keep(keeps).await;
        assert!(is_pending(&first.await.unwrap()));
        let second = b.ask(0, waits);
        let of_a = a.transaction;
        a.keep(of_a).await;
        let outcome = second.await.unwrap();
        assert!(is_pending(&outcome), "{waits}, {keeps}: {outcome:?}");
        assert!(is_pending(&a.wait_for(1).await.unwrap()));
        a.client.goodbye().await;
        b.client.goodbye().await;
    }
}

#[tokio::test(start_paused = true)]
async fn w2_who_gave_up_is_in_no_cycle() {
    let server = TestServer::in_process(LONG_TTL).await;
    let [mut a, mut b] = writers::<2>(&server).await;
    let first = a.wait_for(1);
    let (of_a, of_b) = (a.transaction, b.transaction);
    b.keep(of_b).await;
    assert!(is_pending(&first.await.unwrap()));
    // It goes on writing to its own database.
    tokio::time::sleep(Duration::from_millis(501)).await;
    let second = b.wait_for(0);
    a.keep(of_a).await;
    assert!(is_pending(&second.await.unwrap()));
}
