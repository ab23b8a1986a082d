//! A guest whose CPUs stand still: says why, and looks for space when the host's disk is full.

use crate::vmm::Pause;
use crate::vmm::spec::{Drive, VmSpec};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// From a pause to the first look for space, and between looks.
const FIRST: Duration = Duration::from_secs(1);
/// The longest between attempts that each led to the next pause.
const LONGEST: Duration = Duration::from_secs(60);
/// A guest that has run this long since it went on is not in a row of pauses.
const GOOD_RUN: Duration = Duration::from_secs(10);
/// A guest that has run this long is said to go on.
const STEADY: Duration = Duration::from_secs(2);
/// A guest goes on when so much is free, or this part of the disk if that is less: with a block or two it would stop
/// again at once.
const ENOUGH: (u64, u64) = (16 << 20, 16);

/// A VM's drives, by number, and where their images are on the host.
#[derive(Debug, Clone, Default)]
pub(super) struct Drives(Vec<Drive>);

impl Drives {
    pub fn of(spec: &VmSpec) -> Drives {
        Drives(spec.drives.clone())
    }

    /// For the user: `volume data`.
    pub fn name(&self, drive: Option<usize>) -> String {
        match drive.and_then(|n| self.0.get(n)).map(|drive| drive.role.as_str()) {
            None => "one of its drives".to_owned(),
            Some("scratch") => "its scratch disk".to_owned(),
            Some(role) => match role.strip_prefix("volume-") {
                Some(volume) => format!("volume {volume}"),
                None => format!("its drive {role}"),
            },
        }
    }

    /// The directory whose disk is full. Without a number it is that of a drive that can be written to.
    fn dir(&self, drive: Option<usize>) -> Option<&Path> {
        let named = drive.and_then(|n| self.0.get(n));
        let drive = named.or_else(|| self.0.iter().find(|drive| !drive.read_only))?;
        drive.path.parent()
    }
}

/// What a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Space {
    available: u64,
    total: u64,
}

impl Space {
    fn of(dir: &Path) -> Option<Space> {
        let disk = nix::sys::statvfs::statvfs(dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
        Some(Space { available: bytes(disk.blocks_available()), total: bytes(disk.blocks()) })
    }

    fn is_enough(self) -> bool {
        let (bytes, part) = ENOUGH;
        self.available >= bytes.min(self.total / part)
    }
}

/// Why and since when a guest stands still.
#[derive(Debug, Default)]
pub(super) struct Paused {
    now: Option<Standing>,
    /// When it was let go on last.
    resumed: Option<Instant>,
    /// Between attempts.
    interval: Duration,
    /// That it stopped was told, and not yet that it goes on.
    told: bool,
}

#[derive(Debug)]
struct Standing {
    why: Pause,
    dir: Option<PathBuf>,
    /// When to look for space next.
    next: Instant,
}

impl Paused {
    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.now.is_some()
    }

    /// It stopped. Returns whether that is to be told: once in a row of pauses.
    pub fn pause(&mut self, why: Pause, drives: &Drives, now: Instant) -> bool {
        let again = self.resumed.is_some_and(|at| now.saturating_duration_since(at) < GOOD_RUN);
        self.interval = if again { (self.interval * 2).min(LONGEST) } else { FIRST };
        let dir = match &why {
            Pause::DiskFull { drive } => drives.dir(*drive).map(Path::to_owned),
            _ => None,
        };
        self.now = Some(Standing { why, dir, next: now + self.interval });
        !std::mem::replace(&mut self.told, true)
    }

    /// Whether time alone changes something: look each second.
    pub fn is_pending(&self) -> bool {
        self.is_paused() || self.told
    }

    /// Whether it is to be told that the guest goes on: it does, and not only for a moment.
    pub fn goes_on(&mut self, now: Instant) -> bool {
        let steady = self.resumed.is_some_and(|at| now.saturating_duration_since(at) >= STEADY);
        let news = self.told && !self.is_paused() && steady;
        self.told &= !news;
        news
    }

    /// It runs again. Returns whether it had stopped.
    pub fn resume(&mut self, now: Instant) -> bool {
        let stood = self.now.take().is_some();
        if stood {
            self.resumed = Some(now);
        }
        stood
    }

    /// Whether it should be let go on: it waits for space, it is time to look, and there is some.
    pub fn may_go_on(&mut self, now: Instant) -> bool {
        match &mut self.now {
            Some(standing) if now >= standing.next => {
                standing.next = now + self.interval.max(FIRST);
                self.has_space()
            }
            _ => false,
        }
    }

    /// Whether what it waits for is there.
    pub fn has_space(&self) -> bool {
        self.now.as_ref().is_some_and(|standing| {
            let waits = matches!(standing.why, Pause::DiskFull { .. });
            // What cannot be measured can be tried.
            waits && standing.dir.as_deref().and_then(Space::of).is_none_or(Space::is_enough)
        })
    }

    /// For the user: why it stands still.
    pub fn describe(&self, drives: &Drives) -> Option<String> {
        let standing = self.now.as_ref()?;
        Some(match &standing.why {
            Pause::DiskFull { drive } => {
                let dir = standing.dir.as_deref().unwrap_or(Path::new("an unknown directory")).display();
                let drive = drives.name(*drive);
                format!(
                    "host disk full: no space is left in {dir} for {drive}; it goes on when there is some"
                )
            }
            Pause::Suspended => "the guest suspended itself, and nothing wakes it".to_owned(),
            Pause::Broken(word) | Pause::Other(word) => format!("its VMM stopped it: {word}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Pause = Pause::DiskFull { drive: Some(1) };

    fn drives(dir: &Path) -> Drives {
        let drive = |role: &str, read_only| Drive { role: role.into(), path: dir.join(role), read_only };
        Drives(vec![drive("base", true), drive("scratch", false), drive("volume-data", false)])
    }

    #[test]
    fn enough_is_a_margin_or_a_part_of_a_small_disk() {
        let enough = |available, total| Space { available, total }.is_enough();
        assert!(!enough(0, 100 << 30) && !enough((16 << 20) - 1, 100 << 30) && enough(16 << 20, 100 << 30));
        assert!(!enough(0, 32 << 20) && enough(2 << 20, 32 << 20));
    }

    #[test]
    fn a_pause_names_drive_and_directory() {
        let drives = drives(Path::new("/fg/state"));
        let mut paused = Paused::default();
        assert!(paused.pause(FULL, &drives, Instant::now()));
        let words = paused.describe(&drives).unwrap();
        assert!(
            words.starts_with("host disk full: no space is left in /fg/state for its scratch disk"),
            "{words}"
        );
        for (drive, name) in [(Some(2), "volume data"), (Some(0), "its drive base"), (Some(9), "one of its")]
        {
            assert!(drives.name(drive).starts_with(name));
        }
        paused.pause(Pause::DiskFull { drive: None }, &drives, Instant::now());
        assert!(paused.describe(&drives).unwrap().contains("/fg/state for one of its drives"));
    }

    #[test]
    fn a_guest_that_stops_again_at_once_is_tried_less_and_less_often_and_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let drives = drives(dir.path());
        let mut paused = Paused::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for n in 0..9 {
            assert_eq!(paused.pause(FULL, &drives, now), n == 0);
            let begun = now;
            while !paused.may_go_on(now) {
                now += Duration::from_millis(500);
            }
            waits.push(now.duration_since(begun).as_secs());
            assert!(paused.resume(now) && !paused.resume(now));
            assert!(!paused.goes_on(now), "it may stop again at once");
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += GOOD_RUN;
        assert!(paused.is_pending() && paused.goes_on(now) && !paused.goes_on(now) && !paused.is_pending());
        assert!(paused.pause(FULL, &drives, now), "a long run later it is news again");
        assert_eq!(paused.interval, FIRST);
    }

    #[test]
    fn only_a_guest_that_waits_for_space_is_let_go_on() {
        let drives = drives(Path::new("/"));
        let later = Instant::now() + Duration::from_secs(3600);
        for why in [Pause::Suspended, Pause::Other("paused".into()), Pause::Broken("internal-error".into())] {
            let mut paused = Paused::default();
            paused.pause(why, &drives, Instant::now());
            assert!(paused.is_paused() && !paused.may_go_on(later) && !paused.has_space());
        }
        assert!(!Paused::default().may_go_on(later));
    }
}
