//! Runs the pure steps of a graph: each as soon as its parents are done, several at a time, each key once
//! even among processes.

use super::{Work, kernel_lint, memory_lint, program, sources, tasks};
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
    /// Of `count` nodes, none of which was started.
    fn of(count: usize) -> Progress {
        Progress {
            outputs: vec![None; count],
            inputs: vec![Inputs::default(); count],
            started: vec![false; count],
            ..Progress::default()
        }
    }

    fn finish(&mut self, index: usize, done: Done) {
        self.outputs[index] = Some(done.output);
        self.inputs[index] = done.inputs;
        self.ran += usize::from(done.ran);
        self.done += 1;
    }
}

/// Runs what has to be run. On an error the steps under way are finished, no other is started, and the first
/// error is returned; what was published stays. Kernels that cannot boot, or not in their VM's memory, are an error too,
/// and programs that cannot run.
pub fn execute(graph: &Graph, work: &Work<'_>) -> Result<Outputs> {
    sources::download(graph, work)?;
    let count = graph.nodes.len();
    let mut progress = Progress::of(count);
    // What is there needs no threads, and most often all is.
    for index in 0..count {
        if let Some(done) = reused(graph, index, &progress.outputs, work) {
            progress.started[index] = true;
            progress.finish(index, done);
        }
    }
    let progress = schedule(graph, progress, &|index, outputs| run_node(graph, index, outputs, work))?;
    let outputs: Option<Vec<_>> = progress.outputs.into_iter().collect();
    let outputs = outputs.ok_or_else(|| Error::bug("a step neither ran nor failed"))?;
    let done = Outputs { outputs, inputs: progress.inputs, ran: progress.ran };
    kernel_lint::check_kernels(graph, &done, work)?;
    memory_lint::check_built(graph, &done, work)?;
    program::check_programs(graph, &done, work)?;
    Ok(done)
}

/// Runs one node, given the outputs so far.
type Run<'a> = &'a (dyn Fn(usize, &[Option<ObjectDigest>]) -> Result<Done> + Sync);

/// Runs what is not done yet, each node once its parents are done, until all are or one fails.
fn schedule(graph: &Graph, progress: Progress, run: Run<'_>) -> Result<Progress> {
    let count = graph.nodes.len();
    let progress = Mutex::new(progress);
    if lock(&progress).done < count {
        let changed = Condvar::new();
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(count) {
                scope.spawn(|| worker(graph, run, &progress, &changed));
            }
        });
    }
    let mut progress = progress.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    match progress.error.take() {
        Some(error) => Err(error),
        None => Ok(progress),
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn worker(graph: &Graph, run: Run<'_>, progress: &Mutex<Progress>, changed: &Condvar) {
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
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(index, &outputs)))
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
                Missing::Parents(..) => Error::bug(format!("the step {kind} was started before its parents")),
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
        &store::Action {
            kind: kind.label().to_owned(),
            subject: node.subject.clone(),
            output,
            inputs: inputs.0.clone(),
            millis,
        },
    )?;
    step.done(begin.elapsed());
    Ok(Done { output, inputs, ran: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    /// Of two VMs that share kernel and VMM: many nodes of several depths.
    fn graph() -> Graph {
        let dir = tempfile::tempdir().unwrap();
        let vm = |name: &str, package: &str| {
            format!("vm \"{name}\" {{ image {{ debian \"{package}\" }}; run \"true\" }}\n")
        };
        let text = vm("a", "bash") + &vm("b", "dash");
        Graph::of(
            &crate::manifest::parse(&text, "test", dir.path()).map_err(|d| d.render(false, 80)).unwrap(),
        )
    }

    fn done(index: usize) -> Done {
        let output = ObjectDigest::from(blake3::hash(&index.to_le_bytes()));
        Done { output, inputs: Inputs::default(), ran: true }
    }

    fn roots(graph: &Graph) -> Vec<usize> {
        (0..graph.nodes.len()).filter(|&n| graph.nodes[n].parents.is_empty()).collect()
    }

    #[test]
    fn every_step_runs_once_and_after_its_parents() {
        let graph = graph();
        let runs: Vec<AtomicUsize> = graph.nodes.iter().map(|_| AtomicUsize::new(0)).collect();
        let all = schedule(&graph, Progress::of(graph.nodes.len()), &|index, outputs| {
            assert!(graph.nodes[index].parents.iter().all(|&parent| outputs[parent].is_some()));
            runs[index].fetch_add(1, Ordering::Relaxed);
            Ok(done(index))
        })
        .unwrap();
        assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
        assert_eq!((all.done, all.ran), (graph.nodes.len(), graph.nodes.len()));
        assert!(graph.nodes.iter().any(|node| !node.parents.is_empty()));
    }

    #[test]
    fn independent_steps_run_at_the_same_time() {
        let graph = graph();
        let [first, second] = roots(&graph)[..2] else { panic!("two roots at least") };
        // Each of the two goes on only when the other has begun.
        let (to_second, from_first) = mpsc::channel();
        let (to_first, from_second) = mpsc::channel();
        let (from_first, from_second) = (Mutex::new(from_first), Mutex::new(from_second));
        let wait = |begun: &Mutex<mpsc::Receiver<()>>| {
            begun.lock().unwrap().recv_timeout(Duration::from_secs(20)).map_err(|_| Error::bug("alone"))
        };
        let all = schedule(&graph, Progress::of(graph.nodes.len()), &|index, _| {
            if index == first {
                to_second.send(()).unwrap();
                wait(&from_second)?;
            } else if index == second {
                to_first.send(()).unwrap();
                wait(&from_first)?;
            }
            Ok(done(index))
        });
        assert!(all.is_ok());
    }

    #[test]
    fn after_an_error_the_steps_under_way_end_and_no_other_starts() {
        let graph = graph();
        let [first, second] = roots(&graph)[..2] else { panic!("two roots at least") };
        let ((begun, other), (failed, after)) = (mpsc::channel(), mpsc::channel());
        let (other, after) = (Mutex::new(other), Mutex::new(after));
        let ended = AtomicUsize::new(0);
        let started = AtomicUsize::new(0);
        let error = schedule(&graph, Progress::of(graph.nodes.len()), &|index, _| {
            started.fetch_add(1, Ordering::Relaxed);
            if index == first {
                other.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
                failed.send(()).unwrap();
                return Err(Error::failed("test.first", "the first"));
            }
            if index == second {
                begun.send(()).unwrap();
                after.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
                // Long enough for the error to be noticed.
                std::thread::sleep(Duration::from_millis(100));
                ended.fetch_add(1, Ordering::Relaxed);
                return Err(Error::failed("test.second", "the second"));
            }
            Ok(done(index))
        })
        .err()
        .unwrap();
        assert_eq!(error.code(), "test.first");
        assert_eq!(ended.load(Ordering::Relaxed), 1, "what was under way came to its end");
        assert!(started.load(Ordering::Relaxed) < graph.nodes.len());
    }

    #[test]
    fn a_step_that_panics_is_a_bug_and_nobody_waits_for_it() {
        let graph = graph();
        let last = graph.nodes.len() - 1;
        let error = schedule(&graph, Progress::of(graph.nodes.len()), &|index, _| match index == last {
            true => panic!("a test's panic"),
            false => Ok(done(index)),
        })
        .err()
        .unwrap();
        assert_eq!(error.kind(), Kind::Bug);
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
