//! What the fuzz target `cache_file` reaches: the three things that are made from bytes of a file.

use super::*;

/// Reads the bytes as each of them, as they are and with the right checksum, which no fuzzer would find. Panics where something is
/// answered that is not what would be written again.
pub fn read(bytes: &[u8]) {
    let identity = Identity {
        incarnation: Incarnation::from_bytes([1; 16]),
        database: DatabaseId::from_bytes([2; 16]),
        scope: [3; 32],
        page_size: PageSize::MIN,
    };
    let seed = identity.seed();
    look_at(bytes, &identity);
    if bytes.len() > 16 {
        let mut slot = bytes.to_vec();
        let sum = slot::checksum(seed, &slot[16..]);
        slot[..16].copy_from_slice(&sum);
        look_at(&slot, &identity);
    }
    let mut log = log::encode(&ChangeLog::default(), &identity);
    // All of its header but for the magic and the identity, and its pages.
    log.truncate(48);
    log.extend_from_slice(bytes);
    let sum = slot::checksum(seed, &log);
    log.extend_from_slice(&sum);
    look_at(&log, &identity);
}

fn look_at(bytes: &[u8], identity: &Identity) {
    let found = slot::decode(identity.seed(), identity.page_size, bytes.to_vec());
    if let slot::Content::Page(page, entry) = found {
        assert!(Version::ZERO < entry.from && entry.from <= entry.upto);
        assert_eq!(slot::encode(identity.seed(), page, &entry), bytes);
    }
    if let Some(log) = log::decode(bytes, identity) {
        assert!(log.since() <= log.head());
        assert!(
            log.changed_at
                .values()
                .all(|version| *version <= log.head())
        );
        let again = log::decode(&log::encode(&log, identity), identity);
        assert!(again.is_some_and(|again| again.changed_at == log.changed_at));
    }
    let _ = slots::decode_header(bytes, identity);
}
