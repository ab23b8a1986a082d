//! Facts about what survives on the ways into a base that are not a plain tar: layers, directories, zips, and a file
//! of more than 4 GiB on each.

use super::corpus::{corpus, corpus_in_two};
use super::oracle::{Fact, Facts, assert_same, facts, lacking};
use super::ownership::{DIRECTORY, TYPE, mounted, normalised, prepared, without_root};
use super::*;
use crate::home::Home;
use crate::image::{BASE_IMAGE, BaseSource, build_base};
use crate::store::Store;
use crate::store::scan::{ScanOptions, scan_dir};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

fn base(bench: &Bench, name: &str, source: BaseSource<'_>) -> PathBuf {
    let out = bench.make_dir(name);
    build_base(source, &out, &bench.scratch()).unwrap();
    out.join(BASE_IMAGE)
}

#[test]
fn a_layer_is_what_tar_unpacks() {
    let Some((bench, tar, wanted)) = prepared("") else { return };
    let image = base(&bench, "out", BaseSource::Layers(&[layer(tar)]));
    assert_same(&without_root(facts(mounted(&bench, &image).path())), &without_root(wanted));
}

#[test]
fn two_layers_are_what_tar_unpacks_of_their_whole() {
    let Some((bench, _, wanted)) = prepared("") else { return };
    let parts = corpus_in_two();
    assert!(parts.iter().all(|part| part.len() > 20_000));
    let write = |(n, part)| layer(bench.write(&format!("layer-{n}"), part));
    let layers: Vec<_> = parts.iter().enumerate().map(write).collect();
    let image = base(&bench, "out", BaseSource::Layers(&layers));
    assert_same(&without_root(facts(mounted(&bench, &image).path())), &without_root(wanted));
}

#[test]
fn a_base_from_a_directory_keeps_contents_and_links_and_is_roots() {
    let Some((bench, _, wanted)) = prepared("") else { return };
    let root = bench.path("unpacked");
    std::fs::remove_dir_all(root.join("devices")).unwrap();
    let store = Store::open(Home::new(bench.path("home"))).unwrap();
    for keep_modes in [false, true] {
        let listing =
            scan_dir(&store, &root, &ScanOptions { keep_modes, ..ScanOptions::default() }).unwrap().listing;
        let source = BaseSource::Dir { root: &root, listing: &listing };
        let image = base(&bench, &format!("out-{keep_modes}"), source);
        let wanted: Facts = wanted
            .iter()
            .filter(|(path, _)| !path.starts_with("devices"))
            .map(|(path, fact)| (path.clone(), normalised(fact, keep_modes, (0, 0))))
            .collect();
        assert_same(&without_root(facts(mounted(&bench, &image).path())), &without_root(wanted));
    }
}

#[test]
fn a_zip_keeps_modes_and_links_and_is_roots() {
    let Some((bench, _, wanted)) = prepared("") else { return };
    let wanted: Facts = without_root(wanted)
        .into_iter()
        .filter(|(path, _)| !path.starts_with("devices"))
        .map(|(path, fact)| (path, as_in_a_zip(fact)))
        .collect();
    let zip = bench.write("corpus.zip", zip(&bench.path("unpacked"), &wanted));
    let image = base(&bench, "out", BaseSource::Tar(&zip));
    assert_same(&without_root(facts(mounted(&bench, &image).path())), &wanted);
}

/// The times that a zip's extended timestamp and its DOS time can both hold.
const FIRST: i64 = 315_532_800;

fn as_in_a_zip(fact: Fact) -> Fact {
    Fact {
        uid: 0,
        gid: 0,
        time: (fact.time.0.max(FIRST), 0),
        same_as: None,
        xattrs: Default::default(),
        ..fact
    }
}

/// A zip of these entries as Info-ZIP makes it on Unix, nothing compressed: what is given as mode is written as mode,
/// which the `zip` crate would cut to nine bits.
fn zip(root: &Path, entries: &Facts) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (path, fact) in entries {
        let kind = fact.mode & TYPE;
        let name = if kind == DIRECTORY { format!("{path}/") } else { path.clone() };
        let contents = match kind {
            DIRECTORY => Vec::new(),
            0o120000 => fact.content.clone().into_bytes(),
            _ => std::fs::read(root.join(path)).unwrap(),
        };
        let mut crc = flate2::Crc::new();
        crc.update(&contents);
        let size = u32::try_from(contents.len()).unwrap().to_le_bytes();
        let mut extra = b"UT\x05\0\x01".to_vec();
        extra.extend(u32::try_from(fact.time.0).unwrap().to_le_bytes());
        // What both headers have in common: version, UTF-8 names, stored, 1980-01-01, checksum, sizes and lengths.
        let mut common = vec![20, 0, 0, 8, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc.sum().to_le_bytes());
        common.extend(size);
        common.extend(size);
        common.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        common.extend(u16::try_from(extra.len()).unwrap().to_le_bytes());
        let offset = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        // Made by Unix, which puts the mode into the upper half of the attributes.
        directory.extend(b"PK\x01\x02\x1e\x03");
        directory.extend(&common);
        directory.extend([0; 6]);
        directory.extend([0; 2]);
        directory.extend((fact.mode as u16).to_le_bytes());
        directory.extend(offset);
        directory.extend(name.as_bytes());
        directory.extend(&extra);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(&extra);
        bytes.extend(contents);
    }
    let (at, length) = (bytes.len() as u32, directory.len() as u32);
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    bytes.extend(directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count, count].concat());
    bytes.extend(length.to_le_bytes());
    bytes.extend(at.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

const LARGE: u64 = (4 << 30) + (1 << 20) + 5;

/// A tar of one file of more than 4 GiB at `name`, a hole between its first and last bytes; a hole on this disk, too.
fn large_tar(bench: &Bench, name: &str) -> PathBuf {
    let path = bench.path("large.tar");
    let head = Tar::default()
        .pax(&[("size", LARGE.to_string().as_bytes())])
        .raw(name.as_bytes(), b'0', 0o644, (7, 8), b"", 0, b"")
        .0;
    let tar = std::fs::File::create(&path).unwrap();
    tar.write_all_at(&head, 0).unwrap();
    tar.write_all_at(b"begin", head.len() as u64).unwrap();
    tar.write_all_at(b"end", head.len() as u64 + LARGE - 3).unwrap();
    tar.set_len((head.len() as u64 + LARGE).next_multiple_of(512) + 1024).unwrap();
    path
}

/// The file is whole in the image, and its hole costs nothing.
#[track_caller]
fn assert_large(bench: &Bench, image: &Path, way: &str) {
    let blocks = std::fs::metadata(image).unwrap().blocks();
    assert!(blocks * 512 < 5 << 20, "{way}: {blocks} blocks");
    let inode = Image::open(image).inode("/opt/large");
    assert_eq!((inode.size, inode.uid, inode.gid), (LARGE, 7, 8), "{way}");
    if let Some(why) = lacking() {
        crate::testing::skip(why);
        return;
    }
    let found = mounted(bench, image);
    let file = std::fs::File::open(found.path().join("opt/large")).unwrap();
    let mut bytes = [0; 5];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"begin", "{way}");
    file.read_exact_at(&mut bytes, LARGE - 5).unwrap();
    assert_eq!(&bytes, b"\0\0end", "{way}");
}

#[test]
fn a_file_beyond_4_gib_survives_every_way_into_a_base() {
    let bench = Bench::new();
    let tar = large_tar(&bench, "opt/large");
    let image = base(&bench, "tar", BaseSource::Tar(&tar));
    assert_large(&bench, &image, "tar");
    let copied = base(&bench, "ext4", BaseSource::Ext4(&image));
    assert_large(&bench, &copied, "ext4");
    let layers = [bench.write("below", corpus_in_two()[0].as_slice()), tar.clone()].map(layer);
    assert_large(&bench, &base(&bench, "layers", BaseSource::Layers(&layers[1..])), "layer");
    let upper = base(&bench, "two", BaseSource::Layers(&layers));
    assert_eq!(Image::open(&upper).inode("/opt/large").size, LARGE);
    // Compressed, it has to be unpacked to a temporary file, whose zeros are holes.
    let compressed = bench.path("large.tar.zst");
    let from = std::fs::File::open(&tar).unwrap();
    zstd::stream::copy_encode(from, std::fs::File::create(&compressed).unwrap(), 1).unwrap();
    assert_large(&bench, &base(&bench, "zst", BaseSource::Tar(&compressed)), "tar.zst");
    let package = bases::package_in(&bench, "large", "data.tar.zst", std::fs::read(&compressed).unwrap());
    assert_large(&bench, &base(&bench, "debs", BaseSource::Debs(&[package])), "package");
}

#[test]
fn the_corpus_is_the_same_in_one_part_and_in_two() {
    let [lower, upper] = corpus_in_two();
    let whole = corpus("");
    assert!(whole.starts_with(&lower[..lower.len() - 1024]) && whole.ends_with(&upper));
    assert_eq!(lower.len() - 1024 + upper.len(), whole.len());
}
