//! QEMU's microvm machine: the back end that needs no KVM.

mod argv;
mod firmware;
mod identify;
mod kernel_args;

use super::beside::{Lives, beside_tap};
use super::jail::cgroup::{self, Limits};
use super::jail::{self, Staged};
use super::memory::Budget;
use super::monitor::{Monitor, QmpMonitor};
use super::spawn::{Spawn, spawn};
use super::spec::{NetSpec, VmSpec, VmmBinary};
use super::{Control, Launched, Serial, Timings, Vmm, boot_args, program, rlimits, tsc};
use crate::error::{Context, Error, Result};
use crate::net::netns::Netns;
use argv::Wiring;
pub use argv::check_forwards;
pub use identify::identify;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Threads and processes besides one thread a vCPU: the main loop, and up to 64 of the I/O pool.
const THREADS: u64 = 128;

pub(super) struct Qemu;

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn launch_with(
        &self,
        spec: &VmSpec,
        net: Option<&Netns>,
        disks: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Launched> {
        spec.tuning.check_qemu(spec.id.as_str())?;
        spec.tuning.check_host(spec.memory)?;
        rlimits::check(spec)?;
        // Measured while the jail is staged: a launch does not wait for it.
        let tsc = (!spec.kvm).then(tsc::start);
        let mut timings = Timings::default();

        let mut held = Vec::new();
        let made = beside_tap(spec, net, Lives::Held, &mut timings, |timings| {
            let start = Instant::now();
            disks()?;
            timings.disks = start.elapsed();
            let start = Instant::now();
            let made = jailed(spec, &mut held)?;
            timings.jail = start.elapsed();
            Ok(made)
        });
        let ((files, mut groups), tap) = made?;
        let warnings = std::mem::take(&mut groups.warnings);

        let (control, control_end) = pair()?;
        let (console, console_end) = pair()?;
        let (qmp, qmp_end) = pair()?;
        let wiring = Wiring {
            control: control_end.as_raw_fd(),
            console: console_end.as_raw_fd(),
            qmp: qmp_end.as_raw_fd(),
            tap: tap.as_ref().map(AsRawFd::as_raw_fd),
        };
        let release = kernel_args::release(&spec.kernel);
        let kernel_args = kernel_args::build(release, tsc.map(tsc::Measurement::khz), spec.tuning.console);
        boot_args::check(&kernel_args, boot_args::Machine::Qemu)?;
        let chrooted = spec.jail.is_some() && matches!(spec.vmm, VmmBinary::QemuTree(_));
        let (argv, env) = argv::build(spec, &files, chrooted, wiring, &kernel_args)?;
        let mut keep = vec![wiring.control, wiring.console, wiring.qmp];
        keep.extend(wiring.tap);
        keep.extend(held.iter().map(AsRawFd::as_raw_fd));

        let start = Instant::now();
        let user_net = matches!(spec.net, NetSpec::User { .. });
        let netns = net
            .filter(|_| !user_net)
            .map(|ns| ns.as_fd().try_clone_to_owned())
            .transpose()
            .or_failed("vmm.spawn", || "cannot duplicate a namespace descriptor")?;
        let spawned = spawn(Spawn {
            argv,
            env,
            keep,
            netns: netns.as_ref(),
            no_network: spec.jail.is_some() && !user_net,
            stdio: None,
            cgroups: &groups.procs,
            chroot: spec.jail.as_ref().filter(|_| chrooted).map(|jail| jail.root.clone()),
            identity: spec.jail.as_ref().map(|jail| (jail.uid, jail.gid)),
        })?;
        timings.spawn = start.elapsed();

        let pid = spawned.child.id() as i32;
        let pidfd =
            spawned.pidfd.try_clone().or_failed("vmm.spawn", || "cannot duplicate the VMM's pidfd")?;
        let balloon = spec.tuning.balloon.filter(|balloon| balloon.amount > 0);
        let target = balloon.map(|balloon| spec.memory.saturating_sub(balloon.amount));
        let monitor = QmpMonitor::new(qmp, spawned.pidfd, spawned.child, spawned.stderr, target)
            .or_failed("vmm.monitor", || "cannot talk to the VMM's monitor")?;
        let (control, monitor) = (Control::Connected(control), Monitor::Qmp(monitor));
        let console = Serial::Socket(console);
        Ok(Launched { pid, pidfd, control, console, monitor, keyboard: None, warnings, timings })
    }
}

/// The VMM's files, and the groups that limit it.
fn jailed(spec: &VmSpec, held: &mut Vec<OwnedFd>) -> Result<(Staged, cgroup::Groups)> {
    let Some(jail) = &spec.jail else { return Ok((in_place(spec), cgroup::Groups::default())) };
    let limits = Limits {
        memory: Budget::of(spec).total(),
        pids: THREADS + u64::from(spec.cpus),
        // One more for emulated devices and the main loop.
        cpu_percent: u64::from(spec.cpus + 1) * 100,
    };
    let groups = cgroup::create(&jail::name_of(&spec.id, jail), limits, &cgroup::journal(&jail.root))?;
    let files = match spec.vmm {
        VmmBinary::QemuTree(_) => jail::stage(spec, jail)?,
        VmmBinary::QemuPath { .. } => by_descriptor(spec, held)?,
        VmmBinary::Firecracker { .. } => return Err(not_qemu()),
    };
    Ok((files, groups))
}

/// Without a jail everything stays where it is.
fn in_place(spec: &VmSpec) -> Staged {
    let firmware = match &spec.vmm {
        VmmBinary::QemuTree(tree) => jail::firmware_of_tree(tree),
        VmmBinary::QemuPath { firmware, .. } => Some(firmware.clone()),
        VmmBinary::Firecracker { .. } => None,
    };
    Staged {
        kernel: spec.kernel.clone(),
        initramfs: spec.initramfs.clone(),
        firmware,
        drives: spec.drives.iter().map(|drive| drive.path.clone()).collect(),
    }
}

/// For a host's QEMU under a uid of its own: our directories are closed to it, so it gets each file open.
fn by_descriptor(spec: &VmSpec, held: &mut Vec<OwnedFd>) -> Result<Staged> {
    let VmmBinary::QemuPath { program, firmware } = &spec.vmm else { return Err(not_qemu()) };
    if let Some(closed) = program::closed_to_others(program) {
        let text = format!(
            "{} cannot be executed by the user that its VM gets: {} is closed to other users",
            program.display(),
            closed.display()
        );
        return Err(Error::host("vmm.qemu-private", text)
            .help(format!("chmod o+x {}, or install QEMU where everybody may run it", closed.display())));
    }
    let mut hold = |path: &Path, write: bool| -> Result<PathBuf> {
        let file = File::options().read(true).write(write).open(path);
        let file = file.or_failed("vmm.open", || format!("cannot open {}", path.display()))?;
        if let (true, Some(jail)) = (write, &spec.jail) {
            // QEMU opens it again through /proc, with its own rights.
            std::os::unix::fs::fchown(&file, Some(jail.uid), Some(jail.gid))
                .or_failed("vmm.open", || format!("cannot hand {} to the VMM", path.display()))?;
        }
        let name = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        held.push(file.into());
        Ok(name)
    };
    let drives =
        spec.drives.iter().map(|drive| hold(&drive.path, !drive.read_only)).collect::<Result<_>>()?;
    let (kernel, initramfs) = (hold(&spec.kernel, false)?, hold(&spec.initramfs, false)?);
    Ok(Staged { kernel, initramfs, firmware: Some(hold(firmware, false)?), drives })
}

fn not_qemu() -> Error {
    Error::bug("this VM is not QEMU's to boot")
}

fn pair() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().or_failed("vmm.socket", || "cannot make a socket pair for the VMM")
}

/// argv and environment.
type CommandLine = (Vec<OsString>, Vec<(&'static str, OsString)>);

#[cfg(test)]
mod tests;
