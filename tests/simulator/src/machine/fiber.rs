//! Going from one simulated thread to another without asking the kernel, which on a busy machine takes its time.
//!
//! Each simulated thread is a thread of the operating system, so that it has its stack and its thread-local values, but that one
//! does nothing: it sleeps in the kernel, and the scheduler's thread takes its stack and its thread pointer (the `fs` register)
//! for as long as it has the baton. From the inside nothing can be told: who runs is always the owner of the thread-local values that he sees.
//! Where the processor or the kernel does not let programs do this, the threads run themselves, one at a time; the trace is the same.

use std::cell::Cell;

/// Where a thread goes on: its stack pointer and its thread pointer.
#[repr(C)]
#[derive(Debug)]
pub struct Context {
    stack: Cell<usize>,
    thread_pointer: Cell<usize>,
}

impl Context {
    pub const fn new() -> Self {
        Self {
            stack: Cell::new(0),
            thread_pointer: Cell::new(0),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::Context;

    std::arch::global_asm!(
        ".global pagewire_simulator_switch",
        "pagewire_simulator_switch:",
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "mov [rdi], rsp",
        "mov rsp, [rsi]",
        "mov rax, [rsi + 8]",
        "wrfsbase rax",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 4]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    );

    unsafe extern "C" {
        fn pagewire_simulator_switch(from: *const Context, to: *const Context);
    }

    /// Registers that a new thread begins with: what `switch` takes from the stack, and where it returns to.
    const FRAME: usize = 8;
    /// Left alone below the frames of the thread that sleeps.
    const DISTANCE: usize = 4096;
    /// What the kernel says where programs may write the register (HWCAP2_FSGSBASE).
    const FSGSBASE: libc::c_ulong = 2;

    pub fn can() -> bool {
        // SAFETY: no pointers.
        let kernel = unsafe { libc::getauxval(libc::AT_HWCAP2) };
        kernel & FSGSBASE != 0
    }

    /// # Safety
    /// `to` is a thread that was prepared, or that came here by this function, and does not run.
    pub unsafe fn switch(from: &Context, to: &Context) {
        // SAFETY: promised by the caller.
        unsafe { pagewire_simulator_switch(from, to) }
    }

    /// The thread pointer of the calling thread.
    pub fn note_thread_pointer(context: &Context) {
        let pointer: usize;
        // SAFETY: the first word behind the thread pointer is itself (ELF handling for thread-local storage, 3.4.6).
        unsafe { std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly)) };
        context.thread_pointer.set(pointer);
    }

    /// Has the calling thread, which sleeps from now on, begin with `entry` when it is switched to.
    pub fn prepare(context: &Context, entry: extern "C" fn() -> !) {
        note_thread_pointer(context);
        let here: usize;
        // SAFETY: reads a register.
        unsafe { std::arch::asm!("mov {}, rsp", out(reg) here, options(nostack, nomem)) };
        // A function finds the stack pointer 8 below a multiple of 16.
        let top = ((here - DISTANCE) & !15) - 8;
        let frame = (top - FRAME * 8) as *mut usize;
        // MXCSR and the x87 control word as every thread begins with them.
        let control: usize = 0x1f80 | (0x037f << 32);
        // SAFETY: the stack of this thread, below all that it uses.
        unsafe {
            frame.write(control);
            for register in 1..FRAME - 1 {
                frame.add(register).write(0);
            }
            frame.add(FRAME - 1).write(entry as usize);
        }
        context.stack.set(frame as usize);
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86_64::{can, note_thread_pointer, prepare, switch};

#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::Context;

    pub fn can() -> bool {
        false
    }

    /// # Safety
    /// Never called.
    pub unsafe fn switch(_: &Context, _: &Context) {}

    pub fn note_thread_pointer(_: &Context) {}

    pub fn prepare(_: &Context, _: extern "C" fn() -> !) {}
}

#[cfg(not(target_arch = "x86_64"))]
pub use other::{can, note_thread_pointer, prepare, switch};
