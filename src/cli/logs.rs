//! `firegopher logs`: what a workload wrote, its VM's serial console, or what the VMM says of itself.

use super::{down, print, target};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::name::Name;
use crate::supervise::logs::{
    CONSOLE_LOG, LogReader, METRICS_LOG, VMM_LOG, WORKLOAD_LOG, escaped, last_metrics, rotated,
};
use crate::supervise::{self, Observed};
use crate::vmm::firecracker::Keyboard;
use fs_err as fs;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Following polls the log this often; a line a human reads need not be faster.
const POLL: Duration = Duration::from_millis(100);

/// A supervisor reads what its VMM writes at once.
const FLUSH: Duration = Duration::from_secs(2);

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
    /// What the VMM logged of itself.
    #[arg(long, conflicts_with_all = ["follow", "console"])]
    vmm: bool,
    /// Firecracker's metrics, as JSON: those of this moment if the VM runs, else the last ones.
    #[arg(long, conflicts_with_all = ["follow", "console", "vmm"])]
    metrics: bool,
    /// Put the time before each line.
    #[arg(short, long, conflicts_with_all = ["console", "vmm", "metrics"])]
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
            as_it_came(&home.vm(&project, name).join(CONSOLE_LOG))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.vmm {
        for name in &chosen {
            let path = home.vm(&project, name).join(VMM_LOG);
            if path.exists() {
                as_it_came(&path)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.metrics {
        return metrics(&home, &project, &chosen);
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

/// A log that is no list of records.
fn as_it_came(path: &Path) -> Result<()> {
    let mut bytes = fs::read(rotated(path)).unwrap_or_default();
    bytes.extend(fs::read(path).or_failed("logs.read", || format!("cannot read {}", path.display()))?);
    print(&escaped(&bytes))
}

/// Each VM's on a line; running ones are asked for them first.
fn metrics(home: &Home, project: &Name, chosen: &[Name]) -> Result<ExitCode> {
    let observed = supervise::observe(home, project)?;
    for name in chosen {
        let dir = home.vm(project, name);
        if observed.iter().any(|o| o.alive && o.state.vm == *name && o.state.vmm.is_some()) {
            flush(&dir)?;
        }
        let Some(last) = last_metrics(&dir).or_failed("logs.read", || "cannot read the VMM's metrics")?
        else {
            return Err(Error::failed("logs.no-metrics", format!("there are no metrics of VM {name}")).help(
                "only Firecracker writes them: each minute, when it is asked, and when its guest ends",
            ));
        };
        let prefix = if chosen.len() > 1 { format!("{name} | ") } else { String::new() };
        print(&format!("{prefix}{}\n", escaped(last.to_string().as_bytes())))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Has a running VMM write its metrics, and waits until its supervisor has them.
fn flush(dir: &Path) -> Result<()> {
    let Some(api) = Keyboard::find(&dir.join("jail"))? else { return Ok(()) };
    let path = dir.join(METRICS_LOG);
    // A rotation makes another file.
    let mark = || fs::metadata(&path).map(|meta| (meta.ino(), meta.len())).ok();
    let before = mark();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failed("logs.flush", || "cannot start an event loop")?
        .block_on(api.flush_metrics())?;
    let begin = Instant::now();
    while mark() == before && begin.elapsed() < FLUSH {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
