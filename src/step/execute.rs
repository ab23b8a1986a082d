//! Runs the pure steps of a graph: each as soon as its parents are done, several at a time, each key once
//! even among processes.

use super::{Work, kernel_lint, sources, tasks};
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::plan::{Graph, Inputs, Missing, node_inputs};
use crate::store;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// Steps at a time. They alternate between computing and waiting for the disk; more than cores pays a little.
const WORKERS: usize = 4;

/// The outputs and input vectors of all nodes of a graph.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// By node index.
    pub outputs: Vec<ObjectDigest>,
    /// By node index.
    pub inputs: Vec<Inputs>,
    /// How many steps ran; the others were reused.
    pub ran: usize,
}

#[derive(Default)]
struct Progress {
    outputs: Vec<Option<ObjectDigest>>,
    inputs: Vec<Inputs>,
    started: Vec<bool>,
    done: usize,
    ran: usize,
    error: Option<Error>,
}

impl Progress {
    fn finish(&mut self, index: usize, done: Done) {
        self.outputs[index] = Some(done.output);
        self.inputs[index] = done.inputs;
        self.ran += usize::from(done.ran);
        self.done += 1;
    }
}

/// Runs what has to be run. On an error the steps under way are finished, no other is started, and the first
/// error is returned; what was published stays. Kernels that cannot boot are an error too.
pub fn execute(graph: &Graph, work: &Work<'_>) -> Result<Outputs> {
    sources::download(graph, work)?;
    let count = graph.nodes.len();
    let mut progress = Progress {
        outputs: vec![None; count],
        inputs: vec![Inputs::default(); count],
        started: vec![false; count],
        ..Progress::default()
    };
    // What is there needs no threads, and most often all is.
    for index in 0..count {
        if let Some(done) = reused(graph, index, &progress.outputs, work) {
            progress.started[index] = true;
            progress.finish(index, done);
        }
    }
    let progress = Mutex::new(progress);
    if lock(&progress).done < count {
        let changed = Condvar::new();
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(count) {
                scope.spawn(|| worker(graph, work, &progress, &changed));
            }
        });
    }
    let progress = progress.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(error) = progress.error {
        return Err(error);
    }
    let outputs: Option<Vec<_>> = progress.outputs.into_iter().collect();
    let outputs = outputs.ok_or_else(|| Error::bug("a step neither ran nor failed"))?;
    let done = Outputs { outputs, inputs: progress.inputs, ran: progress.ran };
    kernel_lint::check_kernels(graph, &done, work)?;
    Ok(done)
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn worker(graph: &Graph, work: &Work<'_>, progress: &Mutex<Progress>, changed: &Condvar) {
    let mut state = lock(progress);
    loop {
        if state.error.is_some() || state.done == graph.nodes.len() {
            return;
        }
        let ready = (0..graph.nodes.len()).find(|&n| {
            !state.started[n] && graph.nodes[n].parents.iter().all(|&parent| state.outputs[parent].is_some())
        });
        let Some(index) = ready else {
            state = changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            continue;
        };
        state.started[index] = true;
        let outputs = state.outputs.clone();
        drop(state);
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_node(graph, index, &outputs, work)))
                .unwrap_or_else(|_| {
                    Err(Error::bug(format!("the step {} panicked", graph.nodes[index].task.kind())))
                });
        state = lock(progress);
        match result {
            Ok(done) => state.finish(index, done),
            Err(error) => state.error = state.error.take().or(Some(error)),
        }
        changed.notify_all();
    }
}

struct Done {
    output: ObjectDigest,
    inputs: Inputs,
    ran: bool,
}

/// A step whose output is in the store. `None` also of one whose parents are not done or whose inputs cannot be told:
/// running it says why.
fn reused(graph: &Graph, index: usize, outputs: &[Option<ObjectDigest>], work: &Work<'_>) -> Option<Done> {
    let node = &graph.nodes[index];
    let inputs = node_inputs(graph, node, outputs, work.lock, work.scan, work.tools).ok()?;
    let output = work.store.reuse(&inputs.key(node.task.kind()))?;
    Some(Done { output, inputs, ran: false })
}

fn run_node(graph: &Graph, index: usize, outputs: &[Option<ObjectDigest>], work: &Work<'_>) -> Result<Done> {
    let node = &graph.nodes[index];
    let kind = node.task.kind();
    let inputs =
        node_inputs(graph, node, outputs, work.lock, work.scan, work.tools).map_err(
            |missing| match missing {
                Missing::Pin(asset) => Error::bug(format!("{asset:?} was not pinned before its step")),
                Missing::Parents(_) => Error::bug(format!("the step {kind} was started before its parents")),
            },
        )?;
    let key = inputs.key(kind);
    let cached = || work.store.reuse(&key);
    if let Some(output) = cached() {
        return Ok(Done { output, inputs, ran: false });
    }
    let name = format!("{kind} {}", node.subject);
    let _guard = work.store.lock_key(&key, &|who| work.ui.note(&format!("{name}: waiting for {who}")))?;
    // Somebody else may have done it while we waited.
    if let Some(output) = cached() {
        return Ok(Done { output, inputs, ran: false });
    }
    let step = work.ui.step(&name);
    let begin = Instant::now();
    let parents: Vec<ObjectDigest> = node.parents.iter().filter_map(|&p| outputs[p]).collect();
    let output = tasks::run(node, &parents, work)?;
    let millis = begin.elapsed().as_millis() as u64;
    work.store.record(
        &key,
        &store::Action { kind: kind.label().to_owned(), output, inputs: inputs.0.clone(), millis },
    )?;
    step.done(begin.elapsed());
    Ok(Done { output, inputs, ran: true })
}
