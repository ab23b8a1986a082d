//! Programs that tests compare with: the host's own, or out of Debian packages, unpacked beside the shared test home
//! and run from there. So that a bare host checks as much as any other.

use fs_err as fs;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Where this is set to anything but nothing, the host's own programs are not used: to test that the others do.
const NOT_THE_HOSTS: &str = "FIREGOPHER_TEST_OWN_PROGRAMS";

const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// Those of sbin an ordinary user's PATH lacks.
const PLACES: [&str; 4] = ["usr/sbin", "sbin", "usr/bin", "bin"];

/// Some packages, unpacked, with all that they need.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

/// The programs of these packages; `None`, and the reason counted, where they cannot be had.
pub fn of_packages(names: &'static [&'static str]) -> Option<Programs> {
    static ALL: OnceLock<Mutex<HashMap<&[&str], Option<Programs>>>> = OnceLock::new();
    let mut all = ALL.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    all.entry(names).or_insert_with(|| unpack(names)).clone()
}

fn unpack(names: &[&str]) -> Option<Programs> {
    let debs = super::debs(names)?;
    let shown: Vec<String> = debs.iter().map(|deb| deb.display().to_string()).collect();
    let digest = blake3::hash(shown.join("\n").as_bytes()).to_hex();
    let home = super::home();
    let dir = home.root().with_file_name(format!("programs-{}", &digest[..16]));
    let _guard = crate::store::lock_file(&home.root().join("programs.guard"), &|_| ()).unwrap();
    let done = dir.join("unpacked");
    if !done.exists() {
        for deb in &debs {
            let mut archive = ::tar::Archive::new(crate::image::deb::data_tar(deb).unwrap());
            archive.set_preserve_mtime(false);
            archive.unpack(&dir).unwrap_or_else(|e| panic!("cannot unpack {}: {e}", deb.display()));
        }
        fs::write(&done, "").unwrap();
    }
    Some(Programs(dir))
}

impl Programs {
    /// Where a program of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        let found = PLACES.iter().map(|place| self.0.join(place).join(name)).find(|path| path.exists());
        found.unwrap_or_else(|| panic!("there is no {name} in {}", self.0.display()))
    }

    /// What runs a program: the loader of its own distribution and that one's libraries.
    pub fn words(&self, name: &str) -> Vec<String> {
        let libraries = LIBRARIES.map(|dir| self.0.join(dir).display().to_string());
        let loader = self.0.join(LIBRARIES[0]).join("ld-linux-x86-64.so.2");
        let loader =
            if loader.exists() { loader } else { self.0.join(LIBRARIES[1]).join("ld-linux-x86-64.so.2") };
        let words = [&loader.display().to_string(), "--library-path", &libraries.join(":")];
        let mut words: Vec<String> = words.map(str::to_owned).to_vec();
        words.push(self.path(name).display().to_string());
        words
    }

    /// A program, with nothing of the user's settings.
    pub fn command(&self, name: &str) -> Command {
        let words = self.words(name);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
        command
    }
}

/// The host's program of this name, if there is one and it may be used.
pub fn of_host(name: &str) -> Option<PathBuf> {
    if std::env::var_os(NOT_THE_HOSTS).is_some_and(|set| !set.is_empty()) {
        return None;
    }
    PLACES.iter().map(|place| Path::new("/").join(place).join(name)).find(|path| path.exists())
}

/// A program of e2fsprogs; `None`, and the reason counted, where it cannot be had.
pub fn e2fsprogs(name: &str) -> Option<Command> {
    match of_host(name) {
        Some(path) => Some(Command::new(path)),
        None => {
            let programs = of_packages(&["e2fsprogs"])?;
            let mut command = programs.command(name);
            // Else mke2fs looks for the host's, and makes images of other features without it.
            command.env("MKE2FS_CONFIG", programs.0.join("etc/mke2fs.conf"));
            Some(command)
        }
    }
}

/// GnuPG; `None`, and the reason counted, where it cannot be had. Out of packages it is told by a script in `dir`
/// where its agent is.
pub fn gpg(dir: &Path) -> Option<Command> {
    if let (Some(gpg), Some(_)) = (of_host("gpg"), of_host("gpg-agent")) {
        return Some(Command::new(gpg));
    }
    let programs = of_packages(&["gpg", "gpg-agent"])?;
    let agent = dir.join("gpg-agent.sh");
    if !agent.exists() {
        use std::os::unix::fs::PermissionsExt as _;
        fs::write(&agent, format!("#!/bin/sh\nexec {} \"$@\"\n", programs.words("gpg-agent").join(" ")))
            .unwrap();
        fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut gpg = programs.command("gpg");
    gpg.arg("--agent-program").arg(agent);
    Some(gpg)
}
