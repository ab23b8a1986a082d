//! KDL text to the typed model; every problem of a manifest in one run, each with its span.

pub mod diagnostic;
pub mod model;

mod debian;
mod decode;
mod download;
mod excerpt;
mod habits;
mod limits;
mod location;
mod path;
mod place;
mod prescan;
mod project;
mod same_download;
#[cfg(test)]
mod schema;
mod source;
mod table;
mod tuning;
mod units;
mod vm;
mod workload;

pub use location::Location;
pub use place::{Place, error_at};
pub use workload::is_archive;

use crate::digest::FieldHasher;
use crate::error::{Context, Error, Result};
use crate::name::{NAME_MAX, Name};
use crate::terminal::Stream;
use diagnostic::{Diagnostics, Problem};
use fs_err as fs;
use model::Manifest;
use std::io::Read;
use std::path::Path;

/// The manifest's name in the project's directory.
pub const FILE_NAME: &str = "firegopher.kdl";

pub use crate::packages::BASE_PACKAGES;

/// What `init` writes.
pub const STARTER: &str = include_str!("starter.kdl");

/// Larger files are no manifests.
const SIZE_MAX: u64 = 1 << 20;

/// Columns of a rendered report that goes to no terminal.
const REPORT_WIDTH: usize = 100;

/// Reads `dir/firegopher.kdl`; see [`load_at`].
pub fn load(dir: &Path) -> Result<Manifest> {
    load_at(&Location::in_dir(dir))
}

/// Reads a manifest.
///
/// # Errors
/// `Kind::Usage` if there is no such file, or with a rendered report if it is not valid;
/// `Kind::Failed` if it cannot be read.
pub fn load_at(at: &Location) -> Result<Manifest> {
    load_with(at, false)
}

/// What `load` would say if it looked for the files and directories that the manifest names: each that is missing, with
/// its place. `None` if all are there.
pub fn missing_files(at: &Location) -> Option<Error> {
    load_with(at, true).err()
}

fn load_with(at: &Location, existing: bool) -> Result<Manifest> {
    let file = at.path();
    let text = read(at)?;
    let canonical = at.canonical()?;
    let dir = canonical.dir();
    let shown = file.strip_prefix("./").unwrap_or(&file).display().to_string();
    let parsed = parse_with(&text, &shown, dir, existing);
    let parsed = parsed.map(|manifest| Manifest { file: at.file().to_owned(), ..manifest });
    parsed.map_err(|diagnostics| {
        let report = rendered(&diagnostics);
        let code = match diagnostics.problems() {
            [only] => only.code,
            _ => "manifest.invalid",
        };
        Error::usage(code, diagnostics.summary()).with_report(report)
    })
}

/// A report for standard error, fitted to a terminal's width.
fn rendered(diagnostics: &Diagnostics) -> String {
    let colours = Stream::Err.colours();
    match Stream::Err.width() {
        Some(width) => diagnostics.render_fitted(colours, width.clamp(40, 120)),
        None => diagnostics.render(colours, REPORT_WIDTH),
    }
}

fn read(at: &Location) -> Result<String> {
    let (dir, file) = (at.dir(), at.path());
    let unreadable = || format!("cannot read {}", file.display());
    let meta = match fs::metadata(&file) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            if at.file() != FILE_NAME {
                let text = format!("there is no manifest {}", file.display());
                return Err(Error::usage("manifest.missing", text).help("`-f FILE` names a manifest"));
            }
            let text = match dir == Path::new(".") {
                true => format!("there is no {FILE_NAME} here or in a directory above"),
                false => format!("there is no {FILE_NAME} in {} or above it", dir.display()),
            };
            return Err(Error::usage("manifest.missing", text)
                .help("`firegopher init` writes one to start from; `-C DIR` names another directory"));
        }
        meta => meta.or_failed("manifest.unreadable", unreadable)?,
    };
    // Opening a pipe would wait for its writer.
    if !meta.is_file() {
        let error = Error::usage("manifest.not-a-file", format!("{} is not a regular file", file.display()));
        return Err(error.help("replace it by a text file"));
    }
    let mut bytes = vec![];
    fs::File::open(&file)
        .and_then(|f| f.take(SIZE_MAX + 1).read_to_end(&mut bytes))
        .or_failed("manifest.unreadable", unreadable)?;
    if bytes.len() as u64 > SIZE_MAX {
        let error = Error::usage(
            "manifest.too-large",
            format!("{} is larger than {}", file.display(), units::show(SIZE_MAX)),
        );
        return Err(error.help("a manifest is text of a few kB; is this another file?"));
    }
    String::from_utf8(bytes).map_err(|e| not_utf8(&file, e.as_bytes(), e.utf8_error().valid_up_to()))
}

fn not_utf8(file: &Path, bytes: &[u8], at: usize) -> Error {
    let line_start = bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let line = bytes[..at].iter().filter(|b| **b == b'\n').count() + 1;
    let column = String::from_utf8_lossy(&bytes[line_start..at]).chars().count() + 1;
    let error = Error::usage(
        "manifest.not-utf8",
        format!(
            "{} is not UTF-8: byte 0x{:02x} at offset {at} (line {line}, column {column})",
            file.display(),
            bytes[at]
        ),
    );
    error.help(match bytes {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "it looks like UTF-16: save it as UTF-8",
        _ => "save the file as UTF-8",
    })
}

/// A report of something that is wrong with the program of `vm`, at its place in the manifest: at `run`, or where the
/// image comes from that says what to run. `None` for a VM that the manifest does not have.
pub fn report_at_run(
    at: &Location,
    vm: &Name,
    program: &str,
    code: &'static str,
    message: &str,
    help: &str,
) -> Option<String> {
    let file = at.path();
    let text = read(at).ok()?;
    let document = kdl::KdlDocument::parse_v2(&prescan::prescan(&text).ok()?).ok()?;
    let first = |node: &kdl::KdlNode| {
        node.entries().iter().find(|entry| entry.name().is_none())?.value().as_string().map(str::to_owned)
    };
    let is_vm =
        |node: &&kdl::KdlNode| node.name().value() == "vm" && first(node).as_deref() == Some(vm.as_str());
    let node = document.nodes().iter().find(is_vm)?;
    let decoder = decode::Decoder::new(&text, at.dir());
    let settings = node.children().map(|block| block.nodes()).unwrap_or_default();
    let run = settings.iter().find(|node| node.name().value() == "run");
    let (span, label) = match run {
        // The command line has another one.
        Some(run) if first(run).as_deref() != Some(program) => return None,
        Some(run) => (decoder.entry_span(run.entries().first()?), "cannot be run"),
        None => {
            let image = settings.iter().find(|node| node.name().value() == "image").unwrap_or(node);
            (decode::name_span(image), "the image says to run it")
        }
    };
    let problem = Problem::new(code, span, label, format!("VM {vm}: {message}")).help(help);
    let shown = file.file_name()?.to_string_lossy().into_owned();
    Some(rendered(&Diagnostics::new(&shown, &text, vec![problem])))
}

/// Reads a manifest's text. `dir` is the project's canonical directory, `file_name` is for the report.
///
/// # Errors
/// Every problem that was found.
pub fn parse(text: &str, file_name: &str, dir: &Path) -> Result<Manifest, Diagnostics> {
    parse_with(text, file_name, dir, false)
}

fn parse_with(text: &str, file_name: &str, dir: &Path, existing: bool) -> Result<Manifest, Diagnostics> {
    let fail = |problems| Diagnostics::new(file_name, text, problems);
    if text.len() as u64 > SIZE_MAX {
        let problem = Problem::new(
            "manifest.too-large",
            0..0,
            "",
            format!("the manifest is larger than {}", units::show(SIZE_MAX)),
        );
        return Err(Diagnostics::new(file_name, "", vec![problem]));
    }
    let clean = prescan::prescan(text).map_err(fail)?;
    let doc = kdl::KdlDocument::parse_v2(&clean).map_err(|e| fail(from_kdl(&e, text)))?;
    let mut decoder = decode::Decoder::new(text, dir);
    decoder.existing = existing;
    let manifest = project::decode(&decoder, &doc);
    let problems = decoder.into_problems();
    match manifest {
        Some(manifest) if problems.is_empty() => Ok(manifest),
        _ if problems.is_empty() => Err(fail(vec![Problem::new(
            "bug",
            0..0,
            "",
            "the manifest was refused without a reason; this is a bug",
        )])),
        _ => Err(fail(problems)),
    }
}

/// The parser's own words, for what the scan before it let through.
fn from_kdl(error: &kdl::KdlError, text: &str) -> Vec<Problem> {
    error
        .diagnostics
        .iter()
        .take(10)
        .map(|d| {
            // Spans come from another crate: keep them inside the text and on character boundaries.
            let start = text.floor_char_boundary(d.span.offset().min(text.len()));
            let end = text.ceil_char_boundary((d.span.offset() + d.span.len()).clamp(start, text.len()));
            let message = d.message.clone().unwrap_or_else(|| "this is not KDL 2".to_owned());
            let mut problem =
                Problem::new("manifest.syntax", start..end, d.label.clone().unwrap_or_default(), message);
            problem.help = d.help.clone();
            problem
        })
        .collect()
}

/// The project's name: as the manifest says, else the directory's name and six digits of its path's hash. A project
/// that was moved keeps the name it had: `project::identity` knows.
pub fn project_name(manifest: &Manifest) -> Name {
    manifest.project.clone().unwrap_or_else(|| derived_name(manifest, 0))
}

/// A name for a project that has none, or whose own is taken; each `attempt` gives another one.
pub fn derived_name(manifest: &Manifest, attempt: u32) -> Name {
    use std::os::unix::ffi::OsStrExt;
    let mut hasher = FieldHasher::new("firegopher project name v1");
    hasher.field(manifest.dir.as_os_str().as_bytes());
    if manifest.file != FILE_NAME {
        hasher.field(manifest.file.as_bytes());
    }
    if attempt > 0 {
        hasher.field(attempt.to_le_bytes());
    }
    let hash = hasher.finish();
    let base = manifest.dir.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut word = String::new();
    for c in base.chars() {
        match c {
            'a'..='z' | '0'..='9' => word.push(c),
            _ if !word.ends_with('-') => word.push('-'),
            _ => {}
        }
    }
    let word = word.trim_start_matches('-');
    let word = word[..word.len().min(NAME_MAX - 7)].trim_end_matches('-');
    let word = if word.is_empty() { "project" } else { word };
    Name::new(format!("{word}-{}", &hash.to_hex()[..6]))
        .expect("invariant: made of allowed characters, at most 24")
}

/// Every setting of a VM, and each property as `SETTING PROPERTY`.
#[cfg(test)]
pub fn vm_settings() -> Vec<String> {
    let of = |node: &'static table::Node| {
        let props = node.props.iter().map(move |prop| format!("{} {}", node.name, prop.name));
        std::iter::once(node.name.to_owned()).chain(props)
    };
    table::VM.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests;
