//! Volumes: the disks that outlive a boot. A volume that cannot be mounted ends the boot, as the workload would
//! otherwise write what must last into a root that is thrown away.

use crate::failure::{Context, Failure, Result};
use crate::fill::{self, Below};
use crate::root;
use firegopher_protocol::VolumeMount;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Mounts all volumes, parents first, and makes fresh ones ready for the workload's user. `mounted` gets the mount points
/// in the order of mounting, also where a later step fails.
pub fn mount_all(volumes: &[VolumeMount], uid: u32, gid: u32, mounted: &mut Vec<PathBuf>) -> Result<()> {
    let ordered = parents_first(volumes)
        .into_iter()
        .map(|volume| {
            let at = mount_point(volume)?;
            let below = Below::open(&at)?;
            Ok((volume, at, below))
        })
        .collect::<Result<Vec<_>>>()?;
    for (volume, at, below) in ordered {
        let subject = format!("the volume {:?} at {}", volume.name, at.display());
        fs::create_dir_all(&at).context(|| format!("creating the mount point of {subject}"))?;
        root::mount_ext4(&volume.disk, &at, MsFlags::MS_NODEV)
            .map_err(|f| Failure::new(format!("{subject}: {f}")))?;
        mounted.push(at.clone());
        if !volume.disk.read_only {
            fill::settle(&at, &below, uid, gid, &subject)?;
        }
    }
    Ok(())
}

/// Writes everything back and unmounts, children first. What is still in use becomes read-only, which leaves it as
/// clean. Returns what went wrong.
pub fn unmount_all(mounted: &[PathBuf]) -> Vec<String> {
    let mut problems = Vec::new();
    for at in mounted.iter().rev() {
        let done = match umount(at.as_path()) {
            Err(Errno::EBUSY) => mount(
                None::<&str>,
                at.as_path(),
                None::<&str>,
                MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
                None::<&str>,
            ),
            other => other,
        };
        problems.extend(done.context(|| format!("unmounting {}", at.display())).err().map(|f| f.to_string()));
    }
    problems
}

fn parents_first(volumes: &[VolumeMount]) -> Vec<&VolumeMount> {
    let mut ordered: Vec<_> = volumes.iter().collect();
    ordered.sort_by_key(|volume| Path::new(&volume.at).components().count());
    ordered
}

fn mount_point(volume: &VolumeMount) -> Result<PathBuf> {
    let path = Path::new(&volume.at);
    let mut components = path.components();
    let absolute = components.next() == Some(Component::RootDir);
    let inside = components.clone().count() > 0 && components.all(|c| matches!(c, Component::Normal(_)));
    if absolute && inside {
        Ok(path.to_owned())
    } else {
        Err(Failure::new(format!("the volume {:?} cannot be mounted at {:?}", volume.name, volume.at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firegopher_protocol::Disk;

    fn volume(at: &str) -> VolumeMount {
        VolumeMount { name: "v".into(), disk: Disk { index: 3, read_only: false }, at: at.into() }
    }

    #[test]
    fn nested_volumes_are_mounted_parents_first_whatever_their_order() {
        let volumes = [volume("/data/deep/er"), volume("/data"), volume("/data/deep")];
        let order: Vec<_> = parents_first(&volumes).iter().map(|v| v.at.as_str()).collect();
        assert_eq!(order, ["/data", "/data/deep", "/data/deep/er"]);
    }

    #[test]
    fn a_mount_point_is_absolute_below_the_root_and_without_dots() {
        for bad in ["", "/", "data", "/data/../etc", "//"] {
            assert!(mount_point(&volume(bad)).is_err(), "{bad:?}");
        }
        assert!(mount_point(&volume("/data")).is_ok());
    }
}
