//! A long way to the server: a TCP proxy that holds every byte back for half a round trip in each direction.
//!
//! It has no limit of bandwidth, and what is on its way does not wait for what is behind it. Threads with blocking sockets, since
//! timers of an asynchronous runtime have the grain of a millisecond.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// Chunks that may be on their way: what is more waits in the sockets, as behind a router whose queue is full.
const CHUNKS_ON_THE_WAY: usize = 4096;

/// Starts a proxy in front of an endpoint `http://HOST:PORT`; returns its own. It ends with the process.
pub fn proxy(endpoint: &str, round_trip: Duration) -> anyhow::Result<String> {
    let Some(server) = endpoint.strip_prefix("http://").map(str::to_owned) else {
        bail!("a long way is measured over TCP");
    };
    let listener = TcpListener::bind("127.0.0.1:0").context("the delaying proxy can't listen")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            // A connection that fails is seen by its client.
            let _ = connect(client, &server, round_trip / 2);
        }
    });
    Ok(format!("http://{address}"))
}

fn connect(client: TcpStream, server: &str, one_way: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
    }
    carry(client.try_clone()?, server.try_clone()?, one_way);
    carry(server, client, one_way);
    Ok(())
}

/// Carries the bytes of one direction, in two threads.
fn carry(mut from: TcpStream, mut to: TcpStream, one_way: Duration) {
    let (sender, on_the_way) = mpsc::sync_channel::<(Instant, Vec<u8>)>(CHUNKS_ON_THE_WAY);
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            let due = Instant::now() + one_way;
            if sender.send((due, chunk[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        while let Ok((due, chunk)) = on_the_way.recv() {
            while let Some(rest) = due.checked_duration_since(Instant::now())
                && !rest.is_zero()
            {
                std::thread::park_timeout(rest);
            }
            if to.write_all(&chunk).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
