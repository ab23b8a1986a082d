//! What the benchmarks share: one home below `target/`, projects, running the built binary, and figures.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The binary under test.
pub const FIREGOPHER: &str = env!("CARGO_BIN_EXE_firegopher");

/// `target/tmp`.
pub fn scratch() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
    fs::create_dir_all(&dir).expect("target/ can be written to");
    dir
}

/// The home that tests and benchmarks share: packages are downloaded once.
pub fn home() -> PathBuf {
    std::env::var_os("FIREGOPHER_TEST_HOME")
        .map_or_else(|| scratch().join(format!("home-{}", nix::unistd::geteuid())), PathBuf::from)
}

/// `FIREGOPHER_BENCH_ROUNDS`, else what is given.
pub fn rounds(default: usize) -> usize {
    std::env::var("FIREGOPHER_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Whether the command line names this part; without names every part runs.
pub fn wanted(part: &str) -> bool {
    // cargo itself passes --bench.
    let mut names = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).peekable();
    names.peek().is_none() || names.any(|name| part.contains(&name))
}

/// A project directory of our own.
pub struct Project {
    pub dir: PathBuf,
    pub home: PathBuf,
}

impl Project {
    /// A fresh directory with this manifest. Pins are kept: another round must not resolve anew.
    pub fn new(name: &str, manifest: &str) -> Project {
        let dir = scratch().join("bench").join(name);
        fs::create_dir_all(&dir).expect("a project directory");
        fs::write(dir.join("firegopher.kdl"), manifest).expect("a manifest");
        Project { dir, home: home() }
    }

    /// The command, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(FIREGOPHER);
        command.args(args).arg("-C").arg(&self.dir).env("FIREGOPHER_HOME", &self.home).stdin(Stdio::null());
        command
    }

    /// Runs it to its end, which must be a good one.
    pub fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().expect("the binary starts");
        assert!(
            output.status.success(),
            "firegopher {args:?} ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }
}

/// CLOCK_MONOTONIC in nanoseconds, as in `state.json`.
pub fn mono_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has it");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// User and system time of the children reaped so far.
pub fn children_cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("it takes no memory of ours");
    let micros = |t: nix::sys::time::TimeVal| t.tv_sec() as u64 * 1_000_000 + t.tv_usec() as u64;
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Figures of one quantity.
#[derive(Debug, Default, Clone)]
pub struct Series(pub Vec<f64>);

impl Series {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn millis(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e3);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let mid = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[mid] } else { (sorted[mid - 1] + sorted[mid]) / 2.0 }
    }

    /// Of each pair the quotient.
    pub fn over(&self, other: &Series) -> Series {
        Series(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// One line: what it is, minimum, median, maximum, and the goal if there is one.
    pub fn report(&self, what: &str, unit: &str, goal: impl Into<Option<f64>>) {
        let sorted = self.sorted();
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return };
        let digits = if unit.is_empty() { 3 } else { 1 };
        let show = |v: f64| format!("{v:.digits$}");
        let verdict = goal.into().map_or(String::new(), |goal| {
            let word = if self.median() <= goal { "met" } else { "MISSED" };
            format!("   goal {goal} {unit}: {word}")
        });
        println!(
            "{what:<58} {:>9} {:>9} {:>9} {unit:<3} (n={}){verdict}",
            show(*min),
            show(self.median()),
            show(*max),
            sorted.len()
        );
    }
}

/// A heading with the columns' names.
pub fn heading(text: impl Display) {
    println!("\n{text}\n{:<58} {:>9} {:>9} {:>9}", "", "min", "median", "max");
}
