//! Writes a few valid messages into corpus/TARGET, so that the fuzzer begins beyond the first checks.

mod rows;
mod scripts;

use std::io::Result;
use std::path::Path;

use pagewire_proto::pb;
use pagewire_fuzz::targets;
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
        pages: Vec::new(),
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
    for (name, script) in scripts::all() {
        seed("server", name, &script)?;
    }
    for (name, input) in rows::all() {
        seed("stored", &name, &input)?;
    }
    seed("codec", "commit", &commit.encode_to_vec())?;
    seed("codec", "session", &request.encode_to_vec())?;
    seed("codec", "group", &[0x0b, 0x1a, 0x00, 0x0c, 0x1a, 0x00])?;
    let entry = pb::VersionEntry {
        snapshot: Some(pb::Snapshot {
            version: 4,
            page_size: 4096,
            page_count: 9,
        }),
        time_unix_ms: -5,
        pages_changed: 3,
        tags: vec!["before".to_owned()],
        restored_from: 2,
    };
    seed("history", "entry", &entry.encode_to_vec())?;
    for (index, moment) in [
        "42",
        "2026-11-01T14:00:00.25+02:00",
        "5 minutes ago",
        "a tag",
    ]
    .iter()
    .enumerate()
    {
        seed("history", &index.to_string(), moment.as_bytes())?;
    }
    // Ten reads; pages: an interior page of a table whose children are 2 to 21, one of an index, a leaf, and an overflow page.
    let mut prefetch = vec![0, 10, 0, 1, 2, 3, 4, 5, 0x46, 0x87, 8, 9];
    prefetch.extend(interior(5));
    prefetch.extend(interior(2));
    prefetch.extend(leaf());
    prefetch.extend([0, 0, 0, 7]);
    prefetch.resize(12 + 4 * 512, 3);
    seed("prefetch", "tree", &prefetch)?;
    seed(
        "tree_page",
        "interior",
        &[&[1, 0], &interior(5)[..]].concat(),
    )?;
    seed("tree_page", "index", &[&[1, 0], &interior(2)[..]].concat())?;
    seed("tree_page", "leaf", &[&[1, 0], &leaf()[..]].concat())?;
    seed("cache_file", "slot", &[0; 560])?;
    let mut header = vec![0; 516];
    header[4..20].copy_from_slice(b"SQLite format 3\0");
    header[20] = 2;
    header[35] = 1;
    header[103] = 1;
    seed("database_header", "header", &header)
}

/// An interior page of 512 bytes with the children 2 to 21; of a table (5) or an index (2).
fn interior(kind: u8) -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = kind;
    page[4] = 19;
    page[11] = 21;
    for cell in 0..19 {
        let at = 512 - 12 * (cell + 1);
        page[12 + 2 * cell..][..2].copy_from_slice(&(at as u16).to_be_bytes());
        // The child, and a rowid; or a payload with a rowid.
        page[at + 3] = cell as u8 + 2;
        page[at + 4..at + 9].copy_from_slice(&[4, 3, 0, 1, cell as u8]);
    }
    page
}

/// A leaf of a table, with a row of 547 bytes of which 39 are here; it goes on in page 4.
fn leaf() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[..8].copy_from_slice(&[13, 0, 0, 0, 1, 0, 100, 0]);
    page[8..10].copy_from_slice(&[0, 100]);
    page[100..103].copy_from_slice(&[0x84, 0x23, 1]);
    page[103 + 39 + 3] = 4;
    page
}
