//! Firecracker, started by its own jailer: the back end for hosts whose KVM has hardware behind it.

pub mod api;
pub mod config;
mod jailer;
pub mod kernel_args;
mod keyboard;
mod programs;
mod stage;
pub mod stub;
pub mod version;

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use keyboard::Keyboard;
pub use programs::{inspect, usable};

use super::beside::{Lives, beside_tap};
use super::boot_args;
use super::jail::cgroup::{self, Limits};
use super::jail::{check_place, name_of};
use super::memory::Budget;
use super::monitor::{Monitor, ProcessMonitor};
use super::spec::{JailSpec, NetSpec, VmSpec, VmmBinary};
use super::tuning::Console;
use super::{Control, Launched, Said, Serial, Timings, Vmm};
use crate::error::{Context, Error, Result};
use crate::net::netns::Netns;
use config::JailPaths;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Threads besides one a vCPU: the VMM, its API, the jailer before it.
const THREADS: u64 = 16;
/// Where the guest's init connects to on the host (guest/src/control.rs).
const CONTROL_PORT: u32 = 1024;

/// The back end.
pub(super) struct Firecracker;

impl Vmm for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn launch_with(
        &self,
        spec: &VmSpec,
        net: Option<&Netns>,
        disks: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Launched> {
        let VmmBinary::Firecracker { firecracker, jailer } = &spec.vmm else {
            return Err(Error::bug("this VM is not Firecracker's to boot"));
        };
        let jail = spec.jail.as_ref().ok_or_else(|| {
            Error::host("vmm.firecracker-root", "Firecracker's jail needs root")
                .help("run as root, or write `vmm \"auto\"`: QEMU runs as you")
        })?;
        if matches!(spec.net, NetSpec::User { .. }) {
            return Err(Error::bug("Firecracker has no user networking"));
        }
        inspect(firecracker, jailer)?;
        check_kvm()?;
        spec.tuning.check_host(spec.memory)?;
        let mut timings = Timings::default();

        let made = beside_tap(spec, net, Lives::Named, &mut timings, |timings| {
            let start = Instant::now();
            disks()?;
            timings.disks = start.elapsed();
            let start = Instant::now();
            let limits = Limits {
                memory: Budget::of(spec).total(),
                pids: THREADS + u64::from(spec.cpus),
                // One more for emulated devices and the API.
                cpu_percent: u64::from(spec.cpus + 1) * 100,
            };
            let groups = cgroup::create(&name_of(&spec.id, jail), limits, &cgroup::journal(&jail.root))?;
            let staged = staged(spec, jail, firecracker)?;
            timings.jail = start.elapsed();
            Ok((groups, staged))
        });
        let ((mut groups, mut staged), _) = made?;
        let cgroups = groups.hand_to_jailer();
        let mut warnings = std::mem::take(&mut groups.warnings);
        warnings.append(&mut staged.warnings);

        let start = Instant::now();
        let pipe = || io::pipe().or_failed("vmm.pipe", || "cannot make a pipe for the console");
        let ((printed, output), (input, typed)) = (pipe()?, pipe()?);
        let console = Serial::Pipe { output: printed.into(), input: typed.into() };
        let netns: Option<OwnedFd> = net
            .map(|ns| ns.as_fd().try_clone_to_owned())
            .transpose()
            .or_failed("vmm.spawn", || "cannot duplicate a namespace descriptor")?;
        let order = jailer::Order {
            spec,
            jail,
            firecracker,
            jailer,
            netns: netns.as_ref(),
            cgroups,
            largest: staged.largest,
        };
        let adopted = jailer::run(&order, (input.into(), output.into()), &groups.procs, &staged.root)?;
        timings.spawn = start.elapsed();

        let pidfd = match adopted.pidfd.try_clone() {
            Ok(pidfd) => pidfd,
            Err(e) => {
                jailer::discard(&adopted);
                return Err(Error::failed("vmm.spawn", "cannot duplicate the VMM's pidfd").because(e));
            }
        };
        let pipes = [(Said::Log, adopted.stderr), (Said::Log, staged.log), (Said::Metrics, staged.metrics)];
        let monitor = ProcessMonitor::new(adopted.pid, adopted.pidfd, pipes)
            .or_failed("vmm.monitor", || "cannot watch the VMM")?;
        Ok(Launched {
            pid: adopted.pid,
            pidfd,
            control: Control::Listening(staged.control),
            console,
            monitor: Monitor::Process(monitor),
            keyboard: Some(Keyboard { root: staged.root }),
            warnings,
            timings,
        })
    }
}

/// Whether this process can use KVM at all.
///
/// # Errors
/// `vmm.no-kvm`, with what would mend it.
pub fn check_kvm() -> Result<()> {
    kvm_opens(Path::new("/dev/kvm"))
}

/// What a version must have to read the configuration that `spec` becomes, wherever its jail will be.
///
/// # Errors
/// What Firecracker cannot do in any version.
pub fn needs(spec: &VmSpec) -> Result<Vec<version::Need>> {
    let inside = |name: &str| Path::new("/").join(name);
    let drives = spec.drives.iter().map(|drive| inside(&drive.role)).collect();
    let paths = inside_jail(inside("kernel"), inside("initramfs"), drives);
    Ok(config::config(spec, &paths, "")?.needs())
}

/// Told before anything is staged: Firecracker itself would say it last.
fn kvm_opens(device: &Path) -> Result<()> {
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(e) => {
            let help = match e.kind() {
                ErrorKind::NotFound => "load kvm_intel or kvm_amd; in a VM, enable nested virtualisation",
                _ => "give this user the right to open it; in a container, pass the device in",
            };
            Err(Error::host("vmm.no-kvm", "Firecracker needs /dev/kvm, which cannot be opened")
                .because(e)
                .help(help))
        }
    }
}

/// The jail with everything in it.
fn staged(spec: &VmSpec, jail: &JailSpec, firecracker: &Path) -> Result<stage::Staged> {
    check_place(&jail.root, true)?;
    let staged = stage::stage(spec, jail, firecracker, CONTROL_PORT)?;
    let paths = inside_jail(staged.kernel.clone(), staged.initramfs.clone(), staged.drives.clone());
    let kernel_args = kernel_args::build(spec.tuning.console == Console::All);
    boot_args::check(&kernel_args, boot_args::Machine::Firecracker)?;
    let config = config::config(spec, &paths, &kernel_args)?;
    stage::write_config(&staged.root, stage::CONFIG, &config.to_json())?;
    if let Some(file) = &spec.tuning.cpu_file {
        let changes = file.changes.as_ref().ok_or_else(|| Error::bug("a CPU template was not read"))?;
        stage::write_config(&staged.root, stage::CPU, &changes.to_json())?;
    }
    Ok(staged)
}

/// Where the jailed Firecracker finds what it is given.
fn inside_jail(kernel: PathBuf, initramfs: PathBuf, drives: Vec<PathBuf>) -> JailPaths {
    let inside = |name: &str| Path::new("/").join(name);
    JailPaths {
        kernel,
        initramfs: Some(initramfs),
        drives,
        vsock: inside(stage::VSOCK),
        cpu: inside(stage::CPU),
        log: Some(inside(stage::LOG)),
        metrics: Some(inside(stage::METRICS)),
    }
}
