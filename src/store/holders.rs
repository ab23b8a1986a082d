//! Names the processes that hold a flock, as the kernel lists them: for messages only.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// At most this many are named.
const NAMED: usize = 3;

/// How often the kernel's list is read until it has somebody. It comes a page at a time, and locks that are released
/// between two pages make others slip past the reader.
const READS: usize = 5;

/// Such as `firegopher up (pid 71)`; empty if the kernel does not tell.
pub(super) fn of(file: &File) -> Vec<String> {
    let Ok(meta) = file.metadata() else { return Vec::new() };
    let read = |_| {
        let table = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        table.lines().filter_map(|line| holder(line, meta.ino())).collect()
    };
    let mut pids: Vec<u32> =
        (0..READS).map(read).find(|pids: &Vec<u32>| !pids.is_empty()).unwrap_or_default();
    pids.sort_unstable();
    pids.dedup();
    let more = pids.len().saturating_sub(NAMED);
    let mut names: Vec<String> = pids.into_iter().take(NAMED).filter_map(described).collect();
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names
}

/// The pid in a line of /proc/locks about a flock on this inode that is held, such as
/// `4: FLOCK  ADVISORY  READ 71 08:01:1234 0 EOF` (proc_locks(5)); waiters have an arrow after the number. The device
/// is not compared: overlay file systems show another one in stat(2).
fn holder(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    (words.next()? == "FLOCK").then_some(())?;
    let pid = words.nth(2)?.parse().ok()?;
    let (_, number) = words.next()?.rsplit_once(':')?;
    (number.parse() == Ok(inode)).then_some(pid)
}

fn described(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args = line.split(|byte| *byte == 0).filter(|arg| !arg.is_empty());
    let name = name(args.map(|arg| OsString::from_vec(arg.to_vec())));
    Some(format!("{name} (pid {pid})"))
}

/// Program and subcommand only: later arguments may be anybody's secrets.
pub(super) fn name(mut args: impl Iterator<Item = OsString>) -> String {
    let program = args.next().map(PathBuf::from).unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match subcommand(args) {
        Some(command) => format!("{program} {}", command.to_string_lossy()),
        None => program,
    }
}

/// The first argument that is neither an option nor the value of one that stands before a command.
fn subcommand(mut args: impl Iterator<Item = OsString>) -> Option<OsString> {
    while let Some(arg) = args.next() {
        if [OsStr::new("-C"), OsStr::new("-f"), OsStr::new("--file")].contains(&arg.as_os_str()) {
            args.next();
        } else if !arg.as_bytes().starts_with(b"-") {
            return Some(arg);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_told_from_waiters_and_other_files() {
        let line = "4: FLOCK  ADVISORY  READ 71 08:01:1234 0 EOF";
        assert_eq!(holder(line, 1234), Some(71));
        assert_eq!(holder(line, 123), None);
        assert_eq!(holder("4: -> FLOCK  ADVISORY  WRITE 72 08:01:1234 0 EOF", 1234), None);
        assert_eq!(holder("5: POSIX  ADVISORY  WRITE 73 00:17:1234 0 EOF", 1234), None);
        assert_eq!(holder("", 1234), None);
    }

    #[test]
    fn a_command_is_named_without_its_arguments() {
        let name = |args: &[&str]| name(args.iter().map(OsString::from));
        assert_eq!(name(&["/usr/bin/firegopher", "-C", "/x", "run", "--", "s3cret"]), "firegopher run");
        assert_eq!(name(&["firegopher", "-f", "x.kdl", "up"]), "firegopher up");
        assert_eq!(name(&["firegopher", "--version"]), "firegopher");
    }

    #[test]
    fn shared_holders_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("lock")).unwrap();
        assert!(of(&file).is_empty());
        file.lock_shared().unwrap();
        let told = of(&file);
        assert_eq!(told.len(), 1);
        assert!(told[0].ends_with(&format!("(pid {})", std::process::id())), "{told:?}");
    }
}
