//! Hosts and guests that break: each gives an error that names what, where and how to mend it, leaves nothing
//! behind and loses nothing.

use crate::harness::{
    Project, free_port, guard_of, guests, lacks_packages, on_small_disk, skip, skip_for_want_of_packages,
};
use crate::traces::{
    IMAGE, SLEEP, apt_config, assert_clean, assert_objects_verify, files, home_with_packages, is_root, kill9,
    pid_of,
};
use firegopher::home::Home;
use firegopher::name::{Name, VmId};
use firegopher::net::{netns::Netns, tap};
use firegopher::store::Store;
use firegopher::supervise::State;
use serde_json::json;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod guests;

// --- Package sources --------------------------------------------------------------------------------------------

#[test]
fn a_host_without_apt_lacks_something() {
    let own = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&own.path().join("home"));
    project.manifest("vm \"a\" { run \"x\" }");
    let output = project.command(&["build"]).env("PATH", "/nonexistent").output().expect(69);
    output.says("this host has no apt-get").says("`path`");
    assert!(!project.path().join("firegopher.lock").exists());
    assert!(files(&project.home().join("v1/tmp")).is_empty());
}

#[test]
fn unreachable_sources_fail_in_apts_words() {
    if !Path::new("/usr/bin/apt-get").exists() {
        return skip("this host has no apt");
    }
    let own = tempfile::tempdir().unwrap();
    // Bound and dropped: nobody listens there.
    let source = format!("http://127.0.0.1:{}/debian", free_port());
    let project = Project::empty()
        .with_home(&own.path().join("home"))
        .env("APT_CONFIG", &apt_config(own.path(), &source));
    project.manifest("vm \"a\" { run \"x\" }");
    let output = project.run(&["up"]).expect(1);
    output.says("cannot fetch the package lists").says(&source).says("check this host's network");
    assert!(!project.path().join("firegopher.lock").exists(), "half a lock");
    assert!(files(&project.home().join("v1/tmp")).is_empty());
    assert!(files(&project.home().join("v1/objects")).is_empty());
    assert_clean(&project);
    // What needs no network still works.
    project.ok(&["plan"]);
    project.run(&["build", "--offline"]).expect(1).says("--offline");
}

#[test]
fn an_unknown_package_is_told_with_the_one_that_was_meant() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new("vm \"a\" { image { debian \"busybox-statik\" }; run \"x\" }");
    let before = project.read("firegopher.lock");
    let output = project.run(&["build"]);
    if lacks_packages(&output.stderr) {
        return skip_for_want_of_packages("no package source answers");
    }
    output.expect(64).says("apt has no package busybox-statik").says("did you mean busybox-static?");
    assert_eq!(project.read("firegopher.lock"), before);
}

#[test]
fn an_unknown_package_keeps_no_other_image_from_being_pinned() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(
        "vm \"a\" { image { debian \"busybox-statik\" }; run \"x\" }
         vm \"b\" { image { debian \"hostname\" }; run \"x\" }
         vm \"c\" { image { debian \"netcat-traditionel\" }; run \"x\" }",
    );
    let output = project.run(&["lock"]);
    if lacks_packages(&output.stderr) {
        return skip_for_want_of_packages("no package source answers");
    }
    let output = output.expect(64).says("apt has no package busybox-statik");
    output.says("apt has no package netcat-traditionel").says("has 1 of 3 pins; the rest failed");
    let lock = project.read("firegopher.lock");
    assert!(lock.contains("\"hostname\"") && !lock.contains("statik"), "{lock}");
}

// --- Full disks -------------------------------------------------------------------------------------------------

/// Leaves `bytes` free.
fn fill(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("filler");
    let free = nix::sys::statvfs::statvfs(dir).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    fs::write(&path, vec![1; free.saturating_sub(bytes) as usize]).unwrap();
    path
}

#[test]
fn a_disk_that_fills_up_while_fetching_publishes_nothing() {
    on_small_disk(2 << 20, |disk| {
        let project = Project::empty().with_home(disk);
        project.manifest("vm \"a\" { run \"x\" }");
        let output = project.run(&["build"]);
        if lacks_packages(&output.stderr) {
            return skip_for_want_of_packages("no package source answers");
        }
        output.expect(1).says("space");
        assert!(files(&disk.join("v1/tmp")).is_empty());
        assert!(files(&disk.join("v1/objects")).is_empty());
        assert!(!project.path().join("firegopher.lock").exists());
    });
}

#[test]
fn gc_works_on_a_full_disk() {
    on_small_disk(8 << 20, |disk| {
        let project = Project::empty().with_home(disk);
        let store = Store::open(Home::new(disk)).unwrap();
        let file = store.publish_bytes(&[7; 1 << 20]).unwrap();
        let temp = store.temp_dir().unwrap();
        fs::create_dir(temp.path().join("out")).unwrap();
        fs::write(temp.path().join("out/file"), [8; 1 << 20]).unwrap();
        let tree = store.publish_tree(&temp.path().join("out")).unwrap();
        drop((temp, store));
        fill(disk, 0);
        project.ok(&["gc", "--max-size", "0"]).says("Freed 2.");
        let store = Store::open(Home::new(disk)).unwrap();
        assert!(!store.has(&file) && !store.has(&tree));
        assert!(files(&disk.join("v1/tmp")).is_empty());
    });
}

#[test]
fn a_disk_that_fills_up_while_building_or_booting_loses_nothing() {
    let Some(_guests) = guests(1) else { return };
    on_small_disk(900 << 20, |disk| {
        let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(disk);
        home_with_packages(disk);
        for free in [1 << 20, 8 << 20] {
            let filler = fill(disk, free);
            let output = project.run(&["build"]).expect(1);
            output.says("no space left").says("free some space");
            assert!(files(&disk.join("v1/tmp")).is_empty());
            assert_objects_verify(disk);
            fs::remove_file(filler).unwrap();
        }
        project.ok(&["build"]);
        for free in [0, 8 << 10] {
            let filler = fill(disk, free);
            let output = project.run(&["up", "-d"]).expect(1);
            assert!(output.stderr.to_lowercase().contains("no space left"), "{output:?}");
            assert!(output.stderr.contains("free some space"), "{output:?}");
            assert_clean(&project);
            fs::remove_file(filler).unwrap();
        }
        project.up(&["-d"]);
        project.ok(&["down", "--kill"]);
        assert_clean(&project);
    });
}

// --- Ports and taps ---------------------------------------------------------------------------------------------

#[test]
fn a_taken_port_is_named_and_nothing_is_started_or_stopped_for_it() {
    let Some(_guests) = guests(2) else { return };
    let (port, other) = (free_port(), free_port());
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let vms = |a: u16, b: u16| {
        format!("vm \"a\" {{ {SLEEP}; port {a} to=80 }}\nvm \"b\" {{ {SLEEP}; port {b} to=80 }}")
    };
    let project = Project::new(&vms(other, port));
    let output = project.run(&["up"]).expect(1);
    let holder = std::process::id();
    let taken_by = format!("port 127.0.0.1:{port} of VM b is held by ");
    output.says(&taken_by).says(&format!("(process {holder})")).says("help:");
    assert_eq!((project.ps("a"), project.ps("b")), (None, None));
    assert_clean(&project);
    // A VM that runs is not given up for a replacement that could not start.
    project.up(&["-d", "a"]);
    let before = project.state("a")["supervisor"].clone();
    project.manifest(&vms(port, other));
    project.run(&["up", "-d"]).expect(1).says(&format!("port 127.0.0.1:{port} of VM a is held by "));
    assert_eq!(project.ps("a").unwrap()["status"], "running");
    assert_eq!(project.state("a")["supervisor"], before);
    drop(taken);
    // Its own port may move to another VM of the project.
    project.up(&["-d"]);
    assert_eq!(project.ps("b").unwrap()["status"], "running");
    project.ok(&["down", "--kill"]);
    assert_clean(&project);
}

#[test]
fn what_was_started_is_stopped_again_when_another_vm_cannot_start() {
    let Some(_guests) = guests(2) else { return };
    let vms = |size| {
        format!(
            "vm \"a\" {{ {SLEEP} }}\nvm \"b\" {{ {SLEEP}; volume \"data\" at=\"/data\" size=\"{size}\" }}"
        )
    };
    let project = Project::new(&vms("64MiB"));
    project.up(&["-d", "b"]);
    project.ok(&["down", "--kill"]);
    project.manifest(&vms("65MiB"));
    // What can be known beforehand costs nobody a start.
    let output = project.run(&["up", "-d"]).expect(64).says("volume data").says("help:");
    assert!(!output.stderr.contains("stopping"), "{output:?}");
    assert_eq!((project.ps("a"), project.ps("b")), (None, None));
    // What cannot.
    project.manifest(&vms("64MiB"));
    let log = project.state_dir().join("b/console.log");
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    project.run(&["up", "-d"]).expect(1).says("the logs of VM b").says("stopping a again");
    assert_eq!(project.ps("a"), None);
    assert_eq!(project.ps("b").unwrap()["status"], "failed");
    fs::remove_dir(&log).unwrap();
    assert_clean(&project);
}

#[test]
fn a_taken_tap_name_is_told_and_left_alone() {
    if !is_root() {
        return skip("taps need root");
    }
    let Some(_guests) = guests(2) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}\nvm \"b\" {{ {SLEEP} }}"));
    project.up(&["-d", "a"]);
    let state = project.state("a");
    let path = format!("/proc/{}/fd/{}", pid_of(&state, "supervisor"), state["netns_fd"]);
    let namespace = Netns::from_fd(fs::File::open(path).unwrap().into());
    let name = Name::new(state["project"].as_str().unwrap()).unwrap();
    let config = tap::TapConfig {
        name: VmId::derive(&name, &Name::new("b").unwrap()).tap_name(),
        host: Ipv4Addr::new(10, 9, 8, 1),
        guest: Ipv4Addr::new(10, 9, 8, 2),
        mac: [2, 0, 0, 0, 0, 1],
        owner: None,
        persist: false,
        mtu: None,
    };
    let foreign = tap::create(&namespace, &config).unwrap();
    for _ in 0..2 {
        let output = project.run(&["up", "-d", "b"]).expect(1);
        output.says(&format!("a network device named {} exists already", config.name)).says("help:");
    }
    assert_eq!(project.ps("a").unwrap()["status"], "running");
    drop(foreign);
    project.up(&["-d", "b"]);
    project.ok(&["down", "--kill"]);
    drop(namespace);
    assert_clean(&project);
}

// --- Supervisors of other versions ------------------------------------------------------------------------------

/// Answers at a VM's socket in its supervisor's place.
fn impersonate(project: &Project, vm: &str, words: serde_json::Value) {
    let dir = project.state_dir().join(vm);
    fs::remove_file(dir.join("sup.sock")).unwrap();
    // The directory's own path may be longer than a socket's may be.
    let handle = fs::File::open(&dir).unwrap();
    let listener =
        std::os::unix::net::UnixListener::bind(format!("/proc/self/fd/{}/sup.sock", handle.as_raw_fd()))
            .unwrap();
    let mut answer = Vec::new();
    firegopher_protocol::encode_message(&words, &mut answer).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            // One that has gone by now wanted no answer.
            let _ = client.unwrap().write_all(&answer);
        }
    });
}

#[test]
fn a_supervisor_of_another_version_is_named_and_can_be_stopped() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    for words in [json!({"type": "ready", "wire": 2}), json!({"type": "greeting", "by": "another"})] {
        project.up(&["-d"]);
        let supervisor = State::load(&project.state_dir().join("a")).unwrap().unwrap().supervisor;
        impersonate(&project, "a", words);
        let output = project.run(&["up"]).expect(1);
        output.says("speaks another version").says("help: stop the VM (firegopher down)");
        project.ok(&["logs", "a"]);
        assert_eq!(project.ps("a").unwrap()["status"], "running");
        project.ok(&["down"]);
        assert!(!supervisor.is_alive(), "it was stopped");
        assert_clean(&project);
    }
}

// --- Processes that are killed ----------------------------------------------------------------------------------

#[test]
fn a_killed_vmm_is_told_with_the_end_of_its_console() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    let up = project.command(&["up"]).spawn();
    project.wait_status("a", "running");
    kill9(pid_of(&project.state("a"), "vmm"));
    let output = up.wait(Duration::from_secs(60)).expect(1);
    output.says("a failed: the VM ended while the workload ran").says("SIGKILL").says("console");
    let row = project.ps("a").unwrap();
    assert_eq!(row["status"], "failed");
    assert!(row["detail"].as_str().unwrap().contains("SIGKILL"), "{row}");
    assert_clean(&project);
    project.up(&["-d"]);
    project.ok(&["down", "--kill"]);
    assert_clean(&project);
}

#[test]
fn a_killed_supervisor_takes_its_vm_along_and_all_is_cleaned_up_at_once_or_by_the_next_command() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    for (next, guarded) in [("up", true), ("down", true), ("up", false), ("down", false)] {
        project.up(&["-d"]);
        let state = project.state("a");
        let supervisor = pid_of(&state, "supervisor");
        if !guarded {
            kill9(guard_of(supervisor));
        }
        kill9(supervisor);
        let (status, word) = if guarded { ("failed", "its supervisor died") } else { ("lost", "cleans up") };
        let row = project.wait_status("a", status);
        assert!(row["detail"].as_str().unwrap().contains(word), "{row}");
        let vmm = PathBuf::from(format!("/proc/{}/root", pid_of(&state, "vmm")));
        let begun = Instant::now();
        // A zombie has no root any more.
        while fs::read_link(&vmm).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(5), "the VMM outlived its supervisor");
            std::thread::sleep(Duration::from_millis(10));
        }
        match next {
            "up" => drop(project.up(&["-d"])),
            _ => drop(project.ok(&["down"])),
        }
        if next == "up" {
            assert_eq!(project.ps("a").unwrap()["status"], "running");
            project.ok(&["down", "--kill"]);
        }
        assert_eq!(project.ps("a"), None);
        assert_clean(&project);
    }
}

// --- Two at once ------------------------------------------------------------------------------------------------

#[test]
fn of_two_ups_at_once_the_second_has_nothing_to_do() {
    let Some(_guests) = guests(1) else { return };
    // Built anew, so that the first holds the project for long enough.
    let own = tempfile::tempdir().unwrap();
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&own.path().join("home"));
    home_with_packages(project.home());
    let first = project.command(&["up", "-d"]).spawn();
    std::thread::sleep(Duration::from_millis(700));
    let who = format!("waiting for firegopher up (pid {})", first.pid());
    let second = project.command(&["up", "-d"]).spawn();
    let second = second.wait(Duration::from_secs(200)).expect(0);
    let first = first.wait(Duration::from_secs(200)).expect(0).says("a runs");
    assert!(first.stderr.contains("image "), "{first:?}");
    assert!(second.stderr.contains(&who) && second.stderr.contains("which works on project"), "{second:?}");
    assert!(second.stderr.contains("a runs"), "{second:?}");
    assert!(!second.stderr.contains("image "), "built twice: {second:?}");
    project.ok(&["down", "--kill"]);
    assert_clean(&project);
}

#[test]
fn two_projects_building_the_same_build_it_once() {
    let Some(_guests) = guests(1) else { return };
    let own = tempfile::tempdir().unwrap();
    let at = own.path().join("home");
    home_with_packages(&at);
    let projects = [0, 1].map(|_| Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&at));
    let running = projects.each_ref().map(|p| p.command(&["build"]).spawn());
    let said = running.map(|r| r.wait(Duration::from_secs(200)).expect(0).stderr).concat();
    for step in ["fetch kernel", "fetch vmm", "fetch image", "initramfs"] {
        let done = said.lines().filter(|l| l.starts_with(step) && l.ends_with(" s)")).count();
        assert_eq!(done, 1, "{step}:\n{said}");
    }
    assert!(said.contains("waiting for firegopher"), "{said}");
    assert_objects_verify(&at);
}

#[test]
fn a_manifest_that_changes_while_up_waits_is_read_again() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    project.ok(&["build"]);
    let held = firegopher::store::lock_file(&project.state_dir().join("lock"), &|_| ()).unwrap();
    let waiting = project.command(&["up", "-d"]).spawn();
    std::thread::sleep(Duration::from_millis(1500));
    project.manifest("vm \"a\" { run }");
    drop(held);
    waiting.wait(Duration::from_secs(60)).expect(64).says("run");
    project.manifest(&format!("vm \"a\" {{ {SLEEP} }}"));
    assert_eq!(project.ps("a"), None);
}
