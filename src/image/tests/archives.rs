//! Facts about archives: what survives, and what is refused.

use super::*;
use crate::error::Error;
use crate::image::archive::{self, Limits};
use crate::image::{WORKLOAD_IMAGE, WorkloadItem, WorkloadSource, build_workload};
use std::io::Write as _;
use zip::write::SimpleFileOptions;

/// Builds a layer out of one archive at `to`.
fn build(bench: &Bench, archive: &Path, to: &str) -> Result<Image, Error> {
    let out = bench.make_dir("out");
    let item = WorkloadItem { source: WorkloadSource::Archive(archive), to, owner: (7, 8) };
    let image = out.join(WORKLOAD_IMAGE);
    let _ = std::fs::remove_file(&image);
    let built = build_workload(&[item], &bench.empty_index(), &out, &bench.scratch());
    assert_eq!(image.exists(), built.is_ok(), "an image exists exactly when it was built");
    built.map(|_| Image::open(&image))
}

#[track_caller]
fn refused(archive: impl AsRef<[u8]>, code: &str) -> Error {
    let bench = Bench::new();
    let path = bench.write("a.tar", archive);
    let Err(error) = build(&bench, &path, "/app") else { panic!("accepted") };
    assert_eq!(error.code(), code, "{error}: {:?}", std::error::Error::source(&error));
    assert_eq!(std::fs::read_dir(bench.path("out")).unwrap().count(), 0, "nothing is left behind");
    assert_eq!(std::fs::read_dir(bench.path("scratch")).unwrap().count(), 0, "nothing is left behind");
    error
}

fn corpus() -> Tar {
    Tar::default()
        .raw(b"./", b'5', 0o750, (1000, 1001), b"", 0, b"")
        .raw(b"secret", b'0', 0o000, (12, 34), b"", 3, b"abc")
        .raw(b"setuid", b'0', 0o4755, (0, 0), b"", 1, b"x")
        .dir("empty/")
        .raw(b"sticky/", b'5', 0o1777, (0, 0), b"", 0, b"")
        .symlink("link", "../usr/bin/env")
        .hard_link("same", "./secret")
        .raw(b"null", b'3', 0o666, (0, 0), b"", 0, b"1:3")
        .raw(b"disk", b'4', 0o660, (0, 6), b"", 0, b"259:70000")
        .raw(b"pipe", b'6', 0o600, (5, 5), b"", 0, b"")
        .pax(&[("SCHILY.xattr.user.note", b"a\nb\0c"), ("uid", b"70000"), ("mtime", b"1600000000.25")])
        .file("noted", b"n")
        .file("big/über", &vec![7; 300_000])
}

#[test]
fn everything_a_tar_says_survives() {
    let bench = Bench::new();
    let path = bench.write("a.tar", corpus().end());
    let image = build(&bench, &path, "/app").unwrap();
    assert_eq!(image.owner("/app"), (0o040750, 1000, 1001));
    assert_eq!(image.owner("/app/secret"), (0o100000, 12, 34));
    assert_eq!(image.read("/app/secret"), b"abc");
    assert_eq!(image.owner("/app/setuid"), (0o104755, 0, 0));
    assert_eq!(image.names("/app/empty"), [""; 0]);
    assert_eq!(image.owner("/app/sticky"), (0o041777, 0, 0));
    assert_eq!(image.target("/app/link"), "../usr/bin/env");
    assert_eq!(image.number("/app/same"), image.number("/app/secret"));
    assert_eq!(image.inode("/app/secret").links_count, 2);
    assert_eq!(image.inode("/app/null").dev_numbers(), Some((1, 3)));
    assert_eq!(image.inode("/app/disk").dev_numbers(), Some((259, 70000)));
    assert_eq!(image.owner("/app/disk"), (0o060660, 0, 6));
    assert_eq!(image.owner("/app/pipe"), (0o010600, 5, 5));
    assert_eq!(image.owner("/app/noted"), (0o100644, 70000, 0));
    assert_eq!(image.xattrs("/app/noted"), [("user.note".to_owned(), b"a\nb\0c".to_vec())]);
    let noted = image.inode("/app/noted");
    assert_eq!(Inode::timestamp(noted.mtime, noted.mtime_extra), (1_600_000_000, 250_000_000));
    assert_eq!(image.inode("/app/secret").mtime, 0o14000000000u64 as u32);
    assert_eq!(image.inode("/app/big").mode, 0o040755);
}

#[test]
fn debugfs_agrees_about_owners_and_modes() {
    if tool("debugfs").is_none() {
        return;
    }
    let bench = Bench::new();
    let path = bench.write("a.tar", corpus().end());
    build(&bench, &path, "/app").unwrap();
    let stat = |file: &str| {
        let image = bench.path("out").join(WORKLOAD_IMAGE);
        let out = tool("debugfs").unwrap().args(["-R", &format!("stat {file}")]).arg(image).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    for (file, said) in [
        ("/app/secret", &["Mode:  0000", "User:    12", "Group:    34", "Links: 2"][..]),
        ("/app/setuid", &["Type: regular", "Mode:  04755"]),
        ("/app/sticky", &["Type: directory", "Mode:  01777"]),
        ("/app/link", &["Fast link dest: \"../usr/bin/env\""]),
        ("/app/null", &["Type: character special", "01:03"]),
        ("/app/disk", &["Type: block special", "259:70000"]),
        ("/app/noted", &["User: 70000", "user.note (5)"]),
    ] {
        let text = stat(file);
        for said in said {
            assert!(text.contains(said), "{file}: {said:?} is not in\n{text}");
        }
    }
}

#[test]
fn every_compression_gives_the_same_image() {
    let bench = Bench::new();
    let tar = corpus().end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&tar).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&tar).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(&tar).unwrap();
    let mut images = Vec::new();
    for (name, bytes) in [
        ("a.tar", tar.clone()),
        ("a.tar.gz", gzip.finish().unwrap()),
        ("a.tar.xz", xz.finish().unwrap()),
        ("a.tar.zst", zstd::encode_all(&tar[..], 1).unwrap()),
        ("a.tar.bz2", bzip2.finish().unwrap()),
        ("a.tar.lz4", lz4.finish().unwrap()),
    ] {
        build(&bench, &bench.write(name, bytes), "/app").unwrap();
        images.push(blake3::hash(&std::fs::read(bench.path("out").join(WORKLOAD_IMAGE)).unwrap()));
    }
    assert!(images.iter().all(|image| *image == images[0]));
}

#[test]
fn what_is_no_archive_is_told_by_what_it_is() {
    let bench = Bench::new();
    let refused = |at: usize, magic: &[u8], said: &str| {
        let mut bytes = vec![0x11; 0x11000];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        let Err(error) = build(&bench, &bench.write("x.tar", bytes), "/app") else { panic!("{said}: built") };
        assert_eq!(error.code(), "archive.unknown-format");
        assert!(error.help_text().unwrap().contains(said), "{error:?}");
    };
    refused(0, b"hsqs", "unsquashfs");
    refused(510, b"\x55\xaa", "partitions");
    refused(512, b"EFI PART", "partitions");
    refused(0x10040, b"_BHRfS_M", "btrfs");
    refused(0x8001, b"CD001", "ISO 9660");
    refused(0, b"<html>", "HTML");
    refused(0, b"hello", "gzip, xz, zstd, bzip2 or lz4");
}

#[test]
fn a_zip_keeps_modes_links_and_times() {
    let bench = Bench::new();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let time = zip::DateTime::from_date_and_time(2020, 2, 29, 12, 30, 10).unwrap();
    let options = SimpleFileOptions::default().last_modified_time(time);
    zip.add_directory("dir", options.unix_permissions(0o700)).unwrap();
    zip.start_file("dir/run", options.unix_permissions(0o755)).unwrap();
    zip.write_all(&[b'z'; 100_000]).unwrap();
    let stored = options.compression_method(zip::CompressionMethod::Stored);
    zip.start_file("plain", stored.unix_permissions(0o600)).unwrap();
    zip.write_all(b"stored").unwrap();
    zip.add_symlink("link", "dir/run", options).unwrap();
    let path = bench.write("a.zip", zip.finish().unwrap().into_inner());
    let image = build(&bench, &path, "/app").unwrap();
    assert_eq!(image.owner("/app/dir"), (0o040700, 7, 8));
    assert_eq!(image.owner("/app/dir/run"), (0o100755, 7, 8));
    assert_eq!(image.read("/app/dir/run"), [b'z'; 100_000]);
    assert_eq!(image.owner("/app/plain"), (0o100600, 7, 8));
    assert_eq!(image.read("/app/plain"), b"stored");
    assert_eq!(image.target("/app/link"), "dir/run");
    assert_eq!(image.inode("/app/plain").mtime, 1_582_979_410);
}

fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, data) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let places: Vec<_> = (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
}

#[test]
fn a_zip_member_that_leaves_the_root_is_refused() {
    let mut zip = zip_of(&[("xx/yyyy", b"1")]);
    replace(&mut zip, b"xx/yyyy", b"../yyyy");
    refused(zip, "archive.parent-path");
    let mut zip = zip_of(&[("xx/yyyy", b"1")]);
    replace(&mut zip, b"xx/yyyy", b"/x/yyyy");
    refused(zip, "archive.absolute-path");
}

#[test]
fn a_zip_with_a_name_twice_is_refused() {
    let mut zip = zip_of(&[("name1", b"1"), ("name2", b"2")]);
    replace(&mut zip, b"name2", b"name1");
    refused(zip, "archive.duplicate");
}

#[test]
fn a_zip_that_lies_about_sizes_is_refused() {
    for lie in [9_999u32, 10_001] {
        let mut zip = zip_of(&[("file", &[b'a'; 10_000])]);
        replace(&mut zip, &10_000u32.to_le_bytes(), &lie.to_le_bytes());
        refused(zip, "archive.size-lie");
    }
}

#[test]
fn a_zip_with_damaged_contents_is_refused() {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("file", stored).unwrap();
    zip.write_all(b"contents").unwrap();
    let mut zip = zip.finish().unwrap().into_inner();
    replace(&mut zip, b"contents", b"CONTENTS");
    refused(zip, "archive.size-lie");
}

#[test]
fn absolute_paths_are_refused() {
    refused(Tar::default().file("/etc/passwd", b"x").end(), "archive.absolute-path");
}

#[test]
fn parent_paths_are_refused() {
    refused(Tar::default().file("a/../../b", b"x").end(), "archive.parent-path");
    refused(Tar::default().pax(&[("path", b"../b")]).file("fine", b"x").end(), "archive.parent-path");
}

#[test]
fn what_climbs_above_the_root_stays_there() {
    let bench = Bench::new();
    let tar = Tar::default()
        .file("f", b"f")
        .file("d/../g", b"g")
        // Beneath /app one '..' is the root, two are above it.
        .symlink("up", "../../etc")
        .symlink("rooted", "/../etc")
        .hard_link("same", "../f")
        .hard_link("too", "/d/../../f");
    let image = build(&bench, &bench.write("a.tar", tar.end()), "/app").unwrap();
    assert_eq!(image.names("/app"), ["f", "g", "rooted", "same", "too", "up"]);
    assert_eq!(
        (image.target("/app/up"), image.target("/app/rooted")),
        ("../../etc".into(), "/../etc".into())
    );
    assert_eq!(image.number("/app/same"), image.number("/app/f"));
    assert_eq!(image.number("/app/too"), image.number("/app/f"));
    refused(Tar::default().hard_link("a", "/etc/passwd").end(), "archive.hard-link");
    refused(Tar::default().hard_link("a", "absent").end(), "archive.hard-link");
    refused(Tar::default().dir("d").hard_link("a", "d").end(), "archive.hard-link");
}

#[test]
fn links_of_the_archive_are_no_directories() {
    refused(Tar::default().symlink("a", "/etc").file("a/passwd", b"x").end(), "archive.through-link");
    refused(Tar::default().symlink("a", "b").dir("a/").end(), "archive.through-link");
    refused(Tar::default().file("a", b"x").file("a/b", b"y").end(), "archive.through-file");
}

#[test]
fn what_is_locked_or_cut_short_says_how_to_mend_it() {
    let mut zip = zip_of(&[("a", b"1")]);
    // Bit 0 of the flags, which the member and the directory have both (APPNOTE 4.4.4).
    for (header, flags) in [(b"PK\x03\x04", 6), (b"PK\x01\x02", 8)] {
        let at = zip.windows(4).position(|bytes| bytes == header).unwrap();
        zip[at + flags] |= 1;
    }
    let error = refused(zip, "archive.unsupported");
    assert!(error.to_string().contains("a is encrypted"), "{error}");
    assert!(error.help_text().unwrap().contains("without a password"), "{error:?}");

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&Tar::default().file("a", &[7; 5000]).end()).unwrap();
    let gzip = gzip.finish().unwrap();
    let error = refused(&gzip[..gzip.len() - 9], "archive.damaged");
    assert!(error.help_text().unwrap().contains("cut short"), "{error:?}");
}

#[test]
fn duplicates_are_refused_but_repeated_directories_are_not() {
    refused(Tar::default().file("a", b"1").file("./a", b"2").end(), "archive.duplicate");
    refused(Tar::default().file("a", b"1").symlink("a", "b").end(), "archive.duplicate");
    refused(Tar::default().dir("a").raw(b"a", b'5', 0o700, (0, 0), b"", 0, b"").end(), "archive.duplicate");
    refused(Tar::default().dir("a").file("a", b"").end(), "archive.duplicate");
    let bench = Bench::new();
    let path = bench.write("a.tar", Tar::default().dir("a").dir("./a/").end());
    build(&bench, &path, "/app").unwrap();
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    refused(Tar::default().raw(b"a", b'0', 0o644, (0, 0), b"", 5000, b"short").end(), "archive.truncated");
    refused(Tar::default().raw(b"a", b'5', 0o755, (0, 0), b"", 3, b"abc").end(), "archive.size-lie");
    refused(Tar::default().raw(b"a/", b'0', 0o755, (0, 0), b"", 3, b"abc").end(), "archive.size-lie");
    refused(Tar::default().raw(b"a", b'2', 0o755, (0, 0), b"b", 3, b"abc").end(), "archive.size-lie");
    refused(
        Tar::default().pax(&[("size", b"18446744073709551615")]).file("a", b"x").end(),
        "archive.truncated",
    );
    let whole = Tar::default().file("a", &[1; 2000]).end();
    refused(&whole[..1000], "archive.truncated");
    refused(&whole[..700], "archive.truncated");
}

#[test]
fn fields_that_are_left_blank_are_zero_and_nonsense_is_refused() {
    let with = |blank: &[u8]| {
        let mut tar = Tar::default().file("a", b"x").end();
        for field in [100..108, 108..116, 116..124, 136..148] {
            let length = field.len();
            tar[field].copy_from_slice(&blank.repeat(12)[..length]);
        }
        tar[148..156].fill(b' ');
        let sum: u32 = tar[..512].iter().map(|b| u32::from(*b)).sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar
    };
    for blank in [b"\0", b" "] {
        let bench = Bench::new();
        let path = bench.write("a.tar", with(blank));
        let image = build(&bench, &path, "/app").unwrap();
        assert_eq!(image.owner("/app/a"), (0o100000, 0, 0));
        assert_eq!(image.inode("/app/a").mtime, 0);
    }
    refused(with(b"x"), "archive.damaged");
}

#[test]
fn names_that_are_not_utf8_are_refused() {
    refused(Tar::default().raw(b"caf\xe9", b'0', 0o644, (0, 0), b"", 0, b"").end(), "archive.name-encoding");
    refused(Tar::default().pax(&[("path", b"a\0b")]).file("a", b"").end(), "archive.name-encoding");
    refused(Tar::default().raw(b"l", b'2', 0o777, (0, 0), b"caf\xe9", 0, b"").end(), "archive.bad-link");
}

#[test]
fn names_that_are_too_long_are_refused() {
    refused(Tar::default().pax(&[("path", &[b'a'; 256])]).file("a", b"").end(), "archive.long-name");
    let deep = "d/".repeat(2100);
    refused(Tar::default().pax(&[("path", deep.as_bytes())]).dir("a").end(), "archive.long-name");
}

#[test]
fn overlay_deletions_are_refused() {
    refused(Tar::default().raw(b"a", b'3', 0o644, (0, 0), b"", 0, b"0:0").end(), "archive.unsupported");
    let opaque = [("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..])];
    refused(Tar::default().pax(&opaque).dir("a").end(), "archive.unsupported");
}

#[test]
fn damage_is_refused() {
    let mut tar = Tar::default().file("first", b"1").file("second", b"2").end();
    tar[1024] ^= 1;
    refused(tar, "archive.damaged");
    refused(b"#!/bin/sh\n", "archive.unknown-format");
    refused(b"\x1f\x8bgarbage", "archive.damaged");
    refused(zstd::encode_all(&[1; 600][..], 1).unwrap(), "archive.damaged");
    refused(Tar::default().pax(&[("path", b"dangling")]).end(), "archive.truncated");
}

#[test]
fn bombs_stop_at_the_limit() {
    let bench = Bench::new();
    let limits = Limits { total: 1 << 20, entries: 10 };
    let read = |bytes: &[u8]| {
        archive::read(&bench.write("a", bytes), &bench.scratch(), (0, 0), limits)
            .map(drop)
            .map_err(|e| e.code())
    };
    let zeros = vec![0; 4 << 20];
    let tar = Tar::default().file("zeros", &zeros).end();
    assert_eq!(read(&tar), Err("archive.too-big"));
    assert_eq!(read(&zstd::encode_all(&tar[..], 1).unwrap()), Err("archive.too-big"));
    assert_eq!(read(&zip_of(&[("zeros", &zeros)])), Err("archive.too-big"));
    let many = (0..11).fold(Tar::default(), |tar, n| tar.dir(&format!("{n}")));
    assert_eq!(read(&many.end()), Err("archive.too-many-entries"));
    assert_eq!(read(&Tar::default().file("small", b"1").end()), Ok(()));
}
