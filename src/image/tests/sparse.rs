//! Facts about files that a tar stores without their holes: as GNU tar writes them in each of its formats, and as
//! nobody should.

use super::compare::{differences, of_dir, of_image};
use super::*;
use crate::error::Error;
use crate::image::archive::{Limits, read};
use crate::image::{BASE_IMAGE, BaseSource, build_base};
use std::os::unix::fs::FileExt as _;

/// GNU tar's formats, and how it is asked for them.
const FORMATS: [(&str, &[&str]); 4] = [
    ("old", &["--format=gnu"]),
    ("0.0", &["--format=pax", "--sparse-version=0.0"]),
    ("0.1", &["--format=pax", "--sparse-version=0.1"]),
    ("1.0", &["--format=pax", "--sparse-version=1.0"]),
];

/// Every way in which holes can lie in a file.
fn files(root: &Path) {
    let long = "n".repeat(150);
    let many: Vec<u64> = (0..60).map(|n| n * 300_000).collect();
    let cases: [(&str, u64, &[u64]); 9] = [
        ("empty", 0, &[]),
        ("nothing-but-a-hole", 10 << 20, &[]),
        ("begins-with-data", 3 << 20, &[0]),
        ("begins-with-a-hole", (3 << 20) + 11, &[3 << 20]),
        ("ends-with-a-hole", (5 << 20) + 7, &[1 << 20, 2 << 20]),
        ("both", 6 << 20, &[2 << 20, 4 << 20]),
        // More than a header has room for, and more than a block behind it has.
        ("many-runs", 60 * 300_000, &many),
        ("ends-within-a-block", 60 * 300_000 + 2, &many),
        (&long, 1 << 20, &[500_000]),
    ];
    for (name, size, data) in cases {
        let file = std::fs::File::create(root.join(name)).unwrap();
        file.set_len(size).unwrap();
        for at in data {
            let text = format!("{name} at {at}");
            file.write_all_at(&text.as_bytes()[..text.len().min((size - at) as usize)], *at).unwrap();
        }
    }
    std::fs::write(root.join("dense"), vec![7; 100_000]).unwrap();
    // Of whole seconds: the old format has no others.
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    for entry in walkdir::WalkDir::new(root).contents_first(true) {
        std::fs::File::open(entry.unwrap().path()).unwrap().set_modified(time).unwrap();
    }
}

/// Packs `root` as GNU tar does in this format; `None`, and the reason, without one.
fn packed(bench: &Bench, root: &Path, name: &str, options: &[&str]) -> Option<PathBuf> {
    let version = Command::new("tar").arg("--version").output();
    if !version.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("GNU tar")) {
        crate::testing::skip("no GNU tar");
        return None;
    }
    let path = bench.path(&format!("{name}.tar"));
    let mut tar = Command::new("tar");
    tar.args(["-S", "-c", "--numeric-owner"]).args(options).arg("-f").arg(&path).arg("-C").arg(root).arg(".");
    let out = tar.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(path)
}

#[test]
fn files_that_gnu_tar_stores_without_holes_come_out_whole() {
    let bench = Bench::new();
    let root = bench.make_dir("root");
    files(&root);
    let wanted = of_dir(&root);
    for (name, options) in FORMATS {
        let Some(tar) = packed(&bench, &root, name, options) else { return };
        let length = std::fs::metadata(&tar).unwrap().len();
        assert!(length < 3 << 20, "{name}: it has no holes in it ({length} bytes)");
        let layers = [layer(tar.clone())];
        for (way, source) in [("base", BaseSource::Tar(&tar)), ("layers", BaseSource::Layers(&layers))] {
            let out = bench.make_dir(&format!("{name}-{way}"));
            build_base(source, &out, &bench.scratch()).unwrap();
            let found = differences(&of_image(&out.join(BASE_IMAGE)), &wanted);
            assert!(found.is_empty(), "{name} as {way}:\n{}", found.join("\n"));
        }
    }
}

#[test]
fn all_formats_of_one_tree_are_one_image() {
    let bench = Bench::new();
    let root = bench.make_dir("root");
    files(&root);
    let mut images = Vec::new();
    for (name, options) in FORMATS {
        let Some(tar) = packed(&bench, &root, name, options) else { return };
        let out = bench.make_dir(name);
        build_base(BaseSource::Tar(&tar), &out, &bench.scratch()).unwrap();
        images.push(blake3::hash(&std::fs::read(out.join(BASE_IMAGE)).unwrap()));
    }
    assert!(images.iter().all(|image| *image == images[0]), "{images:?}");
}

#[test]
fn five_gib_of_hole_cost_nothing() {
    use std::os::unix::fs::MetadataExt as _;
    const SIZE: u64 = 5 << 30;
    let bench = Bench::new();
    let root = bench.make_dir("root");
    let file = std::fs::File::create(root.join("large")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"end", SIZE - 3).unwrap();
    for (name, options) in FORMATS {
        let Some(tar) = packed(&bench, &root, name, options) else { return };
        let out = bench.make_dir(name);
        build_base(BaseSource::Tar(&tar), &out, &bench.scratch()).unwrap();
        let image = out.join(BASE_IMAGE);
        let blocks = std::fs::metadata(&image).unwrap().blocks();
        assert!(blocks * 512 < 4 << 20, "{name}: {blocks} blocks");
        let large = Image::open(&image).inode("/large");
        assert_eq!(large.size, SIZE, "{name}");
        // In the guest's file system too, where whoever writes a byte of it copies what is allocated.
        assert!(large.blocks * 512 <= 128 << 10, "{name}: {} blocks", large.blocks);
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn holes_and_runs_of_zeros_are_holes_of_the_image_from_wherever_they_come() {
    let bench = Bench::new();
    let root = bench.make_dir("root");
    let size = (40 << 20) + 5;
    let mut bytes = vec![0_u8; size];
    for at in (0..size).step_by(300_000) {
        bytes[at] = 1;
    }
    std::fs::write(root.join("dense"), &bytes).unwrap();
    std::fs::write(root.join("nothing"), vec![0; 5 << 20]).unwrap();
    let listed = |name: &str| crate::listing::Listed {
        path: name.into(),
        mode: 0o644,
        kind: crate::listing::ListedKind::File {
            size: std::fs::metadata(root.join(name)).unwrap().len(),
            digest: blake3::hash(&std::fs::read(root.join(name)).unwrap()).into(),
        },
    };
    let listing = crate::listing::Listing { entries: vec![listed("dense"), listed("nothing")] };
    let tar = Tar::default().file("dense", &bytes).file("nothing", &vec![0; 5 << 20]).end();
    let tar = bench.write("plain.tar", tar);
    let packed = zstd::stream::encode_all(std::fs::File::open(&tar).unwrap(), 1).unwrap();
    let packed = bench.write("packed.tar.zst", packed);
    let mut zip = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in [("dense", &bytes[..]), ("nothing", &vec![0; 5 << 20])] {
        zip.start_file(name, ::zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut zip, bytes).unwrap();
    }
    let zip = bench.write("packed.zip", zip.finish().unwrap().into_inner());
    let ways = [
        ("directory", BaseSource::Dir { root: &root, listing: &listing }),
        ("tar", BaseSource::Tar(&tar)),
        ("packed tar", BaseSource::Tar(&packed)),
        ("zip", BaseSource::Tar(&zip)),
    ];
    for (way, source) in ways {
        let out = bench.make_dir(way);
        build_base(source, &out, &bench.scratch()).unwrap();
        let image = Image::open(&out.join(BASE_IMAGE));
        assert!(image.read("/dense") == bytes, "{way}");
        let (dense, nothing) = (image.inode("/dense").blocks * 512, image.inode("/nothing"));
        // 140 bytes that are not zero, 64 KiB each.
        assert!(dense > 8 << 20 && dense < 10 << 20, "{way}: {dense}");
        assert_eq!((nothing.size, nothing.blocks), (5 << 20, 0), "{way}");
    }
}

#[test]
fn an_image_is_built_where_openat2_is_refused() {
    use nix::errno::Errno;
    let bench = Bench::new();
    let root = bench.make_dir("root");
    std::fs::create_dir(root.join("dir")).unwrap();
    std::fs::write(root.join("dir/small"), "small").unwrap();
    std::fs::write(root.join("dir/large"), vec![0; 2 << 20]).unwrap();
    let mut images = Vec::new();
    let mut build = |name: &str| {
        let store =
            crate::store::Store::open(crate::home::Home::new(bench.path(&format!("home-{name}")))).unwrap();
        let out = bench.make_dir(name);
        let options = crate::store::scan::ScanOptions::default();
        let scanned = crate::store::scan::scan_dir(&store, &root, &options).unwrap();
        build_base(BaseSource::Dir { root: &root, listing: &scanned.listing }, &out, &bench.make_dir("tmp"))
            .unwrap();
        let image = out.join(BASE_IMAGE);
        assert_eq!(Image::open(&image).read("/dir/small"), b"small");
        images.push(blake3::hash(&std::fs::read(image).unwrap()));
    };
    build("plain");
    for (name, errno) in [("old", Errno::ENOSYS), ("refused", Errno::EPERM)] {
        crate::testing::refused::without(&[libc::SYS_openat2], errno, || build(name));
    }
    assert!(images.iter().all(|image| *image == images[0]));
}

/// A header of type `S` with these runs, those past four in blocks behind it, and what it claims of itself.
fn old(runs: &[(u64, u64)], size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::GNUSparse);
    header.set_path("f").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(data.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    let put = |slot: &mut ::tar::GnuSparseHeader, run: &(u64, u64)| {
        slot.set_offset(run.0);
        slot.set_length(run.1);
    };
    gnu.sparse.iter_mut().zip(runs).for_each(|(slot, run)| put(slot, run));
    let rest = runs.get(4..).unwrap_or_default();
    gnu.set_is_extended(!rest.is_empty());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    for (n, chunk) in rest.chunks(21).enumerate() {
        let mut block = ::tar::GnuExtSparseHeader::new();
        block.sparse_mut().iter_mut().zip(chunk).for_each(|(slot, run)| put(slot, run));
        block.set_is_extended((n + 1) * 21 < rest.len());
        bytes.extend_from_slice(block.as_bytes());
    }
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

/// The same in the formats of PAX.
fn pax(version: &str, runs: &[(u64, u64)], size: u64, data: &[u8]) -> Vec<u8> {
    let number = |n: u64| n.to_string().into_bytes();
    let list = |between: &str| {
        let all: Vec<String> =
            runs.iter().flat_map(|(at, length)| [at.to_string(), length.to_string()]).collect();
        all.join(between)
    };
    let mut records: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut contents = Vec::new();
    match version {
        "0.0" => {
            records.push(("GNU.sparse.size", number(size)));
            records.push(("GNU.sparse.numblocks", number(runs.len() as u64)));
            for (at, length) in runs {
                records.push(("GNU.sparse.offset", number(*at)));
                records.push(("GNU.sparse.numbytes", number(*length)));
            }
        }
        "0.1" => {
            records.push(("GNU.sparse.size", number(size)));
            records.push(("GNU.sparse.name", b"f".to_vec()));
            records.push(("GNU.sparse.map", list(",").into_bytes()));
        }
        _ => {
            records.push(("GNU.sparse.major", number(1)));
            records.push(("GNU.sparse.minor", number(0)));
            records.push(("GNU.sparse.name", b"f".to_vec()));
            records.push(("GNU.sparse.realsize", number(size)));
            contents = format!("{}\n{}\n", runs.len(), list("\n")).into_bytes();
            contents.resize(contents.len().next_multiple_of(512), 0);
        }
    }
    contents.extend_from_slice(data);
    let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, &value[..])).collect();
    Tar::default().pax(&records).file("GNUSparseFile.0/f", &contents).end()
}

type Runs<'a> = &'a [(u64, u64)];
/// Makes a tar of runs and a size.
type Make<'a> = &'a dyn Fn(Runs<'_>, u64) -> Vec<u8>;

fn refused(tar: &[u8]) -> Error {
    let bench = Bench::new();
    let (path, out) = (bench.write("hostile.tar", tar), bench.make_dir("out"));
    let error = build_base(BaseSource::Tar(&path), &out, &bench.scratch()).unwrap_err();
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 0, "{error}");
    error
}

#[test]
fn a_map_is_believed_only_if_it_is_about_the_bytes_that_are_there() {
    const DATA: [u8; 1024] = [9; 1024];
    let good: (Runs<'_>, u64) = (&[(512, 512), (2048, 512), (9000, 0)], 9000);
    let cases: [(&str, Runs<'_>, u64, &str); 9] = [
        ("beyond the end", &[(0, 512), (8500, 512)], 9000, "beyond its end"),
        ("far beyond", &[(0, 512), (u64::MAX >> 1, 512)], 9000, "beyond its end"),
        ("overlapping", &[(0, 512), (511, 512)], 9000, "overlap"),
        ("backwards", &[(2048, 512), (0, 512)], 9000, "out of order"),
        ("the same twice", &[(0, 512), (0, 512)], 9000, "overlap"),
        ("more than there is", &[(0, 512), (512, 1024)], 9000, "more bytes"),
        ("less than there is", &[(0, 512)], 9000, "fewer bytes"),
        ("no run at all", &[], 9000, "fewer bytes"),
        ("a run that ends within a block", &[(0, 500), (1024, 524)], 9000, "within a block"),
    ];
    let make: [(&str, Make<'_>); 4] = [
        ("old", &|runs, size| old(runs, size, &DATA)),
        ("0.0", &|runs, size| pax("0.0", runs, size, &DATA)),
        ("0.1", &|runs, size| pax("0.1", runs, size, &DATA)),
        ("1.0", &|runs, size| pax("1.0", runs, size, &DATA)),
    ];
    for (format, make) in make {
        let bench = Bench::new();
        let (path, out) = (bench.write("good.tar", make(good.0, good.1)), bench.make_dir("out"));
        build_base(BaseSource::Tar(&path), &out, &bench.scratch()).unwrap();
        let image = Image::open(&out.join(BASE_IMAGE));
        let name = if format == "0.0" { "/GNUSparseFile.0/f" } else { "/f" };
        let mut wanted = vec![0; 9000];
        wanted[512..1024].fill(9);
        wanted[2048..2560].fill(9);
        assert_eq!(image.read(name), wanted, "{format}");
        for (what, runs, size, says) in cases {
            if format == "0.1" && runs.is_empty() {
                continue; // An empty list is no list there.
            }
            let error = refused(&make(runs, size));
            assert_eq!(error.code(), "archive.sparse", "{what} in {format}: {error}");
            assert!(error.to_string().contains(says), "{what} in {format}: {error}");
        }
        // A bomb: a few bytes that declare more than anything may unpack to.
        assert_eq!(refused(&make(&[(0, 1024)], 33 << 30)).code(), "archive.too-big", "{format}");
    }
    let error = refused(&old(&[(0, 1024)], u64::MAX, &DATA));
    assert_eq!(error.code(), "archive.sparse", "{error}");
}

#[test]
fn maps_that_are_no_maps_are_refused() {
    let with =
        |records: &[(&str, &[u8])], contents: &[u8]| Tar::default().pax(records).file("f", contents).end();
    let one: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9000")];
    let block = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(512, 0);
        bytes
    };
    for contents in ["", "x\n", "1\n", "1\n0\n", "1\n0\n-1\n", "1\n0\n99999999999999999999\n", "2\n0\n0\n"] {
        let error = refused(&with(&one, &block(contents)));
        assert_eq!(error.code(), "archive.sparse", "{contents:?}: {error}");
    }
    // A count that nothing follows takes no memory.
    let error = refused(&with(&one, &block("9999999999\n")));
    assert_eq!(error.code(), "archive.too-many-entries", "{error}");
    assert_eq!(refused(&with(&one, b"0\n")).code(), "archive.sparse", "not a whole block");

    let records: [&[(&str, &[u8])]; 7] = [
        &[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")],
        &[("GNU.sparse.numblocks", b"0")],
        &[
            ("GNU.sparse.size", b"10"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"0"),
        ],
        &[("GNU.sparse.size", b"10"), ("GNU.sparse.offset", b"0")],
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")],
        &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"1"),
            ("GNU.sparse.map", b"0,1"),
        ],
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"1"), ("GNU.sparse.realsize", b"1")],
    ];
    for records in records {
        let error = refused(&with(records, &block("0\n")));
        assert_eq!(error.code(), "archive.sparse", "{records:?}: {error}");
    }
    let malformed: [&[(&str, &[u8])]; 6] = [
        &[("GNU.sparse.map", b"0,1,2")],
        &[("GNU.sparse.map", b"0,x")],
        &[("GNU.sparse.map", b"")],
        &[("GNU.sparse.numbytes", b"5")],
        &[("GNU.sparse.offset", b"1"), ("GNU.sparse.offset", b"2")],
        &[("GNU.sparse.future", b"1")],
    ];
    for records in malformed {
        assert_eq!(refused(&with(records, b"")).code(), "archive.damaged", "{records:?}");
    }
    // Only files have holes; and no header speaks for all that follow.
    let dir = Tar::default().pax(&[("GNU.sparse.size", b"0")]).dir("d").end();
    assert_eq!(refused(&dir).code(), "archive.sparse");
    let mut global = Tar::default().pax(&[("GNU.sparse.size", b"9")]).file("f", b"").end();
    global[156] = b'g';
    global[148..156].fill(b' ');
    let sum: u32 = global[..512].iter().map(|b| u32::from(*b)).sum();
    global[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(refused(&global).code(), "archive.damaged");
    // The type of the old format in a header that has no room for its map.
    let plain = Tar::default().raw(b"a", b'S', 0o644, (0, 0), b"", 0, b"").end();
    assert_eq!(refused(&plain).code(), "archive.sparse");
}

#[test]
fn a_map_that_is_cut_off_or_goes_on_for_ever_is_refused() {
    let runs: Vec<(u64, u64)> = (0..40).map(|n| (n * 1024, 512)).collect();
    let whole = old(&runs, 40 * 1024, &[3; 40 * 512]);
    let bench = Bench::new();
    let (path, out) = (bench.write("good.tar", &whole), bench.make_dir("out"));
    build_base(BaseSource::Tar(&path), &out, &bench.scratch()).unwrap();
    let read_back = Image::open(&out.join(BASE_IMAGE)).read("/f");
    assert!(
        read_back.chunks(512).enumerate().all(|(n, chunk)| chunk.iter().all(|b| *b == 3 * (1 - n as u8 % 2)))
    );
    assert_eq!(refused(&whole[..700]).code(), "archive.sparse", "within the first block of the map");
    assert_eq!(refused(&whole[..1200]).code(), "archive.sparse", "within the second");
    assert_eq!(refused(&whole[..9000]).code(), "archive.truncated", "within the contents");
    // Blocks that say nothing but that there is another one.
    let mut idle = ::tar::GnuExtSparseHeader::new();
    idle.set_is_extended(true);
    let mut endless = whole[..512].to_vec();
    (0..1000).for_each(|_| endless.extend_from_slice(idle.as_bytes()));
    assert!(refused(&endless).to_string().contains("empty block"));
}

#[test]
fn the_runs_of_a_map_count_as_entries() {
    let bench = Bench::new();
    let runs: Vec<(u64, u64)> = (0..40).map(|n| (n * 1024, 512)).collect();
    for (name, bytes) in [
        ("old", old(&runs, 40 * 1024, &[3; 40 * 512])),
        ("0.0", pax("0.0", &runs, 40 * 1024, &[3; 40 * 512])),
        ("0.1", pax("0.1", &runs, 40 * 1024, &[3; 40 * 512])),
        ("1.0", pax("1.0", &runs, 40 * 1024, &[3; 40 * 512])),
    ] {
        let tar = bench.write(name, bytes);
        let within = |entries| read(&tar, &bench.scratch(), (0, 0), Limits { entries, ..Limits::default() });
        assert_eq!(within(30).unwrap_err().code(), "archive.too-many-entries", "{name}");
        assert_eq!(within(42).unwrap().len(), 1, "{name}");
    }
}
