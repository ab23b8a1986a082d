//! Looks at Firecracker's two programs before anything is built on them.

use super::version::{self, Version};
use crate::error::{Context, Error, Result};
use crate::vmm::program;
use fs_err as fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// `EM_X86_64` (elf.h).
const X86_64: u16 = 62;
/// `EM_AARCH64`, for a message: the wrong one of the two release archives.
const AARCH64: u16 = 183;
/// What the jailer wants in the VMM's file name.
const NAME: &str = "firecracker";

/// Checks that both are programs of this host's kind, by their canonical paths.
pub fn inspect(firecracker: &Path, jailer: &Path) -> Result<()> {
    for (program, what) in [(firecracker, "Firecracker"), (jailer, "Firecracker's jailer")] {
        inspect_one(program, what)?;
    }
    check_static(firecracker)?;
    if let Some(fault) = program::fault(jailer) {
        let text = format!("Firecracker's jailer at {} cannot be run: {fault}", jailer.display());
        return Err(Error::host("vmm.firecracker-cannot-run", text));
    }
    let name = firecracker.file_name().unwrap_or_default().to_string_lossy();
    if !name.contains(NAME) {
        let text = format!("{} cannot be jailed under this name", firecracker.display());
        return Err(Error::usage("vmm.firecracker-name", text)
            .help("the jailer wants a file, not only a link to it, whose name contains `firecracker`"));
    }
    Ok(())
}

/// `inspect`, and whether both are of one version that is known here.
pub fn usable(firecracker: &Path, jailer: &Path) -> Result<Version> {
    inspect(firecracker, jailer)?;
    let version = version::of_both([firecracker, jailer])?;
    version::check(version, &[])?;
    Ok(version)
}

/// The jail holds nothing but the VMM's own file: no loader and no libraries. The jailer runs outside of it.
fn check_static(firecracker: &Path) -> Result<()> {
    let Some(loader) = program::loader(firecracker) else { return Ok(()) };
    let text = format!(
        "Firecracker at {} is dynamically linked: its loader {} is not in a jail",
        firecracker.display(),
        loader.display()
    );
    Err(Error::usage("vmm.firecracker-dynamic", text).help(
        "take the program out of a release of Firecracker's, or build one for the target x86_64-unknown-linux-musl, \
         which is linked statically",
    ))
}

fn inspect_one(program: &Path, what: &str) -> Result<()> {
    let fail = || format!("cannot read {what} at {}", program.display());
    let mut file = fs::File::open(program).or_usage("vmm.firecracker-missing", fail).map_err(|e| {
        e.help("name a directory that holds `firecracker` and `jailer`, as Firecracker's releases do under longer names")
    })?;
    let meta = file.metadata().or_failed("vmm.firecracker-missing", fail)?;
    if !meta.is_file() {
        return Err(Error::usage(
            "vmm.firecracker-missing",
            format!("{what}: {} is no file", program.display()),
        ));
    }
    if meta.permissions().mode() & 0o100 == 0 {
        let text = format!("{what} at {} is not executable", program.display());
        return Err(
            Error::usage("vmm.firecracker-mode", text).help(format!("chmod 755 {}", program.display()))
        );
    }
    let mut header = [0; 20];
    let got = file.read_exact(&mut header);
    if got.is_err() || !header.starts_with(b"\x7fELF") {
        let text = format!("{what}: {} is not a program", program.display());
        return Err(Error::usage("vmm.firecracker-format", text).help("it is not in the ELF format"));
    }
    // e_machine (elf.h); the byte before, e_ident[EI_DATA], is little-endian on both.
    match u16::from_le_bytes([header[18], header[19]]) {
        X86_64 => Ok(()),
        AARCH64 => Err(foreign(program, what, "aarch64")),
        other => Err(foreign(program, what, &format!("machine {other}"))),
    }
}

fn foreign(program: &Path, what: &str, machine: &str) -> Error {
    let text = format!("{what} at {} is for {machine}, this host is x86_64", program.display());
    Error::usage("vmm.firecracker-machine", text).help("take the x86_64 archive of the release")
}
