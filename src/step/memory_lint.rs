//! Refuses to go on with a VM that has less memory than its kernel starts in: it would panic.

use super::{Outputs, Work};
use crate::error::Result;
use crate::manifest::{self, Location, model::KernelSource, model::Vm};
use crate::plan::{Graph, Task};
use crate::vmm::least_memory::least;
use std::path::Path;

/// Looks at the memory of every VM of a graph whose steps are done.
///
/// # Errors
/// `vm.too-little-memory`, at its place in the manifest.
pub(super) fn check_built(graph: &Graph, done: &Outputs, work: &Work<'_>) -> Result<()> {
    for nodes in &graph.vms {
        let Task::Init(vm) = &graph.nodes[nodes.init].task else { continue };
        let object = |node: usize| work.store.object_path(&done.outputs[node]);
        if let Some(warning) =
            check_memory(&work.manifest, vm, &object(nodes.kernel), &object(nodes.initramfs))?
        {
            work.ui.warning(&warning);
        }
    }
    Ok(())
}

/// Looks at the memory of a VM whose kernel lies in the tree `kernel`. The figures were taken with Debian's kernels: with
/// a kernel of somebody's own, which may be smaller in more than its image, too little is a warning, which is returned.
///
/// # Errors
/// `vm.too-little-memory`, at its place in the manifest.
pub fn check_memory(at: &Location, vm: &Vm, kernel: &Path, initramfs: &Path) -> Result<Option<String>> {
    let Some(least) = least(&kernel.join("vmlinux"), initramfs, vm.cpus) else { return Ok(None) };
    if vm.memory >= least {
        return Ok(None);
    }
    let (has, needs) = (vm.memory >> 20, least >> 20);
    let text = format!(
        "VM {}: {has} MiB of memory are too little for its kernel, which starts in {needs} MiB",
        vm.name
    );
    if !matches!(vm.kernel, KernelSource::Debian(_)) {
        return Ok(Some(format!("{text} by its size; it may panic")));
    }
    let help = format!("write memory \"{needs}MiB\" or more: what the workload needs comes on top");
    let label = format!("{needs}MiB is the least");
    let place = manifest::Place { vm: &vm.name, setting: "memory" };
    Err(manifest::error_at(at, place, "vm.too-little-memory", &text, &label, &help))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    #[test]
    fn too_little_memory_is_shown_where_the_manifest_says_it() {
        let dir = tempfile::tempdir().unwrap();
        let text = "vm \"a\" { run \"true\"; }\nvm \"b\" {\n    memory \"64MiB\"\n    run \"true\"\n}\n";
        fs::write(dir.path().join(manifest::FILE_NAME), text).unwrap();
        let name = crate::name::Name::new("b").unwrap();
        let at = |setting| {
            let place = manifest::Place { vm: &name, setting };
            manifest::error_at(
                &Location::in_dir(dir.path()),
                place,
                "vm.too-little-memory",
                "too little",
                "the least",
                "more",
            )
        };
        let error = at("memory");
        assert_eq!((error.code(), error.kind()), ("vm.too-little-memory", crate::error::Kind::Usage));
        let report = error.report().unwrap();
        assert!(report.contains("memory \"64MiB\"") && report.contains("the least"), "{report}");
        // A setting that is not written is shown at its VM.
        let report = at("cpus").report().unwrap().to_owned();
        assert!(report.contains("vm \"b\"") && !report.contains("vm \"a\"\n"), "{report}");
        // The manifest may have been changed meanwhile.
        fs::write(dir.path().join(manifest::FILE_NAME), "{{{").unwrap();
        assert_eq!((at("memory").report(), at("memory").help_text()), (None, Some("more")));
    }

    #[test]
    fn reports_are_of_the_manifest_that_was_named_beside_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let usual = "vm \"a\" {\n    memory \"1MiB\"\n    run \"usual\"\n}\n";
        fs::write(dir.path().join(manifest::FILE_NAME), usual).unwrap();
        let other = "vm \"a\" {\n    memory \"2MiB\"\n    run \"other\"\n}\n";
        fs::write(dir.path().join("other.kdl"), other).unwrap();
        let at = Location::named(&dir.path().join("other.kdl")).unwrap();
        let name = crate::name::Name::new("a").unwrap();
        let place = manifest::Place { vm: &name, setting: "memory" };
        let error = manifest::error_at(&at, place, "vm.too-little-memory", "too little", "least", "more");
        let report = error.report().unwrap();
        assert!(report.contains("other.kdl") && report.contains("memory \"2MiB\""), "{report}");
        let report =
            manifest::report_at_run(&at, &name, "other", "program.missing", "it is not there", "more");
        let report = report.unwrap();
        assert!(report.contains("other.kdl") && report.contains("run \"other\""), "{report}");
    }
}
