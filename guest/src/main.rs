//! PID 1 of a firegopher guest: brings up the root the host describes, runs one workload, reports its end, powers off.
//! It owns every process, mount and address of the guest; nothing else runs before the workload.
#![cfg_attr(not(test), no_main)]

mod boot;
mod caps;
mod console;
mod control;
mod copy;
mod environment;
mod failure;
mod fill;
mod identity;
mod limits;
mod lookup;
mod modules;
mod mounts;
mod net;
mod netlink;
mod oom;
mod processes;
mod root;
mod shutdown;
mod supervise;
#[cfg(test)]
mod testing;
mod trace;
mod user;
mod volumes;
mod workdir;
mod workload;

/// Entered by libc without std's own start-up, which aborts when descriptors 0 to 2 are closed and /dev/null is
/// missing: exactly what an initramfs without a console node gives PID 1.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    pid_1()
}

/// The test harness has an entry point of its own.
#[cfg(test)]
fn main() {
    pid_1();
}

fn pid_1() -> i32 {
    // Anywhere else this program would move mounts about and power the machine off.
    if nix::unistd::getpid().as_raw() != 1 {
        eprintln!("firegopher-init runs only as PID 1 of a virtual machine");
        return 64;
    }
    boot::run()
}
