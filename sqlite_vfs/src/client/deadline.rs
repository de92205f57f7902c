//! Deadlines that a process which was held up does not miss by that alone.
//!
//! A process that does not run for a while (stopped, frozen with its container, on a machine that was) finds its deadlines passed when it
//! goes on, and the answers in its sockets. So a deadline that is noticed much too late is followed by a moment in which the process
//! runs: what is there by then is taken. Nobody waits longer for it than that moment after he could have gone on.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// How late a deadline is noticed on a machine that is busy, and no more than that.
const BUSY: Duration = Duration::from_secs(1);
/// For a connection that has to be made again, and an answer. As long as the question what became of a commit has at least.
const MOMENT: Duration = Duration::from_secs(1);

/// Whether a deadline that has passed was noticed much too late.
pub fn is_held_up(deadline: Instant) -> bool {
    Instant::now() > deadline + BUSY
}

/// The end of the moment after such a deadline.
pub(super) fn moment_after(deadline: Instant) -> Option<Instant> {
    is_held_up(deadline).then(|| Instant::now() + MOMENT)
}

/// What a call comes to before its deadline; `None` where nothing came.
pub(super) async fn before<F: Future>(deadline: Instant, call: F) -> Option<F::Output> {
    let mut call = pin!(call);
    if let Ok(answer) = timeout_at(deadline, &mut call).await {
        return Some(answer);
    }
    timeout_at(moment_after(deadline)?, call).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody runs until then.
    fn held_up(duration: Duration) {
        #[expect(
            clippy::disallowed_methods,
            reason = "being held up is what is under test"
        )]
        std::thread::sleep(duration);
    }

    #[tokio::test]
    async fn an_answer_that_is_there_when_a_process_goes_on_is_taken_although_its_deadline_has_passed()
     {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let deadline = Instant::now() + Duration::from_millis(50);
        // Taken in a turn after that in which the deadline is noticed, as by the task of a connection.
        let task = tokio::spawn(async move {
            held_up(Duration::from_millis(1300));
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            sender.send(7).unwrap();
        });
        assert_eq!(before(deadline, receiver).await, Some(Ok(7)));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_beyond_a_deadline_where_nothing_held_him_up() {
        let begun = Instant::now();
        let nothing = std::future::pending::<()>();
        assert_eq!(
            before(begun + Duration::from_millis(50), nothing).await,
            None
        );
        assert!(begun.elapsed() < BUSY);
        let passed = Instant::now();
        held_up(Duration::from_millis(1100));
        // And where something did, a moment only.
        let begun = Instant::now();
        assert_eq!(before(passed, std::future::pending::<()>()).await, None);
        assert!(begun.elapsed() < 2 * MOMENT);
    }
}
