//! Effects: what a VM's jail, tap and boot should be, against what is observed. Never cached, only compared.

use super::{Action, Graph, Inputs, PlannedStep, Reason, Running, Scan, Situation, StepKind, VmNodes};
use crate::digest::{ObjectDigest, StepKey};
use crate::manifest::model::{Egress, Firecracker, FirecrackerFrom, Restart, Root, Vm, VmmSource};
use crate::name::Name;
use crate::vmm::spec::firecracker_programs;
use std::collections::BTreeMap;
use std::path::Path;

/// The input vectors of a VM's effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// What is staged in the jail.
    pub jail: Inputs,
    /// The network device and what is published.
    pub tap: Inputs,
    /// The whole VM: its key is the VM's identity.
    pub boot: Inputs,
}

impl Desired {
    /// The key that a running VM is compared by.
    pub fn boot_key(&self) -> StepKey {
        self.boot.key(StepKind::Boot)
    }

    fn of(&self, kind: StepKind) -> &Inputs {
        match kind {
            StepKind::Jail => &self.jail,
            StepKind::Tap => &self.tap,
            _ => &self.boot,
        }
    }
}

const EFFECTS: [StepKind; 3] = [StepKind::Jail, StepKind::Tap, StepKind::Boot];

/// What a VM's effects should be, or the nodes whose outputs are still unknown.
pub fn desired(
    vm: &Vm,
    nodes: &VmNodes,
    outputs: &[Option<ObjectDigest>],
    scan: &Scan,
) -> Result<Desired, Vec<usize>> {
    let wanted = [
        Some(nodes.kernel),
        Some(nodes.initramfs),
        nodes.vmm,
        Some(nodes.image),
        nodes.unpack,
        Some(nodes.init),
    ];
    let unknown: Vec<usize> = wanted.into_iter().flatten().filter(|&n| outputs[n].is_none()).collect();
    if !unknown.is_empty() {
        return Err(unknown);
    }
    let mut jail = Inputs::default();
    let mut push_output = |name: &str, node: Option<usize>| {
        if let Some(output) = node.and_then(|n| outputs[n]) {
            jail.push(name, output);
        }
    };
    push_output("kernel", Some(nodes.kernel));
    push_output("initramfs", Some(nodes.initramfs));
    push_output("vmm", nodes.vmm);
    push_output("image", Some(nodes.image));
    push_output("workload", nodes.unpack);
    let mut push_source = |name: &str, path: &Path| {
        if let Some(source) = scan.sources.get(&Scan::file_id(path)) {
            jail.push(name, source.digest());
        }
    };
    match &vm.vmm {
        VmmSource::QemuPath(path) => push_source("vmm", path),
        VmmSource::Firecracker(Firecracker { from: FirecrackerFrom::Dir(dir), .. }) => {
            let [firecracker, jailer] = firecracker_programs(dir);
            push_source("vmm", &firecracker);
            push_source("jailer", &jailer);
        }
        VmmSource::Firecracker(_) | VmmSource::Auto | VmmSource::Qemu | VmmSource::AutoFirecracker(_) => {}
    }
    let cpu_file = vm.tuning.cpu_file.as_ref();
    if let Some(source) = cpu_file.and_then(|file| scan.sources.get(&Scan::file_id(&file.path))) {
        jail.push("cpu-template", source.digest());
    }
    jail.push("cpus", vm.cpus);
    jail.push("memory", vm.memory);
    match vm.root {
        Root::Tmpfs => jail.push("root", "tmpfs"),
        Root::Scratch(size) => jail.push("root", format!("scratch {size}")),
    }
    for volume in &vm.volumes {
        jail.push(format!("volume {}", volume.name), volume.size);
    }

    for (name, value) in vm.tuning.machine_fields() {
        jail.push(name, value);
    }

    let mut tap = Inputs::default();
    for (name, value) in vm.tuning.network_fields() {
        tap.push(name, value);
    }
    for port in &vm.ports {
        tap.push(format!("port {}:{}", port.address, port.host), port.guest);
    }
    match vm.egress {
        Egress::None => tap.push("egress", "none"),
    }

    let mut boot = Inputs::default();
    boot.push("jail", jail.key(StepKind::Jail));
    boot.push("tap", tap.key(StepKind::Tap));
    boot.push("init", outputs[nodes.init].map(|d| d.to_hex()).unwrap_or_default());
    boot.push("restart", restart_text(vm.restart));
    boot.push("boot-timeout ms", vm.boot_timeout.as_millis());
    for secret in &vm.secrets {
        boot.push(format!("secret {}", secret.name), format!("from {}", secret.env));
    }
    Ok(Desired { jail, tap, boot })
}

fn restart_text(restart: Restart) -> String {
    let limit = |max: Option<u32>| max.map(|n| format!(" max {n}")).unwrap_or_default();
    match restart {
        Restart::No => "no".to_owned(),
        Restart::OnFailure { max } => format!("on-failure{}", limit(max)),
        Restart::Always { max } => format!("always{}", limit(max)),
    }
}

/// Appends the effects of every VM, those that left the manifest included.
pub(super) fn plan_effects(graph: &Graph, situation: &Situation<'_>, steps: &mut Vec<PlannedStep>) {
    let observed: BTreeMap<&Name, &super::ObservedVm> =
        situation.observed.iter().map(|o| (&o.name, o)).collect();
    for old in
        situation.observed.iter().filter(|o| !situation.manifest.vms.iter().any(|vm| vm.name == o.name))
    {
        let mut step = blank(steps.len(), StepKind::Boot, &old.name, vec![]);
        step.action = Action::Remove;
        step.reasons = vec![Reason::note("left the manifest")];
        steps.push(step);
    }
    let outputs: Vec<Option<ObjectDigest>> = steps.iter().take(graph.nodes.len()).map(|s| s.output).collect();
    for (vm, nodes) in situation.manifest.vms.iter().zip(&graph.vms) {
        let wanted = desired(vm, nodes, &outputs, situation.scan);
        let found = observed.get(&vm.name).copied();
        plan_vm(graph, situation, vm, nodes, wanted, found, steps);
    }
}

fn blank(id: usize, kind: StepKind, vm: &Name, needs: Vec<usize>) -> PlannedStep {
    PlannedStep {
        id,
        kind,
        subject: vm.to_string(),
        vms: vec![vm.clone()],
        action: Action::Keep,
        reasons: vec![],
        key: None,
        output: None,
        needs,
    }
}

fn plan_vm(
    graph: &Graph,
    situation: &Situation<'_>,
    vm: &Vm,
    nodes: &VmNodes,
    wanted: Result<Desired, Vec<usize>>,
    found: Option<&super::ObservedVm>,
    steps: &mut Vec<PlannedStep>,
) {
    let first = steps.len();
    let artifacts: Vec<usize> =
        [Some(nodes.kernel), nodes.vmm, Some(nodes.image), nodes.unpack, Some(nodes.initramfs)]
            .into_iter()
            .flatten()
            .collect();
    let runs = found.filter(|f| f.running == Running::Yes);
    let drift = runs.map_or(&[][..], |f| f.drift.as_slice());
    let same = drift.is_empty() && matches!((&wanted, runs), (Ok(w), Some(f)) if f.boot_key == w.boot_key());
    let last = situation.store.last(&vm.name);
    for (offset, kind) in EFFECTS.into_iter().enumerate() {
        let needs = match kind {
            StepKind::Jail => artifacts.clone(),
            StepKind::Tap => vec![],
            _ => vec![first, first + 1, nodes.init],
        };
        let mut step = blank(first + offset, kind, &vm.name, needs);
        step.key = wanted.as_ref().ok().map(|w| w.of(kind).key(kind));
        if same {
            steps.push(step);
            continue;
        }
        match (&wanted, runs) {
            (_, None) => {
                step.action = Action::Create;
                if kind == StepKind::Boot {
                    step.reasons.extend(found.map(|f| match &f.running {
                        Running::Ended(how) => Reason::note(how.clone()),
                        _ => Reason::note("its supervisor is gone; what it left is removed first"),
                    }));
                }
            }
            (Err(unknown), Some(_)) => {
                step.action = Action::Unknown;
                let names = unknown
                    .iter()
                    .map(|&n| format!("{} {}", graph.nodes[n].task.kind(), graph.nodes[n].subject));
                step.reasons =
                    vec![Reason::note(format!("replaced if {} gives another output", join_or(names)))];
            }
            (Ok(wanted), Some(_)) => {
                step.action = Action::Replace;
                let before = last.as_ref().and_then(|l| l.steps.get(kind.label()));
                step.reasons = match before.map(|b| wanted.of(kind).changes_since(&b.inputs)) {
                    Some(changes) if !changes.is_empty() => changes,
                    Some(_) => vec![Reason::note("made anew with its VM")],
                    None => vec![Reason::note("what it was made from is not on record")],
                };
            }
        }
        let drifted = drift.iter().filter(|(of, _)| *of == kind);
        let drifted: Vec<Reason> = drifted.map(|(_, what)| Reason::note(format!("drift: {what}"))).collect();
        if !drifted.is_empty() {
            step.action = Action::Replace;
            step.reasons = drifted;
        }
        if kind == StepKind::Jail && matches!(step.action, Action::Create | Action::Replace) {
            step.reasons.extend(copies(vm, nodes, situation, steps));
        }
        steps.push(step);
    }
}

/// What cannot be linked into the jail. Writable drives are not among it: for them that is an error.
fn copies(vm: &Vm, nodes: &VmNodes, situation: &Situation<'_>, steps: &[PlannedStep]) -> Vec<Reason> {
    // Firecracker itself is copied by its jailer, whatever the file system.
    let vmm = nodes.vmm.filter(|_| !matches!(vm.vmm, VmmSource::Firecracker(_)));
    let parts = [
        ("the kernel", Some(nodes.kernel), Some("vmlinux")),
        ("the initramfs", Some(nodes.initramfs), None),
        ("the VMM", vmm, None),
        ("drive base", Some(nodes.image), Some("base.ext4")),
        ("drive workload", nodes.unpack, None),
    ];
    let copied = parts.into_iter().filter_map(|(what, node, file)| {
        let bytes = situation.store.copied(&steps[node?].output?, file)?;
        let mib = bytes.div_ceil(1 << 20);
        Some(Reason::note(format!("copies {what} ({mib} MiB): it lies on another file system than the jail")))
    });
    copied.collect()
}

fn join_or(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(" or ")
}
