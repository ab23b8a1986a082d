//! The limits of a jailed Firecracker, as the kernel has them.

use super::*;

/// The files of a process's cgroups: the directory of each hierarchy it is in.
fn groups_of(pid: i32) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchies = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields[2].starts_with("cgroup")).then(|| (PathBuf::from(fields[1]), fields[2], fields[3]))
    });
    let hierarchies: Vec<_> = hierarchies.collect();
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut dirs = Vec::new();
    for line in own.lines() {
        // `4:memory:/firegopher/…`; `0::/…` is v2 (cgroups(7)).
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let wanted: Vec<&str> = controllers.split(',').collect();
        let found = hierarchies.iter().find(|(_, kind, options)| match controllers {
            "" => *kind == "cgroup2",
            _ => *kind == "cgroup" && wanted.iter().all(|c| options.split(',').any(|o| o == *c)),
        });
        dirs.extend(found.map(|(mount, ..)| mount.join(path.trim_start_matches('/'))));
    }
    dirs
}

#[test]
fn a_jailed_vmm_has_the_limits_of_its_machine() {
    let Some(project) = project() else { return };
    let mut spec = project.spec("limited", "halting");
    spec.vm_spec.cpus = 2;
    let mut client = project.up(&spec);
    wait_for_console(&spec);
    let pid = state(&spec).vmm.unwrap().pid;

    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    // Soft and hard: nothing larger than its largest drive, or its memory, which old versions have in a file.
    let largest = spec.vm_spec.memory.max(64 << 20).to_string();
    assert_eq!(limit("Max file size"), [largest.clone(), largest]);
    assert_eq!(limit("Max open files"), ["4096", "4096"]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);

    let group = format!("{}-{}", spec.vm_spec.id.as_str(), state(&spec).uid.unwrap());
    let expected = [
        ("memory", "memory.limit_in_bytes", ((128_u64 + 49) << 20).to_string()),
        ("memory", "memory.max", ((128_u64 + 49) << 20).to_string()),
        ("pids", "pids.max", "18".to_owned()),
        ("cpu", "cpu.cfs_period_us", "100000".to_owned()),
        ("cpu", "cpu.cfs_quota_us", "300000".to_owned()),
        ("cpu", "cpu.max", "300000 100000".to_owned()),
    ];
    let dirs = groups_of(pid);
    let mut limited = std::collections::BTreeSet::new();
    for dir in dirs.iter().filter(|dir| dir.ends_with(Path::new("firegopher").join(&group))) {
        for (controller, file, value) in &expected {
            if let Ok(text) = std::fs::read_to_string(dir.join(file)) {
                assert_eq!(text.trim(), value, "{}", dir.join(file).display());
                limited.insert(*controller);
            }
        }
    }
    // What this host has no group for was warned about instead.
    project.stop(&spec);
    let mut warned = 0;
    while let Some(event) = client.next_event().unwrap() {
        match event {
            Event::Warning(text) if text.contains("is not limited") => warned += 1,
            Event::Ended(_) => break,
            _ => {}
        }
    }
    assert_eq!(limited.len() + warned, 3, "limited: {limited:?}; {dirs:?}");
    project.assert_clean(&spec);
}
