//! The memory of the process that simulates a seed: a region of its own, empty when the process begins.
//!
//! parking_lot's locks are fair now and then, each group of them at moments of its own, and to which group one belongs goes by its address. So where
//! memory is has to hang on the seed alone. The heap that a process takes over from the one that made it hangs on which seeds came before, on the
//! arguments and on the environment. What was allocated there is freed there; nothing new is put there.
//!
//! * **HEAP1** From [`begin`] on, the address of what is allocated follows from the sequence of what was allocated and freed since.
//! * **HEAP2** Room is given out once until it is freed, and is as large and as aligned as was asked for.
//!
//! Of Rust only: what SQLite, LMDB and the C library allocate has no lock of parking_lot in it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the region begins: above what a program has below its own code, below that code and all mappings.
pub const START: usize = 0x2000_0000_0000;
/// Of addresses; memory is taken where something is written.
const BYTES: usize = 1 << 38;
/// What is at most as long has a class for each so many bytes.
const STEP: usize = 16;
const SMALL: usize = 1024;
const SMALL_CLASSES: usize = SMALL / STEP;
/// What is longer has one for each power of two.
const CLASSES: usize = SMALL_CLASSES + usize::BITS as usize;
/// Freed, what is as long goes back to the operating system.
const LONG: usize = 1 << 20;

struct Region {
    /// Where nothing was given out yet.
    next: usize,
    /// What was freed, of each class: the first, in which the address of the next is.
    free: [*mut u8; CLASSES],
}

/// The allocator of everything that links the simulator: the system's, until [`begin`].
pub struct Heap {
    is_on: AtomicBool,
    /// Somebody is in `region`: a thread that ends may be there beside the one that runs.
    busy: AtomicBool,
    region: UnsafeCell<Region>,
}

// SAFETY: `region` is used by who has set `busy` only.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap {
    is_on: AtomicBool::new(false),
    busy: AtomicBool::new(false),
    region: UnsafeCell::new(Region {
        next: START,
        free: [ptr::null_mut(); CLASSES],
    }),
};

/// From now on this process, which has one thread, allocates in a region of its own. Where there can be none it goes on as before, and a seed's trace may
/// hang on what was before it.
pub fn begin() {
    // SAFETY: a new mapping that replaces none; nobody uses the region before it is there.
    let at = unsafe {
        libc::mmap(
            START as *mut libc::c_void,
            BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    HEAP.is_on.store(at.addr() == START, Ordering::Release);
}

/// The class of what is to be allocated, and how long it is.
fn class_of(layout: Layout) -> (usize, usize) {
    if layout.size() <= SMALL && layout.align() <= STEP {
        let steps = layout.size().div_ceil(STEP).max(1);
        return (steps - 1, steps * STEP);
    }
    // Aligned to its length (HEAP2).
    let bytes = layout
        .size()
        .max(layout.align())
        .checked_next_power_of_two()
        .unwrap_or(BYTES + 1);
    (SMALL_CLASSES + bytes.trailing_zeros() as usize, bytes)
}

fn is_in_region(at: *mut u8) -> bool {
    (START..START + BYTES).contains(&at.addr())
}

impl Heap {
    fn with<T>(&self, body: impl FnOnce(&mut Region) -> T) -> T {
        while self.busy.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        // SAFETY: `busy` is ours, and `body` allocates nothing.
        let answer = body(unsafe { &mut *self.region.get() });
        self.busy.store(false, Ordering::Release);
        answer
    }

    /// Room, and whether nobody ever had it: it is zero then.
    fn take(&self, layout: Layout) -> (*mut u8, bool) {
        let (class, bytes) = class_of(layout);
        self.with(|region| {
            let first = region.free[class];
            if !first.is_null() {
                // SAFETY: what was freed has the address of the next in it.
                region.free[class] = unsafe { first.cast::<*mut u8>().read() };
                return (first, false);
            }
            let align = if class < SMALL_CLASSES { STEP } else { bytes };
            let at = region.next.next_multiple_of(align);
            if bytes > START + BYTES - at.min(START + BYTES) {
                return (ptr::null_mut(), false);
            }
            region.next = at + bytes;
            (at as *mut u8, true)
        })
    }

    fn give_back(&self, at: *mut u8, layout: Layout) {
        let (class, bytes) = class_of(layout);
        if bytes >= LONG {
            // SAFETY: whole pages that nobody has any more.
            unsafe { libc::madvise(at.cast(), bytes, libc::MADV_DONTNEED) };
        }
        self.with(|region| {
            // SAFETY: it has room for an address, and nobody has it any more.
            unsafe { at.cast::<*mut u8>().write(region.free[class]) };
            region.free[class] = at;
        });
    }
}

// SAFETY: HEAP2; what is not in the region is the system's.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.is_on.load(Ordering::Acquire) {
            return self.take(layout).0;
        }
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !self.is_on.load(Ordering::Acquire) {
            // SAFETY: as the caller's.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let (at, is_zero) = self.take(layout);
        if !is_zero && !at.is_null() {
            // SAFETY: room of that length.
            unsafe { at.write_bytes(0, layout.size()) };
        }
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if is_in_region(at) {
            self.give_back(at, layout);
        } else {
            // SAFETY: as the caller's: it was allocated before the region was there.
            unsafe { System.dealloc(at, layout) };
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !self.is_on.load(Ordering::Acquire) {
            // SAFETY: as the caller's.
            return unsafe { System.realloc(at, layout, size) };
        }
        // SAFETY: the caller's promise about `size`.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if is_in_region(at) && class_of(layout).0 == class_of(new).0 {
            return at;
        }
        let (to, _) = self.take(new);
        if !to.is_null() {
            // SAFETY: two rooms of at least that length, of which the first is the caller's.
            unsafe {
                ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                self.dealloc(at, layout);
            }
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::fork;
    use crate::random::Random;

    /// Where room of many lengths is, and a local variable.
    fn places() -> String {
        let sizes = (0..22).map(|power| (1_usize << power) + 3);
        let rooms: Vec<Vec<u8>> = sizes.map(Vec::with_capacity).collect();
        let local = 0_u8;
        let places = rooms.iter().map(|room| room.as_ptr().addr());
        let places: Vec<usize> = places.chain([ptr::from_ref(&local).addr()]).collect();
        format!("{places:x?}")
    }

    /// Bug: 19 of 150 seeds had another trace if other seeds came before, or with other arguments or a larger environment, so a seed that failed need not
    /// fail when it was replayed.
    #[test]
    fn heap1_memory_does_not_hang_on_what_was_before() {
        let first = fork(60, places).answer().expect("an answer");
        let mut kept = Vec::new();
        for size in [24, 100, 5000, 200_000, 3 << 20] {
            // Some freed, some not.
            let before: Vec<Vec<u8>> = (0..7).map(|more| vec![1; size + more]).collect();
            kept.extend(before.into_iter().step_by(2));
            assert_eq!(fork(60, places).answer().expect("an answer"), first);
        }
        let deeper = |depth: usize| {
            let room = [depth; 4096];
            let child = fork(60, places);
            assert_eq!(std::hint::black_box(room)[4095], depth);
            child.answer().expect("an answer")
        };
        assert_eq!(deeper(1), first);
        assert!(kept.iter().flatten().all(|byte| *byte == 1));
    }

    #[test]
    fn heap2_room_is_nobody_elses_and_as_long_and_aligned_as_asked_for() {
        let answer = fork(300, || {
            let mut random = Random::new(7);
            let mut rooms: Vec<(*mut u8, Layout, u8)> = Vec::new();
            let whole = |(at, layout, value): &(*mut u8, Layout, u8)| {
                // SAFETY: room of that length, written by this test.
                let bytes = unsafe { std::slice::from_raw_parts(*at, layout.size()) };
                bytes.iter().all(|byte| byte == value)
            };
            let mut most = 0;
            for turn in 0..40_000_u32 {
                let (bits, is_long) = (random.below(18), random.below(20) == 0);
                let size = 1 + random.below(1 << bits) as usize;
                let align = 1 << random.below(if is_long { 14 } else { 5 });
                let layout = Layout::from_size_align(size, align).expect("a layout");
                let value = turn as u8;
                // SAFETY: layouts that are not empty, each room freed once, with its layout.
                unsafe {
                    match random.below(5) {
                        0 | 1 => {
                            let is_zeroed = random.below(2) == 0;
                            let at = match is_zeroed {
                                true => std::alloc::alloc_zeroed(layout),
                                false => std::alloc::alloc(layout),
                            };
                            assert!(is_in_region(at) && at.addr().is_multiple_of(align));
                            assert!(!is_zeroed || whole(&(at, layout, 0)));
                            at.write_bytes(value, size);
                            rooms.push((at, layout, value));
                        }
                        2 if !rooms.is_empty() => {
                            let place = random.below(rooms.len() as u64) as usize;
                            let (at, before, value) = rooms[place];
                            let at = std::alloc::realloc(at, before, size);
                            let after = Layout::from_size_align(size, before.align());
                            let kept = Layout::from_size_align(size.min(before.size()), 1);
                            assert!(at.addr().is_multiple_of(before.align()));
                            assert!(whole(&(at, kept.expect("a layout"), value)));
                            at.write_bytes(value, size);
                            rooms[place] = (at, after.expect("a layout"), value);
                        }
                        _ if !rooms.is_empty() => {
                            let place = random.below(rooms.len() as u64) as usize;
                            let room = rooms.swap_remove(place);
                            assert!(whole(&room));
                            std::alloc::dealloc(room.0, room.1);
                        }
                        _ => {}
                    }
                }
                most = most.max(rooms.len());
            }
            assert!(rooms.iter().all(whole));
            format!("{most}")
        });
        let most: usize = answer
            .answer()
            .expect("an answer")
            .parse()
            .expect("a number");
        assert!(most > 100, "{most}");
    }

    #[test]
    fn what_was_allocated_before_is_freed_and_grows() {
        let mut before = vec![5_u8; 100];
        let text = fork(60, move || {
            before.resize(100_000, 5);
            let grown = std::mem::take(&mut before);
            assert!(is_in_region(grown.as_ptr().cast_mut()));
            assert!(grown.iter().all(|byte| *byte == 5));
            // More than there is.
            let most = Layout::from_size_align(isize::MAX as usize - 4096, 1).expect("a layout");
            // SAFETY: it is not empty.
            assert!(unsafe { std::alloc::alloc(most) }.is_null());
            "done".to_owned()
        });
        assert_eq!(text.answer().expect("an answer"), "done");
    }
}
