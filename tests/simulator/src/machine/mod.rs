//! The simulated machines: threads that run one at a time, processes with clocks of their own, and time that moves when nobody
//! can run.
//!
//! Everything runs as it was compiled: SQLite, the VFS with its threads and its tokio, hyper, the server. Below it this program
//! stands in for the operating system ([`symbols`]): what waits (a futex, `epoll_wait`, a sleep) gives the *baton* back, and the
//! scheduler gives it to one of those who can go on, chosen by the seed. When nobody can, the clock jumps to the next event.
//!
//! ```text
//!             chosen                      waits                      woken, or its time is up
//!   Ready ------------> has the baton -------------> Waiting{what} ---------------------------> Ready
//!                            | ends                                  process killed: never again
//!                            v
//!                          Over
//! ```
//! * **M1** One thread runs at any moment: the scheduler's, or the one that it gave the baton. So what follows depends on the seed alone.
//! * **M2** Only what waits is interrupted. A process is killed by never giving the baton to its threads again: no destructor
//!   runs, no goodbye is said; its memory is lost when this operating-system process ends, which simulates one seed.
//! * **M3** Time does not pass while somebody runs, but for a microsecond or two for each turn, so that nobody polls for ever.

mod child;
pub mod disk;
mod fiber;
mod heap;
mod real;
mod symbols;

use std::cell::{Cell, UnsafeCell};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use libc::{epoll_event, pthread_attr_t, pthread_t};

pub use child::{Child, fork, same_addresses_every_time, set_environment};

use crate::random::Random;
use real::Routine;

/// Turns after which a simulation counts as one that never ends.
const MOST_TURNS: u64 = 20_000_000;

/// Number of a simulated process. 0 is the scheduler's own.
pub type ProcessId = usize;

/// Which clock is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Stands still while the machine is suspended.
    Monotonic,
    /// Does not.
    Boot,
    /// Is set by people.
    Wall,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    Futex(usize),
    /// With the number under which it is looked at.
    Epoll(u64),
    Time,
    EndOf(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Waiting(Waiting, Option<u64>),
    Over,
}

struct Thread {
    number: usize,
    process: ProcessId,
    /// The baton.
    go: AtomicU32,
    state: Cell<State>,
    /// Whether the last wait ended because its time was up.
    timed_out: Cell<bool>,
    handle: Cell<Option<pthread_t>>,
    /// Of the operating system (gettid(2)).
    id: Cell<libc::pid_t>,
    /// Where it goes on, with fibers.
    context: fiber::Context,
    /// 1 when the thread of the operating system has gone to sleep.
    sleeps: AtomicU32,
    routine: Cell<Option<(Routine, *mut c_void)>>,
    answer: Cell<*mut c_void>,
    /// Its body has returned; the thread of the operating system has to do the rest.
    leaves: Cell<bool>,
}

/// The clocks of a process; moments are nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    monotonic: i128,
    boot_ahead: i128,
    wall: i128,
    /// How much faster than time they go, in millionths.
    drift_ppm: i128,
}

struct Process {
    clocks: Clocks,
    dead: bool,
    stopped_until: u64,
    /// For how long nobody ran.
    stopped: u64,
}

type Event = Box<dyn FnOnce() + Send>;

struct Machine {
    now: u64,
    turns: u64,
    schedule: Random,
    entropy: Random,
    threads: Vec<&'static Thread>,
    processes: Vec<Process>,
    events: BTreeMap<(u64, u64), Event>,
    events_so_far: u64,
    /// What happens behind so many turns.
    at_turn: Option<(u64, Event)>,
    /// All epoll descriptors that threads wait for.
    epolls: c_int,
    epolls_so_far: u64,
    known_epolls: BTreeMap<c_int, u64>,
    trace: u64,
    tells: bool,
    spawn_for: Option<ProcessId>,
    over: Option<String>,
}

/// Reached only by whoever has the baton (M1).
struct Place(UnsafeCell<Option<Machine>>);

/// Where the scheduler goes on.
struct SharedContext(fiber::Context);

// SAFETY: M1.
unsafe impl Sync for Place {}
// SAFETY: M1.
unsafe impl Sync for SharedContext {}
// SAFETY: M1: a thread is touched by the one that has the baton; `go` is an atomic.
unsafe impl Sync for Thread {}

static MACHINE: Place = Place(UnsafeCell::new(None));
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Where the wall clocks of simulations begin.
const FIRST_WALL_NS: u64 = 1_790_000_000_000_000_000;
/// What the wall clock shows before the simulation: see [`stop_wall_clock`].
static WALL_BEFORE: AtomicU64 = AtomicU64::new(0);
/// The baton of the scheduler.
static SCHEDULER: AtomicU32 = AtomicU32::new(0);
/// Whether threads are switched without the kernel.
static FIBERS: AtomicBool = AtomicBool::new(false);
static SCHEDULER_CONTEXT: SharedContext = SharedContext(fiber::Context::new());
static END_KEY: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static CURRENT: Cell<Option<&'static Thread>> = const { Cell::new(None) };
}

/// How a simulation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// `None` if it was stopped, what went wrong otherwise.
    pub problem: Option<String>,
    /// Turns taken.
    pub turns: u64,
    /// Simulated nanoseconds.
    pub ns: u64,
    /// A hash of everything that happened.
    pub trace: u64,
}

/// The machine, for the duration of `body`, in which nothing may wait, allocate hash maps or call back.
fn with<T>(body: impl FnOnce(&mut Machine) -> T) -> T {
    // SAFETY: M1, and `body` does not come here again.
    let machine = unsafe { &mut *MACHINE.0.get() };
    match machine {
        Some(machine) => body(machine),
        None => unreachable!("only while a simulation runs"),
    }
}

/// Until the simulation begins the wall clock (clock_gettime) of this process stands still, at a time that the seed decides.
///
/// A library may take randomness from it, and keep that for the whole process: what hashes the keys of the caches (foldhash) does, which decides in
/// which shard a page is, so which of them makes room, and where memory is allocated; and by addresses parking_lot decides who is next.
pub fn stop_wall_clock(seed: u64) {
    WALL_BEFORE.store(FIRST_WALL_NS + seed % 1_000_000_000, Ordering::SeqCst);
}

fn wall_before() -> Option<u64> {
    Some(WALL_BEFORE.load(Ordering::SeqCst)).filter(|ns| *ns > 0)
}

fn is_active() -> bool {
    ACTIVE.load(Ordering::Relaxed)
}

fn current() -> Option<&'static Thread> {
    CURRENT.try_with(Cell::get).ok().flatten()
}

fn is_simulated_thread() -> bool {
    is_active() && current().is_some()
}

/// The process of the calling thread.
pub fn process() -> ProcessId {
    current().map_or(0, |thread| thread.process)
}

/// Simulated nanoseconds since the beginning, which no clock shows.
pub fn now() -> u64 {
    with(|machine| machine.now)
}

/// Adds to the hash of what happened, and tells it to those who want to read it.
pub fn trace(what: std::fmt::Arguments<'_>) {
    let text = disk::without_room(what.to_string());
    let process = process();
    with(|machine| {
        machine.mix(machine.now);
        for byte in text.bytes() {
            machine.mix(u64::from(byte));
        }
        if machine.tells {
            eprintln!("{:>14.6} p{process} {text}", machine.now as f64 / 1e9);
        }
    });
}

/// Ends the simulation; the first who says why is heard.
pub fn stop(problem: Option<String>) {
    with(|machine| {
        machine.over.get_or_insert(problem.unwrap_or_default());
    });
}

/// Something that the scheduler does at a moment of simulated time.
pub fn at(moment: u64, event: impl FnOnce() + Send + 'static) {
    let event: Event = Box::new(event);
    with(|machine| {
        machine.events_so_far += 1;
        let key = (moment.max(machine.now), machine.events_so_far);
        machine.events.insert(key, event);
    });
}

/// Something that the scheduler does behind so many turns; one thing.
pub fn at_turn(turn: u64, event: impl FnOnce() + Send + 'static) {
    let event: Event = Box::new(event);
    with(|machine| machine.at_turn = Some((turn, event)));
}

/// A process whose clocks show what they like and go faster by so many millionths.
pub fn new_process(random: &mut Random, drift_ppm: i64) -> ProcessId {
    let clocks = Clocks {
        monotonic: i128::from(random.below(1 << 50)) + (1 << 40),
        boot_ahead: i128::from(random.below(1 << 40)),
        wall: i128::from(FIRST_WALL_NS) + i128::from(random.below(7_200_000_000_000))
            - 3_600_000_000_000,
        drift_ppm: i128::from(drift_ppm),
    };
    with(|machine| {
        machine.processes.push(Process {
            clocks,
            dead: false,
            stopped_until: 0,
            stopped: 0,
        });
        machine.processes.len() - 1
    })
}

/// M2.
pub fn kill(process: ProcessId) {
    with(|machine| machine.processes[process].dead = true);
}

/// Whether it was not killed.
pub fn is_alive(process: ProcessId) -> bool {
    with(|machine| !machine.processes[process].dead)
}

/// Nobody in the process runs for a while. In a machine that sleeps `CLOCK_MONOTONIC` stands still too.
pub fn stop_for(process: ProcessId, ns: u64, machine_sleeps: bool) {
    with(|machine| {
        let until = machine.now + ns;
        let process = &mut machine.processes[process];
        // Who is stopped already is stopped for the rest only; a clock that stood still for all of it would go back.
        let more = until.saturating_sub(process.stopped_until.max(machine.now));
        process.stopped += more;
        process.stopped_until = process.stopped_until.max(until);
        if machine_sleeps {
            // As much as it would have gone by its drift, less what rounding may take: it stands, and never goes back.
            let more = i128::from(more);
            let gone = (more + more * process.clocks.drift_ppm / 1_000_000 - 2).max(0);
            process.clocks.monotonic -= gone;
            process.clocks.boot_ahead += gone;
        }
    });
}

/// For how long nobody in the calling thread's process ran.
pub fn stopped_ns() -> u64 {
    let process = process();
    with(|machine| machine.processes[process].stopped)
}

/// Remembers the longest of all; answers it.
pub fn longest(ns: u64) -> u64 {
    static LONGEST: AtomicU64 = AtomicU64::new(0);
    LONGEST.fetch_max(ns, Ordering::SeqCst).max(ns)
}

/// Somebody sets the wall clock.
pub fn turn_wall_clock(process: ProcessId, by_ns: i64) {
    with(|machine| machine.processes[process].clocks.wall += i128::from(by_ns));
}

/// Starts a thread in a process.
pub fn spawn(process: ProcessId, name: &str, body: impl FnOnce() + Send + 'static) {
    with(|machine| machine.spawn_for = Some(process));
    let name = name.to_owned();
    let started = std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
                let what = panic.downcast_ref::<String>().map(String::as_str);
                let what = what.or_else(|| panic.downcast_ref::<&str>().copied());
                stop(Some(format!("{name} panicked: {}", what.unwrap_or("?"))));
            }
        });
    with(|machine| machine.spawn_for = None);
    if let Err(error) = started {
        stop(Some(format!("no thread: {error}")));
    }
}

/// The calling thread sleeps; on the scheduler's nothing happens.
pub fn sleep_ns(ns: u64) {
    if is_simulated_thread() {
        let until = after(ns);
        wait(Waiting::Time, Some(until));
    }
}

/// Runs a simulation to its end on this thread: everything that `begin` starts.
pub fn run(seed: u64, tells: bool, fibers: bool, begin: impl FnOnce()) -> Ended {
    let mut key: libc::pthread_key_t = 0;
    // SAFETY: the destructor is a function of this program.
    let failed = unsafe { libc::pthread_key_create(&raw mut key, Some(ended)) } != 0;
    // SAFETY: no arguments that could be wrong.
    let epolls = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(
        !failed && epolls >= 0,
        "the operating system is short of something"
    );
    END_KEY.store(key, Ordering::SeqCst);
    let mut random = Random::new(seed);
    let mut machine = Machine {
        now: 1,
        turns: 0,
        schedule: random.fork(),
        entropy: random.fork(),
        threads: Vec::new(),
        processes: Vec::new(),
        events: BTreeMap::new(),
        events_so_far: 0,
        at_turn: None,
        epolls,
        epolls_so_far: 0,
        known_epolls: BTreeMap::new(),
        trace: seed,
        tells,
        spawn_for: None,
        over: None,
    };
    // The scheduler's own, whose clocks nobody may rely on.
    machine.processes.push(Process {
        clocks: Clocks {
            monotonic: 1 << 40,
            boot_ahead: 0,
            wall: i128::from(FIRST_WALL_NS),
            drift_ppm: 0,
        },
        dead: false,
        stopped_until: 0,
        stopped: 0,
    });
    // SAFETY: there is one thread, and nobody is in `with`.
    unsafe { *MACHINE.0.get() = Some(machine) };
    FIBERS.store(fibers && fiber::can(), Ordering::SeqCst);
    fiber::note_thread_pointer(&SCHEDULER_CONTEXT.0);
    ACTIVE.store(true, Ordering::SeqCst);
    let mut proof = [[0_u8; 16]; 2];
    let before = with(|machine| machine.entropy.clone());
    for bytes in &mut proof {
        with(|machine| machine.entropy = before.clone());
        // It finds the function in another way than the standard library does.
        assert!(getrandom::fill(bytes).is_ok());
    }
    assert_eq!(proof[0], proof[1], "randomness does not come from the seed");
    begin();
    while with(|machine| machine.over.is_none()) {
        turn();
    }
    with(|machine| Ended {
        problem: machine.over.take().filter(|problem| !problem.is_empty()),
        turns: machine.turns,
        ns: machine.now,
        trace: machine.trace,
    })
}

/// One event, or one turn of a thread.
fn turn() {
    if let Some(event) = with(Machine::due_event) {
        event();
        return;
    }
    let Some(thread) = with(Machine::choose) else {
        return with(Machine::let_time_pass);
    };
    SCHEDULER.store(0, Ordering::SeqCst);
    if FIBERS.load(Ordering::Relaxed) {
        // SAFETY: it was prepared by `begin`, or it has come here by `give_back`; only one runs (M1).
        unsafe { fiber::switch(&SCHEDULER_CONTEXT.0, &thread.context) };
        if !thread.leaves.get() {
            return;
        }
    }
    thread.go.store(1, Ordering::SeqCst);
    real::futex_wake(&thread.go);
    while SCHEDULER.load(Ordering::SeqCst) == 0 {
        real::futex_wait(&SCHEDULER, 0);
    }
    if thread.state.get() == State::Over {
        wait_until_it_is_gone(thread.id.get());
    }
}

/// What a thread of the operating system has it frees until its very end, beside whoever runs by then: where memory is allocated after that
/// would hang on who is faster.
fn wait_until_it_is_gone(id: libc::pid_t) {
    // SAFETY: no pointers, and no signal: it only asks.
    while unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, 0) } == 0 {
        std::thread::yield_now();
    }
}

impl Machine {
    fn mix(&mut self, value: u64) {
        self.trace = (self.trace.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn due_event(&mut self) -> Option<Event> {
        let turns = self.turns;
        if let Some((_, event)) = self.at_turn.take_if(|(turn, _)| *turn <= turns) {
            return Some(event);
        }
        let first = self.events.first_entry()?;
        (first.key().0 <= self.now).then(|| first.remove())
    }

    fn runs(&self, thread: &Thread) -> bool {
        let process = &self.processes[thread.process];
        !process.dead && process.stopped_until <= self.now
    }

    fn choose(&mut self) -> Option<&'static Thread> {
        self.look_at_epolls();
        let can =
            |thread: &&&'static Thread| thread.state.get() == State::Ready && self.runs(thread);
        let count = self.threads.iter().filter(can).count();
        if count == 0 {
            return None;
        }
        let mut schedule = self.schedule.clone();
        let choice = usize::try_from(schedule.below(count as u64)).unwrap_or(0);
        let thread = *self.threads.iter().filter(can).nth(choice)?;
        self.schedule = schedule;
        self.turns += 1;
        self.now += 1_000 + self.schedule.below(2_000);
        let (now, number) = (self.now, thread.number as u64);
        self.mix(now);
        self.mix(number);
        if self.turns > MOST_TURNS {
            self.over
                .get_or_insert(format!("no end after {MOST_TURNS} turns"));
        }
        Some(thread)
    }

    /// Those whose descriptors have something are ready.
    fn look_at_epolls(&mut self) {
        let mut events = [epoll_event { events: 0, u64: 0 }; 64];
        // SAFETY: the room is as large as said.
        let found = unsafe { real::epoll_wait(self.epolls, events.as_mut_ptr(), 64, 0) };
        for event in events.iter().take(usize::try_from(found).unwrap_or(0)) {
            let epoll = event.u64;
            for thread in &self.threads {
                if matches!(thread.state.get(), State::Waiting(Waiting::Epoll(mine), _) if mine == epoll)
                {
                    thread.timed_out.set(false);
                    thread.state.set(State::Ready);
                }
            }
        }
    }

    fn let_time_pass(&mut self) {
        let mut next = self.events.first_key_value().map(|((at, _), _)| *at);
        for thread in &self.threads {
            let process = &self.processes[thread.process];
            if process.dead {
                continue;
            }
            let wakes = match thread.state.get() {
                State::Ready => Some(0),
                State::Waiting(_, until) => until,
                State::Over => None,
            };
            if let Some(wakes) = wakes.map(|wakes| wakes.max(process.stopped_until)) {
                next = Some(next.map_or(wakes, |next| next.min(wakes)));
            }
        }
        let Some(next) = next else {
            self.over
                .get_or_insert("everybody waits, and nothing will happen".to_owned());
            return;
        };
        self.now = self.now.max(next);
        for thread in &self.threads {
            if let State::Waiting(_, Some(until)) = thread.state.get()
                && until <= self.now
            {
                thread.timed_out.set(true);
                thread.state.set(State::Ready);
            }
        }
    }
}

/// What a clock of the calling thread's process shows.
fn clock(clock: Clock) -> u64 {
    let process = process();
    let ns = with(|machine| {
        let clocks = machine.processes[process].clocks;
        let now = i128::from(machine.now);
        let gone = now + now * clocks.drift_ppm / 1_000_000;
        match clock {
            Clock::Monotonic => clocks.monotonic + gone,
            Clock::Boot => clocks.monotonic + clocks.boot_ahead + gone,
            Clock::Wall => clocks.wall + gone,
        }
    });
    u64::try_from(ns).unwrap_or(0)
}

/// When so much has passed on the clocks of the calling thread's process.
fn after(ns: u64) -> u64 {
    let process = process();
    with(|machine| {
        let drift = machine.processes[process].clocks.drift_ppm;
        let real = i128::from(ns) * 1_000_000 / (1_000_000 + drift) + 2;
        machine
            .now
            .saturating_add(u64::try_from(real).unwrap_or(u64::MAX))
    })
}

fn fill_random(room: &mut [u8]) {
    with(|machine| {
        for byte in room {
            *byte = machine.entropy.next() as u8;
        }
    });
}

/// The calling thread gives the baton back until what it waits for has come (true) or its time is up.
fn wait(what: Waiting, until: Option<u64>) -> bool {
    let Some(thread) = current() else { return true };
    thread.state.set(State::Waiting(what, until));
    if FIBERS.load(Ordering::Relaxed) {
        // SAFETY: the scheduler has come here by `turn`.
        unsafe { fiber::switch(&thread.context, &SCHEDULER_CONTEXT.0) };
    } else {
        give_back();
        thread.take_baton();
    }
    !thread.timed_out.get()
}

fn wait_for_epoll(epoll: c_int, until: Option<u64>) {
    wait(Waiting::Epoll(register(epoll)), until);
}

/// The number under which a descriptor is among those that are looked at.
///
/// Descriptors are used again, and a closed one stays registered as long as somebody has a copy of it: so each has a number of its own.
fn register(epoll: c_int) -> u64 {
    with(|machine| {
        let number = machine.epolls_so_far + 1;
        let mut event = epoll_event {
            events: libc::EPOLLIN as u32,
            u64: number,
        };
        // SAFETY: both are descriptors of this process.
        let added =
            unsafe { libc::epoll_ctl(machine.epolls, libc::EPOLL_CTL_ADD, epoll, &raw mut event) }
                == 0;
        if added {
            machine.epolls_so_far = number;
            machine.known_epolls.insert(epoll, number);
        }
        machine.known_epolls.get(&epoll).copied().unwrap_or(0)
    })
}

fn give_back() {
    SCHEDULER.store(1, Ordering::SeqCst);
    real::futex_wake(&SCHEDULER);
}

impl Thread {
    fn take_baton(&self) {
        while self.go.swap(0, Ordering::SeqCst) == 0 {
            real::futex_wait(&self.go, 0);
        }
    }
}

fn wake_futex(address: usize, most: usize) -> usize {
    with(|machine| {
        let waits = |thread: &&&Thread| matches!(thread.state.get(), State::Waiting(Waiting::Futex(word), _) if word == address);
        let woken = machine.threads.iter().filter(waits).take(most);
        woken
            .map(|thread| {
                thread.timed_out.set(false);
                thread.state.set(State::Ready);
            })
            .count()
    })
}

struct Start {
    thread: &'static Thread,
    routine: Routine,
    argument: *mut c_void,
}

/// # Safety
/// As for `pthread_create`.
unsafe fn create_thread(
    handle: *mut pthread_t,
    attributes: *const pthread_attr_t,
    routine: Routine,
    argument: *mut c_void,
) -> c_int {
    let process = with(|machine| machine.spawn_for.take()).unwrap_or_else(process);
    let number = with(|machine| machine.threads.len());
    let thread: &'static Thread = Box::leak(Box::new(Thread {
        number,
        process,
        go: AtomicU32::new(0),
        state: Cell::new(State::Ready),
        timed_out: Cell::new(false),
        handle: Cell::new(None),
        id: Cell::new(0),
        context: fiber::Context::new(),
        sleeps: AtomicU32::new(0),
        routine: Cell::new(None),
        answer: Cell::new(std::ptr::null_mut()),
        leaves: Cell::new(false),
    }));
    let start = Box::into_raw(Box::new(Start {
        thread,
        routine,
        argument,
    }));
    // SAFETY: the caller's arguments; `begin` takes the box.
    let failed = unsafe { real::pthread_create(handle, attributes, begin, start.cast()) };
    if failed != 0 {
        // SAFETY: no thread has taken it.
        drop(unsafe { Box::from_raw(start) });
        return failed;
    }
    // SAFETY: written by pthread_create.
    thread.handle.set(Some(unsafe { *handle }));
    // It has to be asleep before somebody else uses its stack.
    while FIBERS.load(Ordering::Relaxed) && thread.sleeps.load(Ordering::SeqCst) == 0 {
        real::futex_wait(&thread.sleeps, 0);
    }
    with(|machine| machine.threads.push(thread));
    0
}

extern "C" fn begin(start: *mut c_void) -> *mut c_void {
    // SAFETY: made by `create_thread` for this thread.
    let start = unsafe { Box::from_raw(start.cast::<Start>()) };
    let thread = start.thread;
    CURRENT.set(Some(thread));
    // SAFETY: no arguments.
    thread.id.set(unsafe { libc::gettid() });
    let key = END_KEY.load(Ordering::SeqCst);
    // SAFETY: the key was created; the value is not null, so that `ended` runs after all destructors of thread-local values.
    unsafe { libc::pthread_setspecific(key, std::ptr::from_ref(thread).cast()) };
    if !FIBERS.load(Ordering::Relaxed) {
        thread.take_baton();
        return (start.routine)(start.argument);
    }
    thread.routine.set(Some((start.routine, start.argument)));
    drop(start);
    fiber::prepare(&thread.context, run_as_fiber);
    thread.sleeps.store(1, Ordering::SeqCst);
    real::futex_wake(&thread.sleeps);
    // Until its body has returned.
    thread.take_baton();
    thread.answer.get()
}

/// The body of a thread, on its stack, run by the scheduler's thread.
extern "C" fn run_as_fiber() -> ! {
    if let Some(thread) = current() {
        if let Some((routine, argument)) = thread.routine.take() {
            thread.answer.set(routine(argument));
        }
        thread.leaves.set(true);
        // SAFETY: the scheduler has come here by `turn`.
        unsafe { fiber::switch(&thread.context, &SCHEDULER_CONTEXT.0) };
    }
    unreachable!("nobody gives the baton to a thread that has ended");
}

/// The last that a thread does.
extern "C" fn ended(thread: *mut c_void) {
    // SAFETY: set by `begin`; a thread is never freed.
    let thread = unsafe { &*thread.cast::<Thread>() };
    thread.state.set(State::Over);
    with(|machine| {
        for other in &machine.threads {
            if matches!(other.state.get(), State::Waiting(Waiting::EndOf(number), _) if number == thread.number)
            {
                other.timed_out.set(false);
                other.state.set(State::Ready);
            }
        }
    });
    give_back();
}

fn wait_for_end(handle: pthread_t) {
    if !is_simulated_thread() {
        return;
    }
    let joined = with(|machine| {
        let mut threads = machine.threads.iter().rev();
        threads
            .find(|thread| thread.handle.get() == Some(handle))
            .copied()
    });
    if let Some(joined) = joined
        && joined.state.get() != State::Over
    {
        wait(Waiting::EndOf(joined.number), None);
    }
}
