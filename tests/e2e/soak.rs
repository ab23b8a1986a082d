//! Ordinary work that goes on for long in emulated guests: nothing of it may use up what the VMM is allowed.

use crate::harness::{PATIENCE, Project, guests};
use std::time::Duration;

/// Seconds of the long form: `FIREGOPHER_TEST_SOAK=600 cargo test --test e2e soak -- --nocapture`.
const LONG: &str = "FIREGOPHER_TEST_SOAK";

/// Every `ls` is translated anew: with a buffer for code that is not bounded, an emulated VM of 256 MiB used up its
/// limit after 165 of them.
const SHORT: &str = r#"
vm "short" { boot-timeout "180s"; run "sh" "-c" "i=0; while [ $i -lt 260 ]; do ls >/dev/null; i=$((i+1)); done; echo forked $i"; }
"#;

/// Shell loops in the smallest usual VM; a compiler and Python's subprocesses in a larger one with two CPUs.
const FOR_LONG: &str = r##"
vm "shell" {
    run "sh" "-c" #"""
        until=$(($(cut -d. -f1 /proc/uptime) + SECONDS_OF_WORK)); i=0
        while [ $(cut -d. -f1 /proc/uptime) -lt $until ]; do
            ls -l /usr/bin | sort | head -n 3 >/dev/null; i=$((i+1))
        done
        echo "shell: $i rounds"
    """#
}
vm "compiler" {
    memory "1GiB"
    cpus 2
    image { debian "bash" "coreutils" "gcc" "libc6-dev" "python3" }
    workload "./src" to="/src"
    run "sh" "-c" #"""
        until=$(($(cut -d. -f1 /proc/uptime) + SECONDS_OF_WORK)); i=0
        while [ $(cut -d. -f1 /proc/uptime) -lt $until ]; do
            gcc -O1 -o /tmp/program /src/program.c && /tmp/program || exit 3
            python3 /src/spawn.py || exit 4
            i=$((i+1))
        done
        echo "compiler: $i rounds"
    """#
}
"##;

const PROGRAM: &str = "#include <stdio.h>\nint main(void) { return printf(\"%d\\n\", 42) != 3; }\n";
const SPAWN: &str = "import subprocess\nfor n in range(20): subprocess.run(['true'], check=True)\n";

#[test]
fn fork_heavy_work_does_not_get_an_emulated_vm_killed() {
    let seconds: Option<u64> = std::env::var(LONG).ok().map(|text| text.parse().unwrap());
    let Some(seconds) = seconds else {
        let Some(_turn) = guests(1) else { return };
        let project = Project::new(SHORT);
        let told = project.command(&["run", "short"]).limit(PATIENCE * 3).output().expect(0);
        assert_eq!(told.stdout, "forked 260\n");
        return;
    };
    let Some(_turns) = guests(2) else { return };
    let project = Project::new(&FOR_LONG.replace("SECONDS_OF_WORK", &seconds.to_string()));
    project.write("src/program.c", PROGRAM);
    project.write("src/spawn.py", SPAWN);
    project.ok(&["build"]);
    let limit = Duration::from_secs(seconds) * 3 + PATIENCE * 2;
    let told = project.command(&["up"]).limit(limit).output().expect(0);
    println!("{}", told.stdout);
    for vm in ["shell", "compiler"] {
        assert!(told.stdout.contains(&format!("{vm}: ")), "{told:?}");
    }
}
