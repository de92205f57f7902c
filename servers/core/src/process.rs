//! Whether a process on this host is dead, so that its leases move without waiting for the lease TTL.
//!
//! Says "dead" only of a process that it once saw alive in this pid namespace: a `/proc` that hides the processes of other
//! users looks the same as one in which they have died. Never signals anything.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;

use pagewire_proto::pb;

/// This host as a process identity names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    boot_id: String,
    pid_namespace: u64,
}

/// A process of this host that was seen alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pid: u32,
    start_time_ticks: u64,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    start_time_ticks: u64,
}

impl Host {
    /// This host, or `None` where `/proc` does not say.
    pub(crate) fn read() -> Option<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let pid_namespace = std::fs::metadata("/proc/self/ns/pid").ok()?.ino();
        Some(Self {
            boot_id: boot_id.trim().to_owned(),
            pid_namespace,
        })
    }

    /// The process of the identity, if it is one of this host and is seen to live.
    pub(crate) fn process(&self, identity: &pb::ProcessIdentity) -> Option<Process> {
        let here = identity.boot_id.trim() == self.boot_id
            && identity.pid_namespace == self.pid_namespace
            && identity.pid > 0;
        let process = Process {
            pid: identity.pid,
            start_time_ticks: identity.start_time_ticks,
        };
        (here && process.is_seen_alive()).then_some(process)
    }
}

impl Process {
    /// Whether the process has certainly ended. Errors count as "not known to be dead".
    pub(crate) fn is_dead(self) -> bool {
        match std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(text) => match parse(&text) {
                Some(stat) => {
                    stat.start_time_ticks != self.start_time_ticks
                        || (is_zombie(stat.state) && !self.has_other_threads())
                }
                None => false,
            },
            Err(error) => {
                error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
            }
        }
    }

    fn is_seen_alive(self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|text| parse(&text))
            .is_some_and(|stat| stat.start_time_ticks == self.start_time_ticks)
    }

    /// A process whose first thread has ended shows as a zombie while the others run on.
    fn has_other_threads(self) -> bool {
        std::fs::read_dir(format!("/proc/{}/task", self.pid))
            .is_ok_and(|threads| threads.count() > 1)
    }
}

fn is_zombie(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

/// Fields 3 and 22. The command in field 2 is in brackets and may have spaces and brackets itself.
fn parse(stat: &str) -> Option<Stat> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time_ticks = fields.nth(18)?.parse().ok()?;
    Some(Stat {
        state,
        start_time_ticks,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn identity(host: &Host, pid: u32) -> pb::ProcessIdentity {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        pb::ProcessIdentity {
            boot_id: host.boot_id.clone(),
            pid_namespace: host.pid_namespace,
            pid,
            start_time_ticks: parse(&text).unwrap().start_time_ticks,
        }
    }

    #[test]
    fn a_command_name_with_brackets_does_not_shift_the_fields() {
        let line = "17 (a) R (b) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(
            parse(line),
            Some(Stat {
                state: 'Z',
                start_time_ticks: 4242
            })
        );
        assert_eq!(parse("17 (a"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_living_process_is_not_dead_and_a_killed_one_is_also_before_it_is_reaped() {
        let host = Host::read().unwrap();
        let mut child = sleeper();
        let process = host.process(&identity(&host, child.id())).unwrap();
        assert!(!process.is_dead());
        child.kill().unwrap();
        // Not reaped: waits for the state to change without taking the entry out of /proc.
        while !process.is_dead() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(process.is_dead());
    }

    #[test]
    fn a_process_of_another_boot_or_namespace_or_start_time_is_not_judged() {
        let host = Host::read().unwrap();
        let mut own = identity(&host, std::process::id());
        assert!(host.process(&own).is_some());
        own.start_time_ticks += 1;
        assert_eq!(host.process(&own), None, "never seen alive");
        own.start_time_ticks -= 1;
        own.pid_namespace += 1;
        assert_eq!(host.process(&own), None);
        own.pid_namespace -= 1;
        own.boot_id = "elsewhere".into();
        assert_eq!(host.process(&own), None);
    }
}
