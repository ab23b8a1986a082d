//! `firegopher update`: moves pins to what the host's package sources serve now, and shows the difference.

use super::{print, signals};
use crate::error::{Error, Result};
use crate::lock::{AssetId, Lock, Pin};
use crate::project::{LOCK_FILE, Project};
use crate::ui::Ui;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these: kernel, vmm, image, or a package one of them is named by.
    assets: Vec<String>,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open(dir)?;
    let signals = signals::Signals::block(&project.store);
    let guard = project.guard(&ui)?;
    let all = project.assets();
    for wanted in &args.assets {
        if !all.iter().any(|asset| is_meant(asset, wanted)) {
            let known: Vec<String> = all.iter().map(ToString::to_string).collect();
            return Err(Error::usage("update.unknown", format!("the manifest needs no asset {wanted:?}"))
                .help(format!("It needs: {}.", known.join("; "))));
        }
    }
    let chosen = all
        .iter()
        .filter(|asset| args.assets.is_empty() || args.assets.iter().any(|wanted| is_meant(asset, wanted)))
        .cloned()
        .collect();
    let before = project.lock.clone();
    // What no VM needs any more goes.
    project.lock.retain(|asset| all.contains(asset));
    project.pin(chosen, &ui)?;
    drop(guard);
    ui.clear();
    drop(signals);
    let changes = changes(&before, &project.lock, &all);
    print(&changes)?;
    ui.note(&match changes.is_empty() {
        true => format!("{LOCK_FILE} has the newest pins already."),
        false => format!("Wrote {LOCK_FILE}; check it in."),
    });
    Ok(ExitCode::SUCCESS)
}

fn is_meant(asset: &AssetId, wanted: &str) -> bool {
    asset.kind() == wanted || asset.set().is_some_and(|set| set.names().any(|name| name == wanted))
}

/// One line a package that came, went or moved.
fn changes(before: &Lock, after: &Lock, assets: &[AssetId]) -> String {
    let versions = |lock: &Lock, asset: &AssetId| -> BTreeMap<String, String> {
        let pins: &[Pin] = lock.get(asset).unwrap_or_default();
        pins.iter().map(|pin| (pin.package.clone(), pin.version.clone())).collect()
    };
    let mut out = String::new();
    for asset in assets {
        let (old, new) = (versions(before, asset), versions(after, asset));
        let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let kind = asset.kind();
            match (old.get(name), new.get(name)) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => out.push_str(&format!("{kind} {name} {a} → {b}\n")),
                (None, Some(b)) => out.push_str(&format!("{kind} {name} {b} (new)\n")),
                (Some(a), None) => out.push_str(&format!("{kind} {name} {a} (gone)\n")),
                (None, None) => {}
            }
        }
    }
    out
}
