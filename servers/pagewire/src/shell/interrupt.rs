//! Ctrl-C: it interrupts the running statement; the third one in a row ends the process.
//!
//! At the prompt the line editor handles Ctrl-C itself and nothing here runs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rusqlite::InterruptHandle;

/// How many Ctrl-C in a row mean that the user wants out.
const ENOUGH: u32 = 3;

/// Shared by the shell and the thread that waits for signals.
#[derive(Default)]
pub(super) struct Interrupts {
    seen: AtomicU32,
    running: Mutex<Option<InterruptHandle>>,
}

impl Interrupts {
    /// Starts to listen for Ctrl-C. With a line editor, call it after the editor was made: the
    /// editor replaces the handler that it finds, this one calls it as well.
    pub(super) fn listen(self: &Arc<Self>) -> anyhow::Result<()> {
        let shared = Arc::clone(self);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime that waits for Ctrl-C")?;
        // Installed before the thread starts: from here on Ctrl-C does not end the process.
        let mut signals = {
            let _inside = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
                .context("cannot listen for Ctrl-C")?
        };
        std::thread::Builder::new()
            .name("shell-interrupt".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    while signals.recv().await.is_some() {
                        shared.on_interrupt();
                    }
                });
            })
            .context("cannot start the thread that waits for Ctrl-C")?;
        Ok(())
    }

    /// Names the connection whose statement a Ctrl-C interrupts.
    pub(super) fn watch(&self, handle: Option<InterruptHandle>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    }

    /// Whether Ctrl-C came since the last call.
    pub(super) fn take(&self) -> bool {
        self.seen.swap(0, Ordering::Relaxed) > 0
    }

    /// Whether Ctrl-C came since the last [`Interrupts::take`].
    pub(super) fn is_set(&self) -> bool {
        self.seen.load(Ordering::Relaxed) > 0
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a statement that ignores two interrupts is stuck; main cannot be reached"
    )]
    fn on_interrupt(&self) {
        if self.seen.fetch_add(1, Ordering::Relaxed) + 1 >= ENOUGH {
            std::process::exit(1);
        }
        if let Some(handle) = &*self.running.lock().unwrap_or_else(PoisonError::into_inner) {
            handle.interrupt();
        }
    }
}
