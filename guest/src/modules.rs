//! Loads the kernel modules of the initramfs in file-name order, and frees the memory they took there.

use crate::console;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Loads `DIR/NN-name.ko` in order. A module that does not load is a console line, not an end: if something needed is
/// missing, what needs it says so with its name.
pub fn load(dir: &Path) {
    for path in in_order(dir) {
        if let Err(errno) = File::open(&path)
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
            .and_then(|file| finit_module(&file, c"", ModuleInitFlags::empty()))
            // Built into this kernel, or loaded already.
            && errno != Errno::EEXIST
        {
            console::say(&format!("loading the kernel module {}: {}", path.display(), errno.desc()));
        }
        // The initramfs is memory until it is freed.
        let _ = fs::remove_file(&path);
    }
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
        let names: Vec<_> =
            in_order(dir.path()).iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["01-a.ko", "02-b.ko", "10-c.ko"]);
    }

    #[test]
    fn a_kernel_with_everything_built_in_needs_no_module_directory() {
        assert!(in_order(Path::new("/nonexistent/modules")).is_empty());
    }
}
