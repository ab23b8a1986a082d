//! Full systems, from the host's sources: skipped, saying why, where these or the privileges are lacking.

use super::*;
use crate::home::Home;
use crate::image::tests::Tar;
use crate::lock::AssetId;
use crate::packages::PackageSet;
use crate::store::{Store, TempDir};
use fs_err as fs;
use std::path::{Path, PathBuf};

/// What tests share below `target/`, so that each package is downloaded once.
fn home() -> Home {
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).unwrap();
    Home::new(target.join("tmp").join(format!("scripts-{}", nix::unistd::geteuid())))
}

fn debs(store: &Store, apt: &Apt, id: &AssetId) -> Option<Vec<PathBuf>> {
    let resolved = resolve_all(store, apt, std::slice::from_ref(id), &Silent);
    let pins = crate::testing::unless_without_packages(resolved)?;
    Some(fetch_debs(store, apt, id, &pins[0].packages, &Silent).unwrap())
}

fn tool(store: &Store, apt: &Apt, out: &Path) -> Option<()> {
    let debs = debs(store, apt, &AssetId::Mmdebstrap)?;
    mmdebstrap_tree(&debs, out).unwrap();
    Some(())
}

/// A store of its own and the tool, for installing what a test makes; `None`, and the reason counted, where scripts
/// cannot run.
pub(crate) struct Workshop {
    dir: tempfile::TempDir,
    tool: PathBuf,
}

impl Workshop {
    pub(crate) fn new() -> Option<Workshop> {
        if !nix::unistd::geteuid().is_root() {
            crate::testing::skip("scripts run here as root only");
            return None;
        }
        let home = home();
        fs::create_dir_all(home.root().parent().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("tool");
        tool(&Store::open(home.clone()).unwrap(), &Apt::new(&home), &made)?;
        Some(Workshop { dir, tool: made })
    }

    /// The packages with which dpkg installs others.
    pub(crate) fn dpkgs_own(with: &[&str]) -> Option<Vec<PathBuf>> {
        crate::testing::debs(
            &[
                &["base-files", "base-passwd", "coreutils", "dash", "diffutils", "dpkg", "libc-bin", "sed"],
                with,
            ]
            .concat(),
        )
    }

    /// A package with a script and a finished data tar.
    pub(crate) fn package(&self, name: &str, fields: &str, postinst: &str, data: Vec<u8>) -> PathBuf {
        let control = format!(
            "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n\
             Description: a test\n{fields}"
        );
        let control = Tar::default().file("./control", control.as_bytes());
        let control = match postinst {
            "" => control,
            text => control.raw(b"./postinst", b'0', 0o755, (0, 0), b"", text.len() as u64, text.as_bytes()),
        };
        let mut ar = ar::Builder::new();
        for (name, bytes) in
            [("debian-binary", b"2.0\n".to_vec()), ("control.tar", control.end()), ("data.tar", data)]
        {
            ar.add(name, &bytes);
        }
        let path = self.dir.path().join(name);
        fs::write(&path, ar.0).unwrap();
        path
    }

    /// Installs packages, the work being in a store at `home`.
    pub(crate) fn install(&self, home: &Path, debs: &[PathBuf]) -> crate::error::Result<(TempDir, PathBuf)> {
        let temp = Store::open(Home::new(home)).unwrap().temp_dir().unwrap();
        let tar = run_scripts(&self.tool, debs, &temp, &Silent)?;
        Ok((temp, tar))
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }
}

mod ar {
    /// Packages' outer archives, ar(5).
    pub(super) struct Builder(pub Vec<u8>);

    impl Builder {
        pub(super) fn new() -> Builder {
            Builder(b"!<arch>\n".to_vec())
        }

        pub(super) fn add(&mut self, name: &str, bytes: &[u8]) {
            let head = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len());
            self.0.extend_from_slice(head.as_bytes());
            self.0.extend_from_slice(bytes);
            if self.0.len() % 2 == 1 {
                self.0.push(b'\n');
            }
        }
    }
}

#[test]
fn a_package_whose_script_fails_is_named_with_what_it_said() {
    let Some(workshop) = Workshop::new() else { return };
    let Some(mut debs) = Workshop::dpkgs_own(&[]) else { return };
    let script = "#!/bin/sh\necho 'no such luck' >&2\nexit 3\n";
    debs.push(workshop.package("fg-fails", "", script, Tar::default().dir("./").end()));
    let error = workshop.install(&workshop.home(), &debs).unwrap_err();
    assert_eq!(error.code(), "asset.scripts");
    assert_eq!(
        error.to_string(),
        "the packages cannot be installed with their scripts: dpkg: error processing package fg-fails (--install): \
         installed fg-fails package post-installation script subprocess returned error exit status 3"
    );
    let help = error.help_text().unwrap();
    assert!(help.starts_with("without `scripts=#true` they are unpacked"), "{help}");
    assert!(help.contains("mmdebstrap's last words were:\n"), "{help}");
}

#[test]
fn a_full_disk_is_told_beforehand_or_by_what_the_programs_say() {
    let Some(workshop) = Workshop::new() else { return };
    let data = vec![7; 12 << 20];
    let tar = || Tar::default().dir("./").file("./large", &data).end();
    let honest = workshop.package("fg-honest", "Installed-Size: 12288\n", "", tar());
    let silent = workshop.package("fg-silent", "", "", tar());
    crate::testing::on_small_disk(16 << 20, |disk| {
        let error = workshop.install(&disk.join("home"), &[honest]).unwrap_err();
        assert_eq!(error.code(), "image.disk-full");
        let says = "installing the packages with their scripts needs 24 MiB in ";
        assert!(error.to_string().starts_with(says), "{error}");
        assert!(error.help_text().unwrap().contains("FIREGOPHER_HOME"));

        let error = workshop.install(&disk.join("home"), &[silent]).unwrap_err();
        assert_eq!(error.code(), "asset.disk-full", "{error}: {:?}", error.help_text());
        let says = format!("scripts: no space is left in {}", disk.display());
        assert!(error.to_string().contains(&says), "{error}");
        assert!(error.help_text().unwrap().starts_with("free some space there"));
        let left = fs::read_dir(disk.join("home/v1/tmp")).unwrap().count();
        assert_eq!(left, 0, "what was begun is gone");
    });
}

#[test]
fn a_full_system_is_the_same_bytes_twice_and_its_scripts_ran() {
    if !nix::unistd::geteuid().is_root() {
        crate::testing::skip("scripts run here as root only");
        return;
    }
    let home = home();
    fs::create_dir_all(home.root().parent().unwrap()).unwrap();
    let store = Store::open(home.clone()).unwrap();
    let apt = Apt::new(&home);
    let dir = tempfile::tempdir().unwrap();
    let tool_dir = dir.path().join("tool");
    let Some(()) = tool(&store, &apt, &tool_dir) else { return };
    // A user made by a script, a daemon with units to enable, certificates hashed by a trigger.
    let set = PackageSet { scripts: true, ..PackageSet::of(["systemd", "dbus", "ca-certificates"]) };
    let Some(debs) = debs(&store, &apt, &AssetId::Image(set)) else { return };
    let run = || {
        let temp = store.temp_dir().unwrap();
        let tar = match run_scripts(&tool_dir, &debs, &temp, &Silent) {
            Ok(tar) => tar,
            Err(e) => panic!("{e}: {:?}", e.help_text()),
        };
        fs::remove_dir_all(temp.path().join("work")).unwrap();
        (temp, tar)
    };
    let ((_one, first), (_two, second)) = (run(), run());
    let names = |tar: &Path| {
        let mut names = std::collections::BTreeMap::new();
        let mut archive = tar::Archive::new(fs::File::open(tar).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut hasher = blake3::Hasher::new();
            std::io::copy(&mut entry, &mut hasher).unwrap();
            names.insert(path, (entry.header().as_bytes().to_vec(), hasher.finalize()));
        }
        names
    };
    let (a, b) = (names(&first), names(&second));
    let differ: Vec<_> = a.keys().filter(|path| a.get(*path) != b.get(*path)).collect();
    assert!(differ.is_empty() && a.len() == b.len(), "two runs differ in {differ:?}");
    assert_eq!(named::sha256(&first).unwrap(), named::sha256(&second).unwrap());
    for gone in
        ["./etc/hostname", "./etc/resolv.conf", "./etc/apt/sources.list", "./var/cache/ldconfig/aux-cache"]
    {
        assert!(!a.contains_key(gone), "{gone}");
    }
    let there = |path: &str| assert!(a.contains_key(path), "{path}");
    there("./bin");
    // By scripts: the bundle, the list of users, the shell's link, dpkg's own list.
    for path in
        ["./etc/ssl/certs/ca-certificates.crt", "./etc/shadow", "./var/lib/dpkg/status", "./etc/machine-id"]
    {
        there(path);
    }
    let text = |wanted: &str| {
        let mut archive = tar::Archive::new(fs::File::open(&first).unwrap());
        let found = archive
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .find(|e| e.path().unwrap().display().to_string() == wanted);
        std::io::read_to_string(found.unwrap()).unwrap()
    };
    assert_eq!(text("./etc/machine-id"), "");
    assert!(text("./etc/passwd").contains("messagebus:"));
    let status = text("./var/lib/dpkg/status");
    assert_eq!(status.matches("\nStatus: install ok installed\n").count(), debs.len());

    // What a base image is made of it.
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    crate::image::build_base(crate::image::BaseSource::Tar(&first), &out, dir.path()).unwrap();
    let Some(mut e2fsck) = crate::testing::programs::e2fsprogs("e2fsck") else { return };
    let said = e2fsck.arg("-fn").arg(out.join(crate::image::BASE_IMAGE)).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}
