//! `firegopher update`: moves pins to what the host's package sources serve now, and shows the difference.

use super::{print, signals};
use crate::error::{Error, Result};
use crate::lock::{AssetId, Lock, Pinned};
use crate::plan::{Graph, Need};
use crate::project::{LOCK_FILE, Project, needs_of};
use crate::ui::Ui;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these: kernel, vmm, image, workload, or a package, url or reference one of them is named by.
    assets: Vec<String>,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open(dir)?;
    let signals = signals::Signals::block(&project.store);
    let guard = project.guard(&ui)?;
    let graph = Graph::of(&project.manifest);
    let all = needs_of(&graph);
    for wanted in &args.assets {
        if !all.iter().any(|need| is_meant(&need.id, wanted)) {
            let known: Vec<String> = all.iter().map(|need| need.id.to_string()).collect();
            return Err(Error::usage("update.unknown", format!("the manifest needs no asset {wanted:?}"))
                .help(format!("It needs: {}.", known.join("; "))));
        }
    }
    let chosen: Vec<Need<'_>> = all
        .iter()
        .filter(|need| args.assets.is_empty() || args.assets.iter().any(|wanted| is_meant(&need.id, wanted)))
        .cloned()
        .collect();
    let before = project.lock.clone();
    // What no VM needs any more goes.
    project.lock.retain(|asset| all.iter().any(|need| need.id == *asset));
    project.pin(&chosen, &ui)?;
    drop(guard);
    ui.clear();
    drop(signals);
    let changes = changes(&before, &project.lock);
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

/// One line a package or file that came, went or moved.
fn changes(before: &Lock, after: &Lock) -> String {
    let mut assets: Vec<&AssetId> = before.iter().chain(after.iter()).map(|(id, _)| id).collect();
    assets.sort();
    assets.dedup();
    let mut out = String::new();
    for asset in assets {
        if after.pinned(asset).is_none() {
            out.push_str(&format!("{asset} (no longer needed)\n"));
            continue;
        }
        let (old, new) = (versions(before.pinned(asset)), versions(after.pinned(asset)));
        let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            // A package has a name of its own; of everything else the asset's says enough.
            let what = match name.as_str() {
                "" => asset.to_string(),
                name => format!("{} {name}", asset.kind()),
            };
            match (old.get(name), new.get(name)) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => out.push_str(&format!("{what} {a} → {b}\n")),
                (None, Some(b)) => out.push_str(&format!("{what} {b} (new)\n")),
                (Some(a), None) => out.push_str(&format!("{what} {a} (gone)\n")),
                (None, None) => {}
            }
        }
    }
    out
}

/// What an asset is pinned to, in short: by package, or under an empty name.
fn versions(pinned: Option<&Pinned>) -> BTreeMap<String, String> {
    let digest = |hex: &str| format!("sha256:{}", hex.get(..12).unwrap_or(hex));
    match pinned {
        None => BTreeMap::new(),
        Some(Pinned::Packages(pins)) => {
            pins.packages.iter().map(|pin| (pin.package.clone(), pin.version.clone())).collect()
        }
        Some(Pinned::File(pin)) => BTreeMap::from([(String::new(), digest(&pin.sha256))]),
        Some(Pinned::Oci(pin)) => {
            let hex = pin.manifest.strip_prefix("sha256:").unwrap_or(&pin.manifest);
            BTreeMap::from([(String::new(), digest(hex))])
        }
    }
}
