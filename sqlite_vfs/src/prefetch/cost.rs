//! What R6 costs: a page that is in the cache and in no stream.

use std::hint::black_box;

use super::*;

/// A database of which everything is here.
struct AllHere;

impl Pages for AllHere {
    fn content(&self, _: u32) -> Option<Bytes> {
        None
    }

    fn is_known(&self, _: u32) -> bool {
        true
    }

    fn request(&self, pages: Vec<u32>) {
        panic!("nothing is in a stream, and {pages:?} are asked for");
    }

    fn abandon(&self, _: Vec<u32>) {}

    fn page_count(&self) -> u32 {
        1 << 20
    }

    fn page_bytes(&self) -> usize {
        4096
    }

    fn reserved(&self) -> u8 {
        0
    }

    fn window_limit(&self) -> u64 {
        0
    }

    fn room(&self) -> u64 {
        u64::MAX
    }

    fn first_window(&self) -> u64 {
        0
    }
}

fn page_of_kind(kind: u8) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[0] = kind;
    page
}

/// What the thread has used of a processor so far, in nanoseconds: on a machine that others use as well, the time on the wall says little.
fn cpu_ns() -> f64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("/proc");
    let ns = schedstat.split_whitespace().next().expect("a number");
    ns.parse().expect("a number")
}

/// Prints what a page costs; run it in the release profile. What it asserts is half of what a hit in the cache may cost.
#[test]
#[ignore = "measures: --release -- --ignored --nocapture"]
fn r6_a_page_in_no_stream_costs_little() {
    const LOOKS: u32 = 2_000_000;
    let (interior, leaf) = (page_of_kind(5), page_of_kind(13));
    let mut state = 1u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    for (name, interior_pages) in [("leaves", 0), ("leaves below 200 interior pages", 200)] {
        let mut prefetcher = Prefetcher::default();
        let mut rounds: Vec<f64> = (0..7)
            .map(|_| {
                let began = cpu_ns();
                for look in 0..LOOKS {
                    let number = 1_000 + next() % 100_000;
                    if interior_pages > 0 && look.is_multiple_of(2) {
                        let number = 2 + number % interior_pages;
                        prefetcher.read(&AllHere, number, &interior, Came::AtOnce);
                    } else {
                        prefetcher.read(&AllHere, number, black_box(&leaf), Came::AtOnce);
                    }
                }
                (cpu_ns() - began) / f64::from(LOOKS)
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        println!(
            "{name}: best {:.0} ns, median {:.0} ns",
            rounds[0], rounds[3]
        );
        assert!(rounds[0] < 500.0, "{name}: {} ns", rounds[0]);
    }
}
