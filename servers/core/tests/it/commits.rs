//! Commits: atomic, once, checked, and settled when their answer was lost.

use pagewire_proto::pb;
use pagewire_proto::pb::resolve_commit_response::Outcome as Resolved;
use pagewire_proto::status::Reason;

use crate::harness::{CommitAnswer, LONG_TTL, TestCommit, TestServer, committed, page, reason};

#[tokio::test]
async fn what_was_committed_is_read_by_another_client() {
    let server = TestServer::start(LONG_TTL).await;
    let mut writer = server.client().await;
    let database = writer.open("a.db").await;
    assert_eq!(database.head, 0);
    let epoch = writer.acquire(&database).await;
    let commit = TestCommit::new(&database, 0, epoch, 7);
    assert_eq!(writer.commit(&commit).await.unwrap(), committed(&[1]));

    let mut reader = server.client().await;
    let mut request = reader.open_request("a.db", pb::OpenMode::ReadOnly);
    request.want_page_bytes = 4096;
    let opened = reader.open_with(request).await.unwrap();
    assert_eq!(opened.head, 1);
    assert_eq!(opened.answer.pages.len(), 1);
    assert_eq!(opened.answer.pages[0].content, page(1, 7).content);
    let pages = reader.read(&opened, 1, &[1, 2]).await.unwrap();
    assert_eq!(pages[0].version, 1);
    assert!(pages[1].content.is_empty(), "beyond the end reads as zeros");
}
