//! Full systems, from the host's sources: skipped, saying why, where these or the privileges are lacking.

use super::*;
use crate::home::Home;
use crate::lock::AssetId;
use crate::packages::PackageSet;
use crate::store::Store;
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
    let run = |name: &str| {
        let temp = dir.path().join(name);
        fs::create_dir(&temp).unwrap();
        let tar = match run_scripts(&tool_dir, &debs, &temp, &Silent) {
            Ok(tar) => tar,
            Err(e) => panic!("{e}: {:?}", e.help_text()),
        };
        fs::remove_dir_all(temp.join("work")).unwrap();
        tar
    };
    let (first, second) = (run("first"), run("second"));
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
