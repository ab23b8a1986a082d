//! A small disk that only one test can see.

use super::skip;
use nix::mount::{MsFlags, mount};
use std::path::Path;

/// Runs `test` with a tmpfs of this many bytes at a directory of mode 0700, on a thread of its own with a mount
/// namespace of its own: the disk goes with it and with what it started. Skipped where nothing can be mounted.
pub fn on_small_disk(bytes: u64, test: impl FnOnce(&Path) + Send) {
    on_disk(bytes, MsFlags::empty(), test);
}

/// `on_small_disk`, mounted with these flags.
pub fn on_disk(bytes: u64, flags: MsFlags, test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().expect("a directory");
    let mounted = || -> nix::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        let options = format!("size={bytes},mode=0700");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(options.as_str()))
    };
    std::thread::scope(|scope| {
        let run = scope.spawn(|| match mounted() {
            Ok(()) => test(dir.path()),
            Err(e) => skip(format!("a small disk cannot be mounted here: {e}")),
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
