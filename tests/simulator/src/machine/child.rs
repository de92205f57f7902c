//! A process of the operating system for each seed: what is left behind ends with it, and a crash is one seed's.

use std::ffi::{CStr, CString, c_int, c_void};
use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// A process that simulates a seed.
pub struct Child {
    pid: libc::pid_t,
    answer: OwnedFd,
}

/// Starts a process that runs `body`; its answer is the text. The calling process has one thread.
pub fn fork(patience_seconds: u32, body: impl FnOnce() -> String) -> Child {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors.
    let failed = unsafe { libc::pipe(ends.as_mut_ptr()) } != 0;
    assert!(!failed, "no pipe: {}", std::io::Error::last_os_error());
    // SAFETY: there is one thread.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "no process: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptors are new, and each is closed once.
    let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    if pid != 0 {
        return Child { pid, answer: read };
    }
    drop(read);
    // SAFETY: no pointers; glibc has one arena then, so that addresses are the same every time.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(patience_seconds);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    super::heap::begin();
    let text = on_a_stack_of_its_own(body);
    let mut file = std::fs::File::from(write);
    let _ = std::io::Write::write_all(&mut file, text.as_bytes());
    // SAFETY: ends this process without destructors, of which those of killed processes would wait for ever.
    unsafe { libc::_exit(0) }
}

/// Bytes of the stack on which a seed is simulated.
const STACK_BYTES: usize = 64 << 20;

/// Runs `body` on a stack beside the heap: the first one of a process begins behind its arguments and its environment, and there are locks on it as well
/// (HEAP1). A panic ends this process, as it would without.
fn on_a_stack_of_its_own(body: impl FnOnce() -> String) -> String {
    struct Job<F> {
        body: Option<F>,
        text: String,
    }
    extern "C" fn run<F: FnOnce() -> String>(job: *mut c_void) -> *mut c_void {
        // SAFETY: of `on_a_stack_of_its_own`, which waits.
        let job = unsafe { &mut *job.cast::<Job<F>>() };
        let body = job.body.take();
        let run = std::panic::AssertUnwindSafe(|| body.map(|body| body()).unwrap_or_default());
        match std::panic::catch_unwind(run) {
            Ok(text) => job.text = text,
            // SAFETY: ends this process as a panic of its first thread does.
            Err(_) => unsafe { libc::_exit(101) },
        }
        std::ptr::null_mut()
    }
    fn runner<F: FnOnce() -> String>(_: &F) -> super::real::Routine {
        run::<F>
    }
    let routine = runner(&body);
    let mut job = Job {
        body: Some(body),
        text: String::new(),
    };
    // SAFETY: a mapping that replaces none; attributes that are initialised; a job that lives until the thread has ended.
    unsafe {
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE;
        let at = (super::heap::START - 2 * STACK_BYTES) as *mut c_void;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let stack = libc::mmap(at, STACK_BYTES, protection, flags, -1, 0);
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        let mut thread: libc::pthread_t = 0;
        let is_made = stack == at
            && libc::pthread_attr_init(&raw mut attributes) == 0
            && libc::pthread_attr_setstack(&raw mut attributes, stack, STACK_BYTES) == 0;
        let job = (&raw mut job).cast();
        if is_made
            && super::real::pthread_create(&raw mut thread, &raw const attributes, routine, job)
                == 0
        {
            super::real::pthread_join(thread, std::ptr::null_mut());
        } else {
            routine(job);
        }
    }
    job.text
}

/// Runs `body` in a process of its own, and waits for its end: nothing that it allocates and frees changes where this process has its memory.
/// Where there can be none, nothing happens.
pub fn aside(body: impl FnOnce()) {
    // SAFETY: the calling process has one thread, and the new one ends without destructors.
    unsafe {
        match libc::fork() {
            0 => {
                body();
                libc::_exit(0)
            }
            pid if pid > 0 => {
                let mut status: c_int = 0;
                libc::waitpid(pid, &raw mut status, 0);
            }
            _ => {}
        }
    }
}

impl Child {
    /// Waits for the answer, or for how it died.
    pub fn answer(self) -> Result<String, String> {
        let mut text = String::new();
        let read = std::fs::File::from(self.answer).read_to_string(&mut text);
        let mut status: c_int = 0;
        // SAFETY: a child of this process, and a place for the answer.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        super::disk::remove_of(self.pid.cast_unsigned());
        if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            let why = if signal == libc::SIGALRM {
                " (it took too long)"
            } else {
                ""
            };
            return Err(format!("its process died of signal {signal}{why}"));
        }
        if libc::WEXITSTATUS(status) != 0 {
            return Err(format!(
                "its process ended with {}",
                libc::WEXITSTATUS(status)
            ));
        }
        read.map(|_| text).map_err(|error| error.to_string())
    }
}

/// Has this program run again with addresses that are not chosen by chance, unless it does so already.
pub fn same_addresses_every_time() -> std::io::Result<()> {
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: no pointers.
    let now = unsafe { libc::personality(ASK) };
    if now < 0 {
        return Err(std::io::Error::last_os_error());
    }
    if now & libc::ADDR_NO_RANDOMIZE != 0 {
        return Ok(());
    }
    // SAFETY: as above.
    if unsafe { libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    use std::os::unix::process::CommandExt as _;
    let program = std::env::current_exe()?;
    Err(std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .exec())
}

/// Sets a variable of this process's environment, which has one thread.
pub fn set_environment(name: &str, value: &str) {
    let (Ok(name), Ok(value)) = (CString::new(name), CString::new(value)) else {
        return;
    };
    let (name, value): (&CStr, &CStr) = (&name, &value);
    // SAFETY: C strings, and nobody else reads the environment now.
    unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::disk;

    /// Bug: a seed had two traces, about once in some thousand runs. Cause: a process that was killed leaves its folder, and a later one with
    /// its number took that away before it began, so that its memory was elsewhere; parking_lot goes by addresses. Fix: [`aside`].
    #[test]
    fn what_a_process_of_before_has_left_does_not_move_memory() {
        let children = [false, true, false].map(|leaves| {
            fork(60, move || {
                let pid = std::process::id();
                aside(|| {
                    if leaves {
                        disk::leave_something_of(pid);
                    }
                });
                let folder = disk::begin_folder().expect("a folder");
                assert_eq!(std::fs::read_dir(folder).expect("a folder").count(), 0);
                let sizes = (4..18).map(|power| 1_usize << power);
                let rooms: Vec<Vec<u8>> = sizes.map(Vec::with_capacity).collect();
                let places = rooms.iter().map(|room| room.as_ptr().addr());
                format!("{:x?}", places.collect::<Vec<_>>())
            })
        });
        let [without, with, again] = children.map(|child| child.answer().expect("an answer"));
        assert_eq!(with, without);
        assert_eq!(again, without);
    }
}
