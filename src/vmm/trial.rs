//! Boots a guest of a few instructions to its end: proof that a VMM, its jail and KVM work together on this host. Owns
//! the directories `.firegopher-trial-…`, and removes those that a killed trial left.

use super::firecracker::stub::Stub;
use super::jail::{self, lease};
use super::spec::{JailSpec, NetSpec, VmSpec, VmmBinary, firecracker_programs};
use super::{Ended, backend};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::name::{Name, VmId};
use fs_err as fs;
use nix::unistd::geteuid;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// It takes some 50 ms, and a second or two where QEMU emulates a busy host's CPU.
const PATIENCE: Duration = Duration::from_secs(30);
/// In the arguments that the guest prints.
const PROOF: &str = "firegopher.end=";
/// Then a number by chance.
const PREFIX: &str = ".firegopher-trial-";
/// Of leases.
const PROJECT: &str = "trial";

/// What a trial showed.
#[derive(Debug, Clone)]
pub struct Trial {
    /// From the first check to the guest's end.
    pub took: Duration,
    /// What the guest printed.
    pub console: String,
}

/// Tries the Firecracker in `dir`. Leaves nothing.
pub fn firecracker(dir: &Path, home: &Home) -> Result<Trial> {
    let [firecracker, jailer] = firecracker_programs(dir).map(|path| path.canonicalize().unwrap_or(path));
    super::firecracker::usable(&firecracker, &jailer)?;
    trial(VmmBinary::Firecracker { firecracker, jailer }, true, Stub::Reset, home)
}

/// Tries a QEMU of the store, in a jail if this is root, as it is used where KVM has no hardware. Leaves nothing.
pub fn qemu(tree: &Path, home: &Home) -> Result<Trial> {
    trial(VmmBinary::QemuTree(tree.to_owned()), false, Stub::PvhReset, home)
}

/// Beside the store's own file system, where jails are; the home need not exist.
fn place(home: &Home) -> PathBuf {
    let existing = home.root().ancestors().find(|dir| dir.is_dir());
    existing.unwrap_or(Path::new("/")).to_owned()
}

fn trial(vmm: VmmBinary, kvm: bool, stub: Stub, home: &Home) -> Result<Trial> {
    let (base, _lock) = claim(&place(home)).or_failed("vmm.trial", || "cannot prepare a trial of the VMM")?;
    let name = |text: &str| Name::new(text).map_err(Error::bug);
    let (project, vm) =
        (name(PROJECT)?, lease_name(&base).ok_or_else(|| Error::bug("a trial without a number"))?);
    let uid = geteuid().is_root().then(|| lease::lease(home, &project, &vm)).transpose()?;
    let jail = uid.map(|uid| JailSpec { root: base.join("jail"), uid, gid: uid });
    let spec = VmSpec {
        id: VmId::derive(&project, &vm),
        vmm,
        kvm,
        kernel: base.join("kernel"),
        initramfs: base.join("initramfs"),
        tuning: Default::default(),
        cpus: 1,
        memory: 128 << 20,
        drives: Vec::new(),
        net: NetSpec::None,
        jail: jail.clone(),
    };
    let prepare = || {
        for (path, bytes) in [(&spec.kernel, stub.elf()), (&spec.initramfs, vec![0; 512])] {
            fs::write(path, bytes)?;
            fs::set_permissions(path, PermissionsExt::from_mode(0o444))?;
        }
        std::io::Result::Ok(())
    };
    let prepared = prepare().or_failed("vmm.trial", || "cannot prepare a trial of the VMM");
    let result = prepared.and_then(|()| run(&spec));
    let cleaned = remove(&base);
    let released = lease::release(home, &project, &vm);
    result.and_then(|trial| cleaned.and(released).map(|()| trial))
}

/// Makes a trial's directory. Its lock tells a sweep, in whichever pid namespace, that the trial goes on.
fn claim(place: &Path) -> std::io::Result<(PathBuf, std::fs::File)> {
    loop {
        let base = place.join(format!("{PREFIX}{:016x}", fastrand::u64(..)));
        std::fs::DirBuilder::new().mode(0o700).create(&base)?;
        // A sweep may have found it before it was locked.
        let Ok(dir) = std::fs::File::open(&base) else { continue };
        if dir.try_lock().is_ok() && base.symlink_metadata().is_ok() {
            return Ok((base, dir));
        }
    }
}

/// Under which name the trial of a directory leases its uid.
fn lease_name(base: &Path) -> Option<Name> {
    Name::new(format!("t-{}", base.file_name()?.to_str()?.strip_prefix(PREFIX)?)).ok()
}

fn run(spec: &VmSpec) -> Result<Trial> {
    let begin = Instant::now();
    let mut launched = backend(spec).launch(spec, None)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failed("vmm.trial", || "cannot start an event loop")?;
    let ended = runtime.block_on(async {
        // An error here means that it is still up; dropping `launched` ends it.
        tokio::time::timeout(PATIENCE, launched.monitor.ended()).await
    });
    let took = begin.elapsed();
    let ended = match ended {
        Ok(ended) => ended.or_failed("vmm.trial", || "cannot watch the VMM")?,
        Err(_) => {
            let text = format!("a guest of a few instructions did not end within {} s", PATIENCE.as_secs());
            return Err(Error::host("vmm.trial", text).help("this VMM does not run guests on this host"));
        }
    };
    let mut console = Vec::new();
    // The writer is gone: reading ends by itself.
    let reader = launched.console.reader();
    reader
        .and_then(|reader| reader.take(64 << 10).read_to_end(&mut console))
        .or_failed("vmm.trial", || "cannot read the guest's console")?;
    let console = String::from_utf8_lossy(&console).into_owned();
    // So short a guest may be over before QEMU has read that its events are wanted.
    let untold = matches!(&ended, Ended::Died(death) if death.status.success());
    match ended {
        _ if untold && console.contains(PROOF) => Ok(Trial { took, console }),
        Ended::GuestReset if console.contains(PROOF) => Ok(Trial { took, console }),
        Ended::GuestReset => Err(Error::host("vmm.trial", "a guest ended without a word on its console")),
        other => Err(Error::host("vmm.trial", format!("a guest did not run: {other}"))),
    }
}

/// Removes a trial's directory, with what still runs in its jail.
fn remove(base: &Path) -> Result<()> {
    // The uid is in no path that is removed.
    jail::clean(&JailSpec { root: base.join("jail"), uid: 0, gid: 0 })?;
    jail::remove_tree(base)
}

/// Removes what trials left that were killed before they could. Returns how many there were.
pub fn sweep(home: &Home) -> Result<usize> {
    let mut swept = 0;
    // Where a trial is depends on how much of the home was there.
    for dir in home.root().ancestors() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if !name.as_bytes().starts_with(PREFIX.as_bytes()) {
                continue;
            }
            // A directory that others could have put here is not ours to remove.
            let ours = std::fs::symlink_metadata(&path).is_ok_and(|meta| {
                meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0
            });
            let lock = ours.then(|| std::fs::File::open(&path).ok()).flatten();
            let Some(_lock) = lock.filter(|lock| lock.try_lock().is_ok()) else { continue };
            remove(&path)?;
            if let (Ok(project), Some(vm), true) =
                (Name::new(PROJECT), lease_name(&path), geteuid().is_root())
            {
                lease::release(home, &project, &vm)?;
            }
            swept += 1;
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_firecracker_proves_itself_and_leaves_nothing() {
        let Some(dir) = std::env::var_os("FIREGOPHER_TEST_FIRECRACKER") else {
            crate::testing::skip("no firecracker");
            return;
        };
        if !geteuid().is_root() {
            crate::testing::skip("needs root");
            return;
        }
        let home = tempfile::tempdir().unwrap();
        // Two at once have a uid each.
        std::thread::scope(|scope| {
            let trials = [(); 2]
                .map(|()| scope.spawn(|| firecracker(Path::new(&dir), &Home::new(home.path())).unwrap()));
            for trial in trials {
                println!("{:?}", trial.join().unwrap());
            }
        });
        assert_eq!(entries(home.path()), [""; 0]);
    }

    #[test]
    fn a_dynamic_firecracker_fails_its_trial_before_anything_is_made() {
        let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [program, jailer] = firecracker_programs(dir.path());
        let dynamic = crate::vmm::program::tests::dynamic("/lib64/ld-linux-x86-64.so.2", 62);
        crate::vmm::program::tests::executable(&program, &dynamic);
        crate::vmm::program::tests::executable(&jailer, &Stub::Reset.elf());
        let error = firecracker(dir.path(), &Home::new(home.path())).unwrap_err();
        assert_eq!(error.code(), "vmm.firecracker-dynamic");
        assert_eq!(entries(home.path()), [""; 0]);
    }

    #[test]
    fn a_qemu_of_the_store_proves_itself_and_leaves_nothing() {
        let Some(files) = crate::testing::artifacts() else { return };
        let _turn = crate::testing::turn();
        let home = tempfile::tempdir().unwrap();
        println!("{:?}", qemu(&files.qemu, &Home::new(home.path())).unwrap());
        assert_eq!(entries(home.path()), [""; 0]);
        let broken = tempfile::tempdir().unwrap();
        qemu(broken.path(), &Home::new(home.path())).unwrap_err();
        assert_eq!(entries(home.path()), [""; 0]);
    }

    #[test]
    fn what_a_killed_trial_left_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().join("state/home"));
        let private = |name: String, mode| {
            let path = dir.path().join(name);
            std::fs::DirBuilder::new().mode(mode).create(&path).unwrap();
            path
        };
        let dead = private(format!("{PREFIX}0123"), 0o700);
        fs::create_dir(dead.join("jail")).unwrap();
        fs::write(dead.join("jail/file"), "x").unwrap();
        let (alive, _lock) = claim(dir.path()).unwrap();
        let kept =
            [alive, private(format!("{PREFIX}4567"), 0o755), private(".firegopher-other".to_owned(), 0o700)];
        std::os::unix::fs::symlink(&kept[2], dir.path().join(format!("{PREFIX}89ab"))).unwrap();
        assert_eq!(sweep(&home).unwrap(), 1);
        assert!(!dead.exists() && kept.iter().all(|path| path.exists()));
        assert_eq!(sweep(&home).unwrap(), 0);
    }
}
