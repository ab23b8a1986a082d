//! Where a VMM comes in: one trait-sized interface, one back end a VMM, and the jail around it.

mod ask;
mod beside;
pub mod boot_args;
mod death;
pub mod firecracker;
pub mod jail;
pub mod kernel_config;
pub mod least_memory;
pub mod memory;
mod monitor;
pub mod probe;
pub mod program;
mod qemu;
mod rlimits;
pub mod room;
pub(crate) mod seccomp;
mod spawn;
pub mod spec;
pub mod trial;
mod tsc;
pub mod tuning;

pub use death::{Cause, Circumstances};
pub use monitor::{Condition, Death, Ended, FailedRequests, Listener, Monitor, Pause, Said, Watch};
pub use qemu::{check_forwards, identify as identify_qemu};
pub(crate) use rlimits::raise as raise_limits;
#[cfg(test)]
pub(crate) use spawn::{Spawn, spawn};

use crate::error::Result;
use crate::net::netns::Netns;
use spec::{VmSpec, VmmBinary};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// A VMM that can boot a `VmSpec`.
pub trait Vmm {
    /// For messages: `qemu`.
    fn name(&self) -> &'static str;
    /// Stages the jail, makes the tap and starts the VMM. `net` is the project's namespace; a tap needs one.
    /// The VMM is killed when the calling thread ends: call this from a thread that outlives the VM.
    /// After an error nothing is left but what `jail::clean` removes, and no thread is still at work.
    fn launch(&self, spec: &VmSpec, net: Option<&Netns>) -> Result<Launched> {
        self.launch_with(spec, net, &mut || Ok(()))
    }

    /// `launch` of a spec with drives that do not exist yet. `disks` makes them; it is called once, before they are
    /// placed and while other things are being made.
    fn launch_with(
        &self,
        spec: &VmSpec,
        net: Option<&Netns>,
        disks: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Launched>;
}

/// The back end that boots `spec`.
pub fn backend(spec: &VmSpec) -> Box<dyn Vmm> {
    match spec.vmm {
        VmmBinary::QemuTree(_) | VmmBinary::QemuPath { .. } => Box::new(qemu::Qemu),
        VmmBinary::Firecracker { .. } => Box::new(firecracker::Firecracker),
    }
}

/// The guest's control channel.
#[derive(Debug)]
pub enum Control {
    /// The VMM holds the other end from the start.
    Connected(UnixStream),
    /// The guest connects through the VMM: the first connection is the channel, and there is no second.
    Listening(UnixListener),
}

impl Control {
    /// The channel, if it is there from the start.
    pub fn connected(&self) -> Option<&UnixStream> {
        match self {
            Control::Connected(stream) => Some(stream),
            Control::Listening(_) => None,
        }
    }
}

/// The host's end of a guest's serial console.
#[derive(Debug)]
pub enum Serial {
    /// Bytes written to it are typed.
    Socket(UnixStream),
    /// For a VMM that writes byte by byte and drops what does not fit: a socket has room for some 270 such writes,
    /// a pipe for all the bytes of its buffer.
    Pipe {
        /// What the guest prints.
        output: OwnedFd,
        /// What is written here is typed.
        input: OwnedFd,
    },
}

impl Serial {
    /// A duplicate to read what the guest prints.
    pub fn reader(&self) -> std::io::Result<std::fs::File> {
        match self {
            Serial::Socket(socket) => Ok(OwnedFd::from(socket.try_clone()?).into()),
            Serial::Pipe { output, .. } => Ok(output.try_clone()?.into()),
        }
    }
}

/// Begins what a first launch would otherwise wait for. Call it early in a process that will launch a VM.
pub fn prepare() {
    tsc::prepare();
}

/// A VMM that has just been started.
#[derive(Debug)]
pub struct Launched {
    /// The VMM's process. `monitor` reaps it; nobody else may.
    pub pid: i32,
    /// Becomes readable when the VMM ends; for signals without a race.
    pub pidfd: OwnedFd,
    /// The guest's control channel.
    pub control: Control,
    /// The guest's serial console.
    pub console: Serial,
    /// Tells how the VMM ends.
    pub monitor: Monitor,
    /// Presses keys on the guest's keyboard, where the VMM has one.
    pub keyboard: Option<firecracker::Keyboard>,
    /// What the host could not do, for the user.
    pub warnings: Vec<String>,
    /// What the launch cost.
    pub timings: Timings,
}

/// What a launch cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Making the drives that each boot makes anew.
    pub disks: Duration,
    /// Staging the jail and making its cgroups.
    pub jail: Duration,
    /// Making the tap, while disks and jail are made.
    pub tap: Duration,
    /// Of that, what was left to wait for once they were there.
    pub tap_wait: Duration,
    /// Fork to exec.
    pub spawn: Duration,
}
