//! Leases each VM a uid that no other live VM and nobody else on the host has. The ledger is the host's, not a
//! home's: two homes must not hand out the same number. It lies in /run, as no VM outlives the host's boot.

use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::name::Name;
use crate::net::book;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Above what distributions, systemd and user namespaces hand out, below 2^31 (some tools read uids as signed).
const FIRST: u32 = 1_900_000_000;
/// How many are looked at.
const COUNT: u32 = 100_000;
/// Root's alone.
pub(super) const DIRECTORY: &str = "/run/firegopher";

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Book {
    /// uid to holder.
    uids: BTreeMap<u32, Holder>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Holder {
    home: PathBuf,
    project: Name,
    vm: Name,
}

impl Holder {
    fn new(home: &Home, project: &Name, vm: &Name) -> Holder {
        Holder { home: home.root().to_owned(), project: project.clone(), vm: vm.clone() }
    }

    /// Whether the VM can still come back: `down` and `gc` work from its directory.
    fn exists(&self) -> bool {
        Home::new(&self.home).vm(&self.project, &self.vm).exists()
    }
}

/// The uid (and gid) of a VM, the same one at every call until it is released.
pub fn lease(home: &Home, project: &Name, vm: &Name) -> Result<u32> {
    Pool::of_host().lease(&Holder::new(home, project, vm))
}

/// A uid that nobody has now, without leasing it: to tell whether there is one.
pub fn free() -> Result<u32> {
    Pool::of_host().free()
}

/// Gives the uid of a VM back. Its processes must have ended. A VM without one is no error.
pub fn release(home: &Home, project: &Name, vm: &Name) -> Result<()> {
    Pool::of_host().release(&Holder::new(home, project, vm))
}

/// The uid that a VM has.
pub fn held(home: &Home, project: &Name, vm: &Name) -> Option<u32> {
    let holder = Holder::new(home, project, vm);
    Pool::of_host().read().uids.iter().find(|(_, held)| **held == holder).map(|(uid, _)| *uid)
}

/// Numbers and the ledger of who has which.
struct Pool {
    dir: PathBuf,
    numbers: Range<u32>,
    foreign: fn() -> Vec<RangeInclusive<u32>>,
}

impl Pool {
    fn of_host() -> Pool {
        Pool { dir: DIRECTORY.into(), numbers: FIRST..FIRST + COUNT, foreign: foreign_ids }
    }

    fn ledger(&self) -> PathBuf {
        self.dir.join("uids.json")
    }

    fn lease(&self, holder: &Holder) -> Result<u32> {
        private(&self.dir)?;
        let foreign = (self.foreign)();
        book::update(&self.ledger(), |book: &mut Book| {
            if let Some((&uid, _)) = book.uids.iter().find(|(_, held)| *held == holder) {
                return Ok(uid);
            }
            let find = |book: &Book| self.numbers.clone().find(|uid| is_free(*uid, book, &foreign));
            let uid = find(book).or_else(|| {
                // Homes that were deleted have nobody who would give theirs back.
                let used = uids_in_use();
                book.uids.retain(|uid, held| held.exists() || used.contains(uid));
                find(book)
            });
            let uid = uid.ok_or_else(|| self.exhausted())?;
            book.uids.insert(uid, holder.clone());
            Ok(uid)
        })
    }

    fn free(&self) -> Result<u32> {
        let (book, foreign) = (self.read(), (self.foreign)());
        // From the other end than leases are given out.
        let uid = self.numbers.clone().rev().find(|uid| is_free(*uid, &book, &foreign));
        uid.ok_or_else(|| self.exhausted())
    }

    fn release(&self, holder: &Holder) -> Result<()> {
        if !self.ledger().exists() {
            return Ok(());
        }
        book::update(&self.ledger(), |book: &mut Book| {
            book.uids.retain(|_, held| held != holder);
            Ok(())
        })
    }

    fn read(&self) -> Book {
        let bytes = fs_err::read(self.ledger()).unwrap_or_default(); // Absent: nobody has any.
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn exhausted(&self) -> Error {
        let Range { start, end } = self.numbers;
        Error::host("jail.no-uid", format!("no uid from {start} to {} is free for a jail", end - 1)).help(
            format!(
                "stop some VMs (`firegopher down`), or free ids that /etc/subuid or /etc/passwd give to \
                 others; {} lists who has one",
                self.ledger().display()
            ),
        )
    }
}

/// uid 0 is never one of ours, whatever a range says.
fn is_free(uid: u32, book: &Book, foreign: &[RangeInclusive<u32>]) -> bool {
    uid != 0 && !book.uids.contains_key(&uid) && !foreign.iter().any(|range| range.contains(&uid))
}

/// Makes the ledger's directory. Whoever can write to it decides who a VM is: root alone.
pub(super) fn private(dir: &Path) -> Result<()> {
    let fail = || format!("cannot use {}, where the uids of jails are kept", dir.display());
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e).or_host("jail.ledger", fail),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir).or_host("jail.ledger", fail)?;
    let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o077 == 0;
    if ours {
        return Ok(());
    }
    Err(Error::host("jail.ledger", fail())
        .because(std::io::Error::from(ErrorKind::PermissionDenied))
        .help(format!("it must be root's directory with mode 0700: rm -r {}", dir.display())))
}

/// The real uids of all processes.
fn uids_in_use() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let status = entries.filter_map(|e| std::fs::read_to_string(e.path().join("status")).ok());
    status
        .filter_map(|s| {
            s.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
        })
        .collect()
}

/// Ids that belong to somebody: users, groups and the ranges of user namespaces.
pub(super) fn foreign_ids() -> Vec<RangeInclusive<u32>> {
    let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default(); // Absent: nobody there.
    let mut ids = Vec::new();
    for file in ["/etc/passwd", "/etc/group"] {
        ids.extend(read(file).lines().filter_map(single));
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        ids.extend(read(file).lines().filter_map(range));
    }
    ids
}

/// `name:x:ID:…`, passwd(5) and group(5).
fn single(line: &str) -> Option<RangeInclusive<u32>> {
    let id = line.split(':').nth(2)?.parse().ok()?;
    Some(id..=id)
}

/// `name:FIRST:COUNT`, subuid(5).
fn range(line: &str) -> Option<RangeInclusive<u32>> {
    let mut fields = line.split(':').skip(1).map(|n| n.trim().parse::<u32>().ok());
    let (first, count) = (fields.next()??, fields.next()??);
    Some(first..=first.saturating_add(count.checked_sub(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> Name {
        Name::new(s).unwrap()
    }

    fn pool(dir: &Path) -> Pool {
        Pool { dir: dir.join("run"), numbers: FIRST..FIRST + COUNT, foreign: Vec::new }
    }

    fn holder(home: &Path, project: &str, vm: &str) -> Holder {
        Holder::new(&Home::new(home), &name(project), &name(vm))
    }

    #[test]
    fn a_uid_is_kept_until_released_and_never_shared() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        let of = |project, vm| holder(dir.path(), project, vm);
        let a = pool.lease(&of("p", "a")).unwrap();
        let b = pool.lease(&of("p", "b")).unwrap();
        assert_ne!(a, b);
        assert!(a >= FIRST);
        assert_eq!(pool.lease(&of("p", "a")).unwrap(), a);
        assert_ne!(pool.lease(&of("q", "a")).unwrap(), a);
        assert_ne!(pool.free().unwrap(), a);
        pool.release(&of("p", "a")).unwrap();
        assert_eq!(pool.lease(&of("r", "x")).unwrap(), a);
    }

    #[test]
    fn two_homes_with_the_same_project_share_no_uid() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (holder(Path::new("/one"), "p", "a"), holder(Path::new("/two"), "p", "a"));
        let pool = pool(dir.path());
        let a = pool.lease(&one).unwrap();
        assert_ne!(pool.lease(&two).unwrap(), a);
        pool.release(&two).unwrap();
        assert_eq!(pool.lease(&one).unwrap(), a, "one home's release leaves the other's lease");
    }

    #[test]
    fn when_all_are_taken_it_is_said_and_those_of_deleted_homes_are_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let live = |n: u32| {
            let holder = holder(dir.path(), "p", &format!("vm{n}"));
            fs_err::create_dir_all(Home::new(&holder.home).vm(&holder.project, &holder.vm)).unwrap();
            holder
        };
        let pool = Pool { numbers: 0..4, foreign: || vec![3..=3], ..pool(dir.path()) };
        pool.lease(&live(0)).unwrap();
        let second = pool.lease(&live(1)).unwrap();
        // Of 0 to 3 there are two: 0 is root's, 3 somebody else's.
        let error = pool.lease(&live(2)).unwrap_err();
        assert_eq!(error.code(), "jail.no-uid");
        assert!(error.help_text().unwrap().contains("firegopher down"));
        assert_eq!(pool.free().unwrap_err().code(), "jail.no-uid");
        fs_err::remove_dir_all(dir.path().join("state/p/vm1")).unwrap();
        assert_eq!(pool.lease(&live(2)).unwrap(), second);
    }

    #[test]
    fn a_ledger_that_others_could_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        fs_err::create_dir(&pool.dir).unwrap();
        fs_err::set_permissions(&pool.dir, PermissionsExt::from_mode(0o777)).unwrap();
        let error = pool.lease(&holder(dir.path(), "p", "a")).unwrap_err();
        assert_eq!(error.code(), "jail.ledger");
        fs_err::remove_dir(&pool.dir).unwrap();
        std::os::unix::fs::symlink(dir.path(), &pool.dir).unwrap();
        assert_eq!(pool.lease(&holder(dir.path(), "p", "a")).unwrap_err().code(), "jail.ledger");
    }

    /// Run twice at once, as two processes of this test binary with a home each.
    #[test]
    fn two_processes_racing_share_no_uid() {
        if let Some(root) = std::env::var_os("FIREGOPHER_TEST_LEASES") {
            let home = std::env::var("FIREGOPHER_TEST_LEASES_HOME").unwrap();
            for n in 0..40 {
                let holder = holder(Path::new(&home), "p", &format!("vm{n}"));
                pool(Path::new(&root)).lease(&holder).unwrap();
            }
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let run = |home: &str| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "vmm::jail::lease::tests::two_processes_racing_share_no_uid"])
                .env("FIREGOPHER_TEST_LEASES", dir.path())
                .env("FIREGOPHER_TEST_LEASES_HOME", home)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        };
        for mut child in [run("/one"), run("/two")] {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(pool(dir.path()).read().uids.len(), 80, "one uid a VM");
    }

    #[test]
    fn ids_of_others_are_recognised() {
        assert_eq!(single("u:x:1900000000:1900000000::/:"), Some(1_900_000_000..=1_900_000_000));
        assert_eq!(range("u:1900000000:65536"), Some(1_900_000_000..=1_900_065_535));
        assert_eq!(range("u:5:0"), None);
        assert_eq!(range("# nothing"), None);
    }
}
