//! `firegopher logs`: what a workload wrote, its VM's serial console, or what the VMM says of itself.

use super::place::{Place, Wanted};
use super::screen::{Look, Screen, Shown};
use super::{CLOSED, print, stdio, target};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::name::Name;
use crate::supervise::logs::{
    CONSOLE_LOG, LogReader, METRICS_LOG, Record, VMM_LOG, WORKLOAD_LOG, escaped, last_metrics, rotated,
};
use crate::supervise::{self, Observed, Stream};
use crate::vmm::firecracker::Keyboard;
use crate::{color, manifest};
use fs_err as fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Following polls the log this often; a line a human reads need not be faster.
const POLL: Duration = Duration::from_millis(100);

/// A supervisor reads what its VMM writes at once.
const FLUSH: Duration = Duration::from_secs(2);

/// Lines are written together up to this many bytes.
const BATCH: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these VMs.
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completions::running_vms))]
    vms: Vec<String>,
    #[command(flatten)]
    project: Wanted,
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

/// One VM's log.
struct Source {
    name: Name,
    reader: LogReader,
    /// Read, and not shown yet.
    next: Option<Record>,
    /// There is no more for now.
    at_end: bool,
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let home = Home::from_env()?;
    let project = place.project(&home, &args.project)?.key;
    let chosen = choose(place, &args.vms, names_with_logs(&home, &project))?;
    if args.metrics {
        return metrics(&home, &project, &chosen);
    }
    let look = Look { colours: [color::on(&io::stdout()); 2], together: true, timestamps: args.timestamps };
    let mut screen = Screen::new(chosen.iter().map(|name| name.as_str().to_owned()), look);
    if args.console || args.vmm {
        let file = if args.console { CONSOLE_LOG } else { VMM_LOG };
        for (vm, name) in chosen.iter().enumerate() {
            let path = home.vm(&project, name).join(file);
            for path in [rotated(&path), path] {
                file_as_lines(&path, vm, &mut screen)?;
            }
            let mut shown = Shown::default();
            screen.finish(vm, &mut shown);
            show(&mut shown)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut sources = Vec::new();
    for name in chosen {
        let path = home.vm(&project, &name).join(WORKLOAD_LOG);
        let reader = LogReader::from_start(&path)
            .or_failed("logs.read", || format!("cannot read the log of {name}"))?;
        sources.push(Source { name, reader, next: None, at_end: false });
    }
    loop {
        let running = args.follow && any_alive(&supervise::observe(&home, &project)?, &sources);
        let mut shown = Shown::default();
        let mut wrote = false;
        sources.iter_mut().for_each(|source| source.at_end = false);
        while let Some((vm, record)) = oldest(&mut sources)? {
            let (time, stream) = (record.time.clone(), record.stream);
            screen.push(vm, stream, &time, &record.into_output(), &mut shown);
            wrote = true;
            if shown.len() >= BATCH {
                show(&mut shown)?;
            }
        }
        if args.follow && (running || wrote) {
            screen.flush_quiet(&mut shown);
            show(&mut shown)?;
            if stdio::wait_closed(Stream::Stdout, Some(POLL)) {
                return Err(Error::failed(CLOSED, "standard output was closed"));
            }
            continue;
        }
        for vm in 0..sources.len() {
            screen.finish(vm, &mut shown);
        }
        show(&mut shown)?;
        return Ok(ExitCode::SUCCESS);
    }
}

/// The VMs that were named, or all that have logs.
fn choose(place: &Place, named: &[String], known: Vec<Name>) -> Result<Vec<Name>> {
    let of_manifest = || {
        place
            .quiet()
            .and_then(|at| manifest::load_at(&at))
            .map(|m| m.vms.into_iter().map(|vm| vm.name).collect())
    };
    for wanted in named {
        if !known.iter().any(|name| name.as_str() == wanted) {
            let all: Vec<Name> = of_manifest().unwrap_or_default();
            return Err(match all.iter().find(|name| name.as_str() == wanted) {
                Some(name) => never_started(std::slice::from_ref(name)),
                None => target::unknown_vm(wanted, known.iter().map(Name::as_str)),
            });
        }
    }
    if known.is_empty() {
        return Err(never_started(&of_manifest().unwrap_or_default()));
    }
    Ok(known.into_iter().filter(|n| named.is_empty() || named.iter().any(|w| w == n.as_str())).collect())
}

fn never_started(names: &[Name]) -> Error {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    let text = match names.as_slice() {
        [] => "no VM of this project has been started yet".to_owned(),
        [one] => format!("{one} has not been started yet"),
        many => format!("{} have not been started yet", many.join(", ")),
    };
    Error::failed("logs.never-started", text).help("`firegopher up` starts what the manifest describes")
}

/// The next record by time: logs are merged by when each was written.
fn oldest(sources: &mut [Source]) -> Result<Option<(usize, Record)>> {
    for source in &mut *sources {
        if source.next.is_none() && !source.at_end {
            source.next = source
                .reader
                .next_record()
                .or_failed("logs.read", || format!("cannot read the log of {}", source.name))?;
            source.at_end = source.next.is_none();
        }
    }
    let with_time = |(vm, source): (usize, &Source)| Some((vm, source.next.as_ref()?.time.clone()));
    let found = sources.iter().enumerate().filter_map(with_time).min_by(|a, b| a.1.cmp(&b.1));
    Ok(found.and_then(|(vm, _)| Some((vm, sources[vm].next.take()?))))
}

/// Writes what a screen shows.
fn show(shown: &mut Shown) -> Result<()> {
    std::mem::take(shown).0.iter().try_for_each(|(_, bytes)| print(&String::from_utf8_lossy(bytes)))
}

/// Shows a log that is no list of records; nothing if there is none.
fn file_as_lines(path: &Path, vm: usize, screen: &mut Screen) -> Result<()> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::failed("logs.read", failed()).because(e)),
    };
    let mut buffer = vec![0; BATCH];
    loop {
        let count = file.read(&mut buffer).or_failed("logs.read", failed)?;
        if count == 0 {
            return Ok(());
        }
        let mut shown = Shown::default();
        screen.push(vm, Stream::Stdout, "", &buffer[..count], &mut shown);
        show(&mut shown)?;
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

/// Each VM's on a line; running ones are asked for them first.
fn metrics(home: &Home, project: &Name, chosen: &[Name]) -> Result<ExitCode> {
    let observed = supervise::observe(home, project)?;
    for name in chosen {
        let dir = home.vm(project, name);
        let runs = observed.iter().any(|o| o.alive && o.state.vm == *name && o.state.vmm.is_some());
        if runs && !flush(&dir)? {
            return Err(no_metrics(name).help("it runs under QEMU, and only Firecracker writes metrics"));
        }
        let Some(last) = last_metrics(&dir).or_failed("logs.read", || "cannot read the VMM's metrics")?
        else {
            let help = "only Firecracker writes them: each minute, when it is asked, and when its guest ends";
            return Err(no_metrics(name).help(help));
        };
        let prefix = if chosen.len() > 1 { format!("{name} | ") } else { String::new() };
        print(&format!("{prefix}{}\n", escaped(last.to_string().as_bytes())))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn no_metrics(name: &Name) -> Error {
    Error::failed("logs.no-metrics", format!("there are no metrics of VM {name}"))
}

/// Has a running VMM write its metrics, and waits until its supervisor has them. `false`: it is not Firecracker.
fn flush(dir: &Path) -> Result<bool> {
    let Some(api) = Keyboard::find(&dir.join("jail"))? else { return Ok(false) };
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
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(dir: &Path, name: &str, records: &str) -> Source {
        let path = dir.join(name);
        fs::write(&path, records).unwrap();
        let reader = LogReader::from_start(&path).unwrap();
        Source { name: Name::new(name).unwrap(), reader, next: None, at_end: false }
    }

    #[test]
    fn logs_are_merged_by_time_and_lines_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let a = "2026-01-01T00:00:01.000Z stdout P half \n2026-01-01T00:00:03.000Z stderr F error\n\
                 2026-01-01T00:00:05.000Z stdout P of \n2026-01-01T00:00:07.000Z stdout F a line\n";
        let b = "2026-01-01T00:00:02.000Z stdout F two\n2026-01-01T00:00:06.000Z stdout F six\n\
                 2026-01-01T00:00:08.000Z stdout P unfinished\n";
        let mut sources = [source(dir.path(), "a", a), source(dir.path(), "b", b)];
        let look = Look { together: true, timestamps: true, ..Look::default() };
        let mut screen = Screen::new(["a".to_owned(), "b".to_owned()], look);
        let mut shown = Shown::default();
        while let Some((vm, record)) = oldest(&mut sources).unwrap() {
            screen.push(vm, record.stream, &record.time.clone(), &record.into_output(), &mut shown);
        }
        (0..2).for_each(|vm| screen.finish(vm, &mut shown));
        let text: String = shown.0.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect();
        assert_eq!(
            text,
            "b | 2026-01-01T00:00:02.000Z two\na | 2026-01-01T00:00:03.000Z error\n\
             b | 2026-01-01T00:00:06.000Z six\na | 2026-01-01T00:00:01.000Z half of a line\n\
             b | 2026-01-01T00:00:08.000Z unfinished\n"
        );
    }
}
