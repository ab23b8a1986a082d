//! Facts about layers: what lands where, with whose metadata, and that equal inputs are equal bytes.

use super::*;
use crate::digest::ObjectDigest;
use crate::error::Error;
use crate::image::index::Indexed;
use crate::image::{Role, WORKLOAD_IMAGE, WorkloadItem, WorkloadSource, build_workload, create_empty};
use crate::listing::{Listed, ListedKind, Listing};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

/// An index like that of a merged-/usr Debian.
fn debian_index(bench: &Bench) -> PathBuf {
    let mut index = Index::default();
    for (path, mode, uid) in [
        ("", 0o755, 0),
        ("usr", 0o755, 0),
        ("usr/lib", 0o755, 0),
        ("tmp", 0o1777, 0),
        ("srv", 0o750, 33),
        ("run", 0o755, 0),
    ] {
        index.insert(path, Indexed::Dir(Meta { uid, ..Meta::root(mode) }));
    }
    for (path, target) in [("lib", "usr/lib"), ("var/run", "/run"), ("loop", "loop"), ("up", "../../srv")] {
        index.insert(path, Indexed::Symlink(target.into()));
    }
    index.insert("var", Indexed::Dir(Meta::root(0o755)));
    let path = bench.path("debian.json");
    index.save(&path).unwrap();
    path
}

fn digest(bytes: impl AsRef<[u8]>) -> ObjectDigest {
    blake3::hash(bytes.as_ref()).into()
}

fn file(path: &str, bytes: &[u8]) -> Listed {
    Listed {
        path: path.into(),
        mode: 0o644,
        kind: ListedKind::File { size: bytes.len() as u64, digest: digest(bytes) },
    }
}

fn dir(path: &str) -> Listed {
    Listed { path: path.into(), mode: 0o755, kind: ListedKind::Dir }
}

fn symlink(path: &str, target: &str) -> Listed {
    Listed { path: path.into(), mode: 0o777, kind: ListedKind::Symlink { target: target.into() } }
}

/// A directory on disk, and its listing; every file contains its own path.
fn tree(bench: &Bench, name: &str, entries: Vec<Listed>) -> (PathBuf, Listing) {
    let root = bench.make_dir(name);
    for entry in &entries {
        let path = root.join(&entry.path);
        match &entry.kind {
            ListedKind::Dir => std::fs::create_dir_all(path).unwrap(),
            ListedKind::File { .. } => drop(bench.write(&format!("{name}/{}", entry.path), &entry.path)),
            ListedKind::Symlink { target } => std::os::unix::fs::symlink(target, path).unwrap(),
        }
    }
    (root, Listing { entries })
}

fn build(bench: &Bench, items: &[WorkloadItem<'_>]) -> Result<Image, Error> {
    let out = bench.make_dir("out");
    let image = out.join(WORKLOAD_IMAGE);
    let _ = std::fs::remove_file(&image);
    let built = build_workload(items, &debian_index(bench), &out, &bench.scratch());
    assert_eq!(image.exists(), built.is_ok());
    built.map(|_| Image::open(&image))
}

fn item<'a>((root, listing): &'a (PathBuf, Listing), to: &'a str) -> WorkloadItem<'a> {
    WorkloadItem { source: WorkloadSource::Dir { root, listing }, to, owner: (1000, 1000) }
}

#[track_caller]
fn code(built: Result<Image, Error>) -> &'static str {
    match built {
        Ok(_) => "built",
        Err(e) => e.code(),
    }
}

#[test]
fn a_directory_gets_its_owner_and_a_constant_time() {
    let bench = Bench::new();
    let app = tree(&bench, "a", vec![dir("d"), file("d/f", b"d/f"), symlink("l", "d/f")]);
    let image = build(&bench, &[item(&app, "/opt/app")]).unwrap();
    assert_eq!(image.owner("/opt"), (0o040755, 0, 0), "a missing parent is root's");
    assert_eq!(image.owner("/opt/app"), (0o040755, 1000, 1000));
    assert_eq!(image.owner("/opt/app/d/f"), (0o100644, 1000, 1000));
    assert_eq!(image.read("/opt/app/d/f"), b"d/f");
    assert_eq!(image.target("/opt/app/l"), "d/f");
    assert_eq!(image.inode("/opt/app/d/f").mtime, 315_532_800);
}

#[test]
fn links_of_the_base_are_followed() {
    let bench = Bench::new();
    let app = tree(
        &bench,
        "a",
        vec![
            dir("lib"),
            file("lib/x", b"lib/x"),
            dir("var"),
            dir("var/run"),
            file("var/run/y", b"var/run/y"),
        ],
    );
    let image = build(&bench, &[item(&app, "/")]).unwrap();
    assert_eq!(image.read("/usr/lib/x"), b"lib/x");
    assert_eq!(image.read("/run/y"), b"var/run/y");
    assert!(!image.has("/lib"));
    let image = build(&bench, &[item(&app, "/up/deep")]).unwrap();
    assert_eq!(image.read("/srv/deep/lib/x"), b"lib/x", "above the root is the root");
    assert_eq!(code(build(&bench, &[item(&app, "/loop/x")])), "image.link-loop");
}

#[test]
fn shared_directories_keep_the_metadata_of_the_base() {
    let bench = Bench::new();
    let app =
        tree(&bench, "a", vec![dir("srv"), file("srv/x", b"srv/x"), dir("tmp"), file("tmp/y", b"tmp/y")]);
    let image = build(&bench, &[item(&app, "/")]).unwrap();
    assert_eq!(image.owner("/"), (0o040755, 0, 0));
    assert_eq!(image.owner("/tmp"), (0o041777, 0, 0));
    assert_eq!(image.owner("/srv"), (0o040750, 33, 0));
    assert_eq!(image.owner("/srv/x"), (0o100644, 1000, 1000));
}

#[test]
fn later_items_win() {
    let bench = Bench::new();
    let first =
        tree(&bench, "a", vec![file("both", b"both"), file("one", b"one"), symlink("link", "/app/inner")]);
    let second =
        tree(&bench, "b", vec![symlink("both", "one"), dir("link"), file("link/x", b"link/x"), dir("one")]);
    let image = build(&bench, &[item(&first, "/app"), item(&second, "/app")]).unwrap();
    assert_eq!(image.target("/app/both"), "one");
    assert_eq!(image.read("/app/inner/x"), b"link/x", "links of earlier items are followed");
    assert_eq!(image.owner("/app/one").0, 0o040755);
}

#[test]
fn a_file_never_replaces_a_directory() {
    let bench = Bench::new();
    let app = tree(&bench, "a", vec![file("srv", b"srv")]);
    assert_eq!(code(build(&bench, &[item(&app, "/")])), "image.replaces-directory");
    let lost = tree(&bench, "b", vec![dir("lost+found"), file("lost+found/x", b"lost+found/x")]);
    assert_eq!(code(build(&bench, &[item(&lost, "/")])), "image.reserved-name");
}

#[test]
fn a_single_file_has_its_own_path_or_goes_into_a_directory() {
    let bench = Bench::new();
    let path = bench.write("server", "binary");
    let source = WorkloadSource::File { path: &path, digest: digest("binary"), executable: true };
    for (to, placed) in [
        ("/app/run", "/app/run"),
        ("/app/", "/app/server"),
        ("/srv", "/srv/server"),
        ("/lib", "/usr/lib/server"),
        ("/x", "/x"),
    ] {
        let image = build(&bench, &[WorkloadItem { source, to, owner: (0, 5) }]).unwrap();
        assert_eq!(image.owner(placed), (0o100755, 0, 5), "{to}");
        assert_eq!(image.read(placed), b"binary");
    }
}

#[test]
fn a_file_that_changed_since_the_scan_stops_the_build() {
    let bench = Bench::new();
    let changed = |change: &dyn Fn(&Path)| {
        let _ = std::fs::remove_dir_all(bench.path("a"));
        let app = tree(&bench, "a", vec![file("f", b"f"), file("g", b"g")]);
        change(&app.0.join("f"));
        code(build(&bench, &[item(&app, "/app")]))
    };
    assert_eq!(changed(&|_| {}), "built");
    assert_eq!(changed(&|f| std::fs::write(f, "F").unwrap()), "image.changed");
    assert_eq!(changed(&|f| std::fs::write(f, "").unwrap()), "image.changed");
    assert_eq!(changed(&|f| std::fs::remove_file(f).unwrap()), "image.changed");
    let link = |f: &Path| {
        std::fs::remove_file(f).unwrap();
        std::os::unix::fs::symlink("g", f).unwrap();
    };
    assert_eq!(changed(&link), "image.changed");
    let pipe = |f: &Path| {
        std::fs::remove_file(f).unwrap();
        nix::unistd::mkfifo(f, nix::sys::stat::Mode::S_IRUSR).unwrap();
    };
    assert_eq!(changed(&pipe), "image.changed");
}

#[test]
fn equal_trees_are_equal_bytes() {
    let bench = Bench::new();
    let names: Vec<String> = (0..400).map(|n| format!("d/file-with-a-longer-name-{n:04}")).collect();
    let entries = || std::iter::once(dir("d")).chain(names.iter().map(|n| file(n, n.as_bytes()))).collect();
    let hash = |name: &str| {
        let app = tree(&bench, name, entries());
        build(&bench, &[item(&app, "/app")]).unwrap();
        blake3::hash(&std::fs::read(bench.path("out").join(WORKLOAD_IMAGE)).unwrap())
    };
    let first = hash("a");
    assert_eq!(first, hash("a"));
    assert_eq!(first, hash("copied-elsewhere"));
}

#[test]
fn an_empty_layer_is_small() {
    let bench = Bench::new();
    build(&bench, &[]).unwrap();
    let stat = std::fs::metadata(bench.path("out").join(WORKLOAD_IMAGE)).unwrap();
    assert!(stat.len() <= 17 << 20, "{}", stat.len());
    assert!(stat.blocks() * 512 < 256 << 10, "{}", stat.blocks() * 512);
}

#[test]
fn large_directories_and_files_fit() {
    let bench = Bench::new();
    let mut entries = Vec::new();
    for n in 0..9000 {
        entries.push(symlink(&format!("{n:05}-{}", "x".repeat(200)), "a"));
    }
    // Longer than 59 bytes: a block of its own.
    entries.push(symlink("zz", &"t".repeat(300)));
    let app = (bench.make_dir("a"), Listing { entries });
    let image = build(&bench, &[item(&app, "/app")]).unwrap();
    assert_eq!(image.names("/app").len(), 9001);
    let big = bench.path("big");
    std::fs::File::create(&big).unwrap().set_len(300 << 20).unwrap();
    let mut hasher = blake3::Hasher::new();
    let zeros = vec![0; 1 << 20];
    for _ in 0..300 {
        hasher.update(&zeros);
    }
    let source = WorkloadSource::File { path: &big, digest: hasher.finalize().into(), executable: false };
    let image = build(&bench, &[WorkloadItem { source, to: "/big", owner: (0, 0) }]).unwrap();
    assert_eq!(image.inode("/big").size, 300 << 20);
}

#[test]
fn empty_disks_are_sparse_private_and_clean() {
    let bench = Bench::new();
    for (size, role) in [
        (17 << 20, Role::Volume),
        (1 << 30, Role::Scratch),
        ((1 << 30) + 5, Role::Volume),
        (20 << 30, Role::Scratch),
        ((2 << 30) + (5 << 20), Role::Volume),
    ] {
        let path = bench.path("disk");
        create_empty(&path, size, role).unwrap();
        let stat = std::fs::metadata(&path).unwrap();
        assert_eq!(stat.len(), size / 4096 * 4096);
        assert!(stat.blocks() * 512 < 4 << 20, "{} of {size}", stat.blocks() * 512);
        assert_eq!(stat.permissions().mode() & 0o777, 0o600);
        let image = Image::open(&path);
        assert_eq!(image.names("/"), ["lost+found"]);
        assert!(u64::from(image.fs.superblock().inodes_count) >= size / 16384 / 2);
        assert!(create_empty(&path, size, role).is_err(), "an existing disk is never overwritten");
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(create_empty(&bench.path("disk"), 1 << 20, Role::Volume).unwrap_err().code(), "image.size");
}

#[test]
fn a_full_disk_is_named_and_leaves_no_image() {
    let bench = Bench::new();
    let path = bench.write("big", vec![1; 8 << 20]);
    let index = debian_index(&bench);
    let scratch = bench.scratch();
    crate::testing::on_small_disk(2 << 20, |out| {
        let source =
            WorkloadSource::File { path: &path, digest: digest(vec![1; 8 << 20]), executable: false };
        let item = WorkloadItem { source, to: "/x", owner: (0, 0) };
        let error = build_workload(&[item], &index, out, &scratch).unwrap_err();
        assert_eq!(error.code(), "image.disk-full", "{error}");
        assert_eq!(std::fs::read_dir(out).unwrap().count(), 0);
    });
}
