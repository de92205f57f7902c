//! The runtime of one client, and the only `block_on` of the VFS.
//!
//! A call on loopback takes some 50 us, a hand-over between two threads 30. So a calling thread drives the runtime (sockets,
//! HTTP/2, the session) itself while it waits, and a thread of ours drives it only while nobody calls: heartbeats and
//! recalls have to be answered in an idle process too.
//!
//! The hand-over: a caller counts itself in `callers` and, if the idle thread is driving, wakes it; that one leaves its
//! `block_on`, and tokio gives the scheduler to the caller. The idle thread takes it again when no call was under way for
//! one `IDLE_POLL`, or at once where there is work that somebody will ask for soon (`spawn_urgent`: reads ahead, while SQLite
//! computes). Who waits for such work does not call: the thread that drives it wakes him. At once also where another process waits
//! for what this one says (`listen`, `flush`: leases).

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::Notify;

use crate::error::{Error, Kind, Result};

/// How long nobody may have called before the idle thread drives. Also the longest delay of a heartbeat.
const IDLE_POLL: Duration = Duration::from_millis(2);
/// How often all tasks go on before what they had to send counts as sent.
const FLUSHES: usize = 3;

/// A current-thread runtime that is always driven by somebody.
pub struct Runtime {
    shared: Arc<Shared>,
    idle_thread: Thread,
}

struct Shared {
    runtime: Background,
    callers: AtomicUsize,
    calls: AtomicUsize,
    idle_thread_drives: AtomicBool,
    /// The idle thread is to drive at once.
    listen: AtomicBool,
    idle_thread: OnceLock<Thread>,
    /// Urgent tasks that have not ended. Apart from `Shared`, since tasks hold it and `Shared` holds tasks.
    urgent: Arc<AtomicUsize>,
    leave: Notify,
    stop: AtomicBool,
}

impl Runtime {
    /// Starts the runtime and its idle thread.
    pub fn start() -> Result<Self> {
        let cannot = |error: std::io::Error| {
            Error::new(
                Kind::CantOpen,
                format!("can't start the network runtime: {error}"),
            )
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot)?;
        let shared = Arc::new(Shared {
            runtime: Background(Some(runtime)),
            callers: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            idle_thread_drives: AtomicBool::new(false),
            listen: AtomicBool::new(false),
            idle_thread: OnceLock::new(),
            urgent: Arc::new(AtomicUsize::new(0)),
            leave: Notify::new(),
            stop: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("pagewire".to_owned())
            .spawn(move || for_thread.drive_while_idle())
            .map_err(cannot)?;
        shared.idle_thread.get_or_init(|| thread.thread().clone());
        Ok(Self {
            shared,
            idle_thread: thread.thread().clone(),
        })
    }

    /// Runs a future to its end on this thread.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send,
    {
        let can_enter = match tokio::runtime::Handle::try_current() {
            // SQLite is used on a thread of somebody's tokio runtime (rlib only: the loadable library has a tokio of its own).
            Ok(_) => false,
            // The thread is ending, as that of main() is in what a program does at its exit: a host may close its connections there.
            Err(error) => !error.is_thread_local_destroyed(),
        };
        if !can_enter {
            // A runtime can't be entered there, so another thread does it.
            return std::thread::scope(|scope| {
                match scope.spawn(|| self.shared.block_on(future)).join() {
                    Ok(output) => output,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            });
        }
        self.shared.block_on(future)
    }

    /// Puts on the wire what was given to the session stream, on this thread: nobody else may drive for one or two `IDLE_POLL`.
    pub fn flush(&self) {
        // A task, which runs only where somebody drives: this thread may have to wait until the idle one has left.
        let flushed = self.shared.runtime.get().spawn(async {
            // Each lets every task go on that can, and looks at the sockets: the stream takes the message, then the connection.
            for _ in 0..FLUSHES {
                tokio::task::yield_now().await;
            }
        });
        // It can't be cancelled but by the end of the runtime, with which everything ends.
        let _ = self.block_on(flushed);
    }

    /// Lets the idle thread drive from now on, until somebody calls: a message is expected that is to be answered at once.
    pub fn listen(&self) {
        self.shared.listen.store(true, Ordering::SeqCst);
        self.idle_thread.unpark();
    }

    /// Starts a task that runs whenever somebody drives the runtime.
    pub fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.shared.runtime.get().spawn(future);
    }

    /// Starts a task that is driven from now on until it ends, whether somebody calls or not.
    pub fn spawn_urgent<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.shared.urgent.fetch_add(1, Ordering::SeqCst);
        let urgent = Urgent(Arc::clone(&self.shared.urgent));
        self.shared.runtime.get().spawn(async move {
            let _urgent = urgent;
            future.await;
        });
        self.shared.wake_for_urgent();
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.leave.notify_one();
        self.idle_thread.unpark();
    }
}

impl Shared {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _caller = Caller::enter(self);
        self.runtime.get().block_on(future)
    }

    fn drive_while_idle(&self) {
        let mut calls_seen = self.calls.load(Ordering::SeqCst);
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::park_timeout(IDLE_POLL);
            let calls = self.calls.load(Ordering::SeqCst);
            let nobody_calls = self.callers.load(Ordering::SeqCst) == 0;
            // While somebody calls the wish stays: he drives, but may leave before the message comes.
            let at_once = (nobody_calls && self.listen.swap(false, Ordering::SeqCst))
                || self.urgent.load(Ordering::SeqCst) > 0;
            let idle = nobody_calls && (calls == calls_seen || at_once);
            calls_seen = calls;
            if idle && !self.stop.load(Ordering::SeqCst) {
                self.idle_thread_drives.store(true, Ordering::SeqCst);
                // A caller that came before the store above did not see it; it is counted, so look again.
                if self.callers.load(Ordering::SeqCst) == 0 {
                    self.runtime.get().block_on(self.leave.notified());
                }
                self.idle_thread_drives.store(false, Ordering::SeqCst);
            }
        }
    }
}

impl Shared {
    /// Makes the idle thread drive what is urgent, or expected, unless somebody drives already: a caller does this again when he leaves.
    fn wake_for_urgent(&self) {
        if (self.urgent.load(Ordering::SeqCst) > 0 || self.listen.load(Ordering::SeqCst))
            && self.callers.load(Ordering::SeqCst) == 0
            && !self.idle_thread_drives.load(Ordering::SeqCst)
            && let Some(thread) = self.idle_thread.get()
        {
            thread.unpark();
        }
    }
}

/// A task that counts as urgent until it has ended or was dropped.
struct Urgent(Arc<AtomicUsize>);

impl Drop for Urgent {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A runtime that may be dropped on any thread, also one that runs somebody's async code.
struct Background(Option<tokio::runtime::Runtime>);

impl Background {
    fn get(&self) -> &tokio::runtime::Runtime {
        match &self.0 {
            Some(runtime) => runtime,
            None => unreachable!("taken only by drop"),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct Caller<'a>(&'a Shared);

impl<'a> Caller<'a> {
    fn enter(shared: &'a Shared) -> Self {
        shared.callers.fetch_add(1, Ordering::SeqCst);
        if shared.idle_thread_drives.load(Ordering::SeqCst) {
            shared.leave.notify_one();
        }
        Self(shared)
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        self.0.callers.fetch_sub(1, Ordering::SeqCst);
        self.0.wake_for_urgent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_many_threads_and_background_tasks_all_make_progress() {
        let runtime = Runtime::start().unwrap();
        let ticks = Arc::new(AtomicUsize::new(0));
        let (done, mut finished) = tokio::sync::mpsc::channel::<()>(1);
        let counter = Arc::clone(&ticks);
        runtime.spawn(async move {
            for _ in 0..50 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                counter.fetch_add(1, Ordering::SeqCst);
            }
            drop(done);
        });
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        runtime.block_on(tokio::task::yield_now());
                    }
                });
            }
        });
        runtime.block_on(finished.recv());
        assert_eq!(ticks.load(Ordering::SeqCst), 50);
    }

    #[test]
    fn a_background_task_runs_while_nobody_calls() {
        let runtime = Runtime::start().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            sender.send(()).unwrap();
        });
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn what_is_flushed_has_gone_on_as_far_as_it_can_although_nobody_drives() {
        let runtime = Runtime::start().unwrap();
        for turn in 0..200 {
            if turn % 20 == 0 {
                // Until the idle thread drives, which has to leave first.
                while !runtime.shared.idle_thread_drives.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            }
            // As a message on its way: from the stream to the connection, and on.
            let (first, mut stream) = tokio::sync::mpsc::channel(1);
            let (second, mut connection) = tokio::sync::mpsc::channel(1);
            let (sender, sent) = std::sync::mpsc::channel();
            runtime.spawn(async move {
                let message: u32 = stream.recv().await.unwrap();
                second.send(message).await.unwrap();
            });
            runtime.spawn(async move { sender.send(connection.recv().await).unwrap() });
            first.try_send(7).unwrap();
            runtime.flush();
            assert_eq!(sent.try_recv(), Ok(Some(7)));
        }
    }

    #[test]
    fn after_a_call_the_idle_thread_listens_at_once_where_it_is_told_to() {
        const TURNS: u32 = 50;
        let runtime = Runtime::start().unwrap();
        let mut waits: Vec<Duration> = (0..TURNS)
            .map(|_| {
                runtime.block_on(tokio::task::yield_now());
                let (sender, receiver) = std::sync::mpsc::channel();
                runtime.listen();
                let asked = std::time::Instant::now();
                runtime.spawn(async move { sender.send(()).unwrap() });
                receiver.recv_timeout(Duration::from_secs(10)).unwrap();
                asked.elapsed()
            })
            .collect();
        // Otherwise it is at least one `IDLE_POLL` in which nobody has called.
        waits.sort();
        assert!(waits[waits.len() / 2] < IDLE_POLL, "{waits:?}");
    }

    #[test]
    fn what_is_expected_is_listened_for_also_where_somebody_else_was_calling() {
        const TURNS: u32 = 50;
        let runtime = Runtime::start().unwrap();
        let mut waits: Vec<Duration> = (0..TURNS)
            .map(|_| {
                // A call is under way when the wish is told, for so long that the idle thread looks.
                runtime.block_on(async {
                    runtime.listen();
                    tokio::time::sleep(2 * IDLE_POLL).await;
                });
                let (sender, receiver) = std::sync::mpsc::channel();
                let asked = std::time::Instant::now();
                runtime.spawn(async move { sender.send(()).unwrap() });
                receiver.recv_timeout(Duration::from_secs(10)).unwrap();
                asked.elapsed()
            })
            .collect();
        // Otherwise it is one `IDLE_POLL` in which nobody has called, after another one.
        waits.sort();
        assert!(waits[waits.len() / 2] < IDLE_POLL, "{waits:?}");
    }

    #[test]
    fn an_urgent_task_is_driven_at_once_between_calls_and_while_nobody_calls() {
        let runtime = Runtime::start().unwrap();
        // Calls that come faster than `IDLE_POLL` keep the idle thread away from what is not urgent.
        let (sender, receiver) = std::sync::mpsc::channel();
        for turn in 0..200 {
            runtime.block_on(tokio::task::yield_now());
            let sender = sender.clone();
            runtime.spawn_urgent(async move {
                tokio::task::yield_now().await;
                sender.send(turn).unwrap();
            });
            assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(turn));
        }
        while runtime.shared.urgent.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }

    /// Found by SQLite's own tests: a program that closed its last connection in a function of `atexit` had "The Tokio context
    /// thread-local variable has been destroyed" and a backtrace on its standard error, and the server waited for the session to lapse.
    #[test]
    fn a_call_after_the_thread_s_locals_are_gone_is_no_panic() {
        struct AtEnd(Arc<Runtime>, std::sync::mpsc::Sender<(bool, u32)>);
        impl Drop for AtEnd {
            fn drop(&mut self) {
                let tokio_s = tokio::runtime::Handle::try_current();
                let are_gone = tokio_s.is_err_and(|error| error.is_thread_local_destroyed());
                let answer = self.0.block_on(async { 7 });
                self.1.send((are_gone, answer)).unwrap();
            }
        }
        thread_local! {
            static AT_END: std::cell::RefCell<Option<AtEnd>> = const { std::cell::RefCell::new(None) };
        }
        let runtime = Arc::new(Runtime::start().unwrap());
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // What is made first is dropped last.
            AT_END.set(Some(AtEnd(Arc::clone(&runtime), sender)));
            runtime.block_on(async {});
        });
        thread.join().unwrap();
        assert_eq!(receiver.recv(), Ok((true, 7)));
    }

    #[test]
    fn a_call_from_within_a_tokio_runtime_is_no_panic() {
        let runtime = Runtime::start().unwrap();
        let host = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(host.block_on(async { runtime.block_on(async { 7 }) }), 7);
    }
}
