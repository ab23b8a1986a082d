//! What `vmm "auto"` means on this host.

use crate::error::Result;
use crate::manifest::model::{Firecracker, Manifest, Vm, VmmSource};
use crate::plan::Graph;
use crate::ui::Ui;

/// Puts what `vmm "auto"` means on this host in its place. Firecracker's jailer needs root as well as hardware, and
/// where both are there a guest has to have run.
pub(super) fn decide(
    manifest: &mut Manifest,
    root: bool,
    hardware: impl Fn() -> bool,
    proof: impl Fn(&Firecracker) -> Result<()>,
) {
    for vm in &mut manifest.vms {
        let VmmSource::AutoFirecracker(source) = &vm.vmm else { continue };
        let firecracker = VmmSource::Firecracker(source.clone());
        (vm.vmm, vm.vmm_elsewhere) = match (root && hardware()).then(|| proof(source)) {
            Some(Ok(())) => (firecracker, Some(VmmSource::Auto)),
            Some(Err(e)) => {
                let cause =
                    std::error::Error::source(&e).map(|cause| format!(": {cause}")).unwrap_or_default();
                Ui::stderr().warning(&format!("VM {}: `vmm \"auto\"` takes QEMU: {e}{cause}", vm.name));
                (VmmSource::Auto, Some(firecracker))
            }
            None => (VmmSource::Auto, Some(firecracker)),
        };
    }
}

/// The graph of what any host may make of a manifest: what the lock has to cover, so that all write the same one.
pub fn graph_of_any_host(manifest: &Manifest) -> Graph {
    let mut all = manifest.clone();
    for vm in &manifest.vms {
        if let Some(vmm) = &vm.vmm_elsewhere {
            all.vms.push(Vm { vmm: vmm.clone(), ..vm.clone() });
        }
    }
    Graph::of(&all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::manifest;
    use fs_err as fs;

    #[test]
    fn a_lock_covers_both_of_what_auto_may_become() {
        let dir = tempfile::tempdir().unwrap();
        let url = "https://example.com/firecracker.tgz";
        let text = format!(
            r#"vm "a" {{ run "true"; vmm "auto" version="1.16.1" {{ url "{url}" sha256="{:064}" }}; }}"#,
            1
        );
        fs::write(dir.path().join(manifest::FILE_NAME), text).unwrap();
        for hardware in [true, false] {
            let mut manifest = manifest::load(dir.path()).unwrap();
            decide(&mut manifest, true, || hardware, |_| Ok(()));
            let graph = graph_of_any_host(&manifest);
            let needs = crate::project::needs_of(&graph);
            let vmms = needs.iter().filter(|need| need.id.kind() == "vmm");
            let vmms: std::collections::BTreeSet<String> = vmms.map(|need| need.id.to_string()).collect();
            assert_eq!(vmms, ["vmm qemu".to_owned(), format!("vmm {url}")].into());
        }
    }

    #[test]
    fn auto_is_firecracker_for_root_on_hardware_and_qemu_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"
            vm "auto" { run "true"; vmm "auto" { firecracker "/fc" }; }
            vm "insists" { run "true"; vmm "firecracker" { path "/fc" }; }
            vm "plain" { run "true"; }
        "#;
        fs::write(dir.path().join(manifest::FILE_NAME), text).unwrap();
        let decided_by = |root, hardware, proven: bool| {
            let mut manifest = manifest::load(dir.path()).unwrap();
            let proof = |_: &Firecracker| {
                assert!(root && hardware, "nothing is tried in vain");
                if proven { Ok(()) } else { Err(Error::host("vmm.trial", "it died")) }
            };
            super::decide(&mut manifest, root, || hardware, proof);
            let is_firecracker = |vm: &manifest::model::Vm| matches!(vm.vmm, VmmSource::Firecracker(_));
            assert_eq!(manifest.vms[2].vmm, VmmSource::Auto);
            (is_firecracker(&manifest.vms[0]), is_firecracker(&manifest.vms[1]))
        };
        assert_eq!(decided_by(true, true, false), (false, true), "it was tried and did not work");
        let decided = |root, hardware| decided_by(root, hardware, true);
        assert_eq!(decided(true, true), (true, true));
        assert_eq!(decided(false, true), (false, true));
        assert_eq!(decided(true, false), (false, true));
        assert_eq!(decided(false, false), (false, true));
    }
}
