//! `lock` and `build`: pins, and the same bytes wherever they are built.

use crate::harness::terminal::{on_terminal, read_all, wait_end};
use crate::harness::{Project, guests};
use crate::traces::{SLEEP, home_with_packages};
use crate::web::{Reply, Server};
use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;

const ONE_VM: &str = "vm \"box\" { workload \"./app\" to=\"/app\"; run \"true\" }";

fn unpinned() -> Project {
    let project = Project::empty();
    project.manifest(ONE_VM);
    project.write("app/run.sh", "echo run");
    project
}

fn pinned() -> Project {
    let project = Project::new(ONE_VM);
    project.write("app/run.sh", "echo run");
    project
}

#[test]
fn a_missing_pin_is_an_error_where_the_lock_may_not_change() {
    let project = unpinned();
    for args in [&["lock", "--locked"][..], &["build", "--locked"], &["up", "-d", "--locked"]] {
        project.run(args).expect(64).says("firegopher.lock lacks: ").says("linux-image-cloud-amd64");
    }
    project.run(&["run", "--locked"]).expect(125).says("firegopher.lock lacks: ");
    project.run(&["build", "--offline"]).expect(1).says("--offline forbids");
    assert!(!project.path().join("firegopher.lock").exists());
}

#[test]
fn a_complete_lock_stays_as_it_is() {
    let Some(_turn) = guests(1) else { return };
    let project = pinned();
    let before = project.read("firegopher.lock");
    project.ok(&["lock"]).says("firegopher.lock has every pin already.");
    project.ok(&["lock", "--locked"]);
    project.ok(&["build", "--locked", "--offline"]);
    assert_eq!(project.read("firegopher.lock"), before);
}

#[test]
fn a_warm_store_needs_no_network() {
    let Some(_turn) = guests(1) else { return };
    let project = pinned();
    project.write("app/new.txt", format!("{:?}", project.path()));
    project.ok(&["build", "--offline"]).says("Built ");
    project.ok(&["build", "--offline"]).says("Nothing to build");
    project.ok(&["run", "--offline"]);
}

#[test]
fn a_copied_tree_builds_the_same_outputs() {
    let Some(_turn) = guests(1) else { return };
    let (first, second) = (pinned(), pinned());
    for project in [&first, &second] {
        project.write("app/deep/er/file", "x");
        std::os::unix::fs::symlink("run.sh", project.path().join("app/link")).unwrap();
    }
    // What git does not keep reaches no key: other owners, modes and times than the first.
    let path = second.path().join("app/run.sh");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    }
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let steps = |project: &Project| project.ok(&["build", "--json"]).json()["steps"].clone();
    assert_eq!(steps(&first), steps(&second));
    // An executable bit is content.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    assert_ne!(steps(&first), steps(&second));
}

#[test]
fn steps_have_bars_on_a_terminal_and_plain_lines_elsewhere() {
    let Some(_turn) = guests(1) else { return };
    let own = tempfile::tempdir().unwrap();
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&own.path().join("home"));
    home_with_packages(project.home());
    let (terminal, mut build) = on_terminal(&project, &["build"]);
    let shown = read_all(&terminal);
    assert_eq!(wait_end(&mut build), Some(0), "{shown}");
    let steps = ["fetch kernel linux-image-cloud-amd64", "fetch vmm qemu", "image ", "initramfs ", "init a"];
    for step in steps {
        // Drawn while it runs, with its spinner and the time, and said once it is done.
        assert!(shown.contains(&format!(" {step}")), "no bar of {step}: {shown:?}");
        let done = shown.lines().any(|line| line.contains(step) && line.trim_end().ends_with(" s)"));
        assert!(done, "{step} is never done: {shown:?}");
    }
    assert!(shown.contains("\x1b[2K") || shown.contains("\x1b[K"), "no bar was taken away: {shown:?}");

    // The same steps, run anew, into a pipe.
    for made in ["v1/actions", "v1/objects"] {
        std::fs::remove_dir_all(project.home().join(made)).unwrap();
    }
    home_with_packages(project.home());
    let piped = project.ok(&["build"]);
    assert!(!piped.stderr.contains('\x1b'), "{:?}", piped.stderr);
    for step in steps {
        let lines = piped.stderr.lines().filter(|line| line.starts_with(step) && line.ends_with(" s)"));
        assert_eq!(lines.count(), 1, "{step}: {}", piped.stderr);
    }
}

/// Where the terminal shows this transfer under way, each time with the bytes that are there and what follows them.
fn under_way(shown: &str, name: &str) -> Vec<(usize, u64, String)> {
    let mut all = Vec::new();
    for (at, line) in shown.match_indices(name).map(|(at, _)| (at, &shown[at..])) {
        let line = line.split(['\r', '\n', '\x1b']).next().unwrap_or_default();
        // `a.bin ###----- 1.25 MiB/2.00 MiB 1.00 MiB/s 1s`
        let Some((bytes, rest)) = line.split_once("/2.00 MiB ") else { continue };
        let mut words = bytes.split_whitespace().rev();
        let unit = match words.next().unwrap_or_default() {
            "B" => 1.0,
            "KiB" => 1024.0,
            "MiB" => 1048576.0,
            _ => continue,
        };
        let bytes =
            words.next().unwrap_or_default().parse::<f64>().unwrap_or_else(|e| panic!("{line:?}: {e}"));
        all.push((at, (bytes * unit) as u64, rest.trim().to_owned()));
    }
    all
}

#[test]
fn transfers_have_bars_on_a_terminal_side_by_side_and_plain_lines_elsewhere() {
    let Some(_turn) = guests(1) else { return };
    const SIZE: usize = 2 << 20;
    // Different ones: what is the same is downloaded once.
    let body = |name: &str| name.as_bytes().iter().copied().cycle().take(SIZE).collect::<Vec<u8>>();
    let server = Server::start(move |request| {
        Reply::ok(body(request.target.trim_start_matches('/'))).rate(SIZE as u64 / 2)
    });
    let workload = |name: &str| {
        let digest: String = Sha256::digest(body(name)).iter().map(|byte| format!("{byte:02x}")).collect();
        let url = server.url(&format!("/{name}"));
        format!("workload to=\"/opt/{name}\" {{ url \"{url}\" sha256=\"{digest}\" }}")
    };
    let manifest = |a, b| format!("vm \"a\" {{ {}; {}; run \"true\" }}", workload(a), workload(b));
    let own = tempfile::tempdir().unwrap();
    let project = Project::new(&manifest("a.bin", "b.bin")).with_home(&own.path().join("home"));
    home_with_packages(project.home());
    let (terminal, mut build) = on_terminal(&project, &["build"]);
    let shown = read_all(&terminal);
    assert_eq!(wait_end(&mut build), Some(0), "{shown}");
    let [a, b] = ["a.bin", "b.bin"].map(|name| {
        let seen = under_way(&shown, name);
        let half: Vec<_> =
            seen.into_iter().filter(|(_, bytes, _)| (1..SIZE as u64).contains(bytes)).collect();
        assert!(half.len() > 4, "{name} is not seen on its way: {shown:?}");
        assert!(half.is_sorted_by_key(|(_, bytes, _)| *bytes), "{name} goes forward: {half:?}");
        // Where lines are as wide as the terminal, nothing stands between them.
        let told = |rest: &str| {
            let left = rest.split_once("iB/s ").map_or("", |(_, left)| left);
            left.starts_with(|c: char| c.is_ascii_digit())
        };
        assert!(half.iter().any(|(_, _, rest)| told(rest)), "{name} has no rate and time left: {half:?}");
        half.into_iter().map(|(at, ..)| at).collect::<Vec<_>>()
    });
    let (first, last) = (|of: &[usize]| of[0], |of: &[usize]| of[of.len() - 1]);
    assert!(first(&a) < last(&b) && first(&b) < last(&a), "one after the other: {a:?} {b:?}");

    // Others, into a pipe: one line each.
    project.manifest(&manifest("c.bin", "d.bin"));
    let piped = project.ok(&["build"]).stderr;
    for name in ["c.bin", "d.bin"] {
        let lines = piped.lines().filter(|line| line.starts_with("downloading ") && line.contains(name));
        assert_eq!(lines.count(), 1, "{name}: {piped}");
    }
    assert!(!piped.contains('\x1b'), "{piped:?}");
}
