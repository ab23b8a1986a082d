//! Many guests of one manifest, up and down by the command, and what they leave: nothing.

use super::cli::{cli, stderr};
use super::stopping::Init;
use super::*;
use std::process::Stdio;

/// What a supervisor, and the process that waits for its end, may have resident.
const RESIDENT_KIB: u64 = 10 << 10;
/// Of that what counts: the code of a build without optimisation is larger than the whole.
const FIELD: &str = if cfg!(debug_assertions) { "RssAnon:" } else { "VmRSS:" };

/// firegopher's processes that have something of `home` open.
fn processes_of_home(home: &Path) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let mut open = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let of_home =
            |fd: std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(home));
        if name.starts_with("firegopher") && open.any(of_home) {
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// 10 guests; `FIREGOPHER_TEST_MANY=50` for the long form.
#[test]
fn many_stubs_of_one_manifest_leave_nothing() {
    let Some(cli) = cli(Stub::Halt, "") else { return };
    let many = std::env::var("FIREGOPHER_TEST_MANY").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let names: Vec<String> = (0..many).map(|n| format!("many{n}")).collect();
    cli.manifest_of(&names, "vmm \"firecracker\" { path \"DIR\" }; memory \"128MiB\"; grace \"1s\"");
    let begin = Instant::now();
    let up = cli.command(&["up", "-d"]).stderr(Stdio::piped()).spawn().unwrap();
    let dirs: Vec<PathBuf> = names.iter().map(|name| cli.home().join("state/fc-cli").join(name)).collect();
    let state = |dir: &PathBuf| State::load(dir).unwrap();
    // A guest that says that its workload runs, and then nothing.
    let inits: Vec<Init> = dirs
        .iter()
        .map(|dir| {
            eventually("a guest never spoke", || {
                let console = std::fs::read_to_string(dir.join("console.log")).unwrap_or_default();
                console.contains("firegopher.end=reset") && state(dir).is_some_and(|s| s.vmm.is_some())
            });
            Init::start(dir)
        })
        .collect();
    let output = up.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    println!("{many} up in {:?}", begin.elapsed());

    let states: Vec<State> = dirs.iter().map(|dir| state(dir).unwrap()).collect();
    let uids: std::collections::BTreeSet<Option<u32>> = states.iter().map(|state| state.uid).collect();
    assert_eq!(uids.len(), many, "no uid twice");
    let mut most = std::collections::BTreeMap::new();
    for state in &states {
        let waits = children_of(state.supervisor.pid).into_iter().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "firegopher-wait")
        });
        let waits = waits.expect("somebody waits for the supervisor's end");
        for (who, pid) in [("supervisor", state.supervisor.pid), ("the one that waits", waits)] {
            println!("{who}: {} KiB resident, {} KiB its own", rss(pid), memory(pid, "RssAnon:"));
            let kib = memory(pid, FIELD);
            let most: &mut u64 = most.entry(who).or_default();
            *most = kib.max(*most);
        }
    }
    println!("{FIELD} at most, in KiB: {most:?}");
    for (who, kib) in &most {
        assert!(*kib <= RESIDENT_KIB, "{who} takes {kib} KiB");
    }
    assert_eq!(processes_of_home(&cli.home()).len(), 2 * many, "a supervisor each, and who waits for it");

    // A guest's init goes with its VMM: nobody waits for the rest of what it says.
    let hung_up = std::thread::spawn({
        let mut left: Vec<_> = states.iter().map(|state| state.vmm.clone().unwrap()).zip(inits).collect();
        move || {
            while !left.is_empty() {
                left.retain(|(vmm, _)| vmm.is_alive());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    // Guests that hear nothing would each take their grace, one after the other.
    let output = cli.run(&["down", "--kill"]);
    assert!(output.status.success(), "{}", stderr(&output));
    hung_up.join().unwrap();
    println!("up and down in {:?}", begin.elapsed());
    eventually("a process of this home is left", || processes_of_home(&cli.home()).is_empty());
    for (state, dir) in states.iter().zip(&dirs) {
        assert_eq!(processes_of(&jail_name(state)), 0);
        for file in ["state.json", "jail", "jail.cgroups", "scratch.ext4", "sup.sock"] {
            assert!(!dir.join(file).exists(), "{} is left", dir.join(file).display());
        }
        let lease = firegopher::vmm::jail::lease::held(&Home::new(cli.home()), &state.project, &state.vm);
        assert_eq!(lease, None, "a uid lease is left");
    }
    // Others may have VMs on this host; the groups' parent goes with the last of all.
    for controller in ["memory", "pids", "cpu", "."] {
        let parent = Path::new("/sys/fs/cgroup").join(controller).join("firegopher");
        let groups = || {
            let all = std::fs::read_dir(&parent).into_iter().flatten().flatten();
            all.filter(|e| e.path().is_dir())
                .map(|e| e.file_name().into_string().unwrap())
                .collect::<Vec<_>>()
        };
        eventually("the parent of all groups is left without any", || {
            !parent.exists() || !groups().is_empty()
        });
        let ours = |group: &String| states.iter().any(|state| group.starts_with(state.id.as_str()));
        assert!(!groups().iter().any(ours), "a group of {controller} is left");
    }
}
