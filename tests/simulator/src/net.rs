//! The simulated network: connections that delay, hold back, break in the middle and keep quiet about it.
//!
//! What a process writes is a *piece*. Pieces of one direction of a connection arrive in order, as TCP has it; what is lost is
//! lost from some piece on. Messages of different streams of a connection arrive in another order too (`net/streams.rs`). Two connections know nothing of each other: a call that is held back on the old one can arrive behind
//! its repetition on the new one.

mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::counts::{Event, count};
use crate::machine::{self, ProcessId};
use crate::random::Random;
use streams::Streams;

/// Bytes under way and not read in one direction.
const WINDOW: usize = 4 << 20;
const LARGEST_PIECE: usize = 64 << 10;
/// A SYN is sent again after so long.
const SYN_AGAIN: u64 = 1_000_000_000;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// Back.
    Down,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];

    fn back(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// How a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Both sides are told soon.
    Told,
    /// Only the client is told; what it has sent still arrives, so much later. The answers are lost.
    ClientTold(u64),
    /// Only the server is told; the client waits for an answer until it loses patience.
    ServerTold,
    /// Nobody is told.
    Quiet,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    End,
    Reset,
}

#[derive(Debug, Default)]
struct Direction {
    /// With the moment of arrival, in order.
    under_way: VecDeque<(u64, Piece)>,
    /// What has arrived, on its way to the reader.
    streams: Streams,
    arrived: VecDeque<u8>,
    bytes: usize,
    last_at: u64,
    ended: bool,
    reset: bool,
    /// What is written goes nowhere.
    sinks: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    number: u64,
    client: ProcessId,
    server: ProcessId,
    link: LinkKey,
    ways: [Mutex<Direction>; 2],
    /// It was cut, which happens once.
    cut: AtomicBool,
    /// Whether anything of the client has arrived on a newer connection to the same node.
    is_overtaken: AtomicBool,
}

/// A client by its place, and a server by its node.
pub type LinkKey = (usize, usize);

#[derive(Clone, Copy, Debug)]
struct Link {
    delay: u64,
    jitter: u64,
    held: [bool; 2],
}

#[derive(Default)]
struct Node {
    server: Option<ProcessId>,
    /// A machine that is off says nothing at all; one that is on refuses.
    off: bool,
    waiting: VecDeque<Socket>,
    acceptor: Option<Waker>,
}

#[derive(Default)]
struct Net {
    random: Option<Random>,
    places: BTreeMap<ProcessId, usize>,
    nodes: BTreeMap<usize, Node>,
    links: BTreeMap<LinkKey, Link>,
    connections: BTreeMap<u64, Arc<Connection>>,
    so_far: u64,
    /// Of a hundred pieces, those that take a hundred times as long.
    slow_percent: u64,
    /// Of a hundred DATA frames, those that are held until others have passed them.
    reorder_percent: u64,
    longest_reordering: u64,
}

static NET: Mutex<Net> = Mutex::new(Net {
    random: None,
    places: BTreeMap::new(),
    nodes: BTreeMap::new(),
    links: BTreeMap::new(),
    connections: BTreeMap::new(),
    so_far: 0,
    slow_percent: 0,
    reorder_percent: 0,
    longest_reordering: 0,
});

impl Net {
    fn random(&mut self) -> &mut Random {
        self.random.get_or_insert_with(|| Random::new(0))
    }

    fn delay(&mut self, key: LinkKey) -> u64 {
        let slow_percent = self.slow_percent;
        let random = self.random();
        let (share, slow) = (random.below(1 << 20), random.percent(slow_percent));
        let link = self.link(key);
        let delay = link.delay + link.jitter * share / (1 << 20);
        if slow {
            count(Event::SlowPiece);
            delay * 100
        } else {
            delay
        }
    }

    /// Until when a DATA frame is held, if it is.
    fn reorders(&mut self) -> Option<u64> {
        let (percent, longest) = (self.reorder_percent, self.longest_reordering);
        if percent == 0 {
            return None;
        }
        let random = self.random();
        let is_held = random.percent(percent);
        let most = if random.percent(85) {
            longest / 10
        } else {
            longest
        };
        let until = machine::now() + random.below(most);
        is_held.then_some(until)
    }

    fn link(&mut self, key: LinkKey) -> &mut Link {
        if !self.links.contains_key(&key) {
            let random = self.random();
            let delay = random.between(20_000, 3_000_000);
            let jitter = random.below(2_000_000);
            let link = Link {
                delay,
                jitter,
                held: [false; 2],
            };
            self.links.insert(key, link);
        }
        self.links.entry(key).or_insert(Link {
            delay: 0,
            jitter: 0,
            held: [false; 2],
        })
    }
}

/// Before anything else.
pub fn begin(random: Random) {
    NET.lock().random = Some(random);
}

/// How long a piece takes about.
pub fn one_way(key: LinkKey) -> u64 {
    NET.lock().link(key).delay
}

/// How often a piece is slow.
pub fn set_slow_percent(percent: u64) {
    NET.lock().slow_percent = percent;
}

/// How often a part of a message is held until others have passed it, and for how long at most.
pub fn set_reordering(percent: u64, longest: u64) {
    let mut net = NET.lock();
    net.reorder_percent = percent;
    net.longest_reordering = longest;
}

/// A client process is at this place.
pub fn client_starts(process: ProcessId, place: usize) {
    NET.lock().places.insert(process, place);
}

/// A server process serves this node.
pub fn server_starts(process: ProcessId, node: usize) {
    // A socket that is dropped closes, which takes the lock.
    let mut unheard = VecDeque::new();
    let old: Vec<_> = {
        let mut net = NET.lock();
        let node = net.nodes.entry(node).or_default();
        let before = node.server.replace(process);
        node.off = false;
        unheard.append(&mut node.waiting);
        let all = net.connections.values();
        all.filter(|connection| Some(connection.server) == before)
            .cloned()
            .collect()
    };
    drop(unheard);
    // The kernel knows nothing of them.
    for connection in old {
        connection.finish(Way::Down, Piece::Reset);
    }
}

/// The process is gone. Where the machine is gone with it nobody is told.
pub fn process_ends(process: ProcessId, machine_too: bool) {
    // As above.
    let mut unheard = VecDeque::new();
    let ended: Vec<_> = {
        let mut net = NET.lock();
        for node in net.nodes.values_mut() {
            if node.server == Some(process) {
                node.off = machine_too;
                unheard.append(&mut node.waiting);
                node.acceptor = None;
            }
        }
        let all = net.connections.values();
        let its = |connection: &&Arc<Connection>| {
            [connection.client, connection.server].contains(&process)
        };
        all.filter(its).cloned().collect()
    };
    drop(unheard);
    for connection in ended {
        let from = if connection.client == process {
            Way::Up
        } else {
            Way::Down
        };
        connection.way(from.back()).lock().sinks = true;
        if !machine_too {
            connection.finish(from, Piece::Reset);
        }
    }
}

/// Breaks all connections between them.
pub fn cut(key: LinkKey, how: Break) {
    let all: Vec<_> = {
        let net = NET.lock();
        let all = net.connections.values();
        all.filter(|connection| connection.link == key)
            .cloned()
            .collect()
    };
    for connection in all {
        connection.cut(how);
    }
}

/// Holds back everything in one way, connecting included, or lets it go.
pub fn hold(key: LinkKey, way: Way, held: bool) {
    let all: Vec<_> = {
        let mut net = NET.lock();
        net.link(key).held[way as usize] = held;
        let all = net.connections.values();
        all.filter(|connection| connection.link == key)
            .cloned()
            .collect()
    };
    if !held {
        for connection in all {
            connection.pump_at(way, machine::now());
        }
    }
}

/// Everything is let go, and nothing is slow any more.
pub fn calm() {
    let keys: Vec<_> = NET.lock().links.keys().copied().collect();
    for key in keys {
        for way in Way::BOTH {
            hold(key, way, false);
        }
    }
    set_slow_percent(0);
    set_reordering(0, 0);
}

impl Connection {
    fn way(&self, way: Way) -> &Mutex<Direction> {
        &self.ways[way as usize]
    }

    fn send(self: &Arc<Self>, way: Way, piece: Piece, later: u64) {
        let delay = NET.lock().delay(self.link) + later;
        let at = {
            let mut direction = self.way(way).lock();
            let at = direction.last_at.max(machine::now() + delay);
            direction.last_at = at;
            direction.under_way.push_back((at, piece));
            at
        };
        self.pump_at(way, at);
    }

    /// The last that arrives.
    fn finish(self: &Arc<Self>, way: Way, last: Piece) {
        self.send(way, last, 0);
        self.way(way).lock().sinks = true;
    }

    fn pump_at(self: &Arc<Self>, way: Way, at: u64) {
        let connection = Arc::clone(self);
        machine::at(at, move || connection.pump(way));
    }

    /// Lets arrive what is due.
    fn pump(self: &Arc<Self>, way: Way) {
        let held = NET.lock().link(self.link).held[way as usize];
        if held {
            return;
        }
        let now = machine::now();
        if way == Way::Up {
            self.overtake();
        }
        let mut again = Vec::new();
        let wakers = {
            let mut direction = self.way(way).lock();
            let let_go = direction.streams.let_go(now);
            direction.arrived.extend(let_go);
            while let Some((at, _)) = direction.under_way.front()
                && *at <= now
            {
                match direction.under_way.pop_front() {
                    Some((_, Piece::Bytes(bytes))) => {
                        machine::trace(format_args!(
                            "c{} {way:?} {} bytes",
                            self.number,
                            bytes.len()
                        ));
                        if way == Way::Up && self.is_overtaken.load(Ordering::SeqCst) {
                            count(Event::LateMessage);
                        }
                        let taken = direction.streams.take(&bytes, || NET.lock().reorders());
                        for _ in 0..taken.passed {
                            count(Event::Reordered);
                        }
                        direction.arrived.extend(taken.bytes);
                        again.extend(taken.held_until);
                    }
                    Some((_, Piece::End)) => {
                        let rest = direction.streams.end();
                        direction.arrived.extend(rest);
                        direction.ended = true;
                    }
                    Some((_, Piece::Reset)) => {
                        machine::trace(format_args!("c{} {way:?} reset", self.number));
                        direction.reset = true;
                    }
                    None => {}
                }
            }
            [direction.reader.take(), direction.writer.take()]
        };
        let other = self
            .way(way)
            .lock()
            .reset
            .then(|| self.way(way.back()).lock().writer.take());
        for at in again {
            self.pump_at(way, at);
        }
        for waker in wakers.into_iter().chain(other).flatten() {
            waker.wake();
        }
    }

    /// What is due arrives before whatever is still under way on older connections of the same client that were cut.
    fn overtake(&self) {
        let is_due = |direction: &Direction| {
            let first = direction.under_way.front();
            first.is_some_and(|(at, _)| *at <= machine::now())
        };
        if !is_due(&self.way(Way::Up).lock()) {
            return;
        }
        let net = NET.lock();
        for (_, other) in net.connections.range(..self.number) {
            if other.client == self.client
                && other.link == self.link
                && other.cut.load(Ordering::SeqCst)
            {
                other.is_overtaken.store(true, Ordering::SeqCst);
            }
        }
    }

    fn cut(self: &Arc<Self>, how: Break) {
        if self.cut.swap(true, Ordering::SeqCst) {
            return;
        }
        // What is under way is lost from some piece on.
        for way in Way::BOTH {
            let is_kept = matches!((how, way), (Break::ClientTold(_), Way::Up));
            let mut direction = self.way(way).lock();
            let most = direction.under_way.len() as u64;
            let kept = NET.lock().random().below(most + 1);
            if !is_kept {
                direction
                    .under_way
                    .truncate(usize::try_from(kept).unwrap_or(0));
                direction.sinks = true;
            }
        }
        machine::trace(format_args!("c{} cut {how:?}", self.number));
        count(match how {
            Break::Told => Event::CutTold,
            Break::ClientTold(_) => Event::CutClientTold,
            Break::ServerTold => Event::CutServerTold,
            Break::Quiet => Event::CutQuiet,
        });
        match how {
            Break::Told => {
                self.finish(Way::Up, Piece::Reset);
                self.finish(Way::Down, Piece::Reset);
            }
            Break::ClientTold(later) => {
                {
                    let mut up = self.way(Way::Up).lock();
                    for (at, _) in &mut up.under_way {
                        *at += later;
                    }
                    up.last_at += later;
                }
                let pumps: Vec<_> = self
                    .way(Way::Up)
                    .lock()
                    .under_way
                    .iter()
                    .map(|(at, _)| *at)
                    .collect();
                for at in pumps {
                    self.pump_at(Way::Up, at);
                }
                self.send(Way::Up, Piece::Reset, later);
                self.way(Way::Up).lock().sinks = true;
                self.finish(Way::Down, Piece::Reset);
            }
            Break::ServerTold => self.finish(Way::Up, Piece::Reset),
            Break::Quiet => {}
        }
    }
}

/// One side of a connection.
#[derive(Debug)]
pub struct Socket {
    connection: Arc<Connection>,
    /// In which it writes.
    out: Way,
}

/// The client process connects to a node.
pub async fn connect(node: usize) -> io::Result<Socket> {
    let client = machine::process();
    let (done, connected) = oneshot::channel();
    let delay = {
        let mut net = NET.lock();
        let place = net.places.get(&client).copied().unwrap_or(usize::MAX);
        net.delay((place, node))
    };
    machine::at(machine::now() + delay, move || syn(client, node, done));
    connected
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn syn(client: ProcessId, node: usize, done: oneshot::Sender<io::Result<Socket>>) {
    if done.is_closed() || !machine::is_alive(client) {
        return;
    }
    enum Answer {
        Lost,
        Refused,
        Accepted(Arc<Connection>),
    }
    let (answer, acceptor, delay) = {
        let mut net = NET.lock();
        let place = net.places.get(&client).copied().unwrap_or(usize::MAX);
        let key = (place, node);
        let lost = net.link(key).held.contains(&true);
        let delay = net.delay(key);
        let number = net.so_far + 1;
        let there = net.nodes.entry(node).or_default();
        let (answer, acceptor) = match there.server {
            _ if lost || there.off => (Answer::Lost, None),
            Some(server) if machine::is_alive(server) => {
                let connection = Arc::new(Connection {
                    number,
                    client,
                    server,
                    link: key,
                    ways: Default::default(),
                    cut: AtomicBool::new(false),
                    is_overtaken: AtomicBool::new(false),
                });
                there.waiting.push_back(Socket {
                    connection: Arc::clone(&connection),
                    out: Way::Down,
                });
                (Answer::Accepted(connection), there.acceptor.take())
            }
            _ => (Answer::Refused, None),
        };
        if let Answer::Accepted(connection) = &answer {
            net.so_far = number;
            net.connections.insert(number, Arc::clone(connection));
        }
        (answer, acceptor, delay)
    };
    if let Some(acceptor) = acceptor {
        acceptor.wake();
    }
    let now = machine::now();
    match answer {
        Answer::Lost => count(Event::SynLost),
        Answer::Refused => count(Event::SynRefused),
        Answer::Accepted(_) => {}
    }
    match answer {
        Answer::Lost => machine::at(now + SYN_AGAIN, move || syn(client, node, done)),
        Answer::Refused => machine::at(now + delay, move || {
            let _ = done.send(Err(io::ErrorKind::ConnectionRefused.into()));
        }),
        Answer::Accepted(connection) => machine::at(now + delay, move || {
            let socket = Socket {
                connection,
                out: Way::Up,
            };
            // Of a client that has gone meanwhile it is dropped, which closes it.
            let _ = done.send(Ok(socket));
        }),
    }
}

/// The next connection to a node.
pub async fn accept(node: usize) -> Socket {
    std::future::poll_fn(|context| {
        let mut net = NET.lock();
        let node = net.nodes.entry(node).or_default();
        match node.waiting.pop_front() {
            Some(socket) => Poll::Ready(socket),
            None => {
                node.acceptor = Some(context.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let writer = {
            let mut direction = self.connection.way(self.out.back()).lock();
            if direction.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let count = buffer.remaining().min(direction.arrived.len());
            if count == 0 && !direction.ended && buffer.remaining() > 0 {
                direction.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            let (front, rest) = direction.arrived.as_slices();
            let from_front = front.len().min(count);
            buffer.put_slice(&front[..from_front]);
            buffer.put_slice(&rest[..count - from_front]);
            direction.arrived.drain(..count);
            direction.bytes -= count;
            direction.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.connection.way(self.out.back()).lock().reset {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = {
            let mut direction = self.connection.way(self.out).lock();
            if direction.sinks {
                return Poll::Ready(Ok(bytes.len()));
            }
            let count = bytes
                .len()
                .min(LARGEST_PIECE)
                .min(WINDOW.saturating_sub(direction.bytes));
            if count == 0 {
                direction.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            direction.bytes += count;
            count
        };
        self.connection
            .send(self.out, Piece::Bytes(bytes[..count].to_vec()), 0);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.connection.way(self.out).lock().sinks {
            self.connection.finish(self.out, Piece::End);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.connection.way(self.out).lock().sinks {
            self.connection.finish(self.out, Piece::End);
        }
        // Nobody reads here any more: the other side finds out when it writes.
        let mut back = self.connection.way(self.out.back()).lock();
        back.sinks = true;
        back.bytes = 0;
        let writer = back.writer.take();
        drop(back);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
