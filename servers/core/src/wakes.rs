//! Calls as tasks that see to their own wake-ups.
//!
//! When an answer of a stream goes out, hyper reserves room for the next one, and h2 tells whoever waits for room: that is the task which is
//! running. The runtime takes it for one that gives way to others, puts it at the end of its queue and wakes another thread to look for
//! work: two system calls, and two threads that pull the connection to and fro, with each commit. So a wake-up that comes while the task runs
//! stays here, and the task is run again at once.
//!
//! ```text
//!   idle ── poll ──▶ running ── pending ──▶ idle
//!    ▲ │ wake: the runtime is told │ wake
//!    │ ▼                           ▼
//!    idle                         woken ── pending ──▶ running, or idle and the runtime is told where it was run POLLS times
//! ```
//! * **W-1** No wake-up is lost: after each one the task is polled, here or by the runtime.
//! * **W-2** A task that wakes itself over and over gives way to others all the same.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use hyper::rt::Executor;

/// How often a task is polled before it gives way (W-2).
const POLLS: usize = 2;

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
/// Beside the other two.
const WOKEN: u8 = 2;

/// Spawns the calls of a connection. See the file's header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls;

impl<F> Executor<F> for Calls
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, call: F) {
        tokio::spawn(own_wakes(call));
    }
}

#[derive(Debug, Default)]
struct Wakes {
    state: AtomicU8,
    runtime: AtomicWaker,
}

impl Wakes {
    fn run(&self) {
        self.state.swap(RUNNING, Ordering::AcqRel);
    }

    /// False where the task was woken while it ran.
    fn rest(&self) -> bool {
        self.state
            .compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) & RUNNING == 0 {
            self.runtime.wake();
        }
    }
}

async fn own_wakes<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let wakes = Arc::new(Wakes::default());
    let own = Waker::from(Arc::clone(&wakes));
    std::future::poll_fn(move |context| {
        wakes.runtime.register(context.waker());
        for _ in 0..POLLS {
            wakes.run();
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&own)) {
                return Poll::Ready(output);
            }
            if wakes.rest() {
                return Poll::Pending;
            }
        }
        wakes.state.swap(IDLE, Ordering::AcqRel);
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Told(AtomicUsize);

    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polls once a task that wakes itself so many times; returns how often it ran and how often the runtime was told.
    fn ran_and_told(wakes: usize) -> (usize, usize) {
        let ran = Arc::new(AtomicUsize::new(0));
        let told = Arc::new(Told::default());
        let counter = Arc::clone(&ran);
        let mut task = pin!(own_wakes(std::future::poll_fn(
            move |context| -> Poll<()> {
                if counter.fetch_add(1, Ordering::SeqCst) < wakes {
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
        )));
        let waker = Waker::from(Arc::clone(&told));
        assert!(
            task.as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        (ran.load(Ordering::SeqCst), told.0.load(Ordering::SeqCst))
    }

    #[test]
    fn a_task_that_wakes_itself_runs_again_and_nobody_else_is_told() {
        assert_eq!(ran_and_told(0), (1, 0));
        assert_eq!(ran_and_told(1), (2, 0));
    }

    #[test]
    fn w2_a_task_that_wakes_itself_over_and_over_gives_way() {
        assert_eq!(ran_and_told(usize::MAX), (POLLS, 1));
    }

    #[test]
    fn w1_a_task_that_is_idle_is_woken_by_the_runtime() {
        let told = Arc::new(Told::default());
        let kept = Arc::new(std::sync::Mutex::new(None));
        let keep = Arc::clone(&kept);
        let mut task = pin!(own_wakes(std::future::poll_fn(
            move |context| -> Poll<()> {
                *keep.lock().unwrap() = Some(context.waker().clone());
                Poll::Pending
            }
        )));
        let waker = Waker::from(Arc::clone(&told));
        for round in 1..4 {
            assert!(
                task.as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            );
            kept.lock().unwrap().take().unwrap().wake();
            assert_eq!(told.0.load(Ordering::SeqCst), round);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn w1_no_wake_of_another_thread_is_lost() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let task = tokio::spawn(own_wakes(async move {
            let mut sum = 0u64;
            while let Some(number) = receiver.recv().await {
                sum += number;
            }
            sum
        }));
        let sending = async {
            for number in 0..20_000u64 {
                sender.send(number).await.unwrap();
            }
            drop(sender);
            task.await.unwrap()
        };
        let sum = tokio::time::timeout(std::time::Duration::from_secs(60), sending).await;
        assert_eq!(sum, Ok(19_999 * 20_000 / 2));
    }
}
