//! What went wrong in the sandbox, the cause first.

use super::apt_run::Said;
use super::parse::printable;
use crate::asset::apt_error;
use crate::error::Error;
use std::path::Path;

/// How many of the last lines are shown.
const SHOWN: usize = 15;

/// A failure of one of the programs that serve the installation, working in the first directory and writing to the second.
pub(super) fn of(doing: &str, said: &Said, dirs: [&Path; 2]) -> Error {
    let message = format!("cannot {doing} to run maintainer scripts");
    if full(said) {
        return disk_full(message, dirs);
    }
    let lines = lines(&said.stderr);
    let why = lines.last().map_or_else(|| format!("tar ended with {}", said.status), |line| printable(line));
    Error::failed("asset.scripts", format!("{message}: {why}")).help(last_words(&lines, MEND))
}

/// A failure of dpkg or of a script that it ran.
pub(super) fn of_installing(said: &Said, dirs: [&Path; 2]) -> Error {
    let failed = "the packages cannot be installed with their scripts";
    if full(said) {
        return disk_full(failed.to_owned(), dirs);
    }
    let lines = lines(&said.stderr);
    let why = cause(&lines).unwrap_or_else(|| format!("dpkg ended with {}", said.status));
    Error::failed("asset.scripts", format!("{failed}: {}", printable(&why))).help(last_words(&lines, MEND))
}

const MEND: &str = "without `scripts=#true` they are unpacked and no script runs";

/// How the work gets another disk.
pub(super) fn elsewhere() -> &'static str {
    match nix::unistd::geteuid().is_root() {
        true => "set FIREGOPHER_HOME to a larger disk",
        false => "set TMPDIR to a directory on a larger disk",
    }
}

fn full(said: &Said) -> bool {
    // GNU tar's words for the file in the middle of which it was.
    said.complaints.disk_full()
        || apt_error::says_disk_full(&said.stderr)
        || said.stderr.contains(": Wrote only ")
}

fn disk_full(message: String, dirs: [&Path; 2]) -> Error {
    // Their own names mean nothing, and both are gone by now.
    let mut places = dirs.map(|dir| dir.parent().unwrap_or(dir).display().to_string()).to_vec();
    places.dedup();
    let message = format!("{message}: no space is left in {}", places.join(" or "));
    Error::failed("asset.disk-full", message).help(format!("free some space there, or {}", elsewhere()))
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect()
}

fn last_words(lines: &[&str], mend: &str) -> String {
    let tail = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    if tail.is_empty() {
        mend.to_owned()
    } else {
        printable(&format!("{mend}; the last words were:\n{tail}"))
    }
}

/// What the first package failed of: whatever its script said last, and how dpkg calls that.
fn cause(lines: &[&str]) -> Option<String> {
    let at = lines.iter().position(|line| line.starts_with("dpkg: error"))?;
    let line = lines[at];
    // What is wrong stands below which package it is about.
    let below = lines.get(at + 1).filter(|_| line.ends_with(':')).map(|line| line.trim());
    let Some(name) = line.strip_prefix("dpkg: error processing ").and_then(|rest| rest.rsplit_once(" (--"))
    else {
        return Some(line.to_owned());
    };
    let which = name.0.strip_prefix("package ").unwrap_or(name.0);
    let what = below.unwrap_or("dpkg gives no reason");
    // What a script says stands above, after what dpkg says of others.
    let own = lines[..at].iter().rev().take_while(|line| !line.starts_with("dpkg: "));
    match own.into_iter().next().filter(|_| what.contains("script subprocess")) {
        Some(said) => Some(format!("{which}: {} ({what})", said.trim())),
        None => Some(format!("{which}: {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_what_the_script_said_and_then_what_dpkg_calls_it() {
        let script = "W: before\nno such luck\ndpkg: error processing package a (--install):\n installed a package \
                      post-installation script subprocess returned error exit status 3\nErrors were encountered \
                      while processing:\n a\n";
        let cases = [
            (
                script,
                Some(
                    "a: no such luck (installed a package post-installation script subprocess returned error exit status 3)",
                ),
            ),
            (
                "dpkg: error processing archive /dev/packages/b.deb (--install):\n trying to overwrite '/x', which is also in package c 1\n",
                Some("archive /dev/packages/b.deb: trying to overwrite '/x', which is also in package c 1"),
            ),
            (
                "dpkg: dependency problems prevent configuration of d:\n d depends on e; however:\n\ndpkg: error processing package d (--install):\n dependency problems - leaving unconfigured\n",
                Some("d: dependency problems - leaving unconfigured"),
            ),
            (
                "dpkg: error: 2 expected programs not found\n",
                Some("dpkg: error: 2 expected programs not found"),
            ),
            ("dpkg: error processing package a (--install):\n", Some("a: dpkg gives no reason")),
            ("I: nothing of note\n", None),
        ];
        for (stderr, why) in cases {
            assert_eq!(cause(&lines(stderr)).as_deref(), why, "{stderr}");
        }
    }
}
