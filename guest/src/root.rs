//! The root file system: sealed layers under one writable layer, stacked by overlayfs, then entered.

use crate::failure::{Context, Failure, Result};
use firegopher_protocol::Disk;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{chdir, chroot};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for a disk's node to appear in /dev.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the new root is put together. Short, as all layers must fit one page of mount options.
const NEW: &str = "/r";

/// The block device of a disk: index 0 is /dev/vda, 26 is /dev/vdaa.
pub fn device(disk: &Disk) -> PathBuf {
    let index = usize::from(disk.index);
    let letter = |i: usize| char::from(b'a' + (i % 26) as u8);
    let name: String = match index / 26 {
        0 => [letter(index)].iter().collect(),
        n => [letter(n - 1), letter(index)].iter().collect(),
    };
    Path::new("/dev").join(format!("vd{name}"))
}

/// Mounts the ext4 image of a disk.
pub fn mount_ext4(disk: &Disk, at: &Path, flags: MsFlags) -> Result<()> {
    let device = device(disk);
    let end = Instant::now() + PATIENCE;
    while !device.exists() {
        if Instant::now() >= end {
            return Err(Failure::new(format!("the disk {} did not appear", device.display())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let flags = if disk.read_only { flags | MsFlags::MS_RDONLY } else { flags };
    mount(Some(&device), at, Some("ext4"), flags, None::<&str>)
        .context(|| format!("mounting {} as ext4", device.display()))
}

/// Stacks `layers`, lowest first, under a writable layer on `scratch` or in memory, and makes the result `/`.
/// /dev, /proc and /sys are out of sight afterwards, until `mounts::late`.
pub fn enter(layers: &[Disk], scratch: Option<&Disk>, kernel: &str) -> Result<()> {
    if layers.is_empty() {
        return Err(Failure::new("the root has no disk"));
    }
    require_overlayfs(&fs::read_to_string("/proc/filesystems").unwrap_or_default(), kernel)?;
    make_dir("/l")?;
    for (n, layer) in layers.iter().enumerate() {
        let at = format!("/l/{n}");
        make_dir(&at)?;
        mount_ext4(layer, Path::new(&at), MsFlags::MS_RDONLY)?;
    }
    make_dir("/s")?;
    match scratch {
        Some(disk) => mount_ext4(disk, Path::new("/s"), MsFlags::MS_NOATIME)?,
        None => mount(Some("tmpfs"), "/s", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .context(|| "mounting a tmpfs for the root".to_owned())?,
    }
    make_dir("/s/upper")?;
    make_dir("/s/work")?;
    hide_lost_found()?;
    make_dir(NEW)?;
    stack(layers.len())?;
    // What is mounted below the old root stays there, out of everybody's reach.
    chdir(NEW).context(|| "entering the root".to_owned())?;
    mount(Some(NEW), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context(|| "moving the root to /".to_owned())?;
    chroot(".").context(|| "entering the root".to_owned())?;
    chdir("/").context(|| "entering the root".to_owned())
}

/// Every ext4 file system has a lost+found, and no root that people know has one: a whiteout, as overlayfs calls it,
/// takes it out of sight.
fn hide_lost_found() -> Result<()> {
    mknod("/s/upper/lost+found", SFlag::S_IFCHR, Mode::empty(), 0)
        .context(|| "hiding the root's lost+found".to_owned())
}

fn stack(layers: usize) -> Result<()> {
    let lower: Vec<String> = (0..layers).rev().map(|n| format!("/l/{n}")).collect();
    let plain = format!("lowerdir={},upperdir=/s/upper,workdir=/s/work", lower.join(":"));
    // The writable layer is thrown away with the VM, so syncing it protects nothing (volatile, Linux 5.10), and
    // directories of the image can be renamed as on any file system (redirect_dir).
    let wanted = format!("{plain},volatile,redirect_dir=on");
    let overlay = |data: &str| mount(Some("root"), NEW, Some("overlay"), MsFlags::empty(), Some(data));
    match overlay(&wanted) {
        Err(Errno::EINVAL) => overlay(&plain),
        other => other,
    }
    .context(|| "stacking the root by overlayfs".to_owned())
}

/// Refuses a kernel without overlayfs by name. `filesystems` is the text of /proc/filesystems.
fn require_overlayfs(filesystems: &str, kernel: &str) -> Result<()> {
    if filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("overlay")) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the kernel {kernel} has no overlayfs, which the root needs: use one with CONFIG_OVERLAY_FS built in, \
         or with its overlay module"
    )))
}

fn make_dir(path: &str) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("creating {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(index: u8) -> String {
        device(&Disk { index, read_only: true }).display().to_string()
    }

    #[test]
    fn disks_are_lettered_as_the_kernel_does() {
        assert_eq!(path_of(0), "/dev/vda");
        assert_eq!(path_of(25), "/dev/vdz");
        assert_eq!(path_of(26), "/dev/vdaa");
        assert_eq!(path_of(27), "/dev/vdab");
        assert_eq!(path_of(255), "/dev/vdiv");
    }

    #[test]
    fn a_kernel_without_overlayfs_is_refused_by_name() {
        let error = require_overlayfs("nodev\tsysfs\n\text4\n", "6.1.0-demo").unwrap_err().to_string();
        assert!(error.contains("6.1.0-demo") && error.contains("overlayfs"), "{error}");
        assert!(require_overlayfs("nodev\tsysfs\nnodev\toverlay\n", "6.1.0-demo").is_ok());
    }
}
