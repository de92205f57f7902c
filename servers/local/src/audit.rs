//! Looks whether all rows belong together: for tests, and for whoever doubts a store.
//!
//! Written from the invariants (SEG, COL), not from the code that keeps them, and as plainly as can be: it takes memory for
//! every key.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::StoreError;

use crate::LocalStore;
use crate::engine::{check, corrupt};
use crate::keys::Key;
use crate::values::{Base, Database, Head, PageBody, Record, Segment, Usage};

/// Everything that matters, by key.
#[derive(Default)]
struct Everything {
    heads: BTreeMap<DatabaseId, Database>,
    usages: BTreeMap<(DatabaseId, Version), Usage>,
    segments: BTreeMap<(DatabaseId, Version), Option<Base>>,
    children: BTreeSet<(DatabaseId, Version, DatabaseId, Version)>,
    records: BTreeMap<(DatabaseId, Version), Head>,
    /// `None` for a mark that the page went away.
    pages: BTreeMap<(DatabaseId, PageNumber, Version), Option<Content>>,
    staged: BTreeMap<(u64, PageNumber), u64>,
    uncommitted: BTreeSet<u64>,
    tags: BTreeSet<Tagged>,
    tagged: BTreeSet<Tagged>,
    /// What only databases have that are there.
    owned: Vec<(DatabaseId, String)>,
    work: Vec<String>,
}

/// The length of a content, and the staging that has it.
type Content = (u64, Option<u64>);
/// A tag with its version.
type Tagged = (DatabaseId, String, Version);

impl LocalStore {
    /// What does not belong together, a sentence each. Where a collection said that nothing is left to do, also what should be
    /// gone. Of no use while others write.
    pub fn audit(&self, collected: bool) -> Result<Vec<String>, StoreError> {
        let mut all = Everything::default();
        let txn = self.engine.read()?;
        self.engine.scan(&txn, Bound::Unbounded, &[], |key, row| {
            all.take(key, check(key, row)?)?;
            Ok(true)
        })?;
        let mut problems = Vec::new();
        all.segments_and_children(&mut problems);
        all.sizes(&mut problems);
        all.needed_pages(&mut problems);
        if collected {
            all.garbage(&mut problems);
        }
        Ok(problems)
    }
}

impl LocalStore {
    /// In how many places a page of the head is looked for, at most (B2).
    pub fn depth(&self, database: DatabaseId) -> Result<usize, StoreError> {
        let txn = self.engine.read()?;
        let head = self.engine.head(&txn, database)?;
        Ok(self.engine.chain(&txn, database, head)?.len())
    }
}

impl Everything {
    fn take(&mut self, key: &[u8], body: &[u8]) -> Result<(), StoreError> {
        let senseless = || corrupt(key, "not in the format of this store");
        let known = Key::decode(key).ok_or_else(senseless)?;
        match &known {
            Key::Head(id) => {
                let row = Database::decode(body).ok_or_else(senseless)?;
                self.heads.insert(*id, row);
            }
            Key::Usage(id, first) => {
                let row = Usage::decode(body).ok_or_else(senseless)?;
                self.usages.insert((*id, *first), row);
            }
            Key::Segment(id, first) => {
                let row = Segment::decode(body).ok_or_else(senseless)?;
                self.segments.insert((*id, *first), row.base);
            }
            Key::Child(id, version, child, first) => {
                self.children.insert((*id, *version, *child, *first));
            }
            Key::Record(id, version) => {
                let row = Record::decode(body).ok_or_else(senseless)?;
                self.records.insert((*id, *version), row.head);
                self.owned.push((*id, known.to_string()));
            }
            Key::Page(id, number, version) => {
                let page = match PageBody::decode(body).ok_or_else(senseless)? {
                    PageBody::Gone => None,
                    PageBody::Staged(serial) => Some((0, Some(serial))),
                    _ => Some((body.len() as u64, None)),
                };
                self.pages.insert((*id, *number, *version), page);
            }
            Key::Staged(serial, number) => {
                self.staged.insert((*serial, *number), body.len() as u64);
            }
            Key::Staging(serial) => {
                self.uncommitted.insert(*serial);
            }
            Key::Tag(id, tag) => {
                let version = Version::new(u64::from_be_bytes(
                    body.try_into().map_err(|_| senseless())?,
                ));
                self.tags.insert((*id, tag.to_string(), version));
                self.owned.push((*id, known.to_string()));
            }
            Key::Tagged(id, version, tag) => {
                self.tagged.insert((*id, tag.to_string(), *version));
            }
            Key::Changed(id, ..) | Key::Past(id, _) | Key::Origin(id) => {
                self.owned.push((*id, known.to_string()));
            }
            Key::Removed(_) | Key::Due(_) | Key::Sweep(_) | Key::Flatten(..) => {
                self.work.push(known.to_string());
            }
            Key::Format
            | Key::Incarnation
            | Key::Generation
            | Key::Run
            | Key::Service
            | Key::Name(_) => {}
        }
        Ok(())
    }

    /// Versions of a database from one on, up to another, exclusive, that anybody reads, with what they need.
    fn readers(&self, id: DatabaseId, from: Version, end: Version) -> Vec<Head> {
        let records = self.records.range((id, from)..(id, end));
        let mut heads: Vec<_> = records.map(|(_, head)| *head).collect();
        let bases = self.segments.values().flatten();
        let bases = bases.filter(|base| base.database == id);
        heads.extend(
            bases
                .map(|base| base.head)
                .filter(|head| (from..end).contains(&head.snapshot.version)),
        );
        heads
    }

    fn segment_end(&self, id: DatabaseId, version: Version) -> Version {
        let mut later = self.segments.range((id, version.next())..);
        match later.next() {
            Some(((other, first), _)) if *other == id => *first,
            _ => Version::new(u64::MAX),
        }
    }

    fn segments_and_children(&self, problems: &mut Vec<String>) {
        let mut right = BTreeSet::new();
        for ((id, first), base) in &self.segments {
            if let Some(base) = base {
                right.insert((base.database, base.head.snapshot.version, *id, *first));
            }
        }
        if right != self.children {
            problems.push(format!(
                "SEG1: segments stand on {right:?}, the rows of children say {:?}",
                self.children
            ));
        }
        for (id, first) in self.segments.keys() {
            let readers = self.readers(*id, *first, self.segment_end(*id, *first));
            if readers.is_empty() && self.work.is_empty() {
                problems.push(format!("SEG3: nobody reads segment {first} of {id}"));
            }
        }
        if self.tags != self.tagged {
            problems.push(format!("tags {:?} are {:?}", self.tags, self.tagged));
        }
    }

    fn sizes(&self, problems: &mut Vec<String>) {
        let mut sizes: BTreeMap<(DatabaseId, Version), Usage> = BTreeMap::new();
        let mut pointed = BTreeSet::new();
        for ((id, number, version), page) in &self.pages {
            let Some((mut bytes, serial)) = *page else {
                continue;
            };
            if let Some(serial) = serial {
                match self.staged.get(&(serial, *number)) {
                    Some(staged) => bytes = *staged,
                    None => {
                        problems.push(format!("page {number} of {id} at {version} has no content"))
                    }
                }
                pointed.insert((serial, *number));
            }
            // Of a segment that nobody reads, and whose rows are about to go, its size still tells.
            let segments = self.segments.range((*id, Version::ZERO)..=(*id, *version));
            let told = self.usages.range((*id, Version::ZERO)..=(*id, *version));
            let segment = segments.last().map(|(key, _)| *key);
            let first = told.last().map(|(key, _)| *key).max(segment);
            let size = sizes
                .entry(first.unwrap_or((*id, Version::ZERO)))
                .or_default();
            size.pages += 1;
            size.bytes += bytes;
        }
        if sizes != self.usages {
            problems.push(format!(
                "the pages take {sizes:?}, said is {:?}",
                self.usages
            ));
        }
        for (serial, number) in self.staged.keys() {
            if !pointed.contains(&(*serial, *number)) && !self.uncommitted.contains(serial) {
                problems.push(format!(
                    "nothing points to page {number} of staging {serial}"
                ));
            }
        }
        for (id, database) in &self.heads {
            let kept = self.records.keys().filter(|(of, _)| of == id).count() as u64;
            if kept != database.versions {
                problems.push(format!(
                    "{id} has {kept} records, said are {}",
                    database.versions
                ));
            }
        }
    }

    /// G3, the first half: the base of every reader can be looked up.
    fn needed_pages(&self, problems: &mut Vec<String>) {
        for ((id, version), head) in &self.records {
            let newest = self.segments.range((*id, Version::ZERO)..=(*id, *version));
            let first = newest.last().map(|((_, first), _)| *first);
            if first != Some(head.since) {
                problems.push(format!(
                    "version {version} of {id} is of segment {}, the segments say {first:?}",
                    head.since
                ));
            }
        }
    }

    /// G3, the second half, and V6: what nobody reads is gone.
    fn garbage(&self, problems: &mut Vec<String>) {
        for work in &self.work {
            problems.push(format!("not done: {work}"));
        }
        for (id, what) in &self.owned {
            if !self.heads.contains_key(id) {
                problems.push(format!("the database was removed, left is {what}"));
            }
        }
        let mut before: Option<(DatabaseId, PageNumber, Version)> = None;
        for ((id, number, written), page) in &self.pages {
            let next = self.pages.range((*id, *number, written.next())..).next();
            let next = next.filter(|((i, n, _), _)| (i, n) == (id, number));
            let end = self.segment_end(*id, *written);
            let end = next.map_or(end, |((_, _, next), _)| end.min(*next));
            let first = self.segments.range((*id, Version::ZERO)..=(*id, *written));
            let first = first.last().map_or(Version::ZERO, |((_, first), _)| *first);
            let read = self.readers(*id, *written, end);
            let reads = |head: &Head| *written > first || head.lasting.has(*number);
            let older = before.filter(|(i, n, v)| (i, n) == (id, number) && *v >= first);
            if !read.iter().any(reads) || (page.is_none() && older.is_none()) {
                problems.push(format!(
                    "V6: nobody needs page {number} of {id} at {written}"
                ));
            }
            before = Some((*id, *number, *written));
        }
    }
}
