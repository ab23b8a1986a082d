//! gc, verify and store: what stays, what goes and what is mended, as root and as somebody else. Each test has a home of
//! its own.

use crate::harness::{PATIENCE, Project, guard_of, guests, home_like_the_warm_one, public_dir, skip};
use crate::schemas::check_document;
use firegopher::digest::FieldHasher;
use firegopher::home::Home;
use firegopher::store::{Action, Store, hash_file, tree_digest};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65534;

const PLAIN: &str = "vm \"box\" { workload \"./app\" to=\"/app\"; run \"true\" }";

/// Changes one byte of a sealed file and leaves all else as it was.
fn flip(path: &Path) {
    let mode = path.metadata().unwrap().permissions().mode();
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // A new file: the warm store shares the old one's inode.
    let owner = std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
}

/// The outputs of `build`, by kind.
fn built(project: &Project) -> std::collections::BTreeMap<String, (String, PathBuf)> {
    let steps = project.ok(&["build", "--json", "--offline"]).json()["steps"].clone();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let step = |s: &Value| (text(&s["kind"]), (text(&s["output"]), PathBuf::from(text(&s["path"]))));
    steps.as_array().unwrap().iter().map(step).collect()
}

fn follows(project: &Project, schema: &str, args: &[&str], code: i32) -> Value {
    let document = project.run(args).expect(code).json();
    check_document(schema, &document);
    document
}

/// A project over a copy of the warm store; of an ordinary user if there is a uid.
fn over_a_copy(dir: &Path, uid: Option<u32>) -> Project {
    let (exe, home) = (dir.join("firegopher"), dir.join("home"));
    std::fs::copy(env!("CARGO_BIN_EXE_firegopher"), &exe).unwrap();
    home_like_the_warm_one(&home, uid);
    let project = Project::new(PLAIN).with_exe(&exe).with_home(&home);
    project.write("app/file", "one");
    match uid {
        Some(uid) => project.as_user(uid),
        None => project,
    }
}

fn as_root_and_not(test: impl Fn(&Project)) {
    let Some(_turn) = guests(1) else { return };
    let public = public_dir();
    test(&over_a_copy(&public.path().join("."), None));
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become another user; this test ran as one");
    }
    let public = public_dir();
    test(&over_a_copy(public.path(), Some(NOBODY)));
}

#[test]
fn gc_leaves_what_a_project_needs_and_removes_the_rest() {
    as_root_and_not(|project| {
        let before = built(project);
        project.write("app/file", "two");
        let after = built(project);
        let old = &before["unpack"].1;
        let stats = follows(project, "store", &["store", "--json"], 0);
        assert!(stats["needed_bytes"].as_u64().unwrap() > 0 && stats["most_bytes"].as_u64().unwrap() > 0);

        let dry = follows(project, "gc", &["gc", "--dry-run", "--max-size", "0", "--json"], 0);
        let victims = dry["removed"].as_array().unwrap();
        let layer = victims.iter().find(|v| v["path"] == old.to_str().unwrap()).unwrap();
        assert_eq!(
            (&layer["kind"], &layer["subject"], &layer["why"]),
            (&"unpack".into(), &"app".into(), &"size".into())
        );
        assert!(old.exists(), "a dry run removes nothing");
        let table = project.ok(&["gc", "--dry-run", "--max-size", "0"]).says("Would free ");
        assert!(table.stdout.lines().next().unwrap().starts_with("KIND "), "{table:?}");

        let done = follows(project, "gc", &["gc", "--max-size", "0", "--json"], 0);
        assert_eq!(done["freed_bytes"], dry["freed_bytes"]);
        assert!(!old.exists());
        // All that the project has now is there, and all that it is made of.
        project.ok(&["build", "--offline"]).says("Nothing to build");
        assert_eq!(built(project), after);
        project.ok(&["verify", "--all"]).says(": all sound.");
        project.ok(&["gc", "--max-size", "0"]).says("Freed 0 B");
        // What went is made anew from the packages, which the lock file kept.
        project.write("app/file", "one");
        assert_eq!(built(project), before);
        // Nobody needs what a directory that is gone needed.
        std::fs::remove_file(project.path().join("firegopher.kdl")).unwrap();
        std::fs::remove_file(project.path().join("firegopher.lock")).unwrap();
        project.ok(&["gc", "--max-size", "0"]).says("known projects need 0 B");
        assert_eq!(follows(project, "store", &["store", "--json"], 0)["objects"], Value::Array(vec![]));
        project.ok(&["gc"]).says("Freed 0 B");
    });
}

#[test]
fn a_flipped_byte_is_found_and_built_again() {
    as_root_and_not(|project| {
        let before = built(project);
        project.ok(&["verify"]).says(": all sound.");
        let (digest, tree) = &before["image"];
        let image = tree.join("base.ext4");
        flip(&image);
        let found = project.run(&["verify", &digest[..8]]).expect(1);
        found
            .prints("(image) is broken")
            .prints("makes it anew: image ")
            .prints("needed by VM box of project ");
        assert!(!tree.exists(), "quarantined");
        project.ok(&["plan", "--verbose"]).prints("its record is gone");
        assert_eq!(built(project), before, "the same bytes");
        project.ok(&["verify", "--all"]);

        // A package: whoever named it fetches again, and the image is what it was.
        let parts: Value = serde_json::from_slice(&std::fs::read(&before["fetch-image"].1).unwrap()).unwrap();
        let deb = parts["debs"][0].as_str().unwrap();
        flip(&project.home().join("v1/objects").join(&deb[..2]).join(deb));
        let found = follows(project, "verify", &["verify", "--json"], 1);
        assert_eq!(found["broken"][0]["object"], deb);
        assert_eq!(found["broken"][0]["steps"][0]["kind"], "deb");
        project.run(&["build", "--offline"]).expect(1).says("the store lacks packages: ");
        project.run(&["verify", "zz"]).expect(64).says("no object");
    });
}

#[test]
fn a_running_vm_keeps_what_it_reads_and_is_named_when_that_breaks() {
    let Some(_turn) = guests(1) else { return };
    let public = public_dir();
    let project = over_a_copy(public.path(), None);
    let runs = "vm \"box\" { workload \"./app\" to=\"/app\"; run \"sh\" \"-c\" \"echo up and running; exec sleep 600\" }";
    project.manifest(runs);
    // Attached: whoever only follows a VM does not hold the store.
    let _up = project.command(&["up", "--offline"]).spawn();
    project.wait_log("box", "up and running");
    let running = built(&project);
    project.write("app/file", "two");
    built(&project);
    // Neither the newest outputs nor a manifest name what it runs on.
    std::fs::rename(project.path().join("firegopher.kdl"), project.path().join("away")).unwrap();
    std::fs::rename(project.path().join("firegopher.lock"), project.path().join("away.lock")).unwrap();
    project.ok(&["gc", "--max-size", "0"]).says("Freed ");
    for kind in ["unpack", "image", "fetch-kernel", "fetch-vmm", "initramfs"] {
        assert!(running[kind].1.exists(), "{kind}");
    }
    assert!(!running["init"].1.exists());
    flip(&running["unpack"].1);
    project.run(&["verify"]).expect(1).prints("VM box of project ").prints(" runs on it");
    assert_eq!(project.ps("box").unwrap()["status"], "running");

    // Its supervisor dies, and whoever would clean up after it: gc removes what that leaves.
    let row = project.ps("box").unwrap();
    let supervisor = row["supervisor_pid"].as_i64().unwrap() as i32;
    for pid in [guard_of(supervisor), supervisor] {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    let dry = follows(&project, "gc", &["gc", "--dry-run", "--json"], 0);
    assert_eq!(dry["lost_vms"][0]["vm"], "box");
    project
        .ok(&["gc", "--max-size", "0"])
        .prints("lost VM ")
        .prints(" box of project ")
        .prints("its supervisor died");
    assert!(!running["image"].1.exists());
    assert_eq!(project.ps("box").unwrap()["status"], "failed");
    assert!(!project.state_dir().join("box/jail").exists());
    project.ok(&["down"]);
}

#[test]
fn gc_waits_for_a_build_and_others_wait_for_gc() {
    let Some(_turn) = guests(1) else { return };
    let public = public_dir();
    let project = over_a_copy(public.path(), None);
    let home = Home::new(project.home());
    let me = format!("(pid {})", std::process::id());
    // This process stands for a build: it has the store open.
    let store = Store::open(home.clone()).unwrap();
    let gc = project.command(&["gc", "--max-size", "0"]).spawn();
    std::thread::sleep(Duration::from_millis(1500));
    drop(store);
    gc.wait(PATIENCE).expect(0).says("waiting for ").says(&me);
    // And now for a gc.
    let mut store = Store::open(home).unwrap();
    let exclusive = store.lock_exclusive(&|_| ()).unwrap();
    let plan = project.command(&["plan"]).spawn();
    std::thread::sleep(Duration::from_millis(1500));
    drop(exclusive);
    drop(store);
    plan.wait(PATIENCE).expect(0).says("waiting for ").says(&me).says("which has the store");
    // Two real processes: the build is finished first, and what it made stays.
    let public = public_dir();
    let project = over_a_copy(public.path(), None);
    let build = project.command(&["build", "--offline"]).spawn();
    while !project.home().join("state").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let gc = project.command(&["gc", "--max-size", "0"]).spawn();
    build.wait(PATIENCE).expect(0);
    gc.wait(PATIENCE).expect(0);
    project.ok(&["build", "--offline"]).says("Nothing to build");
}

/// An object or a tree, and the record of a step that gave it. Not synced: no power cut is tested here.
fn fill(store: &Store, away: &Path, round: u8, n: u8) {
    let dir = away.join(format!("{round}-{n}"));
    std::fs::create_dir_all(dir.join("a/b")).unwrap();
    for file in ["a/x", "a/b/y", "z"] {
        std::fs::write(dir.join(file), [round, n, 7]).unwrap();
    }
    let (from, output) = match n % 2 {
        0 => (dir.clone(), tree_digest(&dir).unwrap()),
        _ => (dir.join("z"), hash_file(&dir.join("z")).unwrap()),
    };
    let to = store.object_path(&output);
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::rename(from, to).unwrap();
    let key = FieldHasher::new("test").field([round, n]).finish().into();
    store
        .record(
            &key,
            &Action { kind: "image".into(), output, inputs: vec![], millis: 0, subject: String::new() },
        )
        .unwrap();
}

#[test]
fn gc_killed_at_any_moment_leaves_a_consistent_store() {
    let public = public_dir();
    let project = Project::empty().with_home(&public.path().join("home"));
    let home = Home::new(project.home());
    let mut partly = 0;
    let mut took = Duration::from_millis(60);
    for round in 0..21_u8 {
        let before = {
            let store = Store::open(home.clone()).unwrap();
            (0..80).for_each(|n| fill(&store, public.path(), round, n));
            store.objects().unwrap().len()
        };
        let begun = Instant::now();
        let gc = project.command(&["gc", "--max-size", "0"]).spawn();
        if round == 0 {
            gc.wait(Duration::from_secs(60)).expect(0);
            took = begun.elapsed();
            continue;
        }
        // Later and later, around the moment when it removes things.
        std::thread::sleep(took.mul_f64(0.3 + f64::from(round) / 30.0));
        gc.signal(libc::SIGKILL);
        gc.wait(Duration::from_secs(60));
        let store = Store::open(home.clone()).unwrap();
        let objects = store.objects().unwrap();
        partly += usize::from(!objects.is_empty() && objects.len() < before);
        for object in &objects {
            assert!(store.verify_object(object).unwrap(), "{object} is not whole");
        }
        assert_eq!(std::fs::read_dir(home.store().join("tmp")).unwrap().count(), 0, "swept");
        // A record may be gone before its object; never the other way round.
        for record in store.inventory().unwrap().records {
            assert!(store.has(&record.action.unwrap().output), "round {round}");
        }
    }
    println!("{partly} of 20 kills came between the first and the last removal");
    project.ok(&["gc", "--max-size", "0"]);
    assert_eq!(Store::open(home).unwrap().objects().unwrap(), []);
}
