//! `firegopher ps`: this project's VMs, as they are.

use super::place::{Place, Wanted};
use super::{print, print_json};
use crate::error::Result;
use crate::home::Home;
use crate::manifest::model::Port;
use crate::name::Name;
use crate::supervise::{self, Observed, Status};
use crate::{project, upkeep};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    project: Wanted,
    /// Every project of this home, with its directory, also if that is gone.
    #[arg(short, long, conflicts_with = "project")]
    all: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    format_version: u32,
    project: Name,
    vms: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: Name,
    id: String,
    status: String,
    detail: String,
    ports: Vec<Port>,
    restarts: u32,
    supervisor_pid: i32,
    vmm_pid: Option<i32>,
    started_ms: u64,
    ended_ms: Option<u64>,
    ephemeral: bool,
}

/// What `--all` prints.
#[derive(Serialize)]
struct All {
    format_version: u32,
    projects: Vec<ProjectRow>,
}

#[derive(Serialize)]
struct ProjectRow {
    project: Name,
    /// Unknown if nothing says whose the state is.
    directory: Option<PathBuf>,
    /// Whether a manifest is still there.
    directory_exists: bool,
    volumes: usize,
    vms: Vec<Row>,
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let home = Home::from_env()?;
    if args.all {
        let projects = projects(&home)?;
        match args.json {
            true => print_json(&All { format_version: 1, projects })?,
            false => print(&table_of_all(&projects))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let found = place.project(&home, &args.project)?;
    let rows: Vec<Row> = supervise::observe(&home, &found.key)?.iter().map(row).collect();
    if args.json {
        print_json(&Document { format_version: 1, project: found.label, vms: rows })?;
    } else {
        print(&table(&rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All that have state or volumes.
fn projects(home: &Home) -> Result<Vec<ProjectRow>> {
    let mut keys = upkeep::projects(home)?;
    keys.extend(upkeep::with_volumes(home)?);
    keys.sort();
    keys.dedup();
    let project = |key: Name| {
        let claim = project::Claim::load(&home.project(&key));
        let entries = std::fs::read_dir(home.volumes(&key));
        let volumes = entries.map_or(0, |entries| {
            entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "ext4")).count()
        });
        Ok(ProjectRow {
            directory_exists: claim.as_ref().is_some_and(|claim| claim.location().path().exists()),
            vms: supervise::observe(home, &key)?.iter().map(row).collect(),
            project: claim.as_ref().and_then(|claim| claim.name.clone()).unwrap_or(key),
            directory: claim.map(|claim| claim.directory),
            volumes,
        })
    };
    keys.into_iter().map(project).collect()
}

fn table_of_all(projects: &[ProjectRow]) -> String {
    let mut rows =
        vec![["PROJECT", "VM", "STATUS", "PORTS", "VOLUMES", "DIRECTORY"].map(str::to_owned).to_vec()];
    for project in projects {
        let directory = match &project.directory {
            Some(dir) if project.directory_exists => dir.display().to_string(),
            Some(dir) => format!("{} (gone)", dir.display()),
            None => "unknown".to_owned(),
        };
        let directory = crate::plan::render::escape(&directory);
        let volumes = project.volumes.to_string();
        let line = |vm: &str, status: &str, ports: String| {
            vec![
                project.project.to_string(),
                vm.into(),
                status.into(),
                ports,
                volumes.clone(),
                directory.clone(),
            ]
        };
        match project.vms.as_slice() {
            [] => rows.push(line("-", "no VMs", String::new())),
            vms => rows.extend(vms.iter().map(|vm| line(vm.name.as_str(), &vm.status, ports(vm)))),
        }
    }
    crate::ui::human::table(&rows, &[4])
}

fn ports(row: &Row) -> String {
    let shown = |p: &Port| format!("{}->{}", std::net::SocketAddr::new(p.address, p.host), p.guest);
    row.ports.iter().map(shown).collect::<Vec<_>>().join(",")
}

fn row(observed: &Observed) -> Row {
    let state = &observed.state;
    let ended = || match state.outcome() {
        // The console's end is in `logs --console`.
        Some(outcome) => match outcome.failure() {
            Some(failure) => failure.lines().next().unwrap_or_default().to_owned(),
            None => outcome.describe(),
        },
        None => String::new(),
    };
    let (status, detail) = match (observed.alive, state.status) {
        (true, Status::Starting | Status::Running | Status::Stopping) if state.paused.is_some() => {
            ("paused", state.paused.clone().unwrap_or_default())
        }
        (true, Status::Stopping) => ("stopping", String::new()),
        (true, Status::Running) => ("running", String::new()),
        (true, Status::Starting) => ("starting", String::new()),
        (true, Status::Restarting) => ("restarting", String::new()),
        (_, Status::Exited) => ("exited", ended()),
        (_, Status::Failed) => ("failed", ended()),
        (_, Status::Unknown) => ("unknown", "its state was written by a newer firegopher".to_owned()),
        (false, _) => ("lost", "its supervisor is gone; `firegopher up` or `down` cleans up".to_owned()),
    };
    Row {
        name: state.vm.clone(),
        id: state.id.to_string(),
        status: status.to_owned(),
        detail,
        ports: state.ports.clone(),
        restarts: state.restarts,
        supervisor_pid: state.supervisor.pid,
        vmm_pid: state.vmm.as_ref().map(|p| p.pid),
        started_ms: state.started_ms,
        ended_ms: state.ended_ms,
        ephemeral: state.ephemeral,
    }
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![["NAME".to_owned(), "STATUS".to_owned(), "PORTS".to_owned(), "DETAIL".to_owned()]];
    for row in rows {
        let detail = crate::plan::render::escape(&row.detail);
        lines.push([row.name.to_string(), row.status.clone(), ports(row), detail]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    lines
        .iter()
        .map(|[name, status, ports, detail]| {
            let line =
                format!("{name:<0$}  {status:<1$}  {ports:<2$}  {detail}", widths[0], widths[1], widths[2]);
            line.trim_end().to_owned() + "\n"
        })
        .collect()
}
