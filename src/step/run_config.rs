//! Renders what the guest init is told. The template holds everything that is known before a boot; addresses,
//! the clock and secrets are filled in by the supervisor and never stored.

use crate::manifest::model::{Root, User, Vm, Workdir};
use crate::plan::InputName;
use crate::units::Time;
use firegopher_protocol::{Disk, RunConfig, RunUser, VolumeMount};
use std::time::Duration;

/// The run configuration of a VM, without network, clock and secrets.
pub fn template(vm: &Vm) -> RunConfig {
    let drives = drive_plan(vm);
    let disk = |role: &str, read_only: bool| {
        let index =
            drives.iter().position(|r| r == role).expect("invariant: drive_plan lists every role of the VM");
        Disk { index: index as u8, read_only }
    };
    let layers = drives.iter().filter(|r| *r == "base" || *r == "workload").map(|r| disk(r, true)).collect();
    RunConfig {
        argv: vm.run.clone(),
        env: vm.env.clone(),
        secrets: Vec::new(),
        workdir: match &vm.workdir {
            None => "/".to_owned(),
            Some(Workdir::Own(path) | Workdir::Image(path)) => path.clone(),
        },
        make_workdir: matches!(vm.workdir, Some(Workdir::Image(_))),
        user: match &vm.user {
            None => RunUser::Name("root".to_owned()),
            Some(User::Name(name)) => RunUser::Name(name.clone()),
            Some(User::Id { uid, gid }) => RunUser::Id { uid: *uid, gid: *gid },
            Some(User::Image { user, group }) => RunUser::Image { user: user.clone(), group: group.clone() },
        },
        hostname: vm.hostname.clone(),
        hosts: Vec::new(),
        dns: Vec::new(),
        network: None,
        layers,
        scratch: matches!(vm.root, Root::Scratch(_)).then(|| disk("scratch", false)),
        volumes: vm
            .volumes
            .iter()
            .map(|volume| VolumeMount {
                name: volume.name.to_string(),
                disk: disk(&volume_role(volume.name.as_str()), false),
                at: volume.at.clone(),
            })
            .collect(),
        sysctls: vm.sysctls.clone(),
        limits: vm.limits.clone(),
        no_new_privileges: vm.no_new_privileges,
        grace_ms: vm.grace.as_millis() as u64,
        clock_ms: 0,
        stdin: false,
        patient: false,
    }
}

/// The roles of a VM's drives in the order the guest sees them.
pub fn drive_plan(vm: &Vm) -> Vec<String> {
    let mut roles = vec!["base".to_owned()];
    if !vm.workloads.is_empty() {
        roles.push("workload".to_owned());
    }
    if matches!(vm.root, Root::Scratch(_)) {
        roles.push("scratch".to_owned());
    }
    roles.extend(vm.volumes.iter().map(|v| volume_role(v.name.as_str())));
    roles
}

/// The drive role of a volume.
pub fn volume_role(name: &str) -> String {
    format!("volume-{name}")
}

/// The template as named values, for a key that can be explained setting by setting.
pub fn fields(config: &RunConfig) -> Vec<(InputName, String)> {
    let value = serde_json::to_value(config).expect("invariant: a run configuration has only string keys");
    let mut fields: Vec<(InputName, String)> =
        config.env.iter().map(|(k, v)| (InputName::Env(k.clone()), v.clone())).collect();
    // Their order counts too: one may need the one before it.
    fields
        .extend(config.sysctls.iter().map(|(path, value)| (InputName::Sysctl(path.clone()), value.clone())));
    let text = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    fields.extend(config.limits.iter().map(|limit| {
        let values = format!("{}:{}", text(limit.soft), text(limit.hard));
        (InputName::Limit(limit.resource.name().to_owned()), values)
    }));
    let settings = value.as_object().into_iter().flatten();
    fields.extend(settings.filter_map(|(name, value)| {
        // By the manifest's word, as the manifest writes it.
        let (name, value) = match name.as_str() {
            "env" | "sysctls" | "limits" => return None,
            "argv" => ("run", value.to_string()),
            "grace_ms" => ("grace", Time(Duration::from_millis(config.grace_ms)).to_string()),
            name => (name, value.to_string()),
        };
        Some((InputName::from(name), value))
    }));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::StepKind;
    use std::path::Path;

    /// What is cached under one version of the step must be what it makes: another form needs another version.
    #[test]
    fn the_form_of_run_json_goes_with_the_version_of_its_step() {
        let text = "vm \"app\" { run \"sh\" \"-c\" \"true\"; port 8080 to=80; volume \"data\" at=\"/data\" size=\"1GiB\" }";
        let manifest = crate::manifest::parse(text, "test", Path::new("/"));
        let vm = &manifest.unwrap_or_else(|_| panic!("{text}")).vms[0];
        let version = format!("run_json_version_{}", StepKind::Init.version());
        insta::assert_snapshot!(version, serde_json::to_string_pretty(&template(vm)).unwrap());
    }
}
