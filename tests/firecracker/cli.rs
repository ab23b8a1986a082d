//! Firecracker from the command line: manifests, releases by URL, settings, drives on another file system.

use super::stopping::{connect, jail_of};
use super::*;
use firegopher::vmm::firecracker::version::Need;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

/// A project directory with a manifest and a home of its own.
pub struct Cli {
    dir: tempfile::TempDir,
    programs: [PathBuf; 2],
}

pub fn cli(kernel: Stub, vm: &str) -> Option<Cli> {
    let programs = super::project()?.programs.clone();
    let dir = tempfile::tempdir().unwrap();
    let cli = Cli { dir, programs };
    std::fs::create_dir(cli.project()).unwrap();
    std::fs::write(cli.project().join("stub"), kernel.elf()).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    for set in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_mtime, tar::Header::set_size] {
        set(&mut header, 0);
    }
    tar.append_data(&mut header, "etc/", std::io::empty()).unwrap();
    // No guest here ever runs it, but it is looked at before the boot.
    let program = Stub::Reset.elf();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/true", program.as_slice()).unwrap();
    std::fs::write(cli.project().join("root.tar"), tar.into_inner().unwrap()).unwrap();
    cli.manifest(vm);
    Some(cli)
}

/// The same, where Firecracker has what the VM asks for, as this version is the first to have.
pub fn cli_since(version: (u32, u32), kernel: Stub, vm: &str) -> Option<Cli> {
    let cli = cli(kernel, vm)?;
    let found = firegopher::vmm::firecracker::version::of(&cli.programs[0]).unwrap();
    if (found.major, found.minor) < version {
        skip(format!("Firecracker {found} is older than {}.{}", version.0, version.1));
        return None;
    }
    Some(cli)
}

impl Cli {
    pub fn project(&self) -> PathBuf {
        self.dir.path().join("project")
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// `DIR` in `vm` is the directory of the two programs.
    pub fn manifest(&self, vm: &str) {
        self.manifest_of(&["stub".to_owned()], vm);
    }

    /// The same for several VMs that are alike.
    pub fn manifest_of(&self, names: &[String], vm: &str) {
        let mut vm = vm.replace("DIR", self.programs[0].parent().unwrap().to_str().unwrap());
        if !vm.contains("boot-timeout") {
            vm = format!("boot-timeout \"60s\"\n    {vm}");
        }
        let mut text = "project \"fc-cli\"\n".to_owned();
        for name in names {
            text += &format!(
                "vm \"{name}\" {{\n    kernel {{ path \"stub\" }}\n    image {{ path \"root.tar\" }}\n    \
                 run \"true\"\n    {vm}\n}}\n"
            );
        }
        std::fs::write(self.project().join("firegopher.kdl"), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firegopher"));
        command.args(args).current_dir(self.project()).env("FIREGOPHER_HOME", self.home());
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Waits until the guest has printed its arguments.
    fn wait_for_console(&self) -> String {
        let begin = Instant::now();
        let console = self.spec_dir().join("console.log");
        loop {
            let text = std::fs::read_to_string(&console).unwrap_or_default();
            if text.contains("firegopher.end=reset") {
                return text;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "the guest never spoke: {text:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn spec_dir(&self) -> PathBuf {
        self.home().join("state/fc-cli/stub")
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        if self.home().exists() {
            let _ = self.run(&["down", "--kill"]);
        }
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_the_manifest_says_of_firecracker_is_checked_before_anything_is_built() {
    let Some(cli) = cli(Stub::Reset, "vmm \"firecracker\" version=\"1.2.3\" { path \"DIR\" }") else {
        return;
    };
    let said = |cli: &Cli| {
        let output = cli.run(&["plan"]);
        println!("{}", stderr(&output));
        (output.status.code().unwrap(), stderr(&output))
    };
    let (code, text) = said(&cli);
    assert_eq!(code, 64);
    assert!(
        text.contains("the manifest says Firecracker 1.2.3") && text.contains("help: write version="),
        "{text}"
    );
    cli.manifest("vmm \"qemu\"; network send=\"1MiB\"; cpu-template \"T2\"");
    let (code, text) = said(&cli);
    assert!(code == 64 && text.contains("QEMU knows nothing of `cpu-template` and the limits"), "{text}");
    cli.manifest("vmm \"firecracker\" { path \"/nowhere\" }");
    let (code, text) = said(&cli);
    assert!(code == 64 && text.contains("/nowhere is not there"), "{text}");
    let version = firegopher::vmm::firecracker::version::of(&cli.programs[0]).unwrap();
    for (setting, need, words) in [
        ("huge-pages \"transparent\"", Need::TransparentHugePages, "it does not use transparent huge pages"),
        ("balloon free-page-reporting=#true", Need::FreePages, "does not learn of pages"),
    ] {
        cli.manifest(&format!("vmm \"firecracker\" {{ path \"DIR\" }}; {setting}"));
        let (code, text) = said(&cli);
        if version.has(need) {
            assert_eq!(code, 0, "{text}");
        } else {
            assert!(code == 69 && text.contains(words), "{text}");
        }
    }
}

#[test]
fn a_release_by_url_is_taken_apart_and_boots() {
    let Some(cli) = cli(Stub::Reset, "") else { return };
    let archive = cli.dir.path().join("firecracker-x86_64.tgz");
    let gzip =
        flate2::write::GzEncoder::new(std::fs::File::create(&archive).unwrap(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    tar.sparse(false);
    let version = firegopher::vmm::firecracker::version::of(&cli.programs[0]).unwrap();
    for (program, name) in cli.programs.iter().zip(["firecracker", "jailer"]) {
        let inside = format!("release-v{version}-x86_64/{name}-v{version}-x86_64");
        tar.append_path_with_name(program, inside).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();
    let bytes = std::fs::read(&archive).unwrap();
    let url = format!("url \"file://{}\"", archive.display());
    cli.manifest(&format!("vmm \"firecracker\" version=\"{version}\" {{ {url} }}"));
    let output = cli.run(&["lock"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = cli.run(&["build"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lock = std::fs::read_to_string(cli.project().join("firegopher.lock")).unwrap();
    assert!(lock.contains("firecracker-x86_64.tgz"), "{lock}");
    // From the store alone.
    std::fs::remove_file(&archive).unwrap();
    let doctor = cli.run(&["doctor"]);
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(tried(&told), "the release in the store was tried: {told}");
    let output = cli.run(&["up", "--offline"]);
    let text = stderr(&output);
    assert!(text.contains("firegopher.end=reset") && text.contains("the guest reset itself"), "{text}");
    cli.manifest(&format!("vmm \"firecracker\" version=\"1.2.3\" {{ {url} }}"));
    let output = cli.run(&["build", "--offline"]);
    assert!(stderr(&output).contains("the manifest says Firecracker 1.2.3"), "{}", stderr(&output));
    cli.manifest(&format!("vmm \"firecracker\" {{ {url} sha256=\"{}\" }}", "0".repeat(64)));
    std::fs::write(&archive, bytes).unwrap();
    let output = cli.run(&["build"]);
    println!("{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&"0".repeat(64)), "{}", stderr(&output));
}

/// Whether a doctor booted a guest in Firecracker.
fn tried(told: &str) -> bool {
    let line = told.lines().find(|line| line.split_whitespace().nth(1) == Some("firecracker"));
    line.is_some_and(|line| line.contains("a jailed guest"))
}

#[test]
fn a_doctor_tries_what_is_named_and_sweeps_what_a_killed_one_left() {
    let Some(cli) = cli(Stub::Reset, "vmm \"qemu\"") else { return };
    let told = |args: &[&str]| {
        let output = cli.run(args);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let dir = cli.programs[0].parent().unwrap().to_str().unwrap();
    let (code, text) = told(&["doctor"]);
    assert!(code == 0 && !text.contains("firecracker  "), "no environment variable names one: {text}");
    let (code, text) = told(&["doctor", "--firecracker", dir]);
    assert!(code == 0 && tried(&text), "{text}");
    let (code, text) = told(&["doctor", "--firecracker", "/nowhere"]);
    assert!(code == 69 && text.contains("/nowhere/firecracker"), "{text}");
    cli.manifest("vmm \"firecracker\" { path \"DIR\" }");
    assert!(tried(&told(&["doctor"]).1), "the manifest's");

    // Killed while its guest's jail is there.
    let left = || {
        let entries =
            std::fs::read_dir(cli.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        entries.filter(|name| name.starts_with(".firegopher-trial-")).count()
    };
    let mut killed = 0;
    for _ in 0..20 {
        let mut doctor = cli.command(&["doctor"]).stdout(Stdio::null()).spawn().unwrap();
        while left() == 0 && doctor.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        doctor.kill().unwrap();
        doctor.wait().unwrap();
        killed += left();
        if left() > 0 {
            break;
        }
    }
    assert!(killed > 0, "none was killed at work");
    let (code, text) = told(&["doctor"]);
    assert!(code == 0 && text.contains("what 1 killed trials had left was removed"), "{text}");
    assert_eq!(left(), 0);
    let ledger = std::fs::read_to_string("/run/firegopher/uids.json").unwrap_or_default();
    assert!(!ledger.contains(cli.home().to_str().unwrap()), "its uid is free again: {ledger}");
}

/// Firecracker's own view of its machine, asked over the API in its jail.
fn api(cli: &Cli, path: &str) -> serde_json::Value {
    let spec_dir = cli.spec_dir();
    let program = std::fs::read_dir(spec_dir.join("jail/firecracker")).unwrap().next().unwrap().unwrap();
    let mut socket = connect(&program.path().join("root"), "run/api.sock");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = Vec::new();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = socket.read(&mut chunk) {
        text.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&text);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(json) = serde_json::from_str(body)
        {
            return json;
        }
    }
    panic!("no answer: {}", String::from_utf8_lossy(&text));
}

#[test]
fn every_setting_of_the_machine_reaches_firecracker() {
    let vm = "vmm \"firecracker\" { path \"DIR\" }; cpus 2; memory \"128MiB\"; console \"all\"; \
              balloon \"16MiB\" deflate-on-oom=#true free-page-reporting=#true; \
              network mtu=1400 receive=\"10MiB\" send=\"5MiB\" send-packets=1000; \
              root \"scratch\" bandwidth=\"20MiB\" ops=500; volume \"v\" at=\"/v\" size=\"64MiB\" ops=50";
    let Some(cli) = cli_since((1, 14), Stub::Halt, vm) else { return };
    let mut up = cli.command(&["up", "-d"]).stderr(Stdio::piped()).spawn().unwrap();
    let arguments = cli.wait_for_console();
    assert!(arguments.contains("earlyprintk=ttyS0") && !arguments.contains("quiet"), "{arguments}");
    let config = api(&cli, "/vm/config");
    println!("{config:#}");
    let drive = |role: &str| {
        let drives = config["drives"].as_array().unwrap();
        let drive = drives.iter().find(|d| d["path_on_host"].as_str().unwrap().ends_with(role)).unwrap();
        drive["rate_limiter"].clone()
    };
    let bucket = |size: u64| serde_json::json!(size);
    assert_eq!(drive("base"), serde_json::Value::Null);
    assert_eq!(drive("scratch")["bandwidth"]["size"], bucket(20 << 20));
    assert_eq!(drive("scratch")["ops"]["size"], bucket(500));
    assert_eq!(drive("scratch")["ops"]["refill_time"], bucket(1000));
    assert_eq!(drive("volume-v")["ops"]["size"], bucket(50));
    let net = &config["network-interfaces"][0];
    assert_eq!(net["rx_rate_limiter"]["bandwidth"]["size"], bucket(10 << 20));
    assert_eq!(net["tx_rate_limiter"]["ops"]["size"], bucket(1000));
    assert_eq!(config["machine-config"]["vcpu_count"], bucket(2));
    assert_eq!(config["machine-config"]["mem_size_mib"], bucket(128));
    assert_eq!(config["balloon"]["amount_mib"], bucket(16));
    assert_eq!(config["balloon"]["deflate_on_oom"], serde_json::json!(true));
    assert_eq!(config["balloon"]["free_page_reporting"], serde_json::json!(true));
    let name = |text: &str| Name::new(text).unwrap();
    let netns = supervise::project_netns(&Home::new(cli.home()), &name("fc-cli")).unwrap().unwrap();
    let tap = VmId::derive(&name("fc-cli"), &name("stub")).tap_name();
    let mtu = netns.run_in(|| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{tap}/mtu"))).unwrap();
    assert_eq!(mtu.unwrap().trim(), "1400");
    // And nothing of it is new to `plan`, while another limit is.
    let _ = up.kill();
    let _ = up.wait();
    cli.manifest(&vm.replace("ops=500", "ops=600"));
    let output = cli.run(&["plan", "--verbose"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("scratch ops") && text.contains("600"), "{text}");
    assert!(cli.run(&["down"]).status.success());
}

/// `logs`, its console, its VMM's words, `ps` and `down`, with a guest that never speaks to its host.
#[test]
fn a_stub_is_seen_by_every_command() {
    let Some(cli) = cli(Stub::Halt, "vmm \"firecracker\" { path \"DIR\" }; boot-timeout \"5s\"") else {
        return;
    };
    let up = cli.command(&["up", "-d"]).stderr(Stdio::piped()).spawn().unwrap();
    let printed = cli.wait_for_console();
    let row = |cli: &Cli| -> serde_json::Value {
        let output = cli.run(&["ps", "--json"]);
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        all["vms"][0].clone()
    };
    let before = row(&cli);
    assert_eq!((before["name"].as_str(), before["status"].as_str()), (Some("stub"), Some("starting")));
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", before["vmm_pid"])).unwrap();
    assert_eq!(comm.trim(), "firecracker");
    let stdout = |args: &[&str]| {
        let output = cli.run(args);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(stdout(&["logs"]), "", "no workload, no words");
    let console = stdout(&["logs", "--console", "stub"]);
    assert!(console.contains(printed.trim()), "{console:?}");
    let metrics =
        || -> serde_json::Value { serde_json::from_str(&stdout(&["logs", "--metrics", "stub"])).unwrap() };
    let (first, second) = (metrics(), metrics());
    let asked = |metrics: &serde_json::Value| metrics["put_api_requests"]["actions_count"].as_u64().unwrap();
    assert!(asked(&first) >= 1 && first["utc_timestamp_ms"].as_u64() < second["utc_timestamp_ms"].as_u64());
    // It never reports: `up -d` says so, with the end of its console.
    let output = up.wait_with_output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("did not report within 5 s") && told.contains("firegopher.end=reset"), "{told}");
    let announced = told.contains("stub: KVM has no hardware behind it here");
    assert_eq!((announced, told.contains("help: KVM has")), (software_kvm(), software_kvm()), "{told}");
    assert_eq!(row(&cli)["status"], "failed");
    assert_eq!(metrics(), second, "the last ones stay when it is gone");
    assert!(stdout(&["logs", "--console", "stub"]).contains(printed.trim()), "and its console");
    assert!(cli.run(&["down"]).status.success());

    // `run` is a VM of its own, and firegopher's own failure is 125.
    let output = cli.run(&["run"]);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(told.contains("did not report within 5 s"), "{told}");
    let all: serde_json::Value = serde_json::from_slice(&cli.run(&["ps", "--json"]).stdout).unwrap();
    assert!(all["vms"].as_array().unwrap().iter().all(|vm| vm["ephemeral"] == false), "{all}");
}

#[test]
fn a_cpu_template_of_the_projects_own_is_read_hashed_and_taken_or_refused_by_firecracker() {
    let Some(cli) = cli(Stub::Reset, "vmm \"firecracker\" { path \"DIR\" }; cpu-template path=\"cpu.json\"")
    else {
        return;
    };
    let template = |text: &str| std::fs::write(cli.project().join("cpu.json"), text).unwrap();
    let refused = |args: &[&str], code: i32, words: &str| {
        let output = cli.run(args);
        let text = stderr(&output);
        assert!(output.status.code() == Some(code) && text.contains(words), "{text}");
    };
    refused(&["plan"], 64, "cpu.json is not there");
    template("{\"cpuid_modifiers\": [{\"leaf\": \"seven\"}]}");
    refused(&["plan"], 64, "\"seven\" is no number of 32 bits such as \"0x10a\" at line 1 column 38");
    // KVM_CAP_XCRS is not asked for (linux/kvm.h).
    template("{\"kvm_capabilities\": [\"!56\"]}");
    let output = cli.run(&["up"]);
    assert!(stderr(&output).contains("the guest reset itself"), "{}", stderr(&output));
    // No kernel has this one.
    template("{\"kvm_capabilities\": [\"4000000000\"]}");
    let output = cli.run(&["up"]);
    let text = stderr(&output);
    let why = ["the VMM ", "KVM capabilities", "help: `firegopher logs --vmm stub` shows"];
    assert!(output.status.code() == Some(1) && why.iter().all(|word| text.contains(word)), "{text}");
    assert!(!text.contains("Firecracker exiting"), "its farewell is no reason: {text}");
    let text = String::from_utf8_lossy(&cli.run(&["logs", "--vmm"]).stdout).into_owned();
    assert!(text.contains("4000000000"), "{text}");

    // A changed template is a changed VM, and no other name for it is.
    template("{\"kvm_capabilities\": [\"!56\"]}");
    std::fs::write(cli.project().join("stub"), Stub::Halt.elf()).unwrap();
    let mut up = cli.command(&["up", "-d"]).stderr(Stdio::piped()).spawn().unwrap();
    cli.wait_for_console();
    let keeps = |cli: &Cli| cli.run(&["plan", "--detailed-exitcode"]).status.code() == Some(0);
    assert!(keeps(&cli));
    std::fs::rename(cli.project().join("cpu.json"), cli.project().join("other.json")).unwrap();
    cli.manifest("vmm \"firecracker\" { path \"DIR\" }; cpu-template path=\"other.json\"");
    assert!(keeps(&cli), "the same bytes");
    std::fs::write(cli.project().join("other.json"), "{\"kvm_capabilities\": [\"!57\"]}").unwrap();
    let output = cli.run(&["plan", "--verbose"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("cpu-template file"), "{text}");
    let _ = up.kill();
    let _ = up.wait();
}

#[test]
fn huge_pages_that_the_host_lacks_are_an_error_with_the_remedy() {
    let vm = "vmm \"firecracker\" { path \"DIR\" }; memory \"512GiB\"; huge-pages \"2MiB\"";
    let Some(cli) = cli_since((1, 7), Stub::Reset, vm) else { return };
    let output = cli.run(&["up"]);
    let text = stderr(&output);
    assert!(text.contains("huge pages of 2 MiB") && text.contains("sysctl vm.nr_hugepages="), "{text}");
}

/// Beneath a mount of its own: in a mount namespace that ends with the command.
#[test]
fn drives_on_another_file_system_are_copied_and_the_plan_says_what_that_costs() {
    let Some(cli) = cli(Stub::Reset, "vmm \"firecracker\" { path \"DIR\" }") else { return };
    assert!(cli.run(&["build"]).status.success());
    let state = cli.home().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4g,mode=0700 none {state} && {exe} plan --verbose && {exe} up; {exe} down",
        state = state.display(),
        exe = env!("CARGO_BIN_EXE_firegopher"),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(cli.project());
    let output = command.env("FIREGOPHER_HOME", cli.home()).stdin(Stdio::null()).output().unwrap();
    let (plan, told) = (String::from_utf8_lossy(&output.stdout).into_owned(), stderr(&output));
    println!("{plan}\n{told}");
    assert!(plan.contains("copies drive base (") && plan.contains("copies the kernel (1 MiB)"), "{plan}");
    assert!(told.contains("the guest reset itself"), "it boots all the same: {told}");
    // On one file system nothing is copied.
    let output = cli.run(&["plan", "--verbose"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("copies"));
}

#[test]
fn a_home_where_no_device_opens_is_told_before_anything_is_started() {
    let Some(cli) = cli(Stub::Reset, "vmm \"firecracker\" { path \"DIR\" }") else { return };
    let home = cli.home();
    std::fs::create_dir(&home).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4g,mode=0700,nodev none {home} && exec {exe} up",
        home = home.display(),
        exe = env!("CARGO_BIN_EXE_firegopher"),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(cli.project());
    let output = command.env("FIREGOPHER_HOME", &home).stdin(Stdio::null()).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(69), "{text}");
    assert!(text.contains("mounted nodev") && text.contains("help: keep FIREGOPHER_HOME"), "{text}");
    assert!(!text.contains("stub failed"), "{text}");
}

/// Two homes may hold the same project: what is host-wide must not be shared.
#[test]
fn two_homes_with_one_project_share_neither_uid_nor_cgroup() {
    let Some(project) = super::project() else { return };
    let mut specs = Vec::new();
    let mut clients = Vec::new();
    for home in ["home", "other-home"] {
        let mut spec = project.spec("twin", "halting");
        let home = Home::new(project.dir.path().join(home));
        spec.dir = home.vm(&project.name, &spec.vm);
        spec.home = home.root().to_owned();
        spec.vm_spec.drives[0].path = spec.dir.join("scratch.ext4");
        spec.vm_spec.jail.as_mut().unwrap().root = spec.dir.join("jail");
        // The tap has the same name, so it needs another namespace, as every project of a home has.
        let netns = Netns::create().unwrap();
        let exe = Path::new(env!("CARGO_BIN_EXE_firegopher"));
        clients.push(supervise::spawn_with(exe, &spec, Some(&netns)).unwrap());
        specs.push(spec);
    }
    specs.iter().for_each(wait_for_console);
    let uids: Vec<_> = specs.iter().map(|spec| state(spec).uid.unwrap()).collect();
    assert_ne!(uids[0], uids[1]);
    let groups: Vec<String> = specs
        .iter()
        .map(|spec| {
            std::fs::read_to_string(format!("/proc/{}/cgroup", state(spec).vmm.unwrap().pid)).unwrap()
        })
        .collect();
    assert_ne!(groups[0], groups[1]);
    assert!(jail_of(&specs[0].dir) != jail_of(&specs[1].dir));
    drop(clients);
    for spec in &specs {
        let home = Home::new(&spec.home);
        let limit = Duration::from_secs(30);
        supervise::stop(&home, &project.name, &spec.vm, false, limit).unwrap();
        assert_eq!(firegopher::vmm::jail::lease::held(&home, &project.name, &spec.vm), None);
    }
}
