//! Builds the sealed base image and its index.

use super::archive::{self, Limits};
use super::index::Index;
use super::oci::Layer;
use super::place::Placer;
use super::tree::Meta;
use super::writer::{Ext4, ImageWriter as _, create_file, write_error};
use super::{BASE_IMAGE, BASE_INDEX, Role, copy, debian, maintainer, oci, room, workload};
use crate::error::{Context, Error, Result};
use crate::listing::Listing;
use fs_err as fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What a base image is made of.
#[derive(Debug, Clone, Copy)]
pub enum BaseSource<'a> {
    /// Debian packages, all that the image shall hold.
    Debs(&'a [PathBuf]),
    /// Debian packages that were installed with their scripts, as a tar.
    Installed(&'a Path),
    /// A root file system as a tar (plain or compressed) or zip.
    Tar(&'a Path),
    /// The layers of a container image, lowest first.
    Layers(&'a [Layer]),
    /// A root file system as a scanned directory; root owns everything in it.
    Dir {
        /// The directory.
        root: &'a Path,
        /// What the scan saw in it.
        listing: &'a Listing,
    },
    /// A finished ext4 image, which is copied.
    Ext4(&'a Path),
}

/// Writes `out_dir/base.ext4` and `out_dir/index.json`; gives warnings back. Large temporary files, nameless, go to
/// `scratch_dir`.
///
/// # Errors
/// `deb.damaged`, `archive.*`, `image.*`; `oci.diff-id` for a layer that unpacks to other bytes than it should. Neither
/// file is left behind.
pub fn build_base(source: BaseSource<'_>, out_dir: &Path, scratch_dir: &Path) -> Result<Vec<String>> {
    let image = out_dir.join(BASE_IMAGE);
    let mut warnings = Vec::new();
    let nothing = Index::default();
    let index = match source {
        BaseSource::Debs(debs) => {
            let placer = debian::assemble(debs, &nothing, scratch_dir, &mut warnings)?;
            Ext4.write(&placer.tree, Role::Base, &image)?;
            Index::of_tree(&placer.tree)
        }
        BaseSource::Tar(path) | BaseSource::Installed(path) => {
            let name = path.display().to_string();
            let entries = archive::read(path, scratch_dir, (0, 0), Limits::default())?;
            let mut placer = Placer::new(&nothing);
            placer.begin(&name, "/", Meta::root(0o755))?;
            archive::place(entries, &mut placer)?;
            if let BaseSource::Installed(_) = source {
                let origin = placer.origin();
                maintainer::tmpfiles(&mut placer.tree, origin);
            }
            Ext4.write(&placer.tree, Role::Base, &image)?;
            Index::of_tree(&placer.tree)
        }
        BaseSource::Layers(layers) => {
            let tree = oci::assemble(layers, scratch_dir, Limits::default())?;
            Ext4.write(&tree, Role::Base, &image)?;
            Index::of_tree(&tree)
        }
        BaseSource::Dir { root, listing } => {
            let mut placer = Placer::new(&nothing);
            workload::place_dir(&mut placer, "/", (0, 0), root, listing)?;
            Ext4.write(&placer.tree, Role::Base, &image)?;
            Index::of_tree(&placer.tree)
        }
        BaseSource::Ext4(path) => {
            let index = Index::of_ext4(path)?;
            copy_image(path, &image)?;
            index
        }
    };
    let saved = index.save(&out_dir.join(BASE_INDEX));
    if saved.is_err() {
        let _ = fs::remove_file(&image);
    }
    saved.map(|()| warnings)
}

/// The file name of what was said when a base image was built, if anything was.
const WARNINGS: &str = "warnings.json";

/// Keeps warnings beside the image that they are about.
///
/// # Errors
/// Failed if they cannot be written.
pub fn save_warnings(out_dir: &Path, warnings: &[String]) -> Result<()> {
    if warnings.is_empty() {
        return Ok(());
    }
    let path = out_dir.join(WARNINGS);
    let text = serde_json::to_vec(warnings).map_err(|e| Error::bug(e.to_string()))?;
    fs::write(&path, text).or_failed("image.write", || format!("cannot write {}", path.display()))
}

/// What was said when the base image in a directory was built.
pub fn warnings_of(dir: &Path) -> Vec<String> {
    let text = fs::read(dir.join(WARNINGS)).unwrap_or_default(); // Absent: nothing.
    serde_json::from_slice(&text).unwrap_or_default()
}

fn copy_image(from: &Path, to: &Path) -> Result<()> {
    let source =
        fs::File::open(from).or_failed("image.read", || format!("cannot read {}", from.display()))?;
    let target = create_file(to, 0)?;
    let copied = (|| {
        if copy::share(&source, &target) {
            return Ok(());
        }
        // Holes stay holes: what it occupies there it occupies here.
        let needed = source.metadata().map_or(0, |meta| meta.blocks() * 512);
        let dir = to.parent().unwrap_or(Path::new("/"));
        room::check(dir, needed, &format!("a copy of {}", from.display()))?;
        copy::copy(&source, &target).map_err(|e| write_error(to, e))
    })();
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}
