//! Effects: what a VM's jail, tap and boot should be, against what is observed. Never cached, only compared.

use super::{
    Action, Graph, InputName, Inputs, PlannedStep, Reason, Role, Running, Scan, Situation, StepKind, VmNodes,
};
use crate::digest::{ObjectDigest, StepKey};
use crate::manifest::model::{Egress, Firecracker, FirecrackerFrom, Restart, Root, Vm, VmmSource};
use crate::name::Name;
use crate::units::{Bytes, Time};
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
    let Wanted { desired, unknown } = wanted(vm, nodes, outputs, scan);
    if unknown.is_empty() { Ok(desired) } else { Err(unknown) }
}

/// What a VM's effects should be, as far as it is known.
struct Wanted {
    /// Without the outputs of `unknown`.
    desired: Desired,
    /// Nodes that have yet to run.
    unknown: Vec<usize>,
}

impl Wanted {
    /// The kinds of inputs that `desired` lacks.
    fn unknown_kinds(&self, graph: &Graph) -> Vec<StepKind> {
        let mut kinds: Vec<StepKind> = self.unknown.iter().map(|&n| graph.nodes[n].task.kind()).collect();
        if kinds.iter().any(|kind| *kind != StepKind::Init) {
            kinds.push(StepKind::Jail);
        }
        kinds
    }
}

fn wanted(vm: &Vm, nodes: &VmNodes, outputs: &[Option<ObjectDigest>], scan: &Scan) -> Wanted {
    let artifacts = [
        (StepKind::FetchKernel, Some(nodes.kernel)),
        (StepKind::Initramfs, Some(nodes.initramfs)),
        (StepKind::FetchVmm, nodes.vmm),
        (StepKind::Image, Some(nodes.image)),
        (StepKind::Unpack, nodes.unpack),
    ];
    let mut unknown = Vec::new();
    let mut jail = Inputs::default();
    for (kind, node) in artifacts {
        match node.map(|n| (n, outputs[n])) {
            Some((_, Some(output))) => jail.push(InputName::Output(kind), output),
            Some((n, None)) => unknown.push(n),
            None => {}
        }
    }
    // Without the outputs that are not known it is no key.
    let staged_is_known = unknown.is_empty();
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
        jail.push("cpu-template file", source.digest());
    }
    jail.push("cpus", vm.cpus);
    jail.push("memory", Bytes(vm.memory));
    match vm.root {
        Root::Tmpfs => jail.push("root", "tmpfs"),
        Root::Scratch(size) => jail.push("root", format!("scratch {}", Bytes(size))),
    }
    for volume in &vm.volumes {
        jail.push(InputName::Volume(volume.name.to_string()), Bytes(volume.size));
    }
    for (name, value) in vm.tuning.machine_fields() {
        jail.push(name, value);
    }

    let mut tap = Inputs::default();
    for (name, value) in vm.tuning.network_fields() {
        tap.push(name, value);
    }
    for port in &vm.ports {
        tap.push(InputName::Port(port.address, port.host), format!("to {}", port.guest));
    }
    match vm.egress {
        Egress::None => tap.push("egress", "none"),
    }

    let mut boot = Inputs::default();
    if staged_is_known {
        boot.push(InputName::Output(StepKind::Jail), jail.key(StepKind::Jail));
    }
    boot.push(InputName::Output(StepKind::Tap), tap.key(StepKind::Tap));
    match outputs[nodes.init] {
        Some(output) => boot.push(InputName::Output(StepKind::Init), output),
        None => unknown.push(nodes.init),
    }
    boot.push("restart", restart_text(vm.restart));
    boot.push("boot-timeout", Time(vm.boot_timeout));
    for secret in &vm.secrets {
        boot.push(InputName::Secret(secret.name.clone()), format!("from {}", secret.env));
    }
    Wanted { desired: Desired { jail, tap, boot }, unknown }
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
        step.reasons = vec![Reason::cause("left the manifest")];
        steps.push(step);
    }
    let outputs: Vec<Option<ObjectDigest>> = steps.iter().take(graph.nodes.len()).map(|s| s.output).collect();
    for (vm, nodes) in situation.manifest.vms.iter().zip(&graph.vms) {
        let wanted = wanted(vm, nodes, &outputs, situation.scan);
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
        unless: vec![],
    }
}

fn plan_vm(
    graph: &Graph,
    situation: &Situation<'_>,
    vm: &Vm,
    nodes: &VmNodes,
    wanted: Wanted,
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
    let decided = wanted.unknown.is_empty();
    let same =
        decided && drift.is_empty() && runs.is_some_and(|found| found.boot_key == wanted.desired.boot_key());
    let last = situation.store.last(&vm.name);
    let unknown_kinds = wanted.unknown_kinds(graph);
    let changes = EFFECTS.map(|kind| {
        let before = last.as_ref().and_then(|l| l.steps.get(kind.label()))?;
        let changes = wanted.desired.of(kind).changes_since(&before.inputs, &unknown_kinds);
        Some(changes.into_iter().map(|change| change.reason).collect::<Vec<Reason>>())
    });
    // What is known to have changed, or to be lost, replaces the VM whatever the steps under way give.
    let certain = decided || !drift.is_empty() || changes.iter().flatten().any(|c| !c.is_empty());
    let deciders = deciders(&wanted.unknown, steps);
    for ((offset, kind), changes) in EFFECTS.into_iter().enumerate().zip(changes) {
        let needs = match kind {
            StepKind::Jail => artifacts.clone(),
            StepKind::Tap => vec![],
            _ => vec![first, first + 1, nodes.init],
        };
        let mut step = blank(first + offset, kind, &vm.name, needs);
        step.key = decided.then(|| wanted.desired.of(kind).key(kind));
        if same {
            steps.push(step);
            continue;
        }
        if runs.is_some() {
            step.action = Action::Replace;
            step.reasons = match changes {
                Some(changes) if !changes.is_empty() => changes,
                Some(_) => vec![Reason::follows("made anew with its VM")],
                None => vec![Reason::cause("what it was made from is not on record")],
            };
            if !certain {
                step.unless.clone_from(&deciders);
            }
        } else {
            step.action = Action::Create;
            if kind == StepKind::Boot {
                step.reasons.extend(found.map(|f| match &f.running {
                    Running::Ended(how) => Reason::cause(how.clone()),
                    _ => Reason::cause("its supervisor is gone; what it left is removed first"),
                }));
            }
        }
        let drifted = drift.iter().filter(|(of, _)| *of == kind);
        let drifted: Vec<Reason> = drifted.map(|(_, what)| Reason::cause(format!("drift: {what}"))).collect();
        if !drifted.is_empty() {
            step.reasons = drifted;
        }
        if kind == StepKind::Jail && matches!(step.action, Action::Create | Action::Replace) {
            step.reasons.extend(copies(vm, nodes, situation, steps));
        }
        steps.push(step);
    }
}

/// Of steps whose outputs are not known, and of those that they wait for, the ones with inputs that changed: the others
/// only follow.
fn deciders(unknown: &[usize], steps: &[PlannedStep]) -> Vec<usize> {
    let (mut seen, mut left) = (std::collections::BTreeSet::new(), unknown.to_vec());
    while let Some(id) = left.pop() {
        if steps[id].output.is_none() && seen.insert(id) {
            left.extend(&steps[id].needs);
        }
    }
    let own = |id: &usize| {
        let step = &steps[*id];
        step.action == Action::Run || step.reasons.iter().any(|reason| reason.role == Role::Cause)
    };
    seen.into_iter().filter(own).collect()
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
        Some(Reason::remark(format!(
            "copies {what} ({mib} MiB): it lies on another file system than the jail"
        )))
    });
    copied.collect()
}
