//! `firegopher update`: moves pins to what is served now, and shows the difference.

use super::place::Place;
use super::{print, print_json, signals};
use crate::asset::oci;
use crate::error::{Error, Result};
use crate::lock::{AssetId, Lock, Pin, Pinned};
use crate::plan::Need;
use crate::project::{Project, graph_of_any_host, needs_of};
use crate::ui::Ui;
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these: kernel, vmm, image, workload, tool, or a package, url or reference one of them is named by.
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completions::assets))]
    assets: Vec<String>,
    /// Print what moved as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open(&place.manifest()?)?;
    let signals = signals::Signals::block(&project.store);
    let guard = project.guard(&ui)?;
    let lock_file = project.lock_name();
    let graph = graph_of_any_host(&project.manifest);
    let all = needs_of(&graph);
    for wanted in &args.assets {
        if !all.iter().any(|need| is_meant(need, wanted)) {
            let known: Vec<String> = all.iter().map(|need| need.id.to_string()).collect();
            return Err(Error::usage("update.unknown", format!("the manifest needs no asset {wanted:?}"))
                .help(format!("It needs: {}.", known.join("; "))));
        }
    }
    let before = project.lock.clone();
    let is_chosen = |need: &&Need<'_>| {
        args.assets.is_empty()
            || args.assets.iter().any(|wanted| is_meant(need, wanted))
            // What pins nothing is not written again.
            || before.is_outdated(&need.id)
    };
    let chosen: Vec<Need<'_>> = all.iter().filter(is_chosen).cloned().collect();
    if let Some(need) = chosen.iter().find(|need| need.is_blind() && before.pinned(&need.id).is_none()) {
        return Err(Error::usage(
            "lock.no-digest",
            format!("{} has no `sha256` in the manifest and no pin in {lock_file} to be moved", need.id),
        )
        .help(
            "Run `firegopher lock`, which downloads it once and pins what comes, or write sha256=\"…\" as its \
             publisher names it behind the url.",
        ));
    }
    // What no VM needs any more goes.
    project.lock.retain(|asset| all.iter().any(|need| need.id == *asset));
    let pinned = project.pin(&chosen, &ui);
    drop(guard);
    ui.clear();
    drop(signals);
    // Where something failed, the file has what did not.
    let after = match &pinned {
        Ok(()) => project.lock.clone(),
        Err(_) => Lock::load(&project.manifest.location().lock_path())?,
    };
    let changes = changes(&before, &after);
    let shown = match args.json {
        true => print_json(&Document { format_version: 1, changes: &changes }),
        false => print(&changes.iter().map(Change::line).collect::<String>()),
    };
    // What failed is told even if nobody reads what did not.
    pinned?;
    if !changes.is_empty() {
        project.tell_undone(&ui)?;
    }
    shown?;
    ui.note(&match changes.is_empty() {
        true => format!("{lock_file} has the newest pins already."),
        false => format!("Wrote {lock_file}; check it in."),
    });
    Ok(ExitCode::SUCCESS)
}

/// Whether somebody who writes `wanted` means this asset.
fn is_meant(need: &Need<'_>, wanted: &str) -> bool {
    let Need { id, source } = need;
    let shown = id.to_string();
    if wanted == id.kind() || wanted == shown || id.names().contains(&wanted) {
        return true;
    }
    // "vmm qemu" and "URL (MEMBER)" without the kind.
    if shown.strip_prefix(id.kind()).is_some_and(|name| name.trim_start() == wanted) {
        return true;
    }
    if let AssetId::Oci(reference) = id {
        let full = |text: &str| oci::full_reference(text).ok();
        return full(reference).is_some_and(|full_one| full(wanted) == Some(full_one));
    }
    // As the manifest spells it, or a mirror.
    let url = reqwest::Url::parse(wanted).map(String::from);
    url.is_ok_and(|url| source.is_some_and(|source| source.urls.contains(&url)))
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    format_version: u32,
    changes: &'a [Change],
}

/// One package or file that came, went or moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Change {
    asset: String,
    kind: &'static str,
    package: Option<String>,
    old: Option<String>,
    new: Option<String>,
    needed: bool,
}

impl Change {
    fn line(&self) -> String {
        // A package has a name of its own; of everything else the asset's says enough.
        let what = match &self.package {
            Some(package) => format!("{} {package}", self.kind),
            None => self.asset.clone(),
        };
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => format!("{what} {} → {}\n", short(old), short(new)),
            (None, Some(new)) => format!("{what} {} (new)\n", short(new)),
            (Some(old), None) => format!("{what} {} (gone)\n", short(old)),
            (None, None) => format!("{what} (no longer needed)\n"),
        }
    }
}

/// Digests by their first digits; versions are whole.
fn short(pinned: &str) -> &str {
    match pinned.starts_with("sha256:") || pinned.starts_with("sha512:") {
        true => pinned.get(..19).unwrap_or(pinned),
        false => pinned,
    }
}

fn changes(before: &Lock, after: &Lock) -> Vec<Change> {
    let mut assets: Vec<&AssetId> = before.iter().chain(after.iter()).map(|(id, _)| id).collect();
    assets.sort();
    assets.dedup();
    let mut all = Vec::new();
    for asset in assets {
        let change = |package: Option<String>, old: Option<String>, new: Option<String>| Change {
            asset: asset.to_string(),
            kind: asset.kind(),
            package,
            old,
            new,
            needed: after.pinned(asset).is_some(),
        };
        if after.pinned(asset).is_none() {
            all.push(change(None, None, None));
            continue;
        }
        let (old, new) = (versions(before.pinned(asset)), versions(after.pinned(asset)));
        let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let (old, new) = (old.get(name), new.get(name));
            if old == new {
                continue;
            }
            let (mut old, mut new) = (old.cloned(), new.cloned());
            if let (Some(old), Some(new)) = (&mut old, &mut new)
                && old.0 == new.0
            {
                // The same version of other bytes: an archive was rebuilt.
                (old.0, new.0) = (old.1.clone(), new.1.clone());
            }
            let (old, new) = (old.map(|pin| pin.0), new.map(|pin| pin.0));
            all.push(change(Some(name.clone()).filter(|name| !name.is_empty()), old, new));
        }
    }
    all
}

/// What an asset is pinned to, by package, or under an empty name: as it is shown, and its digest.
fn versions(pinned: Option<&Pinned>) -> BTreeMap<String, (String, String)> {
    let digest = |text: String| BTreeMap::from([(String::new(), (text.clone(), text))]);
    match pinned {
        None => BTreeMap::new(),
        Some(Pinned::Packages(pins)) => {
            let pinned = |pin: &Pin| (pin.version.clone(), format!("sha256:{}", pin.sha256));
            pins.packages.iter().map(|pin| (pin.package.clone(), pinned(pin))).collect()
        }
        Some(Pinned::File(pin)) => digest(format!("sha256:{}", pin.sha256)),
        Some(Pinned::Oci(pin)) => digest(pin.manifest.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::FileRole;
    use crate::manifest::model::UrlSource;

    fn means(id: AssetId, source: Option<&UrlSource>, words: &[&str]) {
        for word in words {
            assert!(is_meant(&Need { id: id.clone(), source }, word), "{id} by {word:?}");
        }
        for word in ["", " ", "other", "(", "k", "https://example.org/other"] {
            assert!(!is_meant(&Need { id: id.clone(), source }, word), "{id} by {word:?}");
        }
    }

    #[test]
    fn an_asset_is_meant_by_its_kind_its_names_and_what_is_shown_of_it() {
        let url = "https://example.org/a.tar";
        let source = UrlSource {
            urls: vec![url.to_owned(), "https://mirror.example.org/a.tar".to_owned()],
            sha256: None,
            member: Some("x/y".to_owned()),
            max: None,
        };
        let id = AssetId::File { role: FileRole::Kernel, url: url.to_owned(), member: source.member.clone() };
        means(
            id,
            Some(&source),
            &[
                "kernel",
                url,
                "https://EXAMPLE.org:443/a.tar",
                "https://mirror.example.org/a.tar",
                "https://example.org/a.tar (x/y)",
                "kernel https://example.org/a.tar (x/y)",
            ],
        );
        let oci = AssetId::Oci("python:3".to_owned());
        means(oci, None, &["image", "python:3", "docker.io/library/python:3", "image python:3"]);
        means(AssetId::Vmm, None, &["vmm", "qemu", "vmm qemu"]);
        means(AssetId::image(["curl", "bash"]), None, &["image", "curl", "bash", "bash curl"]);
    }
}
