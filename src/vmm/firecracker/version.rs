//! What each version of Firecracker can do, so that a boot is refused with the reason rather than run into a
//! panic of the guest.

use crate::error::{Context, Error, Result};
use crate::vmm::ask::ask;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

/// A version of Firecracker. One in development counts as the version that it will become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// 1 in 1.16.0.
    pub major: u32,
    /// 16 in 1.16.0.
    pub minor: u32,
    /// 0 in 1.16.0.
    pub patch: u32,
}

/// The oldest version whose jailer and configuration file are known here.
pub const OLDEST: Version = Version { major: 1, minor: 6, patch: 0 };

/// Something that not every version can do, and that a VM may ask for. What we do without on every version is not
/// among it: kernels are unpacked (bzImage is read from 1.17 on only), the MTU is told by the guest's init, log and
/// metrics are made beforehand, the CPU template is a file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// Devices announced by ACPI, which is how kernels with modular drivers find them.
    Acpi,
    /// `huge_pages` with hugetlbfs.
    HugePages,
    /// `huge_pages` with transparent huge pages.
    TransparentHugePages,
    /// A balloon whose memory the host gets.
    Balloon,
    /// `free_page_reporting` of the balloon.
    FreePages,
}

impl Need {
    /// The first version that has it, and what is missing before, as the end of a sentence.
    fn since(self) -> ((u32, u32), &'static str) {
        match self {
            Need::HugePages => ((1, 7), "it cannot back guest memory with huge pages"),
            // Seen with 1.6.0, which keeps guest memory in a memfd; from 1.7 on vhost-user devices alone need one.
            Need::Balloon => ((1, 7), "its balloon gives the host no memory back"),
            Need::Acpi => ((1, 8), "it has no ACPI, so a kernel whose drivers are modules finds no devices"),
            Need::FreePages => ((1, 14), "its balloon does not learn of pages that the guest frees"),
            Need::TransparentHugePages => ((1, 17), "it does not use transparent huge pages"),
        }
    }
}

impl Version {
    /// Whether this version has `need`.
    pub fn has(self, need: Need) -> bool {
        (self.major, self.minor) >= need.since().0
    }
}

/// Refuses a version that lacks something, naming everything it lacks.
///
/// # Errors
/// `firecracker.too-old`.
pub fn check(version: Version, needs: &[Need]) -> Result<()> {
    if version < OLDEST {
        return Err(Error::host("firecracker.too-old", format!("Firecracker {version} is too old"))
            .help(format!("use {OLDEST} or newer; 1.8.0 or newer for kernels of distributions")));
    }
    let mut lacks: Vec<_> =
        needs.iter().filter(|need| !version.has(**need)).map(|need| need.since()).collect();
    lacks.dedup();
    let Some((major, minor)) = lacks.iter().map(|(since, _)| *since).max() else { return Ok(()) };
    let reasons: Vec<_> = lacks.iter().map(|(_, reason)| *reason).collect();
    Err(Error::host(
        "firecracker.too-old",
        format!("Firecracker {version} cannot boot this VM: {}", reasons.join("; ")),
    )
    .help(format!("use Firecracker {major}.{minor}.0 or newer")))
}

/// Refuses a program that says another version than the manifest. `shown` names it.
///
/// # Errors
/// `vmm.firecracker-version`.
pub fn check_declared(said: Version, declared: Option<Version>, shown: &str) -> Result<()> {
    match declared {
        Some(declared) if declared != said => Err(Error::usage(
            "vmm.firecracker-version",
            format!("the manifest says Firecracker {declared}, but {shown} is {said}"),
        )
        .help(format!("write version=\"{said}\", or name the other release"))),
        _ => Ok(()),
    }
}

/// Asks Firecracker and its jailer for their version, which must be the same: each knows the other's arguments of its
/// own release alone.
///
/// # Errors
/// As [`of`]; `vmm.jailer-version`.
pub fn of_both([firecracker, jailer]: [&Path; 2]) -> Result<Version> {
    let version = of(firecracker)?;
    let other = version_of(jailer, "Jailer")?;
    if other != version {
        return Err(Error::usage(
            "vmm.jailer-version",
            format!("{} is version {version}, but {} is {other}", firecracker.display(), jailer.display()),
        )
        .help("take both programs out of one release"));
    }
    Ok(version)
}

/// Asks `binary`, a Firecracker, for its version.
///
/// # Errors
/// It is missing, not executable here, says something else than a version of Firecracker, or does not end.
pub fn of(binary: &Path) -> Result<Version> {
    version_of(binary, "Firecracker")
}

fn version_of(binary: &Path, name: &str) -> Result<Version> {
    let shown = binary.display();
    native(binary)?;
    let fail = || format!("cannot run {shown} --version");
    let text = ask(binary, &["--version"], "").or_host("firecracker.cannot-run", fail)?;
    parse_output(name, &String::from_utf8_lossy(&text)).ok_or_else(|| {
        Error::host("firecracker.not-firecracker", format!("{shown} is no {name}"))
            .because(format!("--version says {:?}", String::from_utf8_lossy(&text[..text.len().min(80)])))
    })
}

/// Refuses what cannot run here with better words than `Exec format error`.
fn native(binary: &Path) -> Result<()> {
    let shown = binary.display();
    let mut head = [0; 20];
    fs_err::File::open(binary)
        .and_then(|mut file| file.read_exact(&mut head))
        .or_host("firecracker.missing", || format!("cannot read Firecracker's executable {shown}"))
        .map_err(|e| e.help("the directory must hold the executables `firecracker` and `jailer`"))?;
    // e_machine (elf(5)).
    match (&head[..4], u16::from_le_bytes([head[18], head[19]])) {
        (b"\x7fELF", 62) => Ok(()),
        (b"\x7fELF", machine) => {
            let name = if machine == 183 { "aarch64".to_owned() } else { format!("machine type {machine}") };
            Err(Error::host(
                "firecracker.wrong-architecture",
                format!("{shown} is made for {name}, not x86_64"),
            ))
        }
        // A script is no Firecracker either, but it may stand in for one.
        (start, _) if start.starts_with(b"#!") => Ok(()),
        _ => Err(Error::host("firecracker.not-firecracker", format!("{shown} is no executable for Linux"))),
    }
}

/// `Firecracker v1.16.1`, followed by lines that do not matter; likewise `Jailer v1.16.1`.
fn parse_output(name: &str, text: &str) -> Option<Version> {
    let line = text.lines().next()?;
    line.strip_prefix(name)?.strip_prefix(" v")?.parse().ok()
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Version> {
        let bad = || {
            Error::failed("firecracker.version", format!("{:?} is no version of Firecracker", shorten(text)))
        };
        // `-dev` and what git says follow the numbers.
        let numbers = text.trim_end().split('-').next().unwrap_or_default();
        let parts: Vec<u32> =
            numbers.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
        match parts[..] {
            [major, minor, patch] => Ok(Version { major, minor, patch }),
            _ => Err(bad()),
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests;
