//! Settings of the manifest, as the guest sees them.

use crate::harness::{Project, free_port, guests, skip, try_get};
use std::collections::BTreeMap;

/// `name=value` lines.
fn values(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

const TELL: &str = r#"
echo "user=$(id -un 2>/dev/null)"; echo "ids=$(id -u):$(id -g)"; echo "pwd=$PWD"; echo "home=$HOME"
echo "greeting=$GREETING"; echo "node=$(uname -n)"; echo "cpus=$(nproc)"
echo "disks=$(ls /sys/block | tr '\n' ' ')"
touch /tmp/x && echo "tmp=writable"
"#;

#[test]
fn user_workdir_env_hostname_and_root_are_what_the_manifest_says() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(
        r#"
        vm "named" {
            workload "./app" to="/srv/app"
            run "sh" "/srv/app/tell.sh"
            user "app"
            workdir "/srv/app"
            env { GREETING "hello there" }
            hostname "named.example"
            root "tmpfs"
        }
        vm "numbered" {
            workload "./app" to="/srv/app"
            run "sh" "/srv/app/tell.sh"
            user "1000:1001"
            cpus 2
            memory "128MiB"
        }
        "#,
    );
    project.write("app/tell.sh", TELL);
    let named = project.ok(&["run", "named"]);
    let told = values(&named.stdout);
    assert_eq!((told["user"], told["pwd"], told["greeting"]), ("app", "/srv/app", "hello there"));
    assert_eq!((told["node"], told["cpus"], told["tmp"]), ("named.example", "1", "writable"));
    assert!(!told["ids"].starts_with("0:"), "{told:?}");
    assert_eq!(told["disks"], "vda vdb ", "a tmpfs root has no scratch disk");
    let numbered = project.ok(&["run", "numbered"]);
    let told = values(&numbered.stdout);
    assert_eq!((told["ids"], told["pwd"], told["greeting"]), ("1000:1001", "/", ""));
    assert_eq!((told["node"], told["cpus"], told["disks"]), ("numbered", "2", "vda vdb vdc "));
}

#[test]
fn sysctls_and_limits_hold_in_the_guest() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(
        r##"
        vm "set" {
            user "app"
            sysctl "net.core.somaxconn" 1234
            sysctl "net/ipv4/ip_local_port_range" "20000 60000"
            sysctl "net.ipv4.conf.eth0.arp_ignore" 1
            sysctl "fs.nr_open" 2000000
            limit "nofile" soft=2000 hard=2000000
            limit "memlock" "64MiB"
            limit "core" "unlimited"
            limit "nproc" 77
            run "sh" "-c" #"""
                cd /proc/sys
                echo $(cat net/core/somaxconn net/ipv4/ip_local_port_range net/ipv4/conf/eth0/arp_ignore)
                while read -r first second third rest; do
                    case "$first $second" in Max\ *) echo "$first $second $third $rest";; esac
                done < /proc/self/limits
            """#
        }
        vm "plain" {
            run "sh" "-c" "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/sys/vm/swappiness"
        }
        "##,
    );
    let told = project.ok(&["run", "set"]).stdout;
    assert_eq!(told.lines().next(), Some("1234 20000 60000 1"));
    for limit in [
        ["Max open files", "2000", "2000000", "files"],
        ["Max locked memory", "67108864", "67108864", "bytes"],
        ["Max core file size", "unlimited", "unlimited", "bytes"],
        ["Max processes", "77", "77", "processes"],
    ] {
        let limit: Vec<&str> = limit.iter().flat_map(|text| text.split(' ')).collect();
        let found = told.lines().any(|line| line.split_whitespace().eq(limit.iter().copied()));
        assert!(found, "no {limit:?} in {told}");
    }
    assert_eq!(project.ok(&["run", "plain"]).stdout, "65536\n1048576\n0\n60\n");
}

#[test]
fn a_sysctl_or_limit_that_cannot_be_set_fails_the_vm_by_name() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("vm \"a\" { run \"true\" }");
    for (setting, why) in [
        (
            "sysctl \"net.core.nonsense\" 1",
            "setting the sysctl net.core.nonsense to \"1\": the guest's kernel has no such parameter",
        ),
        (
            "sysctl \"vm.swappiness\" \"much\"",
            "setting the sysctl vm.swappiness to \"much\": Invalid argument",
        ),
        (
            "sysctl \"kernel.ostype\" \"Plan9\"",
            "setting the sysctl kernel.ostype to \"Plan9\": Permission denied",
        ),
        (
            "limit \"nofile\" soft=9 hard=2000000",
            "setting the limit nofile to 9 (soft) and 2000000 (hard) (the kernel's ceiling is the sysctl fs.nr_open)",
        ),
    ] {
        project.manifest(&format!("vm \"a\" {{ {setting}; run \"echo\" \"ran\" }}"));
        let up = project.run(&["up"]).expect(1).says(why);
        assert_eq!(up.stdout, "", "{setting}");
        assert_eq!(project.ps("a").unwrap()["status"], "failed");
    }
}

#[test]
fn a_workload_over_base_directories_follows_the_image() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(
        r##"
        vm "box" {
            workload "./tree" to="/"
            run "sh" "-c" #"test -L /lib && cat /usr/lib/from-the-workload; stat -c %a:%u /tmp /usr; cat /etc/added; test -s /etc/os-release && echo kept"#
        }
        "##,
    );
    project.write("tree/lib/from-the-workload", "library\n");
    project.write("tree/tmp/ignored", "x");
    project.write("tree/etc/added", "added\n");
    assert_eq!(project.ok(&["run"]).stdout, "library\n1777:0\n755:0\nadded\nkept\n");
}

#[test]
fn the_first_client_waits_for_a_server_that_listens_late() {
    if !nix::unistd::geteuid().is_root() {
        return skip("without root QEMU publishes ports, and hangs up where nobody listens yet");
    }
    let Some(_turn) = guests(1) else { return };
    let port = free_port();
    let project = Project::new(&format!(
        r#"vm "late" {{
            image {{ debian "busybox-static" }}
            workload "./page" to="/srv/"
            run "/bin/busybox" "sh" "-c" "/bin/busybox sleep 2; exec /bin/busybox httpd -f -p 8000 -h /srv"
            port {port} to=8000
        }}"#
    ));
    project.write("page", "at last\n");
    let up = project.up(&["-d"]);
    let answer = try_get(port, "/page");
    assert_eq!(answer.unwrap(), "at last\n", "{up:?}");
    project.ok(&["down"]);
}

#[test]
fn a_failing_workload_is_restarted_as_often_as_allowed() {
    let Some(_turn) = guests(1) else { return };
    let project =
        Project::new(r#"vm "flaky" { run "sh" "-c" "echo attempt; exit 3"; restart "on-failure" max=2 }"#);
    let up = project.run(&["up"]).expect(1).says("flaky: the workload ended; starting again");
    assert_eq!(up.stdout, "attempt\nattempt\nattempt\n");
    let row = project.ps("flaky").unwrap();
    assert_eq!((row["restarts"].as_u64(), row["status"].as_str()), (Some(2), Some("exited")));
}

#[test]
fn several_vms_are_told_apart_in_output_and_logs() {
    let Some(_turns) = guests(2) else { return };
    let project = Project::new(
        "vm \"one\" { run \"sh\" \"-c\" \"echo first\" }\nvm \"three\" { run \"sh\" \"-c\" \"echo second\" }\n",
    );
    let up = project.up(&[]).prints("one   | first\n").prints("three | second\n");
    assert_eq!(up.stdout.lines().count(), 2, "{up:?}");
    project.ok(&["logs"]).prints("one   | first\n").prints("three | second\n");
    assert_eq!(project.logs("one"), "first\n");
    project.run(&["up", "on"]).expect(64).says("Did you mean one?");
}

/// Memory of the host that a process holds, in MiB.
fn resident(pid: &serde_json::Value) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[test]
fn a_balloon_takes_what_it_is_told_and_gives_back_what_the_guest_frees() {
    let Some(_turns) = guests(2) else { return };
    let project = Project::new(
        r##"
        vm "taken" {
            run "sh" "-c" #"""
                total() { while read name kib unit; do [ "$name" = MemTotal: ] && echo "$kib"; done < /proc/meminfo; }
                n=0
                while [ $(total) -ge 140000 ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
                echo "total=$(total)"
                echo "rng=$(cat /sys/class/misc/hw_random/rng_current)"
            """#
            memory "192MiB"
            balloon "64MiB"
        }
        vm "giving" {
            run "sh" "-c" "head -c 125829120 /dev/zero > /dev/shm/x; echo full; sleep 5; rm /dev/shm/x; echo empty; sleep 600"
            memory "384MiB"
            balloon free-page-reporting=#true
        }
        "##,
    );
    let taken = project.ok(&["run", "taken"]);
    let told = values(&taken.stdout);
    assert!(told["rng"].starts_with("virtio_rng"), "entropy comes from the host: {told:?}");
    let total: u64 = told["total"].parse().unwrap();
    println!("{total} KiB are left of 192 MiB");
    assert!(total < 140_000, "64 MiB are gone from what the guest has: {total} KiB");

    project.up(&["-d", "giving"]);
    project.wait_log("giving", "full");
    let pid = project.ps("giving").unwrap()["vmm_pid"].clone();
    let full = resident(&pid);
    project.wait_log("giving", "empty");
    let begun = std::time::Instant::now();
    let mut left = resident(&pid);
    while left + 80 > full {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{full} MiB before, {left} MiB after");
        std::thread::sleep(std::time::Duration::from_millis(200));
        left = resident(&pid);
    }
    println!("{full} MiB before, {left} MiB {:?} after", begun.elapsed());
    project.ok(&["down"]);
}
