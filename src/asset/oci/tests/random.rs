//! Layers that nobody would make by hand, against what `umoci unpack` makes of them.

use super::super::*;
use super::local::Layout;
use super::tools::tools;
use crate::image::tests::Tar;
use crate::image::tests::compare::{Lines, differences, of_dir, of_image};
use crate::image::{BASE_IMAGE, BaseSource, build_base};
use crate::store::testing::scratch;
use fs_err as fs;
use serde_json::json;
use std::collections::BTreeSet;

const CASES: u64 = 40;

/// xorshift64*: the same cases on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn name(&mut self) -> &'static str {
        ["a", "b", "c", "d"][self.below(4) as usize]
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        (0..depth).map(|_| self.name()).collect::<Vec<_>>().join("/")
    }
}

/// A layer of few names, so that layers meet. `files` are those of the layer below, and then those of this one.
fn layer(random: &mut Random, files: &mut Vec<String>) -> Tar {
    let mut tar = Tar::default();
    let below = std::mem::take(files);
    let mut dirs = BTreeSet::new();
    for _ in 0..2 + random.below(12) {
        let path = random.path();
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        // Builders list the directories above; one in eight does not, and goes through what is there.
        if random.below(8) > 0 {
            let mut above = String::new();
            for part in parent.split('/').filter(|part| !part.is_empty()) {
                above.push_str(part);
                if dirs.insert(above.clone()) {
                    tar = tar.raw(above.as_bytes(), b'5', 0o755, (0, 0), b"", 0, b"");
                }
                above.push('/');
            }
        }
        let mode = [0o644, 0o600, 0o4755, 0][random.below(4) as usize];
        let owner = (random.below(3), 1_000_000 * random.below(3));
        let beside = |name: String| if parent.is_empty() { name } else { format!("{parent}/{name}") };
        let is_dir = dirs.contains(&path);
        let start = ["", "", "", "./", "/"][random.below(5) as usize];
        let written = format!("{start}{path}");
        tar = match random.below(10) {
            0..3 if !is_dir => {
                let data = vec![b'x'; random.below(6000) as usize];
                files.push(path.clone());
                tar.raw(written.as_bytes(), b'0', mode, owner, b"", data.len() as u64, &data)
            }
            3 if !is_dir => {
                let target = if random.below(2) == 0 { format!("/{}", random.path()) } else { random.path() };
                tar.raw(written.as_bytes(), b'2', 0o777, owner, target.as_bytes(), 0, b"")
            }
            4 if !is_dir => match below.iter().chain(files.iter()).nth(random.below(12) as usize) {
                Some(target) if *target != path => {
                    tar.raw(written.as_bytes(), b'1', 0o644, (0, 0), target.as_bytes(), 0, b"")
                }
                _ => tar,
            },
            5 => tar.file(&beside(".wh..wh..opq".to_owned()), b""),
            6 | 7 => tar.file(&beside(format!(".wh.{name}")), b""),
            _ => {
                dirs.insert(path.clone());
                tar.raw(written.as_bytes(), b'5', 0o700 | mode, owner, b"", 0, b"")
            }
        };
    }
    tar
}

/// The times of directories that no layer lists are nobody's, and hard links take over their target's metadata.
fn without_directory_times(lines: Lines) -> Lines {
    let strip = |(path, line): (String, String)| {
        if !line.ends_with(" dir") {
            return (path, line);
        }
        let words: Vec<&str> =
            line.split(' ').enumerate().filter(|(n, _)| *n != 2).map(|(_, word)| word).collect();
        (path, words.join(" "))
    };
    lines.into_iter().map(strip).collect()
}

#[test]
fn random_layers_become_the_tree_that_umoci_unpacks() {
    let Some(tools) = tools() else { return };
    if !nix::unistd::geteuid().is_root() {
        crate::testing::skip("umoci unpack needs root to keep owners");
        return;
    }
    let (s, mut compared, mut both_refused) = (scratch(), 0, 0);
    for seed in 1..=CASES {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut files = Vec::new();
        let layers: Vec<Vec<u8>> =
            (0..2 + random.below(4)).map(|_| layer(&mut random, &mut files).end()).collect();
        let mut layout = Layout::default();
        let slices: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
        let mut image = layout.image("amd64", json!({}), &slices);
        image["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1" });
        layout.index(std::slice::from_ref(&image));
        let dir = tempfile::tempdir().unwrap();
        let path = layout.dir(&dir.path().join("layout"));
        let (bundle, from) = (dir.path().join("bundle"), format!("{}:v1", path.display()));
        let theirs = tools.command("umoci").args(["unpack", "--image", &from]).arg(&bundle).output().unwrap();

        let local = open_local(&s.store, &path, None).unwrap();
        let layers: Vec<_> = local.layers.iter().map(|layer| layer.in_store(&s.store)).collect();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let ours = build_base(BaseSource::Layers(&layers), &out, dir.path());
        match (ours, theirs.status.success()) {
            (Ok(_), true) => {
                let ours = without_directory_times(of_image(&out.join(BASE_IMAGE)));
                let theirs = without_directory_times(of_dir(&bundle.join("rootfs")));
                let found = differences(&ours, &theirs);
                assert!(found.is_empty(), "case {seed}, {} differences:\n{}", found.len(), found.join("\n"));
                compared += 1;
            }
            (Err(_), false) => both_refused += 1,
            (Err(ours), true) => panic!("case {seed}: umoci unpacks it, ours says {ours}"),
            (Ok(_), false) => panic!("case {seed}: umoci says {}", String::from_utf8_lossy(&theirs.stderr)),
        }
    }
    println!("{compared} compared, {both_refused} refused by both");
    assert!(compared > CASES / 4, "only {compared} of {CASES} could be compared");
}
