//! `firegopher verify`: rehashes objects; what is broken goes to quarantine and is made anew by the next run.

use super::{print, print_json};
use crate::asset::Progress;
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::project;
use crate::store::Inventory;
use crate::store::gc::{Needed, User};
use crate::store::verify::{TakenOut, check};
use crate::ui::{Ui, human};
use crate::upkeep;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these: digests or their beginnings, as `plan` prints them.
    #[arg(value_name = "OBJECT", conflicts_with = "all")]
    objects: Vec<String>,
    /// Every object of the store, also those that no VM and no known project needs.
    #[arg(long)]
    all: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    format_version: u32,
    checked: usize,
    checked_bytes: u64,
    broken: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    object: ObjectDigest,
    kind: String,
    quarantine: PathBuf,
    error: Option<String>,
    /// What runs again.
    steps: Vec<Step>,
    /// VMs and lock files that need it.
    users: Vec<User>,
}

#[derive(Serialize)]
struct Step {
    kind: String,
    subject: String,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let home = Home::from_env()?;
    let mut store = project::open_store(&home)?;
    let inventory = store.inventory()?;
    let mut needed = upkeep::roots(&home, &store)?;
    needed.close(&inventory);
    let chosen = choose(args, &inventory, &needed)?;
    let bytes: u64 = chosen.iter().map(|(_, bytes)| bytes).sum();
    Progress::start(
        &ui,
        &format!("verifying {}", human::count_of(chosen.len() as u64, "object")),
        Some(bytes),
    );
    let broken = check(&store, &chosen, &mut |bytes| ui.advance(bytes));
    ui.clear();
    let taken = match broken.as_slice() {
        [] => Vec::new(),
        _ => {
            let waiting = |who: &str| ui.note(&format!("waiting for {who}, to take broken objects out"));
            store.lock_exclusive(&waiting)?.take_out(&broken, &inventory)?
        }
    };
    let rows: Vec<Row> = taken
        .into_iter()
        .map(|taken| {
            let error = broken.iter().find(|b| b.object == taken.object).and_then(|b| b.error.as_ref());
            row(taken, error, &inventory, &needed)
        })
        .collect();
    let code = if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let summary = match rows.len() {
        0 => {
            format!("{}, {}: all sound.", human::count_of(chosen.len() as u64, "object"), human::bytes(bytes))
        }
        n => format!(
            "{} of {} broken and taken out of the store.",
            n,
            human::count_of(chosen.len() as u64, "object")
        ),
    };
    if args.json {
        print_json(&Document {
            format_version: 1,
            checked: chosen.len(),
            checked_bytes: bytes,
            broken: rows,
        })?;
    } else {
        rows.iter().try_for_each(|row| print(&told(row)))?;
        ui.note(&summary);
    }
    Ok(code)
}

/// The objects to look at, with their sizes.
fn choose(args: &Args, inventory: &Inventory, needed: &Needed) -> Result<Vec<(ObjectDigest, u64)>> {
    if !args.objects.is_empty() {
        let found = args.objects.iter().map(|text| find(text, inventory)).collect::<Result<BTreeSet<_>>>()?;
        return Ok(found.into_iter().map(|d| (d, inventory.objects[&d].bytes)).collect());
    }
    let wanted = |digest: &ObjectDigest| args.all || needed.objects.contains_key(digest);
    Ok(inventory.objects.iter().filter(|(d, _)| wanted(d)).map(|(d, o)| (*d, o.bytes)).collect())
}

/// The object that a digest, its beginning or `b3:` and its beginning names.
fn find(text: &str, inventory: &Inventory) -> Result<ObjectDigest> {
    let prefix = text.strip_prefix("b3:").unwrap_or(text).to_lowercase();
    let mut matching = inventory.objects.keys().filter(|d| d.to_hex().starts_with(&prefix));
    let unknown = || {
        Error::usage("verify.unknown", format!("the store has no object {text:?}")).help(
            "`firegopher plan --json` and `build --json` show objects; `verify --all` checks every one.",
        )
    };
    match (matching.next(), matching.next()) {
        _ if prefix.len() < 4 => Err(unknown()),
        (Some(one), None) => Ok(*one),
        (Some(_), Some(_)) => {
            Err(Error::usage("verify.ambiguous", format!("several objects begin with {text:?}"))
                .help("Give more of its digits."))
        }
        (None, _) => Err(unknown()),
    }
}

fn row(taken: TakenOut, error: Option<&Error>, inventory: &Inventory, needed: &Needed) -> Row {
    let users = needed.objects.get(&taken.object).cloned().unwrap_or_default();
    Row {
        object: taken.object,
        kind: inventory.objects.get(&taken.object).map(|o| o.kind.clone()).unwrap_or_default(),
        quarantine: taken.quarantine,
        error: error.map(|e| match std::error::Error::source(e) {
            Some(cause) => format!("{e}: {cause}"),
            None => e.to_string(),
        }),
        steps: taken.steps.into_iter().map(|(kind, subject)| Step { kind, subject }).collect(),
        users: users.into_iter().collect(),
    }
}

fn told(row: &Row) -> String {
    let mut out =
        format!("{} ({}) is broken: it is now {}\n", row.object.short(), row.kind, row.quarantine.display());
    if let Some(error) = &row.error {
        out.push_str(&format!("  because: {error}\n"));
    }
    for Step { kind, subject } in &row.steps {
        let step = format!("{kind} {subject}");
        out.push_str(&format!("  the next run makes it anew: {}\n", step.trim_end()));
    }
    if row.steps.is_empty() && row.kind == "listing" {
        out.push_str("  it only says which files changed since: the next plan names fewer\n");
    }
    for user in &row.users {
        out.push_str(&match user {
            User::Running { project, vm } => {
                format!(
                    "  VM {vm} of project {project} runs on it: build, then `firegopher down` and `up` it\n"
                )
            }
            user => format!("  needed by {user}\n"),
        });
    }
    out.lines().map(|line| crate::plan::render::escape(line) + "\n").collect()
}
