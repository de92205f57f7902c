//! A TCP relay in front of a server, below HTTP/2: it can cut, be silent, refuse, or answer nonsense bytes.
//!
//! It knows nothing of gRPC; what loses single answers is `proxy`.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the relay does with connections, old and new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Passes bytes on.
    Relay,
    /// Accepts, reads, and never answers.
    Silent,
    /// Accepts and closes at once.
    Closed,
    /// Answers these bytes to whatever it gets, then closes.
    Nonsense(Vec<u8>),
}

/// A relay on a port of its own.
#[derive(Debug)]
pub struct Relay {
    address: String,
    wire: watch::Sender<Wire>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Relay {
    /// In front of `upstream` (`127.0.0.1:PORT`).
    pub fn new(upstream: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let (wire, state) = watch::channel(Wire::Relay);
        runtime.spawn(accept(listener, Arc::from(upstream), state));
        Self {
            address,
            wire,
            runtime: Some(runtime),
        }
    }

    /// `http://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what it does; every connection that exists is cut.
    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }

    /// Cuts every connection; new ones are relayed.
    pub fn cut(&self) {
        self.set(Wire::Relay);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, upstream: Arc<str>, state: watch::Receiver<Wire>) {
    while let Ok((client, _)) = listener.accept().await {
        let (upstream, mut state) = (Arc::clone(&upstream), state.clone());
        tokio::spawn(async move {
            let wire = state.borrow_and_update().clone();
            tokio::select! {
                () = serve(client, &upstream, wire) => {}
                _ = state.changed() => {}
            }
        });
    }
}

async fn serve(mut client: TcpStream, upstream: &str, wire: Wire) {
    match wire {
        Wire::Relay => {
            let Ok(mut server) = TcpStream::connect(upstream).await else {
                return;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            // Either side may vanish: that is what the relay is for.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        Wire::Silent => {
            let mut sink = [0; 4096];
            while matches!(client.read(&mut sink).await, Ok(1..)) {}
        }
        Wire::Closed => {}
        Wire::Nonsense(bytes) => {
            let mut sink = [0; 4096];
            let _ = client.read(&mut sink).await;
            let _ = client.write_all(&bytes).await;
            let _ = client.shutdown().await;
            while matches!(client.read(&mut sink).await, Ok(1..)) {}
        }
    }
}
