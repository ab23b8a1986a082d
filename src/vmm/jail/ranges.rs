//! Leases ranges of ids for user namespaces of root's: nobody on the host has one of them. A lease is a lock on a file,
//! so it ends with its process.

use super::lease::{DIRECTORY, foreign_ids, private};
use crate::error::{Context, Error, Result};
use std::fs::{File, TryLockError};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Above the uids of VMs, which begin at 1,900,000,000, and at a multiple of 65536.
const FIRST: u32 = 1_900_150_784;
/// As many as a system has: its nobody is 65534.
pub const SIZE: u32 = 65_536;
/// How many ranges there are.
const COUNT: u32 = 256;

/// Ids that are leased while this lives.
#[derive(Debug)]
pub struct IdRange {
    /// The first of [`SIZE`] ids.
    pub first: u32,
    _lock: File,
}

/// A range of ids that neither a user, a group or somebody's subordinate ids nor another process has.
///
/// # Errors
/// Host if none is left, or if the ledger's directory cannot be used.
pub fn lease() -> Result<IdRange> {
    lease_in(Path::new(DIRECTORY), &foreign_ids())
}

fn lease_in(dir: &Path, foreign: &[RangeInclusive<u32>]) -> Result<IdRange> {
    private(dir)?;
    for n in 0..COUNT {
        let first = FIRST + n * SIZE;
        let last = first + (SIZE - 1);
        if foreign.iter().any(|range| *range.start() <= last && first <= *range.end()) {
            continue;
        }
        let path = dir.join(format!("ids-{first}.lock"));
        let failed = || format!("cannot lease ids by {}", path.display());
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .or_host("jail.ledger", failed)?;
        match file.try_lock() {
            Ok(()) => return Ok(IdRange { first, _lock: file }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(e).or_host("jail.ledger", failed),
        }
    }
    let last = FIRST + (COUNT * SIZE - 1);
    Err(Error::host("jail.no-ids", format!("no range of {SIZE} ids from {FIRST} to {last} is free"))
        .help("wait for other builds to end, or free ids that /etc/subuid or /etc/passwd give to others"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_one_holder_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("run");
        let taken = [FIRST + 70_000..=FIRST + 70_000];
        let one = lease_in(&dir, &taken).unwrap();
        assert_eq!(one.first, FIRST);
        let two = lease_in(&dir, &taken).unwrap();
        assert_eq!(two.first, FIRST + 2 * SIZE, "the range between holds an id of somebody's");
        drop(one);
        assert_eq!(lease_in(&dir, &taken).unwrap().first, FIRST);
        // Some tools read ids as signed.
        const { assert!(FIRST.is_multiple_of(SIZE) && FIRST + COUNT * SIZE < 1 << 31) };
    }

    #[test]
    fn when_no_range_is_left_it_is_an_error_that_names_them() {
        let dir = tempfile::tempdir().unwrap();
        let error = lease_in(&dir.path().join("run"), &[0..=u32::MAX]).unwrap_err();
        assert_eq!(error.code(), "jail.no-ids");
        assert!(error.to_string().contains("1900150784"), "{error}");
    }
}
