//! What `pagewire shell` needs: the VFS in the bundled SQLite, and a local store served in the same process if no endpoint is
//! given. The shell talks gRPC to it, over a unix socket that nobody else can reach.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use pagewire_local::LocalStore;
use pagewire_server::store::PageStore;
use pagewire_server::{Server, bind_unix};
use tokio::sync::oneshot;

use crate::shell::{ShellArgs, ShellEnvironment};

/// Prepares a shell.
pub fn prepare(args: &ShellArgs) -> anyhow::Result<ShellEnvironment> {
    register_vfs().context("the VFS can't be registered")?;
    let endpoint = args.endpoint.clone().or_else(|| {
        #[expect(
            clippy::disallowed_methods,
            reason = "only asks whether the VFS will find it there"
        )]
        std::env::var("PAGEWIRE_ENDPOINT")
            .ok()
            .filter(|endpoint| !endpoint.is_empty())
    });
    if endpoint.is_some() {
        return Ok(ShellEnvironment {
            vfs: "pagewire".to_owned(),
            endpoint,
            guard: None,
        });
    }
    let server = EmbeddedServer::start(&args.store)?;
    Ok(ShellEnvironment {
        vfs: "pagewire".to_owned(),
        endpoint: Some(server.endpoint.clone()),
        guard: Some(Box::new(server)),
    })
}

/// Makes the VFS known to the bundled SQLite.
#[expect(
    unsafe_code,
    reason = "SQLite calls an extension through a C function pointer"
)]
pub fn register_vfs() -> rusqlite::Result<()> {
    // SAFETY: the two signatures differ only in the Rust names of SQLite's opaque types.
    let init: rusqlite::auto_extension::RawAutoExtension =
        unsafe { std::mem::transmute(pagewire::AUTO_EXTENSION) };
    // SAFETY: the entry point is made for this.
    unsafe { rusqlite::auto_extension::register_auto_extension(init)? };
    // An automatic extension runs when a connection is opened.
    rusqlite::Connection::open_in_memory().map(drop)
}

/// A page server on threads of this process; stops when it is dropped.
struct EmbeddedServer {
    endpoint: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Where the socket lies; removed last.
    _directory: tempfile::TempDir,
}

impl EmbeddedServer {
    fn start(store: &std::path::Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("pagewire-").tempdir()?;
        let path = directory.path().join("socket");
        let opened = LocalStore::open(store);
        let opened = opened.with_context(|| format!("store local:{}", store.display()))?;
        let store: Arc<dyn PageStore> = Arc::new(opened);
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let socket = path.clone();
        let thread = std::thread::Builder::new()
            .name("pagewire-server".to_owned())
            .spawn(move || {
                let served = serve_until(store, &socket, &ready, stopped);
                if let Err(error) = served {
                    // Before the server was ready somebody waits for this; afterwards it ends the session streams.
                    let _ = ready.try_send(Err(error));
                }
            })?;
        started
            .recv()
            .map_err(|_| anyhow!("the server thread ended"))??;
        Ok(Self {
            endpoint: format!("unix:{}", path.display()),
            stop: Some(stop),
            thread: Some(thread),
            _directory: directory,
        })
    }
}

impl Drop for EmbeddedServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve_until(
    store: Arc<dyn PageStore>,
    socket: &std::path::Path,
    ready: &std::sync::mpsc::SyncSender<anyhow::Result<()>>,
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = bind_unix(socket).await?;
        let server = Server::builder(store).build().await?;
        let _ = ready.send(Ok(()));
        let shutdown = async {
            let _ = stopped.await;
        };
        server.serve_unix(listener, shutdown).await?;
        Ok(())
    })
}
