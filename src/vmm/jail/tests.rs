use super::*;
use crate::name::{Name, VmId};
use crate::vmm::spec::{Drive, NetSpec};
use std::os::unix::fs::{MetadataExt, symlink};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::testing::skip("needs root");
    }
    root
}

/// A spec whose files exist, but hold nothing that boots.
fn fixture(dir: &Path) -> (VmSpec, JailSpec) {
    let tree = dir.join("tree");
    for sub in ["lib", "modules", "share"] {
        fs::create_dir_all(tree.join(sub)).unwrap();
    }
    for file in ["ld.so", "qemu-system-x86_64", "lib/libc.so.6", "modules/a.so", "share/b.bin"] {
        fs::write(tree.join(file), file).unwrap();
    }
    for file in ["kernel", "initramfs", "base", "scratch"] {
        fs::write(dir.join(file), file).unwrap();
    }
    let name = |s| Name::new(s).unwrap();
    let drive = |role: &str, read_only| Drive { role: role.to_owned(), path: dir.join(role), read_only };
    let jail = JailSpec { root: dir.join("jail"), uid: 1_900_000_007, gid: 1_900_000_007 };
    let spec = VmSpec {
        id: VmId::derive(&name("p"), &name("v")),
        vmm: VmmBinary::QemuTree(tree),
        kvm: false,
        kernel: dir.join("kernel"),
        initramfs: dir.join("initramfs"),
        tuning: Default::default(),
        cpus: 1,
        memory: 256 << 20,
        drives: vec![drive("base", true), drive("scratch", false)],
        net: NetSpec::None,
        jail: Some(jail.clone()),
    };
    (spec, jail)
}

#[test]
fn staging_links_and_hands_over_only_writable_drives() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (spec, jail) = fixture(dir.path());
    let staged = stage(&spec, &jail).unwrap();
    assert_eq!(staged.drives, [Path::new("/drives/00-base"), Path::new("/drives/01-scratch")]);
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(
        inode(&jail.root.join("drives/00-base")),
        inode(&dir.path().join("base")),
        "linked, not copied"
    );
    assert_eq!(fs::metadata(jail.root.join("drives/00-base")).unwrap().uid(), 0);
    let scratch = fs::metadata(jail.root.join("drives/01-scratch")).unwrap();
    assert_eq!((scratch.uid(), scratch.mode() & 0o777), (jail.uid, 0o600));
    assert_eq!(fs::metadata(&jail.root).unwrap().uid(), 0, "the VMM cannot write its root");
    clean(&jail).unwrap();
    assert!(!jail.root.exists());
    assert!(dir.path().join("scratch").exists());
}

#[test]
fn a_jail_is_never_reused() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (spec, jail) = fixture(dir.path());
    fs::create_dir(&jail.root).unwrap();
    assert_eq!(stage(&spec, &jail).unwrap_err().code(), "jail.make");
}

#[test]
fn a_place_where_nothing_can_be_executed_is_refused_before_anything_is_made() {
    if !root() {
        return;
    }
    crate::testing::on_disk(1 << 20, nix::mount::MsFlags::MS_NOEXEC, |dir| {
        let (spec, jail) = fixture(dir);
        let error = stage(&spec, &jail).unwrap_err();
        assert_eq!(error.code(), "jail.noexec");
        assert!(error.help_text().unwrap().contains("remount,exec"), "{error:?}");
        assert!(!jail.root.exists());
    });
}

#[test]
fn a_place_where_no_device_opens_is_refused_to_a_vmm_that_needs_one_before_anything_is_made() {
    if !root() {
        return;
    }
    crate::testing::on_disk(1 << 20, nix::mount::MsFlags::MS_NODEV, |dir| {
        let (mut spec, jail) = fixture(dir);
        spec.kvm = true;
        let error = stage(&spec, &jail).unwrap_err();
        assert_eq!(error.code(), "jail.nodev");
        assert!(error.help_text().unwrap().contains("FIREGOPHER_HOME"), "{error:?}");
        assert!(!jail.root.exists());
        assert_eq!(check_place(&dir.join("not/there/yet"), true).unwrap_err().code(), "jail.nodev");
        // One that needs none gets its jail.
        spec.kvm = false;
        stage(&spec, &jail).unwrap();
        clean(&jail).unwrap();
    });
}

#[test]
fn a_drive_that_is_a_link_is_refused_and_its_target_keeps_its_owner() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut spec, jail) = fixture(dir.path());
    let victim = dir.path().join("victim");
    fs::write(&victim, "x").unwrap();
    symlink(&victim, dir.path().join("link")).unwrap();
    spec.drives[1].path = dir.path().join("link");
    assert_eq!(stage(&spec, &jail).unwrap_err().code(), "jail.place");
    assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
    clean(&jail).unwrap();
}

#[test]
fn on_another_file_system_read_only_files_are_copied_sparsely_and_writable_ones_refused() {
    let elsewhere = Path::new("/dev/shm");
    let dir = tempfile::tempdir().unwrap();
    if !root() {
        return;
    }
    if !elsewhere.is_dir()
        || fs::metadata(elsewhere).unwrap().dev() == fs::metadata(dir.path()).unwrap().dev()
    {
        crate::testing::skip("no second file system at /dev/shm");
        return;
    }
    let other = tempfile::tempdir_in(elsewhere).unwrap();
    let (mut spec, jail) = fixture(dir.path());
    let sparse = other.path().join("sparse");
    let file = std::fs::File::create(&sparse).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"end", (64 << 20) - 3).unwrap();
    spec.drives[0].path = sparse;
    stage(&spec, &jail).unwrap();
    let copy = jail.root.join("drives/00-base");
    assert!(fs::read(&copy).unwrap().ends_with(b"end"));
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
    clean(&jail).unwrap();

    spec.drives[1].path = other.path().join("scratch");
    fs::write(&spec.drives[1].path, "x").unwrap();
    let error = stage(&spec, &jail).unwrap_err();
    assert!(error.help_text().unwrap().contains("one file system"), "{error:?}");
    clean(&jail).unwrap();
}

#[test]
fn removing_follows_no_link_and_survives_any_depth() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    let jail = dir.path().join("jail");
    fs::create_dir(&jail).unwrap();
    symlink(&outside, jail.join("link")).unwrap();
    fs::create_dir(jail.join(".removing-0")).unwrap();
    fs::write(jail.join(".removing-0/x"), "x").unwrap();
    // Deeper than PATH_MAX and than the limit of open files.
    let deep = "d".repeat(200);
    let mut at: std::os::fd::OwnedFd = std::fs::File::open(&jail).unwrap().into();
    for _ in 0..1500 {
        nix::sys::stat::mkdirat(&at, deep.as_str(), Mode::S_IRWXU).unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY;
        at = nix::fcntl::openat(&at, deep.as_str(), flags, Mode::empty()).unwrap();
    }
    remove_tree(&jail).unwrap();
    assert!(!jail.exists());
    assert!(outside.join("precious").exists());
    remove_tree(&jail).expect("removing twice is no error");
    symlink(&outside, &jail).unwrap();
    assert!(remove_tree(&jail).is_err(), "a link in place of the jail is not followed");
    assert!(outside.join("precious").exists());
}

#[test]
fn two_may_remove_the_same_tree_at_once() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("jail");
        for n in 0..60 {
            let deep = root.join(format!("{n}/a/b"));
            std::fs::create_dir_all(&deep).unwrap();
            std::fs::write(deep.join("file"), "x").unwrap();
        }
        std::thread::scope(|scope| {
            let removals = [(); 3].map(|()| scope.spawn(|| remove_tree(&root)));
            removals.into_iter().for_each(|removal| removal.join().unwrap().unwrap());
        });
        assert!(!root.exists());
    }
}
