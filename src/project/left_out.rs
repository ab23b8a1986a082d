//! VMs that a command leaves out because their images are no good: the others of the project go on, and the command
//! fails in the end.

use super::Project;
use crate::error::{Error, Kind, Result};
use crate::manifest::model::Vm;
use crate::name::Name;
use crate::plan::{Graph, Scan, needs};
use crate::step::execute;
use crate::ui::Ui;

/// A VM, and why it is left out.
#[derive(Debug)]
pub struct LeftOut {
    /// As the manifest calls it.
    pub vm: Name,
    /// What is wrong with its image.
    pub error: Error,
}

impl LeftOut {
    /// The error with the VM's name.
    fn named(self) -> Error {
        let LeftOut { vm, error } = self;
        let text = format!("{vm} is left out: {error}");
        let named = match error.kind() {
            Kind::Usage => Error::usage(error.code(), text),
            Kind::Host => Error::host(error.code(), text),
            _ => Error::failed(error.code(), text),
        };
        match error.help_text() {
            Some(help) => named.help(help),
            None => named,
        }
    }
}

/// What a command returns that left VMs out: the error of the first, as if nothing else had been asked for.
///
/// # Errors
/// That of the first VM that was left out.
pub fn verdict<T>(left_out: Vec<LeftOut>, value: T) -> Result<T> {
    match left_out.into_iter().next() {
        Some(first) => Err(first.named()),
        None => Ok(value),
    }
}

/// Whether an error is about one image and not about this host, which would fail for all.
fn is_of_image(error: &Error) -> bool {
    let code = error.code();
    ["oci.", "archive.", "image."].iter().any(|kind| code.starts_with(kind)) && code != "image.disk-full"
}

impl Project {
    /// Says which VMs are left out, before anything is done for the others.
    pub fn tell_left_out(&self, ui: &Ui) {
        for LeftOut { vm, error } in &self.left_out {
            ui.warning(&format!("{vm} is left out: {error}"));
        }
    }

    /// After a pin could not be had: leaves out the VMs that need it.
    ///
    /// # Errors
    /// The same, if no VM would be left.
    pub(super) fn leave_out_unpinned(&mut self, error: Error) -> Result<()> {
        let graph = super::graph_of_any_host(&self.manifest);
        let lacks = |vm: &Vm| {
            let mut nodes = graph.nodes.iter().filter(|node| node.vms.contains(&vm.name));
            nodes.any(|node| needs(&node.task).iter().any(|need| need.pinned(&self.lock).is_none()))
        };
        let lacking: Vec<Name> =
            self.manifest.vms.iter().filter(|vm| lacks(vm)).map(|vm| vm.name.clone()).collect();
        self.leave_out(lacking, error)
    }

    /// After building failed: leaves out the VMs that cannot be built because of their images.
    ///
    /// # Errors
    /// The same, if it is not about an image, or no VM would be left.
    pub fn leave_out_unbuildable(&mut self, scan: &Scan, offline: bool, ui: &Ui, error: Error) -> Result<()> {
        if !is_of_image(&error) || self.manifest.vms.len() < 2 {
            return Err(error);
        }
        let all = std::mem::take(&mut self.manifest.vms);
        let mut failed = Vec::new();
        for vm in &all {
            // Each alone: what they share is built once and found by the next.
            self.manifest.vms = vec![vm.clone()];
            let graph = Graph::of(&self.manifest);
            if execute(&graph, &self.work(scan, offline, ui)).is_err() {
                failed.push(vm.name.clone());
            }
        }
        self.manifest.vms = all;
        self.leave_out(failed, error)
    }

    fn leave_out(&mut self, vms: Vec<Name>, error: Error) -> Result<()> {
        let Some((first, others)) = vms.split_first() else { return Err(error) };
        if vms.len() == self.manifest.vms.len() {
            return Err(error);
        }
        for vm in others {
            let same = Error::failed(error.code(), error.to_string());
            self.left_out.push(LeftOut { vm: vm.clone(), error: same });
        }
        self.left_out.push(LeftOut { vm: first.clone(), error });
        self.manifest.vms.retain(|vm| !vms.contains(&vm.name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_vm_that_is_left_out_names_it_and_keeps_its_code() {
        let vm: Name = Name::new("app").unwrap();
        let error = Error::usage("oci.read", "cannot read the image x").help("name a layout");
        let error = verdict(vec![LeftOut { vm, error }], ()).unwrap_err();
        assert_eq!(error.to_string(), "app is left out: cannot read the image x");
        assert_eq!(
            (error.code(), error.kind(), error.help_text()),
            ("oci.read", Kind::Usage, Some("name a layout"))
        );
        assert_eq!(verdict(Vec::new(), 7).unwrap(), 7);
    }

    #[test]
    fn what_would_fail_for_every_vm_is_nobodys_image() {
        for (code, is) in [
            ("oci.invalid", true),
            ("archive.damaged", true),
            ("image.disk-full", false),
            ("store.disk-full", false),
        ] {
            assert_eq!(is_of_image(&Error::failed(code, "x")), is, "{code}");
        }
    }
}
