//! What goes wrong: chosen by the seed, one fault after the other, until it becomes calm.

use parking_lot::Mutex;

use crate::client;
use crate::counts::{Event, count};
use crate::finding::Kind;
use crate::machine::{self, ProcessId};
use crate::net::{self, Break, Way};
use crate::plan::{self, Blow, Phase, Sweep};
use crate::random::Random;
use crate::server;

const MS: u64 = 1_000_000;
/// Faults end then, however few transactions there were.
const LONGEST_STORM: u64 = 120_000 * MS;

struct World {
    random: Random,
    clients: Vec<ProcessId>,
    servers: Vec<ProcessId>,
    calm_since: Option<u64>,
    /// When the blow is over.
    quiet_at: u64,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

fn with<T>(body: impl FnOnce(&mut World) -> T) -> Option<T> {
    WORLD.lock().as_mut().map(body)
}

/// Starts the servers; no client yet.
pub fn begin(mut random: Random) {
    let servers = (0..plan::get().servers)
        .map(|node| server::start(node, &mut random, false))
        .collect();
    *WORLD.lock() = Some(World {
        random,
        clients: Vec::new(),
        servers,
        calm_since: None,
        quiet_at: 0,
    });
}

/// Starts the clients and the faults.
pub fn storm() {
    let plan = plan::get();
    with(|world| {
        for place in 0..plan.clients {
            let process = client::start(place, &mut world.random);
            world.clients.push(process);
        }
        if plan.fault_every_ms > 0 && world.random.percent(50) {
            net::set_slow_percent(2);
        }
    });
    net::set_reordering(plan.reorder_percent, plan.longest_reordering_ms() * MS);
    if let Some(sweep) = plan.sweep {
        machine::at_turn(sweep.turn, move || blow(sweep));
    }
    machine::at(machine::now(), next_fault);
    machine::at(machine::now(), watch);
}

fn next_fault() {
    let every = plan::get().fault_every_ms;
    if every == 0 || plan::phase() != Phase::Faults {
        return;
    }
    let pause = with(|world| {
        one_fault(world);
        world.random.below(2 * every * MS)
    });
    machine::at(machine::now() + pause.unwrap_or(0), next_fault);
}

/// See [`Sweep`].
fn blow(sweep: Sweep) {
    let plan = plan::get();
    if plan::phase() == Phase::Over && plan::count_end(0) >= plan.client_threads() {
        // The last look is no client, and tries nothing twice.
        return;
    }
    let ns = 2 * plan.ttl_ms * MS;
    let (client, server) = with(|world| {
        world.quiet_at = machine::now() + ns;
        (world.clients[sweep.place], world.servers[0])
    })
    .unwrap_or_default();
    let hold = |way| {
        let key = (sweep.place, 0);
        net::hold(key, way, true);
        machine::at(machine::now() + ns, move || net::hold(key, way, false));
    };
    machine::trace(format_args!("{sweep:?}"));
    match sweep.blow {
        Blow::Stop => machine::stop_for(client, ns, false),
        Blow::Sleep => machine::stop_for(client, ns, true),
        Blow::HoldUp => hold(Way::Up),
        Blow::HoldDown => hold(Way::Down),
        Blow::StopServer => machine::stop_for(server, ns, false),
    }
}

fn one_fault(world: &mut World) {
    let plan = plan::get();
    let random = &mut world.random;
    let place = random.below(plan.clients as u64) as usize;
    let node = random.below(plan.servers as u64) as usize;
    let ttl = plan.ttl_ms * MS;
    if plan.older_percent > 0 && plan.store.is_durable() && random.percent(8) {
        // Another release, at once: what clients had learnt of the one before it is still what they go by.
        let pause = random.below(5 * MS);
        machine::trace(format_args!("p{} is replaced", world.servers[node]));
        count(Event::ServerKilled);
        let process = world.servers[node];
        machine::at(machine::now(), move || {
            if plan::phase() == Phase::Faults {
                server_ended(process, node, pause);
            }
        });
        return;
    }
    let long = if random.percent(70) {
        random.below(ttl)
    } else {
        random.below(4 * ttl)
    };
    match random.below(100) {
        0..30 => {
            let how = match random.below(4) {
                0 => Break::Told,
                1 => Break::ClientTold(long),
                // The holder of a lease goes on for as long as he may trust it, while others get it.
                2 => Break::ServerTold,
                _ if random.percent(50) => Break::ServerTold,
                _ => Break::Quiet,
            };
            net::cut((place, node), how);
        }
        30..60 => {
            let way = *random.one_of(&Way::BOTH);
            machine::trace(format_args!(
                "link {place}-{node} {way:?} held for {} ms",
                long / MS
            ));
            count(Event::Hold);
            net::hold((place, node), way, true);
            machine::at(machine::now() + long, move || {
                net::hold((place, node), way, false)
            });
        }
        60..72 => {
            let machine_too = random.percent(50);
            if machine::is_alive(world.clients[place]) {
                count(Event::ClientKilled);
            }
            kill(world.clients[place], machine_too);
            if machine_too {
                client::cache::lost_power(place);
            }
            machine::at(machine::now() + long, move || {
                with(|world| {
                    if plan::phase() == Phase::Faults && !machine::is_alive(world.clients[place]) {
                        world.clients[place] = client::start(place, &mut world.random);
                    }
                });
            });
        }
        72..74 if plan.store.is_durable() => {
            machine::trace(format_args!("p{} is asked to stop", world.servers[node]));
            server::ask_to_stop(world.servers[node], node, long);
        }
        74..80 if plan.store.is_durable() => {
            let machine_too = random.percent(50);
            if machine::is_alive(world.servers[node]) {
                count(Event::ServerKilled);
            }
            kill(world.servers[node], machine_too);
            if machine_too {
                count(Event::ServerMachineKilled);
                server::lost_power();
            }
            machine::at(machine::now() + long, move || {
                with(|world| {
                    if plan::phase() == Phase::Faults && !machine::is_alive(world.servers[node]) {
                        world.servers[node] = server::start(node, &mut world.random, false);
                    }
                });
            });
        }
        72..90 => {
            let who = match random.percent(60) {
                true => world.clients[place],
                false => world.servers[node],
            };
            let sleeps = random.percent(50);
            machine::trace(format_args!(
                "p{who} stops for {} ms, its machine sleeps: {sleeps}",
                long / MS
            ));
            count(if sleeps { Event::Slept } else { Event::Stopped });
            machine::stop_for(who, long, sleeps);
        }
        _ => {
            let who = match random.percent(50) {
                true => world.clients[place],
                false => world.servers[node],
            };
            let by = random.below(7_200_000 * MS).cast_signed() - (3_600_000 * MS).cast_signed();
            count(Event::WallClock);
            machine::turn_wall_clock(who, by);
        }
    }
}

/// A server has done what it was asked; another one takes its place.
pub fn server_ended(process: ProcessId, node: usize, pause: u64) {
    kill(process, false);
    machine::at(machine::now() + pause, move || {
        with(|world| {
            if world.servers[node] == process {
                let calm = plan::phase() != Phase::Faults;
                world.servers[node] = server::start(node, &mut world.random, calm);
            }
        });
    });
}

fn kill(process: ProcessId, machine_too: bool) {
    if machine::is_alive(process) {
        machine::trace(format_args!(
            "p{process} is killed, its machine too: {machine_too}"
        ));
        machine::kill(process);
        net::process_ends(process, machine_too);
    }
}

/// Looks whether it is time for the next phase.
fn watch() {
    let plan = plan::get();
    let now = machine::now();
    match plan::phase() {
        Phase::Faults if plan::steps() >= plan.steps || now > LONGEST_STORM => calm(),
        Phase::Calm if plan::clients_done() >= plan.client_threads() => {
            plan::set_phase(Phase::Over)
        }
        Phase::Over if plan::count_end(0) >= plan.client_threads() && servers_stay() => {
            // A blow that fell late is over first.
            let quiet = with(|world| world.quiet_at).unwrap_or(now);
            machine::at(now.max(quiet), crate::last_look);
            return;
        }
        Phase::Calm | Phase::Over => {
            let since = with(|world| world.calm_since).flatten().unwrap_or(now);
            if now - since > client::calm_within_ns(plan) {
                let threads = plan.client_threads();
                let missing = threads - plan::clients_done().min(threads);
                let left = threads - plan::count_end(0);
                crate::history::violation(
                    Kind::Stuck,
                    format!(
                        "{missing} threads of clients do not get on in the calm, {left} do not end"
                    ),
                );
                plan::set_phase(Phase::Over);
                machine::at(now, crate::last_look);
                return;
            }
        }
        Phase::Faults => {}
    }
    machine::at(now + 20 * MS, watch);
}

/// Whether each server is there for the last look. One that was asked to stop in the storm may end behind it (seed 104525: "unable to open database file").
fn servers_stay() -> bool {
    let stay = with(|world| {
        let mut servers = world.servers.iter();
        servers.all(|server| machine::is_alive(*server) && !server::is_stopping(*server))
    });
    stay.unwrap_or(true)
}

fn calm() {
    let plan = plan::get();
    machine::trace(format_args!("calm"));
    plan::set_phase(Phase::Calm);
    net::calm();
    with(|world| {
        world.calm_since = Some(machine::now());
        for node in 0..plan.servers {
            // Also one whose medium is unreliable, and one without what everybody has to get on with.
            if plan.store.is_durable()
                && (plan.weather_percent > 0
                    || server::lacks_history(node)
                    || !machine::is_alive(world.servers[node]))
            {
                kill(world.servers[node], false);
                world.servers[node] = server::start(node, &mut world.random, true);
            }
        }
        for place in 0..plan.clients {
            if !machine::is_alive(world.clients[place]) {
                world.clients[place] = client::start(place, &mut world.random);
            }
        }
    });
}

/// Starts a process that looks at everything once more.
pub fn last_client(body: impl FnOnce() + Send + 'static) {
    with(|world| {
        let process = machine::new_process(&mut world.random, 0);
        net::client_starts(process, 1000);
        machine::spawn(process, "last client", body);
    });
}
