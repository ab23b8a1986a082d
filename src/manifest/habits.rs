//! Words that people bring along from Docker, Compose, Vagrant and Terraform, and what says the same here.

use kdl::KdlNode;

/// A word, where it may be written by habit, and what to write instead. `{}` is the first value behind the word.
struct Habit {
    /// `None` means anywhere.
    parent: Option<&'static str>,
    words: &'static [&'static str],
    /// For values that are texts.
    with: &'static str,
    /// Where there is no value to repeat; `with` unless set.
    without: &'static str,
}

const fn habit(
    parent: &'static str,
    words: &'static [&'static str],
    with: &'static str,
    without: &'static str,
) -> Habit {
    Habit { parent: Some(parent), words, with, without }
}

/// In the order in which they are looked at.
const HABITS: &[Habit] = &[
    habit(
        "",
        &["service", "services", "machine", "container"],
        "write `vm \"{}\" { … }`",
        "write a block `vm \"NAME\" { … }` for each",
    ),
    habit("", &["name"], "write `project \"{}\"`", "write `project \"NAME\"`"),
    habit("", &["version"], "remove it: a manifest has no version", ""),
    habit(
        "",
        &["volumes", "volume"],
        "a volume belongs to a VM: write `volume \"{}\" at=\"/data\" size=\"1GiB\"` in its block",
        "a volume belongs to a VM: write `volume \"data\" at=\"/data\" size=\"1GiB\"` in its block",
    ),
    habit("", &["networks", "network"], "remove it: each project has a network of its own", ""),
    habit("", &["secrets", "configs"], "write `secret \"TOKEN\" env=\"TOKEN\"` in the block of the VM", ""),
    habit("", &["include", "extends", "import"], "a manifest is one file: copy what it needs into it", ""),
    habit("vm", &["environment", "envs", "env-vars"], "write `env { NAME \"value\" }`", ""),
    habit(
        "vm",
        &["env-file", "env_file", "envfile", "dotenv"],
        "write its lines into `env { NAME \"value\" }`, and secrets as `secret \"NAME\" env=\"NAME\"`",
        "",
    ),
    habit(
        "vm",
        &["command", "cmd", "exec", "args", "arguments"],
        "write `run \"{}\"`, each argument in quotes of its own",
        "write `run \"PROGRAM\" \"ARGUMENT\"`",
    ),
    habit(
        "vm",
        &["entrypoint", "start", "script"],
        "write `run \"{}\"` with the arguments behind it; it stands for entrypoint and command",
        "write `run \"PROGRAM\" \"ARGUMENT\"`; it stands for entrypoint and command",
    ),
    habit(
        "vm",
        &["ports", "publish", "expose", "forward", "forwarded-port", "listen"],
        "write `port {}` for each, with the host's port first: `port 8080 to=80`",
        "write `port 8080 to=80` for each, with the host's port first",
    ),
    habit(
        "vm",
        &["volumes"],
        "write `volume \"data\" at=\"/data\" size=\"1GiB\"` for each disk, and `workload \"./app\" to=\"/app\"` for a directory of the project",
        "",
    ),
    habit(
        "vm",
        &["mount", "mounts", "bind", "synced-folder", "share", "shared"],
        "a directory of the project is copied in: `workload \"{}\" to=\"/app\"`; what has to outlive the VM is a `volume \"data\" at=\"/data\" size=\"1GiB\"`",
        "a directory of the project is copied in: `workload \"./app\" to=\"/app\"`; what has to outlive the VM is a `volume \"data\" at=\"/data\" size=\"1GiB\"`",
    ),
    habit(
        "vm",
        &["copy", "add", "files", "app", "source", "src"],
        "write `workload \"{}\" to=\"/app\"`",
        "write `workload \"./app\" to=\"/app\"`",
    ),
    habit(
        "vm",
        &["depends_on", "depends-on", "dependson", "links", "link", "requires", "needs"],
        "remove it; VMs start in parallel, so let the workload retry its connections",
        "",
    ),
    habit(
        "vm",
        &["build", "dockerfile", "context"],
        "an image is built elsewhere: `docker build -o type=oci,dest=app.tar .`, then `image { oci-path \"app.tar\" }`",
        "",
    ),
    habit(
        "vm",
        &["from", "base", "box"],
        "write `image { oci \"{}\" }`",
        "write `image { debian \"python3\" }` or `image { oci \"python:3\" }`",
    ),
    habit(
        "vm",
        &["packages", "apt", "install", "debian"],
        "write `image { debian \"{}\" }`",
        "write `image { debian \"python3\" }`",
    ),
    habit(
        "vm",
        &["container_name", "container-name", "name"],
        "the name stands behind `vm`: `vm \"{}\" { … }`",
        "the name stands behind `vm`",
    ),
    habit(
        "vm",
        &["working_dir", "working-dir", "workingdir", "cwd", "dir", "directory", "chdir"],
        "write `workdir \"{}\"`",
        "write `workdir \"/app\"`",
    ),
    habit(
        "vm",
        &["mem_limit", "mem-limit", "mem", "ram", "memory-limit", "mem_size_mib"],
        "write `memory \"{}\"`",
        "write `memory \"512MiB\"`",
    ),
    habit("vm", &["cpu", "vcpu", "vcpus", "cores", "vcpu_count", "smp"], "write `cpus {}`", "write `cpus 2`"),
    habit("vm", &["ulimits", "ulimit", "rlimits"], "write `limit \"nofile\" 4096`", ""),
    habit("vm", &["sysctls"], "write `sysctl \"net.core.somaxconn\" 1024` for each", ""),
    habit(
        "vm",
        &["tmpfs"],
        "`root \"tmpfs\"` keeps all that is written in memory; /tmp and /run are there already",
        "",
    ),
    habit(
        "vm",
        &["disk", "disks", "drive", "storage", "disk-size"],
        "write `root \"scratch\" size=\"10GiB\"` for what goes with the VM, or `volume \"data\" at=\"/data\" size=\"1GiB\"` for what stays",
        "",
    ),
    habit(
        "vm",
        &["stop_grace_period", "stop-grace-period", "stop-timeout", "timeout"],
        "write `grace \"{}\"`",
        "write `grace \"10s\"`",
    ),
    habit(
        "vm",
        &["healthcheck", "health-check", "readiness", "liveness"],
        "remove it; `restart` acts on the workload's end alone",
        "",
    ),
    habit(
        "vm",
        &["networks", "network_mode", "network-mode", "nic", "net", "dns", "extra_hosts", "ip"],
        "remove it: a VM is reached by the ports it publishes, and nothing leaves it",
        "",
    ),
    habit(
        "vm",
        &["cap_add", "cap_drop", "privileged", "security_opt", "devices", "gpus"],
        "remove it: the guest is a machine of its own",
        "",
    ),
    habit("vm", &["platform", "architecture", "arch"], "remove it: VMs are x86-64", ""),
    habit(
        "vm",
        &["labels", "annotations", "logging", "deploy", "replicas", "scale", "profiles"],
        "remove it: there is nothing like it",
        "",
    ),
    habit("vm", &["init"], "remove it: every VM has an init that reaps processes and passes signals on", ""),
    habit(
        "vm",
        &["kernel-args", "kernel_args", "cmdline", "boot-args", "boot_args", "append"],
        "write `sysctl` for what can be set at run time; the kernel's arguments are firegopher's own",
        "",
    ),
    habit(
        "image",
        &["docker", "registry", "container", "image", "from", "pull"],
        "write `oci \"{}\"`",
        "write `oci \"docker.io/library/python:3\"`",
    ),
    habit("image", &["packages", "apt", "install"], "write `debian \"{}\"`", "write `debian \"python3\"`"),
    habit(
        "image",
        &["file", "tar", "rootfs", "dir", "directory", "ext4"],
        "write `path \"{}\"`",
        "write `path \"./rootfs.tar\"`",
    ),
    habit(
        "image",
        &["run", "copy", "env", "dockerfile", "build"],
        "an image is built elsewhere and named here: `oci-path \"app.tar\"`; files of the project are a `workload` of the VM",
        "",
    ),
    habit(
        "workload",
        &["exclude", "excludes", "dockerignore", "gitignore", "skip"],
        "write `ignore \"{}\"`, or `ignore from=\".gitignore\"`",
        "write `ignore \"*.log\"`, or `ignore from=\".gitignore\"`",
    ),
];

/// What to write instead of a node whose name is no setting of `parent`.
pub(super) fn instead(parent: &str, node: &KdlNode) -> Option<String> {
    let name = node.name().value().to_lowercase();
    let known = |habit: &&Habit| {
        habit.parent.is_none_or(|place| place == parent) && habit.words.contains(&name.as_str())
    };
    let habit = HABITS.iter().find(known)?;
    let first = node.entries().iter().find(|entry| entry.name().is_none()).map(|entry| entry.value());
    let text = first.and_then(|value| {
        value.as_string().map(str::to_owned).or_else(|| value.as_integer().map(|number| number.to_string()))
    });
    // What would have to be escaped is not repeated, nor is what nobody could read.
    let plain = |text: &String| text.len() <= 80 && !text.contains(['"', '\\', '\n']);
    Some(match text.filter(plain) {
        // Several values are no one argument.
        Some(text) if habit.with.contains("port {}") => match published(&text) {
            Ok(port) => format!("write `{port}` for each"),
            Err(_) => habit.without.to_owned(),
        },
        Some(text) => habit.with.replace("{}", &text),
        None if habit.without.is_empty() => habit.with.replace("{}", "…"),
        None => habit.without.to_owned(),
    })
}

/// A port as Docker writes it, `[ADDRESS:]HOST:GUEST[/tcp]`, as it is written here; else what is wrong with it.
pub(super) fn published(text: &str) -> Result<String, &'static str> {
    let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if protocol != "tcp" {
        return Err("only TCP ports can be published");
    }
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (rest, guest) = match text.rsplit_once(':') {
        Some((rest, guest)) => (rest, number(guest)),
        None => ("", number(text)),
    };
    if text.contains('-') {
        return Err("ranges cannot be published: write a `port` for each");
    }
    let guest = guest.ok_or("a port is a number from 1 to 65535")?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (Some(address.trim_matches(['[', ']'])), host),
        None => (None, rest),
    };
    let host =
        if host.is_empty() { guest } else { number(host).ok_or("a port is a number from 1 to 65535")? };
    let mut written = format!("port {host}");
    if host != guest {
        written.push_str(&format!(" to={guest}"));
    }
    if let Some(address) = address {
        written.push_str(&format!(" address=\"{address}\""));
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{parse, table};
    use std::path::Path;

    #[test]
    fn no_habit_is_a_setting() {
        for habit in HABITS {
            for (parent, nodes) in
                [("", table::TOP), ("vm", table::VM), ("workload", table::WORKLOAD), ("image", table::IMAGE)]
            {
                for word in habit.words {
                    assert!(habit.parent != Some(parent) || table::find(nodes, word).is_none(), "{word}");
                }
            }
        }
    }

    /// Code and help of the only problem.
    fn help(text: &str) -> (String, String) {
        let problems = parse(text, "firegopher.kdl", Path::new("/")).unwrap_err();
        let [only] = problems.problems() else { panic!("{problems:?}") };
        (only.code.to_owned(), only.help.clone().unwrap())
    }

    #[test]
    fn words_of_other_tools_lead_to_those_of_this_one() {
        let vm = |line: &str| help(&format!("vm \"a\" {{ run \"x\"; {line}\n }}"));
        for (line, words) in [
            ("environment { A \"b\" }", "`env { NAME"),
            ("command \"python3\"", "`run \"python3\""),
            ("env-file \".env\"", "`secret"),
            ("mount \"./data\"", "workload \"./data\" to="),
            ("ports \"8080:80\"", "`port 8080 to=80`"),
            ("volumes \"data:/data\"", "volume \"data\" at=\"/data\""),
            ("entrypoint \"/init\"", "`run \"/init\""),
            ("depends_on \"db\"", "in parallel"),
            ("build \".\"", "oci-path"),
            ("vcpus 4", "`cpus 4`"),
            ("ram \"1GiB\"", "`memory \"1GiB\"`"),
            ("working_dir \"/app\"", "`workdir \"/app\"`"),
            ("image { docker \"python:3\" }", "`oci \"python:3\"`"),
            ("workload \".\" to=\"/app\" { exclude \"*.log\" }", "`ignore \"*.log\"`"),
        ] {
            let (code, said) = vm(line);
            assert_eq!(code, "manifest.unknown-node", "{line}");
            assert!(said.contains(words), "{line}: {said}");
        }
        assert!(help("vm \"a\" { run \"x\" }\nnetworks { a }").1.contains("network of its own"));
        // Without `vm` that is said, too.
        let problems =
            parse("services { web { image \"x\" } }", "firegopher.kdl", Path::new("/")).unwrap_err();
        assert!(problems.problems().iter().any(|p| p.help.as_ref().unwrap().contains("`vm \"NAME\"")));
    }

    #[test]
    fn ports_of_docker_are_translated() {
        for (docker, ours) in [
            ("8080:80", "port 8080 to=80"),
            ("80", "port 80"),
            ("80:80/tcp", "port 80"),
            ("127.0.0.1:8080:80", "port 8080 to=80 address=\"127.0.0.1\""),
            ("[::1]:8080:80", "port 8080 to=80 address=\"::1\""),
        ] {
            assert_eq!(published(docker).as_deref(), Ok(ours));
            let (code, said) = help(&format!("vm \"a\" {{ run \"x\"; port \"{docker}\"\n }}"));
            assert_eq!((code.as_str(), said), ("manifest.wrong-type", format!("write `{ours}`")));
        }
        for bad in ["", "a:b", "8000-8010:80", "53:53/udp", "0", "99999"] {
            assert!(published(bad).is_err(), "{bad}");
        }
        assert!(help("vm \"a\" { run \"x\"; port \"53:53/udp\"\n }").1.contains("only TCP"));
    }
}
