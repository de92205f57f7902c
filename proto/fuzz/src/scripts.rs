//! Calls in an order that makes sense, for the target `server` to begin with.

use bytes::Bytes;
use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use prost::Message;

/// Places in `METHODS` of the target.
const SESSION: u8 = 0;
const OPEN_DATABASE: u8 = 1;
const BEGIN_SNAPSHOT: u8 = 2;
const READ_PAGES: u8 = 3;
const ACQUIRE_LEASE: u8 = 4;
const STAGE_PAGES: u8 = 5;
const COMMIT: u8 = 6;
const COMMIT_EACH: u8 = 7;
const RESOLVE_COMMIT: u8 = 8;
const FIND_VERSION: u8 = 9;
const LIST_VERSIONS: u8 = 10;
const DIFF_VERSIONS: u8 = 11;
const SET_TAG: u8 = 12;
const DELETE_TAG: u8 = 13;
const CREATE_BRANCH: u8 = 14;
const DESCRIBE_DATABASE: u8 = 15;
const COLLECT_GARBAGE: u8 = 16;
const LIST_DATABASES: u8 = 17;
const DELETE_DATABASE: u8 = 18;
const NOTHING: u8 = 19;
const CHECK: u8 = 20;
const REFLECTION: u8 = 21;
/// By the second connection.
const OTHER: u8 = 0x20;
const GOES_ON: u8 = 0x40;
const RAW: u8 = 0x80;

struct Script(Vec<u8>);

impl Script {
    fn new(store: u8) -> Self {
        Self(vec![store])
    }

    fn raw(mut self, what: u8, bytes: &[u8]) -> Self {
        self.0.push(what);
        let length = u16::try_from(bytes.len()).expect("a short message");
        self.0.extend(length.to_le_bytes());
        self.0.extend(bytes);
        self
    }

    fn call(self, what: u8, message: impl Message) -> Self {
        self.raw(what, &message.encode_to_vec())
    }

    fn say(self, what: u8, message: Request) -> Self {
        let message = Some(message);
        self.call(SESSION | GOES_ON | what, pb::SessionRequest { message })
    }

    /// A session of a connection, with a database open for writing.
    fn begin(self, what: u8, name: &str) -> Self {
        let hello = pb::Hello {
            protocol_major: 1,
            session_id: session(what),
            client_name: "x".into(),
            capabilities: vec!["lz4".into()],
            ..Default::default()
        };
        let open = pb::OpenDatabaseRequest {
            session_id: session(what),
            name: name.into(),
            mode: pb::OpenMode::Create.into(),
            want_lease: true,
            want_page_bytes: 4096,
            open_sequence: 1,
            ..Default::default()
        };
        self.say(what, Request::Hello(hello))
            .call(OPEN_DATABASE | what, open)
    }
}

fn session(what: u8) -> Bytes {
    vec![what + 1; 16].into()
}

/// The id in an answer of OpenDatabase.
fn opened(number: usize) -> Bytes {
    format!("<-database no {number}>").into_bytes().into()
}

fn page(number: u32, fill: u8) -> pb::PageContent {
    pb::PageContent {
        number,
        content: vec![fill; 512].into(),
        ..Default::default()
    }
}

fn commit(what: u8, database: usize, base: u64, stagings: Vec<Bytes>) -> pb::CommitRequest {
    let header = pb::CommitHeader {
        session_id: session(what),
        commit_id: vec![base as u8 + 7; 16].into(),
        databases: vec![pb::CommitDatabase {
            database_id: opened(database),
            base_version: base,
            epoch: 1,
            page_size: 512,
            page_count: 3,
            staging_ids: stagings,
            restore_version: 0,
        }],
    };
    let batch = pb::PageBatch {
        database_index: 0,
        pages: vec![page(1, base as u8 + 1), page(3, 9)],
    };
    pb::CommitRequest {
        header: Some(header),
        batches: vec![batch],
        finish: Some(pb::CommitFinish::default()),
    }
}

fn moment(version: u64) -> Option<pb::Moment> {
    let at = Some(pb::moment::At::Version(version));
    Some(pb::Moment { at })
}

/// All scripts, with their names.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("write_0", write(Script::new(0)).0),
        ("write_1", write(Script::new(1)).0),
        ("write_2", write(Script::new(2)).0),
        ("history", history().0),
        ("contend", contend().0),
        ("victim_0", victim(0).0),
        ("victim_1", victim(1).0),
        ("victim_2", victim(2).0),
        ("history_2", [&[2], &history().0[1..]].concat()),
        ("contend_2", [&[2], &contend().0[1..]].concat()),
        ("broken_2", [&[2], &broken().0[1..]].concat()),
        ("broken", broken().0),
    ]
}

fn write(script: Script) -> Script {
    let staging: Bytes = vec![5; 16].into();
    let stage = pb::StagePagesRequest {
        header: Some(pb::StagePagesHeader {
            session_id: session(0),
            database_id: opened(0),
            staging_id: staging.clone(),
            page_size: 512,
            continues: false,
        }),
        pages: vec![page(2, 2)],
    };
    let read = pb::ReadPagesRequest {
        session_id: session(0),
        database_id: opened(0),
        version: 2,
        pages: vec![1, 2, 3, 4],
    };
    let snapshot = pb::BeginSnapshotRequest {
        session_id: session(0),
        database_id: opened(0),
        known_version: 1,
        want_page_1: true,
    };
    let resolve = pb::ResolveCommitRequest {
        session_id: session(0),
        commit_id: vec![8; 16].into(),
        participants: vec![pb::CommitParticipant {
            database_id: opened(0),
            base_version: 1,
            epoch: 1,
        }],
    };
    let floor = pb::DatabaseFloor {
        database_id: opened(0),
        oldest_open_version: 2,
        pinned_versions: vec![1],
        pin_sequence: 1,
    };
    let beat = pb::Heartbeat {
        sequence: 1,
        floors: vec![floor],
        settled_opens: 1,
        stream: 1,
    };
    script
        .begin(0, "a/b.db")
        .call(COMMIT, commit(0, 0, 0, Vec::new()))
        .call(STAGE_PAGES, stage)
        .call(COMMIT, commit(0, 0, 1, vec![staging]))
        .call(READ_PAGES, read)
        .call(BEGIN_SNAPSHOT, snapshot)
        .call(COMMIT_EACH | GOES_ON, commit(0, 0, 2, Vec::new()))
        .call(COMMIT_EACH | GOES_ON, commit(0, 0, 3, Vec::new()))
        .call(RESOLVE_COMMIT, resolve)
        .say(0, Request::Heartbeat(beat))
        .say(
            0,
            Request::DropStagings(pb::DropStagings {
                staging_ids: vec![vec![5; 16].into()],
            }),
        )
        .say(
            0,
            Request::ReleaseLease(pb::ReleaseLease {
                database_id: opened(0),
                epoch: 1,
                wants_back: true,
            }),
        )
        .say(
            0,
            Request::CloseDatabase(pb::CloseDatabase {
                database_id: opened(0),
                open_sequence: 1,
                hot_pages: vec![1, 3],
            }),
        )
        .say(0, Request::Goodbye(pb::Goodbye {}))
}

fn history() -> Script {
    let find = pb::FindVersionRequest {
        session_id: session(0),
        database_id: opened(0),
        at: moment(1),
        pin: true,
        pin_sequence: 1,
    };
    let list = pb::ListVersionsRequest {
        session_id: session(0),
        database_id: opened(0),
        limit: 10,
        ..Default::default()
    };
    let diff = pb::DiffVersionsRequest {
        session_id: session(0),
        database_id: opened(0),
        from_version: 1,
        to_version: 2,
        limit: 10,
        ..Default::default()
    };
    let tag = pb::SetTagRequest {
        session_id: session(0),
        database_id: opened(0),
        tag: "t".into(),
        at: moment(1),
        replace: true,
    };
    let branch = pb::CreateBranchRequest {
        session_id: session(0),
        database_id: opened(0),
        at: moment(2),
        name: "branch.db".into(),
        branch_id: vec![6; 16].into(),
    };
    let describe = pb::DescribeDatabaseRequest {
        session_id: session(0),
        database_id: opened(0),
    };
    let untag = pb::DeleteTagRequest {
        session_id: session(0),
        database_id: opened(0),
        tag: "t".into(),
    };
    let mut restore = commit(0, 0, 2, Vec::new());
    restore.batches.clear();
    if let Some(header) = &mut restore.header {
        header.databases[0].restore_version = 1;
    }
    let delete = pb::DeleteDatabaseRequest {
        name: "branch.db".into(),
    };
    Script::new(1)
        .begin(0, "h.db")
        .call(COMMIT, commit(0, 0, 0, Vec::new()))
        .call(COMMIT, commit(0, 0, 1, Vec::new()))
        .call(FIND_VERSION, find)
        .call(SET_TAG, tag)
        .call(LIST_VERSIONS, list)
        .call(DIFF_VERSIONS, diff)
        .call(COMMIT, restore)
        .call(CREATE_BRANCH, branch)
        .call(DESCRIBE_DATABASE, describe)
        .call(DELETE_TAG, untag)
        .call(
            COLLECT_GARBAGE,
            pb::CollectGarbageRequest {
                name: "h.db".into(),
            },
        )
        .call(
            LIST_DATABASES,
            pb::ListDatabasesRequest {
                limit: 10,
                ..Default::default()
            },
        )
        .call(DELETE_DATABASE, delete)
}

fn subscribe(database: usize, strict: bool) -> Request {
    Request::Subscribe(pb::Subscribe {
        database_id: opened(database),
        known_version: 0,
        strict,
        subscription: 1,
        want_page_1: true,
    })
}

fn acquire(what: u8, database: usize) -> pb::AcquireLeaseRequest {
    pb::AcquireLeaseRequest {
        session_id: session(what),
        database_id: opened(database),
        known_version: 1,
        wait_ms: 100,
        kept_wait_ms: 10,
        transaction: 3,
        pages_since: u64::from(what & 1),
        ..Default::default()
    }
}

fn contend() -> Script {
    let keep = pb::KeepLease {
        database_id: opened(0),
        epoch: 1,
        transaction: 4,
    };
    let release = pb::ReleaseLease {
        database_id: opened(0),
        epoch: 1,
        wants_back: true,
    };
    let acknowledge = pb::PrepareAck {
        database_id: opened(0),
        subscription: 1,
        version: 1,
    };
    let unsubscribe = pb::Unsubscribe {
        database_id: opened(0),
        subscription: 1,
    };
    Script::new(0)
        .begin(0, "c.db")
        .begin(OTHER, "c.db")
        .say(OTHER, subscribe(1, true))
        .call(COMMIT, commit(0, 0, 0, Vec::new()))
        .say(OTHER, Request::PrepareAck(acknowledge))
        .call(ACQUIRE_LEASE | OTHER, acquire(OTHER, 1))
        .say(0, Request::KeepLease(keep))
        .call(ACQUIRE_LEASE, acquire(0, 0))
        .say(0, Request::ReleaseLease(release))
        .say(OTHER, Request::Unsubscribe(unsubscribe))
        .say(0, subscribe(0, false))
}

/// Against the database of the honest client.
fn victim(store: u8) -> Script {
    let resolve = pb::ResolveCommitRequest {
        session_id: session(0),
        commit_id: vec![1; 16].into(),
        participants: vec![pb::CommitParticipant {
            database_id: opened(0),
            base_version: 1,
            epoch: 1,
        }],
    };
    let release = pb::ReleaseLease {
        database_id: opened(0),
        epoch: 1,
        wants_back: false,
    };
    let believed = pb::BelievedLease {
        database_id: opened(0),
        epoch: 1,
        oldest_open_version: 1,
    };
    let hello = pb::Hello {
        protocol_major: 1,
        session_id: session(OTHER),
        leases: vec![believed],
        number: 1,
        ..Default::default()
    };
    let delete = pb::DeleteDatabaseRequest {
        name: "victim.db".into(),
    };
    Script::new(store)
        .begin(0, "victim.db")
        .say(0, subscribe(0, true))
        .call(ACQUIRE_LEASE, acquire(0, 0))
        .call(RESOLVE_COMMIT, resolve)
        .call(COMMIT, commit(0, 0, 1, Vec::new()))
        .say(0, Request::ReleaseLease(release))
        .say(OTHER, Request::Hello(hello))
        .call(DELETE_DATABASE, delete)
}

fn broken() -> Script {
    Script::new(0)
        .begin(0, "x.db")
        .raw(READ_PAGES | RAW, &[0, 0xff, 0xff, 0xff, 0xff, 1])
        .raw(COMMIT | RAW | GOES_ON, &[0, 0, 0, 0])
        .raw(STAGE_PAGES | RAW, &[1, 0, 0, 0, 2, 8, 1])
        .raw(NOTHING, &[])
        .raw(CHECK, &[])
        .raw(REFLECTION, &[0x3a, 0])
        .raw(SESSION | OTHER | RAW, &[0, 0, 0, 0, 0])
}
