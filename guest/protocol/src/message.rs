//! The messages of channel 0, and what the guest is told to run.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Raised whenever a message changes its meaning; both sides come from one build, so they must agree.
pub const PROTOCOL: u32 = 1;

/// The virtio-serial port's name under QEMU (`/sys/class/virtio-ports/*/name`).
pub const PORT_NAME: &str = "org.firegopher.control";
/// The vsock port the guest connects to on the host (CID 2) under Firecracker.
pub const VSOCK_PORT: u32 = 1024;
/// Prefix of the console line that repeats the exit record when the control channel is gone.
pub const EXIT_LINE: &str = "firegopher-exit: ";

/// How many bytes of standard input the host may have sent beyond those the guest has reported as taken. It keeps
/// input that the workload does not read from blocking the signals behind it.
pub const STDIN_WINDOW: usize = 256 * 1024;

/// The longest text, in bytes, that a guest's message holds.
pub const MAX_TEXT: usize = 4 * 1024;

/// Where programs are looked for unless the environment has a PATH: Debian's default for root, good for everybody in a
/// machine of one's own.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What each channel carries.
pub mod channel {
    /// JSON messages, one a frame.
    pub const CONTROL: u16 = 0;
    /// Host to guest: the workload's standard input. An empty frame closes it.
    pub const STDIN: u16 = 1;
    /// Guest to host: the workload's standard output.
    pub const STDOUT: u16 = 2;
    /// Guest to host: the workload's standard error.
    pub const STDERR: u16 = 3;
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromGuest {
    /// The first message: the guest is up and waits for `Start`.
    Hello {
        /// The guest's `PROTOCOL`.
        protocol: u32,
        /// The guest's kernel release.
        kernel: String,
    },
    /// Something optional failed; the guest goes on.
    Warning {
        /// For the user.
        message: String,
    },
    /// The workload was started.
    Started {
        /// Its pid in the guest.
        pid: i32,
    },
    /// The workload took this much of its standard input (or will never take it).
    StdinTaken {
        /// Bytes since the last such message.
        bytes: usize,
    },
    /// The workload ended and all its output has been sent. Repeated until acknowledged.
    Exit(ExitRecord),
}

impl FromGuest {
    /// Cuts its texts to `MAX_TEXT`. Guests do it before they send, and hosts, which cannot trust a guest, before they
    /// escape them: a text grows up to fourfold then, and again as JSON, and must still fit into a frame.
    pub fn clip(&mut self) {
        match self {
            FromGuest::Hello { kernel: text, .. } | FromGuest::Warning { message: text } => {
                clip(text, MAX_TEXT)
            }
            FromGuest::Exit(record) => record.clip(),
            FromGuest::Started { .. } | FromGuest::StdinTaken { .. } => {}
        }
    }
}

/// Cuts a text to `most` bytes, which are more than 64, and says how much is missing.
pub fn clip(text: &mut String, most: usize) {
    if text.len() <= most {
        return;
    }
    let mut end = most.saturating_sub(64);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let missing = text.len() - end;
    text.truncate(end);
    // Far shorter than the 64 bytes that were left for it.
    text.push_str(&format!("… ({missing} more bytes)"));
}

/// Host to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToGuest {
    /// Answers `Hello`: everything about this boot.
    Start(Box<RunConfig>),
    /// Sends a signal to the workload's process group.
    Signal {
        /// Linux signal number.
        signal: i32,
    },
    /// Ends the workload: SIGTERM, then SIGKILL after `RunConfig::grace_ms`.
    Stop,
    /// Nobody reads this output of the workload any more: what writes to it gets SIGPIPE, as it would without a VM
    /// in between.
    CloseOutput {
        /// `channel::STDOUT` or `channel::STDERR`.
        channel: u16,
    },
    /// The exit record was received: power off.
    ExitAck,
}

/// How the workload ended. Exactly one of `code`, `signal` and `failed` is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// It exited with this code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// It was ended by this signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// It never ran: what failed, for the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The kernel's out-of-memory killer ended a process of the workload.
    #[serde(default)]
    pub oom: bool,
}

impl ExitRecord {
    /// Cuts its text to `MAX_TEXT`.
    pub fn clip(&mut self) {
        self.failed.iter_mut().for_each(|text| clip(text, MAX_TEXT));
    }
}

/// Everything a guest needs for one boot. Nothing of it is in the initramfs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunConfig {
    /// argv of the workload; `argv[0]` without '/' is looked up in PATH.
    pub argv: Vec<String>,
    /// Environment, in order; HOME, PATH, USER and TERM get defaults when missing.
    pub env: Vec<(String, String)>,
    /// Secret environment: never printed, not even in errors.
    pub secrets: Vec<(String, String)>,
    /// Absolute working directory; must exist unless it is made.
    pub workdir: String,
    /// Whether a working directory that is not there is made, for the workload's user.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub make_workdir: bool,
    /// Whom the workload runs as.
    pub user: RunUser,
    /// The guest's host name.
    pub hostname: String,
    /// Lines for /etc/hosts beyond localhost and the host name.
    pub hosts: Vec<(IpAddr, String)>,
    /// Name servers for /etc/resolv.conf; none leaves an empty file.
    pub dns: Vec<IpAddr>,
    /// eth0's settings, if there is a device.
    pub network: Option<Network>,
    /// The disks of the root, lowest first.
    pub layers: Vec<Disk>,
    /// The writable layer; `None` is a tmpfs.
    pub scratch: Option<Disk>,
    /// Mounted inside the root, parents first.
    pub volumes: Vec<VolumeMount>,
    /// Kernel parameters in the order of setting: a path below /proc/sys and its text.
    pub sysctls: Vec<(String, String)>,
    /// The workload's resource limits, each resource at most once.
    pub limits: Vec<Limit>,
    /// Whether no program may give its user more than the user has: not by set-user-ID bits, not by file capabilities.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_privileges: bool,
    /// Time between SIGTERM and SIGKILL in milliseconds.
    pub grace_ms: u64,
    /// The host's clock, in milliseconds since the epoch, at the time of sending.
    pub clock_ms: u64,
    /// Whether the workload gets a standard input pipe; else /dev/null.
    pub stdin: bool,
    /// Whether output is waited with for as long as the host does not take it: whoever reads it may look at it first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub patient: bool,
}

/// Shows everything but the values of secrets.
impl fmt::Debug for RunConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets: Vec<&str> = self.secrets.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RunConfig")
            .field("argv", &self.argv)
            .field("env", &self.env)
            .field("secrets", &secrets)
            .field("workdir", &self.workdir)
            .field("make_workdir", &self.make_workdir)
            .field("user", &self.user)
            .field("hostname", &self.hostname)
            .field("hosts", &self.hosts)
            .field("dns", &self.dns)
            .field("network", &self.network)
            .field("layers", &self.layers)
            .field("scratch", &self.scratch)
            .field("volumes", &self.volumes)
            .field("sysctls", &self.sysctls)
            .field("limits", &self.limits)
            .field("no_new_privileges", &self.no_new_privileges)
            .field("grace_ms", &self.grace_ms)
            .field("clock_ms", &self.clock_ms)
            .field("stdin", &self.stdin)
            .field("patient", &self.patient)
            .finish()
    }
}

/// Whom the workload runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunUser {
    /// By name; created if the image lacks it.
    Name(String),
    /// By number.
    Id {
        /// Numeric user id.
        uid: u32,
        /// Numeric group id.
        gid: u32,
    },
    /// As a container image says it: names or numbers out of its own passwd and group, which must know the names.
    Image {
        /// A name or a number.
        user: String,
        /// A name or a number; without one the user's own group, and group 0 for a number that passwd lacks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
    },
}

/// A block device, named by its position on the virtio bus: 0 is vda.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// 0-based index among the VM's drives.
    pub index: u8,
    /// Attached read-only.
    pub read_only: bool,
}

/// A volume and its mount point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// For messages.
    pub name: String,
    /// The device.
    pub disk: Disk,
    /// Absolute path in the root.
    pub at: String,
}

/// A resource limit of the workload's processes. `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Limit {
    /// What is limited.
    pub resource: Resource,
    /// What holds, in the unit of setrlimit(2).
    pub soft: Option<u64>,
    /// How far a process may raise what holds.
    pub hard: Option<u64>,
}

/// What setrlimit(2) limits. Without `locks` and `rss`, which Linux has not looked at since 2.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Address space of a process, in bytes.
    As,
    /// Core dump, in bytes.
    Core,
    /// Processor time of a process, in seconds.
    Cpu,
    /// Data of a process, in bytes.
    Data,
    /// A file that is written, in bytes.
    Fsize,
    /// Locked memory, in bytes.
    Memlock,
    /// POSIX message queues of a user, in bytes.
    Msgqueue,
    /// 20 less the lowest nice value.
    Nice,
    /// One more than the highest descriptor of a process.
    Nofile,
    /// Threads of a user.
    Nproc,
    /// The highest real-time priority.
    Rtprio,
    /// Real-time processor time without a blocking call, in microseconds.
    Rttime,
    /// Queued signals of a user.
    Sigpending,
    /// The stack of a process, in bytes.
    Stack,
}

impl Resource {
    /// All of them with their names.
    pub const ALL: [(&'static str, Resource); 14] = [
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("memlock", Resource::Memlock),
        ("msgqueue", Resource::Msgqueue),
        ("nice", Resource::Nice),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("rtprio", Resource::Rtprio),
        ("rttime", Resource::Rttime),
        ("sigpending", Resource::Sigpending),
        ("stack", Resource::Stack),
    ];

    /// Its name of setrlimit(2), in small letters and without `RLIMIT_`.
    pub fn name(self) -> &'static str {
        let found = Resource::ALL.iter().find(|(_, resource)| *resource == self);
        found.expect("invariant: ALL has every resource, as a test says").0
    }

    /// Whether it is counted in bytes.
    pub fn in_bytes(self) -> bool {
        use Resource::{As, Core, Data, Fsize, Memlock, Msgqueue, Stack};
        matches!(self, As | Core | Data | Fsize | Memlock | Msgqueue | Stack)
    }
}

/// eth0's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Addresses with their prefix lengths in bits.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default gateways, at most one a family.
    pub gateways: Vec<IpAddr>,
    /// Bytes; the device's own default unless set.
    pub mtu: Option<u32>,
    /// Permanent neighbour entries: address and MAC.
    pub neighbours: Vec<(IpAddr, [u8; 6])>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RunConfig {
        RunConfig {
            argv: vec!["true".into()],
            env: vec![("GREETING".into(), "hello".into())],
            secrets: vec![("API_KEY".into(), "hunter2".into())],
            workdir: "/".into(),
            make_workdir: true,
            user: RunUser::Id { uid: 1, gid: 2 },
            hostname: "guest".into(),
            hosts: vec![("172.19.0.2".parse().unwrap(), "db".into())],
            dns: vec![],
            network: Some(Network {
                addresses: vec![("fd00::1".parse().unwrap(), 64)],
                gateways: vec![],
                mtu: Some(1500),
                neighbours: vec![("172.19.0.1".parse().unwrap(), [1, 2, 3, 4, 5, 6])],
            }),
            layers: vec![Disk { index: 0, read_only: true }],
            scratch: None,
            volumes: vec![VolumeMount {
                name: "v".into(),
                disk: Disk { index: 1, read_only: false },
                at: "/v".into(),
            }],
            sysctls: vec![("vm/swappiness".into(), "10".into())],
            limits: vec![Limit { resource: Resource::Nofile, soft: Some(64), hard: None }],
            no_new_privileges: true,
            grace_ms: 1,
            clock_ms: 2,
            stdin: true,
            patient: false,
        }
    }

    #[test]
    fn debug_output_names_secrets_and_hides_their_values() {
        let text = format!("{:?}", ToGuest::Start(Box::new(config())));
        assert!(text.contains("API_KEY") && text.contains("hello"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn every_resource_has_the_name_it_has_on_the_wire() {
        for (name, resource) in Resource::ALL {
            assert_eq!(serde_json::to_value(resource).unwrap(), name);
            assert_eq!(resource.name(), name);
        }
        // The last one by order of declaration is the last of as many.
        assert_eq!(Resource::ALL.len(), Resource::Stack as usize + 1);
    }

    #[test]
    fn a_clipped_text_fits_its_bound_and_says_what_is_missing() {
        for (unit, count) in [("a", MAX_TEXT), ("a", MAX_TEXT + 1), ("é", MAX_TEXT), ("𝄞", 100_000)] {
            let whole = unit.repeat(count);
            let mut message = FromGuest::Warning { message: whole.clone() };
            message.clip();
            let FromGuest::Warning { message: text } = &message else { panic!("{message:?}") };
            assert!(text.len() <= MAX_TEXT, "{}", text.len());
            if whole.len() <= MAX_TEXT {
                assert_eq!(*text, whole);
            } else {
                let (kept, missing) = text.rsplit_once("… (").unwrap();
                assert!(whole.starts_with(kept));
                let missing: usize = missing.trim_end_matches(" more bytes)").parse().unwrap();
                assert_eq!(kept.len() + missing, whole.len());
            }
        }
        let mut record = ExitRecord { failed: Some("x".repeat(1 << 20)), ..ExitRecord::default() };
        record.clip();
        assert!(record.failed.unwrap().len() <= MAX_TEXT);
    }

    #[test]
    fn messages_survive_the_wire() {
        for message in [
            ToGuest::Start(Box::new(config())),
            ToGuest::Signal { signal: 10 },
            ToGuest::Stop,
            ToGuest::CloseOutput { channel: channel::STDERR },
            ToGuest::ExitAck,
        ] {
            let json = serde_json::to_vec(&message).unwrap();
            assert_eq!(serde_json::from_slice::<ToGuest>(&json).unwrap(), message);
        }
        for message in [
            FromGuest::Hello { protocol: PROTOCOL, kernel: "6.1".into() },
            FromGuest::Warning { message: "w".into() },
            FromGuest::Started { pid: 2 },
            FromGuest::StdinTaken { bytes: 7 },
            FromGuest::Exit(ExitRecord { signal: Some(9), oom: true, ..ExitRecord::default() }),
        ] {
            let json = serde_json::to_vec(&message).unwrap();
            assert_eq!(serde_json::from_slice::<FromGuest>(&json).unwrap(), message);
        }
    }
}
