//! The lock file as its users meet it.

use super::*;
use fs_err as fs;
use proptest::prelude::*;
use std::os::unix::fs::{PermissionsExt, symlink};

mod merging;

fn pin(name: &str) -> Pin {
    Pin {
        package: name.to_owned(),
        arch: "amd64".to_owned(),
        version: "1:2.0~rc1+b3-4".to_owned(),
        size: 1234,
        sha256: "0123456789abcdef".repeat(4),
        blake3: blake3::hash(name.as_bytes()).into(),
        pool: format!("pool/main/{}/{name}_2.0~rc1+b3-4_amd64.deb", &name[..1]),
    }
}

fn pins(names: &[&str]) -> Pins {
    let origin = Origin { distribution: "debian".to_owned(), suite: "bookworm".to_owned() };
    Pins { origin, snapshot: vec![], packages: names.iter().map(|name| pin(name)).collect() }
}

fn sample() -> Lock {
    let mut lock = Lock::default();
    lock.set(AssetId::image(["dash", "bash"]), pins(&["libc6", "dash", "bash"])).unwrap();
    lock.set(AssetId::kernel("linux-image-cloud-amd64"), pins(&["linux-image-6.1-amd64"])).unwrap();
    lock.set(AssetId::Vmm, pins(&["qemu-system-x86"])).unwrap();
    lock
}

/// Saves and loads through a file.
fn load(text: impl AsRef<[u8]>) -> Result<Lock> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    fs::write(&path, text).unwrap();
    Lock::load(&path)
}

/// What is pinned to other things than packages.
fn others() -> Lock {
    let mut lock = Lock::default();
    let file = |role, member: Option<&str>| AssetId::File {
        role,
        url: "https://example.org/a \"b\".tar".to_owned(),
        member: member.map(str::to_owned),
    };
    let pin =
        |size| FilePin { size, sha256: "0123456789abcdef".repeat(4), blake3: blake3::hash(b"a").into() };
    lock.set(file(FileRole::Image, None), Pinned::File(pin(7))).unwrap();
    lock.set(file(FileRole::Workload, Some("bin/tool")), Pinned::File(pin(1 << 40))).unwrap();
    let digest = |byte: &str| format!("sha256:{}", byte.repeat(32));
    let layer = OciLayer {
        digest: digest("0b"),
        size: 9,
        media: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        blake3: blake3::hash(b"layer").into(),
    };
    let config = OciConfig {
        digest: digest("0c"),
        blake3: blake3::hash(b"config").into(),
        entrypoint: vec!["/bin/sh".to_owned()],
        cmd: vec!["-c".to_owned(), "echo \"a\\b\"\n\u{7f}ü".to_owned()],
        env: vec![("PATH".to_owned(), "/bin".to_owned()), ("EMPTY".to_owned(), String::new())],
        user: "www-data".to_owned(),
        workdir: "/srv".to_owned(),
        ports: vec![80, 443],
    };
    let blake3 = blake3::hash(b"manifest").into();
    let image = OciPin { manifest: digest("0a"), blake3, layers: vec![layer], config };
    lock.set(AssetId::Oci("docker.io/library/python:3".to_owned()), Pinned::Oci(image)).unwrap();
    lock
}

#[test]
fn downloads_and_container_images_read_back_as_they_were() {
    let lock = others();
    assert_eq!(load(lock.render()).unwrap(), lock);
    insta::assert_snapshot!(lock.render());
}

#[test]
fn an_entry_is_of_one_source() {
    let text = others().render();
    for (old, new) in [
        ("size = 7\n", ""),
        ("size = 7\n", "size = 0\n"),
        ("size = 7\n", "size = 7\nsuite = \"bookworm\"\n"),
        ("kind = \"workload\"", "kind = \"volume\""),
        ("oci = \"docker.io/library/python:3\"\n", ""),
        ("digest = \"sha256:0b", "digest = \"sha256:0x"),
        ("ports = [80, 443]", "ports = [443, 80]"),
        ("\nblake3 = \"", "\nblake3 = \"0"),
    ] {
        assert!(text.contains(old), "{old}");
        let error = load(text.replacen(old, new, 1)).unwrap_err();
        assert_eq!(error.code(), "lock.invalid", "{old} -> {new}");
    }
    let mut lock = Lock::default();
    assert!(lock.set(AssetId::Oci("a".to_owned()), pins(&["dash"])).is_err());
}

/// The text as it was before everything had a BLAKE3, from the `nth` of them on.
fn without_blake3(text: &str, nth: usize) -> String {
    let mut pieces = text.split("blake3 = ");
    let mut out = pieces.next().unwrap().to_owned();
    for (index, piece) in pieces.enumerate() {
        // The digest, its quotes, and what parts it from what follows.
        match index < nth {
            true => out.extend(["blake3 = ", piece]),
            false => out.push_str(piece[66..].trim_start_matches([',', '\n', ' '])),
        }
    }
    out
}

#[test]
fn an_entry_without_a_blake3_is_known_and_pins_nothing() {
    let text = without_blake3(&sample().render(), 0);
    assert!(!text.contains("blake3"), "{text}");
    let mut old = load(&text).unwrap();
    assert!(old.is_empty());
    for (id, pins) in sample().iter() {
        assert!(old.is_outdated(id) && old.pinned(id).is_none() && !sample().is_outdated(id));
        old.set(id.clone(), pins.clone()).unwrap();
        assert!(!old.is_outdated(id));
    }
    assert_eq!(old, sample());
    // One package is enough, as after a merge of an old branch.
    let mixed = load(without_blake3(&sample().render(), 4)).unwrap();
    assert!(mixed.is_outdated(&AssetId::image(["dash", "bash"])) && mixed.get(&AssetId::Vmm).is_some());
    let mut mixed = mixed;
    mixed.retain(|id| *id == AssetId::Vmm);
    assert!(!mixed.is_outdated(&AssetId::image(["dash", "bash"])));
}

#[test]
fn an_image_lacks_a_blake3_wherever_it_is_missing() {
    let id = AssetId::Oci("docker.io/library/python:3".to_owned());
    let text = others().render();
    let at = text.find("oci = ").unwrap();
    let (before, entry) = text.split_at(at);
    assert_eq!(entry.matches("blake3 = ").count(), 3, "manifest, layer and configuration: {entry}");
    for nth in 0..3 {
        let lock = load(format!("{before}{}", without_blake3(entry, nth))).unwrap();
        assert!(lock.is_outdated(&id) && lock.oci(&id).is_none());
    }
}

#[test]
fn an_outdated_entry_is_still_one_and_no_other() {
    let old = without_blake3(&sample().render(), 0);
    let (good, from) = (sample().render(), old.find("[[asset]]").unwrap());
    for (text, says) in [
        (format!("{good}\n{}", &old[from..]), "twice"),
        (format!("{old}\n{}", &old[from..]), "twice"),
        (old.replace("[\"bash\", \"dash\"]", "[\"dash\", \"bash\"]"), "not sorted"),
        (old.replace("kind = \"vmm\"", "kind = \"vmmm\""), "vmmm"),
    ] {
        let error = load(text).unwrap_err();
        assert_eq!(error.code(), "lock.invalid", "{says}: {error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

#[test]
fn an_absent_file_is_an_empty_lock() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Lock::load(&dir.path().join(FILE_NAME)).unwrap().is_empty());
}

#[test]
fn a_lock_has_one_line_a_package_and_sorted_assets() {
    insta::assert_snapshot!(sample().render(), @r#"
    # Written by firegopher: everything that is fetched, by version and digest. Commit this file.
    # `firegopher update` renews it; it is not meant to be edited.
    format = 1

    [[asset]]
    kind = "kernel"
    names = ["linux-image-cloud-amd64"]
    distribution = "debian"
    suite = "bookworm"
    packages = [
      { name = "linux-image-6.1-amd64", arch = "amd64", version = "1:2.0~rc1+b3-4", size = 1234, sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", blake3 = "c1982994afbce572a81ac2a96a0f7ba4a36346d2892d0ceb573b057531e53dd3", path = "pool/main/l/linux-image-6.1-amd64_2.0~rc1+b3-4_amd64.deb" },
    ]

    [[asset]]
    kind = "vmm"
    distribution = "debian"
    suite = "bookworm"
    packages = [
      { name = "qemu-system-x86", arch = "amd64", version = "1:2.0~rc1+b3-4", size = 1234, sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", blake3 = "b9e587f2f909ef4a8069e4bb115cb9bd64b5504c65b2570bcd411369421462d1", path = "pool/main/q/qemu-system-x86_2.0~rc1+b3-4_amd64.deb" },
    ]

    [[asset]]
    kind = "image"
    names = ["bash", "dash"]
    distribution = "debian"
    suite = "bookworm"
    packages = [
      { name = "bash", arch = "amd64", version = "1:2.0~rc1+b3-4", size = 1234, sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", blake3 = "8cfe84448947d2973f020e2d22a6e61e6cf21c385ca8719aeec0438f255f2bf5", path = "pool/main/b/bash_2.0~rc1+b3-4_amd64.deb" },
      { name = "dash", arch = "amd64", version = "1:2.0~rc1+b3-4", size = 1234, sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", blake3 = "cae83d5bf497ab45fa8972c5357ae0c0833d4789a54b580ced8a570fd870be5b", path = "pool/main/d/dash_2.0~rc1+b3-4_amd64.deb" },
      { name = "libc6", arch = "amd64", version = "1:2.0~rc1+b3-4", size = 1234, sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", blake3 = "f8f175d495702d6bf341ebdaf411c4c6ebe498e78ee21fdf91b4d546c2948ef1", path = "pool/main/l/libc6_2.0~rc1+b3-4_amd64.deb" },
    ]
    "#);
}

#[test]
fn a_saved_lock_loads_as_it_was_and_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let lock = sample();
    assert!(lock.save(&path).unwrap());
    assert_eq!(Lock::load(&path).unwrap(), lock);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(!lock.save(&path).unwrap(), "an unchanged lock is not written");
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn what_a_killed_command_left_is_swept_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    for (name, time) in [
        (".firegopher.lock.abC123", Some(old)),
        (".firegopher.lock.abC124", None),
        (".firegopher.lock.orig", Some(old)),
        (".firegopher.lock.backup1", Some(old)),
    ] {
        let file = std::fs::File::create(dir.path().join(name)).unwrap();
        if let Some(time) = time {
            file.set_modified(time).unwrap();
        }
    }
    sample().save(&path).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(
        left,
        [".firegopher.lock.abC124", ".firegopher.lock.backup1", ".firegopher.lock.orig", "firegopher.lock"]
    );
}

#[test]
fn versions_suites_sources_and_snapshots_read_back_as_they_were() {
    use crate::packages::{PackageSet, PackageSource, Wanted};
    let source = |suite: &str| PackageSource {
        url: "http://archive.example.org/ubuntu".into(),
        suite: suite.into(),
        components: vec!["main".into(), "universe".into()],
        keyring: "keys/ubuntu.gpg".into(),
    };
    let set = PackageSet {
        packages: vec![Wanted::parse("curl=7.81.0-1"), Wanted::parse("nginx")],
        suite: Some("jammy-updates".into()),
        sources: vec![source("jammy"), source("jammy-updates")],
        scripts: true,
    };
    let mut some = pins(&["curl", "nginx"]);
    let release = |date: &str| Release {
        origin: "Ubuntu".into(),
        suite: "jammy-updates".into(),
        codename: "jammy".into(),
        date: date.into(),
        sha256: "0123456789abcdef".repeat(4),
    };
    some.snapshot = vec![release("20220421T171608Z")];
    let mut lock = Lock::default();
    lock.set(AssetId::Image(set.clone()), some.clone()).unwrap();
    let text = lock.render();
    insta::assert_snapshot!(text);
    assert_eq!(load(&text).unwrap(), lock);
    // Each difference is another asset.
    for other in [
        PackageSet { suite: None, ..set.clone() },
        PackageSet { scripts: false, ..set.clone() },
        PackageSet { sources: vec![], ..set.clone() },
        PackageSet { packages: vec![Wanted::parse("curl"), Wanted::parse("nginx")], ..set.clone() },
    ] {
        assert!(lock.get(&AssetId::Image(other)).is_none());
    }
    // The same packages of a newer list change nothing.
    some.snapshot = vec![release("20260421T171608Z")];
    lock.set(AssetId::Image(set), some).unwrap();
    assert_eq!(lock.render(), text);
    // Earlier versions had an entry for a program that ran scripts.
    let retired = "\n[[asset]]\nkind = \"tool\"\nnames = [\"mmdebstrap\"]\ndistribution = \"debian\"\nsuite = \"bookworm\"\npackages = []\n";
    assert_eq!(load(format!("{text}{retired}")).unwrap(), lock);
    for (good, bad, says) in [
        ("keys/ubuntu.gpg", "a\\u000Ab", "keyring"),
        ("\"main\"", "\"-x\"", "component"),
        ("http://archive", "ftp://archive", "address"),
        ("curl=7.81.0-1", "curl=7;x", "version"),
        ("target = \"jammy-updates\"", "target = \"-t\"", "suite"),
    ] {
        let error = load(text.replacen(good, bad, 1)).unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

#[test]
fn saving_keeps_the_files_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
    sample().save(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o664);
}

#[test]
fn a_symbolic_link_is_neither_read_nor_written() {
    let dir = tempfile::tempdir().unwrap();
    let (path, victim) = (dir.path().join(FILE_NAME), dir.path().join("victim"));
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, &path).unwrap();
    assert_eq!(Lock::load(&path).unwrap_err().code(), "lock.not-a-file");
    assert_eq!(sample().save(&path).unwrap_err().code(), "lock.not-a-file");
    fs::remove_file(&victim).unwrap();
    assert_eq!(Lock::load(&path).unwrap_err().code(), "lock.not-a-file", "a dangling one neither");
    assert_eq!(sample().save(&path).unwrap_err().code(), "lock.not-a-file");
    assert!(!victim.exists());
}

#[test]
fn a_directory_or_fifo_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Lock::load(dir.path()).unwrap_err().code(), "lock.not-a-file");
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(Lock::load(&fifo).unwrap_err().code(), "lock.not-a-file");
}

#[test]
fn a_newer_format_asks_for_a_newer_firegopher() {
    for text in ["format = 2\n", "format = 9\n[new]\nthing = 1\n"] {
        let error = load(text).unwrap_err();
        assert_eq!(error.code(), "lock.newer", "{error}");
        assert!(error.help_text().unwrap().contains("newer"));
    }
}

#[test]
fn an_unresolved_merge_is_named() {
    let text = sample().render().replacen("kind = ", "<<<<<<< ours\nkind = ", 1);
    let error = load(text).unwrap_err();
    assert_eq!(error.code(), "lock.conflict");
    assert!(error.to_string().contains("(line 6)"), "{error}");
}

#[test]
fn what_is_no_lock_is_a_clear_error() {
    let good = sample().render();
    let sha = "0123456789abcdef".repeat(4);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "format"),
        (b"hello".to_vec(), "TOML"),
        (b"\xff\xfe".to_vec(), "UTF-8"),
        (b"format = 0\n".to_vec(), "format 0"),
        (good.replace("format = 1", "format = \"1\"").into(), "format"),
        (good.replace("kind = \"vmm\"", "kind = \"vmmm\"").into(), "vmmm"),
        (good.replace("suite = \"bookworm\"", "suite = \"\"").into(), "suite"),
        (good.replace("suite", "colour").into(), "colour"),
        (good.replace("[\"bash\", \"dash\"]", "[\"dash\", \"bash\"]").into(), "not sorted"),
        (good.replace("[\"bash\", \"dash\"]", "[]").into(), "needs names"),
        (good.replace("name = \"bash\"", "name = \"-o=x\"").into(), "package name"),
        (good.replace("name = \"dash\"", "name = \"bash\"").into(), "twice"),
        (good.replace("amd64\", version", "arm64\", version").into(), "arm64"),
        (good.replace(&sha, &sha.to_uppercase()).into(), "SHA-256"),
        (good.replace("size = 1234", "size = -1").into(), "size"),
        (good.replace("size = 1234", "size = 0").into(), "0 bytes"),
        (good.replace("1:2.0", "1:2.0 ").into(), "version"),
        (good.replace("pool/main", "pool/../..").into(), "path"),
        (good.replace("pool/main", "/pool/main").into(), "path"),
        (format!("{good}\n{}", &good[good.find("[[asset]]").unwrap()..]).into(), "twice"),
        (vec![b'#'; (4 << 20) + 1], "4 MiB"),
    ];
    for (text, says) in cases {
        let error = load(&text).unwrap_err();
        assert_eq!(error.code(), "lock.invalid", "{says}: {error}");
        let whole = format!(
            "{error} {}",
            std::error::Error::source(&error).map(|e| e.to_string()).unwrap_or_default()
        );
        assert!(whole.contains(says), "{says:?} is not in: {whole}");
    }
}

#[test]
fn a_pin_that_could_not_be_read_back_is_never_written() {
    let mut bad = pins(&["bash"]);
    bad.packages[0].version = "1\"\n".to_owned();
    assert!(Lock::default().set(AssetId::Vmm, bad).is_err());
    let mut unsorted = crate::packages::PackageSet::of(["a", "b"]);
    unsorted.packages.reverse();
    let bad_id = AssetId::Image(unsorted);
    assert!(Lock::default().set(bad_id, pins(&["bash"])).is_err());
}

#[test]
fn loading_150_packages_is_quick() {
    let names: Vec<String> = (0..150).map(|n| format!("package-{n:03}")).collect();
    let mut lock = Lock::default();
    lock.set(AssetId::image(["bash"]), pins(&names.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    lock.save(&path).unwrap();
    let start = std::time::Instant::now();
    for _ in 0..10 {
        assert_eq!(Lock::load(&path).unwrap(), lock);
    }
    // An unoptimised build on a busy machine: the bound only tells quick from hopeless.
    println!("one load: {:?}", start.elapsed() / 10);
    assert!(start.elapsed().as_millis() < 5000);
}

fn any_pin() -> impl Strategy<Value = Pin> {
    (
        "[a-z0-9][a-z0-9+.-]{0,30}",
        prop_oneof![Just("amd64"), Just("all")],
        "[0-9A-Za-z][0-9A-Za-z.+~:-]{0,20}",
        1..i64::MAX as u64,
        "[0-9a-f]{64}",
        any::<[u8; 32]>(),
        "pool/[a-z]{1,8}/[A-Za-z0-9+~%_.]{0,20}x",
    )
        .prop_map(|(package, arch, version, size, sha256, blake3, pool)| Pin {
            package,
            arch: arch.to_owned(),
            version,
            size,
            sha256,
            blake3: crate::digest::ObjectDigest::new(blake3),
            pool,
        })
}

fn any_lock() -> impl Strategy<Value = Lock> {
    let id = prop_oneof![
        "[a-z0-9][a-z0-9+.-]{0,20}".prop_map(|name| AssetId::kernel(&name)),
        Just(AssetId::Vmm),
        prop::collection::vec("[a-z0-9][a-z0-9+.-]{0,20}", 1..6).prop_map(AssetId::image),
    ];
    let pins = ("[a-z]{1,8}", "[a-z0-9.]{1,8}", prop::collection::vec(any_pin(), 1..8)).prop_map(
        |(distribution, suite, mut packages)| {
            packages.sort();
            packages.dedup_by(|a, b| a.package == b.package && a.arch == b.arch);
            Pins { origin: Origin { distribution, suite }, snapshot: vec![], packages }
        },
    );
    prop::collection::vec((id, pins), 0..6).prop_map(|assets| {
        let mut lock = Lock::default();
        for (id, pins) in assets {
            lock.set(id, pins).unwrap();
        }
        lock
    })
}

proptest! {
    #[test]
    fn every_lock_round_trips_and_renders_the_same(lock in any_lock()) {
        let text = lock.render();
        let again = text::parse(&text, Path::new("x")).unwrap();
        prop_assert_eq!(&again, &lock);
        prop_assert_eq!(again.render(), text);
    }

    #[test]
    fn a_damaged_lock_never_panics(lock in any_lock(), at in any::<prop::sample::Index>(), with in any::<char>()) {
        let mut chars: Vec<char> = lock.render().chars().collect();
        let at = at.index(chars.len());
        chars[at] = with;
        let _ = text::parse(&chars.into_iter().collect::<String>(), Path::new("x"));
    }
}
