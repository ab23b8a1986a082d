//! `examples/ubuntu-jammy`: with Ubuntu's packages where its archive can be reached, and with a tarball of the shape of
//! its cloud images from a server of our own.

use crate::harness::{Output, Project, guests, home, skip};
use crate::web::{Reply, Server};
use firegopher::asset::{Apt, Silent, fetch_debs, resolve_all};
use firegopher::home::Home;
use firegopher::lock::AssetId;
use firegopher::store::Store;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The address in the example.
const TARBALL: &str = "https://cloud-images.ubuntu.com/minimal/releases/jammy/release/ubuntu-22.04-minimal-cloudimg-amd64-root.tar.xz";

/// Pins what comes from Ubuntu's archive; `None`, and a reason, where that cannot be reached.
fn locked(project: &Project) -> Option<Output> {
    let locked = project.run(&["lock"]);
    let unreachable = ["Could not", "Temporary failure", "Unable to connect", "Connection"];
    if locked.code != Some(0) && unreachable.iter().any(|s| locked.stderr.contains(s)) {
        skip(format!("Ubuntu's archive cannot be reached: {}", locked.stderr));
        return None;
    }
    Some(locked.expect(0))
}

#[test]
fn a_kernel_with_its_drivers_built_in_boots_with_the_few_modules_it_has() {
    let Some(_turn) = guests(1) else { return };
    let jammy = Project::example("ubuntu-jammy");
    let text = jammy.read("firegopher.kdl");
    let sources: Vec<&str> = text.lines().filter(|line| line.trim().starts_with("source ")).collect();
    jammy.manifest(&format!(
        "vm \"a\" {{\nimage {{ debian \"busybox-static\" }}\nrun \"/bin/busybox\" \"uname\" \"-r\"\n\
         volume \"data\" at=\"/data\" size=\"32MiB\"\nkernel {{ debian \"linux-image-kvm\" {{\n{}\n}} }}\n}}\n",
        sources.join("\n")
    ));
    if locked(&jammy).is_none() {
        return;
    }
    let built = jammy.ok(&["build", "--locked", "--json"]).json();
    let fetch =
        built["steps"].as_array().unwrap().iter().find(|step| step["kind"] == "fetch-kernel").unwrap();
    let tree = Path::new(fetch["path"].as_str().unwrap());
    let modules = std::fs::read_dir(tree.join("modules")).unwrap();
    let modules: Vec<String> =
        modules.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(modules.iter().any(|name| name.ends_with("-overlay.ko")), "{modules:?}");
    for driver in ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "ext4"] {
        assert!(!modules.iter().any(|name| name.contains(driver)), "{driver} is built in: {modules:?}");
    }
    let run = jammy.ok(&["run", "--locked"]);
    assert!(run.stdout.trim_end().ends_with("-kvm"), "{}", run.stdout);
}

#[test]
fn ubuntus_own_packages_boot() {
    let Some(_turn) = guests(1) else { return };
    let jammy = Project::example("ubuntu-jammy");
    let Some(locked) = locked(&jammy) else { return };
    assert!(
        jammy.read("firegopher.lock").contains("distribution = \"ubuntu\"\nsuite = \"jammy\"\n"),
        "{}",
        locked.stderr
    );
    let run = jammy.ok(&["run"]);
    assert!(run.stdout.starts_with("this is Ubuntu 22.04"), "{}", run.stdout);
    assert!(run.stdout.ends_with("python answered curl\n"), "{}", run.stdout);
    // What was fetched once needs no network, and no keyring, again.
    std::fs::remove_file(jammy.path().join("ubuntu-archive-key-2018.gpg")).unwrap();
    jammy.ok(&["run", "--locked", "--offline"]).prints("python answered curl\n");
}

#[test]
fn a_root_tarball_by_url_boots() {
    let Some(_turn) = guests(1) else { return };
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(root_tarball(dir.path())).unwrap();
    let server = Server::start(move |request| Reply::ok(bytes.clone()).ranged(request));
    let jammy = Project::example("ubuntu-jammy");
    let text = jammy.read("firegopher.kdl");
    assert!(text.contains(TARBALL));
    let text = text.replace(TARBALL, &server.url("/root.tar.xz"));
    jammy.manifest(&text.replace("    image \"packages\"\n", "    image \"tarball\"\n"));
    jammy.ok(&["lock"]).says("trusting what comes");
    let run = jammy.ok(&["run", "--locked"]);
    assert_eq!(run.stdout, "this is Ubuntu 22.04.5 LTS\npython answered curl\n");

    let built = jammy.ok(&["build", "--json", "--locked"]).json();
    let steps = built["steps"].as_array().unwrap();
    let base = steps.iter().find(|step| step["kind"] == "image").unwrap()["path"].as_str().unwrap();
    let image = std::fs::File::open(Path::new(base).join("base.ext4")).unwrap();
    let files = mkext4::reader::Fs::open(image).unwrap();
    let inode = |path: &str| files.inode(files.resolve(path).unwrap()).unwrap();
    let target = |path: &str| String::from_utf8(files.symlink_target(files.resolve(path).unwrap()).unwrap());
    assert_eq!(target("/bin").unwrap(), "usr/bin");
    assert_eq!(target("/usr/bin/sh").unwrap(), "dash");
    assert_eq!(files.resolve("/usr/bin/hard").unwrap(), files.resolve("/usr/bin/dash").unwrap());
    assert_eq!(inode("/usr/bin/dash").links_count, 2);
    let seen = |path: &str| {
        let inode = inode(path);
        (inode.mode & 0o7777, inode.uid, inode.gid)
    };
    for &(path, mode, uid, gid) in OWNERS {
        let (uid, gid) = if is_root() { (uid, gid) } else { (0, 0) };
        assert_eq!(seen(path), (mode, uid, gid), "{path}");
    }
    if !is_root() {
        return skip("only root can make the devices, and owners, of a root");
    }
    let device = inode("/dev/null");
    assert_eq!(device.mode, 0o020_666);
    // As old_encode_dev (linux/kdev_t.h) puts it.
    assert_eq!(device.block[..4], [3, 1, 0, 0]);
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What cloud images have of modes and owners beside root's.
const OWNERS: &[(&str, u16, u32, u32)] = &[
    ("/home/ubuntu", 0o750, 1000, 1000),
    ("/home/ubuntu/.profile", 0o644, 1000, 1000),
    ("/var/local", 0o2775, 0, 50),
    ("/var/mail", 0o2775, 0, 8),
    ("/tmp", 0o1777, 0, 0),
    ("/root", 0o700, 0, 0),
    ("/usr/bin/dash", 0o755, 0, 0),
];

/// Gives the unpacked root what scripts and Canonical add: a user, modes, a second name, and, by root, a device.
fn furnish(root: &Path) {
    for dir in ["home/ubuntu", "var/local", "var/mail"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::write(root.join("home/ubuntu/.profile"), "umask 022\n").unwrap();
    std::fs::hard_link(root.join("usr/bin/dash"), root.join("usr/bin/hard")).unwrap();
    for &(path, mode, uid, gid) in OWNERS {
        let path = root.join(&path[1..]);
        if is_root() {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        }
        // After the owner, whose change takes special bits away.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode.into())).unwrap();
    }
    if is_root() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let null = root.join("dev/null");
        mknod(&null, SFlag::S_IFCHR, Mode::empty(), makedev(1, 3)).unwrap();
        std::fs::set_permissions(&null, PermissionsExt::from_mode(0o666)).unwrap();
    }
}

/// A merged-/usr root as cloud images have it, out of the host's packages: links, and by root owners and a device.
fn root_tarball(dir: &Path) -> PathBuf {
    let home = Home::new(home());
    let (store, apt) = (Store::open(home.clone()).unwrap(), Apt::new(&home));
    let id = AssetId::image([
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "libc-bin",
        "ca-certificates",
        "curl",
        "python3",
    ]);
    let pins = resolve_all(&store, &apt, std::slice::from_ref(&id), &Silent).unwrap().remove(0).packages;
    let debs = fetch_debs(&store, &apt, &id, &pins, &Silent).unwrap();
    let root = dir.join("root");
    for name in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "etc/ssl/certs",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "root",
    ] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
    for name in ["bin", "sbin", "lib", "lib64"] {
        link(&format!("usr/{name}"), name);
    }
    for deb in debs {
        let mut data =
            Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn().unwrap();
        let unpacked = Command::new("tar")
            .args(["-x", "--keep-directory-symlink", "--numeric-owner", "-C"])
            .arg(&root)
            .stdin(data.stdout.take().unwrap())
            .status()
            .unwrap();
        assert!(unpacked.success() && data.wait().unwrap().success());
    }
    // What scripts have made in a real one.
    if !root.join("usr/bin/sh").exists() {
        link("dash", "usr/bin/sh");
    }
    let copy = |from: &str, to: &str| std::fs::copy(root.join(from), root.join(to)).unwrap();
    copy("usr/share/base-passwd/passwd.master", "etc/passwd");
    copy("usr/share/base-passwd/group.master", "etc/group");
    let mut bundle = Vec::new();
    for entry in std::fs::read_dir(root.join("usr/share/ca-certificates/mozilla")).unwrap() {
        bundle.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    std::fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), bundle).unwrap();
    let release = "PRETTY_NAME=\"Ubuntu 22.04.5 LTS\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"22.04\"\nVERSION_CODENAME=jammy\nID=ubuntu\nID_LIKE=debian\n";
    std::fs::write(root.join("usr/lib/os-release"), release).unwrap();

    furnish(&root);
    let tarball = dir.join("root.tar.xz");
    let mut tar = Command::new("tar");
    tar.args(["-c", "--numeric-owner"]);
    if !is_root() {
        tar.args(["--owner=0", "--group=0"]);
    }
    // Cloud images name their members without a leading `./`.
    let names = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name());
    let mut made = tar.arg("-C").arg(&root).args(names).stdout(Stdio::piped()).spawn().unwrap();
    let mut xz = liblzma::write::XzEncoder::new(std::fs::File::create(&tarball).unwrap(), 0);
    std::io::copy(&mut made.stdout.take().unwrap(), &mut xz).unwrap();
    xz.finish().unwrap();
    assert!(made.wait().unwrap().success());
    tarball
}
