//! `firegopher doctor`: what this host can do, shown by doing it.

use super::{print, print_json};
use crate::error::Result;
use crate::home::Home;
use crate::manifest::{
    self,
    model::{FirecrackerFrom, VmmSource},
};
use crate::vmm::probe::{self, Check, Status};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the checks as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    format_version: u32,
    checks: &'a [Check],
}

/// The directory that the manifest here names, or the one that tests use.
fn firecracker(dir: &Path) -> Option<PathBuf> {
    let named = manifest::load(dir).ok().and_then(|manifest| {
        manifest.vms.iter().find_map(|vm| match &vm.vmm {
            VmmSource::Firecracker(source) | VmmSource::AutoFirecracker(source) => match &source.from {
                FirecrackerFrom::Dir(path) => Some(manifest.dir.join(path)),
                FirecrackerFrom::Release(_) => None,
            },
            _ => None,
        })
    });
    named.or_else(|| std::env::var_os("FIREGOPHER_TEST_FIRECRACKER").map(PathBuf::from))
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<ExitCode> {
    let home = Home::from_env()?;
    let checks = probe::checks(&home, firecracker(dir).as_deref());
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
