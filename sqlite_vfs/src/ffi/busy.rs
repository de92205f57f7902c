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

use std::cell::Cell;
use std::ffi::{c_int, c_void};

/// `int (*)(void*)`, and its argument, as SQLITE_FCNTL_BUSYHANDLER gives them.
#[derive(Clone, Copy, Debug)]
pub struct BusyHandler {
    pub call: unsafe extern "C" fn(*mut c_void) -> c_int,
    pub argument: *mut c_void,
}

/// Calls of a handler for one refusal: a busy timeout of five minutes, since SQLite counts a tenth of a second for each call. A longer one
/// takes a refusal, and a tenth of a second, for each five minutes.
const MOST_CALLS: u32 = 3_000;

thread_local! {
    /// How often xSleep was passed over on this thread; `None` where it sleeps.
    static PASSED_OVER: Cell<Option<u32>> = const { Cell::new(None) };
}

/// xSleep, while a busy handler is made to give up: true where nobody is to sleep.
pub fn passes_over_sleep() -> bool {
    PASSED_OVER.with(|passed| {
        let count = passed.get();
        passed.set(count.map(|count| count.saturating_add(1)));
        count.is_some()
    })
}

impl BusyHandler {
    /// Lets the handler come to its end.
    ///
    /// # Safety
    /// SQLite is in xLock of the file to which it gave the handler.
    pub unsafe fn exhaust(self) {
        // A handler of an application may itself run into a refusal, on another connection.
        let around = PASSED_OVER.replace(Some(0));
        for calls in 1..=MOST_CALLS {
            // SAFETY: promised by the caller: the pager to which the handler belongs is there, and its connection's mutex is held.
            let goes_on = unsafe { (self.call)(self.argument) } != 0;
            let slept_here = PASSED_OVER.get().is_some_and(|passed| passed >= calls);
            if !goes_on || !slept_here {
                break;
            }
        }
        PASSED_OVER.set(around);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(passes_over_sleep());
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
        assert!(!passes_over_sleep(), "it sleeps again");
        handler.calls
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
        PASSED_OVER.set(Some(7));
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
        assert_eq!(PASSED_OVER.replace(None), Some(7));
    }
}
