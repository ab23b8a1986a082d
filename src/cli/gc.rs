//! `firegopher gc`: removes what nobody needs and was not used for long, and what crashes left.

use super::caps::CapArgs;
use super::{print, print_json};
use crate::error::Result;
use crate::home::Home;
use crate::project;
use crate::store::gc::{Caps, Needed, Victim, Why, choose};
use crate::store::{Inventory, Store};
use crate::ui::{Ui, human};
use crate::upkeep::{self, Lost};
use crate::vmm::trial;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    caps: CapArgs,
    /// Only say what would go, and why.
    #[arg(long)]
    dry_run: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    format_version: u32,
    dry_run: bool,
    max_size: u64,
    max_age_s: u64,
    store_bytes: u64,
    needed_bytes: u64,
    freed_bytes: u64,
    removed: Vec<Row<'a>>,
    lost_vms: &'a [Lost],
}

#[derive(Serialize)]
struct Row<'a> {
    kind: &'a str,
    subject: &'a str,
    object: Option<crate::digest::ObjectDigest>,
    path: &'a PathBuf,
    bytes: u64,
    used_ms: u64,
    why: Why,
    detail: String,
}

/// What was found, and what is to go.
struct Findings {
    inventory: Inventory,
    needed: Needed,
    victims: Vec<Victim>,
    now: SystemTime,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let home = Home::from_env()?;
    let caps = args.caps.caps();
    let mut store = project::open_store(&home)?;
    let (findings, freed, lost) = if args.dry_run {
        let findings = find(&home, &store, caps)?;
        let freed = findings.victims.iter().map(|v| v.bytes).sum();
        (findings, freed, upkeep::lost(&home)?)
    } else {
        // First, by everybody's order of locks: store, then project.
        let lost = upkeep::reclaim(&home, &ui)?;
        match trial::sweep(&home)? {
            0 => {}
            n => ui.note(&format!("Removed what {n} killed trials of VMMs had left.")),
        }
        let waiting = |who: &str| ui.note(&format!("waiting for {who}: nobody may use the store meanwhile"));
        let exclusive = store.lock_exclusive(&waiting)?;
        let findings = find(&home, &exclusive, caps)?;
        let freed = exclusive.remove(&findings.victims)?;
        (findings, freed, lost)
    };
    let needed_bytes = findings.needed_bytes();
    if args.json {
        print_json(&Document {
            format_version: 1,
            dry_run: args.dry_run,
            max_size: caps.size,
            max_age_s: caps.age.as_secs(),
            store_bytes: findings.inventory.bytes(),
            needed_bytes,
            freed_bytes: freed,
            removed: findings.victims.iter().map(|v| row(v, caps)).collect(),
            lost_vms: &lost,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&table(&findings, &lost, caps))?;
    let verb = if args.dry_run { "Would free" } else { "Freed" };
    ui.note(&format!(
        "{verb} {} of {}; running VMs and known projects need {}.",
        human::bytes(freed),
        human::bytes(findings.inventory.bytes()),
        human::bytes(needed_bytes)
    ));
    if needed_bytes > caps.size && args.caps.max_size.is_none_or(|size| size > 0) {
        ui.note(&format!("What is needed is more than {}, and stays.", human::bytes(caps.size)));
    }
    Ok(ExitCode::SUCCESS)
}

fn find(home: &Home, store: &Store, caps: Caps) -> Result<Findings> {
    let mut needed = upkeep::roots(home, store)?;
    let inventory = store.inventory()?;
    needed.close(&inventory);
    let now = SystemTime::now();
    let victims = choose(&inventory, &|object| store.object_path(object), &needed, caps, now);
    Ok(Findings { inventory, needed, victims, now })
}

impl Findings {
    fn needed_bytes(&self) -> u64 {
        let there = self.needed.objects.keys().filter_map(|digest| self.inventory.objects.get(digest));
        there.map(|object| object.bytes).sum()
    }
}

fn row(victim: &Victim, caps: Caps) -> Row<'_> {
    Row {
        kind: &victim.kind,
        subject: &victim.subject,
        object: victim.object,
        path: &victim.path,
        bytes: victim.bytes,
        used_ms: victim.used.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64),
        why: victim.why,
        detail: detail(victim, caps),
    }
}

/// The cap that it exceeds, or what is wrong with it.
fn detail(victim: &Victim, caps: Caps) -> String {
    match victim.why {
        _ if !victim.because.is_empty() => victim.because.to_owned(),
        Why::Size => format!("the store exceeds {}", human::bytes(caps.size)),
        Why::Age => format!("not used for more than {}", human::duration(caps.age)),
        Why::Useless => "nobody needs it".to_owned(),
    }
}

fn table(findings: &Findings, lost: &[Lost], caps: Caps) -> String {
    let mut rows: Vec<Vec<String>> = lost
        .iter()
        .map(|Lost { project, vm }| {
            let subject = format!("{vm} of project {project}");
            ["lost VM", &subject, "", "", "", "its supervisor died"].map(str::to_owned).to_vec()
        })
        .collect();
    for victim in &findings.victims {
        let age = findings.now.duration_since(victim.used).unwrap_or_default();
        rows.push(vec![
            victim.kind.clone(),
            crate::plan::render::escape(&victim.subject),
            victim.object.map(|object| object.short()).unwrap_or_default(),
            human::bytes(victim.bytes),
            format!("{} ago", human::duration(age)),
            detail(victim, caps),
        ]);
    }
    if !rows.is_empty() {
        rows.insert(0, ["KIND", "SUBJECT", "OBJECT", "SIZE", "LAST USE", "WHY"].map(str::to_owned).to_vec());
    }
    human::table(&rows, &[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ObjectDigest;
    use crate::name::Name;
    use std::time::Duration;

    fn victim(kind: &str, subject: &str, days: u64, why: Why, because: &'static str) -> Victim {
        let object = kind != "record" && kind != "quarantine";
        Victim {
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            object: object.then(|| ObjectDigest::from(blake3::hash(subject.as_bytes()))),
            path: PathBuf::from("/nowhere"),
            records: vec![],
            bytes: 1_234_567 * days,
            used: UNIX_EPOCH + Duration::from_secs(86_400 * (1000 - days)),
            why,
            because,
        }
    }

    #[test]
    fn every_victim_is_listed_with_its_reason() {
        let findings = Findings {
            inventory: Inventory::default(),
            needed: Needed::default(),
            victims: vec![
                victim("record", "image python3", 2, Why::Useless, "its output is gone"),
                victim("image", "python3", 41, Why::Age, ""),
                victim("quarantine", "", 33, Why::Age, ""),
                victim("unpack", "./a\u{1b}[31m", 0, Why::Size, ""),
                victim("deb", "dash 0.5.12-2 amd64", 12, Why::Size, ""),
            ],
            now: UNIX_EPOCH + Duration::from_secs(86_400 * 1000),
        };
        let name = |text: &str| Name::new(text).unwrap();
        let lost = [Lost { project: name("shop"), vm: name("web") }];
        insta::assert_snapshot!(table(&findings, &lost, Caps::default()));
        let none = Findings { victims: vec![], ..findings };
        assert_eq!(table(&none, &[], Caps::default()), "");
    }
}
