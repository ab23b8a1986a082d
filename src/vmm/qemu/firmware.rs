//! Finds the boot firmware of a QEMU that the manifest names: where that one looks for its data, which need not be
//! where others of this host keep theirs.

use crate::error::{Context, Error, Result};
use crate::vmm::ask::ask;
use fs_err as fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// qboot, by the names that QEMU looks for. Debian's `bios-microvm.bin` is qboot too, but upstream's is SeaBIOS, under
/// which an ELF kernel was seen to hang at "ACPI: Core revision".
const NAMES: [&str; 2] = ["qboot.rom", "bios-microvm.bin"];
/// In every image of SeaBIOS.
const SEABIOS: &[u8] = b"SeaBIOS";
/// Far more than firmware for a microvm.
const LARGEST: u64 = 4 << 20;

/// Asks `program` where its data is, and returns the qboot there.
///
/// # Errors
/// `vmm.qemu-cannot-run`; `vmm.no-firmware`, with the places that were looked at.
pub(super) fn find(program: &Path) -> Result<PathBuf> {
    let said = ask(program, &["-L", "help"], "")
        .or_host("vmm.qemu-cannot-run", || format!("cannot ask {} where its data is", program.display()))?;
    let said = String::from_utf8_lossy(&said);
    let dirs: Vec<&Path> =
        said.lines().map(str::trim).filter(|line| line.starts_with('/')).map(Path::new).collect();
    if let Some(path) = pick(&dirs) {
        return Ok(path);
    }
    let listed: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let places = if listed.is_empty() {
        "and names no place for it".to_owned()
    } else {
        format!("in {}", listed.join(", "))
    };
    let text = format!("{} has no firmware for microvms: no qboot.rom {places}", program.display());
    Err(Error::usage("vmm.no-firmware", text).help(
        "install QEMU's data (Debian's package qemu-system-data), or write `vmm \"qemu\"` without a path: it comes \
         out of Debian's packages",
    ))
}

fn pick(dirs: &[&Path]) -> Option<PathBuf> {
    let candidates = NAMES.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    candidates.into_iter().find(|path| is_qboot(path))
}

/// Whether a file is firmware, and not SeaBIOS.
fn is_qboot(path: &Path) -> bool {
    let Ok(file) = fs::File::open(path) else { return false };
    let mut bytes = Vec::new();
    let read = file.take(LARGEST).read_to_end(&mut bytes);
    read.is_ok() && !bytes.is_empty() && !bytes.windows(SEABIOS.len()).any(|window| window == SEABIOS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::program::tests::executable;

    #[test]
    fn firmware_is_taken_from_where_the_program_says() {
        let dir = tempfile::tempdir().unwrap();
        let (program, data) = (dir.path().join("qemu"), dir.path().join("odd place"));
        fs::create_dir(&data).unwrap();
        let script = format!("#!/bin/sh\necho /nowhere\necho '{}'\n", data.display());
        executable(&program, script.as_bytes());
        let error = find(&program).unwrap_err();
        assert_eq!(error.code(), "vmm.no-firmware");
        assert!(
            error.to_string().contains("/nowhere, ") && error.to_string().contains("odd place"),
            "{error}"
        );
        // Upstream's is SeaBIOS under this name.
        fs::write(data.join("bios-microvm.bin"), b"..SeaBIOS (version x)..").unwrap();
        find(&program).unwrap_err();
        fs::write(data.join("bios-microvm.bin"), b"qboot").unwrap();
        assert_eq!(find(&program).unwrap(), data.join("bios-microvm.bin"));
        fs::write(data.join("qboot.rom"), b"qboot").unwrap();
        assert_eq!(find(&program).unwrap(), data.join("qboot.rom"));
    }
}
