//! `firegopher logs`: what a workload wrote, or its VM's serial console.

use super::{down, print, target};
use crate::error::{Context, Result};
use crate::home::Home;
use crate::name::Name;
use crate::supervise::logs::{CONSOLE_LOG, LogReader, WORKLOAD_LOG, escaped, rotated};
use crate::supervise::{self, Observed};
use fs_err as fs;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Following polls the log this often; a line a human reads need not be faster.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these VMs.
    vms: Vec<String>,
    /// Go on as more is written, until the VMs end.
    #[arg(short, long)]
    follow: bool,
    /// The serial console instead of the workload's output.
    #[arg(long, conflicts_with = "follow")]
    console: bool,
    /// Put the time before each line.
    #[arg(short, long, conflicts_with = "console")]
    timestamps: bool,
}

struct Source {
    name: Name,
    reader: LogReader,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<ExitCode> {
    let home = Home::from_env()?;
    let project = down::project_of(dir, &home)?;
    let known = names_with_logs(&home, &project);
    for wanted in &args.vms {
        if !known.iter().any(|name| name.as_str() == wanted) {
            return Err(target::unknown_vm(wanted, known.iter().map(Name::as_str)));
        }
    }
    let chosen: Vec<Name> = known
        .into_iter()
        .filter(|n| args.vms.is_empty() || args.vms.iter().any(|w| w == n.as_str()))
        .collect();
    if args.console {
        for name in &chosen {
            console(&home.vm(&project, name))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let width = if chosen.len() > 1 { chosen.iter().map(|n| n.as_str().len()).max().unwrap_or(0) } else { 0 };
    let mut sources = Vec::new();
    for name in chosen {
        let path = home.vm(&project, &name).join(WORKLOAD_LOG);
        let reader = LogReader::from_start(&path)
            .or_failed("logs.read", || format!("cannot read the log of {name}"))?;
        sources.push(Source { name, reader });
    }
    loop {
        let running = args.follow && any_alive(&supervise::observe(&home, &project)?, &sources);
        let mut wrote = false;
        for source in &mut sources {
            wrote |= drain(source, width, args.timestamps)?;
        }
        if !args.follow || (!running && !wrote) {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(POLL);
    }
}

fn any_alive(observed: &[Observed], sources: &[Source]) -> bool {
    observed.iter().any(|o| o.alive && sources.iter().any(|s| s.name == o.state.vm))
}

/// VMs that have a log, running or not.
fn names_with_logs(home: &Home, project: &Name) -> Vec<Name> {
    let Ok(entries) = fs::read_dir(home.project(project)) else { return Vec::new() };
    let mut names: Vec<Name> = entries
        .flatten()
        .filter(|entry| entry.path().join(WORKLOAD_LOG).exists() || entry.path().join(CONSOLE_LOG).exists())
        .filter_map(|entry| Name::new(entry.file_name().to_string_lossy().into_owned()).ok())
        .collect();
    names.sort();
    names
}

fn drain(source: &mut Source, width: usize, timestamps: bool) -> Result<bool> {
    let mut wrote = false;
    let terminal = std::io::stdout().is_terminal();
    while let Some(record) = source.reader.next_record().or_failed("logs.read", || "cannot read the log")? {
        let time = if timestamps { format!("{} ", record.time) } else { String::new() };
        let prefix = if width > 0 { format!("{:<width$} | ", source.name) } else { String::new() };
        let partial = record.partial;
        let bytes = record.into_output();
        let text = String::from_utf8_lossy(&bytes);
        let shown = if terminal || width > 0 { escaped(&bytes) } else { text.into_owned() };
        print(&format!("{prefix}{time}{shown}"))?;
        if partial && width > 0 {
            print("\n")?;
        }
        wrote = true;
    }
    Ok(wrote)
}

fn console(dir: &Path) -> Result<()> {
    let path = dir.join(CONSOLE_LOG);
    let mut bytes = fs::read(rotated(&path)).unwrap_or_default();
    bytes.extend(fs::read(&path).or_failed("logs.read", || "cannot read the console log")?);
    print(&escaped(&bytes))
}
