//! What a second `up` does after a change, or after none.

use crate::harness::{Output, PATIENCE, Project, free_port, guests, skip};
use crate::traces::{assert_clean, is_root, pid_of};
use firegopher::name::{Name, VmId};
use firegopher::net::netns::Netns;
use serde_json::Value;
use std::time::{Duration, Instant};

fn web() -> Project {
    let port = free_port();
    let mut web = Project::new(&format!(
        r#"
        vm "web" {{
            image {{ debian "busybox-static" }}
            workload "./www" to="/www"
            run "/bin/busybox" "httpd" "-f" "-p" "8000" "-h" "/www"
            port {port} to=8000
        }}
        "#
    ));
    web.ports.push(port);
    web.write("www/index.html", "one");
    web.write("www/other.html", "other");
    web
}

#[test]
fn a_second_up_changes_nothing_and_touching_a_file_reruns_nothing() {
    let Some(_turn) = guests(1) else { return };
    let web = web();
    web.run(&["plan", "--detailed-exitcode"]).expect(2).prints("+ web boots\n");
    web.up(&["-d"]);
    assert_eq!(web.wait_http("/"), "one");
    let vmm = web.ps("web").unwrap()["vmm_pid"].clone();
    let unchanged = || {
        web.run(&["plan", "--detailed-exitcode"]).expect(0).prints("Nothing changes: all ");
        web.up(&["-d"]).says("Nothing changes: all ").says("web runs: 127.0.0.1:");
        web.ok(&["build"]).says("Nothing to build: everything is up to date.");
        assert_eq!(web.ps("web").unwrap()["vmm_pid"], vmm);
    };
    unchanged();
    let file = std::fs::File::options().write(true).open(web.path().join("www/index.html")).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    unchanged();
    // Comments and spacing are no settings.
    web.manifest(&format!("// a remark\n\n{}", web.read("firegopher.kdl")));
    unchanged();
    assert_eq!(web.wait_http("/"), "one");
}

#[test]
fn an_edited_file_is_named_in_the_plan_and_replaces_the_vm() {
    let Some(_turn) = guests(1) else { return };
    let web = web();
    // The same size, perhaps written in the same tick; and nothing that an earlier run built.
    let [one, two] = [0, 1].map(|n| (std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() + n).to_string());
    web.write("www/index.html", &one);
    web.up(&["-d"]);
    assert_eq!(web.wait_http("/"), one);
    let before = web.ps("web").unwrap()["vmm_pid"].clone();
    web.write("www/index.html", &two);
    let unless = "(unless unpack www gives the same output)";
    let page = web.run(&["plan", "--detailed-exitcode"]).expect(2);
    page.prints(&format!("~ web restarts: www/index.html {unless}\n")).prints("; 6 steps unchanged.");
    let plan = web.run(&["plan", "--detailed-exitcode", "--verbose"]).expect(2);
    assert!(names_the_file(&plan), "{plan:?}");
    assert!(!plan.stdout.contains("other.html"), "{plan:?}");
    let actions = actions(&web);
    let of = |kind: &str| actions.iter().find(|(k, _)| k == kind).map(|(_, action)| action.as_str());
    assert_eq!(of("unpack"), Some("run"));
    for follows in ["jail", "boot"] {
        assert_eq!(of(follows), Some("replace"), "{follows}: {plan:?}");
    }
    for untouched in ["fetch-kernel", "fetch-vmm", "fetch-image", "image", "initramfs"] {
        assert_eq!(of(untouched), Some("reuse"), "{untouched}");
    }
    // A build in between changes nothing about what the running VM differs in.
    web.ok(&["build"]);
    let plan = web.run(&["plan", "--verbose", "--detailed-exitcode"]).expect(2);
    let plan = plan.prints("reuse   unpack        www\n");
    assert!(names_the_file(&plan), "{plan:?}");
    web.up(&["-d"]).says("stopping web to replace it");
    assert_eq!(web.wait_http("/"), two);
    assert_ne!(web.ps("web").unwrap()["vmm_pid"], before);
    web.run(&["plan", "--detailed-exitcode"]).expect(0);
    // Back to what is in the store already: nothing is built, and the plan still says why the VM is replaced.
    web.write("www/index.html", &one);
    let plan = web.run(&["plan", "--verbose", "--detailed-exitcode"]).expect(2);
    let plan = plan.prints("reuse   unpack        www\n");
    assert!(names_the_file(&plan), "{plan:?}");
}

fn names_the_file(plan: &Output) -> bool {
    plan.stdout.lines().any(|l| l.trim().starts_with("www/index.html b3:") && l.contains(" → b3:"))
}

fn actions(project: &Project) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let plan = project.ok(&["plan", "--json"]).json();
    plan["steps"].as_array().unwrap().iter().map(|s| (text(&s["kind"]), text(&s["action"]))).collect()
}

fn sleepers(names: &[&str]) -> String {
    names.iter().map(|name| format!("vm \"{name}\" {{ run \"sleep\" \"600\" }}\n")).collect()
}

#[test]
fn vms_of_a_project_come_and_go_one_by_one() {
    let Some(_turns) = guests(2) else { return };
    let project = Project::new(&sleepers(&["left", "right"]));
    let pid = |vm: &str| project.ps(vm).unwrap()["vmm_pid"].clone();
    project.up(&["-d"]).says("left runs\n").says("right runs\n");
    let (left, right) = (pid("left"), pid("right"));
    project.run(&["down", "lfet"]).expect(64).says("Did you mean left?");
    project.ok(&["down", "left"]).says("left is down");
    assert_eq!(project.ps("left"), None);
    assert_eq!(pid("right"), right);
    // The one that is missing comes back, the other stays as it is.
    project.up(&["-d"]);
    assert_ne!(pid("left"), left);
    assert_eq!(pid("right"), right);
    let left = pid("left");
    project.manifest(&sleepers(&["left"]));
    project.ok(&["plan"]).prints("- right stops: left the manifest\n");
    project.up(&["-d"]).says("right left the manifest: stopping it");
    assert_eq!(project.ps("right"), None);
    assert_eq!(pid("left"), left);
}

#[test]
fn a_guest_that_does_not_end_keeps_no_other_one_up() {
    let Some(_turns) = guests(2) else { return };
    let deaf = "trap '' TERM; echo ready; while true; do sleep 1; done";
    let project = Project::new(&format!(
        "vm \"deaf\" {{ grace \"10m\"; run \"sh\" \"-c\" \"{deaf}\" }}\n{}",
        sleepers(&["second"])
    ));
    project.up(&["-d"]);
    project.wait_log("deaf", "ready");
    let down = project.command(&["down"]).spawn();
    let begun = Instant::now();
    while project.ps("second").is_some() {
        assert!(begun.elapsed() < PATIENCE, "second waits for deaf");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(project.ps("deaf").unwrap()["status"], "stopping");
    // Whoever waits may be sent away; the VM goes on ending, and can be hurried.
    down.signal(libc::SIGINT);
    down.wait(PATIENCE).says("second is down");
    project.ok(&["down", "--kill"]).says("deaf is down");
}

#[test]
fn what_vanishes_from_under_a_running_vm_is_drift_and_up_mends_it() {
    if !is_root() {
        return skip("jails and taps need root");
    }
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(&sleepers(&["box"]));
    project.up(&["-d"]);
    project.run(&["plan", "--detailed-exitcode"]).expect(0);
    let state = project.state("box");
    let supervisor = pid_of(&state, "supervisor");
    let namespace = std::fs::File::open(format!("/proc/{supervisor}/fd/{}", state["netns_fd"])).unwrap();
    let name = Name::new(state["project"].as_str().unwrap()).unwrap();
    let tap = VmId::derive(&name, &Name::new("box").unwrap()).tap_name();
    firegopher::net::tap::remove(&Netns::from_fd(namespace.into()), &tap).unwrap();
    let plan = project.run(&["plan", "--detailed-exitcode", "--verbose"]).expect(2);
    plan.prints("replace tap           box\n")
        .prints(&format!("drift: {tap} is gone"))
        .prints("replace boot          box\n");
    project.up(&["-d"]).says("stopping box to replace it");
    project.run(&["plan", "--detailed-exitcode"]).expect(0);
    let journal = std::fs::read(project.state_dir().join("box/journal.json")).unwrap();
    let journal: Value = serde_json::from_slice(&journal).unwrap();
    let jail = journal["effects"].as_array().unwrap().iter().find(|e| e["effect"] == "jail").unwrap();
    std::fs::remove_dir_all(jail["jail"]["root"].as_str().unwrap()).unwrap();
    project.run(&["plan", "--detailed-exitcode"]).expect(2).prints("drift: its directory is gone");
    project.up(&["-d"]);
    project.run(&["plan", "--detailed-exitcode"]).expect(0);
    project.ok(&["down"]);
    assert_clean(&project);
}

#[test]
fn a_vm_that_ended_is_planned_with_how_it_ended_and_started_again() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("vm \"once\" { run \"sh\" \"-c\" \"echo done; exit 3\" }");
    project.run(&["up"]).expect(1).says("once exited 3");
    project.ok(&["plan"]).prints("exited 3");
    let row = project.ps("once").unwrap();
    assert_eq!((row["status"].as_str(), row["detail"].as_str()), (Some("exited"), Some("exited 3")));
    project.up(&["-d"]);
    project.wait_status("once", "exited");
    assert_eq!(project.logs("once"), "done\n");
}

/// A VM that serves its name.
fn server(name: &str, port: &str) -> String {
    let serve =
        format!("mkdir -p /www && echo {name} >/www/index.html && exec busybox httpd -f -p 8000 -h /www");
    format!(
        "vm \"{name}\" {{ image {{ debian \"busybox-static\" }}; run \"sh\" \"-c\" \"{serve}\"; port {port} to=8000 }}\n"
    )
}

#[test]
fn ports_move_within_a_project_and_whoever_else_has_one_is_named() {
    let Some(_turns) = guests(2) else { return };
    let (one, two) = (free_port(), free_port());
    let text = |left: &str, right: &str| server("left", left) + &server("right", right);
    let (first, second) = (one.to_string(), two.to_string());
    let project = Project::new(&text(&first, &second));
    let shown = |port: u16| {
        let until = Instant::now() + PATIENCE;
        loop {
            match crate::harness::try_get(port, "/") {
                Ok(body) if !body.is_empty() => return body.trim().to_owned(),
                _ if Instant::now() > until => panic!("nobody answers at {port}"),
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    project.up(&["-d"]);
    assert_eq!((shown(one), shown(two)), ("left".to_owned(), "right".to_owned()));

    // They swap: the plan has nothing against it, since both are replaced.
    project.manifest(&text(&second, &first));
    let moved = format!("~ left restarts: port {two} to 8000 (new), port {one} to 8000 (gone)\n");
    project.run(&["plan", "--detailed-exitcode"]).expect(2).prints(&moved);
    project.up(&["-d"]).says("stopping left to replace it").says("stopping right to replace it");
    assert_eq!((shown(one), shown(two)), ("right".to_owned(), "left".to_owned()));

    // The same port at another address, and one that moves to another VM.
    let third = free_port();
    project.manifest(&text(&third.to_string(), &format!("{second} address=\"0.0.0.0\"")));
    project.up(&["-d"]);
    assert_eq!((shown(two), shown(third)), ("right".to_owned(), "left".to_owned()));

    // Another project is told whose port it is, before it does anything, with all else that is wrong.
    let other = Project::empty();
    let text =
        server("mine", &second).replace("; port", "; secret \"K\" env=\"FIREGOPHER_TEST_UNSET\"; port");
    other.manifest(&text);
    let place = project.path().canonicalize().unwrap();
    let name = project.state("right")["project"].as_str().unwrap().to_owned();
    let held = format!("is held by VM right of the project {name} in {}", place.display());
    for command in ["plan", "up"] {
        let refused = other.run(&[command]).expect(64).says(&held).says("$FIREGOPHER_TEST_UNSET");
        refused.says(&format!("firegopher down --project {name} right"));
    }
    let json = other.run(&["plan", "--json"]).expect(64).json();
    let codes: Vec<&str> =
        json["refusals"].as_array().unwrap().iter().map(|r| r["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["secret.missing", "supervise.port"]);
    project.ok(&["down", "--kill"]);
}

#[test]
fn a_volume_of_another_size_is_refused_by_the_plan_too() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&home.path().join("home"));
    let text = |size: &str| {
        format!("project \"sized\"\nvm \"a\" {{ run \"x\"; volume \"data\" at=\"/data\" size=\"{size}\" }}")
    };
    project.manifest(&text("64MiB"));
    project.ok(&["plan"]);
    let volume = project.home().join("volumes/sized/data.ext4");
    std::fs::create_dir_all(volume.parent().unwrap()).unwrap();
    std::fs::File::create(&volume).unwrap().set_len(32 << 20).unwrap();
    for command in ["plan", "up"] {
        let refused = project.run(&[command]).expect(64);
        refused.says("volume data of VM a has 32MiB; the manifest says 64MiB").says("down --volumes");
    }
}
