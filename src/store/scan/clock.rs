//! The start of a scan, as the workload's own file system tells it.
//!
//! A file whose times are strictly older than the start was not written to since: a later write gets a time
//! that is not. Clocks of file systems are coarse (a tick, a second) and, over a network, not ours; so the
//! start is the time that this file system gave to a file made on it just now.

use super::cache::Stat;
use crate::error::{Context, Result};
use crate::store::Store;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where no file can be made, our clock stands in, this many seconds early: coarse and skewed clocks fit in.
const MARGIN_SECONDS: i64 = 60;

type Time = (i64, u32);

pub(super) struct Clock {
    /// The device that `start` counts for.
    device: Option<u64>,
    start: Time,
    /// For everything on other devices, mounted beneath the root.
    elsewhere: Time,
}

impl Clock {
    /// Takes the time. `dir` is the workload's root, open.
    pub(super) fn start(store: &Store, dir: &File, root: &Path) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let elsewhere = (i64::try_from(now).unwrap_or(0).saturating_sub(MARGIN_SECONDS), 0);
        let device = Stat::of(dir).or_failed("scan.read", || super::cannot_read(root))?.dev;
        // The first choice is the directory itself; an unnamed file leaves no trace in it, its times included.
        let mark = unnamed(dir).or_else(|| unnamed(File::open(store.dir("tmp")).ok()?));
        Ok(match mark {
            Some(mark) if mark.dev == device => Clock { device: Some(device), start: mark.mtime, elsewhere },
            _ => Clock { device: None, start: elsewhere, elsewhere },
        })
    }

    /// Whether a file with this stat has the contents it had when the scan began, as far as times can tell.
    pub(super) fn trusts(&self, stat: &Stat) -> bool {
        let start = if self.device == Some(stat.dev) { self.start } else { self.elsewhere };
        stat.mtime < start && stat.ctime < start
    }
}

fn unnamed(dir: impl AsFd) -> Option<Stat> {
    let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::openat(dir, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR).ok()?;
    Stat::of(&File::from(fd)).ok()
}
