//! Leases each VM a uid that no other live VM and nobody else on the host has.

use crate::error::{Error, Result};
use crate::home::Home;
use crate::name::Name;
use crate::net::book;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Above what distributions, systemd and user namespaces hand out, below 2^31 (some tools read uids as signed).
const FIRST: u32 = 1_900_000_000;
/// How many are looked at.
const COUNT: u32 = 100_000;

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Book {
    /// uid to holder.
    uids: BTreeMap<u32, Holder>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Holder {
    project: Name,
    vm: Name,
}

/// The uid (and gid) of a VM, the same one at every call until it is released.
pub fn lease(home: &Home, project: &Name, vm: &Name) -> Result<u32> {
    let foreign = foreign_ids();
    book::update(&home.leases(), |book: &mut Book| {
        let holder = Holder { project: project.clone(), vm: vm.clone() };
        if let Some((&uid, _)) = book.uids.iter().find(|(_, held)| **held == holder) {
            return Ok(uid);
        }
        let free =
            |uid: &u32| !book.uids.contains_key(uid) && !foreign.iter().any(|range| range.contains(uid));
        let uid = (FIRST..FIRST + COUNT).find(free);
        let uid = uid.ok_or_else(|| Error::host("jail.no-uid", format!("no uid from {FIRST} on is free")))?;
        book.uids.insert(uid, holder);
        Ok(uid)
    })
}

/// A uid that nobody has now, without leasing it: for a moment's trial.
pub fn free(home: &Home) -> Result<u32> {
    let book: Book = fs_err::read(home.leases())
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let foreign = foreign_ids();
    // From the other end than leases are given out.
    let uid = (FIRST..FIRST + COUNT)
        .rev()
        .find(|uid| !book.uids.contains_key(uid) && !foreign.iter().any(|range| range.contains(uid)));
    uid.ok_or_else(|| Error::host("jail.no-uid", format!("no uid from {FIRST} on is free")))
}

/// Gives the uid of a VM back. Its processes must have ended. A VM without one is no error.
pub fn release(home: &Home, project: &Name, vm: &Name) -> Result<()> {
    if !home.leases().exists() {
        return Ok(());
    }
    book::update(&home.leases(), |book: &mut Book| {
        book.uids.retain(|_, held| held.project != *project || held.vm != *vm);
        Ok(())
    })
}

/// Ids that belong to somebody: users, groups and the ranges of user namespaces.
fn foreign_ids() -> Vec<RangeInclusive<u32>> {
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

    #[test]
    fn a_uid_is_kept_until_released_and_never_shared() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let a = lease(&home, &name("p"), &name("a")).unwrap();
        let b = lease(&home, &name("p"), &name("b")).unwrap();
        assert_ne!(a, b);
        assert!(a >= FIRST);
        assert_eq!(lease(&home, &name("p"), &name("a")).unwrap(), a);
        assert_ne!(lease(&home, &name("q"), &name("a")).unwrap(), a);
        release(&home, &name("p"), &name("a")).unwrap();
        assert_eq!(lease(&home, &name("r"), &name("x")).unwrap(), a);
    }

    /// Run twice at once, as two processes of this test binary.
    #[test]
    fn two_processes_racing_share_no_uid() {
        if let Some(root) = std::env::var_os("FIREGOPHER_TEST_LEASES") {
            let project = name(&std::env::var("FIREGOPHER_TEST_PROJECT").unwrap());
            for n in 0..40 {
                lease(&Home::new(&root), &project, &name(&format!("vm{n}"))).unwrap();
            }
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let run = |project: &str| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "vmm::jail::lease::tests::two_processes_racing_share_no_uid"])
                .env("FIREGOPHER_TEST_LEASES", dir.path())
                .env("FIREGOPHER_TEST_PROJECT", project)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        };
        for mut child in [run("one"), run("two")] {
            assert!(child.wait().unwrap().success());
        }
        let book: Book =
            serde_json::from_slice(&fs_err::read(dir.path().join("leases.json")).unwrap()).unwrap();
        assert_eq!(book.uids.len(), 80, "one uid a VM");
    }

    #[test]
    fn ids_of_others_are_recognised() {
        assert_eq!(single("u:x:1900000000:1900000000::/:"), Some(1_900_000_000..=1_900_000_000));
        assert_eq!(range("u:1900000000:65536"), Some(1_900_000_000..=1_900_065_535));
        assert_eq!(range("u:5:0"), None);
        assert_eq!(range("# nothing"), None);
    }
}
