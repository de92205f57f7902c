//! A long way to a server: a TCP proxy that holds every byte back for half of a round trip in each direction.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Starts a proxy in front of an endpoint `http://HOST:PORT`; returns its own. It ends with the process.
pub fn delayed(endpoint: &str, round_trip: Duration) -> String {
    let server = endpoint.strip_prefix("http://").expect("TCP").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            // A connection that fails is seen by its client.
            let _ = connect(client, &server, round_trip / 2);
        }
    });
    format!("http://{address}")
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
    let (sender, on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut chunk = vec![0; 64 << 10];
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
