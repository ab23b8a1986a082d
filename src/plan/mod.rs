//! Decides, and says why: from a manifest, a lock, a scan and what is observed to a plan. Pure: no clock, no
//! environment, no disk and no network in here; what it needs to know of the store comes in as `StoreView`.

mod defaults;
mod effect;
mod graph;
mod input;
mod key;
mod pure;
pub mod render;
mod view;

pub use defaults::fill as fill_defaults;
pub use effect::{Desired, desired};
pub use graph::{Graph, Node, StepKind, Task, VmNodes, image_subject};
pub use input::{InputName, Part};
pub use key::{Input, Inputs, digest_of_inputs};
pub use pure::{Missing, Need, Tools, needs, node_inputs};
pub use view::{Host, ImageId, ObservedVm, Running, Scan, ScanId, ScannedSource, StoreView};

use crate::digest::{ObjectDigest, StepKey};
use crate::lock::Lock;
use crate::manifest::model::Manifest;
use crate::name::Name;
use serde::Serialize;

/// What happens to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A pure step whose output is in the store.
    Reuse,
    /// A pure step that will run.
    Run,
    /// Depends on the output of a step that has yet to run.
    Unknown,
    /// An effect that is as desired.
    Keep,
    /// An effect that is missing.
    Create,
    /// An effect that differs: removed, then made anew.
    Replace,
    /// An effect nobody wants any more.
    Remove,
}

impl Action {
    /// Whether carrying out the plan would do something here.
    pub fn is_change(self) -> bool {
        !matches!(self, Action::Reuse | Action::Keep)
    }
}

/// What a reason is to somebody who asks why a VM is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Something that somebody changed.
    Cause,
    /// It follows from another step, whose reasons say more.
    Follows,
    /// It changes nothing.
    Remark,
}

/// One cause of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What it is to the VM.
    #[serde(skip)]
    pub role: Role,
    /// An input's name, or a whole sentence when there is no value to compare.
    pub what: String,
    /// The value last time; a digest in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// The value now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

impl Reason {
    /// A cause without values.
    pub fn cause(what: impl Into<String>) -> Self {
        Reason { role: Role::Cause, what: what.into(), old: None, new: None }
    }

    /// Something worth knowing that is no cause.
    pub fn remark(what: impl Into<String>) -> Self {
        Reason { role: Role::Remark, ..Self::cause(what) }
    }

    /// What follows from another step.
    pub fn follows(what: impl Into<String>) -> Self {
        Reason { role: Role::Follows, ..Self::cause(what) }
    }
}

/// A step and what happens to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// Its place in `Plan::steps`.
    pub id: usize,
    /// What kind of step.
    pub kind: StepKind,
    /// What it is about: a package, a VM.
    pub subject: String,
    /// The VMs that need it.
    pub vms: Vec<Name>,
    /// What happens.
    pub action: Action,
    /// Why; for `Reuse`, how its inputs differ from those of the last time; empty for `Keep`.
    pub reasons: Vec<Reason>,
    /// Its key, once all inputs are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<StepKey>,
    /// Its output, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<ObjectDigest>,
    /// Ids of the steps it waits for.
    pub needs: Vec<usize>,
    /// Ids of the steps that spare a VM its replacement if all of them give the same outputs as before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unless: Vec<usize>,
}

/// What would be done, in an order in which it can be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The project.
    pub project: Name,
    /// Each step after those it needs.
    pub steps: Vec<PlannedStep>,
}

impl Plan {
    /// Whether anything would be done.
    pub fn has_changes(&self) -> bool {
        self.steps.iter().any(|step| step.action.is_change())
    }

    /// Whether nothing is left that depends on the outputs of steps that have yet to run.
    pub fn is_decided(&self) -> bool {
        self.steps.iter().all(|step| step.action != Action::Unknown && step.unless.is_empty())
    }

    /// The step of this kind for this VM.
    pub fn step(&self, kind: StepKind, vm: &Name) -> Option<&PlannedStep> {
        self.steps.iter().find(|s| s.kind == kind && s.vms.contains(vm))
    }
}

/// Everything a plan is made from.
pub struct Situation<'a> {
    /// The project's name.
    pub project: &'a Name,
    /// What is wanted.
    pub manifest: &'a Manifest,
    /// The pins.
    pub lock: &'a Lock,
    /// Digests of what the manifest names on this host.
    pub scan: &'a Scan,
    /// Digests of what firegopher itself brings.
    pub tools: &'a Tools,
    /// The store.
    pub store: &'a dyn StoreView,
    /// What runs, by VM name.
    pub observed: &'a [ObservedVm],
}

/// Plans.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let graph = Graph::of(situation.manifest);
    let mut steps = pure::plan_nodes(&graph, situation);
    effect::plan_effects(&graph, situation, &mut steps);
    Plan { project: situation.project.clone(), steps }
}

#[cfg(test)]
mod tests;
