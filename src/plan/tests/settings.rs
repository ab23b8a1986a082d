//! Every setting that the manifest knows is in the boot key.

use super::*;
use crate::manifest::vm_settings;
use std::path::Path;

const VM: &str = r#"vm "web" {
    workload "./app" to="/app"
    run "true"
}
"#;

/// A setting or `SETTING PROPERTY`, a VM, and the same with another value of it.
const CHANGES: &[(&str, &str, &str)] = &[
    ("kernel", "", "kernel { debian \"linux-image-amd64\" }"),
    ("image", "", "image { debian \"python3\" }"),
    ("vmm", "", "vmm \"firecracker\" { path \"fc\" }"),
    ("workload", "", "workload \"./app\" to=\"/more\""),
    ("workload to", "workload \"./app\" to=\"/a\"", "workload \"./app\" to=\"/b\""),
    ("workload owner", "workload \"./app\" to=\"/a\"", "workload \"./app\" to=\"/a\" owner=\"1:1\""),
    ("run", "", "run \"false\""),
    ("workdir", "", "workdir \"/app\""),
    ("user", "", "user \"app\""),
    ("env", "", "env { A \"b\" }"),
    ("secret", "", "secret \"K\" env=\"K\""),
    ("secret env", "secret \"K\" env=\"K\"", "secret \"K\" env=\"L\""),
    ("cpus", "", "cpus 2"),
    ("memory", "", "memory \"512MiB\""),
    ("port", "", "port 9090"),
    ("port to", "port 9090", "port 9090 to=80"),
    ("port address", "port 9090", "port 9090 address=\"0.0.0.0\""),
    ("volume", "", "volume \"data\" at=\"/data\" size=\"64MiB\""),
    ("volume at", "volume \"data\" at=\"/data\" size=\"64MiB\"", "volume \"data\" at=\"/d\" size=\"64MiB\""),
    (
        "volume size",
        "volume \"data\" at=\"/data\" size=\"64MiB\"",
        "volume \"data\" at=\"/data\" size=\"65MiB\"",
    ),
    (
        "volume bandwidth",
        "volume \"data\" at=\"/data\" size=\"64MiB\"",
        "volume \"data\" at=\"/data\" size=\"64MiB\" bandwidth=\"1MiB\"",
    ),
    (
        "volume ops",
        "volume \"data\" at=\"/data\" size=\"64MiB\"",
        "volume \"data\" at=\"/data\" size=\"64MiB\" ops=9",
    ),
    ("root", "", "root \"tmpfs\""),
    ("root size", "", "root \"scratch\" size=\"1GiB\""),
    ("root bandwidth", "", "root \"scratch\" bandwidth=\"1MiB\""),
    ("root ops", "", "root \"scratch\" ops=9"),
    ("restart", "", "restart \"always\""),
    ("restart max", "restart \"on-failure\"", "restart \"on-failure\" max=3"),
    ("console", "", "console \"all\""),
    ("huge-pages", "", "huge-pages \"2MiB\""),
    ("balloon", "", "balloon \"64MiB\""),
    ("balloon deflate-on-oom", "balloon \"64MiB\"", "balloon \"64MiB\" deflate-on-oom=#true"),
    ("balloon free-page-reporting", "balloon \"64MiB\"", "balloon \"64MiB\" free-page-reporting=#true"),
    ("cpu-template", "", "cpu-template \"T2\""),
    (
        "cpu-template path",
        "vmm \"firecracker\" { path \"fc\" }; cpu-template path=\"a.json\"",
        "vmm \"firecracker\" { path \"fc\" }; cpu-template path=\"b.json\"",
    ),
    ("network mtu", "", "network mtu=1400"),
    ("network receive", "", "network receive=\"1MiB\""),
    ("network receive-packets", "", "network receive-packets=9"),
    ("network send", "", "network send=\"1MiB\""),
    ("network send-packets", "", "network send-packets=9"),
    ("sysctl", "", "sysctl \"vm.swappiness\" 10"),
    ("sysctl", "sysctl \"vm.swappiness\" 10", "sysctl \"vm.swappiness\" 20"),
    ("limit", "", "limit \"nofile\" 1024"),
    ("limit soft", "limit \"nofile\" soft=1 hard=9", "limit \"nofile\" soft=2 hard=9"),
    ("limit hard", "limit \"nofile\" soft=1 hard=8", "limit \"nofile\" soft=1 hard=9"),
    ("no-new-privileges", "", "no-new-privileges #true"),
    ("grace", "", "grace \"3s\""),
    ("boot-timeout", "", "boot-timeout \"30s\""),
    ("hostname", "", "hostname \"other\""),
];

/// What says nothing by itself.
const EXCEPT: &[(&str, &str)] = &[
    ("egress", "it has one value so far"),
    ("cpu-template path", "the bytes of the file count: the test below"),
    ("vmm version", "it is checked before anything is built; the key holds the programs' digests"),
    ("network", "its properties say everything"),
    ("workload keep", "it changes what a scan finds, which is what counts"),
];

/// The VM with `setting`, which takes the place of a default.
fn with(setting: &str) -> String {
    let base = match setting.starts_with("run ") {
        true => VM.replace("    run \"true\"\n", ""),
        false => VM.to_owned(),
    };
    base.replacen("\n}", &format!("\n    {setting}\n}}"), 1)
}

#[test]
fn every_setting_replaces_the_vm() {
    let web = Name::new("web").unwrap();
    for (name, before, after) in CHANGES {
        let mut world = World::new(&with(before));
        world.up_plainly();
        assert!(!world.plan().has_changes(), "{name}");
        let (observed, last) = (world.observed.clone(), world.store.last.borrow().clone());
        world.remanifest(&with(after));
        // Builds what is lacking: then all is known.
        world.up_plainly();
        world.observed = observed;
        *world.store.last.borrow_mut() = last;
        let plan = world.plan();
        let boot = plan.step(StepKind::Boot, &web).unwrap();
        assert_eq!(boot.action, Action::Replace, "{name}");
        assert!(!boot.reasons.is_empty(), "{name}");
    }
}

#[test]
fn no_setting_is_left_out_of_these_tests() {
    let covered: Vec<&str> = CHANGES.iter().map(|c| c.0).chain(EXCEPT.iter().map(|e| e.0)).collect();
    for setting in vm_settings() {
        assert!(covered.contains(&setting.as_str()), "nothing shows that `{setting}` is in the boot key");
    }
}

#[test]
fn a_cpu_template_counts_by_its_bytes_and_not_by_its_name() {
    let key = |name: &str, bytes: &[u8]| {
        let mut world = World::new(&with(&format!("cpu-template path=\"{name}\"")));
        let (path, digest) = (name.into(), ObjectDigest::from(blake3::hash(bytes)));
        let source = ScannedSource::File { path, digest, executable: false };
        world.scan.sources.insert(Scan::file_id(Path::new(name)), source);
        world.up_plainly();
        world.observed[0].boot_key
    };
    assert_eq!(key("one.json", b"{}"), key("other.json", b"{}"));
    assert_ne!(key("one.json", b"{}"), key("one.json", b"[]"));
}
