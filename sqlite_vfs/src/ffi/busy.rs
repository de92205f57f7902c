//! SQLite's busy handler, where waiting would be in vain.
//!
//! A write lock that is refused because of a deadlock is answered with SQLITE_BUSY, which applications know; but SQLite's pager calls its
//! busy handler for every SQLITE_BUSY of a first lock and tries again, until the busy timeout has passed by the count of the calls. The
//! handler is told by SQLITE_FCNTL_BUSYHANDLER, for a VFS to call it. So it is called here until it says that it gives up, and meanwhile our
//! xSleep does not sleep: SQLite remembers that it gave up and returns at once.
//!
//! A handler that does not pause by our xSleep (one of the application; one of a connection whose main database lies on another VFS)
//! is called once: it decides itself how long it tries, and is refused each time. One of the application that pauses by sqlite3_sleep()
//! can't be told from SQLite's own where this VFS is the default one, and may never give up: so there is a bound to the calls of one
//! refusal. A handler that has not given up by then is called again by SQLite, with a real pause, and refused again.
//!
//! The other way round, xLock itself may wait, for a holder of the lease that does not answer or is another server's: up to a second in each try, of
//! which SQLite's handler knows nothing, so that a busy timeout of 200 ms, which are twelve tries, would be one of twelve seconds. What xLock has
//! waited in vain is *owed*. When SQLite tries again, the handler is called, its pauses passed over, until they make up for that; if it
//! gives up the lock is refused without another look. So a lock waits for the busy timeout and one try.
//! Nobody is called for a handler of the application: SQLite's own is told by the one pause by our xSleep between the two tries.
//!
//! And in that pause the lease may come. So a refused try leaves a note which database was wanted, and the pause that follows on the same
//! thread is no sleep of the operating system but a wait for the lease: it ends when that comes, and at once where it is there
//! already (the usual end of a hand-over: it came with a version that is newer than the snapshot, and SQLite has to begin anew). The note is for one
//! pause, and for a moment: an application without a handler that sleeps by sqlite3_sleep() on its own may sleep less once, after a refusal,
//! where this VFS is the default.
//!
//! SQLite's handler counts its pauses as they were meant, whatever they took. Where somebody else of the process is quicker each time that the lease comes,
//! the timeout would be over after some milliseconds. So the tries for one lock and the pauses between them are a *series*, with a clock:
//!
//! * **B1** Nobody is told that a lock is busy before his busy timeout less its last pause has passed since the first try. For a pause does not end before
//!   all of the series' pauses that SQLite has counted before it would have passed; only this one's own length is cut short by the lease.
//! * **B2** No pause is longer than it was meant, but for what those before it were shorter (B1).

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::database::Database;
use crate::process::Process;

/// `int (*)(void*)`, and its argument, as SQLITE_FCNTL_BUSYHANDLER gives them.
#[derive(Clone, Copy, Debug)]
pub struct BusyHandler {
    pub call: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub argument: *mut c_void,
}

/// Calls of a handler for one refusal: a busy timeout of five minutes, since SQLite counts a tenth of a second for each call. A longer one
/// takes a refusal, and a tenth of a second, for each five minutes.
const MOST_CALLS: u32 = 3_000;

/// What a try may take beside the pauses of the handler, without being owed: calls to the server, and a moment for a push.
const FREE: Duration = Duration::from_millis(100);

/// How long after a refusal a pause may begin that belongs to it.
const NOTE_HOLDS: Duration = Duration::from_millis(100);
/// The longest pause that is taken for one of SQLite's own handler.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The tries for one write lock, and the pauses of SQLite's busy handler between them (B1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Series {
    /// The file, by the place of its handle.
    file: usize,
    /// The beginning of its first try.
    begun: Instant,
    /// The pauses so far, as SQLite has counted them.
    counted: Duration,
    /// How often its thread had paused by its newest try.
    slept: u64,
}

impl Series {
    /// The least and the most that a pause takes which SQLite counts with this length.
    fn pause(&mut self, length: Duration, now: Instant) -> (Duration, Duration) {
        let least = (self.begun + self.counted).saturating_duration_since(now);
        self.counted += length;
        (least, least + length)
    }
}

/// The database whose write lock was refused.
struct Wanted {
    database: Weak<Database>,
    process: &'static Process,
    at: Instant,
}

/// Pauses that were passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Passed {
    count: u32,
    microseconds: u64,
}

thread_local! {
    /// What xSleep has passed over on this thread; `None` where it sleeps.
    static PASSED_OVER: Cell<Option<Passed>> = const { Cell::new(None) };
    /// How often it slept.
    static SLEPT: Cell<u64> = const { Cell::new(0) };
    /// The newest series of this thread, until its lock is there.
    static SERIES: Cell<Option<Series>> = const { Cell::new(None) };
    /// What the newest try of this thread wanted in vain.
    static WANTED: RefCell<Option<Wanted>> = const { RefCell::new(None) };
}

/// A write lock was refused that may be there soon. The file is told by the place of its handle, the try by its beginning.
pub fn note_refusal(
    file: usize,
    begun: Instant,
    database: &Arc<Database>,
    process: &'static Process,
) {
    let slept = SLEPT.get();
    // Another statement comes without a pause.
    let series = SERIES
        .get()
        .filter(|series| series.file == file && slept == series.slept.wrapping_add(1))
        .map_or(
            Series {
                file,
                begun,
                counted: Duration::ZERO,
                slept,
            },
            |series| Series { slept, ..series },
        );
    SERIES.set(Some(series));
    let wanted = Wanted {
        database: Arc::downgrade(database),
        process,
        at: Instant::now(),
    };
    // A thread that is ending sleeps as ever.
    let _ = WANTED.try_with(|note| note.replace(Some(wanted)));
}

/// A try of this thread has ended otherwise.
pub fn forget_refusal() {
    let _ = WANTED.try_with(RefCell::take);
}

/// A write lock is there, or never comes: what it had to be waited for is over.
pub fn series_ends() {
    SERIES.set(None);
}

/// Waits for the lease instead of sleeping so long, if that is what the pause is for. `false` where the pause is still to be slept.
pub fn pause_for_lease(microseconds: c_int) -> bool {
    let pause = Duration::from_micros(u64::try_from(microseconds).unwrap_or(0));
    let Ok(Some(wanted)) = WANTED.try_with(RefCell::take) else {
        return false;
    };
    if wanted.at.elapsed() > NOTE_HOLDS
        || pause > LONGEST_PAUSE
        || wanted.process.check_not_forked().is_err()
    {
        return false;
    }
    let (Some(database), Some(mut series)) = (wanted.database.upgrade(), SERIES.get()) else {
        return false;
    };
    let (least, most) = series.pause(pause, Instant::now());
    SERIES.set(Some(series));
    database.await_lease(least, most);
    true
}

/// xSleep, while a busy handler is called here: true where nobody is to sleep.
pub fn passes_over_sleep(microseconds: c_int) -> bool {
    let passed = PASSED_OVER.get();
    match passed {
        Some(passed) => PASSED_OVER.set(Some(Passed {
            count: passed.count.saturating_add(1),
            microseconds: passed
                .microseconds
                .saturating_add(u64::try_from(microseconds).unwrap_or(0)),
        })),
        None => SLEPT.set(SLEPT.get().wrapping_add(1)),
    }
    passed.is_some()
}

/// What a lock has waited in vain, and when that was, by the pauses of its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    waited: Duration,
    thread: usize,
    slept: u64,
}

impl Owed {
    /// After a try that was refused.
    pub fn after(waited: Duration) -> Option<Self> {
        Some(Self {
            waited: waited.checked_sub(FREE)?,
            thread: this_thread(),
            slept: SLEPT.get(),
        })
    }

    /// Whether this is the next try, after one pause of SQLite's own handler. Another statement comes without a pause.
    fn is_due(&self) -> bool {
        self.thread == this_thread() && SLEPT.get() == self.slept.wrapping_add(1)
    }
}

/// Where this thread has its own values: nothing that has to be made, and could be gone.
fn this_thread() -> usize {
    SLEPT.with(|place| std::ptr::from_ref(place).addr())
}

impl BusyHandler {
    /// Lets the handler come to its end.
    ///
    /// # Safety
    /// SQLite is in xLock of the file to which it gave the handler.
    pub unsafe fn exhaust(self) {
        // SAFETY: promised by the caller.
        unsafe { self.pass_over(Duration::MAX) };
    }

    /// Lets the handler count what the lock has waited, if this is the next try. `false` where it gives up.
    ///
    /// # Safety
    /// As for [`BusyHandler::exhaust`].
    pub unsafe fn makes_up_for(self, owed: Owed) -> bool {
        // SAFETY: promised by the caller.
        !owed.is_due() || unsafe { self.pass_over(owed.waited) }
    }

    /// Calls the handler until it gives up (`false`), or its pauses have that length.
    ///
    /// # Safety
    /// As for [`BusyHandler::exhaust`].
    unsafe fn pass_over(self, length: Duration) -> bool {
        // A handler of an application may itself run into a refusal, on another connection.
        let around = PASSED_OVER.replace(Some(Passed::default()));
        let mut goes_on = true;
        for calls in 1..=MOST_CALLS {
            // SAFETY: promised by the caller: the pager to which the handler belongs is there, and its connection's mutex is held.
            goes_on = unsafe { (self.call)(self.argument) } != 0;
            let passed = PASSED_OVER.get().unwrap_or_default();
            let is_enough = Duration::from_micros(passed.microseconds) >= length;
            let slept_here = passed.count >= calls;
            if !goes_on || !slept_here || is_enough {
                break;
            }
        }
        let passed = PASSED_OVER.replace(around).unwrap_or_default();
        if let Some(mut series) = SERIES.get() {
            // They have passed within xLock.
            series.counted += Duration::from_micros(passed.microseconds);
            SERIES.set(Some(series));
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE_US: c_int = 100_000;

    /// A handler that goes on so often, and pauses by our xSleep or not.
    struct Handler {
        goes_on: u32,
        pauses: bool,
        calls: u32,
    }

    unsafe extern "C" fn call(argument: *mut c_void) -> c_int {
        // SAFETY: the test passes a handler.
        let handler = unsafe { &mut *argument.cast::<Handler>() };
        handler.calls += 1;
        if handler.calls > handler.goes_on {
            return 0;
        }
        if handler.pauses {
            assert!(passes_over_sleep(PAUSE_US));
        }
        1
    }

    fn calls(goes_on: u32, pauses: bool) -> u32 {
        let mut handler = Handler {
            goes_on,
            pauses,
            calls: 0,
        };
        let busy = BusyHandler {
            call,
            argument: std::ptr::from_mut(&mut handler).cast(),
        };
        // SAFETY: `call` takes what it is given here.
        unsafe { busy.exhaust() };
        assert!(!passes_over_sleep(0), "it sleeps again");
        handler.calls
    }

    /// What a handler that goes on so often says when a try has waited for so long, after so many pauses in between, and its calls.
    fn makes_up(goes_on: u32, waited_ms: u64, pauses_between: u32) -> (bool, u32) {
        let mut handler = Handler {
            goes_on,
            pauses: true,
            calls: 0,
        };
        let busy = BusyHandler {
            call,
            argument: std::ptr::from_mut(&mut handler).cast(),
        };
        let owed = Owed::after(FREE + Duration::from_millis(waited_ms)).expect("more than is free");
        for _ in 0..pauses_between {
            assert!(!passes_over_sleep(PAUSE_US));
        }
        // SAFETY: `call` takes what it is given here.
        let goes_on = unsafe { busy.makes_up_for(owed) };
        (goes_on, handler.calls)
    }

    #[test]
    fn a_handler_counts_what_the_lock_has_waited_and_gives_up_when_that_is_its_timeout() {
        assert_eq!(makes_up(50, 1_000, 1), (true, 10));
        assert_eq!(makes_up(50, 950, 1), (true, 10));
        assert_eq!(makes_up(9, 1_000, 1), (false, 10));
        assert_eq!(makes_up(0, 1_000, 1), (false, 1));
    }

    #[test]
    fn nothing_is_owed_for_a_short_try_by_another_statement_or_by_a_handler_that_pauses_elsewhere()
    {
        assert_eq!(Owed::after(Duration::from_millis(99)), None);
        // Another statement begins without a pause, and a handler of an application does not pause here.
        assert_eq!(makes_up(50, 1_000, 0), (true, 0));
        // Whoever pauses by himself in between does not try again at once.
        assert_eq!(makes_up(50, 1_000, 2), (true, 0));
        let owed = Owed::after(Duration::from_secs(1)).expect("more than is free");
        let is_due = std::thread::spawn(move || {
            assert!(!passes_over_sleep(PAUSE_US));
            owed.is_due()
        });
        assert!(!is_due.join().expect("no panic"), "on another thread");
    }

    /// The pauses of SQLite's own handler, in milliseconds (`sqliteDefaultBusyCallback`).
    fn pauses(timeout: u64) -> Vec<u64> {
        let delays = [1, 2, 5, 10, 15, 20, 25, 25, 25, 50, 50, 100];
        let (mut pauses, mut passed) = (Vec::new(), 0);
        for delay in delays.into_iter().chain(std::iter::repeat(100)) {
            if passed >= timeout {
                break;
            }
            pauses.push(delay.min(timeout - passed));
            passed += delay;
        }
        pauses
    }

    #[test]
    fn b1_pauses_that_all_end_early_make_up_for_the_timeout_less_the_last_of_them() {
        for timeout in [1, 30, 100, 1000, 5000] {
            let begun = Instant::now();
            let mut series = Series {
                file: 0,
                begun,
                counted: Duration::ZERO,
                slept: 0,
            };
            let pauses = pauses(timeout);
            let mut now = begun;
            for pause in &pauses {
                let pause = Duration::from_millis(*pause);
                let (least, most) = series.pause(pause, now);
                // B2.
                assert_eq!(most, least + pause);
                now += least;
            }
            let last = pauses.last().expect("a pause");
            let passed = u64::try_from((now - begun).as_millis()).expect("a time");
            assert_eq!(passed, timeout - last, "{timeout}: {pauses:?}");
        }
    }

    #[test]
    fn b2_a_pause_is_as_long_as_it_was_meant_where_none_was_cut_short() {
        let begun = Instant::now();
        let mut series = Series {
            file: 0,
            begun,
            counted: Duration::ZERO,
            slept: 0,
        };
        let mut now = begun;
        for pause in pauses(1000).into_iter().map(Duration::from_millis) {
            assert_eq!(series.pause(pause, now), (Duration::ZERO, pause));
            // And a try takes its time.
            now += pause + Duration::from_millis(1);
        }
    }

    #[test]
    fn a_handler_that_sleeps_here_is_called_until_it_gives_up_and_another_one_once() {
        assert_eq!(calls(162, true), 163);
        assert_eq!(calls(0, true), 1);
        assert_eq!(calls(162, false), 1);
    }

    #[test]
    fn a_handler_that_never_gives_up_is_left_after_a_bounded_number_of_calls() {
        assert_eq!(calls(u32::MAX, true), MOST_CALLS);
    }

    #[test]
    fn a_refusal_within_a_handler_leaves_the_outer_one_as_it_was() {
        let around = Passed {
            count: 7,
            microseconds: 70,
        };
        PASSED_OVER.set(Some(around));
        let mut handler = Handler {
            goes_on: 3,
            pauses: true,
            calls: 0,
        };
        let busy = BusyHandler {
            call,
            argument: std::ptr::from_mut(&mut handler).cast(),
        };
        // SAFETY: `call` takes what it is given here.
        unsafe { busy.exhaust() };
        assert_eq!(PASSED_OVER.replace(None), Some(around));
    }
}
