//! Facts about what survives: the corpus through every way into an image, as the kernel sees it, against what GNU tar
//! makes of it.

use super::corpus::corpus;
use super::oracle::{Fact, Facts, Mounted, assert_same, facts, lacking, pack, unpack};
use super::*;
use crate::home::Home;
use crate::image::tree::CONSTANT_TIME;
use crate::image::{
    BASE_IMAGE, BASE_INDEX, BaseSource, WORKLOAD_IMAGE, WorkloadItem, WorkloadSource, build_base,
    build_workload,
};
use crate::store::Store;
use crate::store::scan::{ScanOptions, scan_dir};

pub(super) const TYPE: u32 = 0o170000;
pub(super) const DIRECTORY: u32 = 0o040000;

/// The corpus as a file, and what GNU tar makes of it.
pub(super) fn prepared(prefix: &str) -> Option<(Bench, PathBuf, Facts)> {
    if let Some(why) = lacking() {
        crate::testing::skip(why);
        return None;
    }
    let bench = Bench::new();
    let tar = bench.write("corpus.tar", corpus(prefix));
    unpack(&tar, &bench.path("unpacked"));
    let wanted = facts(&bench.path("unpacked").join(prefix));
    assert!(wanted.len() > corpus::MANY + 200, "{}", wanted.len());
    Some((bench, tar, wanted))
}

/// The root is made by whoever unpacks: what an archive does not declare is nobody's.
pub(super) fn without_root(mut facts: Facts) -> Facts {
    facts.remove("");
    facts
}

pub(super) fn mounted(bench: &Bench, image: &Path) -> Mounted {
    Mounted::new(image, &bench.path("mounted"))
}

fn workload(bench: &Bench, source: WorkloadSource<'_>, owner: (u32, u32)) -> PathBuf {
    let out = bench.make_dir("layer");
    let image = out.join(WORKLOAD_IMAGE);
    let _ = std::fs::remove_file(&image);
    let item = WorkloadItem { source, to: "/opt/app", owner };
    build_workload(&[item], &bench.empty_index(), &out, &bench.scratch()).unwrap();
    image
}

#[test]
fn a_base_from_a_tar_is_what_tar_unpacks() {
    let Some((bench, tar, wanted)) = prepared("") else { return };
    let out = bench.make_dir("out");
    build_base(BaseSource::Tar(&tar), &out, &bench.scratch()).unwrap();
    let found = mounted(&bench, &out.join(BASE_IMAGE));
    assert_same(&without_root(facts(found.path())), &without_root(wanted));
}

#[test]
fn a_workload_from_a_tar_is_what_tar_unpacks() {
    let Some((bench, tar, wanted)) = prepared("") else { return };
    let image = workload(&bench, WorkloadSource::Archive(&tar), (0, 0));
    let found = mounted(&bench, &image);
    assert_same(&without_root(facts(&found.path().join("opt/app"))), &without_root(wanted));
}

#[test]
fn a_packages_files_are_what_tar_unpacks() {
    let Some((bench, tar, wanted)) = prepared("opt/corpus/") else { return };
    let package = bases::package_of(&bench, "corpus", "", std::fs::read(tar).unwrap());
    let out = bench.make_dir("out");
    build_base(BaseSource::Debs(&[package]), &out, &bench.scratch()).unwrap();
    let found = mounted(&bench, &out.join(BASE_IMAGE));
    assert_same(&facts(&found.path().join("opt/corpus")), &wanted);
}

#[test]
fn an_ext4_image_is_taken_as_it_is() {
    let Some((bench, _, wanted)) = prepared("") else { return };
    let Some(mut mke2fs) = tool("mke2fs") else { return };
    let image = bench.path("made.ext4");
    let out = mke2fs
        .args(["-q", "-t", "ext4", "-b", "4096", "-N", "30000", "-d"])
        .arg(bench.path("unpacked"))
        .arg(&image)
        .arg("128M")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = bench.make_dir("out");
    build_base(BaseSource::Ext4(&image), &out, &bench.scratch()).unwrap();
    assert!(std::fs::read(&image).unwrap() == std::fs::read(out.join(BASE_IMAGE)).unwrap());
    // It is the same bytes; what mke2fs keeps of a tree is its own affair. Our index of it must agree with the mount.
    let found = facts(mounted(&bench, &out.join(BASE_IMAGE)).path());
    assert_eq!(found.len(), wanted.len());
    let index = Index::load(&out.join(BASE_INDEX)).unwrap();
    for (path, fact) in &found {
        match (fact.mode & TYPE, index.get(path)) {
            (DIRECTORY, Some(crate::image::index::Indexed::Dir(meta))) => {
                let xattrs: Vec<_> = fact.xattrs.clone().into_iter().collect();
                assert_eq!(
                    (u32::from(meta.mode), meta.uid, meta.gid),
                    (fact.mode & 0o7777, fact.uid, fact.gid)
                );
                assert_eq!(meta.xattrs, xattrs, "{path}");
            }
            (0o120000, Some(crate::image::index::Indexed::Symlink(target))) => {
                assert_eq!(*target, fact.content)
            }
            (DIRECTORY | 0o120000, other) => panic!("{path}: {other:?}"),
            (_, other) => assert_eq!(other, None, "{path}"),
        }
    }
}

#[test]
fn a_directory_keeps_contents_and_links_and_gets_its_owner() {
    let Some((bench, _, wanted)) = prepared("") else { return };
    let root = bench.path("unpacked");
    let store = Store::open(Home::new(bench.path("home"))).unwrap();
    let error = scan_dir(&store, &root, &ScanOptions::default()).unwrap_err();
    assert_eq!(error.code(), "scan.special-file", "devices are no part of a directory: {error}");
    std::fs::remove_dir_all(root.join("devices")).unwrap();
    for keep_modes in [false, true] {
        let scanned = scan_dir(&store, &root, &ScanOptions { keep_modes, ..ScanOptions::default() }).unwrap();
        assert!(scanned.warnings.iter().any(|w| w.contains("set-user-ID")), "{:?}", scanned.warnings);
        let source = WorkloadSource::Dir { root: &root, listing: &scanned.listing };
        let image = workload(&bench, source, (4_294_967_294, 77));
        let found = mounted(&bench, &image);
        let wanted: Facts = wanted
            .iter()
            .filter(|(path, _)| !path.starts_with("devices"))
            .map(|(path, fact)| (path.clone(), normalised(fact, keep_modes, (4_294_967_294, 77))))
            .collect();
        assert_same(&without_root(facts(&found.path().join("opt/app"))), &without_root(wanted));
    }
}

/// What a directory keeps of a file: neither its owner, time and attributes nor its other names.
pub(super) fn normalised(fact: &Fact, keep_modes: bool, owner: (u32, u32)) -> Fact {
    let kind = fact.mode & TYPE;
    let mode = match kind {
        0o120000 => 0o777,
        _ if keep_modes => fact.mode & 0o777,
        DIRECTORY => 0o755,
        _ if fact.mode & 0o100 != 0 => 0o755,
        _ => 0o644,
    };
    Fact {
        mode: kind | mode,
        uid: owner.0,
        gid: owner.1,
        time: (CONSTANT_TIME, 0),
        same_as: None,
        xattrs: Default::default(),
        ..fact.clone()
    }
}

#[test]
fn re_extracted_copies_give_the_same_bytes() {
    let Some((bench, tar, _)) = prepared("./") else { return };
    let base = |tar: &Path| {
        let out = bench.make_dir("out");
        build_base(BaseSource::Tar(tar), &out, &bench.scratch()).unwrap();
        let bytes =
            [BASE_IMAGE, BASE_INDEX].map(|file| blake3::hash(&std::fs::read(out.join(file)).unwrap()));
        std::fs::remove_dir_all(out).unwrap();
        bytes
    };
    let first = base(&tar);
    unpack(&tar, &bench.path("again"));
    let store = Store::open(Home::new(bench.path("home"))).unwrap();
    let mut layers = Vec::new();
    for copy in ["unpacked", "again"] {
        // Packed by another program, in another order, with other headers.
        let repacked = bench.path(&format!("{copy}.tar"));
        pack(&bench.path(copy), &repacked);
        assert!(std::fs::read(&repacked).unwrap() != std::fs::read(&tar).unwrap());
        assert_eq!(base(&repacked), first, "{copy}");
        let root = bench.path(copy);
        std::fs::remove_dir_all(root.join("devices")).unwrap();
        let listing = scan_dir(&store, &root, &ScanOptions::default()).unwrap().listing;
        let image = workload(&bench, WorkloadSource::Dir { root: &root, listing: &listing }, (0, 0));
        layers.push(blake3::hash(&std::fs::read(image).unwrap()));
    }
    assert_eq!(layers[0], layers[1]);
}

#[test]
fn a_file_beyond_4_gib_costs_what_is_in_it() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    const SIZE: u64 = (4 << 30) + (1 << 20) + 5;
    const END: u64 = SIZE - 3;
    let bench = Bench::new();
    let root = bench.make_dir("root");
    let file = std::fs::File::create(root.join("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", END).unwrap();
    let tar_path = bench.path("sparse.tar");
    let head = Tar::default()
        .pax(&[("size", SIZE.to_string().as_bytes())])
        .raw(b"sparse", b'0', 0o644, (0, 0), b"", 0, b"")
        .0;
    let tar = std::fs::File::create(&tar_path).unwrap();
    tar.write_all_at(&head, 0).unwrap();
    tar.write_all_at(b"begin", head.len() as u64).unwrap();
    tar.write_all_at(b"end", head.len() as u64 + END).unwrap();
    tar.set_len((head.len() as u64 + SIZE).next_multiple_of(512) + 1024).unwrap();

    let store = Store::open(Home::new(bench.path("home"))).unwrap();
    let listing = scan_dir(&store, &root, &ScanOptions::default()).unwrap().listing;
    for source in [WorkloadSource::Dir { root: &root, listing: &listing }, WorkloadSource::Archive(&tar_path)]
    {
        let path = workload(&bench, source, (0, 0));
        let blocks = std::fs::metadata(&path).unwrap().blocks();
        assert!(blocks * 512 < 4 << 20, "{blocks}");
        let image = Image::open(&path);
        assert_eq!(image.inode("/opt/app/sparse").size, SIZE);
        if let Some(why) = lacking() {
            crate::testing::skip(why);
            continue;
        }
        let found = mounted(&bench, &path);
        let file = std::fs::File::open(found.path().join("opt/app/sparse")).unwrap();
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"begin");
        file.read_exact_at(&mut bytes, END - 2).unwrap();
        assert_eq!(&bytes, b"\0\0end");
    }
}

#[test]
fn a_workload_follows_as_many_links_of_the_base_as_linux_does() {
    for (links, placed) in [(40, true), (41, false)] {
        let bench = Bench::new();
        let mut tar = Tar::default().dir("end");
        for n in 1..=links {
            let next = if n == links { "end".to_owned() } else { format!("link-{:02}", n + 1) };
            tar = tar.symlink(&format!("link-{n:02}"), &next);
        }
        let (base, out) = (bench.write("base.tar", tar.end()), bench.make_dir("base"));
        build_base(BaseSource::Tar(&base), &out, &bench.scratch()).unwrap();
        let app = bench.write("app.tar", Tar::default().file("f", b"f").end());
        let item = WorkloadItem { source: WorkloadSource::Archive(&app), to: "/link-01", owner: (0, 0) };
        let layer = bench.make_dir("layer");
        let built = build_workload(&[item], &out.join(BASE_INDEX), &layer, &bench.scratch());
        match built {
            Ok(_) if placed => assert_eq!(Image::open(&layer.join(WORKLOAD_IMAGE)).read("/end/f"), b"f"),
            Err(e) if !placed => assert_eq!(e.code(), "image.link-loop"),
            other => panic!("{links} links: {other:?}"),
        }
    }
}
