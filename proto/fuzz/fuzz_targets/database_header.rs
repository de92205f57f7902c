//! Page 1 as a server or an application may send it. The first four bytes say which part of it is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire::fuzzing::header;
use pagewire_proto::Version;

fuzz_target!(|bytes: &[u8]| {
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
});
