//! Finds VMMs that are in the store already, and has `vmm "auto"` believe in Firecracker only after a guest of a few
//! instructions has run to its end in it: once for each program and boot of the host.

use super::tools;
use crate::digest::{FieldHasher, ObjectDigest};
use crate::error::{Context, Result};
use crate::home::Home;
use crate::lock::Lock;
use crate::manifest::model::{Firecracker, FirecrackerFrom};
use crate::plan::{Graph, Node, Scan, StepKind, Task, node_inputs};
use crate::store::scan::scan_file;
use crate::store::{Action, Store};
use crate::vmm::spec::firecracker_programs;
use crate::vmm::trial::Trial;
use std::path::{Path, PathBuf};

/// The tree of a VMM that was fetched for these pins, if it was.
fn fetched(store: &Store, lock: &Lock, task: Task) -> Option<PathBuf> {
    let node = Node { task, subject: String::new(), vms: Vec::new(), parents: Vec::new() };
    let inputs = node_inputs(&Graph::default(), &node, &[], lock, &Scan::default(), &tools()).ok()?;
    let output = store.action(&inputs.key(StepKind::FetchVmm))?.output;
    store.has(&output).then(|| store.object_path(&output))
}

/// Where Firecracker's two programs are, if they are on this host by now. Paths start at `dir`, the project's.
pub fn firecracker_dir(store: &Store, lock: &Lock, dir: &Path, source: &Firecracker) -> Option<PathBuf> {
    match &source.from {
        FirecrackerFrom::Dir(path) => Some(dir.join(path)),
        FirecrackerFrom::Release(url) => {
            fetched(store, lock, Task::FetchFirecracker(url.clone(), source.version))
        }
    }
}

/// The QEMU that these pins name, or without them the one that was used last.
pub fn qemu_tree(store: &Store, lock: &Lock) -> Result<Option<PathBuf>> {
    if let Some(tree) = fetched(store, lock, Task::FetchQemu) {
        return Ok(Some(tree));
    }
    let inventory = store.inventory()?;
    let trees = inventory.objects.iter().filter(|(_, object)| object.kind == StepKind::FetchVmm.label());
    let mut trees: Vec<_> = trees.map(|(digest, object)| (object.used, store.object_path(digest))).collect();
    trees.retain(|(_, tree)| tree.join("qemu-system-x86_64").is_file());
    trees.sort();
    Ok(trees.pop().map(|(_, tree)| tree))
}

/// Whether the programs in `dir` run a guest on this host. `trial` is asked once for each two programs and boot of
/// the host.
///
/// # Errors
/// The trial's.
pub fn prove(store: &Store, dir: &Path, trial: impl FnOnce() -> Result<Trial>) -> Result<()> {
    let mut digests = Vec::new();
    for program in firecracker_programs(dir) {
        digests.push(scan_file(store, &program)?.digest);
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .or_host("vmm.trial", || "cannot tell this boot of the host from others")?;
    let mut hasher = FieldHasher::new("firegopher firecracker trial v1");
    digests.iter().for_each(|digest| {
        hasher.field(digest.to_hex());
    });
    let key = hasher.field(boot.trim()).finish().into();
    if store.action(&key).is_some() {
        return Ok(());
    }
    let done = trial()?;
    let output = store.publish_bytes(b"a guest ran to its end\n")?;
    let inputs =
        digests.iter().map(|digest: &ObjectDigest| ("program".to_owned(), digest.to_string())).collect();
    let millis = done.took.as_millis() as u64;
    store.record(
        &key,
        &Action { kind: "firecracker trial".to_owned(), output, inputs, millis, subject: String::new() },
    )
}

/// Whether `vmm "auto"` may take this Firecracker. What is not on the host yet has its chance once it is.
///
/// # Errors
/// Why not.
pub fn auto(store: &Store, lock: &Lock, home: &Home, dir: &Path, source: &Firecracker) -> Result<()> {
    match firecracker_dir(store, lock, dir, source) {
        Some(dir) => prove(store, &dir, || crate::vmm::trial::firecracker(&dir, home)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::time::Duration;

    #[test]
    fn a_trial_is_made_once_for_two_programs_and_again_for_others() {
        let scratch = crate::store::testing::scratch();
        let dir = tempfile::tempdir().unwrap();
        let put = |text: &str| {
            for program in firecracker_programs(dir.path()) {
                fs_err::write(program, text).unwrap();
            }
        };
        let prove = |outcome: Result<()>| {
            let mut asked = false;
            let result = super::prove(&scratch.store, dir.path(), || {
                asked = true;
                outcome.map(|()| Trial { took: Duration::ZERO, console: String::new() })
            });
            (asked, result.is_ok())
        };
        put("one");
        assert_eq!(prove(Err(Error::host("x", "no"))), (true, false), "a failure is tried again");
        assert_eq!(prove(Ok(())), (true, true));
        assert_eq!(prove(Err(Error::host("x", "no"))), (false, true));
        put("other");
        assert_eq!(prove(Ok(())), (true, true));
    }
}
