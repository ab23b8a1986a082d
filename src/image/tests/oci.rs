//! Facts about the layers of container images: what hides what, and what is refused.

use super::*;
use crate::error::Error;
use crate::image::{BASE_IMAGE, BaseSource, Layer, build_base};
use std::io::Write as _;

fn try_build(layers: Vec<Vec<u8>>) -> Result<(Bench, Image), Error> {
    try_build_with(layers, |_| ())
}

/// As `try_build`, of layers that are changed beforehand.
fn try_build_with(layers: Vec<Vec<u8>>, change: impl Fn(&mut [Layer])) -> Result<(Bench, Image), Error> {
    let bench = Bench::new();
    let write = |(n, bytes)| layer(bench.write(&format!("layer-{n}"), bytes));
    let mut layers: Vec<Layer> = layers.into_iter().enumerate().map(write).collect();
    change(&mut layers);
    let out = bench.make_dir("out");
    let built = build_base(BaseSource::Layers(&layers), &out, &bench.scratch());
    assert_eq!(built.is_ok(), out.join(BASE_IMAGE).exists(), "an image is there if and only if it is good");
    built?;
    let image = Image::open(&out.join(BASE_IMAGE));
    Ok((bench, image))
}

fn build(layers: Vec<Tar>) -> (Bench, Image) {
    try_build(layers.into_iter().map(Tar::end).collect()).unwrap()
}

fn refused(layers: Vec<Tar>) -> Error {
    try_build(layers.into_iter().map(Tar::end).collect()).map(|_| ()).unwrap_err()
}

#[test]
fn a_whiteout_hides_what_is_below_and_only_that() {
    let (_bench, image) = build(vec![
        Tar::default().dir("d/").file("d/a", b"low").file("d/b", b"low").dir("gone/").file("gone/x", b""),
        Tar::default()
            // The new file of this layer stays, before or after its whiteout.
            .file("d/a", b"high")
            .file("d/.wh.a", b"")
            .file("d/.wh.b", b"")
            .file("d/b", b"high")
            .file(".wh.gone", b"")
            .file(".wh.never-was", b"")
            .file("no/such/.wh.dir", b""),
    ]);
    assert_eq!(image.names("/d"), ["a", "b"]);
    assert_eq!((image.read("/d/a"), image.read("/d/b")), (b"high".to_vec(), b"high".to_vec()));
    assert_eq!(image.names("/"), ["d", "lost+found"], "nothing of a whiteout stays");
}

#[test]
fn an_opaque_directory_hides_all_that_is_below() {
    let (_bench, image) = build(vec![
        Tar::default().dir("d/").file("d/a", b"low").dir("d/e/").file("d/e/f", b"low").file("kept", b""),
        Tar::default()
            .raw(b"d/", b'5', 0o700, (5, 6), b"", 0, b"")
            .file("d/new", b"1")
            .file("d/.wh..wh..opq", b"")
            .file("d/later", b"2")
            .dir(".wh..wh.plnk/")
            .file(".wh..wh.plnk/1.2", b""),
    ]);
    assert_eq!(image.names("/d"), ["later", "new"]);
    assert_eq!(image.owner("/d"), (0o40700, 5, 6));
    assert_eq!(image.names("/"), ["d", "kept", "lost+found"]);
}

#[test]
fn a_whiteout_in_a_directory_that_replaces_a_link_leaves_alone_what_is_behind_the_link() {
    let (_bench, image) = build(vec![
        Tar::default().dir("real/").file("real/x", b"").file("real/y", b"").symlink("link", "real"),
        // What overlayfs makes of `rm link; mkdir link`.
        Tar::default()
            .dir("link/")
            .file("link/.wh..wh..opq", b"")
            .file("link/.wh.x", b"")
            .file("link/z", b""),
    ]);
    assert_eq!(image.names("/real"), ["x", "y"]);
    assert_eq!(image.names("/link"), ["z"]);
    // Through a link that stays, it hides what is behind it.
    let (_bench, image) = build(vec![
        Tar::default().dir("real/").file("real/x", b"").file("real/y", b"").symlink("link", "real"),
        Tar::default().file("link/.wh.x", b""),
    ]);
    assert_eq!(image.names("/real"), ["y"]);
}

#[test]
fn a_hidden_directory_keeps_what_its_own_layer_puts_there() {
    let (_bench, image) = build(vec![
        Tar::default().dir("d/").dir("d/e/").file("d/e/low", b"").file("d/low", b""),
        Tar::default().dir("d/").dir("d/e/").hard_link("d/e/high", "d/low").file(".wh.d", b""),
    ]);
    assert_eq!(image.names("/d"), ["e"]);
    assert_eq!(image.names("/d/e"), ["high"]);
}

#[test]
fn files_and_directories_replace_each_other() {
    let (_bench, image) = build(vec![
        Tar::default().file("f", b"file").dir("d/").file("d/x", b"").symlink("l", "d").symlink("m", "d"),
        Tar::default().dir("f/").file("f/in", b"1").file("d", b"now a file").dir("l/").file("l/own", b"2"),
        Tar::default().symlink("d", "f").symlink("m", "l"),
    ]);
    assert_eq!(image.read("/f/in"), b"1");
    assert_eq!(image.target("/d"), "f");
    assert_eq!(image.names("/l"), ["own"], "a directory takes a link's place");
    assert_eq!(image.target("/m"), "l");
}

#[test]
fn a_directory_that_stays_takes_the_upper_layers_metadata_and_keeps_its_contents() {
    let (_bench, image) = build(vec![
        Tar::default()
            .pax(&[("SCHILY.xattr.user.low", b"1")])
            .raw(b"d/", b'5', 0o755, (1, 1), b"", 0, b"")
            .file("d/x", b"x"),
        Tar::default()
            .pax(&[("SCHILY.xattr.user.high", b"\n=2")])
            .raw(b"d", b'5', 0o2711, (2, 3), b"", 0, b"")
            .raw(b"./", b'5', 0o711, (7, 8), b"", 0, b""),
    ]);
    assert_eq!(image.owner("/d"), (0o42711, 2, 3));
    assert_eq!(image.xattrs("/d"), [("user.high".to_owned(), b"\n=2".to_vec())]);
    assert_eq!(image.read("/d/x"), b"x");
    assert_eq!(image.owner("/"), (0o40711, 7, 8));
}

#[test]
fn hard_links_reach_into_lower_layers_and_survive_the_loss_of_their_first_name() {
    let (_bench, image) = build(vec![
        Tar::default().dir("usr/").dir("usr/bin/").symlink("bin", "usr/bin").raw(
            b"usr/bin/tool",
            b'0',
            0o4755,
            (0, 0),
            b"",
            4,
            b"tool",
        ),
        Tar::default().hard_link("usr/bin/alias", "bin/tool").hard_link("again", "usr/bin/alias"),
        Tar::default().file("usr/bin/.wh.tool", b""),
    ]);
    assert!(!image.has("/usr/bin/tool"));
    assert_eq!(image.number("/again"), image.number("/usr/bin/alias"));
    assert_eq!(image.inode("/again").links_count, 2);
    assert_eq!(image.owner("/again").0, 0o104755);
    // A new file under one name leaves the other alone.
    let (_bench, image) =
        build(vec![Tar::default().file("a", b"old").hard_link("b", "a"), Tar::default().file("a", b"new")]);
    assert_eq!((image.read("/a"), image.read("/b")), (b"new".to_vec(), b"old".to_vec()));
}

#[test]
fn of_two_entries_the_last_one_wins() {
    let (_bench, image) = build(vec![
        Tar::default()
            .file("a", b"first")
            .file("a", b"second")
            .dir("d/")
            .file("d/x", b"")
            .raw(b"d/", b'5', 0o700, (0, 0), b"", 0, b"")
            .dir("e/")
            .file("e/x", b"")
            .file("e", b"a file at last"),
    ]);
    assert_eq!(image.read("/a"), b"second");
    assert_eq!(image.owner("/d").0, 0o40700);
    assert_eq!(image.names("/d"), ["x"]);
    assert_eq!(image.read("/e"), b"a file at last");
}

#[test]
fn entries_go_through_links_and_cannot_leave_the_root() {
    let (_bench, image) = build(vec![
        Tar::default().dir("usr/").dir("usr/lib/").symlink("lib", "/usr/lib").symlink("far", "../../etc"),
        Tar::default().file("lib/x.so", b"x").dir("lib/sub/").file("lib/sub/y", b"y"),
    ]);
    assert_eq!((image.read("/usr/lib/x.so"), image.read("/usr/lib/sub/y")), (b"x".to_vec(), b"y".to_vec()));
    assert_eq!(image.target("/lib"), "/usr/lib");
    assert_eq!(image.target("/far"), "../../etc", "a link is only text");
    // Above the root is the root.
    let (_bench, image) = build(vec![
        Tar::default().file("etc/a", b"a").file("etc/b", b"").symlink("far", "../../etc"),
        Tar::default().file("far/new", b"new").file("far/.wh.b", b"").hard_link("same", "far/a"),
    ]);
    assert_eq!(image.names("/etc"), ["a", "new"]);
    assert_eq!(image.number("/same"), image.number("/etc/a"));

    for (layers, code) in [
        (vec![Tar::default().symlink("l", "l").file("l/x", b"")], "image.link-loop"),
        (vec![Tar::default().file("f", b""), Tar::default().file("f/x", b"")], "archive.through-file"),
        (vec![Tar::default().file("../x", b"")], "archive.parent-path"),
        (vec![Tar::default().file("/../x", b"")], "archive.parent-path"),
        (vec![Tar::default().file("a/../../.wh.x", b"")], "archive.parent-path"),
        (vec![Tar::default().hard_link("a", "../b")], "archive.hard-link"),
        (vec![Tar::default().hard_link("a", "nothing")], "archive.hard-link"),
        (vec![Tar::default().dir("d/").hard_link("a", "d")], "archive.hard-link"),
        (vec![Tar::default().file(".wh.", b"")], "archive.whiteout"),
        (vec![Tar::default().dir("d/").file("d/.wh...", b"")], "archive.whiteout"),
        (vec![Tar::default().file("lost+found/x", b"")], "image.reserved-name"),
        (vec![Tar::default().raw(b"w", b'3', 0o644, (0, 0), b"", 0, b"0:0")], "archive.unsupported"),
        (vec![Tar::default().raw(b"a", b'0', 0o644, (0, 0), b"", 1 << 32, b"x")], "archive.truncated"),
    ] {
        assert_eq!(refused(layers).code(), code);
    }
}

#[test]
fn names_may_begin_at_the_root() {
    let (_bench, image) = build(vec![
        Tar::default()
            .raw(b"/", b'5', 0o711, (0, 0), b"", 0, b"")
            .dir("/etc/")
            .file("//etc/x", b"x")
            .file("/gone", b""),
        Tar::default().hard_link("/etc/y", "/etc/x").file("/.wh.gone", b""),
    ]);
    assert_eq!(image.names("/"), ["etc", "lost+found"]);
    assert_eq!(image.owner("/").0, 0o40711);
    assert_eq!(image.number("/etc/x"), image.number("/etc/y"));
}

#[test]
fn devices_modes_and_attributes_survive() {
    let (_bench, image) = build(vec![
        Tar::default()
            .raw(b"null", b'3', 0o666, (0, 0), b"", 0, b"1:3")
            .raw(b"disk", b'4', 0o660, (0, 6), b"", 0, b"8:300")
            .raw(b"pipe", b'6', 0o600, (0, 0), b"", 0, b"")
            .raw(b"none", b'0', 0, (1000, 1000), b"", 2, b"no")
            .pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0")])
            .raw(b"ping", b'0', 0o755, (0, 0), b"", 1, b"p")
            .dir("lost+found/"),
    ]);
    assert_eq!(image.owner("/null").0, 0o20666);
    assert_eq!(image.owner("/disk"), (0o60660, 0, 6));
    assert_eq!(image.owner("/pipe").0, 0o10600);
    assert_eq!(image.owner("/none"), (0o100000, 1000, 1000));
    assert_eq!(image.xattrs("/ping")[0].0, "security.capability");
}

#[test]
fn layers_may_be_compressed_each_in_its_own_way() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&Tar::default().file("a", b"1").file("b", b"1").end()).unwrap();
    let zstd = zstd::encode_all(&Tar::default().file("b", b"2").file("c", b"2").end()[..], 1).unwrap();
    let plain = Tar::default().file("c", b"3").end();
    let (_bench, image) = try_build(vec![gzip.finish().unwrap(), zstd, plain]).unwrap();
    let all = [image.read("/a"), image.read("/b"), image.read("/c")];
    assert_eq!(all, [b"1".to_vec(), b"2".to_vec(), b"3".to_vec()]);
}

#[test]
fn a_layer_that_unpacks_to_other_bytes_than_its_image_says_is_refused() {
    let tar = Tar::default().file("a", b"1").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let all = vec![gzip.finish().unwrap(), zstd::encode_all(&tar[..], 1).unwrap(), tar];
    for wrong in 0..all.len() {
        let other = format!("sha256:{}", "1".repeat(64));
        let change = |layers: &mut [Layer]| layers[wrong].diff_id = Some(other.clone());
        let error = try_build_with(all.clone(), change).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), "oci.diff-id", "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("layer-{wrong} unpacks to sha256:")), "{text}");
        assert!(text.ends_with(&format!("says {other}")), "{text}");
        assert!(error.help_text().is_some());
    }
    try_build(all).unwrap();
}

#[test]
fn what_is_no_layer_or_broken_off_is_an_error() {
    let tar = Tar::default().file("a", &[7; 5000]).end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    for (layer, code) in [
        (b"<html>not found</html>".to_vec(), "archive.unknown-format"),
        (tar[..1024].to_vec(), "archive.truncated"),
        (gzip[..gzip.len() - 9].to_vec(), "archive.damaged"),
    ] {
        assert_eq!(try_build(vec![Tar::default().end(), layer]).map(|_| ()).unwrap_err().code(), code);
    }
}

#[test]
fn all_layers_together_are_held_to_one_limit() {
    use crate::image::archive::Limits;
    let bench = Bench::new();
    let bytes = |n: u32| {
        zstd::encode_all(&Tar::default().file(&format!("f{n}"), &[0; 1 << 20]).end()[..], 1).unwrap()
    };
    let layers: Vec<Layer> = (0..4).map(|n| layer(bench.write(&n.to_string(), bytes(n)))).collect();
    let build = |limits| crate::image::oci::assemble(&layers, &bench.scratch(), limits).map(|_| ());
    let error = build(Limits { total: 3 << 20, entries: 100 }).unwrap_err();
    assert_eq!(error.code(), "archive.too-big");
    let error = build(Limits { total: 1 << 30, entries: 3 }).unwrap_err();
    assert_eq!(error.code(), "archive.too-many-entries");
    build(Limits { total: 5 << 20, entries: 4 }).unwrap();
}

#[test]
fn equal_layers_are_equal_images_in_whatever_order_they_are_read() {
    let layers: Vec<Vec<u8>> = (0..12)
        .map(|n| {
            let big = vec![n as u8; 1000 << (n % 7)];
            let tar = Tar::default().file(&format!("f{n}"), &big).file("all", &big[..10]);
            if n % 2 == 0 { zstd::encode_all(&tar.end()[..], 1).unwrap() } else { tar.end() }
        })
        .collect();
    let digest = || {
        let (bench, _) = try_build(layers.clone()).unwrap();
        blake3::hash(&std::fs::read(bench.path("out").join(BASE_IMAGE)).unwrap())
    };
    let first = digest();
    assert!((0..5).all(|_| digest() == first));
}
