//! `examples/ubuntu-jammy`: with Ubuntu's packages where its archive can be reached, and with a tarball of the shape of
//! its cloud images from a server of our own.

use crate::harness::{Output, Project, guests, home, skip};
use crate::web::{Reply, Server};
use firegopher::asset::{Apt, Silent, fetch_debs, resolve_all};
use firegopher::home::Home;
use firegopher::lock::AssetId;
use firegopher::store::Store;
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
}

/// A merged-/usr root as cloud images have it, out of the host's packages: owners, links, a device and all.
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

    let tarball = dir.join("root.tar.xz");
    let mut tar = Command::new("tar");
    tar.args(["-c", "--numeric-owner", "--owner=0", "--group=0"]);
    // Cloud images name their members without a leading `./`.
    let names = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name());
    let mut made = tar.arg("-C").arg(&root).args(names).stdout(Stdio::piped()).spawn().unwrap();
    let mut xz = liblzma::write::XzEncoder::new(std::fs::File::create(&tarball).unwrap(), 0);
    std::io::copy(&mut made.stdout.take().unwrap(), &mut xz).unwrap();
    xz.finish().unwrap();
    assert!(made.wait().unwrap().success());
    tarball
}
