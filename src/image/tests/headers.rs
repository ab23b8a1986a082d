//! Facts about tar headers: names and numbers in every dialect, beside what GNU tar makes of the same bytes.

use super::oracle::{Facts, facts};
use super::*;
use crate::error::Error;
use crate::image::{BASE_IMAGE, BaseSource, build_base};

/// A header with any bytes in any field, its checksum made right.
#[derive(Clone)]
struct Raw([u8; 512]);

impl Raw {
    /// A file of no bytes, `magic` being what its dialect has in the 8 bytes at 257.
    fn new(name: &str, magic: &[u8; 8]) -> Raw {
        let mut raw = Raw([0; 512]);
        raw.put(0, name.as_bytes());
        raw.put(100, b"0000644\0");
        raw.put(108, b"0000000\0");
        raw.put(116, b"0000000\0");
        raw.put(124, b"00000000000\0");
        raw.put(136, b"14000000000\0");
        raw.put(156, b"0");
        raw.put(257, magic);
        raw
    }
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fn with(mut self, at: usize, bytes: &[u8]) -> Raw {
        self.put(at, bytes);
        self
    }
    fn tar(mut self) -> Tar {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        Tar(self.0.to_vec())
    }
}

const USTAR: &[u8; 8] = b"ustar\x0000";
const GNU: &[u8; 8] = b"ustar  \0";
const V7: &[u8; 8] = b"\0\0\0\0\0\0\0\0";

fn build(bench: &Bench, tar: &Path) -> Result<Image, Error> {
    let out = bench.path("out");
    let _ = std::fs::remove_dir_all(&out);
    build_base(BaseSource::Tar(tar), &bench.make_dir("out"), &bench.scratch())?;
    Ok(Image::open(&out.join(BASE_IMAGE)))
}

/// All paths of files below a directory of an image.
fn files(image: &Image, dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in image.names(if dir.is_empty() { "/" } else { dir }) {
        let path = format!("{dir}/{name}");
        match image.inode(&path).mode >> 12 {
            0o04 if path != "/lost+found" => found.extend(files(image, &path)),
            0o04 => {}
            _ => found.push(path),
        }
    }
    found
}

/// GNU tar's words, where there is one.
fn gnu_tar(args: &[&str], tar: &Path) -> Option<std::process::Output> {
    let version = Command::new("tar").arg("--version").output().ok()?;
    if !String::from_utf8_lossy(&version.stdout).contains("GNU tar") {
        crate::testing::skip("no GNU tar");
        return None;
    }
    Some(Command::new("tar").args(args).arg(tar).env("LC_ALL", "C").output().unwrap())
}

#[test]
fn names_are_whole_in_every_dialect() {
    let deep = ["d"; 40].join("/");
    let long = "n".repeat(100);
    let path = format!("{deep}/{long}");
    let ustar = |magic: &[u8; 8]| Raw::new(&long, magic).with(345, deep.as_bytes()).tar();
    let pax = Tar::default().pax(&[("path", path.as_bytes())]);
    let mut gnu_name = path.clone().into_bytes();
    gnu_name.push(0);
    let gnu = Tar::default().raw(b"././@LongLink", b'L', 0, (0, 0), b"", gnu_name.len() as u64, &gnu_name);
    let octal_times = |raw: Raw| raw.with(345, b"14000000000\0").with(357, b"14000000000\0");
    let star = Raw::new(&long, USTAR)
        .with(345, deep.as_bytes())
        .with(476, b"14000000000 ")
        .with(488, b"14000000000 ")
        .with(508, b"tar\0");
    let cases: &[(&str, Tar, &str)] = &[
        ("ustar", ustar(USTAR), &path),
        ("ustar without a version", ustar(b"ustar\0\0\0"), &path),
        ("ustar with blanks as its version", ustar(b"ustar\0  "), &path),
        ("ustar with another version", ustar(b"ustar\x0001"), &path),
        ("star", star.tar(), &path),
        ("pax", Tar([pax.0, Raw::new("short", USTAR).tar().0].concat()), &path),
        ("GNU", Tar([gnu.0, Raw::new("short", GNU).tar().0].concat()), &path),
        ("V7 has no prefix", ustar(V7), &long),
        ("neither has what is no magic", ustar(b"USTAR\x0000"), &long),
        ("old GNU has times there", octal_times(Raw::new(&long, GNU)).tar(), &long),
        ("old GNU with nothing there", Raw::new(&long, GNU).tar(), &long),
        ("a name of 100 bytes ends where its field ends", Raw::new(&long, V7).tar(), &long),
        (
            "a prefix that is full",
            Raw::new("f", USTAR).with(345, &[b'p'; 155]).tar(),
            &format!("{}/f", "p".repeat(155)),
        ),
    ];
    let bench = Bench::new();
    for (what, tar, wanted) in cases {
        let tar = bench.write("a.tar", tar.0.iter().chain(&[0; 1024]).copied().collect::<Vec<u8>>());
        let image = build(&bench, &tar).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(files(&image, ""), [format!("/{wanted}")], "{what}");
        if let Some(listed) = gnu_tar(&["-tf"], &tar) {
            assert_eq!(String::from_utf8_lossy(&listed.stdout).trim_end(), *wanted, "GNU tar: {what}");
        }
    }
    // Go before 1.8 wrote a prefix under GNU's magic. Its reader today, and so umoci's, containerd's and podman's,
    // knows that; GNU tar does not.
    let old_go = Raw::new(&long, GNU).with(345, deep.as_bytes());
    let tar = bench.write("a.tar", old_go.tar().end());
    assert_eq!(files(&build(&bench, &tar).unwrap(), ""), [format!("/{path}")]);
    let not_ascii = Raw::new("f", GNU).with(345, "größer/".as_bytes());
    let tar = bench.write("a.tar", not_ascii.tar().end());
    assert_eq!(files(&build(&bench, &tar).unwrap(), ""), ["/f"]);
}

#[test]
fn a_tree_packed_in_every_format_of_gnu_tar_is_that_tree() {
    let bench = Bench::new();
    let root = bench.make_dir("tree");
    let deep = root.join(["directory"; 14].join("/"));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("f".repeat(90)), b"deep").unwrap();
    std::fs::write(root.join("short"), b"short").unwrap();
    if gnu_tar(&["--help"], &root).is_none() {
        return;
    }
    // With the dot and the slash before it as long as V7's field but for its NUL.
    std::fs::write(root.join("n".repeat(97)), b"97").unwrap();
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let tar = bench.path("a.tar");
        let mut args = vec![format!("--format={format}"), "-C".into(), root.display().to_string()];
        if format == "v7" {
            // It has no longer names.
            args.push("--exclude=directory".into());
        }
        args.push("-cf".into());
        let out = Command::new("tar").args(&args).arg(&tar).arg(".").output().unwrap();
        assert!(out.status.success(), "{format}: {}", String::from_utf8_lossy(&out.stderr));
        let image = build(&bench, &tar).unwrap();
        assert_eq!(image.read("/short"), b"short", "{format}");
        assert_eq!(image.read(&format!("/{}", "n".repeat(97))), b"97", "{format}");
        if format != "v7" {
            let path = format!("/{}/{}", ["directory"; 14].join("/"), "f".repeat(90));
            assert_eq!(image.read(&path), b"deep", "{format}");
        }
    }
}

/// What a file is by its header: mode, owner and time, the latter as far as ext4 goes.
type Said = (u32, u32, u32, i64);

fn ours(bench: &Bench, tar: &Path) -> Result<Said, Error> {
    let image = build(bench, tar)?;
    let inode = image.inode("/f");
    Ok((
        u32::from(inode.mode) & 0o7777,
        inode.uid,
        inode.gid,
        mkext4::spec::Inode::timestamp(inode.mtime, inode.mtime_extra).0,
    ))
}

/// The same of what GNU tar unpacks; nothing if it fails.
fn theirs(bench: &Bench, tar: &Path) -> Option<Said> {
    let to = bench.path("unpacked");
    let _ = std::fs::remove_dir_all(&to);
    std::fs::create_dir_all(&to).unwrap();
    let out = gnu_tar(&["--numeric-owner", "-C", to.to_str().unwrap(), "-xpf"], tar).unwrap();
    if !out.status.success() {
        return None;
    }
    let found: Facts = facts(&to);
    let fact = found.get("f")?;
    Some((fact.mode & 0o7777, fact.uid, fact.gid, fact.time.0.clamp(-(1 << 31), (3 << 32) + (1 << 31) - 1)))
}

#[test]
fn numbers_are_what_gnu_tar_takes_them_for_or_refused_where_it_fails() {
    if let Some(why) = super::oracle::lacking() {
        crate::testing::skip(why);
        return;
    }
    const MODE: usize = 100;
    const UID: usize = 108;
    const GID: usize = 116;
    const SIZE: usize = 124;
    const MTIME: usize = 136;
    let binary = |value: i128, length: usize| {
        let mut bytes = value.to_be_bytes()[16 - length..].to_vec();
        bytes[0] |= 0x80;
        bytes
    };
    let fields: Vec<(usize, Vec<u8>)> = [
        (MODE, &b"0000755\0"[..]),
        (MODE, b"0100755\0"),
        (MODE, b"   755 \0"),
        (MODE, b"755\0\0\0\0\0"),
        (MODE, b"00000755"),
        (MODE, b"\x000000755"),
        (MODE, b"0007777 "),
        (MODE, b"0000x55\0"),
        (MODE, b"0000789\0"),
        (UID, b"0001750\0"),
        (UID, b"  1750 \0"),
        (UID, b"77777777"),
        (UID, b"-000001\0"),
        (GID, b"0001750 "),
        (GID, b"junk\0\0\0\0"),
        (MTIME, b"77777777777\0"),
        (MTIME, b"777777777777"),
        (MTIME, b"          1\0"),
        (MTIME, b"00000000001 "),
        (SIZE, b"          0\0"),
        (SIZE, b"0\0\0\0\0\0\0\0\0\0\0\0"),
    ]
    .into_iter()
    .map(|(at, bytes)| (at, bytes.to_vec()))
    .chain([
        (MODE, binary(0o755, 8)),
        (UID, binary(70_000, 8)),
        (UID, binary(i128::from(u32::MAX) - 1, 8)),
        (UID, binary(1 << 32, 8)),
        (UID, binary(-1, 8)),
        (UID, binary(1 << 55, 8)),
        (GID, binary(3_000_000_000, 8)),
        (GID, binary(-5, 8)),
        (MTIME, binary(0, 12)),
        (MTIME, binary(1_600_000_000, 12)),
        (MTIME, binary(-86_400, 12)),
        (MTIME, binary(-1 << 31, 12)),
        (MTIME, binary(20_000_000_000, 12)),
        (MTIME, binary(1 << 70, 12)),
        (MTIME, binary(-1 << 70, 12)),
        (SIZE, binary(0, 12)),
        (SIZE, binary(-1, 12)),
        (SIZE, binary(1 << 70, 12)),
    ])
    .collect();
    let bench = Bench::new();
    for magic in [USTAR, GNU, V7] {
        for (at, bytes) in &fields {
            let tar = bench.write("a.tar", Raw::new("f", magic).with(*at, bytes).tar().end());
            let (found, wanted) = (ours(&bench, &tar), theirs(&bench, &tar));
            match (found, wanted) {
                (Ok(found), Some(wanted)) => assert_eq!(found, wanted, "{at} {bytes:?}"),
                (Err(error), None) => assert_eq!(error.code(), "archive.damaged", "{at} {bytes:?}: {error}"),
                (found, wanted) => panic!("{at} {bytes:?}: {found:?}, and GNU tar has {wanted:?}"),
            }
        }
    }
    for records in [
        &[("uid", &b"70000"[..]), ("gid", b"4294967294")][..],
        &[("uid", b"4294967296")],
        &[("uid", b"-1")],
        &[("gid", b"x")],
        &[("mtime", b"-1.5")],
        &[("mtime", b"-86400")],
        &[("mtime", b"1700000000.123456789123")],
        &[("mtime", b"99999999999999999999")],
        &[("size", b"0")],
        &[("size", b"-1")],
        &[("size", b"99999999999999999999999")],
    ] {
        let tar = Tar([Tar::default().pax(records).0, Raw::new("f", USTAR).tar().0].concat());
        let tar = bench.write("a.tar", tar.end());
        let (found, wanted) = (ours(&bench, &tar), theirs(&bench, &tar));
        match (found, wanted) {
            (Ok(found), Some(wanted)) => assert_eq!(found, wanted, "{records:?}"),
            (Err(error), None) => assert_eq!(error.code(), "archive.damaged", "{records:?}: {error}"),
            (found, wanted) => panic!("{records:?}: {found:?}, and GNU tar has {wanted:?}"),
        }
    }
}

#[test]
fn an_empty_value_of_pax_takes_back_what_was_said_before() {
    let bench = Bench::new();
    let global = Tar::default().raw(b"g", b'g', 0o644, (0, 0), b"", 12, b"12 uid=1234\n");
    let tar = Tar([global.0, Tar::default().file("a", b"").pax(&[("uid", b"")]).file("b", b"").0].concat());
    let image = build(&bench, &bench.write("a.tar", tar.end())).unwrap();
    assert_eq!((image.owner("/a").1, image.owner("/b").1), (1234, 0));
    let tar = Tar::default().pax(&[("path", b""), ("linkpath", b""), ("size", b""), ("mtime", b"")]);
    let image = build(&bench, &bench.write("a.tar", tar.file("own", b"x").end())).unwrap();
    assert_eq!(image.read("/own"), b"x");
}

#[test]
fn a_hard_link_has_no_contents_whatever_its_header_says() {
    let bench = Bench::new();
    // As V7 tars do; no reader looks for these bytes.
    let tar = Tar::default()
        .raw(b"f", b'0', 0o644, (0, 0), b"", 1, b"x")
        .raw(b"hard", b'1', 0o644, (0, 0), b"f", 1, b"")
        .file("last", b"y")
        .end();
    let tar = bench.write("a.tar", tar);
    let image = build(&bench, &tar).unwrap();
    assert_eq!(files(&image, ""), ["/f", "/hard", "/last"]);
    assert_eq!(image.number("/hard"), image.number("/f"));
    if let Some(listed) = gnu_tar(&["-tf"], &tar) {
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "f\nhard\nlast\n");
    }
}

#[test]
fn devices_that_ext4_has_no_bits_for_are_refused() {
    let bench = Bench::new();
    for (numbers, fits) in [("4095:1048575", true), ("4096:0", false), ("0:1048576", false)] {
        let tar = Tar::default().raw(b"d", b'4', 0o600, (0, 0), b"", 0, numbers.as_bytes()).end();
        assert_eq!(build(&bench, &bench.write("a.tar", tar)).is_ok(), fits, "{numbers}");
    }
}
