//! The pages that clients would like with their next open of a database, named by those who closed it.
//!
//! A hint: the numbers mean nothing here, a lost list costs the next client some calls, a wrong one some bytes. So they lie in memory,
//! within a bound, and are gone when the server stops: the first client that closes the database names them again.

use std::sync::Arc;

use pagewire_proto::DatabaseId;
use pagewire_proto::limits::MAX_HOT_PAGES;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// Bytes of all lists together: those of the databases closed last and opened often are kept.
const MAX_BYTES: u64 = 16 << 20;
/// Bytes of a list beside its numbers.
const LIST_OVERHEAD: u64 = 96;
/// Lists that fit, where they are short.
const LIKELY_LISTS: usize = 16_384;

#[derive(Clone)]
struct ByBytes;

impl Weighter<DatabaseId, Arc<[u32]>> for ByBytes {
    fn weight(&self, _: &DatabaseId, list: &Arc<[u32]>) -> u64 {
        LIST_OVERHEAD + 4 * list.len() as u64
    }
}

/// See the file's header.
pub(crate) struct HotLists(Cache<DatabaseId, Arc<[u32]>, ByBytes>);

impl std::fmt::Debug for HotLists {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("HotLists")
            .field("lists", &self.0.len())
            .finish()
    }
}

impl Default for HotLists {
    fn default() -> Self {
        Self(Cache::with_weighter(LIKELY_LISTS, MAX_BYTES, ByBytes))
    }
}

impl HotLists {
    /// Takes a list over. What earlier ones named comes behind it, as far as there is room: several clients read different parts.
    pub(crate) fn name(&self, database: DatabaseId, pages: &[u32]) {
        if pages.is_empty() {
            return;
        }
        let before = self.of(database);
        let mut seen = std::collections::HashSet::new();
        let list: Arc<[u32]> = pages
            .iter()
            .chain(before.iter())
            .copied()
            .filter(|page| seen.insert(*page))
            .take(MAX_HOT_PAGES)
            .collect();
        self.0.insert(database, list);
    }

    /// The list, the most wanted first.
    pub(crate) fn of(&self, database: DatabaseId) -> Arc<[u32]> {
        self.0.get(&database).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> DatabaseId {
        DatabaseId::try_from(&[byte; 16][..]).unwrap()
    }

    #[test]
    fn a_newer_list_goes_before_an_older_one() {
        let lists = HotLists::default();
        assert!(lists.of(id(1)).is_empty());
        lists.name(id(1), &[7, 8, 9]);
        lists.name(id(1), &[]);
        lists.name(id(1), &[9, 5, 9]);
        assert_eq!(*lists.of(id(1)), [9, 5, 7, 8]);
        assert!(lists.of(id(2)).is_empty());
    }

    #[test]
    fn p7_lists_are_bounded_each_and_together() {
        let lists = HotLists::default();
        let long: Vec<u32> = (0..2 * MAX_HOT_PAGES as u32).collect();
        lists.name(id(1), &long);
        assert_eq!(*lists.of(id(1)), long[..MAX_HOT_PAGES]);
        for round in 0..80 {
            for part in 0..64 {
                let mut bytes = [round; 16];
                bytes[0] = part;
                lists.name(DatabaseId::try_from(&bytes[..]).unwrap(), &long);
            }
        }
        assert!(lists.0.weight() <= MAX_BYTES);
        assert!(lists.0.len() > 1_000, "{}", lists.0.len());
    }
}
