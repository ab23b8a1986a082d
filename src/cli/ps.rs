//! `firegopher ps`: this project's VMs, as they are.

use super::{down, print, print_json};
use crate::error::Result;
use crate::home::Home;
use crate::manifest::model::Port;
use crate::name::Name;
use crate::supervise::{self, Observed, Status};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
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

pub(super) fn run(dir: &Path, args: &Args) -> Result<ExitCode> {
    let home = Home::from_env()?;
    let project = down::project_of(dir, &home)?;
    let rows: Vec<Row> = supervise::observe(&home, &project)?.iter().map(row).collect();
    if args.json {
        print_json(&Document { format_version: 1, project, vms: rows })?;
    } else {
        print(&table(&rows))?;
    }
    Ok(ExitCode::SUCCESS)
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
        let ports: Vec<String> = row
            .ports
            .iter()
            .map(|p| format!("{}->{}", std::net::SocketAddr::new(p.address, p.host), p.guest))
            .collect();
        let detail = crate::plan::render::escape(&row.detail);
        lines.push([row.name.to_string(), row.status.clone(), ports.join(","), detail]);
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
