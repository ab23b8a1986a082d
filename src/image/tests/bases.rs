//! Facts about base images: packages put together, tars and finished images taken over.

use super::*;
use crate::image::index::Indexed;
use crate::image::{BASE_IMAGE, BASE_INDEX, BaseSource, build_base, deb};
use std::io::Read as _;

/// A Debian package out of a control text, a script and a data tar.
fn package(bench: &Bench, name: &str, postinst: &str, data: Tar) -> PathBuf {
    package_of(bench, name, postinst, data.end())
}

/// The same, out of a finished data tar.
pub(super) fn package_of(bench: &Bench, name: &str, postinst: &str, data: Vec<u8>) -> PathBuf {
    package_with(bench, name, postinst, "data.tar", data)
}

/// The same, out of a finished member of the package.
pub(super) fn package_in(bench: &Bench, name: &str, member: &str, data: Vec<u8>) -> PathBuf {
    package_with(bench, name, "", member, data)
}

fn package_with(bench: &Bench, name: &str, postinst: &str, member: &str, data: Vec<u8>) -> PathBuf {
    let control = Tar::default()
        .file("./control", format!("Package: {name}\nVersion: 1\n").as_bytes())
        .file("./postinst", postinst.as_bytes());
    let mut ar = b"!<arch>\n".to_vec();
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.zst", zstd::encode_all(&control.end()[..], 1).unwrap()),
        (member, data),
    ];
    for (name, bytes) in members {
        ar.extend_from_slice(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, bytes.len()).as_bytes(),
        );
        ar.extend_from_slice(&bytes);
        if ar.len() % 2 == 1 {
            ar.push(b'\n');
        }
    }
    // Stores name packages by digest: the file's name says nothing.
    bench.write(&format!("debs/{}", blake3::hash(name.as_bytes())), ar)
}

fn debian(bench: &Bench) -> Vec<PathBuf> {
    let files = Tar::default()
        .raw(b"./", b'5', 0o755, (0, 0), b"", 0, b"")
        .dir("./bin/")
        .dir("./lib/")
        .raw(b"./tmp/", b'5', 0o1777, (0, 0), b"", 0, b"")
        .raw(b"./root/", b'5', 0o700, (0, 0), b"", 0, b"")
        .dir("./var/run/")
        .dir("./usr/")
        .file("./usr/lib/os-release", b"ID=debian\n")
        .file("./usr/share/base-files/profile", b"PATH=/usr/bin\n")
        .file("./usr/share/base-files/dot.bashrc", b"# bash\n");
    let passwd = Tar::default()
        .file("./usr/share/base-passwd/passwd.master", b"root:*:0:0:root:/root:/bin/bash\n")
        .file("./usr/share/base-passwd/group.master", b"root:*:0:\n");
    let dash = Tar::default()
        .dir("./bin/")
        .raw(b"./bin/dash", b'0', 0o755, (0, 0), b"", 4, b"\x7fELF")
        .symlink("./bin/sh", "dash")
        .file("./usr/share/debianutils/shells.d/dash", b"/bin/sh\n/usr/bin/sh");
    let libc = Tar::default()
        .dir("./lib/")
        .dir("./lib64/")
        .file("./lib/x86_64-linux-gnu/libc.so.6", b"\x7fELF")
        .symlink("./lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6")
        .file("./usr/share/libc-bin/nsswitch.conf", b"passwd: files\n");
    let awk = Tar::default().file("./usr/bin/mawk", b"\x7fELF");
    let certificates = Tar::default()
        .file("./usr/share/ca-certificates/mozilla/B.crt", b"b")
        .file("./usr/share/ca-certificates/mozilla/A.crt", b"a\n")
        .file("./usr/share/ca-certificates/README", b"no certificate");
    vec![
        package(bench, "base-files", "", files),
        package(bench, "base-passwd", "", passwd),
        package(bench, "dash", "", dash),
        package(bench, "libc6", "", libc),
        package(bench, "mawk", "update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5\n", awk),
        package(bench, "ca-certificates", "", certificates),
    ]
}

fn build(bench: &Bench, name: &str, source: BaseSource<'_>) -> (Image, Vec<String>) {
    let out = bench.make_dir(name);
    let warnings = build_base(source, &out, &bench.scratch()).unwrap();
    (Image::open(&out.join(BASE_IMAGE)), warnings)
}

#[test]
fn packages_become_a_merged_usr_root() {
    let bench = Bench::new();
    let (image, warnings) = build(&bench, "out", BaseSource::Debs(&debian(&bench)));
    assert_eq!(warnings, [""; 0]);
    for (link, target) in
        [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")]
    {
        assert_eq!(image.target(link), target);
    }
    assert_eq!(image.owner("/usr/bin/dash").0, 0o100755);
    assert_eq!(image.target("/usr/bin/sh"), "dash");
    assert!(image.has("/usr/lib/x86_64-linux-gnu/libc.so.6"));
    assert!(image.has("/usr/lib64/ld-linux-x86-64.so.2"));
    assert_eq!(image.target("/var/run"), "/run");
    for (dir, mode) in
        [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/root", 0o700), ("/proc", 0o755), ("/mnt", 0o755)]
    {
        assert_eq!(image.owner(dir), (0o040000 | mode, 0, 0), "{dir}");
    }
    assert_eq!(image.names("/usr/sbin"), [""; 0]);
}

#[test]
fn what_maintainer_scripts_would_make_is_there() {
    let bench = Bench::new();
    let (image, _) = build(&bench, "out", BaseSource::Debs(&debian(&bench)));
    assert_eq!(image.read("/etc/passwd"), b"root:*:0:0:root:/root:/bin/bash\n");
    assert_eq!(image.read("/etc/group"), b"root:*:0:\n");
    assert_eq!(image.read("/etc/profile"), b"PATH=/usr/bin\n");
    assert_eq!(image.read("/root/.bashrc"), b"# bash\n");
    assert_eq!(image.read("/etc/nsswitch.conf"), b"passwd: files\n");
    assert_eq!(image.target("/etc/os-release"), "../usr/lib/os-release");
    assert_eq!(image.read("/etc/ssl/certs/ca-certificates.crt"), b"a\nb\n");
    assert_eq!(image.read("/etc/shells"), b"/bin/sh\n/usr/bin/sh\n");
    assert_eq!(image.target("/etc/alternatives/awk"), "/usr/bin/mawk");
    assert_eq!(image.target("/usr/bin/awk"), "/etc/alternatives/awk");
    assert!(!image.has("/etc/shadow"));
}

#[test]
fn the_order_of_packages_does_not_matter() {
    let bench = Bench::new();
    let mut debs = debian(&bench);
    build(&bench, "one", BaseSource::Debs(&debs));
    debs.reverse();
    build(&bench, "two", BaseSource::Debs(&debs));
    for file in [BASE_IMAGE, BASE_INDEX] {
        let read = |dir: &str| std::fs::read(bench.path(dir).join(file)).unwrap();
        assert!(read("one") == read("two"), "{file}");
    }
}

#[test]
fn a_package_that_replaces_a_file_is_told() {
    let bench = Bench::new();
    let debs = [
        package(&bench, "a", "", Tar::default().file("usr/x", b"1")),
        package(&bench, "b", "", Tar::default().file("usr/x", b"2")),
    ];
    let (image, warnings) = build(&bench, "out", BaseSource::Debs(&debs));
    assert_eq!(image.read("/usr/x"), b"2");
    assert_eq!(warnings, ["b replaces /usr/x of another package"]);
}

#[test]
fn what_is_no_package_is_refused() {
    let bench = Bench::new();
    let mut text = Vec::new();
    assert_eq!(deb::data_tar(&bench.write("x", "text")).err().unwrap().code(), "deb.damaged");
    assert_eq!(deb::data_tar(&bench.write("y", "!<arch>\n")).err().unwrap().code(), "deb.damaged");
    let deb = package(&bench, "a", "", Tar::default());
    deb::data_tar(&deb).unwrap().read_to_end(&mut text).unwrap();
    assert_eq!(text, Tar::default().end());
    let whole = std::fs::read(&deb).unwrap();
    let cut = bench.write("cut", &whole[..whole.len() - 700]);
    let out = bench.make_dir("out");
    assert_eq!(
        build_base(BaseSource::Debs(&[cut]), &out, &bench.scratch()).unwrap_err().code(),
        "archive.truncated"
    );
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 0);
}

fn root_tar() -> Vec<u8> {
    Tar::default()
        .raw(b"./", b'5', 0o711, (3, 4), b"", 0, b"")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .raw(b"tmp", b'5', 0o1777, (0, 0), b"", 0, b"")
        .pax(&[("SCHILY.xattr.user.kind", b"dir\xff")])
        .dir("marked")
        .dir("lost+found")
        .file("file", b"x")
        .end()
}

#[test]
fn a_tar_becomes_a_base_with_its_own_root() {
    let bench = Bench::new();
    let tar = bench.write("root.tar", root_tar());
    let (image, _) = build(&bench, "out", BaseSource::Tar(&tar));
    assert_eq!(image.owner("/"), (0o040711, 3, 4));
    assert_eq!(image.names("/"), ["file", "lib", "lost+found", "marked", "tmp", "usr"]);
}

#[test]
fn an_image_read_back_has_the_index_it_was_built_with() {
    let bench = Bench::new();
    let tar = bench.write("root.tar", root_tar());
    build(&bench, "out", BaseSource::Tar(&tar));
    let image = bench.path("out").join(BASE_IMAGE);
    build(&bench, "copy", BaseSource::Ext4(&image));
    let index = |dir: &str| Index::load(&bench.path(dir).join(BASE_INDEX)).unwrap();
    assert!(index("out") == index("copy"));
    assert!(std::fs::read(&image).unwrap() == std::fs::read(bench.path("copy").join(BASE_IMAGE)).unwrap());
    match index("copy").get("marked") {
        Some(Indexed::Dir(meta)) => assert_eq!(meta.xattrs, [("user.kind".to_owned(), b"dir\xff".to_vec())]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_copy_keeps_its_holes() {
    use std::os::unix::fs::MetadataExt as _;
    let bench = Bench::new();
    let tar = bench.write("root.tar", root_tar());
    build(&bench, "out", BaseSource::Tar(&tar));
    build(&bench, "copy", BaseSource::Ext4(&bench.path("out").join(BASE_IMAGE)));
    let blocks = |dir: &str| std::fs::metadata(bench.path(dir).join(BASE_IMAGE)).unwrap().blocks();
    assert!(blocks("copy") <= blocks("out") + 64, "{} {}", blocks("copy"), blocks("out"));
}

#[test]
fn a_directory_becomes_a_base_of_roots() {
    let bench = Bench::new();
    bench.write("root/usr/bin/tool", "x");
    bench.make_dir("root/proc");
    std::os::unix::fs::symlink("usr/bin", bench.path("root/bin")).unwrap();
    let listed = |path: &str, kind| crate::listing::Listed { path: path.into(), mode: 0o755, kind };
    let tool = crate::listing::ListedKind::File { size: 1, digest: blake3::hash(b"x").into() };
    let link = crate::listing::ListedKind::Symlink { target: "usr/bin".into() };
    let dir = || crate::listing::ListedKind::Dir;
    let entries = vec![
        listed("bin", link),
        listed("proc", dir()),
        listed("usr", dir()),
        listed("usr/bin", dir()),
        listed("usr/bin/tool", tool),
    ];
    let (root, listing) = (bench.path("root"), crate::listing::Listing { entries });
    let (image, _) = build(&bench, "out", BaseSource::Dir { root: &root, listing: &listing });
    assert_eq!(image.names("/"), ["bin", "lost+found", "proc", "usr"]);
    assert_eq!(image.owner("/"), (0o040755, 0, 0));
    assert_eq!(image.owner("/usr/bin/tool"), (0o100755, 0, 0));
    assert_eq!(image.target("bin"), "usr/bin");
    let index = Index::load(&bench.path("out").join(BASE_INDEX)).unwrap();
    assert_eq!(index.get("bin"), Some(&Indexed::Symlink("usr/bin".into())));
}

#[test]
fn an_image_made_by_mke2fs_is_indexed() {
    let Some(mut mke2fs) = tool("mke2fs") else { return };
    let bench = Bench::new();
    bench.write("root/usr/lib/file", "x");
    std::os::unix::fs::symlink("usr/lib", bench.path("root/lib")).unwrap();
    std::os::unix::fs::symlink("t".repeat(200), bench.path("root/long")).unwrap();
    let image = bench.path("made.ext4");
    let root = bench.path("root");
    let made = mke2fs
        .args(["-q", "-b", "4096", "-t", "ext4", "-d"])
        .arg(root)
        .arg(&image)
        .arg("32M")
        .status()
        .unwrap();
    assert!(made.success());
    build_base(BaseSource::Ext4(&image), &bench.make_dir("out"), &bench.scratch()).unwrap();
    let index = Index::load(&bench.path("out").join(BASE_INDEX)).unwrap();
    assert_eq!(index.get("lib"), Some(&Indexed::Symlink("usr/lib".into())));
    assert_eq!(index.get("long"), Some(&Indexed::Symlink("t".repeat(200))));
    assert!(matches!(index.get("usr/lib"), Some(Indexed::Dir(_))));
    assert_eq!(index.get("lost+found"), None);
}
