//! Building: a cold build from downloaded packages, one changed file, and a plan that finds nothing to do.

#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod common;

use common::{Project, Series, children_cpu, heading, rounds, wanted};
use std::fs;
use std::path::Path;
use std::time::Instant;

fn main() {
    if wanted("cold") {
        cold();
    }
    if wanted("change") {
        change();
    }
    if wanted("plan") {
        plan();
    }
}

const PYTHON: &str = r#"project "bench-cold"
vm "web" {
    image { debian "python3" }
    workload "app" to="/app"
    run "python3" "/app/server.py"
}
"#;

/// Everything from the packages on: the kernel and VMM trees, the base image, the workload's, the initramfs.
fn cold() {
    let project = Project::new("cold", PYTHON);
    fs::create_dir_all(project.dir.join("app")).expect("an app");
    fs::write(project.dir.join("app/server.py"), "print('hello')\n").expect("an app");
    let project =
        Project { home: common::scratch().join(format!("cold-{}", nix::unistd::geteuid())), ..project };
    project.run(&["build"]);
    let (mut wall, mut cpu) = (Series::default(), Series::default());
    let mut steps = std::collections::BTreeMap::<String, Series>::new();
    for _ in 0..rounds(5) {
        forget_all_but_packages(&project.home.join("v1"));
        let before = children_cpu();
        let begin = Instant::now();
        project.run(&["build"]);
        wall.millis(begin.elapsed());
        cpu.millis(children_cpu() - before);
        for (kind, millis) in actions(&project.home.join("v1")) {
            steps.entry(kind).or_default().push(millis);
        }
    }
    heading("cold build of python3's base, packages downloaded");
    wall.report("firegopher build", "ms", 5000.0);
    cpu.report("its user and system time", "ms", None);
    steps
        .iter()
        .filter(|(kind, _)| *kind != "deb")
        .for_each(|(kind, s)| s.report(&format!("  step {kind}"), "ms", None));
}

/// The action records of a store: kind and milliseconds.
fn actions(store: &Path) -> Vec<(String, f64)> {
    records(store)
        .into_iter()
        .map(|(_, record)| (kind(&record), record["millis"].as_f64().unwrap_or(0.0)))
        .collect()
}

fn kind(record: &serde_json::Value) -> String {
    record["kind"].as_str().unwrap_or_default().to_owned()
}

fn records(store: &Path) -> Vec<(std::path::PathBuf, serde_json::Value)> {
    walkdir::WalkDir::new(store.join("actions"))
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let bytes = fs::read(entry.path()).expect("a record");
            (entry.into_path(), serde_json::from_slice(&bytes).expect("JSON"))
        })
        .collect()
}

/// Removes every record and object but those of downloaded packages.
fn forget_all_but_packages(store: &Path) {
    let mut keep = std::collections::BTreeSet::new();
    for (path, record) in records(store) {
        if kind(&record) == "deb" {
            keep.insert(record["output"].as_str().expect("a digest").to_owned());
        } else {
            fs::remove_file(path).expect("a record is removed");
        }
    }
    for fan in fs::read_dir(store.join("objects")).expect("objects").flatten() {
        for object in fs::read_dir(fan.path()).expect("objects").flatten() {
            let path = object.path();
            if keep.contains(&*object.file_name().to_string_lossy()) {
                continue;
            }
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .expect("an object is removed");
        }
    }
}

/// `count` files of about 6.5 kB in directories of 100.
fn files(dir: &Path, count: usize) {
    let stamp = dir.join(".made");
    if fs::read_to_string(&stamp).is_ok_and(|n| n == count.to_string()) {
        return;
    }
    for n in 0..count {
        let sub = dir.join(format!("d{:03}", n / 100));
        if n % 100 == 0 {
            fs::create_dir_all(&sub).expect("a directory");
        }
        fs::write(sub.join(format!("f{n:05}")), format!("{n:08}\n").repeat(720)).expect("a file");
    }
    fs::write(stamp, count.to_string()).expect("a stamp");
}

fn many(name: &str, count: usize) -> Project {
    let manifest = format!(
        "project \"bench-{name}\"\nvm \"many\" {{\n    workload \"files\" to=\"/files\"\n    run \"true\"\n}}\n"
    );
    let project = Project::new(name, &manifest);
    fs::create_dir_all(project.dir.join("files")).expect("a directory");
    files(&project.dir.join("files"), count);
    project.run(&["build"]);
    project
}

/// One file of 2,000 changes: a new layer.
fn change() {
    let project = many("change", 2000);
    let (mut wall, mut cpu, mut step) = (Series::default(), Series::default(), Series::default());
    for round in 0..rounds(15) {
        let text = format!("round {round} of process {}\n", std::process::id());
        fs::write(project.dir.join("files/d007/f00777"), text).expect("a file");
        let before = children_cpu();
        let begin = Instant::now();
        let output = project.run(&["build", "--json"]);
        wall.millis(begin.elapsed());
        cpu.millis(children_cpu() - before);
        let built: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let steps = built["steps"].as_array().expect("steps");
        let unpack = steps.iter().find(|s| s["kind"] == "unpack").expect("a workload is unpacked");
        let key = unpack["key"].as_str().expect("a key");
        let record = fs::read(project.home.join("v1/actions").join(&key[..2]).join(key)).expect("a record");
        let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
        step.push(record["millis"].as_f64().expect("a number"));
    }
    heading("one changed file of 2,000 (13 MB)");
    step.report("the new layer (step unpack)", "ms", 100.0);
    wall.report("firegopher build", "ms", None);
    cpu.report("its user and system time", "ms", None);
}

/// Nothing to do, with 10,000 files to look at.
fn plan() {
    let project = many("plan", 10_000);
    let (mut wall, mut cpu) = (Series::default(), Series::default());
    for _ in 0..rounds(20) {
        let before = children_cpu();
        let begin = Instant::now();
        project.run(&["plan"]);
        wall.millis(begin.elapsed());
        cpu.millis(children_cpu() - before);
    }
    heading("nothing to do, 10,000 files (65 MB)");
    wall.report("firegopher plan", "ms", 60.0);
    cpu.report("its user and system time", "ms", None);
}
