//! Bounded subscriptions on a store with several servers: the rules ELSE1 and ELSE2 of `elsewhere.rs`.

use pagewire_proto::DatabaseName;
use pagewire_server::store::PageStore as _;

use super::*;

/// What stands on the stream in front of the acknowledgement of a heartbeat that is sent now, as subscription and head; `None`: its end.
async fn before_the_next_acknowledgement(client: &mut Client) -> Vec<(u64, Option<u64>)> {
    client.send(heartbeat());
    let sent = Instant::now();
    let news = until_acknowledged(client).await;
    assert!(
        sent.elapsed() < TTL / 2,
        "a heartbeat waits for one database"
    );
    news
}

async fn until_acknowledged(client: &mut Client) -> Vec<(u64, Option<u64>)> {
    let mut before = Vec::new();
    loop {
        match client.news().await {
            News::HeartbeatAck(_) => return before,
            News::Subscribed(answer) => {
                let head = answer.head.filter(|_| answer.accepted);
                before.push((answer.subscription, head.map(|head| head.version)));
            }
            News::Published(news) => {
                before.push((news.subscription, Some(news.head.unwrap().version)));
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn subscribes(client: &mut Client, database: &Opened, number: u64) {
    client.subscribe(database, number, false);
    assert!(client.subscribed(number).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn else1_a_database_removed_through_another_server_ends_its_subscription_alone() {
    let (_, one, other) = two().await;
    let mut writer = one.client().await;
    let mut reader = other.client().await;
    let (a, b) = (reader.open("a").await, reader.open("b").await);
    subscribes(&mut reader, &a, 1).await;
    subscribes(&mut reader, &b, 2).await;
    assert_eq!(before_the_next_acknowledgement(&mut reader).await, []);
    let name = DatabaseName::try_from("a").unwrap();
    one.store.inner.remove(&name).await.unwrap();
    assert_eq!(
        before_the_next_acknowledgement(&mut reader).await,
        [(1, None)]
    );
    // The other one goes on.
    let b = writer.open("b").await;
    let epoch = writer.acquire(&b).await;
    let commit = TestCommit::new(&b, 0, epoch, 1);
    writer.commit(&commit).await.unwrap();
    assert_eq!(
        before_the_next_acknowledgement(&mut reader).await,
        [(2, Some(1))]
    );
    assert_eq!(before_the_next_acknowledgement(&mut reader).await, []);
}

#[tokio::test(start_paused = true)]
async fn else1_a_database_whose_store_hangs_ends_its_subscription_alone() {
    let (_, _one, other) = two().await;
    let mut reader = other.client().await;
    let (a, b) = (reader.open("a").await, reader.open("b").await);
    subscribes(&mut reader, &a, 1).await;
    subscribes(&mut reader, &b, 2).await;
    other.store.headless.lock().unwrap().insert(id(&a));
    assert_eq!(
        before_the_next_acknowledgement(&mut reader).await,
        [(1, None)]
    );
    assert_eq!(before_the_next_acknowledgement(&mut reader).await, []);
}

/// One that begins while a heartbeat waits for another database: what the heartbeat proves is proved of it too.
#[tokio::test(start_paused = true)]
async fn else1_a_subscription_accepted_meanwhile_is_up_to_date_before_the_acknowledgement() {
    let (_, one, other) = two().await;
    let mut writer = one.client().await;
    let mut reader = other.client().await;
    let (a, b) = (reader.open("a").await, reader.open("b").await);
    let written = writer.open("b").await;
    let epoch = writer.acquire(&written).await;
    subscribes(&mut reader, &a, 1).await;
    other.store.headless.lock().unwrap().insert(id(&a));
    reader.send(heartbeat());
    reader.subscribe(&b, 2, false);
    assert_eq!(reader.subscribed(2).await, Some(0));
    let commit = TestCommit::new(&written, 0, epoch, 1);
    writer.commit(&commit).await.unwrap();
    let before = until_acknowledged(&mut reader).await;
    assert_eq!(before, [(1, None), (2, Some(1))]);
}
