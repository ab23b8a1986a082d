//! Versions, suites, sources and keys, against a Debian archive of a few packages that the test itself makes and
//! signs. Skipped, saying why, where there is no apt or no gpg to sign with.

use super::*;
use crate::home::Home;
use crate::lock::{AssetId, Pins};
use crate::packages::{PackageSet, PackageSource, Wanted};
use crate::store::Store;
use crate::testing::programs;
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A key pair of our own, and the directory that gpg wants around it.
struct Signer {
    home: PathBuf,
    keyring: PathBuf,
}

impl Signer {
    fn new(dir: &Path, name: &str) -> Option<Signer> {
        let home = dir.join(name);
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
        let signer = Signer { keyring: dir.join(format!("{name}.gpg")), home };
        programs::gpg(&signer.home)?;
        let user = format!("{name} <{name}@example.org>");
        let made =
            signer.gpg().args(["--quick-gen-key", &user, "ed25519", "sign", "never"]).output().unwrap();
        assert!(made.status.success(), "gpg makes no key: {}", String::from_utf8_lossy(&made.stderr));
        let exported = signer.gpg().arg("--export").output().unwrap();
        fs::write(&signer.keyring, exported.stdout).unwrap();
        Some(signer)
    }

    fn gpg(&self) -> Command {
        let mut gpg = programs::gpg(&self.home).expect("there was one when it was asked first");
        gpg.arg("--homedir").arg(&self.home).args(["--batch", "--quiet", "--yes", "--passphrase", ""]);
        gpg.args(["--pinentry-mode", "loopback"]);
        gpg
    }

    fn sign(&self, text: &str) -> Vec<u8> {
        let mut gpg =
            self.gpg().arg("--clearsign").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        gpg.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        gpg.wait_with_output().unwrap().stdout
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").arg("--homedir").arg(&self.home).args(["--kill", "all"]).status();
    }
}

/// An archive on this disk.
struct Archive {
    dir: PathBuf,
    signer: Signer,
    /// Package stanzas by suite.
    stanzas: std::collections::BTreeMap<&'static str, String>,
}

fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// A Debian package that holds its own version.
fn deb(name: &str, version: &str, more: &str) -> (Vec<u8>, String) {
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.org>\n{more}Description: test\n"
    );
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", tar_gz(&[("./control", &control)])),
        ("data.tar.gz", tar_gz(&[(&format!("./usr/share/{name}/version"), version)])),
    ];
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, data) in members {
        bytes.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", data.len()).bytes(),
        );
        bytes.extend(&data);
        bytes.resize(bytes.len().next_multiple_of(2), b'\n');
    }
    (bytes, control)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

impl Archive {
    fn new(dir: &Path) -> Option<Archive> {
        if Command::new("apt-get").arg("--version").output().is_err() {
            crate::testing::skip("no apt");
            return None;
        }
        let signer = Signer::new(dir, "archive")?;
        let archive = Archive { dir: dir.join("archive.d"), signer, stanzas: Default::default() };
        fs::create_dir_all(archive.dir.join("pool")).unwrap();
        Some(archive)
    }

    fn add(&mut self, suite: &'static str, name: &str, version: &str, more: &str) {
        let (bytes, control) = deb(name, version, more);
        let path = format!("pool/{name}_{version}_all.deb");
        fs::write(self.dir.join(&path), &bytes).unwrap();
        let stanza = format!("{control}Filename: {path}\nSize: {}\nSHA256: {}\n\n", bytes.len(), hex(&bytes));
        self.stanzas.entry(suite).or_default().push_str(&stanza);
    }

    /// Writes the lists of all suites and signs them. `more` is added to the Release files.
    fn publish(&self, more: &str) {
        for (suite, stanzas) in &self.stanzas {
            let dists = self.dir.join("dists").join(suite);
            let list = "main/binary-amd64/Packages";
            fs::create_dir_all(dists.join("main/binary-amd64")).unwrap();
            fs::write(dists.join(list), stanzas).unwrap();
            let release = format!(
                "Origin: Gopher Linux\nLabel: Test\nSuite: {suite}-suite\nCodename: {suite}\n\
                 Date: Thu, 21 Apr 2022 17:16:08 UTC\n{more}Architectures: amd64\nComponents: main\nSHA256:\n {} {} {list}\n",
                hex(stanzas.as_bytes()),
                stanzas.len()
            );
            fs::write(dists.join("InRelease"), self.signer.sign(&release)).unwrap();
            // A newer file, also where clocks are coarse.
            let now = std::time::SystemTime::now();
            fs::File::options().write(true).open(dists.join("InRelease")).unwrap().set_modified(now).unwrap();
        }
    }

    fn source(&self, suite: &str) -> PackageSource {
        PackageSource {
            url: format!("file:{}", self.dir.display()),
            suite: suite.to_owned(),
            components: vec!["main".to_owned()],
            keyring: self.signer.keyring.display().to_string(),
        }
    }
}

/// An archive with a stable suite and backports, and a store.
struct World {
    dir: tempfile::TempDir,
    archive: Archive,
    store: Store,
    apt: Apt,
}

fn world() -> Option<World> {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = Archive::new(dir.path())?;
    archive.add("stable", "tool", "1.0-1", "Depends: libtool (>= 1)\n");
    archive.add("stable", "tool", "1.1-1", "Depends: libtool (>= 1)\n");
    archive.add("stable", "libtool", "1.0", "");
    archive.add("backports", "tool", "2.0-1~bpo", "Depends: libtool (>= 2)\n");
    archive.add("backports", "libtool", "2.0", "");
    archive.publish("");
    let home = Home::new(dir.path().join("home"));
    let store = Store::open(home.clone()).unwrap();
    Some(World { archive, store, apt: Apt::new(&home).in_project(dir.path()), dir })
}

impl World {
    fn set(&self, packages: &[&str]) -> PackageSet {
        let mut set = PackageSet::of(Vec::<String>::new());
        set.packages = packages.iter().map(|p| Wanted::parse(p)).collect();
        set.sources = vec![self.archive.source("stable"), self.archive.source("backports")];
        set
    }

    fn pins(&self, set: PackageSet) -> crate::error::Result<Pins> {
        let id = AssetId::Image(set);
        Ok(resolve_all(&self.store, &self.apt, std::slice::from_ref(&id), &Silent)?.remove(0))
    }

    fn versions(&self, set: PackageSet) -> Vec<String> {
        self.pins(set).unwrap().packages.iter().map(|p| format!("{} {}", p.package, p.version)).collect()
    }

    fn error(&self, set: PackageSet) -> crate::error::Error {
        self.pins(set).unwrap_err()
    }
}

#[test]
fn the_newest_version_comes_unless_a_suite_or_version_is_named() {
    let Some(world) = world() else { return };
    assert_eq!(world.versions(world.set(&["tool"])), ["libtool 2.0", "tool 2.0-1~bpo"]);
    assert_eq!(world.versions(world.set(&["tool=1.0-1"])), ["libtool 2.0", "tool 1.0-1"]);
    let suite = |name: &str| PackageSet { suite: Some(name.to_owned()), ..world.set(&["tool"]) };
    for name in ["stable", "stable-suite"] {
        assert_eq!(world.versions(suite(name)), ["libtool 1.0", "tool 1.1-1"]);
    }
    assert_eq!(world.versions(suite("backports")), ["libtool 2.0", "tool 2.0-1~bpo"]);
}

#[test]
fn what_is_pinned_can_be_fetched_and_the_origin_is_the_sources_own() {
    let Some(world) = world() else { return };
    let set = PackageSet { suite: Some("stable".to_owned()), ..world.set(&["tool"]) };
    let pins = world.pins(set.clone()).unwrap();
    assert_eq!(pins.origin.to_string(), "gopher-linux stable");
    let codenames: Vec<&str> = pins.snapshot.iter().map(|r| r.codename.as_str()).collect();
    assert_eq!(codenames, ["backports", "stable"]);
    assert!(pins.snapshot.iter().all(|r| r.origin == "Gopher Linux" && r.date == "20220421T171608Z"));
    let signed = fs::read(world.archive.dir.join("dists/stable/InRelease")).unwrap();
    assert_eq!(pins.snapshot[1].sha256, hex(&signed));

    let id = AssetId::Image(set);
    let debs = fetch_debs(&world.store, &world.apt, &id, &pins.packages, &Silent).unwrap();
    for (deb, pin) in debs.iter().zip(&pins.packages) {
        assert_eq!(hex(&fs::read(deb).unwrap()), pin.sha256);
    }
    // On another machine, with no lists yet and the keyring from the project.
    let home = Home::new(world.dir.path().join("elsewhere"));
    let (store, apt) = (Store::open(home.clone()).unwrap(), Apt::new(&home).in_project(world.dir.path()));
    assert_eq!(fetch_debs(&store, &apt, &id, &pins.packages, &Silent).unwrap().len(), 2);
    apt.check_origin(&id, &pins.origin).unwrap();
}

#[test]
fn an_unknown_version_lists_those_that_there_are() {
    let Some(world) = world() else { return };
    let error = world.error(world.set(&["tool=3.0"]));
    assert_eq!(error.code(), "asset.unknown-version", "{error}");
    assert!(error.to_string().contains("version 3.0 of tool"), "{error}");
    assert_eq!(error.help_text(), Some("there is 2.0-1~bpo, 1.1-1, 1.0-1"));
}

#[test]
fn an_unknown_suite_lists_those_of_the_sources() {
    let Some(world) = world() else { return };
    let error = world.error(PackageSet { suite: Some("backport".to_owned()), ..world.set(&["tool"]) });
    assert_eq!(error.code(), "asset.unknown-suite", "{error}");
    let help = error.help_text().unwrap();
    assert!(help.contains("did you mean backports?") && help.contains("stable-suite"), "{help}");
}

#[test]
fn a_package_of_no_source_is_not_looked_for_on_the_host() {
    let Some(world) = world() else { return };
    let error = world.error(world.set(&["coreutils"]));
    assert_eq!(error.code(), "asset.unknown-package", "{error}");
}

#[test]
fn another_key_or_no_signature_is_refused_and_a_forged_list_too() {
    let Some(mut world) = world() else { return };
    let Some(stranger) = Signer::new(world.dir.path(), "stranger") else { return };
    let mut foreign = world.set(&["tool"]);
    foreign.sources.iter_mut().for_each(|s| s.keyring = stranger.keyring.display().to_string());
    assert_eq!(world.error(foreign).code(), "asset.signature");

    let release = world.archive.dir.join("dists/stable/InRelease");
    let text = fs::read_to_string(&release).unwrap();
    fs::write(&release, text.replace("Label: Test", "Label: Fest")).unwrap();
    assert_eq!(world.error(world.set(&["tool"])).code(), "asset.signature");

    world.archive.publish("");
    world.archive.add("stable", "tool", "9.9", "");
    let list = world.archive.dir.join("dists/stable/main/binary-amd64/Packages");
    fs::write(&list, &world.archive.stanzas["stable"]).unwrap();
    let error = world.error(world.set(&["tool"]));
    assert_eq!(error.code(), "asset.digest", "{error}");

    let unsigned =
        text.lines().skip(3).take_while(|l| !l.starts_with("-----")).collect::<Vec<_>>().join("\n");
    world.archive.publish("");
    fs::remove_file(&release).unwrap();
    fs::write(release.with_file_name("Release"), unsigned).unwrap();
    let error = world.error(world.set(&["tool"]));
    assert_eq!(error.code(), "asset.signature", "{error}");
}

#[test]
fn one_broken_source_of_the_manifest_stops_all() {
    let Some(world) = world() else { return };
    fs::remove_dir_all(world.archive.dir.join("dists/backports")).unwrap();
    let error = world.error(world.set(&["tool"]));
    assert_eq!(error.code(), "asset.source", "{error}");
}

#[test]
fn an_expired_release_is_refused() {
    let Some(mut world) = world() else { return };
    // Whatever this host's own policy is.
    let bin = world.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let on = "-o Acquire::Check-Valid-Until=true -o Acquire::Check-Date=true";
    for program in ["apt-get", "apt-cache"] {
        fs::write(bin.join(program), format!("#!/bin/sh\nexec /usr/bin/{program} {on} \"$@\"\n")).unwrap();
        fs::set_permissions(bin.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    world.apt = Apt::with_path(world.store.home(), &bin).in_project(world.dir.path());
    assert_eq!(world.versions(world.set(&["tool"])).len(), 2);
    world.archive.publish("Valid-Until: Thu, 28 Apr 2022 17:16:08 UTC\n");
    let error = world.apt.of(&AssetId::Image(world.set(&["tool"]))).refresh(&Silent).unwrap_err();
    assert_eq!(error.code(), "asset.expired", "{error}");
}

#[test]
fn other_bytes_than_the_list_promises_are_refused() {
    let Some(world) = world() else { return };
    let set = world.set(&["tool=1.1-1"]);
    let pins = world.pins(set.clone()).unwrap();
    let pool = world.archive.dir.join("pool/tool_1.1-1_all.deb");
    let mut bytes = fs::read(&pool).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&pool, bytes).unwrap();
    // On another machine: what is pinned, and what would be.
    let home = Home::new(world.dir.path().join("elsewhere"));
    let (store, apt) = (Store::open(home.clone()).unwrap(), Apt::new(&home).in_project(world.dir.path()));
    let id = AssetId::Image(set);
    let error = fetch_debs(&store, &apt, &id, &pins.packages, &Silent).unwrap_err();
    assert_eq!(error.code(), "asset.digest", "{error}");
    let error = resolve_all(&store, &apt, &[id], &Silent).unwrap_err();
    assert_eq!(error.code(), "asset.digest", "{error}");
}

#[test]
fn a_keyring_is_named_by_a_path_of_the_project_and_its_absence_too() {
    let Some(world) = world() else { return };
    let mut set = world.set(&["tool"]);
    set.sources.iter_mut().for_each(|source| source.keyring = "archive.gpg".to_owned());
    assert_eq!(world.versions(set.clone()).len(), 2);
    // An armoured one is the same to apt, whatever its name.
    let armoured = world.archive.signer.gpg().args(["--armor", "--export"]).output().unwrap().stdout;
    fs::write(world.dir.path().join("other.gpg"), armoured).unwrap();
    set.sources.iter_mut().for_each(|source| source.keyring = "other.gpg".to_owned());
    assert_eq!(world.versions(set.clone()).len(), 2);
    set.sources[1].keyring = "nowhere.gpg".to_owned();
    let error = world.error(set);
    assert_eq!((error.kind(), error.code()), (crate::error::Kind::Usage, "asset.keyring"));
    assert!(error.to_string().contains("nowhere.gpg"), "{error}");
}

#[test]
fn a_new_release_with_the_same_packages_changes_no_lock() {
    let Some(world) = world() else { return };
    let id = AssetId::Image(world.set(&["tool"]));
    let mut lock = crate::lock::Lock::default();
    lock.set(id.clone(), world.pins(world.set(&["tool"])).unwrap()).unwrap();
    let before = lock.render();
    world.archive.publish("Version: 2\n");
    world.apt.of(&id).refresh(&Silent).unwrap();
    let again = world.pins(world.set(&["tool"])).unwrap();
    assert_ne!(again.snapshot, lock.entry(&id).unwrap().snapshot, "the archive has moved on");
    lock.set(id.clone(), again.clone()).unwrap();
    assert_eq!(lock.render(), before);
    // The snapshot moves with the packages.
    let mut moved = again;
    moved.packages[0].version = "9".to_owned();
    lock.set(id.clone(), moved.clone()).unwrap();
    assert_eq!(lock.entry(&id).unwrap(), &moved);
}

#[test]
fn apts_own_configuration_is_part_of_what_makes_lists_fresh() {
    const ROLE: &str = "FIREGOPHER_TEST_APT_CONFIG";
    if let Some(home) = std::env::var_os(ROLE) {
        print!("fingerprint {}", apt_sources::host_fingerprint(&Apt::new(&Home::new(PathBuf::from(home)))));
        return;
    }
    let Some(world) = world() else { return };
    let home = world.dir.path().join("home");
    drop(Apt::new(&Home::new(home.clone())).lock(&Silent).unwrap());
    let (conf, list) = (world.dir.path().join("apt.conf"), world.dir.path().join("other.list"));
    let fingerprint = || {
        let said = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "asset::archive_tests::apts_own_configuration_is_part_of_what_makes_lists_fresh",
            ])
            .arg("--nocapture")
            .env(ROLE, &home)
            .env("APT_CONFIG", &conf)
            .output()
            .unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    fs::write(&list, "# nothing\n").unwrap();
    fs::write(&conf, "").unwrap();
    let plain = fingerprint();
    fs::write(&conf, format!("Dir::Etc::sourcelist \"{}\";\n", list.display())).unwrap();
    let other = fingerprint();
    assert!(plain.contains("fingerprint ") && other.contains("other.list"), "{other}");
    assert_ne!(plain, other, "another configuration");
    fs::write(&list, "# nothing at all\n").unwrap();
    assert_ne!(fingerprint(), other, "another list in the same place");
}

#[test]
fn pins_of_a_manifests_sources_are_nobody_elses() {
    let Some(world) = world() else { return };
    let here = world.apt.of(&AssetId::Image(world.set(&["tool"])));
    let mut reversed = world.set(&["tool"]);
    reversed.sources.reverse();
    assert!(!here.is(&world.apt) && !here.is(&world.apt.of(&AssetId::Image(reversed))));
    assert!(here.is(&world.apt.of(&AssetId::Image(world.set(&["other"])))));
    // Another key under the same name has lists of its own: one project's trust is not another's.
    let set = world.set(&["tool"]);
    fs::write(&world.archive.signer.keyring, "other bytes").unwrap();
    assert!(!here.is(&world.apt.of(&AssetId::Image(set))));
}
