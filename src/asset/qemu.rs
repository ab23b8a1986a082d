//! The QEMU tree: one program with its own loader and libraries, independent of what the host has installed.

use super::vmm_closure::{Place, pieces};
use crate::error::{Context, Result};
use fs_err as fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes `out/qemu-system-x86_64`, `out/ld.so`, `out/lib/` (every library that is needed, by the name it is
/// needed by), `out/modules/` and `out/share/` (firmware) from QEMU's packages. `out` is made.
///
/// Run it as `ld.so --library-path lib qemu-system-x86_64 -L share …` with `QEMU_MODULE_DIR` naming `modules`.
///
/// # Errors
/// Failed if the packages lack a part, or the tree cannot be written.
pub fn qemu_tree(debs: &[PathBuf], out: &Path) -> Result<()> {
    let failed = || format!("cannot write the QEMU tree {}", out.display());
    for dir in ["lib", "modules", "share"] {
        fs::create_dir_all(out.join(dir)).or_failed("asset.write", failed)?;
    }
    for piece in pieces(debs)? {
        let (dir, mode) = match piece.place {
            Place::Program | Place::Loader => ("", 0o755),
            Place::Library => ("lib", 0o644),
            Place::Module => ("modules", 0o644),
            Place::Firmware => ("share", 0o644),
        };
        let path = out.join(dir).join(&piece.name);
        fs::write(&path, &piece.bytes).or_failed("asset.write", failed)?;
        fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).or_failed("asset.write", failed)?;
    }
    Ok(())
}
