//! What real stores have written, for the target `stored` to begin with: the log, the checkpoint, the roots and the rows of a local store,
//! the cells and a segment of the adapter, and the pinned rows of FoundationDB.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pagewire_foundationdb::{keys as fdb, values};
use pagewire_local::fuzzing::rows_in_log;
use pagewire_local::keys::Key;
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, Moment, PageCount, PageNumber, PageSize, StagingId,
    TagName, Version,
};
use pagewire_server::store::{Commit, DatabaseCommit, PageStore, PageWrite};
use pagewire_shadow::testing::{Medium, TestKeyValue};
use pagewire_shadow::{KeyValue, ShadowStore};

use super::targets::STORES;

/// Inputs by name.
pub type Inputs = BTreeMap<String, Vec<u8>>;

/// How many there are of a kind.
const MOST: usize = 3;

/// The input that gives these bytes to a decoder.
fn add(inputs: &mut Inputs, store: usize, decoder: &str, bytes: &[u8]) {
    let (name, decoders) = STORES[store];
    let at = decoders.iter().position(|(name, _)| *name == decoder);
    let at = at.expect("a decoder");
    let input = [&[(store << 6 | at) as u8], bytes].concat();
    let prefix = format!("{name}-{}-", decoder.replace(' ', "_"));
    let count = inputs.keys().filter(|it| it.starts_with(&prefix)).count();
    if count < MOST && !inputs.values().any(|it| *it == input) {
        inputs.insert(format!("{prefix}{count}"), input);
    }
}

/// All of them.
pub fn all() -> Inputs {
    let mut inputs = Inputs::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    // What drops versions at once has rows of that too.
    for retention in [None, Some(Duration::ZERO)] {
        let home = tempfile::tempdir().expect("a folder");
        runtime.block_on(async {
            let options = LocalOptions {
                retention,
                ..LocalOptions::default()
            };
            let store = LocalStore::open_with(home.path(), options).expect("a store");
            history(&store, retention.is_none()).await;
        });
        local(&mut inputs, home.path());
    }
    let medium = Arc::<Medium>::default();
    let kv = TestKeyValue::new(&medium);
    runtime.block_on(async {
        let store = ShadowStore::open(kv.clone()).await.expect("a store");
        history(&store, false).await;
        shadow(&mut inputs, &medium, &*kv).await;
    });
    foundationdb(&mut inputs);
    inputs
}

/// Commits, a staging, a tag, a branch, a restore, and what a collection leaves.
async fn history(store: &dyn PageStore, keeps: bool) {
    let [a, b] = [name("a"), name("b/é.db")];
    let a = store.lookup(&a, true).await.expect("a database");
    let epoch = store.fence(a).await.expect("a lease");
    let other = store.lookup(&b, true).await.expect("a database");
    let other_epoch = store.fence(other).await.expect("a lease");
    let mut both = part(a, epoch, 0, 1..=3);
    commit(
        store,
        vec![both.clone(), part(other, other_epoch, 0, 1..=2)],
    )
    .await;
    // Compressed, of zeros, and as they are.
    both = part(a, epoch, 1, 1..=3);
    both.pages[0].content = Bytes::from(vec![0; 512]);
    both.pages[1].content = Bytes::from(vec![7; 512]);
    let staging = StagingId::from_bytes([9; 16]);
    let pages = part(a, epoch, 1, 4..=5).pages;
    let staged = store.stage(a, staging, PageSize::MIN, pages).await;
    staged.expect("a staging");
    both.stagings.push(staging);
    commit(store, vec![both]).await;
    let tag = TagName::try_from("before").expect("a tag");
    let _ = store.set_tag(a, &tag, &Moment::Age(0), false).await;
    let (id, branch) = (DatabaseId::from_bytes([8; 16]), name("branch"));
    let _ = store.branch(a, &Moment::Age(0), id, &branch).await;
    // Fewer pages, and as it was before.
    commit(store, vec![part(a, epoch, 2, 1..=1)]).await;
    let mut back = part(a, epoch, 3, 1..=1);
    back.pages.clear();
    back.restore = keeps.then_some(Version::new(1));
    back.page_count =
        PageCount::try_from(if back.restore.is_some() { 3 } else { 1 }).expect("a count");
    commit(store, vec![back]).await;
    let mut long = part(a, epoch, 4, 1..=600);
    long.pages
        .iter_mut()
        .for_each(|page| page.content = Bytes::from(vec![0; 512]));
    commit(store, vec![long]).await;
    let _ = store.remove(&b).await;
    let _ = store.collect(None).await;
}

fn name(name: &str) -> DatabaseName {
    DatabaseName::try_from(name).expect("a name")
}

fn part(
    database: DatabaseId,
    epoch: Epoch,
    base: u64,
    pages: std::ops::RangeInclusive<u32>,
) -> DatabaseCommit {
    let count = (*pages.end()).max(if base == 1 { 5 } else { 0 });
    // What no compression makes smaller.
    let content = |page: u32| {
        let mut state = base << 32 | u64::from(page) | 1 << 60;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(512)
        .collect::<Bytes>()
    };
    let write = |page| PageWrite {
        number: PageNumber::try_from(page).expect("a page"),
        content: content(page),
    };
    DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: PageSize::MIN,
        page_count: PageCount::try_from(count).expect("a count"),
        stagings: Vec::new(),
        pages: pages.map(write).collect(),
        restore: None,
    }
}

async fn commit(store: &dyn PageStore, databases: Vec<DatabaseCommit>) {
    let id = CommitId::random().expect("random numbers");
    let outcome = store.commit(Commit { id, databases }).await;
    outcome.expect("a commit");
}

fn local(inputs: &mut Inputs, directory: &Path) {
    let read = |name: &str| std::fs::read(directory.join(name)).expect("a file");
    let slots = read("checkpoint");
    add(inputs, 0, "slot", &slots[..380]);
    let data = read("data.mdb");
    let roots = [&data[..160], &data[4096..4096 + 160]].concat();
    add(inputs, 0, "roots", &roots);
    add(inputs, 0, "roots", &[&roots[..], &roots].concat());
    let mut kinds = HashMap::<_, usize>::new();
    for log in ["log.0", "log.1"].map(read) {
        for at in (4096..log.len()).step_by(4096) {
            let length =
                u32::from_le_bytes(*log[at + 24..].first_chunk().expect("a block")) as usize;
            let is_record = log[at..].starts_with(&0x4C52_5750_u32.to_le_bytes());
            if is_record && length < 2000 {
                add(inputs, 0, "log record", &log[at..at + 40 + length]);
                add(inputs, 0, "log record", &log[at + 40..at + 40 + length]);
            }
        }
        for (bytes, row) in rows_in_log(&log) {
            let key = Key::decode(&bytes).expect("a key");
            let kind = std::mem::discriminant(&key);
            let count = kinds.entry(kind).or_default();
            *count += 1;
            let decoder = match key {
                Key::Head(_) => "database",
                Key::Usage(..) => "usage",
                Key::Segment(..) => "segment",
                Key::Origin(_) => "origin",
                Key::Record(..) => "record",
                Key::Past(..) => "past",
                Key::Due(_) => "due",
                Key::Changed(..) => "pages",
                Key::Page(..) | Key::Staged(..) => "page",
                _ => "row",
            };
            if decoder != "row" {
                add(inputs, 0, decoder, &row[8..row.len().min(1300)]);
            }
            if *count == 1 {
                // One for each kind, whatever `MOST` is.
                inputs.insert(
                    format!("local-key-{}", kinds.len()),
                    [&[0], &bytes[..]].concat(),
                );
                let row = [&[bytes.len() as u8], &bytes[..], &row[..row.len().min(600)]].concat();
                add(inputs, 0, "row", &row);
            }
        }
    }
}

async fn shadow(inputs: &mut Inputs, medium: &Medium, kv: &dyn KeyValue) {
    for key in medium.keys("") {
        let Ok(Some(value)) = kv.get(&key).await else {
            continue;
        };
        let value = value.content;
        let decoder = match key.split('/').next() {
            Some("installation") => "installation",
            Some("n") => "name",
            Some("r") => "root",
            Some("t") => "decision",
            _ => "index",
        };
        add(inputs, 2, "key", key.as_bytes());
        if decoder != "index" {
            // With its checksum, and without.
            add(inputs, 2, decoder, &value);
            add(inputs, 2, decoder, &value[8..]);
        } else if value.len() < 5000 {
            // Three pages and their index, which comes first in the input.
            let count = value.len() / 536;
            let (pages, index) = value.split_at(value.len() - count * 24);
            let input = [&[0, count as u8], index, pages].concat();
            add(inputs, 2, "index", &input);
        }
    }
    // What there is of a decision only while it is carried out, and of records and entries only when there are many.
    let id = [&[0x0a, 16][..], &[7; 16]].concat();
    let message = |head: &[u8], field: &[u8]| [head, &[field.len() as u8], field].concat();
    let participant = [&id[..], &[0x10, 5]].concat();
    add(inputs, 2, "decision", &message(&[8, 1, 0x12], &participant));
    let record = [&id[..], &[0x10, 9, 0x18, 0x80, 4, 0x20, 3]].concat();
    add(inputs, 2, "history", &message(&[0x0a], &record));
    let entry = [
        8, 1, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x18, 1, 0x28, 1, 0x30, 3, 0x48, 0x80, 4, 0x58, 3,
    ];
    add(inputs, 2, "archive", &message(&[0x0a], &entry));
    // The root of a database whose version is the last number that there is.
    let mut last = vec![0x80, 0x22, 11, 0x18];
    last.extend([0xff; 9]);
    last.push(1);
    inputs.insert("shadow-root-last-version".to_owned(), last);
    for (at, key) in [
        "t/07070707070707070707070707070707",
        "n/612f62",
        "0000000000000001-00000000000000ab",
    ]
    .iter()
    .enumerate()
    {
        inputs.insert(
            format!("shadow-key-made-{at}"),
            [&[0x87], key.as_bytes()].concat(),
        );
    }
}

/// A row and a key of each kind: there is no cluster here, and the rows are pinned in its tests.
fn foundationdb(inputs: &mut Inputs) {
    let pinned = include_str!("../../../servers/foundationdb/src/values/pinned.txt");
    for line in pinned.lines() {
        let (what, hex) = line.split_once(": ").expect("a line");
        let hex = hex
            .as_bytes()
            .chunks(2)
            .map(|two| std::str::from_utf8(two).expect("text"));
        let mut row: Vec<_> = hex
            .map(|two| u8::from_str_radix(two, 16).expect("a byte"))
            .collect();
        let decoder = match what.split([',', ' ']).next().expect("a word") {
            "zeros" => "page",
            "noise" => {
                row.extend([7; 512]);
                "page"
            }
            word => word,
        };
        add(inputs, 1, decoder, &row);
        if decoder == "database" {
            add(inputs, 1, "head", &row);
        }
    }
    add(inputs, 1, "number", &7_u64.to_be_bytes());
    let compressed = values::encode_page(&[7; 512], PageSize::MIN);
    add(inputs, 1, "page", &compressed);
    let (d, v) = (DatabaseId::from_bytes([3; 16]), Version::new(300));
    let page = PageNumber::try_from(70_000).expect("a page");
    let tag = TagName::try_from("before").expect("a tag");
    let keys = [
        fdb::Key::Format,
        fdb::Key::Mail([1; 16], fdb::Message::Granted, d, [0; 16]),
        fdb::Key::Name(name("a/é")),
        fdb::Key::Sum(d, fdb::Sum::Bytes),
        fdb::Key::Child(d, v, d, v),
        fdb::Key::Protect(d, [1; 16], 1),
        fdb::Key::Changed(d, v, 3),
        fdb::Key::Tagged(d, v, tag),
        fdb::Key::Page(d, page, v, fdb::layer_of(3)),
        fdb::Key::Page(d, page, v, fdb::OWN),
        fdb::Key::Written(d, 3, 4),
        fdb::Key::Flatten(9, d, v),
    ];
    // Tuples within tuples.
    let nested = [&[0x40][..], &[5; 9_989]].concat();
    inputs.insert("foundationdb-key-nested".to_owned(), nested);
    let space = fdb::Space::new(b"");
    for (at, key) in keys.iter().enumerate() {
        inputs.insert(
            format!("foundationdb-key-made-{at}"),
            [&[0x40], &space.encode(key)[..]].concat(),
        );
    }
}
