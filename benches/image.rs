//! Base images: from a tar that is in memory to a published image, against copying and hashing its bytes, and
//! against `mke2fs -d` of the same tree.
//!
//! What is compared: *copied* is `cp` of the tar, BLAKE3 of the copy on all cores and fdatasync, which is what its bytes
//! cost anybody; *built and published* is the whole image step, from the tar to an object that is hashed, synced and in
//! the store. `mke2fs -d` starts from a tree that is unpacked already and neither hashes nor syncs, so it is judged
//! against *built*, the same state of our image; the pair with everything that ours does besides is shown, too.

#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod common;

use common::{Series, heading, rounds, scratch, wanted};
use firegopher::home::Home;
use firegopher::image::{BASE_IMAGE, BaseSource, build_base};
use firegopher::store::Store;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Like a small distribution: a minimal Debian with Python has 9,415 entries and 195 MB.
const FILES: u64 = 12_000;
const DIRS: u64 = 900;
const LINKS: u64 = 600;
/// Files of 8 MiB: shared libraries and the like.
const LARGE: u64 = 10;

fn main() {
    if wanted("base") {
        base();
    }
}

fn base() {
    let dir = scratch().join("bench/image");
    let tar = tarball(&dir);
    let bytes = fs::metadata(&tar).expect("a tar").len();
    let store = Store::open(Home::new(dir.join("home"))).expect("a store");
    let tree = unpacked(&dir, &tar);
    let mut all = Figures::default();
    // The first round warms the page cache and is not counted.
    for round in 0..=rounds(15) {
        let begun = all_cpu();
        let (copied, parts) = copied(&tar, &dir.join("copy"));
        let between = all_cpu();
        let (ours, built) = published(&store, &tar);
        let ended = all_cpu();
        let theirs = tree.as_ref().map(|tree| mke2fs(tree, &dir.join("theirs.ext4")));
        if round == 0 {
            continue;
        }
        all.copied.millis(copied);
        all.copied_cpu.millis(between - begun);
        all.ours_cpu.millis(ended - between);
        for (series, time) in all.parts.iter_mut().zip(parts) {
            series.millis(time);
        }
        all.ours.millis(ours);
        all.built.millis(built);
        if let Some(time) = theirs {
            all.theirs.millis(time);
        }
    }
    heading(format!("base image from a tar of {FILES} files, {} MB, in the page cache", bytes / 1_000_000));
    all.copied.report("cp + b3sum + fdatasync of the tar", "ms", None);
    for (part, series) in ["cp", "b3sum", "fdatasync"].iter().zip(&all.parts) {
        series.report(&format!("  {part}"), "ms", None);
    }
    all.copied_cpu.report("  user and system time", "ms", None);
    all.ours.report("built and published", "ms", None);
    all.ours_cpu.report("  user and system time", "ms", None);
    all.built.report("  built, not yet hashed and synced", "ms", None);
    all.ours.over(&all.copied).report("built and published / copied", "", 1.3);
    if all.theirs.0.is_empty() {
        println!("skipped: no mke2fs");
    } else {
        all.theirs.report("mke2fs -d of the same tree, unpacked beforehand", "ms", None);
        all.built.over(&all.theirs).report("built / mke2fs -d", "", 0.5);
        all.ours.over(&all.theirs).report("built and published / mke2fs -d", "", None);
    }
}

#[derive(Default)]
struct Figures {
    copied: Series,
    copied_cpu: Series,
    parts: [Series; 3],
    ours_cpu: Series,
    ours: Series,
    built: Series,
    theirs: Series,
}

/// What the bytes alone cost: the copy as `cp` makes it, hashed as b3sum does (mapped, on all cores), on the disk.
fn copied(tar: &Path, to: &Path) -> (Duration, [Duration; 3]) {
    let _ = fs::remove_file(to);
    settle();
    let begin = Instant::now();
    let status = Command::new("cp").arg(tar).arg(to).status().expect("cp is there");
    assert!(status.success());
    let copied = begin.elapsed();
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(to).expect("a file that can be mapped");
    std::hint::black_box(hasher.finalize());
    let hashed = begin.elapsed();
    File::options().write(true).open(to).and_then(|file| file.sync_data()).expect("a disk");
    let all = begin.elapsed();
    (all, [copied, hashed - copied, all - hashed])
}

/// What the image step does; also the time at which the image is written, not yet hashed or on the disk.
fn published(store: &Store, tar: &Path) -> (Duration, Duration) {
    settle();
    let begin = Instant::now();
    let temp = store.temp_dir().expect("a directory");
    let out = temp.path().join("out");
    fs::create_dir(&out).expect("a directory");
    build_base(BaseSource::Tar(tar), &out, temp.path()).expect("a base");
    let built = begin.elapsed();
    let digest = store.publish_tree(&out).expect("an object");
    let all = begin.elapsed();
    let object = store.object_path(&digest);
    assert!(object.join(BASE_IMAGE).exists());
    fs::remove_dir_all(object).expect("it is ours");
    (all, built)
}

/// `mke2fs -d`, of a tree that is unpacked already; its image is neither hashed nor on the disk.
fn mke2fs(tree: &Path, image: &Path) -> Duration {
    let _ = fs::remove_file(image);
    settle();
    let begin = Instant::now();
    let output = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-d"])
        .arg(tree)
        .arg(image)
        .arg("400M")
        .output()
        .expect("mke2fs is there");
    assert!(output.status.success(), "{output:?}");
    begin.elapsed()
}

/// What is still to be written would be charged to whoever comes next.
fn settle() {
    nix::unistd::sync();
}

/// A tar of pseudo-random files, the same on every machine; made once.
fn tarball(dir: &Path) -> PathBuf {
    let path = dir.join("base.tar");
    if path.exists() {
        return path;
    }
    fs::create_dir_all(dir).expect("a directory");
    let partial = dir.join("partial");
    let mut tar = tar::Builder::new(io::BufWriter::new(File::create(&partial).expect("a file")));
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        match link {
            Some(link) => tar.append_link(&mut header, name, link).expect("a tar"),
            None => tar.append_data(&mut header, name, content).expect("a tar"),
        }
    };
    let place = |n: u64| format!("usr/lib/package-{:02}/part-{:02}", n / 30, n % 30);
    for n in 0..DIRS {
        add(&place(n), tar::EntryType::Directory, 0o755, b"", None);
    }
    for n in 0..FILES {
        // Most are small and a few are large: a product of three draws has a long tail.
        let [a, b, c] = [next() % 128, next() % 64, next() % 24];
        let size = if n % (FILES / LARGE) == 0 { 8 << 20 } else { a * b * c / 4 };
        let mut content = Vec::with_capacity(size as usize + 8);
        while (content.len() as u64) < size {
            content.extend_from_slice(&next().to_le_bytes());
        }
        content.truncate(size as usize);
        let name = format!("{}/file-{n:05}.so", place(next() % DIRS));
        add(&name, tar::EntryType::Regular, 0o644, &content, None);
    }
    for n in 0..LINKS {
        let name = format!("{}/link-{n:05}", place(next() % DIRS));
        add(&name, tar::EntryType::Symlink, 0o777, b"", Some("../../../../etc/alternatives/target"));
    }
    tar.into_inner().and_then(|mut out| out.flush()).expect("a tar");
    fs::rename(partial, &path).expect("a tar");
    path
}

/// The tree of the tar, for mke2fs.
fn unpacked(dir: &Path, tar: &Path) -> Option<PathBuf> {
    if !Path::new("/usr/sbin/mke2fs").exists() {
        return None;
    }
    let tree = dir.join("tree");
    if !tree.exists() {
        let partial = dir.join("partial-tree");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir(&partial).expect("a directory");
        tar::Archive::new(File::open(tar).expect("a tar")).unpack(&partial).expect("a tree");
        fs::rename(partial, &tree).expect("a tree");
    }
    Some(tree)
}

/// User and system time of this process and of the children it has reaped.
fn all_cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("it takes no memory of ours");
    let micros = |t: nix::sys::time::TimeVal| t.tv_sec() as u64 * 1_000_000 + t.tv_usec() as u64;
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())) + common::children_cpu()
}
