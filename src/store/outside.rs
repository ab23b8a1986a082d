//! Directories for the unfinished work of programs with other ids than ours: they may not pass through the private
//! home, so these lie in `$TMPDIR`. A link in the temporary directory that each belongs to says where, and both go
//! together: with their owner, with a signal, or with the sweep of the next command.

use super::temp::{TempDir, remove_tree};
use super::write_failed;
use crate::error::Result;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getegid, geteuid, getpgid, getpgrp};
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The link's name in a temporary directory.
const LINK: &str = "outside";

/// What the names of these directories begin with.
const PREFIX: &str = "firegopher-";

/// A directory (0711) in `$TMPDIR`, removed when dropped with all that it holds, whoever owns that.
#[derive(Debug)]
pub struct Outside {
    path: PathBuf,
    link: PathBuf,
}

impl Outside {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // What stays is found by its link and swept by the next command.
        if remove(&self.path).is_ok() {
            let _ = std::fs::remove_file(&self.link);
        }
    }
}

impl TempDir {
    /// A directory that other ids than ours work in, one at a time for each temporary directory; `within` it, for whoever
    /// can lead them there, else where every id can pass through. Whoever works in it must be in a process group of its
    /// own and have the path in its environment: by that it is found, and ended before its work is removed.
    pub fn outside(&self, within: bool) -> Result<Outside> {
        let failed = |e| write_failed("making a temporary directory", e);
        let _guard = self.making().map_err(failed)?;
        let parent = if within { self.path().to_owned() } else { std::env::temp_dir() };
        let parent = std::path::absolute(parent).map_err(failed)?;
        let path = parent.join(format!("{PREFIX}{:016x}", fastrand::u64(..)));
        let link = self.path().join(LINK);
        // First: a kill in between leaves a link that leads nowhere.
        std::os::unix::fs::symlink(&path, &link).map_err(failed)?;
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        if let Err(e) = made {
            let _ = std::fs::remove_file(&link);
            return Err(write_failed(format_args!("making {}", path.display()), e)
                .help(format!("TMPDIR names the directory: {}", parent.display())));
        }
        let outside = Outside { path, link };
        // Not by mkdir, whose mode a umask cuts.
        std::fs::set_permissions(&outside.path, std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .map_err(failed)?;
        Ok(outside)
    }
}

/// Removes the directory outside that a temporary directory names, if it does.
pub(super) fn remove_of(temp: &Path) -> io::Result<()> {
    match std::fs::read_link(temp.join(LINK)) {
        Ok(path) if is_ours(&path) => remove(&path),
        _ => Ok(()),
    }
}

/// A link may be old, and somebody else's directory have the name by now.
fn is_ours(path: &Path) -> bool {
    let named = path.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()));
    named
        && std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == geteuid().as_raw())
}

/// Ends whoever works in `path` and removes it.
fn remove(path: &Path) -> io::Result<()> {
    let mut tries = 10;
    loop {
        end_users(path);
        let result = match remove_tree(path) {
            Err(e) if e.kind() == ErrorKind::PermissionDenied => remove_as_their_root(path),
            other => other,
        };
        tries -= 1;
        match result {
            Ok(()) => return Ok(()),
            // Owner and signal may have met here.
            Err(_) if path.symlink_metadata().is_err() => return Ok(()),
            // So they may have, or what was killed takes a moment to die.
            Err(e) if tries > 0 && matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => return Err(e),
        }
    }
}

/// Kills the process groups of those that have `path` in their environment.
fn end_users(path: &Path) {
    let finder = memchr::memmem::Finder::new(path.as_os_str().as_bytes());
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // What cannot be read is nobody of ours: the first process of a sandbox, at least, with which all of it ends, is in
        // a user namespace of ours.
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        if finder.find(&environment).is_none() {
            continue;
        }
        // Ids below ours are killed, too: who makes a user namespace has all rights over it.
        match getpgid(Some(Pid::from_raw(pid))) {
            Ok(group) if group != getpgrp() => drop(killpg(group, Signal::SIGKILL)),
            _ => {}
        }
    }
}

/// Removes a tree that holds files of our subordinate ids: by `rm`, as root of a user namespace that has them and us.
fn remove_as_their_root(path: &Path) -> io::Result<()> {
    const SCRIPT: &str = "echo && read -r _ && exec rm -rf -- \"$0\"";
    let mut child = Command::new("unshare")
        .args(["--user", "--", "sh", "-c", SCRIPT])
        .arg(path)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let begun = map_and_go(&mut child);
    // Without its line the shell ends.
    drop(child.stdin.take());
    let status = child.wait()?;
    begun?;
    match status.success() {
        true => Ok(()),
        false => Err(ErrorKind::DirectoryNotEmpty.into()),
    }
}

fn map_and_go(child: &mut Child) -> io::Result<()> {
    let stdout = child.stdout.take().ok_or(ErrorKind::BrokenPipe)?;
    // It has unshared once it speaks.
    if BufReader::new(stdout).read_line(&mut String::new())? == 0 {
        return Err(ErrorKind::PermissionDenied.into());
    }
    map("newuidmap", child.id(), geteuid().as_raw(), "/etc/subuid")?;
    map("newgidmap", child.id(), getegid().as_raw(), "/etc/subgid")?;
    child.stdin.take().ok_or(ErrorKind::BrokenPipe)?.write_all(b"\n")
}

/// Gives the namespace of `pid` our own id as 0, and the subordinate ones above it.
fn map(program: &str, pid: u32, own: u32, file: &str) -> io::Result<()> {
    let text = std::fs::read_to_string(file)?;
    let (first, count) = subordinate(&text).ok_or(ErrorKind::PermissionDenied)?;
    let numbers = [pid, 0, own, 1, 1, first, count].map(|number| number.to_string());
    // The system's own programs first.
    let mut path = OsStr::new("/usr/sbin:/usr/bin:/sbin:/bin:").to_owned();
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    let status = Command::new(found.ok_or(ErrorKind::Unsupported)?)
        .args(numbers)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) }
}

/// The first range that subuid(5) or subgid(5) gives this user: where it begins, and how many it has.
fn subordinate(text: &str) -> Option<(u32, u32)> {
    let user = nix::unistd::User::from_uid(geteuid()).ok().flatten().map(|user| user.name);
    let number = geteuid().to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        if user.as_deref() != Some(name) && name != number {
            return None;
        }
        Some((fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::testing::scratch;
    use std::os::unix::process::CommandExt;

    #[test]
    fn a_directory_outside_can_be_passed_through_and_goes_with_its_owner() {
        let s = scratch();
        let temp = s.store.temp_dir().unwrap();
        let outside = temp.outside(false).unwrap();
        let path = outside.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o711);
        assert!(temp.outside(false).is_err(), "there is one at a time");
        std::fs::write(path.join("x"), "x").unwrap();
        drop(outside);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        let again = temp.outside(false).unwrap().path().to_owned();
        assert!(!again.exists(), "nobody holds it");
    }

    #[test]
    fn what_a_dead_process_left_outside_is_swept_with_whoever_works_in_it() {
        let s = scratch();
        let outside = s.dir.path().join(format!("{PREFIX}0123"));
        std::fs::create_dir_all(outside.join("work")).unwrap();
        let mut worker = Command::new("sleep")
            .arg("1000")
            .env("TMPDIR", outside.join("work"))
            .process_group(0)
            .spawn()
            .unwrap();
        let dead = s.store.dir("tmp").join("4194304-0");
        std::fs::create_dir(&dead).unwrap();
        std::os::unix::fs::symlink(&outside, dead.join(LINK)).unwrap();
        Store::open(s.store.home().clone()).unwrap();
        assert!(!dead.exists() && !outside.exists());
        assert!(!worker.wait().unwrap().success());
    }

    #[test]
    fn nothing_is_removed_that_only_has_the_name_or_another_owner() {
        let s = scratch();
        let other = s.dir.path().join("precious");
        std::fs::create_dir(&other).unwrap();
        let file = s.dir.path().join(format!("{PREFIX}file"));
        std::fs::write(&file, "x").unwrap();
        let mut kept = vec![other, file];
        if geteuid().is_root() {
            let foreign = s.dir.path().join(format!("{PREFIX}foreign"));
            std::fs::create_dir(&foreign).unwrap();
            std::os::unix::fs::chown(&foreign, Some(65534), None).unwrap();
            kept.push(foreign);
        }
        for (n, path) in kept.iter().enumerate() {
            let dead = s.store.dir("tmp").join(format!("4194304-{n}"));
            std::fs::create_dir(&dead).unwrap();
            std::os::unix::fs::symlink(path, dead.join(LINK)).unwrap();
            Store::open(s.store.home().clone()).unwrap();
            assert!(!dead.exists() && path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn ranges_are_those_of_the_user() {
        let user = nix::unistd::User::from_uid(geteuid()).unwrap().unwrap().name;
        let text = format!("somebody:1:2\n{user}:200000:65536\n{user}:7:8\n");
        assert_eq!(subordinate(&text), Some((200_000, 65_536)));
        assert_eq!(subordinate(&format!("{}:5:6\n", geteuid())), Some((5, 6)));
        assert_eq!(subordinate("somebody:1:2\n"), None);
    }
}
