//! Sources by url: pinned, verified, and the same from wherever they come.

use crate::harness::{PATIENCE, Project, guests, public_dir};
use crate::traces::files;
use crate::web::{Reply, Server};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Paths and what is there.
type Files = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A server whose files can be exchanged.
struct Site {
    server: Server,
    files: Files,
}

impl Site {
    fn new(files: &[(&str, &[u8])]) -> Site {
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
        let files: Files = Arc::new(Mutex::new(files));
        let served = Arc::clone(&files);
        let server = Server::start(move |request| {
            let files = served.lock().unwrap();
            match files.iter().find(|(path, _)| *path == request.target) {
                Some((_, bytes)) => Reply::ok(bytes.clone()).ranged(request),
                None => Reply::status(404),
            }
        });
        Site { server, files }
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let mut files = self.files.lock().unwrap();
        files.retain(|(other, _)| other != path);
        files.push((path.to_owned(), bytes.to_vec()));
    }

    fn requests(&self) -> usize {
        self.server.seen().len()
    }
}

/// A tar with these files, 0755.
fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn vm(url: &str, rest: &str) -> String {
    format!("vm \"box\" {{ workload to=\"/opt\" {{ url \"{url}\" {rest} }}; run \"/opt/hello\" }}")
}

/// Steps by kind: key and output.
fn outputs(project: &Project, args: &[&str]) -> Vec<(String, String)> {
    let json = project.ok(&[&["build", "--json"], args].concat()).json();
    let steps = json["steps"].as_array().unwrap().iter();
    steps.map(|s| (s["kind"].to_string(), format!("{} {}", s["key"], s["output"]))).collect()
}

#[test]
fn a_download_without_a_digest_is_trusted_by_lock_alone() {
    let Some(_turn) = guests(1) else { return };
    let site = Site::new(&[("/a.tar", &tarball(&[("hello", "#!/bin/sh\necho first\n")]))]);
    let url = site.server.url("/a.tar");
    let project = Project::new(&vm(&url, ""));
    for args in [&["build"][..], &["up", "-d"]] {
        project.run(args).expect(64).says("has no `sha256`").says("firegopher lock");
    }
    project.run(&["build", "--locked"]).expect(64).says("firegopher.lock lacks: workload");
    assert_eq!(site.requests(), 0);
    project.run(&["plan"]).expect(64).prints("in firegopher.lock").says("has no `sha256`");
    project.ok(&["lock"]).says("trusting what comes").says("Wrote firegopher.lock");
    project.ok(&["run", "--locked"]).prints("first\n");
    // What the server has now is nobody's business until `update`.
    let requests = site.requests();
    site.put("/a.tar", &tarball(&[("hello", "#!/bin/sh\necho second\n")]));
    project.ok(&["run", "--locked", "--offline"]).prints("first\n");
    assert_eq!(site.requests(), requests);
    let update = project.ok(&["update", "workload"]);
    let line = update.stdout.lines().find(|l| l.starts_with(&format!("workload {url} sha256:"))).unwrap();
    assert!(line.contains(" → sha256:"), "{update:?}");
    update.prints("image busybox-static (no longer needed)");
    project.ok(&["plan"]).prints("unpack");
    project.ok(&["run", "--locked"]).prints("second\n");
    project.ok(&["update"]).says("newest pins already");
}

#[test]
fn a_digest_in_the_manifest_needs_no_trust_and_must_be_met() {
    let Some(_turn) = guests(1) else { return };
    let archive = tarball(&[("release/hello", "#!/bin/sh\necho member\n")]);
    let site = Site::new(&[("/a.tar", &archive)]);
    let url = site.server.url("/a.tar");
    let digest = sha256(&archive);
    let wrong = Project::new(&vm(&url, &format!("sha256=\"{}\"", "0".repeat(64))));
    let before = wrong.read("firegopher.lock");
    wrong.run(&["build"]).expect(1).says(&url).says(&digest).says("help:");
    assert_eq!(wrong.read("firegopher.lock"), before);

    let good = format!("sha256=\"{digest}\" member=\"release/hello\"");
    let project = Project::new(&vm(&url, &good).replace("/opt\"", "/opt/hello\""));
    project.ok(&["run"]).prints("member\n");
    // A lock made for another digest is not enough.
    let other = tarball(&[("release/hello", "#!/bin/sh\necho other\n")]);
    site.put("/a.tar", &other);
    let text = vm(&url, &good.replace(&digest, &sha256(&other))).replace("/opt\"", "/opt/hello\"");
    project.manifest(&text);
    project.run(&["build", "--locked"]).expect(64).says("with the digest of the manifest");
    project.ok(&["run"]).prints("other\n");
    let missing = Project::new(&vm(&url, &format!("sha256=\"{}\" member=\"hallo\"", sha256(&other))));
    missing.run(&["build"]).expect(1).says("hallo").says("release/hello");
}

#[test]
fn a_lock_builds_the_same_in_an_empty_home_and_says_when_it_was_edited() {
    let Some(_turn) = guests(1) else { return };
    let archive = tarball(&[("hello", "#!/bin/sh\necho hi\n")]);
    let site = Site::new(&[("/a.tar", &archive), ("/mirror.tar", &archive)]);
    let url = site.server.url("/a.tar");
    let here = Project::new(&vm(&url, ""));
    here.ok(&["lock"]);
    let built = outputs(&here, &["--locked"]);
    // A mirror, another project, an empty home: other paths to the same bytes.
    let home = public_dir();
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let there = Project::new(&vm(&format!("{url}\" \"{}", site.server.url("/mirror.tar")), ""))
        .with_home(home.path());
    there.write("firegopher.lock", here.read("firegopher.lock"));
    there.run(&["build", "--locked", "--offline"]).expect(1).says("--offline forbids");
    site.files.lock().unwrap().retain(|(path, _)| path != "/a.tar");
    assert_eq!(outputs(&there, &["--locked"]), built);

    let blake3 = format!("blake3 = \"{}\"", blake3::hash(&archive).to_hex());
    let edited = here.read("firegopher.lock").replace(&sha256(&archive), &"0".repeat(64));
    here.write("firegopher.lock", &edited);
    here.run(&["build", "--locked"]).expect(1).says("firegopher.lock").says("edited by hand");
    let lock = there.read("firegopher.lock");
    assert!(lock.contains(&blake3), "{lock}");
    let fresh = public_dir();
    std::fs::set_permissions(fresh.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let there = there.with_home(fresh.path());
    there.write("firegopher.lock", lock.replace(&blake3, &format!("blake3 = \"{}\"", "0".repeat(64))));
    there.run(&["build", "--locked"]).expect(1).says("edited by hand");
}

#[test]
fn update_moves_what_is_named_by_its_url_alone() {
    let first = tarball(&[("hello", "one"), ("bye", "one")]);
    let second = tarball(&[("hello", "two"), ("bye", "two")]);
    let site = Site::new(&[("/a.tar", &first), ("/b.tar", &first)]);
    let (a, b) = (site.server.url("/a.tar"), site.server.url("/b.tar"));
    let project = Project::new(&format!(
        "vm \"box\" {{ workload to=\"/a\" {{ url \"{a}\" member=\"hello\" }}
            workload to=\"/b\" {{ url \"{b}\" \"{}\"; }}
            workload to=\"/c\" {{ url \"{a}\" member=\"bye\" }}; run \"/a\" }}",
        site.server.url("/mirror.tar")
    ));
    project.run(&["update", &a]).expect(64).says("no pin in firegopher.lock").says("firegopher lock");
    assert_eq!(site.requests(), 0);
    project.ok(&["lock"]);
    assert_eq!(site.requests(), 2, "two members of one archive are one download");
    for path in ["/a.tar", "/b.tar"] {
        site.put(path, &second);
    }
    let digests = format!("sha256:{} → sha256:{}\n", &sha256(&first)[..12], &sha256(&second)[..12]);
    let by_url = project.ok(&["update", &a]).stdout;
    for member in ["hello", "bye"] {
        assert!(by_url.contains(&format!("workload {a} ({member}) {digests}")), "{by_url}");
    }
    assert!(!by_url.contains(&b), "{by_url}");
    // By a mirror; the other asset stays where it is.
    let by_mirror = project.ok(&["update", &site.server.url("/mirror.tar")]).stdout;
    assert_eq!(by_mirror, format!("workload {b} {digests}"));
    site.put("/a.tar", &first);
    let one = project.ok(&["update", &format!("{a} (bye)")]).stdout;
    assert!(one.starts_with(&format!("workload {a} (bye) sha256:")) && one.lines().count() == 1, "{one}");
    project.run(&["update", "https://example.org/other"]).expect(64).says("needs no asset").says(&a);
}

#[test]
fn update_by_package_and_by_tool_moves_those_and_shows_from_where() {
    let Some(_turn) = guests(1) else { return };
    let project =
        Project::new("vm \"box\" { image { debian \"busybox-static\" }; vmm \"qemu\"; run \"true\" }");
    let lock = project.read("firegopher.lock");
    // The version that the lock has of a package.
    let version = |lock: &str, package: &str| {
        let line = lock.lines().find(|line| line.starts_with(&format!("  {{ name = \"{package}\", ")));
        let line = line.unwrap_or_else(|| panic!("no {package} in {lock}"));
        line.split("version = \"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    let qemu = "qemu-system-x86";
    let (busybox, emulator) = (version(&lock, "busybox-static"), version(&lock, qemu));
    // As it was before both moved.
    let older: Vec<String> = lock
        .lines()
        .map(|line| match line {
            line if line.contains("name = \"busybox-static\"") => line.replace(&busybox, "0.1"),
            line if line.contains(&format!("name = \"{qemu}\"")) => line.replace(&emulator, "0.2"),
            line => line.to_owned(),
        })
        .collect();
    project.write("firegopher.lock", older.join("\n") + "\n");
    let first = project.ok(&["update", "busybox-static"]).stdout;
    assert!(first.contains(&format!("image busybox-static 0.1 → {busybox}\n")), "{first}");
    assert!(!first.contains(qemu), "{first}");
    assert_eq!(version(&project.read("firegopher.lock"), qemu), "0.2");
    let second = project.ok(&["update", "qemu"]).stdout;
    assert_eq!(second, format!("vmm {qemu} 0.2 → {emulator}\n"));
    project.ok(&["update", "vmm qemu", "image"]).says("newest pins already");
    project.run(&["update", "no-such-package"]).expect(64).says("needs no asset").says("vmm qemu");
}

#[test]
fn an_address_with_two_digests_is_an_error_of_the_manifest() {
    let (one, two) = (format!("sha256=\"{}\"", "1".repeat(64)), format!("sha256=\"{}\"", "2".repeat(64)));
    let uses = |first: &str, second: &str| {
        let url = "https://example.org/a.tar";
        format!(
            "vm \"box\" {{ workload to=\"/a\" {{ url \"{url}\" {first} }}
                workload to=\"/b\" {{ url \"{url}\" {second} }}; run \"/a\" }}"
        )
    };
    let project = Project::new(&uses(&one, &two));
    for command in ["plan", "lock", "build", "update"] {
        project.run(&[command]).expect(64).says("cannot have two digests").says("manifest.two-digests");
    }
    // One digest is enough for both, and no trust is needed. The store has nothing of it from an earlier run.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos().to_string();
    let archive = tarball(&[("hello", &now)]);
    let site = Site::new(&[("/a.tar", &archive)]);
    let text = uses("", &one.replace(&"1".repeat(64), &sha256(&archive)));
    let project = Project::new(&text.replace("https://example.org/a.tar", &site.server.url("/a.tar")));
    let locked = project.ok(&["lock"]);
    assert!(!locked.stderr.contains("trusting what comes"), "{}", locked.stderr);
    assert_eq!(site.requests(), 1);
    project.ok(&["lock"]).says("has every pin already");
}

#[test]
fn what_can_be_pinned_is_pinned_whatever_else_fails() {
    let archive = tarball(&[("hello", "hi")]);
    let site = Site::new(&[("/a.tar", &archive), ("/large.tar", &vec![0; 3 << 20])]);
    let good = site.server.url("/a.tar");
    let (gone, large) = (site.server.url("/gone.tar"), site.server.url("/large.tar"));
    let project = Project::new(&format!(
        "vm \"box\" {{ workload to=\"/0\" {{ url \"{gone}\"; }}
            workload to=\"/1\" {{ url \"{good}\"; }}
            workload to=\"/2\" {{ url \"{large}\" max=\"2MiB\" }}; run \"/1\" }}"
    ));
    let locked = project.run(&["lock"]).expect(1).says("/gone.tar").says("404").says("has 1 of 3 pins");
    locked.says("warning: ").says("at most 2097152 are taken");
    let lock = project.read("firegopher.lock");
    assert!(lock.contains(&sha256(&archive)) && !lock.contains(&gone) && !lock.contains(&large), "{lock}");
    // The next one goes on from there.
    let before = site.requests();
    site.put("/gone.tar", &archive);
    site.put("/large.tar", &archive);
    project.ok(&["lock"]);
    assert_eq!(site.requests(), before + 2);
    // An update that half fails says what moved.
    let other = tarball(&[("hello", "other")]);
    site.put("/a.tar", &other);
    site.files.lock().unwrap().retain(|(path, _)| path != "/gone.tar");
    let update = project.run(&["update"]).expect(1).says("404");
    assert!(update.stdout.contains(&format!("→ sha256:{}", &sha256(&other)[..12])), "{update:?}");
}

#[test]
fn a_pin_that_was_found_outlives_a_kill() {
    let archive = tarball(&[("hello", "hi")]);
    let served = archive.clone();
    let server = Server::start(move |request| match (request.target.as_str(), request.nth) {
        ("/slow.tar", 0) => Reply::ok(served.clone()).stall(100),
        _ => Reply::ok(served.clone()),
    });
    let (quick, slow) = (server.url("/quick.tar"), server.url("/slow.tar"));
    let project = Project::new(&format!(
        "vm \"box\" {{ workload to=\"/0\" {{ url \"{slow}\"; }}
            workload to=\"/1\" {{ url \"{quick}\"; }}; run \"/1\" }}"
    ));
    let running = project.command(&["lock"]).spawn();
    let begun = Instant::now();
    while !project.read("firegopher.lock").contains(&quick) {
        assert!(begun.elapsed() < PATIENCE, "{}", project.read("firegopher.lock"));
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal(9);
    assert_eq!(running.wait(PATIENCE).code, None);
    assert!(!project.read("firegopher.lock").contains(&slow));
    project.ok(&["lock"]);
    assert!(project.read("firegopher.lock").contains(&slow));
    assert_eq!(server.seen().iter().filter(|request| request.target == "/quick.tar").count(), 1);
}

#[test]
fn what_cannot_be_downloaded_is_told_with_its_address() {
    let project = Project::new(&vm("http://127.0.0.1:1/a.tar", ""));
    project.run(&["lock"]).expect(1).says("http://127.0.0.1:1/a.tar").says("help:");
    let site = Site::new(&[]);
    let project = Project::new(&vm(&site.server.url("/gone.tar"), ""));
    project.run(&["lock"]).expect(1).says("/gone.tar").says("404");
    let project = Project::new(&vm("http://no-such-host.invalid/a.tar", ""));
    project.run(&["lock"]).expect(64).says("unencrypted").says("help:");
    let digest = format!("sha256=\"{}\"", "0".repeat(64));
    let project = Project::new(&vm("http://no-such-host.invalid/a.tar", &digest));
    project.run(&["lock"]).expect(1).says("no-such-host.invalid").says("help:");
}

#[test]
fn a_download_that_was_killed_is_gone_on_with_by_the_next_command() {
    let archive = tarball(&[("hello", &"x".repeat(4 << 20))]);
    let served = archive.clone();
    let server = Server::start(move |request| {
        let reply = Reply::ok(served.clone()).header("etag", "\"one\"").ranged(request);
        if request.nth == 0 { reply.stall(3 << 20) } else { reply }
    });
    let home = public_dir();
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    // Nothing else of it needs a download, and so no package lists.
    let project = Project::new(&vm(&server.url("/a.tar"), "")).with_home(home.path());
    let running = project.command(&["lock"]).spawn();
    let partial = home.path().join("v1/partial");
    let begun = Instant::now();
    let arrived = loop {
        let sizes = files(&partial)
            .iter()
            .filter(|p| p.ends_with("bytes"))
            .map(|p| p.metadata().unwrap().len())
            .sum();
        if sizes >= 2 << 20 {
            break sizes;
        }
        assert!(begun.elapsed() < PATIENCE, "{sizes} bytes arrived");
        std::thread::sleep(Duration::from_millis(10));
    };
    running.signal(9);
    assert_eq!(running.wait(PATIENCE).code, None);
    assert!(!project.read("firegopher.lock").contains("a.tar"));
    project.ok(&["lock"]).says("going on with").says("Wrote firegopher.lock");
    assert!(project.read("firegopher.lock").contains(&sha256(&archive)));
    let from = server.seen()[1].first_byte().unwrap() as u64;
    assert!(from >= arrived && from <= 3 << 20, "{from}");
    assert!(files(&partial).is_empty());
}
