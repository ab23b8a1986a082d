//! Every setting that exists: its arguments, properties and block. The decoder, the suggestions, the schema
//! and the tests of the example all read these tables.

/// One setting.
pub(super) struct Node {
    pub name: &'static str,
    /// How many arguments, at least and at most.
    pub args: (usize, usize),
    /// What the arguments are, for messages.
    pub arg: &'static str,
    /// The arguments' type.
    pub kind: Kind,
    pub props: &'static [Prop],
    pub block: Block,
    /// May stand more than once in its block.
    pub many: bool,
    pub about: &'static str,
}

/// A property.
pub(super) struct Prop {
    pub name: &'static str,
    /// Must be given.
    pub needed: bool,
    pub kind: Kind,
    pub about: &'static str,
}

/// The type of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    /// `"0:0"` or a number.
    TextOrNumber,
    /// A number or a word, such as `"none"`.
    NumberOrText,
    /// `#true` or `#false`.
    Truth,
}

/// What may stand in a setting's block.
pub(super) enum Block {
    /// No block at all.
    None,
    /// These settings.
    Nodes(&'static [Node]),
    /// Any names, each with one text.
    Names(&'static str),
}

const MAX: usize = usize::MAX;

const fn node(name: &'static str, args: (usize, usize), arg: &'static str, about: &'static str) -> Node {
    Node { name, args, arg, kind: Kind::Text, props: &[], block: Block::None, many: false, about }
}

const fn text(name: &'static str, about: &'static str) -> Prop {
    Prop { name, needed: false, kind: Kind::Text, about }
}

const fn needed(name: &'static str, about: &'static str) -> Prop {
    Prop { name, needed: true, kind: Kind::Text, about }
}

const fn number(name: &'static str, about: &'static str) -> Prop {
    Prop { name, needed: false, kind: Kind::Number, about }
}

const fn value(name: &'static str, about: &'static str) -> Prop {
    Prop { name, needed: false, kind: Kind::TextOrNumber, about }
}

const fn truth(name: &'static str, about: &'static str) -> Prop {
    Prop { name, needed: false, kind: Kind::Truth, about }
}

/// The settings of the top level.
pub(super) const TOP: &[Node] = &[
    node(
        "project",
        (1, 1),
        "a name",
        "Names the project; the directory's name and a short hash of its path unless set",
    ),
    Node {
        block: Block::Nodes(KERNEL),
        many: true,
        ..node("kernel", (1, 1), "a name", "A kernel under a name that several VMs share")
    },
    Node {
        block: Block::Nodes(IMAGE),
        many: true,
        ..node("image", (1, 1), "a name", "A base image under a name that several VMs share")
    },
    Node {
        block: Block::Nodes(VMM),
        props: &[text("version", "What Firecracker must say that it is, such as 1.16.1")],
        many: true,
        ..node("vmm", (1, 1), "a name", "A VMM under a name that several VMs share")
    },
    Node { block: Block::Nodes(VM), many: true, ..node("vm", (1, 1), "a name", "One microVM") },
];

const SUITE: Prop = text(
    "suite",
    "Prefers this suite or codename of the sources, with all that depends on it, as apt-get -t does",
);

/// The block of `debian`.
pub(super) const DEBIAN: &[Node] = &[Node {
    props: &[needed(
        "keyring",
        "The file with the keys of whoever signs it; relative to the manifest, or absolute",
    )],
    many: true,
    ..node(
        "source",
        (2, MAX),
        "an address, a suite and components",
        "A package source in place of the host's, written as in sources.list",
    )
}];

const DOWNLOAD_MAX: Prop = text(
    "max",
    "The largest download that `firegopher lock` takes: 64GiB for images and workloads, 1GiB for kernels and VMMs unless set",
);

/// A download, wherever a source may stand.
const URL: Node = Node {
    props: &[
        text(
            "sha256",
            "The digest that the download must have; without it `firegopher lock` pins what comes",
        ),
        text("member", "The file to take out of a downloaded tar or zip"),
        DOWNLOAD_MAX,
    ],
    ..node("url", (1, 16), "an address", "A download by http, https or file; further ones are mirrors")
};

/// Sources of a kernel.
pub(super) const KERNEL: &[Node] = &[
    Node {
        props: &[SUITE],
        block: Block::Nodes(DEBIAN),
        ..node(
            "debian",
            (1, 1),
            "a package",
            "A Debian kernel package, or a metapackage that depends on one; \"name=version\" for an exact version",
        )
    },
    node("path", (1, 1), "a path", "A vmlinux or bzImage on this host, without modules"),
    URL,
];

/// Sources of a base image.
pub(super) const IMAGE: &[Node] = &[
    Node {
        props: &[SUITE, truth("scripts", "#true runs the packages' maintainer scripts")],
        block: Block::Nodes(DEBIAN),
        ..node(
            "debian",
            (1, MAX),
            "packages",
            "Debian packages, \"name\" or \"name=version\"; those that they depend on come with them",
        )
    },
    Node {
        props: &[text("keep", "\"modes\" keeps the mode bits of a directory")],
        ..node(
            "path",
            (1, 1),
            "a path",
            "On this host a tar archive of any compression, a zip, an ext4 image or a directory",
        )
    },
    URL,
    node(
        "oci",
        (1, 1),
        "a reference",
        "A container image of a registry, such as \"docker.io/library/python:3\"",
    ),
    Node {
        props: &[text("tag", "Which of several images it is")],
        ..node("oci-path", (1, 1), "a path", "An OCI layout or archive, or a docker archive, on this host")
    },
];

/// Sources of a VMM.
pub(super) const VMM: &[Node] = &[
    node(
        "path",
        (1, 1),
        "a path",
        "An explicit qemu-system-x86_64 on this host; in `vmm \"firecracker\"` a directory as below",
    ),
    node("firecracker", (1, 1), "a path", "A directory on this host that holds firecracker and jailer"),
    Node {
        props: &[
            text(
                "sha256",
                "The digest that the download must have; without it `firegopher lock` pins what comes",
            ),
            DOWNLOAD_MAX,
        ],
        ..node("url", (1, 16), "an address", "The archive of a Firecracker release; further ones are mirrors")
    },
];

/// The block of a workload.
pub(super) const WORKLOAD: &[Node] = &[
    Node {
        many: true,
        props: &[text(
            "from",
            "A file of patterns, such as \".gitignore\"; files of that name further down count, too, as git has it",
        )],
        ..node(
            "ignore",
            (0, MAX),
            "patterns",
            "What stays out, as gitignore patterns; they decide before those of a file",
        )
    },
    URL,
];

/// The settings of a VM.
pub(super) const VM: &[Node] = &[
    Node {
        block: Block::Nodes(KERNEL),
        ..node("kernel", (0, 1), "the name of a shared kernel", "The kernel: a shared one, or a source")
    },
    Node {
        block: Block::Nodes(IMAGE),
        ..node("image", (0, 1), "the name of a shared image", "The base image: a shared one, or a source")
    },
    Node {
        block: Block::Nodes(VMM),
        props: &[text("version", "What Firecracker must say that it is, such as 1.16.1")],
        ..node(
            "vmm",
            (1, 1),
            "\"auto\", \"qemu\", \"firecracker\" or the name of a shared vmm",
            "The VMM that boots the VM",
        )
    },
    Node {
        props: &[
            needed("to", "Absolute path in the guest"),
            Prop {
                name: "owner",
                needed: false,
                kind: Kind::TextOrNumber,
                about: "Numeric owner of everything, uid:gid",
            },
            text("keep", "\"modes\" keeps the mode bits of a directory"),
        ],
        block: Block::Nodes(WORKLOAD),
        many: true,
        ..node(
            "workload",
            (0, 1),
            "a path",
            "A directory, archive or file placed over the base image: a path in the project, or a `url` in the block",
        )
    },
    node("run", (1, MAX), "the program and its arguments", "The argument vector; never split on spaces"),
    node("workdir", (1, 1), "a path", "The directory in which the workload starts"),
    Node {
        kind: Kind::TextOrNumber,
        ..node("user", (1, 1), "a user", "Whom the workload runs as: name, uid or uid:gid")
    },
    Node {
        block: Block::Names("a variable's name and its text, such as `GREETING \"hello\"`"),
        ..node("env", (0, 0), "", "Plain environment variables")
    },
    Node {
        props: &[needed("env", "The environment variable of the host that holds the value")],
        many: true,
        ..node("secret", (1, 1), "a variable's name", "An environment variable whose value is never stored")
    },
    Node { kind: Kind::Number, ..node("cpus", (1, 1), "a number", "Virtual CPUs, 1 to 32") },
    node("memory", (1, 1), "a size", "Guest memory: whole MiB, at least 64MiB"),
    Node {
        kind: Kind::NumberOrText,
        props: &[
            number("to", "The guest's port; the host's unless set"),
            text("address", "The host's address; 127.0.0.1 unless set"),
        ],
        many: true,
        ..node(
            "port",
            (1, 1),
            "the host's port, or \"none\"",
            "Publishes a TCP port of the guest on the host; \"none\": not even those that a container image exposes",
        )
    },
    node("egress", (1, 1), "\"none\"", "What may leave the guest"),
    Node {
        props: &[
            needed("at", "Absolute mount point in the guest"),
            needed("size", "Size of the disk"),
            text("bandwidth", "What may be read and written each second, such as 50MiB"),
            number("ops", "How many reads and writes each second"),
        ],
        many: true,
        ..node("volume", (1, 1), "a name", "A disk that outlives the VM")
    },
    Node {
        props: &[
            text("size", "Size of the scratch disk; 2GiB unless set"),
            text("bandwidth", "What may be read and written each second, such as 50MiB"),
            number("ops", "How many reads and writes each second"),
        ],
        ..node(
            "root",
            (1, 1),
            "\"scratch\" or \"tmpfs\"",
            "The writable layer over the base image; empty at every boot",
        )
    },
    Node {
        props: &[number("max", "Restarts in a row before giving up; without limit unless set")],
        ..node(
            "restart",
            (1, 1),
            "\"no\", \"on-failure\" or \"always\"",
            "When a workload that ended is booted again",
        )
    },
    node("console", (1, 1), "\"quiet\" or \"all\"", "How much the guest's kernel says on its console"),
    node(
        "huge-pages",
        (1, 1),
        "\"2MiB\" or \"transparent\"",
        "Backs the guest's memory with huge pages: reserved ones, or those that the host's kernel finds",
    ),
    Node {
        props: &[
            truth("deflate-on-oom", "#true gives memory back rather than let the guest kill processes"),
            truth("free-page-reporting", "#true hands what the guest frees back to the host by itself"),
        ],
        ..node(
            "balloon",
            (0, 1),
            "a size",
            "A device that gives guest memory back to the host: so much from the start; 0MiB unless set",
        )
    },
    Node {
        props: &[text(
            "path",
            "A CPU template of your own: a JSON file as Firecracker's `cpu-config` takes it",
        )],
        ..node(
            "cpu-template",
            (0, 1),
            "a template",
            "One of Firecracker's CPU templates, or a file; Firecracker only",
        )
    },
    Node {
        props: &[
            number("mtu", "The largest packet in bytes; 1500 unless set"),
            text("receive", "What the guest may receive each second, such as 10MiB; Firecracker only"),
            number("receive-packets", "How many packets the guest may receive each second; Firecracker only"),
            text("send", "What the guest may send each second; Firecracker only"),
            number("send-packets", "How many packets the guest may send each second; Firecracker only"),
        ],
        ..node("network", (0, 0), "", "The guest's network device")
    },
    Node {
        kind: Kind::TextOrNumber,
        many: true,
        ..node(
            "sysctl",
            (2, 2),
            "a name and a value",
            "A parameter of the guest's kernel, by its path below /proc/sys with dots or slashes",
        )
    },
    Node {
        kind: Kind::TextOrNumber,
        props: &[
            value("soft", "What holds; needs `hard` beside it"),
            value("hard", "How far a process may raise what holds; needs `soft` beside it"),
        ],
        many: true,
        ..node(
            "limit",
            (1, 2),
            "a name and a value",
            "A resource limit of setrlimit(2), soft and hard: a number, a size of what is counted in bytes, or \"unlimited\"",
        )
    },
    Node {
        kind: Kind::Truth,
        ..node(
            "no-new-privileges",
            (1, 1),
            "#true or #false",
            "#true takes all effect from set-user-ID programs and file capabilities; #false unless set",
        )
    },
    node("grace", (1, 1), "a duration", "Time between SIGTERM and SIGKILL"),
    node("boot-timeout", (1, 1), "a duration", "Time in which the guest must report"),
    node("hostname", (1, 1), "a host name", "The guest's host name; the VM's name unless set"),
];

/// A name that is planned: where it would stand, and what to do until then.
pub(super) struct Later {
    /// The block's name; `""` is the top level.
    pub parent: &'static str,
    pub name: &'static str,
    pub instead: &'static str,
}

const fn later(parent: &'static str, name: &'static str, instead: &'static str) -> Later {
    Later { parent, name, instead }
}

/// Settings that have a name already and come in a later version.
pub(super) const LATER: &[Later] = &[
    later("kernel", "oci", "use `debian`, `path` or `url`"),
    later("vmm", "oci", "install the program and name it with `path`"),
    later("vmm", "debian", "`vmm \"qemu\"` takes QEMU from Debian packages already"),
    later("vm", "health", "remove it; `restart` acts on the workload's end alone"),
    later("vm", "after", "remove it; VMs start in parallel, so let the workload retry its connections"),
];

/// Looks a setting up.
pub(super) fn find(nodes: &'static [Node], name: &str) -> Option<&'static Node> {
    nodes.iter().find(|n| n.name == name)
}
