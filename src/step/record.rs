//! Remembers, per VM, the last key and inputs of each step, so that the next plan can say what changed.

use super::{Outputs, Work};
use crate::digest::ObjectDigest;
use crate::error::Result;
use crate::plan::{Desired, Graph, Inputs, Scan, ScannedSource, StepKind, Task, VmNodes};
use crate::store::LastStep;

/// Records the pure steps of every VM, and the effects of one that was booted.
pub fn record_last(
    graph: &Graph,
    done: &Outputs,
    booted: &[(&VmNodes, &Desired)],
    work: &Work<'_>,
) -> Result<()> {
    for nodes in &graph.vms {
        let before = work.store.last(work.project, &nodes.vm).unwrap_or_default();
        let mut last = before.clone();
        for (index, node) in graph.nodes.iter().enumerate().filter(|(_, node)| node.vms.contains(&nodes.vm)) {
            let kind = node.task.kind();
            let key = done.inputs[index].key(kind);
            if last.steps.get(kind.label()).is_some_and(|step| step.key == key) {
                continue;
            }
            let listings = listings(&node.task, work)?;
            let step = LastStep {
                key,
                inputs: done.inputs[index].0.clone(),
                output: Some(done.outputs[index]),
                listings,
            };
            last.steps.insert(kind.label().to_owned(), step);
        }
        if let Some((_, desired)) = booted.iter().find(|(n, _)| n.vm == nodes.vm) {
            for (kind, inputs) in effects(desired) {
                let step = LastStep {
                    key: inputs.key(kind),
                    inputs: inputs.0.clone(),
                    output: None,
                    listings: Vec::new(),
                };
                last.steps.insert(kind.label().to_owned(), step);
            }
            last.booted = last.steps.clone();
        }
        if last != before {
            work.store.record_last(work.project, &nodes.vm, &last)?;
        }
    }
    Ok(())
}

fn effects(desired: &Desired) -> [(StepKind, &Inputs); 3] {
    [(StepKind::Jail, &desired.jail), (StepKind::Tap, &desired.tap), (StepKind::Boot, &desired.boot)]
}

/// Stores the listings behind a workload layer.
fn listings(task: &Task, work: &Work<'_>) -> Result<Vec<ObjectDigest>> {
    let Task::Unpack(workloads) = task else { return Ok(Vec::new()) };
    let scanned = workloads.iter().filter_map(|w| work.scan.sources.get(&Scan::workload_id(w)));
    scanned
        .filter_map(|source| match source {
            ScannedSource::Dir { listing, .. } => Some(work.store.publish_bytes(&listing.encode())),
            ScannedSource::File { .. } => None,
        })
        .collect()
}
