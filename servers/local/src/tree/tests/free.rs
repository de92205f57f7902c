//! TREE7: what the list of free pages says, and bits of it that flip.

use super::*;

/// A record of free pages: where its key lies in the file, and where its pages do.
struct Record {
    key_at: u64,
    number: u64,
    pages_at: u64,
    pages: Vec<u64>,
}

/// The list as it lies in the file, read without any doubt; and where all bytes of its tree are.
fn list(file: &File, roots: &Roots) -> (Vec<Record>, Vec<u64>) {
    let page_bytes = roots.page_bytes().unwrap();
    let read = |number: u64, count: u64| {
        let mut bytes = vec![0; (page_bytes * count) as usize];
        file.read_exact_at(&mut bytes, number * page_bytes).unwrap();
        bytes
    };
    let (mut records, mut places) = (Vec::new(), Vec::new());
    let tree = roots.newest().unwrap().stats[0];
    let mut next = vec![(tree.root, tree.depth)];
    while let Some((number, depth)) = next.pop() {
        let (start, page) = (number * page_bytes, read(number, 1));
        places.extend(start..start + page_bytes);
        let nodes = nodes(number, &page, depth == 1).unwrap_or_else(|_| panic!());
        for node in nodes.into_iter().rev() {
            if depth > 1 {
                next.push((u64::from(u32_at(&page, node.at)), depth - 1));
                continue;
            }
            let length = u64::from(u32_at(&page, node.at));
            let (at, row) = match u16_at(&page, node.at + 4) & BIG {
                0 => (start + node.key.1 as u64, page[node.key.1..].to_vec()),
                _ => {
                    let first = u64_at(&page, node.key.1);
                    let count = (HEADER_BYTES as u64 + length).div_ceil(page_bytes);
                    places.extend(first * page_bytes..(first + count) * page_bytes);
                    let row = read(first, count).split_off(HEADER_BYTES);
                    (first * page_bytes + HEADER_BYTES as u64, row)
                }
            };
            let count = u64_at(&row, 0) as usize;
            records.push(Record {
                key_at: start + node.key.0 as u64,
                number: u64_at(&page, node.key.0),
                pages_at: at + 8,
                pages: (1..=count).map(|entry| u64_at(&row, 8 * entry)).collect(),
            });
        }
    }
    records.sort_by_key(|record| record.number);
    (records, places)
}

/// A store with some records of free pages, one of them on pages of its own.
fn made() -> tempfile::TempDir {
    let (mut random, _) = random();
    let made = tempfile::tempdir().unwrap();
    fill(made.path(), 400, 3, &mut random, |_| {});
    let options = LocalOptions {
        map_bytes: 64 << 20,
        ..LocalOptions::default()
    };
    let engine = Engine::open(made.path(), &options).unwrap();
    // More pages than a page has room for: those of large rows, which go at once.
    for is_there in [true, false] {
        let mut txn = engine.write().unwrap();
        for number in 1000..1040 {
            let key = key(number);
            match is_there {
                true => engine.put(&mut txn, &key, &vec![1; 100_000]).unwrap(),
                false => engine.delete(&mut txn, &key.encode()).unwrap(),
            }
        }
        engine.commit(txn).unwrap();
    }
    drop(engine);
    made
}

/// Puts bytes into the file for the time of a look.
fn with<T>(file: &File, at: u64, bytes: &[u8], look: impl FnOnce() -> T) -> T {
    let mut before = vec![0; bytes.len()];
    file.read_exact_at(&mut before, at).unwrap();
    file.write_all_at(bytes, at).unwrap();
    let seen = look();
    file.write_all_at(&before, at).unwrap();
    seen
}

fn is_refused(file: &File, roots: &Roots) -> bool {
    find(file, roots, None).unwrap().is_some()
}

/// Bugs: a record with the number 0 was taken for one of a transaction, and LMDB handed out its pages again and again; one of a transaction that comes
/// would be overwritten by it.
#[test]
fn tree7_a_record_of_free_pages_has_the_number_of_a_transaction_that_was() {
    let made = made();
    let (file, roots) = roots_of(&made.path().join(ROWS_FILE));
    let (records, _) = list(&file, &roots);
    let newest = roots.newest().unwrap().number;
    let (first, last) = (&records[0], records.last().unwrap());
    let says = |record: &Record, number: u64| {
        let number = number.to_ne_bytes();
        with(&file, record.key_at, &number, || is_refused(&file, &roots))
    };
    assert!(last.number <= newest && records.len() > 1);
    for (record, number) in [
        (first, 0),
        (last, newest + 1),
        (last, newest + 2),
        (last, u64::MAX),
    ] {
        assert!(says(record, number), "{number}");
    }
    assert!(!says(last, newest));
}

/// Bug: the order of the pages of a record was not looked at. LMDB merges records by it: with another it takes a page twice.
#[test]
fn tree7_pages_of_a_record_fall() {
    let made = made();
    let (file, roots) = roots_of(&made.path().join(ROWS_FILE));
    let (records, _) = list(&file, &roots);
    let mut tried = 0;
    for record in records.iter().filter(|record| record.pages.len() > 1) {
        assert!(record.pages.is_sorted_by(|one, next| one > next));
        for place in (1..record.pages.len()).step_by(1 + record.pages.len() / 20) {
            let swapped = [record.pages[place], record.pages[place - 1]].map(u64::to_ne_bytes);
            let at = record.pages_at + 8 * (place as u64 - 1);
            let refused = with(&file, at, swapped.as_flattened(), || {
                is_refused(&file, &roots)
            });
            assert!(refused, "{place} of transaction {}", record.number);
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
}

/// Each bit: refused, or the list has the same pages, or some less, and what the engine writes then is whole. All of the tree of free pages: headers, nodes, room
/// between, long records.
#[test]
fn tree7_a_bit_that_flips_in_the_list_of_free_pages_is_refused_or_does_no_harm() {
    let (mut random, is_long) = random();
    let made = made();
    let path = made.path().join(ROWS_FILE);
    let (file, roots) = roots_of(&path);
    let (right, places) = list(&file, &roots);
    // Of all a part, and of each record number and count in any case.
    let heads = right.iter().flat_map(|record| {
        let bits = |at: u64| at * 8..(at + 8) * 8;
        bits(record.key_at).chain(bits(record.pages_at - 8))
    });
    let heads: Vec<_> = heads.collect();
    let right: Vec<_> = right.into_iter().map(|r| (r.number, r.pages)).collect();
    let newest = roots.newest().unwrap();
    assert!(newest.stats[0].overflow_pages > 0, "{newest:?}");
    let bits = places.len() * 8;
    let step = if is_long { 1 } else { bits / 3000 };
    let (mut refused, mut harmless) = (0, 0);
    let (mut lost, mut renumbered, mut written) = (0, 0, 0);
    let part = (random.below(step)..bits).step_by(step);
    let part = part.map(|bit| places[bit / 8] * 8 + bit as u64 % 8);
    let part: Vec<_> = part.collect();
    for bit in heads.into_iter().chain(part) {
        let (at, mask) = (bit / 8, 1 << (bit % 8));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        with(&file, at, &[byte[0] ^ mask], || {
            if is_refused(&file, &roots) {
                refused += 1;
                return;
            }
            harmless += 1;
            let (seen, _) = list(&file, &roots);
            let seen: Vec<_> = seen.into_iter().map(|r| (r.number, r.pages)).collect();
            // One that counts fewer has lost the rest: that is room, and is told.
            let is_of =
                |(one, other): (&(_, Vec<u64>), &(_, Vec<u64>))| other.1.starts_with(&one.1);
            assert!(
                seen.len() == right.len() && seen.iter().zip(&right).all(is_of),
                "byte {at}"
            );
            let is_short = seen.iter().zip(&right).any(|(one, other)| one.1 != other.1);
            lost += usize::from(is_short);
            let is_number = |number: &u64| (1..=newest.number).contains(number);
            assert!(
                seen.iter().all(|(number, _)| is_number(number)),
                "byte {at}"
            );
            let is_renumbered = seen.iter().zip(&right).any(|(one, other)| one.0 != other.0);
            renumbered += usize::from(is_renumbered);
            let most = if is_long { 200 } else { 10 };
            if written < most && (is_short || is_renumbered || random.below(100) == 0) {
                written += 1;
                let copy = tempfile::tempdir().unwrap();
                for name in crate::directory::FILES {
                    std::fs::copy(made.path().join(name), copy.path().join(name)).unwrap();
                }
                fill(copy.path(), 100, 1, &mut random, |path| {
                    assert_eq!(found(path), None)
                });
            }
        });
    }
    println!(
        "{refused} of {} refused, {harmless} harmless, of which {renumbered} are of another transaction and {lost} are shorter; {written} were written on",
        refused + harmless
    );
    assert!(refused > 1000 && harmless > 300);
    assert!(lost > 4 && renumbered > 0 && written > 4);
    assert_eq!(found(&path), None);
}
