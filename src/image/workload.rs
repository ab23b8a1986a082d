//! Builds the workload layer: directories, archives and single files, placed over the base.

use super::archive::{self, Limits};
use super::content::Content;
use super::index::Index;
use super::place::Placer;
use super::tree::{CONSTANT_TIME, Kind, Meta};
use super::writer::{Ext4, ImageWriter as _};
use super::{Role, WORKLOAD_IMAGE};
use crate::digest::ObjectDigest;
use crate::error::{Context, Error, Result};
use crate::listing::{Listed, ListedKind, Listing};
use fs_err as fs;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

/// One thing to place in the layer.
#[derive(Debug, Clone, Copy)]
pub struct WorkloadItem<'a> {
    /// What.
    pub source: WorkloadSource<'a>,
    /// Where: an absolute path in the guest. For a single file its own path, unless it ends in '/' or is a directory.
    pub to: &'a str,
    /// uid and gid of directories, single files and members of zip archives; members of tar archives have their own.
    pub owner: (u32, u32),
}

/// Where an item's files come from.
#[derive(Debug, Clone, Copy)]
pub enum WorkloadSource<'a> {
    /// A scanned directory.
    Dir {
        /// The directory.
        root: &'a Path,
        /// What the scan saw in it.
        listing: &'a Listing,
    },
    /// A zip or tar, the latter plain or compressed.
    Archive(&'a Path),
    /// A single file.
    File {
        /// The file.
        path: &'a Path,
        /// Of its contents.
        digest: ObjectDigest,
        /// 0755 instead of 0644.
        executable: bool,
    },
}

/// Writes `out_dir/workload.ext4`, in which later items win over earlier ones. Contents are hashed again while they
/// are copied. Archives are decompressed to nameless files in `scratch_dir`.
///
/// # Errors
/// `image.changed` if a file is not what its listing says, `image.replaces-directory` and others for what cannot be
/// placed, `archive.*` for archives that are damaged or hostile, `image.disk-full`. No image is left behind.
pub fn build_workload(
    items: &[WorkloadItem<'_>],
    base_index: &Path,
    out_dir: &Path,
    scratch_dir: &Path,
) -> Result<Vec<String>> {
    let index = Index::load(base_index)?;
    let mut placer = Placer::new(&index);
    let mut archives = Vec::new();
    for item in items {
        if !item.to.starts_with('/') {
            return Err(Error::bug(format!("`to` is not absolute: {:?}", item.to)));
        }
        match item.source {
            WorkloadSource::Dir { root, listing } => {
                place_dir(&mut placer, item.to, item.owner, root, listing)?;
            }
            WorkloadSource::File { path, digest, executable } => {
                place_file(&mut placer, item, path, digest, executable)?;
            }
            WorkloadSource::Archive(path) => {
                let stat = || {
                    fs::metadata(path).or_failed("archive.open", || format!("cannot read {}", path.display()))
                };
                archives.push((path, stat()?));
                let entries = archive::read(path, scratch_dir, item.owner, Limits::default())?;
                let name = path.display().to_string();
                placer.begin(&name, item.to, Meta::root(0o755))?;
                archive::place(entries, &mut placer)?;
            }
        }
    }
    let out = out_dir.join(WORKLOAD_IMAGE);
    Ext4.write(&placer.tree, Role::Workload, &out)?;
    for (path, before) in archives {
        if !fs::metadata(path).is_ok_and(|after| is_same(&before, &after)) {
            let _ = fs::remove_file(&out);
            return Err(Error::failed(
                "image.changed",
                format!("{} changed while it was read", path.display()),
            )
            .help("let whatever writes to it finish, then try again"));
        }
    }
    Ok(Vec::new())
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    let facts =
        |m: &Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    facts(a) == facts(b)
}

fn owned(mode: u16, (uid, gid): (u32, u32)) -> Meta {
    Meta { mode, uid, gid, mtime: (CONSTANT_TIME, 0), xattrs: Vec::new() }
}

/// Places a scanned directory at `to`, all of it owned by `owner`.
pub(super) fn place_dir(
    placer: &mut Placer<'_>,
    to: &str,
    owner: (u32, u32),
    root: &Path,
    listing: &Listing,
) -> Result<()> {
    let say = || format!("cannot read the directory {}", root.display());
    let dir: OwnedFd = fs::File::open(root).or_failed("image.read", say)?.into_parts().0.into();
    let (dir, shown) = (Arc::new(dir), Arc::new(root.to_owned()));
    placer.begin(root.display().to_string(), to, owned(0o755, owner))?;
    for Listed { path, mode, kind } in &listing.entries {
        let meta = owned(mode & 0o7777, owner);
        match kind {
            ListedKind::Dir => placer.dir(path, meta)?,
            ListedKind::Symlink { target } => {
                placer.leaf(path, owned(0o777, owner), Kind::Symlink(target.as_str().into()))?;
            }
            ListedKind::File { size, digest } => {
                let (dir, shown) = (Arc::clone(&dir), Arc::clone(&shown));
                let content = Content::Beneath { dir, shown, path: path.as_str().into(), digest: *digest };
                placer.leaf(path, meta, Kind::File { size: *size, content })?;
            }
        }
    }
    Ok(())
}

fn place_file(
    placer: &mut Placer<'_>,
    item: &WorkloadItem<'_>,
    path: &Path,
    digest: ObjectDigest,
    executable: bool,
) -> Result<()> {
    let size =
        fs::metadata(path).or_failed("image.read", || format!("cannot read {}", path.display()))?.len();
    let (dir, name) = if item.to.ends_with('/') || placer.is_dir(item.to) {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::usage("image.name", format!("the name of {} is not UTF-8", path.display()))
                .help("rename it")
        })?;
        (item.to, name)
    } else {
        item.to.rsplit_once('/').unwrap_or(("/", item.to))
    };
    placer.begin(path.display().to_string(), if dir.is_empty() { "/" } else { dir }, Meta::root(0o755))?;
    let content = Content::Host { path: path.to_owned(), digest };
    placer.leaf(name, owned(if executable { 0o755 } else { 0o644 }, item.owner), Kind::File { size, content })
}
