//! From a VM's settings and its artifacts to what its supervisor is told.

use super::{Outputs, Work, run_config};
use crate::digest::{FieldHasher, ObjectDigest};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::manifest::model::{
    Firecracker, FirecrackerFrom, KernelSource, Root, Secret, Vm, VmmSource, Volume,
};
use crate::name::{Name, VmId};
use crate::net::address;
use crate::plan::{Desired, Host, Scan, ScannedSource, VmNodes};
use crate::store::{Action, Store};
use crate::supervise::{SuperviseSpec, VolumeSpec};
use crate::vmm::firecracker::config::{self, CpuChanges};
use crate::vmm::firecracker::version::{Need, Version};
use crate::vmm::room::{self, Machine};
use crate::vmm::spec::{Drive, JailSpec, NetSpec, VmSpec, VmmBinary, firecracker_programs};
use crate::vmm::tuning::HugePages;
use crate::vmm::{self, firecracker};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How this boot differs from the manifest's settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootOptions {
    /// Ends when its client goes; leaves no state.
    pub ephemeral: bool,
    /// The workload reads the client's standard input.
    pub stdin: bool,
}

/// What the supervisor of `vm` is told. Reads the secrets from this process's environment.
pub fn supervise_spec(
    vm: &Vm,
    nodes: &VmNodes,
    done: &Outputs,
    desired: &Desired,
    host: Host,
    options: BootOptions,
    work: &Work<'_>,
) -> Result<SuperviseSpec> {
    let version = version_for(vm, nodes.vmm, done, work)?;
    check_startable(vm, host, version)?;
    let id = VmId::derive(work.project, &vm.name);
    let object = |node: usize| work.store.object_path(&done.outputs[node]);
    let dir = work.home.vm(work.project, &vm.name);
    let volumes = volumes(vm, work.home, work.project);
    let drives = run_config::drive_plan(vm)
        .into_iter()
        .map(|role| {
            let (path, read_only) = match role.as_str() {
                "base" => (object(nodes.image).join("base.ext4"), true),
                "workload" => {
                    (object(nodes.unpack.ok_or_else(|| Error::bug("a workload without its layer"))?), true)
                }
                "scratch" => (dir.join("scratch.ext4"), false),
                _ => {
                    let volume = volumes.iter().find(|v| run_config::volume_role(&v.name) == role);
                    (volume.ok_or_else(|| Error::bug("a drive without its volume"))?.path.clone(), false)
                }
            };
            Ok(Drive { role, path, read_only })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut run = run_config::template(vm);
    run.stdin = options.stdin;
    // It ends with its client, who may look at output before taking more.
    run.patient = options.ephemeral;
    run.secrets = secrets(vm)?;
    let mut tuning = vm.tuning.clone();
    if let Some(file) = &mut tuning.cpu_file {
        file.changes = Some(cpu_changes(work.scan, &file.path)?);
    }
    let vm_spec = VmSpec {
        vmm: vmm_binary(vm, nodes, done, work)?,
        kvm: host.kvm,
        kernel: object(nodes.kernel).join("vmlinux"),
        initramfs: object(nodes.initramfs),
        tuning,
        cpus: vm.cpus,
        memory: vm.memory,
        drives,
        net: net(vm, &id, host, work)?,
        // uid 0 asks the supervisor to lease one.
        jail: host.root.then(|| JailSpec { root: dir.join("jail"), uid: 0, gid: 0 }),
        id,
    };
    if let Some(version) = version {
        let mut needs = firecracker_needs(vm);
        needs.extend(firecracker::needs(&vm_spec)?);
        firecracker::version::check(version, &needs)?;
    }
    Ok(SuperviseSpec {
        project: work.project.clone(),
        vm: vm.name.clone(),
        boot_key: desired.boot_key(),
        vm_spec,
        home: work.home.root().to_owned(),
        run,
        ports: vm.ports.clone(),
        restart: vm.restart,
        boot_timeout: vm.boot_timeout,
        ephemeral: options.ephemeral,
        scratch: match vm.root {
            Root::Scratch(size) => Some(size),
            Root::Tmpfs => None,
        },
        volumes,
        dir,
    })
}

fn vmm_binary(vm: &Vm, nodes: &VmNodes, done: &Outputs, work: &Work<'_>) -> Result<VmmBinary> {
    let scanned = |path: &Path| match work.scan.sources.get(&Scan::file_id(path)) {
        Some(ScannedSource::File { path, .. }) => Ok(path.clone()),
        _ => Err(Error::bug(format!("{} was not scanned", path.display()))),
    };
    match (&vm.vmm, nodes.vmm) {
        (VmmSource::QemuPath(path), _) => {
            let firmware = check_qemu(work.store, work.scan, path)?;
            Ok(VmmBinary::QemuPath { program: scanned(path)?, firmware })
        }
        (VmmSource::Firecracker(_), Some(node)) => {
            let tree = work.store.object_path(&done.outputs[node]);
            let [firecracker, jailer] = firecracker_programs(&tree);
            Ok(VmmBinary::Firecracker { firecracker, jailer })
        }
        (VmmSource::Firecracker(Firecracker { from: FirecrackerFrom::Dir(dir), .. }), None) => {
            let [firecracker, jailer] = firecracker_programs(dir);
            Ok(VmmBinary::Firecracker { firecracker: scanned(&firecracker)?, jailer: scanned(&jailer)? })
        }
        (_, Some(node)) => Ok(VmmBinary::QemuTree(work.store.object_path(&done.outputs[node]))),
        (_, None) => Err(Error::bug("a VM without its VMM")),
    }
}

/// The version of the Firecracker that boots `vm`; `None` where QEMU does.
pub fn version_for(
    vm: &Vm,
    vmm_node: Option<usize>,
    done: &Outputs,
    work: &Work<'_>,
) -> Result<Option<Version>> {
    planned_version(vm, vmm_node.map(|node| done.outputs[node]), work.store, work.scan)
}

/// The same, also before everything is there: `None` too for a release that is not in the store yet. `fetched` is the
/// VMM's tree in the store.
pub fn planned_version(
    vm: &Vm,
    fetched: Option<ObjectDigest>,
    store: &Store,
    scan: &Scan,
) -> Result<Option<Version>> {
    let VmmSource::Firecracker(Firecracker { from, .. }) = &vm.vmm else { return Ok(None) };
    match (from, fetched) {
        (FirecrackerFrom::Release(_), None) => Ok(None),
        (FirecrackerFrom::Release(_), Some(tree)) => {
            let programs = firecracker_programs(&store.object_path(&tree));
            firecracker_version(store, &programs, &[tree]).map(Some)
        }
        (FirecrackerFrom::Dir(dir), _) => scanned_version(store, scan, dir).map(Some),
    }
}

/// What a CPU template says that the manifest names and that was scanned.
///
/// # Errors
/// It is none; `cpu-template.changed` if it is another file by now than the one that keys were made of.
pub fn cpu_changes(scan: &Scan, path: &Path) -> Result<CpuChanges> {
    let Some(ScannedSource::File { path: file, digest, .. }) = scan.sources.get(&Scan::file_id(path)) else {
        return Err(Error::bug(format!("{} was not scanned", path.display())));
    };
    let shown = path.display().to_string();
    let mut bytes = Vec::new();
    fs_err::File::open(file)
        .and_then(|open| open.take(config::MAX_CPU_BYTES + 1).read_to_end(&mut bytes))
        .or_failed("cpu-template.read", || format!("cannot read the CPU template {shown}"))?;
    let changes = CpuChanges::parse(&bytes, &shown)?;
    if ObjectDigest::from(blake3::hash(&bytes)) != *digest {
        return Err(Error::failed("cpu-template.changed", format!("{shown} was changed meanwhile"))
            .help("run the command again"));
    }
    Ok(changes)
}

/// The version of the Firecracker in a directory that was scanned.
pub fn scanned_version(store: &Store, scan: &Scan, dir: &Path) -> Result<Version> {
    let (mut programs, mut digests) = (firecracker_programs(dir), Vec::new());
    for program in &mut programs {
        match scan.sources.get(&Scan::file_id(program)) {
            Some(ScannedSource::File { path, digest, .. }) => {
                *program = path.clone();
                digests.push(*digest);
            }
            _ => return Err(Error::bug(format!("{} was not scanned", program.display()))),
        }
    }
    firecracker_version(store, &programs, &digests)
}

/// Whether the QEMU that the manifest names, and that was scanned, can boot VMs, and where its firmware is. Asked once
/// for its bytes and its place, which decides where it looks for its data.
///
/// # Errors
/// As `vmm::identify_qemu`.
pub fn check_qemu(store: &Store, scan: &Scan, path: &Path) -> Result<PathBuf> {
    let Some(ScannedSource::File { path: program, digest, .. }) = scan.sources.get(&Scan::file_id(path))
    else {
        return Err(Error::bug(format!("{} was not scanned", path.display())));
    };
    let place = program.as_os_str().as_bytes();
    let key = FieldHasher::new("firegopher qemu v2").field(digest.to_hex()).field(place).finish().into();
    let known = store.action(&key).and_then(|action| store.read(&action.output).ok());
    let known = known.map(|bytes| PathBuf::from(std::ffi::OsString::from_vec(bytes)));
    if let Some(firmware) = known.filter(|firmware| firmware.is_file()) {
        return Ok(firmware);
    }
    let begin = Instant::now();
    let firmware = vmm::identify_qemu(program)?;
    let output = store.publish_bytes(firmware.as_os_str().as_bytes())?;
    let inputs = vec![("program".to_owned(), digest.to_string())];
    let millis = begin.elapsed().as_millis() as u64;
    store
        .record(&key, &Action { kind: "qemu".to_owned(), output, inputs, millis, subject: String::new() })?;
    Ok(firmware)
}

/// What a version of Firecracker must have to boot `vm`.
pub fn firecracker_needs(vm: &Vm) -> Vec<Need> {
    let mut needs = vm.tuning.needs();
    // A distribution's drivers are modules, which find their devices by ACPI.
    if matches!(vm.kernel, KernelSource::Debian(_)) {
        needs.push(Need::Acpi);
    }
    needs
}

/// The version that Firecracker and its jailer say they are; the digests name their bytes, or those of the tree that
/// they are in. Asked once for each: it takes as long as a good part of a boot.
fn firecracker_version(
    store: &Store,
    [firecracker, jailer]: &[PathBuf; 2],
    digests: &[ObjectDigest],
) -> Result<Version> {
    const KIND: &str = "firecracker version";
    let mut hasher = FieldHasher::new("firegopher firecracker version v2");
    for digest in digests {
        hasher.field(digest.to_hex());
    }
    let key = hasher.finish().into();
    let known = store.action(&key).and_then(|action| store.read(&action.output).ok());
    if let Some(version) = known.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok()) {
        return Ok(version);
    }
    let begin = Instant::now();
    let version = firecracker::version::of_both([firecracker, jailer])?;
    let output = store.publish_bytes(version.to_string().as_bytes())?;
    let inputs = digests.iter().map(|digest| ("program".to_owned(), digest.to_string())).collect();
    let millis = begin.elapsed().as_millis() as u64;
    store.record(&key, &Action { kind: KIND.to_owned(), output, inputs, millis, subject: String::new() })?;
    Ok(version)
}

/// With root a tap in the project's namespace, else QEMU's restricted user networking.
fn net(vm: &Vm, id: &VmId, host: Host, work: &Work<'_>) -> Result<NetSpec> {
    let mac = mac(work.project, &vm.name);
    if !host.root {
        return Ok(NetSpec::User { forwards: vm.ports.clone(), mac });
    }
    let subnet = address::lease(&work.home.project(work.project), &vm.name)?;
    Ok(NetSpec::Tap { name: id.tap_name(), host: subnet.host(), guest: subnet.guest(), mac })
}

/// A stable, locally administered unicast address.
fn mac(project: &Name, vm: &Name) -> [u8; 6] {
    let hash = crate::digest::FieldHasher::new("firegopher mac v1").field(project).field(vm).finish();
    let bytes = hash.as_bytes();
    [0x06, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]]
}

/// The volumes of `vm`, whether they exist or not.
pub fn volumes(vm: &Vm, home: &Home, project: &Name) -> Vec<VolumeSpec> {
    let spec = |volume: &Volume| VolumeSpec {
        name: volume.name.to_string(),
        path: home.volumes(project).join(format!("{}.ext4", volume.name)),
        size: volume.size,
    };
    vm.volumes.iter().map(spec).collect()
}

/// What would make a boot of `vm` fail on this host whatever is built and whatever else runs: its secrets are not in
/// this process's environment, it wants rights that there are not, or more memory than there is.
///
/// # Errors
/// The first of them.
pub fn check_host(vm: &Vm, host: Host) -> Result<()> {
    host_refusals(vm, host).into_iter().next().map_or(Ok(()), Err)
}

/// All of what `check_host` looks at.
pub fn host_refusals(vm: &Vm, host: Host) -> Vec<Error> {
    let memory = || {
        // Reserved pages are counted apart. What the balloon takes from the start is the host's.
        if vm.tuning.huge_pages == Some(HugePages::Reserved) {
            return Ok(());
        }
        let taken = vm.tuning.balloon.map_or(0, |balloon| balloon.amount);
        room::check_memory(vm.memory.saturating_sub(taken))
    };
    let vmm = || match (&vm.vmm, host.root) {
        // Without root it is refused already.
        (VmmSource::Firecracker(_), false) => Ok(()),
        (VmmSource::Firecracker(_), true) => firecracker::check_kvm(),
        (_, true) => Ok(()),
        (_, false) => vmm::check_forwards(&vm.ports),
    };
    let mut refusals: Vec<Error> = vm.secrets.iter().filter_map(|s| secret(vm, s).err()).collect();
    refusals.extend([check_root(vm, host), memory(), vmm()].into_iter().filter_map(Result::err));
    refusals
}

/// Refuses more devices than fit. `version` is what `version_for` says.
pub fn check_devices(vm: &Vm, version: Option<Version>) -> Result<()> {
    let machine = version.map_or(Machine::Qemu, Machine::Firecracker);
    room::check_devices(machine, run_config::drive_plan(vm).len(), vm.tuning.balloon.is_some())
}

/// What `check_host` and `check_devices` look at.
pub fn check_startable(vm: &Vm, host: Host, version: Option<Version>) -> Result<()> {
    check_devices(vm, version)?;
    check_host(vm, host)
}

fn check_root(vm: &Vm, host: Host) -> Result<()> {
    if host.root || !matches!(vm.vmm, VmmSource::Firecracker(_)) {
        return Ok(());
    }
    let text = format!("VM {}: Firecracker's jail needs root", vm.name);
    Err(Error::host("vmm.firecracker-root", text)
        .help("run as root, or write `vmm \"auto\"`: QEMU runs as you"))
}

fn secrets(vm: &Vm) -> Result<Vec<(String, String)>> {
    vm.secrets.iter().map(|each| Ok((each.name.clone(), secret(vm, each)?))).collect()
}

/// The value of a secret.
fn secret(vm: &Vm, secret: &Secret) -> Result<String> {
    let (name, env) = (&secret.name, &secret.env);
    std::env::var(env).map_err(|e| {
        let why = match e {
            std::env::VarError::NotPresent => "which is not set",
            std::env::VarError::NotUnicode(_) => "which is not UTF-8",
        };
        let text = format!("VM {}: the secret {name} comes from ${env}, {why}", vm.name);
        Error::usage("secret.missing", text)
            .help(format!("Set it for this command, as in `{env}=… firegopher up`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of what is wrong with the only VM of this manifest.
    fn refusal_by(vm: &str, root: bool, version: Option<&str>) -> Option<&'static str> {
        let text = format!("vm \"web\" {{ run \"x\"; {vm} }}\n");
        let manifest =
            crate::manifest::parse(&text, "test", Path::new("/")).unwrap_or_else(|_| panic!("{vm}"));
        let version = version.map(|text| text.parse().unwrap());
        check_startable(&manifest.vms[0], Host { root, kvm: false }, version).err().map(|e| e.code())
    }

    /// The same for an ordinary user.
    fn refusal(vm: &str) -> Option<&'static str> {
        refusal_by(vm, false, None)
    }

    fn volumes(count: usize) -> String {
        let volume = |n| format!("volume \"v{n}\" at=\"/v{n}\" size=\"32MiB\"");
        (0..count).map(volume).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_no_boot_could_succeed_with_is_known_before_one() {
        assert_eq!(refusal("port 8080 to=80"), None);
        assert_eq!(refusal("vmm \"firecracker\" { path \"/opt\" }"), Some("vmm.firecracker-root"));
        assert_eq!(refusal("secret \"K\" env=\"FIREGOPHER_TEST_NEVER_SET\""), Some("secret.missing"));
        assert_eq!(refusal("port 8080 to=80 address=\"::1\""), Some("vmm.user-net-ipv6"));
        // No host of tests has that much, and what a balloon takes from the start need not be there.
        assert_eq!(refusal("memory \"1024GiB\""), Some("vmm.memory"));
        assert_eq!(refusal("memory \"1024GiB\"; balloon \"1023GiB\""), None);
    }

    #[test]
    fn devices_are_counted_before_a_boot_with_balloon_and_for_the_vmm_that_it_is() {
        // Base and scratch are drives, too; network, control and random numbers are devices.
        assert_eq!(refusal(&volumes(19)), None);
        assert_eq!(refusal(&volumes(20)), Some("vmm.too-many-devices"));
        assert_eq!(refusal(&format!("{}; balloon \"1MiB\"", volumes(18))), None);
        assert_eq!(refusal(&format!("{}; balloon \"1MiB\"", volumes(19))), Some("vmm.too-many-devices"));
        let firecracker = |count, version| {
            let vm = format!("vmm \"firecracker\" {{ path \"/opt\" }}; {}", volumes(count));
            refusal_by(&vm, true, Some(version)) == Some("vmm.too-many-devices")
        };
        assert!(!firecracker(14, "1.6.0") && firecracker(15, "1.6.0"));
        assert!(!firecracker(12, "1.16.1") && firecracker(13, "1.16.1"));
    }
}
