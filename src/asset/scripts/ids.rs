//! The ids of a sandbox: leased ones as root, the user's subordinate ones else. Never anybody's own.

use crate::error::{Context, Error, Result};
use crate::vmm::jail::ranges::{self, IdRange, SIZE};
use fs_err as fs;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where the ids 0 to 65535 of a sandbox come from.
pub(super) enum Ids {
    /// Root gives them directly.
    Leased(IdRange),
    /// By the set-user-ID programs newuidmap and newgidmap, and the first id of each kind.
    Subordinate { uid: u32, gid: u32 },
}

impl Ids {
    /// Those that this user can use.
    ///
    /// # Errors
    /// Host, saying what is lacking.
    pub fn of_this_user() -> Result<Ids> {
        if !nix::unistd::geteuid().is_root() {
            return subordinate();
        }
        let range = ranges::lease()?;
        let text = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if !maps(&text, range.first) {
            return Err(Error::host(
                "asset.scripts-user",
                "maintainer scripts cannot run: root has too few ids here to give them any, as in a user namespace",
            )
            .help("run it outside of the container or namespace, or as a user with subordinate ids; or remove `scripts=#true`"));
        }
        Ok(Ids::Leased(range))
    }

    /// The host's name for the sandbox's root, as root sees it.
    pub fn leased_root(&self) -> Option<u32> {
        match self {
            Ids::Leased(range) => Some(range.first),
            Ids::Subordinate { .. } => None,
        }
    }

    /// Maps them into the new user namespace of `pid`; from 1 on if the caller is to be its root (`owner`).
    pub fn give(&self, pid: u32, owner: bool) -> Result<()> {
        match self {
            Ids::Leased(range) => {
                let line = format!("0 {} {SIZE}\n", range.first);
                for file in ["uid_map", "gid_map"] {
                    let path = format!("/proc/{pid}/{file}");
                    // In one write, as user_namespaces(7) has it.
                    std::fs::write(&path, &line)
                        .or_host("asset.sandbox", || format!("cannot write {path}"))?;
                }
                Ok(())
            }
            Ids::Subordinate { uid, gid } => {
                let (own_uid, own_gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
                map("newuidmap", pid, *uid, owner.then_some(own_uid))?;
                map("newgidmap", pid, *gid, owner.then_some(own_gid))
            }
        }
    }
}

/// Whether a uid_map (user_namespaces(7)) has all ids of a range that begins at `first`.
fn maps(text: &str, first: u32) -> bool {
    text.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [inside, _, count] = numbers[..] else { return false };
        inside <= u64::from(first) && u64::from(first) + u64::from(SIZE) <= inside + count
    })
}

fn map(program: &str, pid: u32, first: u32, own: Option<u32>) -> Result<()> {
    let path = found(program).ok_or_else(|| Error::bug(format!("{program} was there")))?;
    let numbers = match own {
        Some(own) => vec![pid, 0, own, 1, 1, first, SIZE],
        None => vec![pid, 0, first, SIZE],
    };
    let output = Command::new(path)
        .args(numbers.iter().map(u32::to_string))
        .stdin(Stdio::null())
        .output()
        .or_host("asset.sandbox", || format!("cannot run {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message = format!("maintainer scripts cannot run: {program} failed: {}", said.trim());
    Err(Error::host("asset.scripts-user", super::parse::printable(&message))
        .help("it must be set-user-ID root, as the package uidmap installs it; or remove `scripts=#true`"))
}

fn found(program: &str) -> Option<PathBuf> {
    // The system's own programs first.
    let mut path = OsStr::new("/usr/sbin:/usr/bin:/sbin:/bin:").to_owned();
    path.push(std::env::var_os("PATH").unwrap_or_default());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// The user's subordinate ids.
fn subordinate() -> Result<Ids> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    let number = nix::unistd::geteuid().to_string();
    let user = user.ok().flatten().map_or_else(|| number.clone(), |user| user.name);
    let lacks = |why: String, mend: String| {
        Error::host("asset.scripts-user", format!("maintainer scripts cannot run as the user {user}: {why}"))
            .help(format!("{mend}; or run as root, or remove `scripts=#true`"))
    };
    for program in ["newuidmap", "newgidmap"] {
        if found(program).is_none() {
            return Err(lacks(
                format!("this host has no {program}"),
                "install it (the package uidmap on Debian)".to_owned(),
            ));
        }
    }
    let first = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        range_of(&text, &user, &number).ok_or_else(|| {
            lacks(
                format!("{file} gives it no {SIZE} subordinate ids"),
                format!(
                    "run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` as root"
                ),
            )
        })
    };
    let (uid, gid) = (first("/etc/subuid")?, first("/etc/subgid")?);
    // Debian's and Ubuntu's switches; hosts without them allow it.
    for (file, off, on) in [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("/proc/sys/user/max_user_namespaces", "0", "10000"),
    ] {
        if fs::read_to_string(file).is_ok_and(|text| text.trim() == off) {
            let name = file.trim_start_matches("/proc/sys/").replace('/', ".");
            return Err(lacks(
                format!("{name} is {off}, so it cannot make user namespaces"),
                format!("run `sysctl {name}={on}` as root"),
            ));
        }
    }
    Ok(Ids::Subordinate { uid, gid })
}

/// The first range of at least [`SIZE`] ids that subuid(5) or subgid(5) gives a user.
fn range_of(text: &str, user: &str, number: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (first, count): (u32, u32) =
            (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        ((name == user || name == number) && count >= SIZE).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_users_and_large_enough() {
        let text = "somebody:1:65536\nme:5:6\nme:200000:65536\n1000:300000:70000\n";
        assert_eq!(range_of(text, "me", "1"), Some(200_000));
        assert_eq!(range_of(text, "nobody", "1000"), Some(300_000));
        assert_eq!(range_of(text, "nobody", "1"), None);
    }

    #[test]
    fn a_root_that_lacks_ids_is_known_by_its_map() {
        assert!(maps("         0          0 4294967295\n", 1_900_150_784));
        assert!(!maps("0 100000 65536\n", 1_900_150_784));
        assert!(!maps("", 1_900_150_784));
    }
}
