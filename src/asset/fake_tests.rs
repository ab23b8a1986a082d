//! What firegopher makes of an apt that misbehaves: a script in its place plays each part.

use super::*;
use crate::digest::ObjectDigest;
use crate::error::Result;
use crate::home::Home;
use crate::lock::{AssetId, Pin, Pins};
use crate::store::Store;
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Notes each verb in `calls`, then does what the file of the verb's name says.
const SCRIPT: &str = r#"#!/bin/sh
bin=$(dirname "$0"); verb=none
for a; do case $a in
  update|install|download|show|pkgnames) verb=$a;;
  Dir::State::lists=*) lists=${a#*=};;
esac; done
echo "$verb" >> "$bin/calls"
[ ! -f "$bin/$verb" ] || . "$bin/$verb"
"#;

const LISTS: &str = ": > \"$lists/example.org_Packages\"";

struct Fake {
    dir: tempfile::TempDir,
    apt: Apt,
    store: Store,
}

impl Fake {
    fn new(parts: &[(&str, &str)]) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().join("home"));
        let store = Store::open(home.clone()).unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for program in ["apt-get", "apt-cache"] {
            fs::write(bin.join(program), SCRIPT).unwrap();
            fs::set_permissions(bin.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let fake = Fake { apt: Apt::with_path(&home, &bin), dir, store };
        for (verb, does) in parts {
            fake.part(verb, does);
        }
        fake
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn part(&self, verb: &str, does: &str) {
        fs::write(self.bin().join(verb), does).unwrap();
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.bin().join("calls")).unwrap_or_default().replace('\n', " ").trim().to_owned()
    }

    fn fetch(&self, pins: &[Pin]) -> Result<Vec<PathBuf>> {
        fetch_debs(&self.store, &self.apt, &AssetId::Vmm, pins, &Silent)
    }

    fn resolve(&self, id: AssetId) -> Result<Pins> {
        Ok(resolve_all(&self.store, &self.apt, &[id], &Silent)?.remove(0))
    }

    /// What becomes of images of one package each: for what one answer was, the packages or the error's code.
    fn resolve_images(&self, names: &[&str]) -> Vec<(String, Result<Vec<Pin>, &'static str>)> {
        let ids: Vec<AssetId> = names.iter().map(|name| AssetId::image([*name])).collect();
        let found = RefCell::new(Vec::new());
        resolve_each(&self.store, &self.apt, &ids, &Silent, &|ids, pins| {
            let ids: Vec<String> = ids.iter().map(|id| id.names().join(" ")).collect();
            found.borrow_mut().push((ids.join(", "), pins.map(|p| p.packages).map_err(|e| e.code())));
        });
        found.into_inner()
    }
}

/// An archive whose packages hold their own names; it knows none whose name begins with `no`.
const ARCHIVE: &[(&str, &str)] = &[
    ("update", LISTS),
    (
        "install",
        r#"for name; do :; done
case $name in no*) echo "E: Unable to locate package $name" >&2; exit 100;; esac
echo "'http://example.org/${name}_1_all.deb' ${name}_1_all.deb 1""#,
    ),
    (
        "show",
        r#"for a; do name=${a%=1}; [ "$name" != "$a" ] || continue
printf 'Package: %s\nArchitecture: all\nVersion: 1\nSize: %s\nSHA256: %s\nFilename: pool/%s_1_all.deb\n\n' \
  "$name" "${#name}" "$(printf %s "$name" | sha256sum | cut -d' ' -f1)" "$name"
done"#,
    ),
    (
        "download",
        r#"for a; do name=${a%=1}; [ "$name" != "$a" ] || continue
[ ! -f "$bin/lost-$name" ] || { echo "E: Failed to fetch http://example.org/$name  404  Not Found" >&2; continue; }
printf %s "$name" > "${name}_1_all.deb"; done
set -- "$bin"/lost-*; [ ! -f "$1" ] || exit 100"#,
    ),
];

/// A pin whose package holds its own name.
fn pin(name: &str) -> Pin {
    Pin {
        package: name.to_owned(),
        arch: "all".to_owned(),
        version: "1".to_owned(),
        size: name.len() as u64,
        sha256: Sha256::digest(name).iter().map(|b| format!("{b:02x}")).collect(),
        blake3: blake3::hash(name.as_bytes()).into(),
        pool: format!("pool/{name}_1_all.deb"),
    }
}

fn serve(name: &str) -> String {
    format!("printf %s {name} > {name}_1_all.deb\n")
}

#[test]
fn without_apt_the_host_is_named_but_only_when_something_is_missing() {
    let fake = Fake::new(&[("update", LISTS), ("download", &serve("a"))]);
    fake.fetch(&[pin("a")]).unwrap();
    fs::remove_file(fake.bin().join("apt-get")).unwrap();
    fake.fetch(&[pin("a")]).unwrap();
    let error = fake.fetch(&[pin("a"), pin("b")]).unwrap_err();
    assert_eq!((error.kind(), error.code()), (crate::error::Kind::Host, "asset.no-apt"));
}

#[test]
fn no_network_is_said_in_apts_words_though_apt_exits_0() {
    let offline =
        "echo \"W: Failed to fetch http://example.org/x  Temporary failure resolving 'example.org'\" >&2";
    let fake = Fake::new(&[("update", offline)]);
    let error = fake.resolve(AssetId::image(["a"])).unwrap_err();
    assert_eq!(error.code(), "asset.network");
    assert!(error.to_string().contains("Temporary failure resolving 'example.org'"), "{error}");
    assert!(error.help_text().unwrap().contains("network"));
}

#[test]
fn a_host_without_sources_is_told_so() {
    let error = Fake::new(&[]).apt.refresh(&Silent).unwrap_err();
    assert_eq!((error.kind(), error.code()), (crate::error::Kind::Host, "asset.no-sources"));
}

#[test]
fn one_broken_source_does_not_stop_the_others() {
    let broken = format!("{LISTS}; echo 'E: The repository example.org is not signed.' >&2; exit 100");
    Fake::new(&[("update", &broken)]).apt.refresh(&Silent).unwrap();
}

#[test]
fn fresh_lists_are_not_fetched_again() {
    let fake =
        Fake::new(&[("update", LISTS), ("install", "echo 'E: Unable to locate package a' >&2; exit 100")]);
    for _ in 0..2 {
        let error = fake.resolve(AssetId::image(["a"])).unwrap_err();
        assert_eq!(error.code(), "asset.unknown-package", "{error}");
    }
    assert_eq!(fake.calls().matches("update").count(), 1, "{}", fake.calls());
}

#[test]
fn stale_lists_are_renewed_once_and_the_download_retried() {
    let stale =
        "if [ ! -f $bin/renewed ]; then echo \"E: Version '1' for 'a' was not found\" >&2; exit 100; fi\n";
    let fake = Fake::new(&[("download", &format!("{stale}{}", serve("a")))]);
    fake.part("update", LISTS);
    fake.apt.refresh(&Silent).unwrap();
    fake.part("update", &format!("{LISTS}; : > $bin/renewed"));
    fake.fetch(&[pin("a")]).unwrap();
    assert_eq!(fake.calls(), "update download update download");
}

#[test]
fn a_version_that_new_lists_lack_too_is_gone() {
    let fake = Fake::new(&[
        ("update", LISTS),
        ("download", "echo \"E: Version '1' for 'a' was not found\" >&2; exit 100"),
    ]);
    let error = fake.fetch(&[pin("a")]).unwrap_err();
    assert_eq!(error.code(), "asset.gone");
    assert!(error.to_string().contains("a 1"), "{error}");
    assert!(error.help_text().unwrap().contains("firegopher update"));
    assert_eq!(fake.calls(), "update download", "the lists were new already");
}

#[test]
fn what_is_gone_is_told_alone_and_the_rest_is_kept() {
    // As apt-get does: one unknown version, and nothing is downloaded.
    let unknown = |name: &str| {
        format!(
            "case \"$*\" in *\" {name}=1\"*) echo \"E: Version '1' for '{name}' was not found\" >&2; exit 100;; esac\n"
        )
    };
    let fake = Fake::new(&[
        ("update", LISTS),
        ("download", &format!("{}{}{}{}", unknown("b"), unknown("d"), serve("a"), serve("c"))),
    ]);
    let error = fake.fetch(&[pin("a"), pin("b"), pin("c"), pin("d")]).unwrap_err();
    assert_eq!(error.code(), "asset.gone");
    let text = error.to_string();
    assert!(text.contains("no longer serves b 1, d 1: Version '1' for 'b' was not found"), "{text}");
    assert!(have_debs(&fake.store, &[pin("a"), pin("c")]));
}

#[test]
fn what_arrived_before_the_network_broke_is_kept() {
    let broken = "echo 'E: Failed to fetch http://example.org/b  Connection timed out' >&2; exit 100";
    let fake = Fake::new(&[("update", LISTS), ("download", &format!("{}{broken}", serve("a")))]);
    assert_eq!(fake.fetch(&[pin("a"), pin("b")]).unwrap_err().code(), "asset.network");
    assert!(have_debs(&fake.store, &[pin("a")]));
    fake.part("download", &format!("{} case \"$*\" in *a=1*) exit 1;; esac", serve("b")));
    assert_eq!(fake.fetch(&[pin("a"), pin("b")]).unwrap().len(), 2);
}

#[test]
fn what_is_pinned_was_fetched_in_one_download() {
    let fake = Fake::new(ARCHIVE);
    let found = fake.resolve_images(&["one", "two", "three"]);
    let names: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(names, ["one", "two", "three"]);
    for (name, pins) in &found {
        assert_eq!(pins.as_ref().unwrap(), &[pin(name)], "with the BLAKE3 of what came");
        assert!(have_debs(&fake.store, &[pin(name)]));
    }
    let calls = fake.calls();
    assert_eq!((calls.matches("download").count(), calls.matches("update").count()), (1, 1), "{calls}");
    fake.fetch(&[pin("one"), pin("two"), pin("three")]).unwrap();
    fake.resolve_images(&["two", "three"]);
    assert_eq!(fake.calls().matches("download").count(), 1, "nothing is fetched twice");
}

#[test]
fn an_unknown_name_fails_its_own_asset_and_no_other() {
    let fake = Fake::new(ARCHIVE);
    let found = fake.resolve_images(&["one", "none", "two", "nothing"]);
    let unknown = || Err("asset.unknown-package");
    let pinned = |name: &str| (name.to_owned(), Ok(vec![pin(name)]));
    let refused = |name: &str| (name.to_owned(), unknown());
    assert_eq!(found, [refused("none"), refused("nothing"), pinned("one"), pinned("two")]);
    assert_eq!(fake.calls().matches("download").count(), 1);
    let ids = ["one", "none"].map(|name| AssetId::image([name]));
    let error = resolve_all(&fake.store, &fake.apt, &ids, &Silent).unwrap_err();
    assert_eq!(error.code(), "asset.unknown-package");
}

#[test]
fn packages_that_do_not_come_fail_the_assets_that_need_them() {
    let fake = Fake::new(ARCHIVE);
    for lost in ["lost-two", "lost-three"] {
        fs::write(fake.bin().join(lost), "").unwrap();
    }
    let found = fake.resolve_images(&["one", "two", "three"]);
    let gone = Err("asset.gone");
    assert_eq!(found, [("two, three".to_owned(), gone), ("one".to_owned(), Ok(vec![pin("one")]))]);
}

#[test]
fn sources_that_do_not_answer_fail_all_assets_once() {
    let fake = Fake::new(ARCHIVE);
    fake.part("update", "echo 'E: Failed to fetch http://example.org/x  Connection timed out' >&2; exit 100");
    let found = fake.resolve_images(&["one", "two"]);
    assert_eq!(found, [("one, two".to_owned(), Err("asset.network"))]);
}

#[test]
fn a_pin_that_names_different_bytes_is_refused_before_and_after_a_download() {
    let contradicts = |fake: &Fake, pin: &Pin| {
        let error = fake.fetch(std::slice::from_ref(pin)).unwrap_err();
        assert_eq!(error.code(), "lock.contradiction", "{error}");
        assert!(error.to_string().contains("the package a a sha256 and a blake3"), "{error}");
        assert!(error.help_text().unwrap().contains("firegopher update"));
    };
    let edited = Pin { blake3: ObjectDigest::new([7; 32]), ..pin("a") };
    let fake = Fake::new(ARCHIVE);
    assert!(!have_debs(&fake.store, std::slice::from_ref(&edited)));
    contradicts(&fake, &edited);
    // It is there now: neither apt nor a network is asked.
    let calls = fake.calls();
    assert!(have_debs(&fake.store, std::slice::from_ref(&edited)));
    contradicts(&fake, &edited);
    contradicts(&fake, &Pin { sha256: pin("b").sha256, ..pin("a") });
    assert_eq!(fake.calls(), calls);
    fake.fetch(&[pin("a")]).unwrap();
    let error = fake.fetch(&[Pin { version: "2".into(), ..pin("a") }]).unwrap_err();
    assert_eq!(error.code(), "lock.contradiction");
    assert!(error.to_string().ends_with("gives the package a the digests of a 1 all"), "{error}");
}

#[test]
fn a_package_whose_record_is_gone_is_read_and_not_downloaded() {
    let fake = Fake::new(ARCHIVE);
    fake.fetch(&[pin("a")]).unwrap();
    let calls = fake.calls();
    fs::remove_dir_all(fake.store.home().store().join("actions")).unwrap();
    assert!(have_debs(&fake.store, &[pin("a")]));
    fake.fetch(&[pin("a")]).unwrap();
    assert_eq!(fake.calls(), calls);
}

#[test]
fn a_full_disk_is_named() {
    let full = "echo 'E: Write error - write (28: No space left on device)' >&2; exit 100";
    let fake = Fake::new(&[("update", LISTS), ("download", full)]);
    assert_eq!(fake.fetch(&[pin("a")]).unwrap_err().code(), "asset.disk-full");
}

#[test]
fn a_half_file_or_a_stranger_is_refused() {
    let fake = Fake::new(&[("update", LISTS), ("download", "printf ab > abc_1_all.deb")]);
    assert_eq!(fake.fetch(&[pin("abc")]).unwrap_err().code(), "asset.digest");
    fake.part("download", "printf ab > stranger_1_all.deb");
    assert_eq!(fake.fetch(&[pin("abc")]).unwrap_err().code(), "asset.digest");
    assert!(!have_debs(&fake.store, &[pin("abc")]));
}

#[test]
fn control_bytes_of_an_archive_do_not_reach_the_terminal() {
    let fake =
        Fake::new(&[("update", LISTS), ("download", r"printf 'E: Failed \033[2J to fetch\n' >&2; exit 100")]);
    let error = fake.fetch(&[pin("a")]).unwrap_err();
    assert!(!error.to_string().contains('\x1b'), "{error}");
}

#[test]
fn two_commands_at_once_take_turns_and_fetch_once() {
    let alone = "mkdir $bin/busy || exit 1; sleep 0.2; rmdir $bin/busy\n";
    let fake =
        Fake::new(&[("update", &format!("{alone}{LISTS}")), ("download", &format!("{alone}{}", serve("a")))]);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| fake.fetch(&[pin("a")]).map(|_| ()))).collect();
        for one in all {
            one.join().unwrap().unwrap();
        }
    });
    assert_eq!(fake.calls(), "update download");
}

#[test]
fn apt_dies_with_us() {
    const ROLE: &str = "FIREGOPHER_TEST_DIES";
    let slow = "echo $$ > $bin/pid.tmp; mv $bin/pid.tmp $bin/pid; exec sleep 60";
    if let Some(dir) = std::env::var_os(ROLE) {
        // The child's part: wait for an apt that never ends.
        let dir = PathBuf::from(dir);
        let apt = Apt::with_path(&Home::new(dir.join("home")), &dir.join("bin"));
        let _ = apt.refresh(&Silent);
        return;
    }
    let fake = Fake::new(&[("update", slow)]);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "asset::fake_tests::apt_dies_with_us"])
        .env(ROLE, fake.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let pid_file = fake.bin().join("pid");
    while !pid_file.exists() {
        assert!(Instant::now() < deadline, "the script never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let gone = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    while !gone() {
        assert!(Instant::now() < deadline, "apt outlived us");
        std::thread::sleep(Duration::from_millis(20));
    }
}
