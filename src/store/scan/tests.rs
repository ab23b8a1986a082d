use super::*;
use crate::store::testing::{Scratch, scratch};
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

/// A store and a workload next to it.
struct Workload {
    s: Scratch,
    root: PathBuf,
}

fn workload(files: &[(&str, &str)]) -> Workload {
    let s = scratch();
    let w = Workload { root: s.dir.path().join("app"), s };
    fs_err::create_dir(&w.root).unwrap();
    for (path, text) in files {
        w.write(path, text);
    }
    w
}

impl Workload {
    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    fn chmod(&self, path: &str, mode: u32) {
        fs_err::set_permissions(self.root.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn scan_with(&self, options: &ScanOptions<'_>) -> Result<Scanned> {
        scan_dir(&self.s.store, &self.root, options)
    }

    fn scan(&self) -> Listing {
        self.scan_with(&ScanOptions::default()).unwrap().listing
    }

    fn paths(&self, ignore: &[&str]) -> Vec<String> {
        let ignore: Vec<String> = ignore.iter().map(|&p| p.to_owned()).collect();
        let options = ScanOptions { ignore: &ignore, ..ScanOptions::default() };
        self.scan_with(&options).unwrap().listing.entries.into_iter().map(|e| e.path).collect()
    }

    fn caches(&self) -> Vec<(PathBuf, u64)> {
        let read = fs_err::read_dir(self.s.store.dir("stat")).unwrap();
        let entry = |e: fs_err::DirEntry| {
            use std::os::unix::fs::MetadataExt;
            (e.path(), e.metadata().unwrap().ino())
        };
        read.map(|e| entry(e.unwrap())).collect()
    }
}

/// Lets the file system's clock tick: files written so far become strictly older than the next scan.
fn tick() {
    std::thread::sleep(Duration::from_millis(25));
}

#[test]
fn a_listing_tells_kinds_modes_and_contents() {
    let w = workload(&[("b/run.sh", "#!"), ("a.txt", "hello")]);
    w.chmod("b/run.sh", 0o700);
    w.chmod("a.txt", 0o666);
    std::os::unix::fs::symlink("/nowhere/at all", w.root.join("link")).unwrap();
    fs_err::create_dir(w.root.join("empty")).unwrap();
    let file = |text: &str| ListedKind::File {
        size: text.len() as u64,
        digest: blake3::hash(text.as_bytes()).into(),
    };
    let listed = |path: &str, mode, kind| Listed { path: path.into(), mode, kind };
    let expected = vec![
        listed("a.txt", 0o644, file("hello")),
        listed("b", 0o755, ListedKind::Dir),
        listed("b/run.sh", 0o755, file("#!")),
        listed("empty", 0o755, ListedKind::Dir),
        listed("link", 0o777, ListedKind::Symlink { target: "/nowhere/at all".into() }),
    ];
    assert_eq!(w.scan(), Listing { entries: expected });
}

#[test]
fn touching_a_file_rebuilds_nothing() {
    let w = workload(&[("a", "x"), ("d/b", "y")]);
    let before = w.scan();
    File::options().write(true).open(w.root.join("a")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(w.scan().digest(), before.digest());
}

#[test]
fn group_and_other_bits_rebuild_nothing_and_the_executable_bit_does() {
    let w = workload(&[("a", "x")]);
    w.chmod("a", 0o600);
    let before = w.scan();
    w.chmod("a", 0o664);
    assert_eq!(w.scan(), before);
    w.chmod("a", 0o764);
    assert_ne!(w.scan(), before);
}

#[test]
fn a_same_size_edit_in_the_same_tick_is_seen() {
    let w = workload(&[("a", "0000")]);
    for n in 1..300 {
        // No pause anywhere: most edits fall into the tick of the scan before them.
        let text = format!("{n:04}");
        w.write("a", &text);
        let digest = ObjectDigest::from(blake3::hash(text.as_bytes()));
        assert_eq!(w.scan().entries[0].kind, ListedKind::File { size: 4, digest });
        assert_eq!(scan_file(&w.s.store, &w.root.join("a")).unwrap().digest, digest);
    }
}

#[test]
fn an_edit_that_restores_size_and_mtime_is_seen() {
    let w = workload(&[("a", "old")]);
    tick();
    let before = w.scan();
    let mtime = fs_err::metadata(w.root.join("a")).unwrap().modified().unwrap();
    w.write("a", "new");
    File::options().write(true).open(w.root.join("a")).unwrap().set_modified(mtime).unwrap();
    assert_ne!(w.scan(), before);
}

#[test]
fn a_renamed_twin_is_seen() {
    let w = workload(&[("a", "one"), ("b", "two")]);
    tick();
    let before = w.scan();
    fs_err::rename(w.root.join("b"), w.root.join("a")).unwrap();
    let after = w.scan();
    assert_eq!(Listing::diff(&before, &after).len(), 2);
}

#[test]
fn what_did_not_change_is_not_read_again() {
    let w = workload(&[("a", "x"), ("d/b", "y")]);
    tick();
    let before = w.scan();
    // Give the cache wrong digests with a right checksum: if they come back, nothing was read.
    let [(path, _)] = w.caches().try_into().unwrap();
    let mut bytes = fs_err::read(&path).unwrap();
    let real = blake3::hash(b"y");
    let at = bytes.windows(32).position(|w| w == real.as_bytes()).unwrap();
    bytes[at] ^= 1;
    let length = bytes.len() - 32;
    let checksum = blake3::hash(&bytes[..length]);
    bytes[length..].copy_from_slice(checksum.as_bytes());
    fs_err::write(&path, &bytes).unwrap();
    let cached = w.scan();
    let changes = Listing::diff(&before, &cached);
    assert_eq!(changes.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), ["d/b"]);
    // An edit of the other file leaves it be; a lost cache reads all.
    w.write("a", "z");
    assert_eq!(Listing::diff(&cached, &w.scan()).len(), 1);
    fs_err::remove_file(&path).unwrap();
    assert_eq!(Listing::diff(&before, &w.scan()).len(), 1);
}

#[test]
fn an_unchanged_cache_is_not_written_again() {
    let w = workload(&[("a", "x"), ("b", "y")]);
    tick();
    w.scan();
    let first = w.caches();
    w.scan();
    assert_eq!(w.caches(), first);
    fs_err::remove_file(w.root.join("b")).unwrap();
    w.scan();
    assert_ne!(w.caches(), first, "what is gone is forgotten");
}

#[test]
fn a_corrupt_cache_costs_time_only() {
    let w = workload(&[("a", "x")]);
    tick();
    let before = w.scan();
    let [(path, _)] = w.caches().try_into().unwrap();
    fs_err::write(&path, b"fgstat1\ngarbage").unwrap();
    assert_eq!(w.scan(), before);
}

#[test]
fn git_is_left_out_unless_put_back() {
    let w = workload(&[("a", "x"), (".git/config", "c"), ("sub/.git", "gitdir: x"), ("sub/f", "y")]);
    assert_eq!(w.paths(&[]), ["a", "sub", "sub/f"]);
    assert_eq!(w.paths(&["*.pyc"]), ["a", "sub", "sub/f"]);
    assert_eq!(w.paths(&["!.git"]), [".git", ".git/config", "a", "sub", "sub/.git", "sub/f"]);
    assert_eq!(w.paths(&["!/.git"]), [".git", ".git/config", "a", "sub", "sub/f"]);
}

#[test]
fn patterns_work_as_in_gitignore() {
    let w = workload(&[
        ("a.log", ""),
        ("keep.log", ""),
        ("build/out", ""),
        ("src/build/x", ""),
        ("src/a.log", ""),
        ("src/deep/tmp", ""),
    ]);
    assert_eq!(
        w.paths(&["*.log", "!keep.log", "/build/", "**/deep/*"]),
        ["keep.log", "src", "src/build", "src/build/x", "src/deep"]
    );
    assert_eq!(w.paths(&["# a comment", "", "src", "build"]), ["a.log", "keep.log"]);
    for bad in ["a[", "[z-a]"] {
        let error =
            w.scan_with(&ScanOptions { ignore: &[bad.to_owned()], ..ScanOptions::default() }).unwrap_err();
        assert_eq!(error.code(), "scan.pattern");
    }
}

#[test]
fn what_is_left_out_may_be_anything() {
    let w = workload(&[("a", "x")]);
    nix::unistd::mkfifo(&w.root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(w.paths(&["pipe"]), ["a"]);
    let error = w.scan_with(&ScanOptions::default()).unwrap_err();
    assert_eq!(error.code(), "scan.special-file");
    assert!(error.to_string().contains("app/pipe is a pipe"), "{error}");
}

#[test]
fn sockets_are_refused_by_name() {
    let w = workload(&[]);
    let _socket = std::os::unix::net::UnixListener::bind(w.root.join("s")).unwrap();
    let error = w.scan_with(&ScanOptions::default()).unwrap_err();
    assert!(error.to_string().contains("app/s is a socket"), "{error}");
}

#[test]
fn names_that_are_not_utf8_are_refused() {
    use std::ffi::OsStr;
    let w = workload(&[("a", "x")]);
    fs_err::write(w.root.join(OsStr::from_bytes(b"bad\xff")), "").unwrap();
    let error = w.scan_with(&ScanOptions::default()).unwrap_err();
    assert_eq!(error.code(), "scan.name");
    assert!(error.to_string().contains("bad"), "{error}");
}

#[test]
fn missing_roots_and_files_are_told_apart() {
    let w = workload(&[("a", "x")]);
    let scan = |path: &str| scan_dir(&w.s.store, &w.root.join(path), &ScanOptions::default()).unwrap_err();
    assert_eq!(scan("none").code(), "scan.missing");
    assert_eq!(scan("a").code(), "scan.not-a-directory");
    assert_eq!(scan_file(&w.s.store, &w.root.join("none")).unwrap_err().code(), "scan.missing");
    assert_eq!(scan_file(&w.s.store, &w.root).unwrap_err().code(), "scan.not-a-file");
}

#[test]
fn kept_modes_are_kept_and_special_bits_warned_about() {
    let w = workload(&[("a", "x"), ("b", "y"), ("c", "z")]);
    w.chmod("a", 0o4711);
    w.chmod("b", 0o2750);
    w.chmod("c", 0o400);
    let kept = w.scan_with(&ScanOptions { keep_modes: true, ..ScanOptions::default() }).unwrap();
    assert_eq!(kept.listing.entries.iter().map(|e| e.mode).collect::<Vec<_>>(), [0o711, 0o750, 0o400]);
    assert_eq!(kept.warnings.len(), 1);
    assert!(kept.warnings[0].ends_with("app/a and 1 other"), "{:?}", kept.warnings);
    assert_eq!(w.scan_with(&ScanOptions::default()).unwrap().warnings, kept.warnings);
}

#[test]
fn hard_links_are_just_files() {
    let w = workload(&[("a", "x")]);
    fs_err::hard_link(w.root.join("a"), w.root.join("b")).unwrap();
    let listing = w.scan();
    assert_eq!(listing.entries[0].kind, listing.entries[1].kind);
}

#[test]
fn a_scan_leaves_no_trace_in_the_workload() {
    use std::os::unix::fs::MetadataExt;
    let w = workload(&[("a", "x")]);
    let times = || {
        let meta = fs_err::metadata(&w.root).unwrap();
        (meta.mtime_nsec(), meta.ctime_nsec(), meta.mtime(), meta.ctime())
    };
    let before = times();
    tick();
    w.scan();
    assert_eq!(times(), before);
}

#[test]
fn a_file_is_scanned_with_a_cache_and_through_links() {
    let w = workload(&[("tool", "#!")]);
    w.chmod("tool", 0o755);
    std::os::unix::fs::symlink("tool", w.root.join("link")).unwrap();
    tick();
    let scanned = scan_file(&w.s.store, &w.root.join("link")).unwrap();
    assert_eq!(scanned, ScannedFile { digest: blake3::hash(b"#!").into(), size: 2, executable: true });
    assert_eq!(w.caches().len(), 1);
    assert_eq!(scan_file(&w.s.store, &w.root.join("tool")).unwrap(), scanned);
    assert_eq!(w.caches().len(), 1, "one cache for all names of a file");
}

#[test]
fn other_file_systems_below_the_root_are_not_trusted_when_fresh() {
    let shm = Path::new("/dev/shm");
    let Ok(dir) = tempfile::tempdir_in(shm) else {
        crate::testing::skip(format!("{} is not writable", shm.display()));
        return;
    };
    let s = scratch();
    fs_err::write(dir.path().join("f"), "x").unwrap();
    let root = File::open(s.dir.path()).unwrap();
    let clock = Clock::start(&s.store, &root, s.dir.path()).unwrap();
    let stat = Stat::of(&File::open(dir.path().join("f")).unwrap()).unwrap();
    if stat.dev == Stat::of(&root).unwrap().dev {
        crate::testing::skip(format!("{} is not a file system of its own", shm.display()));
        return;
    }
    assert!(!clock.trusts(&stat));
    let old = (stat.mtime.0 - 3600, 0);
    assert!(clock.trusts(&Stat { mtime: old, ctime: old, ..stat }));
}

/// What git would not ignore in a tree, of files; `None` without git.
fn by_git(root: &Path, top: &Path) -> Option<Vec<String>> {
    let git = |args: &[&str]| {
        let mut git = std::process::Command::new("git");
        git.arg("-C")
            .arg(root)
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null");
        git.output().ok().filter(|output| output.status.success())
    };
    let init = std::process::Command::new("git").args(["init", "-q"]).arg(top).status();
    if !init.is_ok_and(|status| status.success()) {
        crate::testing::skip("no git");
        return None;
    }
    let listed = git(&["ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"]).unwrap();
    let mut names: Vec<String> =
        String::from_utf8(listed.stdout).unwrap().split_terminator('\0').map(str::to_owned).collect();
    names.sort();
    Some(names)
}

#[test]
fn pattern_files_are_read_as_git_reads_them() {
    let w = workload(&[
        (".gitignore", "*.log\n/build/\nnode_modules/\n# comment\n!keep.log\n\\#odd\ntrailing \n"),
        ("a.log", ""),
        ("keep.log", ""),
        ("#odd", ""),
        ("trailing", ""),
        ("build/out", ""),
        ("src/build/x", ""),
        ("node_modules/x/y", ""),
        ("src/node_modules/z", ""),
        ("src/.gitignore", "!a.log\n/only-here\nsecret?\n"),
        ("src/a.log", ""),
        ("src/b.log", ""),
        ("src/only-here", ""),
        ("src/deep/only-here", ""),
        ("src/deep/secret1", ""),
        ("src/deep/.gitignore", "*\n!.gitignore\n!kept\n"),
        ("src/deep/kept", ""),
        ("src/deep/gone", ""),
        ("other/.gitignore", "[\n**/nested/*.tmp\n"),
        ("other/nested/x.tmp", ""),
        ("other/a/nested/x.tmp", ""),
        ("other/nested/a/x.tmp", ""),
    ]);
    std::os::unix::fs::symlink("../.gitignore", w.root.join("linked-ignore")).unwrap();
    fs_err::write(w.s.dir.path().join(".gitignore"), "/app/other/nested/a\nkeep.log\n").unwrap();
    for top in [w.root.as_path(), w.s.dir.path()] {
        let files = IgnoreFiles { name: OsStr::new(".gitignore"), top };
        let options = ScanOptions { files: Some(files), ..ScanOptions::default() };
        let seen = w.scan_with(&options).unwrap().listing.entries;
        let seen = seen.into_iter().filter(|entry| entry.kind != ListedKind::Dir).map(|entry| entry.path);
        let seen: Vec<String> = seen.collect();
        assert!(seen.contains(&"src/a.log".to_owned()) && !seen.contains(&"a.log".to_owned()), "{seen:?}");
        // The rule above says so, and the one in the tree takes it back.
        assert!(seen.contains(&"keep.log".to_owned()), "{seen:?}");
        assert_eq!(seen.contains(&"other/nested/a/x.tmp".to_owned()), top == w.root, "{seen:?}");
        if let Some(expected) = by_git(&w.root, top) {
            assert_eq!(seen, expected, "{}", top.display());
        }
        let _ = fs_err::remove_dir_all(top.join(".git"));
    }
}

#[test]
fn patterns_of_the_manifest_decide_before_those_of_files() {
    let w = workload(&[
        (".gitignore", "*.log\n!.git\n"),
        ("a.log", ""),
        ("b.log", ""),
        ("c", ""),
        (".git/x", ""),
    ]);
    let files = IgnoreFiles { name: OsStr::new(".gitignore"), top: &w.root };
    let paths = |ignore: &[&str], never: &[&str]| {
        let [ignore, never] =
            [ignore, never].map(|all| all.iter().map(|&p| p.to_owned()).collect::<Vec<_>>());
        let options = ScanOptions { ignore: &ignore, never: &never, files: Some(files), keep_modes: false };
        let listing = w.scan_with(&options).unwrap().listing;
        listing.entries.into_iter().map(|e| e.path).collect::<Vec<_>>()
    };
    assert_eq!(paths(&[], &[]), [".gitignore", "c"]);
    assert_eq!(paths(&["!a.log", "c"], &[]), [".gitignore", "a.log"]);
    assert_eq!(paths(&["!a.log", "!c"], &["c", "a.log"]), [".gitignore"], "never is never");
}
