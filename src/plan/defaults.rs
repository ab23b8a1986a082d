//! What a container image says of running it becomes its VM's defaults; what the manifest says wins.

use crate::error::{Error, Result};
use crate::lock::{AssetId, Lock, OciConfig};
use crate::manifest::model::{ImageSource, Manifest, Port, User, Vm, Workdir};
use crate::name::Name;
use std::net::{IpAddr, Ipv4Addr};

/// Fills in what the manifest leaves open. VMs whose image has yet to be pinned are left as they are. `local`
/// describes images on this host. Returns the VMs that cannot be filled in, which leave the manifest, and why: no
/// program, of their own or of their image's, or an error of `local`.
///
/// # Errors
/// Such an error if no VM would be left; usage for a port that two VMs publish.
pub fn fill(
    manifest: &mut Manifest,
    lock: &Lock,
    local: impl Fn(&ImageSource) -> Result<Option<OciConfig>>,
) -> Result<Vec<(Name, Error)>> {
    let mut failed = Vec::new();
    for vm in &mut manifest.vms {
        let filled = match &vm.image {
            ImageSource::Oci(reference) => match lock.oci(&AssetId::Oci(reference.clone())) {
                Some(pin) => apply(vm, &pin.config),
                None => Ok(()),
            },
            image => local(image).and_then(|config| config.map_or(Ok(()), |config| apply(vm, &config))),
        };
        failed.extend(filled.err().map(|error| (vm.name.clone(), error)));
    }
    if failed.len() == manifest.vms.len()
        && let Some((_, error)) = failed.pop()
    {
        return Err(error);
    }
    manifest.vms.retain(|vm| failed.iter().all(|(name, _)| *name != vm.name));
    check_ports(manifest)?;
    Ok(failed)
}

/// The manifest's own ports have been compared; those of images come in here.
fn check_ports(manifest: &Manifest) -> Result<()> {
    let mut taken: Vec<(&Port, &Vm)> = Vec::new();
    for vm in &manifest.vms {
        for port in &vm.ports {
            let same = |other: &Port| {
                let any = other.address.is_unspecified() || port.address.is_unspecified();
                other.host == port.host && (any || other.address == port.address)
            };
            if let Some((_, other)) = taken.iter().find(|(other, _)| same(other)) {
                let text = format!(
                    "the host's port {} is published by {} and by {}, for an image exposes it",
                    port.host, other.name, vm.name
                );
                return Err(Error::usage("manifest.duplicate-port", text).help(format!(
                    "give one of them a `port` of its own, such as `port {} to={}`, or `port \"none\"`",
                    port.host.checked_add(1).unwrap_or(8080),
                    port.guest
                )));
            }
            taken.push((port, vm));
        }
    }
    Ok(())
}

fn apply(vm: &mut Vm, config: &OciConfig) -> Result<()> {
    if vm.run.is_empty() {
        vm.run = config.argv();
    }
    if vm.run.is_empty() {
        let text = format!("VM {} has no `run`, and its image names no program", vm.name);
        return Err(Error::usage("manifest.missing-run", text)
            .help("say what it shall do, for example `run \"python3\" \"server.py\"`"));
    }
    let mut env: Vec<(String, String)> = config.env.clone();
    env.retain(|(name, _)| {
        !vm.env.iter().any(|(own, _)| own == name) && !vm.secrets.iter().any(|own| own.name == *name)
    });
    env.append(&mut vm.env);
    vm.env = env;
    if vm.workdir.is_none() && !config.workdir.is_empty() {
        vm.workdir = Some(Workdir::Image(config.workdir.clone()));
    }
    if vm.user.is_none() && !config.user.is_empty() {
        vm.user = Some(user(&config.user));
    }
    if vm.ports.is_empty() && vm.exposed {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        vm.ports = config.published().map(|port| Port { address, host: port, guest: port }).collect();
    }
    Ok(())
}

/// `USER[:GROUP]`. What a bare number's group is, and whether names are known, only the image's own files tell.
fn user(text: &str) -> User {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group.to_owned())),
        None => (text, None),
    };
    User::Image { user: user.to_owned(), group }
}
