//! `firegopher doctor`: what this host can do, shown by doing it.

use super::place::Place;
use super::{print, print_json};
use crate::error::Result;
use crate::home::Home;
use crate::lock::Lock;
use crate::manifest::{
    self, Location,
    model::{FirecrackerFrom, VmmSource},
};
use crate::project;
use crate::step::proof;
use crate::ui::Ui;
use crate::vmm::probe::{self, Check, Status, Vmms};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the checks as JSON.
    #[arg(long)]
    json: bool,
    /// Try the Firecracker in this directory instead of the manifest's.
    #[arg(long, value_name = "DIR")]
    firecracker: Option<PathBuf>,
}

#[derive(Serialize)]
struct Document<'a> {
    format_version: u32,
    checks: &'a [Check],
}

/// What is there to be tried: the Firecracker that was named or that the manifest here names, and the store's QEMU.
fn vmms(at: &Location, home: &Home, named: Option<&Path>) -> Vmms {
    // A doctor may come before the first manifest and the first build; it makes no store either.
    let manifest = manifest::load_at(at)
        .inspect_err(|error| {
            if error.code() != "manifest.missing" {
                Ui::stderr().warning(&format!("what the manifest names is not looked at: {error}"));
            }
        })
        .ok();
    let store = home.store().is_dir().then(|| project::open_store(home).ok()).flatten();
    let lock = Lock::load(&at.lock_path()).unwrap_or_default();
    let of_manifest = || {
        let manifest = manifest.as_ref()?;
        let source = manifest.vms.iter().find_map(|vm| match &vm.vmm {
            VmmSource::Firecracker(source) | VmmSource::AutoFirecracker(source) => Some(source),
            _ => None,
        })?;
        match &source.from {
            FirecrackerFrom::Dir(path) => Some(manifest.dir.join(path)),
            FirecrackerFrom::Release(_) => {
                proof::firecracker_dir(store.as_ref()?, &lock, &manifest.dir, source)
            }
        }
    };
    Vmms {
        firecracker: named.map(Path::to_owned).or_else(of_manifest),
        qemu: store.as_ref().and_then(|store| proof::qemu_tree(store, &lock).ok().flatten()),
    }
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let home = Home::from_env()?;
    let checks = probe::checks(&home, &vmms(&place.quiet()?, &home, args.firecracker.as_deref()));
    if args.json {
        print_json(&Document { format_version: 1, checks: &checks })?;
    } else {
        let mut out = String::new();
        for check in &checks {
            let mark = match check.status {
                Status::Ok => "ok     ",
                Status::Warn => "note   ",
                Status::Missing => "missing",
            };
            out.push_str(&format!("{mark} {:<18} {}\n", check.name, check.detail));
            if let Some(help) = check.help.as_ref().filter(|_| check.status != Status::Ok) {
                out.push_str(&format!("{:27}{help}\n", ""));
            }
        }
        print(&out)?;
    }
    let missing = checks.iter().any(|check| check.status == Status::Missing);
    Ok(if missing { ExitCode::from(69) } else { ExitCode::SUCCESS })
}
