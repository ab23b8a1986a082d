//! What `vmm "auto"` means on this host.

use crate::error::Result;
use crate::manifest::model::{Firecracker, Manifest, VmmSource};
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
        vm.vmm = match (root && hardware()).then(|| proof(source)) {
            Some(Ok(())) => VmmSource::Firecracker(source.clone()),
            Some(Err(e)) => {
                let cause =
                    std::error::Error::source(&e).map(|cause| format!(": {cause}")).unwrap_or_default();
                Ui::stderr().warning(&format!("VM {}: `vmm \"auto\"` takes QEMU: {e}{cause}", vm.name));
                VmmSource::Auto
            }
            None => VmmSource::Auto,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::manifest;
    use fs_err as fs;

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
