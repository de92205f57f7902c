//! What the VFS makes of bytes that it did not write: cache files, settings, and the pages of a database.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use bytes::Bytes;
use pagewire::fuzzing::{
    Came, ConnectionSettings, Pages, Prefetcher, ProcessSettings, btree, disk_cache, header,
};
use pagewire_proto::Version;

/// A slot, a change log or a header of the disk cache, as anybody may have left it on the disk.
pub fn cache_file(bytes: &[u8]) {
    disk_cache::read(bytes)
}

/// Page 1 as a server or an application may send it. The first four bytes say which part of it is read.
pub fn database_header(bytes: &[u8]) {
    let Some((place, page_1)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let within = usize::from(u16::from_le_bytes([place[0], place[1]])).min(page_1.len());
    let length = usize::from(u16::from_le_bytes([place[2], place[3]])).min(page_1.len() - within);
    let version = Version::new(u64::from(u32::from_le_bytes(*place)) << 7);
    let mut whole = page_1.to_vec();
    header::derive_change_counter(page_1, version, 0, &mut whole);
    let mut part = page_1[within..within + length].to_vec();
    header::derive_change_counter(page_1, version, within, &mut part);
    assert_eq!(
        part,
        whole[within..within + length],
        "a part differs from the whole"
    );
    match (header::Header::of(page_1), header::Header::of(&whole)) {
        (Some(before), Some(after)) => {
            assert_eq!(after.change_counter(), version.get() as u32);
            assert_eq!(before.page_size(), after.page_size());
            assert_eq!(before.page_count(), after.page_count());
            if before.is_wal() {
                header::without_wal(&mut whole);
                assert!(!header::Header::of(&whole).is_some_and(header::Header::is_wal));
            }
        }
        (None, None) => assert_eq!(whole, page_1),
        _ => panic!("a header came or went"),
    }
    let (mut a, mut b) = (page_1.to_vec(), whole.clone());
    header::mask_change_counter(&mut a);
    header::mask_change_counter(&mut b);
    assert!(!header::differ_beyond_journal_mode(&a, &b));
}

/// Settings: the first line is a database name, the others KEY=VALUE of environment and URI.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut lines = text.split('\n');
    let name = lines.next().unwrap_or_default();
    let pairs: Vec<_> = lines.filter_map(|line| line.split_once('=')).collect();
    let get = |wanted: &str| {
        pairs
            .iter()
            .find(|(key, _)| *key == wanted)
            .map(|(_, value)| (*value).to_owned())
    };
    let process = match ProcessSettings::read(get) {
        Ok(process) => process,
        Err(error) => {
            assert!(error.message.contains("PAGEWIRE_"), "{error}");
            // As if nothing had been set.
            ProcessSettings::read(|_| None).expect("the defaults are right")
        }
    };
    if let Ok(settings) = ConnectionSettings::new(&process, name, get, false, true) {
        assert_eq!(settings.name.as_str(), name);
        assert!(settings.timeout.as_millis() > 0);
        for server in settings.endpoint.as_str().split(',') {
            assert!(server.starts_with("http://") || server.starts_with("unix:"));
        }
        assert!(!settings.unlocked || settings.read_only);
    }
}

/// A b-tree or overflow page as a server may send it. The first two bytes say how it is read.
pub fn tree_page(bytes: &[u8]) {
    let Some(([number, reserved], page)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    btree::look_at_everything(u32::from(number % 2) + 1, page, *reserved);
}

/// Bytes of a page of [`File`].
const PAGE: usize = 512;
/// Pages of [`File`]: a few interior pages and their children.
const PAGES: u32 = 48;
/// Most pages looked into for one read: two windows of the largest size, and what is looked through for a pattern (R5).
const MOST_LOOKS: usize = 20_000;

/// Reads of a file whose pages are whatever the bytes say, in any order: what is read ahead is within the file, asked for once, and
/// costs bounded work. The first two bytes are the reserved bytes of a page and the number of reads; the reads follow, then the pages.
pub fn prefetch(bytes: &[u8]) {
    let Some(([reserved, reads], rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let (reads, pages) = rest.split_at(usize::from(*reads).min(rest.len()));
    let file = File {
        pages,
        reserved: *reserved % 64,
        here: RefCell::default(),
        looks: Cell::new(0),
    };
    let mut prefetcher = Prefetcher::default();
    for read in reads {
        let (page, is_late) = (u32::from(read & 0x3f) % PAGES + 1, read & 0x40 != 0);
        file.looks.set(0);
        if file.is_known(page) {
            let came = if is_late { Came::Late } else { Came::AtOnce };
            prefetcher.read(&file, page, &file.page(page), came);
        } else {
            let along = prefetcher.miss(&file, page);
            assert!(!along.contains(&page));
            file.request(along);
            file.request(vec![page]);
            prefetcher.came(page, &file.page(page));
        }
        if read & 0x80 != 0 {
            // The cache has lost it.
            file.here.borrow_mut().remove(&page);
        }
        assert!(file.looks.get() < MOST_LOOKS, "{} looks", file.looks.get());
    }
    let pages = prefetcher.asked().into_iter().chain(prefetcher.end());
    pages.for_each(|page| assert!(file.has(page), "page {page}"));
}

/// A file behind a server that sends at once what is asked for.
struct File<'a> {
    pages: &'a [u8],
    reserved: u8,
    here: RefCell<HashSet<u32>>,
    looks: Cell<usize>,
}

impl File<'_> {
    fn has(&self, page: u32) -> bool {
        (1..=PAGES).contains(&page)
    }

    /// Pages are given one after the other; those that are not are the first ones again.
    fn page(&self, number: u32) -> Bytes {
        assert!(self.has(number), "page {number}");
        let given = self.pages.len().div_ceil(PAGE).max(1);
        let at = (number as usize - 1) % given * PAGE;
        let mut content = self.pages[at.min(self.pages.len())..].to_vec();
        content.resize(PAGE, 0);
        content.into()
    }
}

impl Pages for File<'_> {
    fn content(&self, page: u32) -> Option<Bytes> {
        self.looks.set(self.looks.get() + 1);
        self.is_known(page).then(|| self.page(page))
    }

    fn is_known(&self, page: u32) -> bool {
        self.here.borrow().contains(&page)
    }

    fn request(&self, pages: Vec<u32>) {
        for page in pages {
            assert!(self.has(page), "page {page}");
            assert!(self.here.borrow_mut().insert(page), "page {page} twice");
        }
    }

    fn abandon(&self, pages: Vec<u32>) {
        pages
            .iter()
            .for_each(|page| assert!(self.has(*page), "page {page}"));
    }

    fn page_count(&self) -> u32 {
        PAGES
    }

    fn page_bytes(&self) -> usize {
        PAGE
    }

    fn reserved(&self) -> u8 {
        self.reserved
    }

    fn window_limit(&self) -> u64 {
        16 * PAGE as u64
    }

    fn room(&self) -> u64 {
        u64::MAX
    }

    fn first_window(&self) -> u64 {
        4 * PAGE as u64
    }
}
