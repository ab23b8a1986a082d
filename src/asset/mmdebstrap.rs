//! The mmdebstrap tree: the script, and a perl with what it needs of modules and libraries, independent of what the
//! host has installed.

use super::members::for_each;
use crate::error::{Context, Error, Result};
use fs_err as fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is resolved to find the packages of the tree.
pub(super) const PACKAGES: &[&str] = &["mmdebstrap"];

/// Whether the tree takes anything of a package. perl-base alone lacks modules that mmdebstrap uses.
pub(super) fn uses(package: &str) -> bool {
    matches!(package, "mmdebstrap" | "perl-base" | "libc6" | "libcrypt1")
        || ["perl-modules-5", "libperl5"].iter().any(|start| package.starts_with(start))
}

/// Writes `out/mmdebstrap`, `out/merged-usr.sh`, `out/perl`, `out/ld.so`, `out/lib/` and `out/modules/` (one merged
/// directory for @INC) from the packages of mmdebstrap and perl.
///
/// # Errors
/// Failed if the packages lack a part, or the tree cannot be written.
pub fn mmdebstrap_tree(debs: &[PathBuf], out: &Path) -> Result<()> {
    let failed = || format!("cannot write the mmdebstrap tree {}", out.display());
    for dir in ["lib", "modules"] {
        fs::create_dir_all(out.join(dir)).or_failed("asset.write", failed)?;
    }
    for deb in debs {
        for_each(deb, |member| {
            let Some((place, mode)) = place(&member.path) else { return Ok(()) };
            let path = out.join(place);
            if member.target.is_some() || path.exists() {
                return Ok(());
            }
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, member.read()?)?;
            fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
        })?;
    }
    for needed in [
        "mmdebstrap",
        "merged-usr.sh",
        "perl",
        "ld.so",
        "lib/libc.so.6",
        "lib/libcrypt.so.1",
        "modules/POSIX.pm",
    ] {
        if !out.join(needed).exists() {
            return Err(Error::failed(
                "asset.no-mmdebstrap",
                format!("the packages of mmdebstrap and perl lack {needed}"),
            )
            .help("this distribution builds them in a way that is not known here"));
        }
    }
    Ok(())
}

/// Where a file of a package goes in the tree, and its mode; `None` if it is not needed.
fn place(path: &str) -> Option<(String, u32)> {
    let plain = |to: &str| Some((to.to_owned(), 0o644));
    let program = |to: &str| Some((to.to_owned(), 0o755));
    match path {
        "usr/bin/mmdebstrap" => return program("mmdebstrap"),
        "usr/share/mmdebstrap/hooks/merged-usr/setup00.sh" => return program("merged-usr.sh"),
        // One file with two names, of which a tar holds only the first as a file.
        "usr/bin/perl" => return program("perl"),
        _ if path.starts_with("usr/bin/perl5.") => return program("perl"),
        _ => {}
    }
    if let Some(module) = module(path) {
        let documentation = module.ends_with(".pod") && !module.starts_with("pod/");
        return if documentation { None } else { plain(&format!("modules/{module}")) };
    }
    let name = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/x86_64-linux-gnu/")?;
    match name {
        "ld-linux-x86-64.so.2" => program("ld.so"),
        "libc.so.6" | "libm.so.6" | "libdl.so.2" | "libpthread.so.0" => plain(&format!("lib/{name}")),
        // The name by which it is needed is a link in the package.
        _ if name.starts_with("libcrypt.so.1.") => plain("lib/libcrypt.so.1"),
        _ => None,
    }
}

/// The path of a perl module below any of the directories of @INC.
fn module(path: &str) -> Option<&str> {
    if let Some(base) = path.strip_prefix("usr/lib/x86_64-linux-gnu/perl-base/") {
        return Some(base);
    }
    let versioned = ["usr/lib/x86_64-linux-gnu/perl/", "usr/share/perl/"];
    let rest = versioned.iter().find_map(|dir| path.strip_prefix(dir))?;
    let (version, module) = rest.split_once('/')?;
    version.starts_with("5.").then_some(module)
}
