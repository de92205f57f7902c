//! SQLite's b-tree pages as far as they name other pages (SQLite file format, 1.5 and 1.6).
//!
//! The bytes are whatever a server sent: nothing here trusts them. Every offset is checked before it is used, work is bounded by
//! the number of cells that fit into a page, and what makes no sense is `None`. A page that is misread costs a page fetched for
//! nothing, never a wrong answer: what SQLite gets does not come from here.

/// Bytes before the b-tree header of page 1.
const DATABASE_HEADER_BYTES: usize = 100;
/// Columns of an index whose entries are read: each entry of a leaf is, so that this bounds the work for one.
const MAX_COLUMNS: usize = 64;
/// The least that a cell takes: two bytes of pointer, four of content (`MX_CELL` of SQLite's btreeInt.h).
const LEAST_CELL: usize = 6;

/// The four kinds of b-tree pages, by their first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// 2: separates leaves of an index by entries that are rows of the index themselves.
    InteriorIndex,
    /// 5: separates leaves of a table by rowids.
    InteriorTable,
    /// 10: entries of an index; the last column is the rowid of the table's row.
    LeafIndex,
    /// 13: rows of a table.
    LeafTable,
}

impl PageKind {
    /// The kind that the first byte claims. Pages that are no b-tree pages have any byte there.
    pub fn of(number: u32, content: &[u8]) -> Option<Self> {
        match content.get(header_offset(number))? {
            2 => Some(Self::InteriorIndex),
            5 => Some(Self::InteriorTable),
            10 => Some(Self::LeafIndex),
            13 => Some(Self::LeafTable),
            _ => None,
        }
    }

    /// Whether pages of the kind have children.
    pub fn is_interior(self) -> bool {
        matches!(self, Self::InteriorIndex | Self::InteriorTable)
    }
}

/// Where the payload of a cell goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// The first overflow page.
    pub first: u32,
    /// How many there are.
    pub pages: u32,
}

/// A page whose header makes sense. Its cells are looked at one by one, when they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct TreePage<'a> {
    kind: PageKind,
    /// Without the bytes that are reserved at the end of each page.
    content: &'a [u8],
    /// Cell pointers, two bytes each.
    pointers: &'a [u8],
    rightmost: u32,
}

impl<'a> TreePage<'a> {
    /// The page, if it can be one. `reserved` is byte 20 of page 1.
    pub fn parse(number: u32, content: &'a [u8], reserved: u8) -> Option<Self> {
        let kind = PageKind::of(number, content)?;
        let usable = content.len().checked_sub(usize::from(reserved))?;
        let content = &content[..usable];
        let header = header_offset(number);
        let cells = usize::from(u16_at(content, header + 3)?);
        if cells > usable.saturating_sub(8) / LEAST_CELL {
            return None;
        }
        let rightmost = match kind.is_interior() {
            true => u32_at(content, header + 8)?,
            false => 0,
        };
        let first = header + if kind.is_interior() { 12 } else { 8 };
        let pointers = content.get(first..first + 2 * cells)?;
        Some(Self {
            kind,
            content,
            pointers,
            rightmost,
        })
    }

    /// Which of the four.
    pub fn kind(&self) -> PageKind {
        self.kind
    }

    /// Number of cells.
    pub fn cells(&self) -> usize {
        self.pointers.len() / 2
    }

    /// Number of children; none of a leaf.
    pub fn children(&self) -> usize {
        if self.kind.is_interior() {
            self.cells() + 1
        } else {
            0
        }
    }

    /// A child, counted from 0; the last one is the rightmost.
    pub fn child(&self, index: usize) -> Option<u32> {
        if index >= self.children() {
            return None;
        }
        if index == self.cells() {
            return Some(self.rightmost);
        }
        u32_at(self.content, self.cell(index)?)
    }

    /// Which child the page is.
    pub fn index_of_child(&self, page: u32) -> Option<usize> {
        if !self.kind.is_interior() {
            return None;
        }
        // Every page that is asked for is looked for in the interior pages known: this loop is a quarter of a cold read unless it is tight.
        let wanted = page.to_be_bytes();
        let (pointers, _) = self.pointers.as_chunks::<2>();
        let is_child = |pointer: &[u8; 2]| {
            let cell = self
                .content
                .get(usize::from(u16::from_be_bytes(*pointer))..);
            cell.and_then(<[u8]>::first_chunk) == Some(&wanted)
        };
        let found = pointers.iter().position(is_child);
        found.or_else(|| (self.rightmost == page).then(|| self.cells()))
    }

    /// Interior page of a table: the rowids of child `index` are at most this. `None` of the rightmost child too.
    pub fn largest_rowid(&self, index: usize) -> Option<i64> {
        if self.kind != PageKind::InteriorTable || index >= self.cells() {
            return None;
        }
        let (rowid, _) = varint_at(self.content, self.cell(index)? + 4)?;
        Some(rowid.cast_signed())
    }

    /// Interior page of a table: the child in which a row must lie.
    pub fn child_for_rowid(&self, rowid: i64) -> Option<(usize, u32)> {
        if self.kind != PageKind::InteriorTable {
            return None;
        }
        let (mut low, mut high) = (0, self.cells());
        while low < high {
            let middle = low.midpoint(high);
            if self.largest_rowid(middle)? < rowid {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some((low, self.child(low)?))
    }

    /// The overflow pages of a cell, if it has any.
    pub fn overflow(&self, index: usize) -> Option<Overflow> {
        let payload = self.payload(index)?;
        if payload.local.len() as u64 >= payload.length {
            return None;
        }
        let first = u32_at(self.content, payload.begins + payload.local.len())?;
        let rest = payload.length - payload.local.len() as u64;
        let pages = rest.div_ceil(self.content.len() as u64 - 4);
        Some(Overflow {
            first,
            pages: u32::try_from(pages).ok()?,
        })
    }

    /// Page of an index: the rowid at the end of an entry. `None` where it lies on an overflow page, or where there is none
    /// (WITHOUT ROWID tables have something else there, which may look like one).
    pub fn rowid_of_entry(&self, index: usize) -> Option<i64> {
        if !matches!(self.kind, PageKind::InteriorIndex | PageKind::LeafIndex) {
            return None;
        }
        integer(self.payload(index)?.local, None)
    }

    /// Leaf of a table: the integer in a column of a row, counted from 0. `None` where it is none, or lies on an overflow page.
    pub fn integer_of_row(&self, index: usize, column: usize) -> Option<i64> {
        if self.kind != PageKind::LeafTable {
            return None;
        }
        integer(self.payload(index)?.local, Some(column))
    }

    fn payload(&self, index: usize) -> Option<Payload<'a>> {
        let cell = self.cell(index)?;
        let (length, begins) = match self.kind {
            PageKind::InteriorTable => return None,
            PageKind::InteriorIndex => varint_at(self.content, cell + 4)?,
            PageKind::LeafIndex => varint_at(self.content, cell)?,
            PageKind::LeafTable => {
                let (length, after) = varint_at(self.content, cell)?;
                let (_, begins) = varint_at(self.content, after)?;
                (length, begins)
            }
        };
        let local = usize::try_from(self.local_bytes(length)?).ok()?;
        Some(Payload {
            length,
            begins,
            local: self.content.get(begins..begins.checked_add(local)?)?,
        })
    }

    /// How much of a payload lies on the page itself (SQLite file format, 1.6).
    fn local_bytes(&self, length: u64) -> Option<u64> {
        let usable = self.content.len() as u64;
        // SQLite itself refuses pages with less.
        if usable < 480 {
            return None;
        }
        let most = match self.kind {
            PageKind::LeafTable => usable - 35,
            _ => (usable - 12) * 64 / 255 - 23,
        };
        if length <= most {
            return Some(length);
        }
        let least = (usable - 12) * 32 / 255 - 23;
        let wished = least + (length - least) % (usable - 4);
        Some(if wished <= most { wished } else { least })
    }

    /// Where a cell begins.
    fn cell(&self, index: usize) -> Option<usize> {
        if index >= self.cells() {
            return None;
        }
        Some(usize::from(u16_at(self.pointers, 2 * index)?))
    }
}

struct Payload<'a> {
    length: u64,
    begins: usize,
    local: &'a [u8],
}

/// The integer in a column of a record, or in its last one (SQLite file format, 2.1).
fn integer(record: &[u8], column: Option<usize>) -> Option<i64> {
    let (header_length, mut at) = varint_at(record, 0)?;
    let header_length = usize::try_from(header_length).ok()?;
    let mut value = header_length;
    let mut found = None;
    let mut columns = 0;
    while at < header_length && column.is_none_or(|column| columns <= column) {
        let (serial_type, next) = varint_at(record, at)?;
        columns += 1;
        if columns > MAX_COLUMNS {
            return None;
        }
        if let Some((_, length)) = found {
            value = value.checked_add(length)?;
        }
        found = Some((serial_type, length_of(serial_type)?));
        at = next;
    }
    if column.is_some_and(|column| columns <= column) {
        return None;
    }
    let (serial_type, length) = found?;
    let bytes = record.get(value..value.checked_add(length)?)?;
    match serial_type {
        1..=6 => {
            let sign = if bytes.first()? & 0x80 == 0 { 0 } else { -1 };
            Some(
                bytes
                    .iter()
                    .fold(sign, |value, byte| (value << 8) | i64::from(*byte)),
            )
        }
        8 => Some(0),
        9 => Some(1),
        _ => None,
    }
}

/// The page that follows an overflow page; `None` at the end of the chain.
pub fn successor(content: &[u8]) -> Option<u32> {
    u32_at(content, 0).filter(|next| *next != 0)
}

fn header_offset(number: u32) -> usize {
    if number == 1 {
        DATABASE_HEADER_BYTES
    } else {
        0
    }
}

/// Bytes of a value (SQLite file format, 2.1).
fn length_of(serial_type: u64) -> Option<usize> {
    match serial_type {
        0 | 8 | 9 => Some(0),
        1..=4 => Some(serial_type as usize),
        5 => Some(6),
        6 | 7 => Some(8),
        10 | 11 => None,
        _ => usize::try_from((serial_type - 12) / 2).ok(),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

/// A variable-length integer, and where it ends.
fn varint_at(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for index in 0..8 {
        let byte = *bytes.get(at + index)?;
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + index + 1));
        }
    }
    let byte = *bytes.get(at + 8)?;
    Some(((value << 8) | u64::from(byte), at + 9))
}

/// Everything that a page names, for the fuzz target and its sibling below: it may not panic, and its work is bounded.
#[cfg(any(test, feature = "fuzzing"))]
pub fn look_at_everything(number: u32, content: &[u8], reserved: u8) -> usize {
    let mut named = usize::from(successor(content).is_some());
    let Some(page) = TreePage::parse(number, content, reserved) else {
        return named;
    };
    assert!(page.cells() <= content.len() / LEAST_CELL);
    for index in 0..page.cells() + 2 {
        named += usize::from(page.child(index).is_some());
        named += usize::from(page.overflow(index).is_some());
        named += usize::from(page.integer_of_row(index, index % 7).is_some());
        if let Some(rowid) = page.rowid_of_entry(index).or(page.largest_rowid(index)) {
            named += usize::from(page.child_for_rowid(rowid).is_some());
        }
    }
    if let Some(child) = page.child(page.cells()) {
        let found = page.index_of_child(child).expect("the rightmost child");
        assert_eq!(page.child(found), Some(child));
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: usize = 1024;

    /// A database file that SQLite itself has written.
    fn database(sql: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!("PRAGMA page_size = {PAGE}; {sql}"))
            .unwrap();
        drop(connection);
        std::fs::read(&path).unwrap()
    }

    fn page(file: &[u8], number: u32) -> &[u8] {
        let at = (number as usize - 1) * PAGE;
        &file[at..at + PAGE]
    }

    /// Leaves below a page, from left to right.
    fn leaves(file: &[u8], number: u32, found: &mut Vec<u32>) {
        let tree = TreePage::parse(number, page(file, number), 0).unwrap();
        if tree.children() == 0 {
            found.push(number);
        }
        for index in 0..tree.children() {
            let child = tree.child(index).unwrap();
            assert_eq!(tree.index_of_child(child), Some(index));
            leaves(file, child, found);
        }
    }

    fn root(file: &[u8], name: &str) -> u32 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        std::fs::write(&path, file).unwrap();
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .query_row(
                "SELECT rootpage FROM sqlite_schema WHERE name = ?1",
                [name],
                |row| row.get(0),
            )
            .unwrap()
    }

    const SCATTERED: &str = "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT); CREATE INDEX t_v ON t(v, i);
        WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
          INSERT INTO t SELECT (i * 2654435761) % 4294967296 - 2000000000, printf('%08x', i * 7919 % 5000) FROM n;";

    #[test]
    fn the_leaves_of_a_table_hold_the_rowids_that_their_parents_promise() {
        let file = database(SCATTERED);
        let table = root(&file, "t");
        let mut found = Vec::new();
        leaves(&file, table, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        let cells: usize = found
            .iter()
            .map(|number| {
                TreePage::parse(*number, page(&file, *number), 0)
                    .unwrap()
                    .cells()
            })
            .sum();
        assert_eq!(cells, 5000);
    }

    #[test]
    fn the_rowids_of_an_index_lead_to_the_leaves_of_its_table() {
        let file = database(SCATTERED);
        let (table, index) = (root(&file, "t"), root(&file, "t_v"));
        let mut entries = Vec::new();
        leaves(&file, index, &mut entries);
        let mut rows = 0;
        for number in entries {
            let leaf = TreePage::parse(number, page(&file, number), 0).unwrap();
            for cell in 0..leaf.cells() {
                let rowid = leaf.rowid_of_entry(cell).expect("a rowid");
                let mut at = table;
                while let Some((_, child)) = TreePage::parse(at, page(&file, at), 0)
                    .unwrap()
                    .child_for_rowid(rowid)
                {
                    at = child;
                }
                let leaf = TreePage::parse(at, page(&file, at), 0).unwrap();
                let found = (0..leaf.cells()).any(|cell| {
                    let (_, after) = varint_at(leaf.content, leaf.cell(cell).unwrap()).unwrap();
                    varint_at(leaf.content, after).unwrap().0.cast_signed() == rowid
                });
                assert!(found, "rowid {rowid} is not on page {at}");
                rows += 1;
            }
        }
        assert!(rows > 4500, "{rows}");
    }

    #[test]
    fn overflow_chains_are_as_long_as_the_cell_says() {
        let file = database(
            "CREATE TABLE t(v BLOB); CREATE INDEX t_v ON t(v);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 60)
               INSERT INTO t SELECT randomblob(i * 173) FROM n;",
        );
        for tree in ["t", "t_v"] {
            let mut found = Vec::new();
            leaves(&file, root(&file, tree), &mut found);
            let mut chains = 0;
            for number in found {
                let leaf = TreePage::parse(number, page(&file, number), 0).unwrap();
                for cell in 0..leaf.cells() {
                    let Some(overflow) = leaf.overflow(cell) else {
                        continue;
                    };
                    let mut next = Some(overflow.first);
                    let mut length = 0;
                    while let Some(number) = next {
                        length += 1;
                        next = successor(page(&file, number));
                    }
                    assert_eq!(length, overflow.pages);
                    chains += 1;
                }
            }
            assert!(chains > 20, "{tree}: {chains}");
        }
    }

    #[test]
    fn the_integers_of_a_row_are_those_that_sqlite_reads() {
        let file = database(
            "CREATE TABLE t(a TEXT, b, c); CREATE INDEX t_b ON t(b);
             INSERT INTO t VALUES('x', -3, 70000), ('', 0, 1), (NULL, 'text', -5000000000), (1.5, x'00', NULL);",
        );
        let schema = TreePage::parse(1, page(&file, 1), 0).unwrap();
        let of_schema = |row| schema.integer_of_row(row, 3);
        let roots = ["t", "t_b"].map(|name| Some(i64::from(root(&file, name))));
        assert_eq!([of_schema(0), of_schema(1)], roots);
        assert_eq!(of_schema(2), None);
        let number = root(&file, "t");
        let table = TreePage::parse(number, page(&file, number), 0).unwrap();
        let rows: Vec<_> = (0..4)
            .map(|row| [0, 1, 2, 3].map(|column| table.integer_of_row(row, column)))
            .collect();
        assert_eq!(rows[0], [None, Some(-3), Some(70000), None]);
        assert_eq!(rows[1], [None, Some(0), Some(1), None]);
        assert_eq!(rows[2], [None, None, Some(-5_000_000_000), None]);
        assert_eq!(rows[3], [None; 4]);
    }

    #[test]
    fn the_schema_page_is_read_behind_the_database_header() {
        let file = database("CREATE TABLE t(v);");
        let schema = TreePage::parse(1, page(&file, 1), 0).unwrap();
        assert_eq!((schema.kind(), schema.cells()), (PageKind::LeafTable, 1));
    }

    #[test]
    fn a_damaged_page_is_never_a_panic() {
        let file = database(SCATTERED);
        let pages = file.len() / PAGE;
        let mut state = 88_172_645_463_325_252u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for _ in 0..2_000 {
            let number = (next() % pages) as u32 + 1;
            let mut content = page(&file, number).to_vec();
            for _ in 0..1 + next() % 8 {
                // The header and the cell pointers most of all.
                let at = match next() % 2 {
                    0 => next() % 64,
                    _ => next() % PAGE,
                };
                content[at] = next() as u8;
            }
            look_at_everything(number, &content, (next() % 4) as u8);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_a_panic(
            number in 1u32..3,
            kind in prop::sample::select(vec![2u8, 5, 10, 13, 0, 255]),
            cells in any::<u16>(),
            mut content in prop::collection::vec(any::<u8>(), 0..1400),
            reserved in any::<u8>(),
        ) {
            let header = header_offset(number);
            if content.len() > header + 8 {
                content[header] = kind;
                content[header + 3..header + 5].copy_from_slice(&(cells % 300).to_be_bytes());
            }
            look_at_everything(number, &content, reserved);
        }
    }
}
