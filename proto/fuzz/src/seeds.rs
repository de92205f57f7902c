//! Writes a few valid messages into corpus/TARGET, so that the fuzzer begins beyond the first checks.

use std::io::Result;
use std::path::Path;

use pagewire_proto::pb;
use prost::Message as _;

fn seed(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

fn page(number: u32, length: usize) -> pb::PageContent {
    let content = vec![number as u8; length];
    let crc32 = crc32fast::hash(&content);
    pb::PageContent {
        number,
        content: content.into(),
        crc32,
        version: 3,
        encoding: pb::PageEncoding::Raw.into(),
    }
}

fn id(byte: u8) -> bytes::Bytes {
    vec![byte; 16].into()
}

fn main() -> Result<()> {
    let database = pb::CommitDatabase {
        database_id: id(3),
        base_version: 7,
        epoch: 1 << 32,
        page_size: 512,
        page_count: 5,
        staging_ids: vec![id(4), id(5)],
        restore_version: 0,
    };
    let commit = pb::CommitRequest {
        header: Some(pb::CommitHeader {
            session_id: id(1),
            commit_id: id(2),
            databases: vec![
                database.clone(),
                pb::CommitDatabase {
                    database_id: id(6),
                    ..database
                },
            ],
        }),
        batches: vec![pb::PageBatch {
            database_index: 0,
            pages: vec![page(1, 512), page(2, 512)],
        }],
        finish: Some(pb::CommitFinish {
            page_count: 2,
            crc32: 9,
        }),
    };
    seed("commit", "two", &commit.encode_to_vec())?;
    let participant = pb::CommitParticipant {
        database_id: id(3),
        base_version: 7,
        epoch: 8,
    };
    let resolve = pb::ResolveCommitRequest {
        session_id: id(1),
        commit_id: id(2),
        participants: vec![participant],
    };
    seed("resolve_commit", "one", &resolve.encode_to_vec())?;
    let grant = pb::LeaseGrant {
        epoch: 3,
        head: Some(pb::Snapshot {
            version: 4,
            page_size: 4096,
            page_count: 9,
        }),
        changes: Some(pb::Changes {
            all: false,
            pages: vec![1, 9, 300],
        }),
    };
    seed("lease_grant", "grant", &grant.encode_to_vec())?;
    seed(
        "lease_grant",
        "snapshot",
        &grant.head.unwrap_or_default().encode_to_vec(),
    )?;
    seed(
        "lease_grant",
        "changes",
        &grant.changes.clone().unwrap_or_default().encode_to_vec(),
    )?;
    for length in [0, 512, 1024] {
        seed(
            "page",
            &length.to_string(),
            &page(7, length).encode_to_vec(),
        )?;
    }
    let hello = pb::Hello {
        protocol_major: 1,
        protocol_minor: 0,
        session_id: id(1),
        client_name: "a client 1.0".to_owned(),
        process: Some(pb::ProcessIdentity {
            boot_id: "b".to_owned(),
            pid_namespace: 1,
            pid: 2,
            start_time_ticks: 3,
        }),
        capabilities: vec!["x".to_owned()],
        leases: vec![pb::BelievedLease {
            database_id: vec![3; 16].into(),
            epoch: 4,
            oldest_open_version: 5,
        }],
        number: 6,
    };
    let request = pb::SessionRequest {
        message: Some(pb::session_request::Message::Hello(hello)),
    };
    seed("session", "hello", &request.encode_to_vec())?;
    let heartbeat = pb::Heartbeat {
        sequence: 1,
        floors: vec![pb::DatabaseFloor {
            database_id: id(3),
            oldest_open_version: 5,
            ..Default::default()
        }],
        ..Default::default()
    };
    let request = pb::SessionRequest {
        message: Some(pb::session_request::Message::Heartbeat(heartbeat)),
    };
    seed("session", "heartbeat", &request.encode_to_vec())?;
    let granted = pb::LeaseGranted {
        database_id: id(3),
        grant: Some(grant),
    };
    let response = pb::SessionResponse {
        message: Some(pb::session_response::Message::LeaseGranted(granted)),
    };
    seed("session", "granted", &response.encode_to_vec())?;
    for (index, name) in ["tenant-7/app.db", "../x", "/tmp/x", "a//b", "..a"]
        .iter()
        .enumerate()
    {
        seed("name", &index.to_string(), name.as_bytes())?;
    }
    seed("settings", "all", b"t/x.db\nPAGEWIRE_ENDPOINT=http://a:1\nPAGEWIRE_CACHE_BYTES=5\nPAGEWIRE_TIMEOUT_MS=9\nPAGEWIRE_TOKEN=t\nPAGEWIRE_BATCH_ATOMIC=on\nendpoint=unix:/s\ntimeout_ms=3\nimmutable=1\ntoken=x")?;
    let mut header = vec![0; 516];
    header[4..20].copy_from_slice(b"SQLite format 3\0");
    header[20] = 2;
    header[35] = 1;
    header[103] = 1;
    seed("database_header", "header", &header)
}
