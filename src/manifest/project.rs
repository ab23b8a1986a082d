//! The top level, and what only shows when settings are compared: doubled names, ports and mount points.

use super::decode::{Decoder, Spanned};
use super::diagnostic::Problem;
use super::model::{Manifest, Port};
use super::path::beneath;
use super::same_download;
use super::source::Sources;
use super::table::TOP;
use super::vm::{self, Decoded};
use kdl::KdlDocument;
use std::collections::HashMap;
use std::ops::Range;

/// Where a mount would hide what the guest cannot do without.
const RESERVED: &[&str] = &["/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"];
/// Beneath these, mounts of the guest's own would be hidden too.
const RESERVED_TREES: &[&str] = &["/dev", "/proc", "/sys"];

/// Reads a whole document. `None` only after a problem was reported; a result may come with problems, too.
pub(super) fn decode(d: &Decoder<'_>, doc: &KdlDocument) -> Option<Manifest> {
    let settings = d.settings("", doc, TOP);
    let mut sources = Sources::default();
    for setting in settings.iter().filter(|s| matches!(s.name(), "kernel" | "image" | "vmm")) {
        sources.declare(d, *setting);
    }
    for kind in ["kernel", "image", "vmm"] {
        let names = settings.iter().filter(|s| s.name() == kind).filter_map(|s| {
            let entry = s.args().next()?;
            Some((entry.value().as_string()?.to_owned(), d.entry_span(entry)))
        });
        d.unique(kind, names.collect());
    }
    let project = settings.iter().find(|s| s.name() == "project").map(|s| d.name_arg(*s));
    let vms: Vec<Decoded> =
        settings.iter().filter(|s| s.name() == "vm").map(|s| vm::decode(d, *s, &sources)).collect();

    let any_vm = doc.nodes().iter().any(|n| n.name().value() == "vm");
    if !any_vm {
        let end = d.text.trim_end().len();
        let (code, message) = if doc.nodes().is_empty() {
            ("manifest.empty", "the manifest is empty")
        } else {
            ("manifest.no-vm", "the manifest has no `vm`")
        };
        d.report::<()>(
            Problem::new(code, end..end, "a `vm` is missing", message)
                .help("a manifest needs at least `vm \"app\" { run \"sh\" \"-c\" \"echo hello\" }`; `firegopher init` in an empty directory writes a longer one"),
        );
    }
    d.unique(
        "vm",
        vms.iter().filter_map(|v| v.name.as_ref()).map(|n| (n.value.to_string(), n.span.clone())).collect(),
    );
    let volumes = vms.iter().flat_map(|v| &v.mounts);
    d.unique("volume", volumes.map(|m| (m.value.name.to_string(), m.span.clone())).collect());
    d.ports(&vms);
    for vm in &vms {
        d.mounts(vm);
    }
    let mut manifest = Manifest {
        dir: d.dir.to_owned(),
        file: super::FILE_NAME.into(),
        project: match project {
            Some(name) => Some(name?.value),
            None => None,
        },
        vms: vms.into_iter().map(|v| v.vm).collect::<Option<Vec<_>>>()?,
    };
    same_download::agree(d, &mut manifest);
    Some(manifest)
}

impl Decoder<'_> {
    fn unique(&self, kind: &str, names: Vec<(String, Range<usize>)>) {
        let mut first: HashMap<&str, &Range<usize>> = HashMap::new();
        for (name, span) in &names {
            let Some(before) = first.get(name.as_str()) else {
                first.insert(name, span);
                continue;
            };
            let help = match kind {
                "volume" => "a volume belongs to one VM; give each a name of its own",
                _ => "give each a name of its own",
            };
            self.report::<()>(
                Problem::new(
                    "manifest.duplicate-name",
                    span.clone(),
                    "again",
                    format!("two of `{kind}` are named {name:?}"),
                )
                .also((*before).clone(), "first here")
                .help(help),
            );
        }
    }

    fn ports(&self, vms: &[Decoded]) {
        let all: Vec<&Spanned<Port>> = vms.iter().flat_map(|v| &v.ports).collect();
        let mut by_number: HashMap<u16, Vec<&Spanned<Port>>> = HashMap::new();
        for port in &all {
            let before = by_number.entry(port.value.host).or_default();
            if let Some(before) = before.iter().find(|p| collide(&p.value, &port.value)) {
                self.report::<()>(
                    Problem::new(
                        "manifest.duplicate-port",
                        port.span.clone(),
                        "taken",
                        format!("the host's port {} is published twice", port.value.host),
                    )
                    .also(before.span.clone(), "published here")
                    .help(format!(
                        "publish it on another port: `port {} to={}`",
                        free(&all, port.value.host),
                        port.value.guest
                    )),
                );
            } else {
                before.push(port);
            }
        }
    }

    fn mounts(&self, vm: &Decoded) {
        for workload in &vm.workloads {
            let to = workload.value.to.trim_end_matches('/');
            if let Some(tree) = RESERVED_TREES.iter().find(|tree| beneath(to, tree)) {
                self.report::<()>(
                    Problem::new(
                        "manifest.hidden-workload",
                        workload.span.clone(),
                        "hidden there",
                        format!("the guest's own {tree} would hide the workload at {to}"),
                    )
                    .help("place it where the guest mounts nothing, such as \"/app\""),
                );
            }
        }
        for (i, mount) in vm.mounts.iter().enumerate() {
            let (at, span) = (&mount.value.at, &mount.span);
            let bad = |label: &str, message: String, help: &str| {
                self.report::<()>(
                    Problem::new("manifest.bad-mount", span.clone(), label, message).help(help),
                );
            };
            if at == "/" {
                bad(
                    "the root",
                    "a volume cannot be mounted at `/`".to_owned(),
                    "mount it where the workload keeps its data, such as \"/data\"",
                );
            } else if RESERVED.contains(&at.as_str()) || RESERVED_TREES.iter().any(|tree| beneath(at, tree)) {
                bad(
                    "the guest's own",
                    format!("a volume at {at} would hide what the guest needs there"),
                    "mount it where the workload keeps its data, such as \"/data\"",
                );
            }
            if let Some(before) = vm.mounts[..i].iter().find(|m| m.value.at == *at) {
                self.report::<()>(
                    Problem::new(
                        "manifest.duplicate-mount",
                        span.clone(),
                        "again",
                        format!("two volumes are mounted at {at}"),
                    )
                    .also(before.span.clone(), "first here")
                    .help("mount each at a place of its own"),
                );
            }
            for workload in &vm.workloads {
                let to = workload.value.to.trim_end_matches('/');
                if at != "/" && !to.is_empty() && beneath(to, at) {
                    self.report::<()>(
                        Problem::new(
                            "manifest.hidden-workload",
                            span.clone(),
                            "hides it",
                            format!("the volume at {at} hides the workload at {to}"),
                        )
                        .also(workload.span.clone(), "the workload")
                        .help("mount the volume beside the workload, or beneath it"),
                    );
                }
            }
        }
    }
}

/// Whether two ports would listen at the same place. An IPv6 wildcard takes IPv4 as well, as Linux does.
fn collide(a: &Port, b: &Port) -> bool {
    let wide =
        |x: &Port, y: &Port| x.address.is_unspecified() && (x.address.is_ipv6() || y.address.is_ipv4());
    a.host == b.host && (a.address == b.address || wide(a, b) || wide(b, a))
}

/// A port near this one that the manifest does not use.
fn free(all: &[&Spanned<Port>], near: u16) -> u16 {
    let used = |port| all.iter().any(|p| p.value.host == port);
    (near..=u16::MAX).chain(1024..near).find(|port| !used(*port)).unwrap_or(near)
}
