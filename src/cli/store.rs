//! `firegopher store`: what the store holds, what could go, and what volumes and projects take beside it.

use super::{print, print_json};
use crate::error::Result;
use crate::home::Home;
use crate::name::Name;
use crate::project;
use crate::store::gc::{Caps, choose};
use crate::store::{Area, Inventory, Store, allocated};
use crate::ui::human;
use crate::upkeep;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// All sizes are allocated bytes.
#[derive(Serialize)]
struct Document {
    format_version: u32,
    store: PathBuf,
    objects: Vec<Row>,
    caches: Vec<Row>,
    total_bytes: u64,
    /// What running VMs and known projects need.
    needed_bytes: u64,
    /// What `gc` would free now, with its own caps.
    gc_bytes: u64,
    /// What `gc --max-size 0` would free.
    most_bytes: u64,
    projects: Vec<ProjectRow>,
}

#[derive(Serialize)]
struct Row {
    kind: String,
    count: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct ProjectRow {
    project: Name,
    /// Unknown if the claim on the name is gone.
    directory: Option<PathBuf>,
    volumes: u64,
    volume_bytes: u64,
    /// State and logs of its VMs.
    state_bytes: u64,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let home = Home::from_env()?;
    let store = project::open_store(&home)?;
    let document = document(&home, &store)?;
    if args.json {
        print_json(&document)?;
    } else {
        print(&table(&document))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn document(home: &Home, store: &Store) -> Result<Document> {
    let inventory = store.inventory()?;
    let mut needed = upkeep::roots(home, store)?;
    needed.close(&inventory);
    let freed = |caps| -> u64 {
        let path = |object: &_| store.object_path(object);
        choose(&inventory, &path, &needed, caps, SystemTime::now()).iter().map(|v| v.bytes).sum()
    };
    let unfinished = allocated(&home.store().join("tmp"))?;
    let mut caches = caches(&inventory);
    let doing = std::fs::read_dir(home.store().join("tmp")).map_or(0, |entries| entries.count() as u64);
    caches.push(Row {
        kind: "unfinished work".to_owned(),
        count: doing,
        bytes: if doing == 0 { 0 } else { unfinished },
    });
    let needed_objects = needed.objects.keys().filter_map(|d| inventory.objects.get(d));
    Ok(Document {
        format_version: 1,
        store: home.store(),
        objects: objects(&inventory),
        total_bytes: inventory.bytes() + caches.last().map_or(0, |row| row.bytes),
        needed_bytes: needed_objects.map(|o| o.bytes).sum(),
        gc_bytes: freed(Caps::default()),
        most_bytes: freed(Caps { size: 0, ..Caps::default() }),
        caches,
        projects: projects(home)?,
    })
}

fn objects(inventory: &Inventory) -> Vec<Row> {
    let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for object in inventory.objects.values() {
        let row = kinds.entry(&object.kind).or_default();
        *row = (row.0 + 1, row.1 + object.bytes);
    }
    kinds.into_iter().map(|(kind, (count, bytes))| Row { kind: kind.to_owned(), count, bytes }).collect()
}

/// One row each, present or not.
fn caches(inventory: &Inventory) -> Vec<Row> {
    let records = Row {
        kind: "record".to_owned(),
        count: inventory.records.len() as u64,
        bytes: inventory.records.iter().map(|r| r.bytes).sum(),
    };
    let areas = [Area::StatCache, Area::AptLists, Area::Partial, Area::Quarantine];
    let areas = areas.map(|area| {
        let found = inventory.others.iter().filter(|other| other.area == area);
        Row {
            kind: area.label().to_owned(),
            count: found.clone().count() as u64,
            bytes: found.map(|other| other.bytes).sum(),
        }
    });
    std::iter::once(records).chain(areas).collect()
}

fn projects(home: &Home) -> Result<Vec<ProjectRow>> {
    let mut names = upkeep::projects(home)?;
    names.extend(upkeep::with_volumes(home)?);
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|project| {
            let volumes = home.volumes(&project);
            let count = std::fs::read_dir(&volumes).map_or(0, |entries| {
                entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "ext4")).count()
            });
            Ok(ProjectRow {
                directory: project::claimed_by(&home.project(&project)),
                volumes: count as u64,
                volume_bytes: present(&volumes)?,
                state_bytes: present(&home.project(&project))?,
                project: project::label(home, &project),
            })
        })
        .collect()
}

fn present(dir: &Path) -> Result<u64> {
    if dir.exists() { allocated(dir) } else { Ok(0) }
}

fn table(document: &Document) -> String {
    let cells = |row: &Row| vec![row.kind.clone(), row.count.to_string(), human::bytes(row.bytes)];
    let mut rows = vec![["OBJECTS", "COUNT", "SIZE"].map(str::to_owned).to_vec()];
    rows.extend(document.objects.iter().map(cells));
    rows.push(vec![String::new()]);
    rows.push(["BESIDE THEM", "COUNT", "SIZE"].map(str::to_owned).to_vec());
    rows.extend(document.caches.iter().map(cells));
    rows.push(vec![String::new()]);
    let line = |what: &str, bytes| vec![what.to_owned(), String::new(), human::bytes(bytes)];
    rows.push(line("the whole store", document.total_bytes));
    rows.push(line("needed by VMs and projects", document.needed_bytes));
    rows.push(line("`firegopher gc` would free", document.gc_bytes));
    rows.push(line("`gc --max-size 0` would free", document.most_bytes));
    let mut out = human::table(&rows, &[1, 2]);
    if !document.projects.is_empty() {
        let mut rows = vec![["PROJECT", "VOLUMES", "SIZE", "STATE", "DIRECTORY"].map(str::to_owned).to_vec()];
        for row in &document.projects {
            let directory = row.directory.as_ref().map(|dir| dir.display().to_string());
            rows.push(vec![
                row.project.to_string(),
                row.volumes.to_string(),
                human::bytes(row.volume_bytes),
                human::bytes(row.state_bytes),
                crate::plan::render::escape(&directory.unwrap_or_default()),
            ]);
        }
        out.push('\n');
        out.push_str(&human::table(&rows, &[1, 2, 3]));
    }
    out
}
