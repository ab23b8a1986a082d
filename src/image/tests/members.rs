//! Facts about taking one file out of an archive.

use super::*;
use crate::error::Error;
use crate::image::extract_member;
use std::io::Write as _;
use zip::write::SimpleFileOptions;

/// Its bytes, and whether it may be executed.
fn take(archive: impl AsRef<[u8]>, member: &str) -> Result<(Vec<u8>, bool), Error> {
    let bench = Bench::new();
    let path = bench.write("archive", archive);
    let out = bench.path("member");
    let taken = extract_member(&path, member, &out, &bench.scratch());
    assert_eq!(std::fs::read_dir(bench.path("scratch")).unwrap().count(), 0, "nothing is left behind");
    taken.map(|executable| (std::fs::read(out).unwrap(), executable))
}

#[track_caller]
fn refused(tar: Tar, member: &str, code: &str) -> Error {
    let error = take(tar.end(), member).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    error
}

/// As a release looks.
fn release() -> Tar {
    Tar::default()
        .dir("./")
        .dir("./release-v1/")
        .raw(b"./release-v1/vmm-v1", b'0', 0o755, (1000, 1000), b"", 7, b"the vmm")
        .file("./release-v1/LICENSE", b"Apache")
        .symlink("./vmm", "release-v1/vmm-v1")
        .symlink("./latest", "/release-v1")
        .symlink("./release-v1/up", "../latest/LICENSE")
        .hard_link("./hard", "./release-v1/LICENSE")
}

#[test]
fn one_file_comes_out_of_every_kind_of_archive() {
    let tar = release().end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&tar).unwrap();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().unix_permissions(0o755);
    zip.start_file("release-v1/vmm-v1", options).unwrap();
    zip.write_all(b"the vmm").unwrap();
    let archives = [
        gzip.finish().unwrap(),
        xz.finish().unwrap(),
        zstd::encode_all(&tar[..], 1).unwrap(),
        zip.finish().unwrap().into_inner(),
        tar,
    ];
    for archive in archives {
        for name in ["release-v1/vmm-v1", "./release-v1/vmm-v1", "release-v1/./vmm-v1"] {
            assert_eq!(take(&archive, name).unwrap(), (b"the vmm".to_vec(), true));
        }
    }
}

#[test]
fn links_are_followed_within_the_archive() {
    let tar = release().end();
    assert_eq!(take(&tar, "vmm").unwrap(), (b"the vmm".to_vec(), true));
    for link in ["hard", "latest/LICENSE", "release-v1/up", "latest/up"] {
        assert_eq!(take(&tar, link).unwrap(), (b"Apache".to_vec(), false), "{link}");
    }
}

#[test]
fn a_member_that_is_not_there_is_told_with_the_nearest_ones() {
    let error = refused(release(), "vmm-v1", "archive.no-member");
    assert!(error.help_text().unwrap().contains("did you mean release-v1/vmm-v1"), "{:?}", error.help_text());
    let error = refused(release(), "release-v2/vmm-v2", "archive.no-member");
    assert!(error.help_text().unwrap().contains("release-v1/vmm-v1"), "{:?}", error.help_text());
    let error = refused(release(), "something/else/entirely", "archive.no-member");
    assert!(error.help_text().unwrap().contains("it holds"), "{:?}", error.help_text());
    let error = refused(Tar::default().symlink("a", "b"), "a", "archive.no-member");
    assert!(error.to_string().contains("a is a link to b"), "{error}");
    refused(Tar::default(), "a", "archive.no-member");
}

#[test]
fn only_regular_files_are_taken() {
    refused(release(), "release-v1", "archive.no-file");
    refused(release(), "latest", "archive.no-file");
    refused(Tar::default().file("a/b", b""), "a", "archive.no-file");
    refused(Tar::default().raw(b"pipe", b'6', 0o600, (0, 0), b"", 0, b""), "pipe", "archive.no-file");
}

#[test]
fn hostile_archives_give_no_member() {
    let good = || Tar::default().file("a", b"x");
    refused(good().symlink("l", "../../etc/passwd"), "l", "archive.link-escape");
    refused(good().symlink("l", "l2").symlink("l2", "l"), "l", "archive.link-loop");
    refused(good().symlink("d", "d/d"), "d/x", "archive.link-loop");
    refused(good().hard_link("h", "h2").hard_link("h2", "h"), "h", "archive.link-loop");
    refused(good().file("a", b"y"), "a", "archive.duplicate");
    refused(good().file("./a", b"y"), "a", "archive.duplicate");
    refused(good().file("../b", b"y"), "a", "archive.parent-path");
    refused(good().file("/b", b"y"), "a", "archive.absolute-path");
    refused(good().raw(b"b", b'0', 0o644, (0, 0), b"", 1 << 32, b""), "a", "archive.truncated");
    refused(good(), "../a", "archive.parent-path");
    refused(good(), "/a", "archive.absolute-path");
    let error = take(b"neither", "a").unwrap_err();
    assert_eq!(error.code(), "archive.unknown-format");
}

#[test]
fn a_zip_that_lies_about_a_member_gives_none() {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("a", options).unwrap();
    zip.write_all(b"contents").unwrap();
    let mut bytes = zip.finish().unwrap().into_inner();
    let at = bytes.windows(8).position(|w| w == b"contents").unwrap();
    bytes[at] = b'C';
    assert_eq!(take(&bytes, "a").unwrap_err().code(), "archive.size-lie");
}
