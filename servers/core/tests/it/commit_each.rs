//! CommitEach: commits one after the other over one stream.

use pagewire_proto::pb;
use pagewire_proto::status::Reason;

use crate::harness::{
    CommitAnswer, LONG_TTL, PATIENCE, TestCommit, TestServer, committed, page, reason,
};

/// A commit in one message.
fn whole(commit: &TestCommit, session: pagewire_proto::SessionId) -> pb::CommitRequest {
    let mut messages = commit.messages(session).into_iter();
    let mut whole = messages.next().unwrap();
    for message in messages {
        whole.batches.extend(message.batches);
        whole.finish = message.finish;
    }
    whole
}

async fn next(
    answers: &mut tonic::Streaming<pb::CommitResponse>,
) -> Result<Option<CommitAnswer>, tonic::Status> {
    let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
    let answer = answer.expect("no answer")?;
    Ok(answer.map(|answer| answer.outcome.unwrap()))
}

#[tokio::test]
async fn commits_that_wait_on_one_stream_are_answered_in_their_order_and_an_error_ends_it() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    let mut messages: Vec<_> = (0..20)
        .map(|base| {
            whole(
                &TestCommit::new(&database, base, epoch, base as u8),
                client.session,
            )
        })
        .collect();
    // A conflict is an answer as any other.
    messages.push(whole(
        &TestCommit::new(&database, 3, epoch, 99),
        client.session,
    ));
    messages.push(whole(
        &TestCommit::new(&database, 20, epoch, 20),
        client.session,
    ));
    let mut unfinished = whole(&TestCommit::new(&database, 21, epoch, 21), client.session);
    unfinished.finish = None;
    messages.push(unfinished);
    messages.push(whole(
        &TestCommit::new(&database, 21, epoch, 22),
        client.session,
    ));
    let mut answers = client.commit_each(messages).await;
    for version in 1..=20 {
        assert_eq!(
            next(&mut answers).await.unwrap(),
            Some(committed(&[version]))
        );
    }
    assert!(matches!(
        next(&mut answers).await.unwrap(),
        Some(CommitAnswer::Conflict(_))
    ));
    assert_eq!(next(&mut answers).await.unwrap(), Some(committed(&[21])));
    assert_eq!(reason(next(&mut answers).await), Reason::Invalid);
    // Nothing behind the error was applied.
    assert_eq!(client.head(&database).await.unwrap(), 21);
    let pages = client.read(&database, 21, &[1]).await.unwrap();
    assert_eq!(pages[0].content, page(1, 20).content);
}

#[tokio::test]
async fn a_stream_that_waits_for_a_commit_does_not_hold_up_the_end_of_the_service() {
    let mut server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    let commit = whole(&TestCommit::new(&database, 0, epoch, 1), client.session);
    let mut answers = client.commit_each(vec![commit]).await;
    assert_eq!(next(&mut answers).await.unwrap(), Some(committed(&[1])));
    client.release(&database, epoch, false);
    server.begin_shutdown();
    assert!(next(&mut answers).await.unwrap().is_none());
    server.stopped().await;
}
