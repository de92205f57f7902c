//! A test for each invariant of the pools that can be shown without a network; the others are in `tests/it/memory.rs`.

use super::*;

const MIB: usize = 1 << 20;

/// One connection may be open, so that the rest is shared: four pools of 8 MiB.
fn memory() -> Arc<Memory> {
    Memory::new(CONNECTION_BYTES + 32 * MIB, 1)
}

fn refused<T>(taken: Result<T, Status>) -> bool {
    taken.is_err_and(|status| Reason::of(&status) == Reason::Overloaded)
}

#[test]
fn m1_what_is_dropped_can_be_taken_again() {
    let memory = memory();
    let account = memory.open_account();
    for _ in 0..100 {
        let first = account.messages.try_take(MIB).unwrap();
        let second = account.messages.try_take(MIB).unwrap();
        assert!(
            refused(account.messages.try_take(MIB)),
            "a quarter of 8 MiB"
        );
        drop((first, second));
    }
}

#[test]
fn m4_no_connection_has_more_than_a_quarter_of_a_pool_and_each_has_its_floor() {
    let memory = memory();
    let greedy: Vec<_> = (0..4).map(|_| memory.open_account()).collect();
    let _taken: Vec<_> = greedy
        .iter()
        .map(|account| account.messages.try_take(2 * MIB).unwrap())
        .collect();
    let late = memory.open_account();
    assert!(refused(late.messages.try_take(MIB)));
    assert!(late.messages.try_take(MESSAGE_FLOOR).is_ok());
}

#[test]
fn m4_stalled_uploads_of_one_connection_leave_room_for_others() {
    let memory = memory();
    let (stalled, other) = (memory.open_account(), memory.open_account());
    let held: Vec<_> = std::iter::from_fn(|| stalled.try_keep_upload(64 << 10)).collect();
    assert_eq!(held.len(), 32, "a quarter of 8 MiB");
    let mut kept = other.try_keep_upload(MIB).expect("room");
    kept.merge(other.try_keep_upload(MIB).expect("room"));
    assert!(other.try_keep_upload(1).is_none());
    drop(kept);
    assert!(other.try_keep_upload(2 * MIB).is_some());
    drop(held);
    assert!(stalled.try_keep_upload(2 * MIB).is_some());
}

#[tokio::test(start_paused = true)]
async fn m2_who_waits_is_served_in_order_or_told_to_try_again() {
    let memory = memory();
    let accounts: Vec<_> = (0..6).map(|_| memory.open_account()).collect();
    let mut taken: Vec<_> = accounts[..4]
        .iter()
        .map(|account| account.messages.try_take(2 * MIB).unwrap())
        .collect();
    let begun = Instant::now();
    let waiting = |index: usize| {
        let account = Arc::clone(&accounts[index]);
        tokio::spawn(async move { account.messages.take(2 * MIB).await })
    };
    let first = waiting(4);
    tokio::task::yield_now().await;
    let second = waiting(5);
    tokio::task::yield_now().await;
    taken.pop();
    let _served = first.await.unwrap().unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(refused(second.await.unwrap()));
    assert_eq!(begun.elapsed(), WAIT);
}

/// With all of its calls in the queue one connection would be served before the other's first.
#[tokio::test(start_paused = true)]
async fn m3_a_connection_with_many_calls_waits_like_one_with_a_single_call() {
    let memory = memory();
    let accounts: Vec<_> = (0..6).map(|_| memory.open_account()).collect();
    let taken: Vec<_> = accounts[..4]
        .iter()
        .map(|account| account.messages.try_take(2 * MIB).unwrap())
        .collect();
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    let waiting = |index: usize| {
        let (account, served) = (Arc::clone(&accounts[index]), served.clone());
        tokio::spawn(async move {
            let charge = account.messages.take(2 * MIB).await;
            served.send(index).unwrap();
            charge
        })
    };
    let mut calls: Vec<_> = (0..50).map(|_| waiting(4)).collect();
    tokio::task::yield_now().await;
    calls.push(waiting(5));
    tokio::task::yield_now().await;
    drop(taken);
    let order = [order.recv().await.unwrap(), order.recv().await.unwrap()];
    assert_eq!(order, [4, 5]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_smaller_where_there_is_little_and_a_page_where_there_is_nothing() {
    let memory = memory();
    let account = memory.open_account();
    let most = 2 * MIB;
    let first = account.answer(most, ANSWER_FLOOR).await.unwrap();
    assert_eq!(first.bytes(), most);
    let second = account.answer(most, ANSWER_FLOOR).await.unwrap();
    assert_eq!(second.bytes(), ANSWER_FLOOR);
    first.shrink_to(most / 2);
    let third = account.answer(most, ANSWER_FLOOR).await.unwrap();
    assert_eq!(third.bytes(), most / 2);
    assert!(refused(account.answer(most, ANSWER_FLOOR).await));
    drop(second);
    assert!(account.answer(most, ANSWER_FLOOR).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn m5_an_answer_that_is_not_taken_is_overdue_however_many_are_taken_after_it() {
    let memory = memory();
    let account = memory.open_account();
    let stuck = account.answer(0, 1).await.unwrap();
    tokio::time::advance(ANSWER_WAIT).await;
    drop(account.answer(0, 1).await.unwrap());
    assert!(!account.is_overdue(Instant::now()));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(account.is_overdue(Instant::now()));
    drop(stuck);
    assert!(!account.is_overdue(Instant::now()));
}

#[test]
fn windows_are_wide_for_the_first_connections_and_never_below_what_http2_demands() {
    let memory = Memory::new(4096 * CONNECTION_BYTES + 1024 * MIB, 4096);
    let accounts: Vec<_> = (0..4096).map(|_| memory.open_account()).collect();
    assert!(accounts[0].window_bytes() > 8 * MIB);
    assert!(accounts[31].window_bytes() > MIB);
    let mut pooled = 0;
    for account in &accounts {
        assert!(account.window_bytes() >= MIN_WINDOW);
        if account.window_bytes() > MIN_WINDOW {
            pooled += account.window_bytes() + account.frame_bytes();
        }
    }
    assert!(pooled <= 256 * MIB + 64 * MIN_FRAME, "{pooled}");
    drop(accounts);
    assert!(memory.open_account().window_bytes() > 8 * MIB);
}

#[tokio::test(start_paused = true)]
async fn m6_answers_take_nothing_of_the_floor_of_news_and_both_together_no_more_than_a_part_of_the_pool()
 {
    let memory = memory();
    let account = memory.open_account();
    let _answers = [
        account.try_answer(2 * MIB).unwrap(),
        account.try_answer(ANSWER_FLOOR).unwrap(),
    ];
    assert!(refused(account.try_answer(1)));
    let news: Vec<_> = (0..NEWS_FLOOR / 256)
        .map(|_| account.try_news(256).unwrap())
        .collect();
    assert!(refused(account.try_news(1)), "bounded");
    drop(news);
    let other = memory.open_account();
    let _news = [
        other.try_news(NEWS_FLOOR).unwrap(),
        other.try_news(2 * MIB).unwrap(),
    ];
    assert!(
        refused(other.try_news(1)),
        "no more than a part of the pool"
    );
    assert!(refused(other.try_answer(ANSWER_FLOOR + 1)));
    assert!(other.try_answer(ANSWER_FLOOR).is_ok());
}
