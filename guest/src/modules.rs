//! Loads the kernel modules of the initramfs in file-name order, and frees the memory they took there.

use crate::console;
use nix::errno::Errno;
use nix::kmod::init_module;
use std::fs;
use std::path::{Path, PathBuf};

/// What ends a signed module (include/linux/module_signature.h); before it stands a 12-byte trailer, whose last four
/// bytes are the signature's length, big-endian.
const SIGNED: &[u8] = b"~Module signature appended~\n";
const TRAILER: usize = 12;

/// Loads `DIR/NN-name.ko` in order. A module that does not load is a console line, not an end: if something needed is
/// missing, what needs it says so with its name.
pub fn load(dir: &Path) {
    for path in in_order(dir) {
        if let Err(error) = load_one(&path) {
            console::say(&format!("loading the kernel module {}: {error}", path.display()));
        }
        // The initramfs is memory until it is freed.
        let _ = fs::remove_file(&path);
    }
}

/// Loads a module without its signature: the kernel would hash and verify the whole file, which is two thirds of the
/// time under emulation, and these bytes came from the same place as the kernel itself. A kernel that insists gets it.
fn load_one(path: &Path) -> Result<(), String> {
    let image = fs::read(path).map_err(|e| e.to_string())?;
    let bare = unsigned(&image);
    let first = init_module(bare, c"");
    let done = match first {
        // linux/module.h: what a kernel that enforces signatures answers, by version and lockdown.
        Err(Errno::EKEYREJECTED | Errno::ENODATA | Errno::EPERM) if bare.len() < image.len() => {
            init_module(&image, c"")
        }
        other => other,
    };
    match done {
        // Built into this kernel, or loaded already.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.desc().to_owned()),
    }
}

/// The module without an appended signature.
fn unsigned(image: &[u8]) -> &[u8] {
    let bare = || {
        let (rest, trailer) = image.strip_suffix(SIGNED)?.split_last_chunk::<TRAILER>()?;
        let [.., a, b, c, d] = *trailer;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        rest.get(..rest.len().checked_sub(length)?)
    };
    bare().unwrap_or(image)
}

/// Every `.ko` file in `dir`, sorted by name; none if there is no such directory.
fn in_order(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "ko"))
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn modules_come_in_file_name_order_and_other_files_are_left_alone() {
        let dir = TempDir::new();
        for name in ["02-b.ko", "10-c.ko", "01-a.ko", "note.txt"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let names: Vec<_> = in_order(dir.path())
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["01-a.ko", "02-b.ko", "10-c.ko"]);
    }

    #[test]
    fn a_kernel_with_everything_built_in_needs_no_module_directory() {
        assert!(in_order(Path::new("/nonexistent/modules")).is_empty());
    }

    #[test]
    fn a_signature_is_cut_off_and_nonsense_is_left_as_it_is() {
        let mut signed = b"module".to_vec();
        signed.extend_from_slice(&[9; 100]);
        signed.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 100]);
        signed.extend_from_slice(SIGNED);
        assert_eq!(unsigned(&signed), b"module");
        let at = signed.len() - SIGNED.len() - 1;
        signed[at] = 200;
        assert_eq!(unsigned(&signed), signed);
        assert_eq!(unsigned(SIGNED), SIGNED);
        assert_eq!(unsigned(b"plain"), b"plain");
    }
}
