//! Booting: from `firegopher up` to the VMM's exec, to the first HTTP answer against the same QEMU by hand, and what
//! a supervisor takes.
//!
//! "By hand" is the very command line that firegopher gave its VMM, with the same files in the same jail and the
//! same tap, and a minimal peer that answers the guest's hello: no CLI, no plan, no supervisor, no staging, no
//! port proxy. All of that is made before its clock starts.

mod common;

#[path = "common/by_hand.rs"]
mod by_hand;
#[path = "common/http.rs"]
mod http;

use by_hand::ByHand;
use common::{Project, Series, children_cpu, heading, mono_ns, rounds, wanted};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn main() {
    let projects = [httpd(), python()];
    if wanted("launch") {
        launch(&projects[0].0);
    }
    for (project, path, goal) in &projects {
        if wanted(&format!("http {}", project.dir.display())) {
            answer(project, path, *goal);
        }
    }
}

fn port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// A server that costs next to nothing: what is measured is the boot.
fn httpd() -> (Project, String, Option<f64>) {
    let port = port();
    let manifest = format!(
        "project \"bench-httpd\"\nvm \"httpd\" {{\n    image {{ debian \"busybox-static\" }}\n    \
         workload \"www\" to=\"/www\"\n    \
         run \"/bin/busybox\" \"httpd\" \"-f\" \"-p\" \"8000\" \"-h\" \"/www\"\n    port {port} to=8000\n}}\n"
    );
    let project = Project::new("httpd", &manifest);
    fs::create_dir_all(project.dir.join("www")).expect("a directory");
    fs::write(project.dir.join("www/index.html"), "hello\n").expect("a page");
    project.run(&["build"]);
    (project, format!("127.0.0.1:{port}"), Some(2500.0))
}

/// The example.
fn python() -> (Project, String, Option<f64>) {
    let port = port();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python-web");
    let manifest = fs::read_to_string(example.join("firegopher.kdl")).expect("the example");
    let manifest = manifest.replace("port 8080", &format!("port {port}"));
    let project = Project::new("python-web", &format!("project \"bench-python-web\"\n{manifest}"));
    fs::create_dir_all(project.dir.join("app")).expect("a directory");
    for file in fs::read_dir(example.join("app")).expect("the app").flatten() {
        fs::copy(file.path(), project.dir.join("app").join(file.file_name())).expect("a copy");
    }
    project.run(&["build"]);
    (project, format!("127.0.0.1:{port}"), None)
}

/// What the supervisor wrote about the project's only VM.
fn state(project: &Project) -> (PathBuf, serde_json::Value) {
    let name = format!("bench-{}", project.dir.file_name().expect("it has a name").to_string_lossy());
    let vm = walkdir::WalkDir::new(project.home.join("state").join(name))
        .max_depth(2)
        .into_iter()
        .filter_map(Result::ok)
        .find(|e| e.file_name() == "state.json")
        .expect("a state");
    let text = fs::read(vm.path()).expect("a state");
    let dir = vm.path().parent().expect("it is in a directory").to_owned();
    (dir, serde_json::from_slice(&text).expect("JSON"))
}

fn at(state: &serde_json::Value, event: &str) -> u64 {
    state["events"][event]["mono_ns"].as_u64().unwrap_or_else(|| panic!("{event} has no stamp"))
}

fn launch(project: &Project) {
    let names = ["the supervisor's start", "its first boot", "the VMM's exec"];
    let mut events = names.map(|_| Series::default());
    let mut parts = std::collections::BTreeMap::<String, Series>::new();
    let (mut cpu, mut resident, mut anonymous) = (Series::default(), Series::default(), Series::default());
    for _ in 0..rounds(15) {
        let before = children_cpu();
        let begin = mono_ns();
        project.run(&["up", "-d", "--offline"]);
        cpu.millis(children_cpu() - before);
        let (_, state) = state(project);
        for (series, event) in events.iter_mut().zip(["supervisor-start", "boot", "vmm-exec"]) {
            series.push((at(&state, event) - begin) as f64 / 1e6);
        }
        for (part, micros) in state["launch_us"].as_object().expect("parts") {
            parts.entry(part.clone()).or_default().push(micros.as_f64().unwrap_or(0.0) / 1e3);
        }
        let pid = state["supervisor"]["pid"].as_i64().expect("a pid");
        resident.push(status_kib(pid, "VmRSS") / 1024.0);
        anonymous.push(status_kib(pid, "RssAnon") / 1024.0);
        project.run(&["down"]);
    }
    heading("from the exec of `firegopher up -d`, warm store, to");
    events[0].report(names[0], "ms", None);
    events[1].report(names[1], "ms", None);
    events[2].report(names[2], "ms", 120.0);
    parts.iter().for_each(|(part, s)| s.report(&format!("  of that: {part}"), "ms", None));
    cpu.report("user and system time of `up -d`", "ms", None);
    heading("a running supervisor's memory");
    resident.report("resident", "MiB", 10.0);
    anonymous.report("of that its own (anonymous)", "MiB", None);
}

fn status_kib(pid: i64, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a live supervisor");
    let line = status.lines().find(|l| l.starts_with(field)).expect("the kernel's fields");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

fn answer(project: &Project, address: &str, goal: Option<f64>) {
    let mut recorded: Option<ByHand> = None;
    let (mut up, mut hand) = (Series::default(), Series::default());
    let (mut up_started, mut hand_started) = (Series::default(), Series::default());
    // The first round only warms the page cache and records the command line.
    for round in 0..=rounds(7) {
        let begin = Instant::now();
        let begin_ns = mono_ns();
        project.run(&["up", "-d", "--offline"]);
        http::wait_for_200(|| http::connect(address));
        let took = begin.elapsed();
        let (dir, state) = state(project);
        if round > 0 {
            up.millis(took);
            up_started.push((at(&state, "started") - begin_ns) as f64 / 1e6);
        }
        if recorded.is_none() {
            recorded = Some(ByHand::record(&project.dir, &dir, &state));
        }
        project.run(&["down"]);
        let Some(by_hand) = &mut recorded else { continue };
        let timed = by_hand.boot(address);
        if round > 0 {
            hand.millis(timed.answer);
            hand_started.millis(timed.started);
        }
    }
    let name = project.dir.file_name().expect("it has a name").to_string_lossy().into_owned();
    heading(format!("{name}: to the workload's start and the first HTTP 200"));
    up_started.report("firegopher up -d: started", "ms", None);
    up.report("firegopher up -d: HTTP 200", "ms", goal);
    hand_started.report("QEMU by hand: started", "ms", None);
    hand.report("QEMU by hand: HTTP 200", "ms", None);
    up.over(&hand).report("ratio of each pair", "", 1.10);
}
