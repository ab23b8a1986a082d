//! Pure steps: their input vectors, and whether the store already has their outputs.

use super::key;
use super::{
    Action, Graph, InputName, Inputs, Node, Part, PlannedStep, Reason, Role, Running, Scan, ScannedSource,
    Situation, StepKind, Task,
};
use crate::digest::ObjectDigest;
use crate::listing::{Change, Listing};
use crate::lock::{AssetId, FileRole, Lock, Pinned};
use crate::manifest::model::{ImageSource, KernelSource, UrlSource, Workload, WorkloadFrom};
use crate::name::Name;

use crate::step::run_config;
use crate::store::LastStep;

/// At most this many changed files are named; the rest are counted.
const FILES_NAMED: usize = 12;

/// Digests and versions of what firegopher itself brings: part of keys, constant in one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The embedded guest init.
    pub init: ObjectDigest,
    /// The image writer's version.
    pub writer: String,
}

/// Why a step's inputs are not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// These parents have yet to run; all other inputs are known.
    Parents(Vec<usize>, Inputs),
    /// The lock has no entry for the asset.
    Pin(AssetId),
}

/// An asset that a step needs pinned, and for a download what the manifest says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need<'a> {
    /// Its entry in the lock.
    pub id: AssetId,
    /// The download behind it.
    pub source: Option<&'a UrlSource>,
}

impl<'a> Need<'a> {
    fn file(role: FileRole, source: &'a UrlSource) -> Need<'a> {
        let id = AssetId::File { role, url: source.url().to_owned(), member: source.member.clone() };
        Need { id, source: Some(source) }
    }

    /// Whether nothing but the download itself says what its bytes shall be.
    pub fn is_blind(&self) -> bool {
        self.source.is_some_and(|source| source.sha256.is_none())
    }

    /// What the lock says of it; `None` also if the manifest demands another digest than the lock has.
    pub fn pinned<'l>(&self, lock: &'l Lock) -> Option<&'l Pinned> {
        let pinned = lock.pinned(&self.id)?;
        match (pinned, self.source.and_then(|source| source.sha256.as_ref())) {
            (Pinned::File(pin), Some(wanted)) if pin.sha256 != *wanted => None,
            _ => Some(pinned),
        }
    }
}

/// The lock entries that a step needs.
pub fn needs(task: &Task) -> Vec<Need<'_>> {
    let plain = |id| vec![Need { id, source: None }];
    match task {
        Task::FetchKernel(KernelSource::Debian(package)) => plain(AssetId::Kernel(package.clone())),
        Task::FetchKernel(KernelSource::Url(source)) => vec![Need::file(FileRole::Kernel, source)],
        Task::FetchQemu => plain(AssetId::Vmm),
        Task::FetchFirecracker(source, _) => vec![Need::file(FileRole::Vmm, source)],
        Task::FetchImage(ImageSource::Debian(packages)) => plain(AssetId::Image(packages.clone())),
        Task::FetchImage(ImageSource::Url(source)) => vec![Need::file(FileRole::Image, source)],
        Task::FetchImage(ImageSource::Oci(reference)) => plain(AssetId::Oci(reference.clone())),
        Task::Unpack(workloads) => workloads
            .iter()
            .filter_map(|workload| match &workload.source {
                WorkloadFrom::Url(source) => Some(Need::file(FileRole::Workload, source)),
                WorkloadFrom::Path(_) => None,
            })
            .collect(),
        Task::Init(vm) => match &vm.image {
            // The image's own settings are in its pin.
            ImageSource::Oci(reference) => plain(AssetId::Oci(reference.clone())),
            _ => Vec::new(),
        },
        Task::FetchKernel(KernelSource::Path(_))
        | Task::FetchImage(ImageSource::Path { .. } | ImageSource::OciPath { .. })
        | Task::Image(_)
        | Task::Initramfs => Vec::new(),
    }
}

/// The input vector of a node, given its parents' outputs.
pub fn node_inputs(
    graph: &Graph,
    node: &Node,
    outputs: &[Option<ObjectDigest>],
    lock: &Lock,
    scan: &Scan,
    tools: &Tools,
) -> Result<Inputs, Missing> {
    let mut inputs = Inputs::default();
    for need in needs(&node.task) {
        let Some(pinned) = need.pinned(lock) else { return Err(Missing::Pin(need.id)) };
        match pinned {
            Pinned::Packages(pins) => {
                for pin in &pins.packages {
                    let names = names(&pin.sha256, pin.blake3, pin.size);
                    inputs.push(
                        InputName::Package(pin.package.clone()),
                        format!("{} {} {names}", pin.version, pin.arch),
                    );
                }
            }
            // Bytes from another address are the same bytes.
            Pinned::File(pin) => {
                let name = match &need.id {
                    AssetId::File { member: Some(member), .. } => InputName::Member(member.clone()),
                    _ => "download".into(),
                };
                inputs.push(name, names(&pin.sha256, pin.blake3, pin.size));
            }
            // Its settings are in the init step's own inputs.
            Pinned::Oci(_) if matches!(node.task, Task::Init(_)) => {}
            // Everything that the lock says, not the manifest alone, which would stand for it were the lock never
            // edited: the step compares both, and what it compared once must not stand for something else.
            Pinned::Oci(pin) => {
                inputs.push("manifest", &pin.manifest);
                for (index, layer) in pin.layers.iter().enumerate() {
                    inputs.push(InputName::Layer(index), &layer.digest);
                }
                // Half of it: gc keeps a step whose digests all stand in a lock file, and this one stands in none.
                inputs.push("lock entry", &pin.fingerprint().to_hex()[..32]);
            }
        }
    }
    match &node.task {
        Task::FetchKernel(KernelSource::Path(path)) => {
            if let Some(source) = scan.sources.get(&Scan::file_id(path)) {
                inputs.push(InputName::File(path.display().to_string()), source.digest());
            }
        }
        Task::FetchImage(ImageSource::Path { path, keep_modes }) => {
            if let Some(source) = scan.sources.get(&Scan::base_id(path, *keep_modes)) {
                inputs.push(InputName::File(path.display().to_string()), source.digest());
            }
        }
        Task::FetchImage(ImageSource::OciPath { path, tag }) => {
            if let Some(pin) = scan.images.get(&Scan::image_id(path, tag.as_deref())) {
                inputs.push(InputName::File(path.display().to_string()), &pin.manifest);
            }
        }
        Task::Image(source) => {
            inputs.push("image writer", &tools.writer);
            if let ImageSource::Debian(set) = source {
                // The same packages make two images. The number is raised when they begin to make others.
                inputs
                    .push("unpacking", if set.scripts { "installed with scripts, 2" } else { "unpacked, 2" });
            }
        }
        Task::Unpack(workloads) => {
            inputs.push("image writer", &tools.writer);
            for workload in workloads {
                match scan.sources.get(&Scan::workload_id(workload)) {
                    Some(source) => push_workload(&mut inputs, workload, source),
                    None => push_place(&mut inputs, workload),
                }
            }
        }
        Task::Initramfs => inputs.push("guest init", tools.init),
        Task::Init(vm) => {
            let settings = run_config::template(vm);
            for (name, value) in run_config::fields(&settings) {
                inputs.push(name, value);
            }
        }
        Task::FetchFirecracker(_, Some(version)) => inputs.push("declared version", version),
        Task::FetchKernel(_) | Task::FetchQemu | Task::FetchFirecracker(..) | Task::FetchImage(_) => {}
    }
    for &parent in &node.parents {
        if let Some(output) = outputs[parent] {
            inputs.push(InputName::Output(graph.nodes[parent].task.kind()), output);
        }
    }
    let unknown: Vec<usize> = node.parents.iter().copied().filter(|&p| outputs[p].is_none()).collect();
    if !unknown.is_empty() {
        return Err(Missing::Parents(unknown, inputs));
    }
    Ok(inputs)
}

/// Bytes by both names that a lock gives them.
fn names(sha256: &str, blake3: ObjectDigest, size: u64) -> String {
    format!("sha256:{sha256} {blake3} {size} bytes")
}

fn push_place(inputs: &mut Inputs, workload: &Workload) {
    inputs.push(InputName::Workload(workload.source.to_string(), Part::To), &workload.to);
}

fn push_workload(inputs: &mut Inputs, workload: &Workload, source: &ScannedSource) {
    let name = |part| InputName::Workload(workload.source.to_string(), part);
    push_place(inputs, workload);
    if !matches!(source, ScannedSource::File { .. }) || workload.owner != (0, 0) {
        inputs.push(name(Part::Owner), format!("{}:{}", workload.owner.0, workload.owner.1));
    }
    if let ScannedSource::File { executable, .. } = source {
        inputs.push(name(Part::Executable), executable);
    }
    inputs.push(name(Part::Content), source.digest());
}

/// Plans all pure steps, in the graph's order; a step's id is its node's index.
pub(super) fn plan_nodes(graph: &Graph, situation: &Situation<'_>) -> Vec<PlannedStep> {
    let mut outputs: Vec<Option<ObjectDigest>> = vec![None; graph.nodes.len()];
    let mut steps = Vec::with_capacity(graph.nodes.len());
    for (id, node) in graph.nodes.iter().enumerate() {
        let kind = node.task.kind();
        let mut step = PlannedStep {
            id,
            kind,
            subject: node.subject.clone(),
            vms: node.vms.clone(),
            action: Action::Run,
            reasons: Vec::new(),
            key: None,
            output: None,
            needs: node.parents.clone(),
            unless: Vec::new(),
        };
        match node_inputs(graph, node, &outputs, situation.lock, situation.scan, situation.tools) {
            Err(Missing::Pin(id)) if situation.lock.is_outdated(&id) => {
                step.reasons.push(Reason::cause("its entry in firegopher.lock has no blake3"));
            }
            Err(Missing::Pin(_)) => step.reasons.push(Reason::cause("not in firegopher.lock yet")),
            Err(Missing::Parents(parents, known)) => {
                step.action = Action::Unknown;
                let unknown: Vec<StepKind> = parents.iter().map(|&p| graph.nodes[p].task.kind()).collect();
                let changes = changes_since_last(node, &known, &unknown, situation);
                let ran_before = changes.is_some();
                step.reasons = changes.unwrap_or_default();
                step.reasons.extend(parents.iter().map(|&p| condition(&graph.nodes[p], ran_before)));
            }
            Ok(inputs) => {
                let key = inputs.key(kind);
                step.key = Some(key);
                let done = situation.store.action(&key);
                match done {
                    Some(done) if situation.store.has(&done.output) => {
                        step.action = Action::Reuse;
                        step.output = Some(done.output);
                        // Going back to what was built before: nothing runs, and what follows still changes.
                        step.reasons = changes_since_last(node, &inputs, &[], situation).unwrap_or_default();
                    }
                    Some(done) => {
                        step.reasons = vec![Reason::cause(format!(
                            "its output {} is gone from the store",
                            done.output.short()
                        ))];
                    }
                    None => step.reasons = explain_miss(node, &inputs, situation),
                }
            }
        }
        outputs[id] = step.output;
        steps.push(step);
    }
    steps
}

/// What decides whether a step runs whose parent runs first. `known`: it ran before, with another parent perhaps.
fn condition(parent: &Node, known: bool) -> Reason {
    let parent = format!("{} {}", parent.task.kind(), parent.subject);
    Reason::follows(match known {
        true => format!("runs if {parent} gives another output"),
        false => format!("follows {parent}"),
    })
}

fn explain_miss(node: &Node, inputs: &Inputs, situation: &Situation<'_>) -> Vec<Reason> {
    match changes_since_last(node, inputs, &[], situation) {
        None => vec![Reason::remark("never done before")],
        Some(changes) if changes.is_empty() => vec![Reason::cause("its record is gone from the store")],
        Some(changes) => changes,
    }
}

/// Compares a step's inputs with those that a running VM of it was booted with, else with those of the last time that
/// one of its VMs needed it; `None` if none did. Outputs of the steps `unknown` are not compared.
fn changes_since_last(
    node: &Node,
    inputs: &Inputs,
    unknown: &[StepKind],
    situation: &Situation<'_>,
) -> Option<Vec<Reason>> {
    let before = last_of(node, situation)?;
    let mut reasons = Vec::new();
    for change in inputs.changes_since(&before.inputs, unknown) {
        match file_changes(node, &change, &before.listings, situation) {
            Some(files) => reasons.extend(files),
            None => reasons.push(change.reason),
        }
    }
    Some(reasons)
}

/// The step as a running VM of it was booted with, else as one of its VMs needed it last.
fn last_of(node: &Node, situation: &Situation<'_>) -> Option<LastStep> {
    let kind = node.task.kind();
    let runs = |vm: &Name| situation.observed.iter().any(|o| o.name == *vm && o.running == Running::Yes);
    node.vms.iter().find_map(|vm| {
        let mut last = situation.store.last(vm)?;
        let booted = if runs(vm) { last.booted.remove(kind.label()) } else { None };
        booted.or_else(|| last.steps.remove(kind.label()))
    })
}

/// For a changed workload directory: the files that differ.
fn file_changes(
    node: &Node,
    change: &key::Change,
    listings: &[ObjectDigest],
    situation: &Situation<'_>,
) -> Option<Vec<Reason>> {
    let Task::Unpack(workloads) = &node.task else { return None };
    let Some(InputName::Workload(source, Part::Content)) = &change.name else { return None };
    // Of several places of one source all scans may differ: the digest tells which is meant.
    let new_digest = change.reason.new.as_deref()?;
    let workload = workloads.iter().find(|w| {
        let scanned = || situation.scan.sources.get(&Scan::workload_id(w));
        w.source.to_string() == *source && scanned().is_some_and(|s| s.digest().to_hex() == new_digest)
    })?;
    let ScannedSource::Dir { listing, .. } = situation.scan.sources.get(&Scan::workload_id(workload))? else {
        return None;
    };
    let old_digest = change.reason.old.as_deref()?;
    let old = listings
        .iter()
        .filter_map(|object| situation.store.listing(object))
        .find(|listing| listing.digest().to_hex() == old_digest)?;
    Some(describe(source, &Listing::diff(&old, listing)))
}

fn describe(workload: &str, changes: &[Change]) -> Vec<Reason> {
    let root = workload.trim_start_matches("./").trim_end_matches('/');
    let mut reasons: Vec<Reason> = changes
        .iter()
        .take(FILES_NAMED)
        .map(|change| Reason {
            role: Role::Cause,
            what: if root.is_empty() || root == "." {
                change.path.clone()
            } else {
                format!("{root}/{}", change.path)
            },
            old: change.old.clone(),
            new: change.new.clone(),
        })
        .collect();
    if changes.len() > FILES_NAMED {
        reasons.push(Reason::cause(format!("{} more files", changes.len() - FILES_NAMED)));
    }
    reasons
}
