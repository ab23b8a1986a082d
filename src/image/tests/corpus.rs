//! Makes a tar of everything that a root file system may hold and that tools tend to lose on the way.

use super::Tar;

/// Names in one directory: more than a hash tree's root block points to leaves for.
pub(super) const MANY: usize = 20_000;

/// `cap_net_raw=ep` as the kernel stores it (linux/capability.h, revision 2).
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The corpus in two tars that belong on top of each other: cut behind the first of several names of one file, so that
/// the others are links to a file of the layer below.
pub(super) fn corpus_in_two() -> [Vec<u8>; 2] {
    let mut whole = corpus("");
    let name = b"links/m\0";
    let starts: Vec<usize> =
        (0..whole.len()).step_by(512).filter(|at| whole[*at..].starts_with(name)).collect();
    assert_eq!(starts.len(), 1, "one header has this name");
    // Its contents fill one block.
    let upper = whole.split_off(starts[0] + 1024);
    whole.resize(whole.len() + 1024, 0);
    [whole, upper]
}

/// The tar; every path begins with `prefix`, which is empty or ends in '/'. Nothing in it is sorted.
pub(super) fn corpus(prefix: &str) -> Vec<u8> {
    let mut tar = Corpus { tar: Tar::default(), prefix: prefix.to_owned() };
    let mut above = String::new();
    for part in prefix.split_terminator('/') {
        above = format!("{above}{part}/");
        tar.tar = tar.tar.raw(above.as_bytes(), b'5', 0o755, (0, 0), b"", 0, b"");
    }
    for dir in ["owners", "modes", "links", "farm", "xattrs", "devices", "names", "sizes", "times", "many"] {
        tar.add(dir, b'5', 0o755, (0, 0), &[], b"", b"");
    }
    tar.owners();
    tar.modes();
    tar.links();
    tar.xattrs();
    tar.devices();
    tar.names();
    for size in [0, 1, 4095, 4096, 4097, (1 << 20) + 1] {
        let bytes: Vec<u8> = (0..size).map(|n| (n * 31 % 251) as u8).collect();
        tar.add(&format!("sizes/{size}"), b'0', 0o644, (0, 0), &[], b"", &bytes);
    }
    for time in ["1700000000.123456789", "-86400", "4102444800.5", "0"] {
        tar.add(&format!("times/{time}"), b'0', 0o644, (0, 0), &[("mtime", time.as_bytes())], b"", b"t");
    }
    for n in 0..MANY {
        // Steps that share no factor with the count visit all, far from sorted.
        let name = format!("many/{:05}", n * 7919 % MANY);
        tar.add(&name, b'0', 0o600, (1000, 1000), &[], b"", b"");
    }
    tar.tar.end()
}

struct Corpus {
    tar: Tar,
    prefix: String,
}

impl Corpus {
    #[expect(clippy::too_many_arguments, reason = "a header has that many fields")]
    fn add(
        &mut self,
        name: &str,
        kind: u8,
        mode: u32,
        owner: (u64, u64),
        pax: &[(&str, &[u8])],
        link: &[u8],
        data: &[u8],
    ) {
        let path = format!("{}{name}", self.prefix);
        let (uid, gid) = (owner.0.to_string(), owner.1.to_string());
        // Whatever the header's own fields cannot hold stands in front of it.
        let mut records: Vec<(&str, &[u8])> = pax.to_vec();
        if path.len() > 100 {
            records.push(("path", path.as_bytes()));
        }
        if link.len() > 100 {
            records.push(("linkpath", link));
        }
        const OCTAL_MAX: u64 = 0o7777777;
        if owner.0 > OCTAL_MAX || owner.1 > OCTAL_MAX {
            records.extend([("uid", uid.as_bytes()), ("gid", gid.as_bytes())]);
        }
        let mut tar = std::mem::take(&mut self.tar);
        if !records.is_empty() {
            tar = tar.pax(&records);
        }
        let owner = (owner.0.min(OCTAL_MAX), owner.1.min(OCTAL_MAX));
        let size = if matches!(kind, b'3' | b'4') { 0 } else { data.len() as u64 };
        let link = &link[..link.len().min(100)];
        let short = &path.as_bytes()[..path.len().min(100)];
        self.tar = tar.raw(short, kind, mode, owner, link, size, data);
    }

    fn owners(&mut self) {
        for id in [1, 65_534, 65_535, 65_536, 0o7777777, 1 << 31, u64::from(u32::MAX) - 1] {
            self.add(&format!("owners/file-{id}"), b'0', 0o644, (id, id / 2), &[], b"", b"o");
            self.add(&format!("owners/dir-{id}"), b'5', 0o750, (id / 3, id), &[], b"", b"");
            self.add(&format!("owners/link-{id}"), b'2', 0o777, (id, id), &[], b"nowhere", b"");
        }
    }

    fn modes(&mut self) {
        for mode in [0, 0o111, 0o400, 0o644, 0o755, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
            self.add(&format!("modes/file-{mode:04o}"), b'0', mode, (12, 34), &[], b"", b"m");
            self.add(&format!("modes/dir-{mode:04o}"), b'5', mode, (12, 34), &[], b"", b"");
            self.add(&format!("modes/dir-{mode:04o}/inside"), b'0', 0o640, (12, 34), &[], b"", b"i");
        }
        self.add("modes/empty", b'5', 0o755, (0, 0), &[], b"", b"");
    }

    fn links(&mut self) {
        // The first of them is not the lexicographically first.
        self.add("links/m", b'0', 0o4755, (5, 6), &[("SCHILY.xattr.user.of", b"all")], b"", b"shared");
        self.add("farm/end", b'0', 0o644, (0, 0), &[], b"", b"the end");
        for name in ["links/a", "links/z", "modes/empty/other"] {
            let target = format!("{}links/m", self.prefix);
            self.add(name, b'1', 0o4755, (5, 6), &[], target.as_bytes(), b"");
        }
        self.add("links/soft", b'2', 0o777, (7, 8), &[], b"m", b"");
        let target = format!("{}links/soft", self.prefix);
        self.add("links/harder", b'1', 0o777, (7, 8), &[], target.as_bytes(), b"");
        // As many as Linux follows.
        for n in 1..=40 {
            let next = if n == 40 { "end".to_owned() } else { format!("chain-{:02}", n + 1) };
            self.add(&format!("farm/chain-{n:02}"), b'2', 0o777, (0, 0), &[], next.as_bytes(), b"");
        }
        // Up to 59 bytes are in the inode.
        for length in [1, 58, 59, 60, 61, 255, 1000, 4095] {
            let target: Vec<u8> = (0..length).map(|n| if n % 100 == 50 { b'/' } else { b'x' }).collect();
            self.add(&format!("farm/long-{length}"), b'2', 0o777, (0, 0), &[], &target, b"");
        }
    }

    fn xattrs(&mut self) {
        let large = [0xab; 3000];
        type Attributes<'a> = &'a [(&'a str, &'a [u8])];
        let lists: [(&str, u8, Attributes<'_>); 6] = [
            ("plain", b'0', &[("SCHILY.xattr.user.plain", b"value")]),
            (
                "binary",
                b'0',
                &[("SCHILY.xattr.user.binary", b"a\nb\0c=\xff"), ("SCHILY.xattr.user.empty", b"")],
            ),
            ("capable", b'0', &[("SCHILY.xattr.security.capability", CAPABILITY)]),
            ("trusted", b'0', &[("SCHILY.xattr.trusted.note", b"roots")]),
            ("large", b'0', &[("SCHILY.xattr.user.large", &large), ("SCHILY.xattr.user.small", b"s")]),
            ("dir", b'5', &[("SCHILY.xattr.user.kind", b"dir"), ("SCHILY.xattr.trusted.z", b"z")]),
        ];
        for (name, kind, records) in lists {
            let data: &[u8] = if kind == b'5' { b"" } else { b"x" };
            self.add(&format!("xattrs/{name}"), kind, 0o755, (9, 9), records, b"", data);
        }
    }

    fn devices(&mut self) {
        for (name, kind, numbers) in [
            ("null", b'3', "1:3"),
            ("tun", b'3', "10:200"),
            ("disk", b'4', "8:0"),
            ("large", b'4', "259:1048575"),
        ] {
            self.add(&format!("devices/{name}"), kind, 0o660, (0, 6), &[], b"", numbers.as_bytes());
        }
        self.add("devices/pipe", b'6', 0o622, (0, 5), &[], b"", b"");
    }

    fn names(&mut self) {
        let longest = "n".repeat(255);
        let umlauts = "ä".repeat(127);
        for name in
            [longest.as_str(), &umlauts, " leading", "-dash", "new\nline", "back\\slash", "...", "~", "a:b"]
        {
            self.add(&format!("names/{name}"), b'0', 0o644, (0, 0), &[], b"", name.as_bytes());
        }
        let mut deep = "names/deep".to_owned();
        self.add(&deep, b'5', 0o755, (0, 0), &[], b"", b"");
        for n in 0..90 {
            deep += &format!("/a-directory-called-{n:03}");
            self.add(&deep, b'5', 0o755, (0, 0), &[], b"", b"");
        }
        self.add(&format!("{deep}/bottom"), b'0', 0o644, (0, 0), &[], b"", b"deep");
    }
}
