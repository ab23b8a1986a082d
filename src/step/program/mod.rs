//! Whether what a VM runs can be run at all, as far as its images tell: told before anything boots. Where something
//! cannot be known (what is mounted over, a PATH that is secret, a format that only the guest's kernel may know),
//! nothing is said.

mod libraries;
#[cfg(test)]
mod tests;

use super::{Outputs, Work};
use crate::digest::{FieldHasher, StepKey};
use crate::error::{Error, Result};
use crate::image::BASE_IMAGE;
use crate::image::program::Program;
use crate::image::stacked::{Entry, Found, Stacked};
use crate::manifest::model::{Vm, Workdir};
use crate::manifest::{self, Location};
use crate::plan::{Graph, Task, VmNodes};
use crate::store::{Action, Store, VERDICT};
use firegopher_protocol::DEFAULT_PATH;
use std::path::{Path, PathBuf};

/// What the guest's init mounts file systems of the kernel's at.
const MOUNTED: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];
/// How often the kernel goes from one interpreter to the next (exec_binprm of fs/exec.c).
const INTERPRETERS: usize = 4;
/// Names that are suggested for one that is on no PATH.
const SUGGESTED: usize = 3;

/// Why a program cannot run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    code: &'static str,
    /// Goes on from "cannot run X: ".
    why: String,
    help: String,
}

impl Fault {
    fn new(code: &'static str, why: impl Into<String>, help: impl Into<String>) -> Fault {
        Fault { code, why: why.into(), help: help.into() }
    }
}

/// Looks at the program of every VM whose images are there. What was found in order is not looked at again.
///
/// # Errors
/// `program.*`, with the place of `run` in the manifest.
pub(super) fn check_programs(graph: &Graph, done: &Outputs, work: &Work<'_>) -> Result<()> {
    let outputs: Vec<_> = done.outputs.iter().copied().map(Some).collect();
    graph.vms.iter().try_for_each(|nodes| {
        let Task::Init(vm) = &graph.nodes[nodes.init].task else { return Ok(()) };
        check(vm, nodes, &outputs, work.store, &work.manifest, true)
    })
}

/// Looks at the program of one VM, if all of its images are in the store. `remember` keeps it from being looked at
/// again.
///
/// # Errors
/// As `check_programs`.
pub fn check(
    vm: &Vm,
    nodes: &VmNodes,
    outputs: &[Option<crate::digest::ObjectDigest>],
    store: &Store,
    at: &Location,
    remember: bool,
) -> Result<()> {
    let there = |node: usize| outputs.get(node).copied().flatten().filter(|digest| store.has(digest));
    let (Some(base), unpacked) = (there(nodes.image), nodes.unpack.map(there)) else { return Ok(()) };
    let workload = match unpacked {
        Some(None) => return Ok(()),
        other => other.flatten(),
    };
    let digests = [Some(base), workload].into_iter().flatten();
    let mut inputs: Vec<(String, String)> = digests.map(|d| ("image".to_owned(), d.to_hex())).collect();
    inputs.push(("vm".to_owned(), facts(vm)));
    let key = key(&inputs);
    if store.action(&key).is_some() {
        return Ok(());
    }
    let begun = std::time::Instant::now();
    let mut images: Vec<PathBuf> = vec![store.object_path(&base).join(BASE_IMAGE)];
    images.extend(workload.map(|workload| store.object_path(&workload)));
    let images: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
    // What the reader makes nothing of is the guest's kernel's affair.
    let found = Stacked::open(&images).ok().and_then(|stacked| Look::new(vm, &stacked).ok()?.fault().ok());
    if let Some(Some(fault)) = found {
        return Err(refusal(vm, &fault, at));
    }
    if !remember {
        return Ok(());
    }
    let output = store.publish_bytes(b"nothing speaks against running it\n")?;
    let millis = begun.elapsed().as_millis() as u64;
    let subject = vm.run.first().cloned().unwrap_or_default();
    store.record(&key, &Action { kind: VERDICT.to_owned(), subject, output, inputs, millis })
}

/// All of a VM's settings that the answer depends on.
fn facts(vm: &Vm) -> String {
    let volumes: Vec<&str> = vm.volumes.iter().map(|volume| volume.at.as_str()).collect();
    let secrets: Vec<&str> = vm.secrets.iter().map(|secret| secret.name.as_str()).collect();
    let env: Vec<_> = vm.env.iter().filter(|(name, _)| name == "PATH" || name.starts_with("LD_")).collect();
    format!("{:?}", (vm.run.first(), &vm.workdir, env, secrets, volumes))
}

fn key(inputs: &[(String, String)]) -> StepKey {
    let mut hasher = FieldHasher::new("firegopher program check v1");
    for (name, value) in inputs {
        hasher.field(name).field(value);
    }
    hasher.finish().into()
}

fn refusal(vm: &Vm, Fault { code, why, help }: &Fault, at: &Location) -> Error {
    let name = vm.run.first().map(String::as_str).unwrap_or_default();
    let why = why.strip_prefix(name).map_or(why.clone(), |rest| format!("it{rest}"));
    let message = format!("cannot run {name:?}: {why}");
    let error = Error::usage(code, format!("VM {}: {message}", vm.name)).help(help.as_str());
    let report = manifest::report_at_run(at, &vm.name, name, code, &message, help);
    match report {
        Some(report) => error.with_report(report),
        // The command line's, in a VM that nobody knows by name.
        None => Error::usage(code, message).help(help.as_str()),
    }
}

/// One VM's images and settings.
struct Look<'a> {
    vm: &'a Vm,
    images: &'a Stacked,
    /// Where volumes are mounted, links followed.
    volumes: Vec<String>,
}

/// What is to be said of a file; `None`: nothing.
type Verdict = Option<Fault>;

/// Where the search for a name has led.
enum Lookup<'a> {
    /// To a file that the kernel is asked to execute.
    File(String, Entry<'a>),
    /// To something that it refuses, and to nothing better.
    Refused(Fault),
    /// Nowhere.
    Missing,
    Unknown,
}

impl<'a> Look<'a> {
    fn new(vm: &'a Vm, images: &'a Stacked) -> mkext4::Result<Look<'a>> {
        let volumes = vm.volumes.iter().map(|volume| images.real(&volume.at)).collect::<Result<_, _>>()?;
        Ok(Look { vm, images, volumes })
    }

    fn find(&self, path: &str) -> mkext4::Result<Found<'a>> {
        let hidden = |path: &str| MOUNTED.contains(&path) || self.volumes.iter().any(|at| at == path);
        self.images.find(path, &hidden)
    }

    /// The value of a variable; `Err` of one that only the host knows.
    fn variable(&self, name: &str) -> Result<Option<&'a str>, ()> {
        if self.vm.secrets.iter().any(|secret| secret.name == name) {
            return Err(());
        }
        Ok(self.vm.env.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str()))
    }

    /// A path as the workload's first process means it.
    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        let workdir = match &self.vm.workdir {
            None => "/",
            Some(Workdir::Own(path) | Workdir::Image(path)) => path.as_str(),
        };
        format!("{}/{path}", workdir.trim_end_matches('/'))
    }

    fn fault(&self) -> mkext4::Result<Verdict> {
        let Some(name) = self.vm.run.first() else { return Ok(None) };
        match self.look_up(name)? {
            Lookup::Unknown => Ok(None),
            Lookup::Refused(fault) => Ok(Some(fault)),
            Lookup::File(path, entry) => self.judge(&path, entry, INTERPRETERS),
            Lookup::Missing if name.contains('/') => Ok(self.no_such_file(name)?),
            Lookup::Missing => Ok(Some(self.on_no_path(name)?)),
        }
    }

    /// As execvp(3) looks for a program, and the guest's init.
    fn look_up(&self, name: &str) -> mkext4::Result<Lookup<'a>> {
        let candidates: Vec<String> = if name.contains('/') {
            vec![self.absolute(name)]
        } else {
            let Ok(path) = self.variable("PATH") else { return Ok(Lookup::Unknown) };
            let dirs = path.unwrap_or(DEFAULT_PATH).split(':');
            dirs.map(|dir| self.absolute(&format!("{}/{name}", if dir.is_empty() { "." } else { dir })))
                .collect()
        };
        let mut refused = None;
        for path in candidates {
            let entry = match self.find(&path)? {
                Found::Unknown => return Ok(Lookup::Unknown),
                Found::Nothing | Found::NotThere => continue,
                Found::Inode(entry) => entry,
            };
            match self.refused(&path, entry)? {
                None => return Ok(Lookup::File(path, entry)),
                Some(fault) => refused = refused.or(Some(fault)),
            }
        }
        Ok(refused.map_or(Lookup::Missing, Lookup::Refused))
    }

    /// Whether a file's type or mode keeps everybody from executing it.
    fn refused(&self, path: &str, entry: Entry<'_>) -> mkext4::Result<Verdict> {
        const CODE: &str = "program.not-executable";
        if entry.is_dir()? {
            return Ok(Some(Fault::new(CODE, format!("{path} is a directory"), "name a file in it")));
        }
        if entry.open()?.is_none() {
            return Ok(Some(Fault::new(CODE, format!("{path} is no regular file"), "name a program")));
        }
        if entry.is_executable()? {
            return Ok(None);
        }
        let help = format!(
            "`chmod +x` it where it comes from, or have its interpreter run it, such as `run \"sh\" {path:?}`"
        );
        Ok(Some(Fault::new(CODE, format!("{path} is not executable"), help)))
    }

    fn no_such_file(&self, name: &str) -> mkext4::Result<Verdict> {
        let path = self.absolute(name);
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        // The guest makes a working directory that the image says and lacks, and homes; programs come from neither.
        let near = self.near(name.rsplit('/').next().unwrap_or_default(), &[dir])?;
        let help = match near.is_empty() {
            true => "is it in the `image`, or in a `workload` with another `to`?".to_owned(),
            false => format!("in {dir} there is {}", near.join(", ")),
        };
        let why = match name.starts_with('/') {
            true => "there is no such file".to_owned(),
            false => format!("there is no {path}, which it means in its `workdir`"),
        };
        Ok(Some(Fault::new("program.missing", why, help)))
    }

    fn on_no_path(&self, name: &str) -> mkext4::Result<Fault> {
        let path = self.variable("PATH").ok().flatten().unwrap_or(DEFAULT_PATH);
        let dirs: Vec<&str> = path.split(':').filter(|dir| dir.starts_with('/')).collect();
        let near = self.near(name, &dirs)?;
        let help = match near.is_empty() {
            true => {
                "add the package that has it to the `image`, or name the file with its directories".to_owned()
            }
            false => format!("there is {}; else add the package that has it to the `image`", near.join(", ")),
        };
        let why = format!("it is in none of the directories of PATH ({path})");
        Ok(Fault::new("program.missing", why, help))
    }

    /// Names in `dirs` that are nearly this one.
    fn near(&self, name: &str, dirs: &[&str]) -> mkext4::Result<Vec<String>> {
        let hidden = |path: &str| MOUNTED.contains(&path) || self.volumes.iter().any(|at| at == path);
        let mut all: Vec<(usize, String)> = Vec::new();
        for dir in dirs {
            for other in self.images.names(dir, &hidden)? {
                let distance = strsim::damerau_levenshtein(name, &other);
                // `python` is python3's, and `python3.12` may be python3.11's.
                let version = other
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
                if version || distance <= (name.len() / 3).max(1) && name.len() > 2 {
                    all.push((if version { 0 } else { distance }, format!("{:?}", other)));
                }
            }
        }
        all.sort();
        let mut names: Vec<String> = Vec::new();
        for (_, name) in all {
            if !names.contains(&name) && names.len() < SUGGESTED {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// What the kernel, and then the loader, will say of a file.
    fn judge(&self, path: &str, entry: Entry<'a>, left: usize) -> mkext4::Result<Verdict> {
        let Some(contents) = entry.open()? else { return Ok(None) };
        let format = |why: String, help: &str| Ok(Some(Fault::new("program.format", why, help)));
        match Program::of(&contents)? {
            Program::Unknown => Ok(None),
            Program::Empty => format(format!("{path} is empty"), "was it written completely?"),
            Program::NoProgram => {
                format(format!("{path} is an object file, not a program"), "link it to a program first")
            }
            Program::Windows => {
                format(format!("{path} is a program for Windows"), "take the one for Linux on x86_64")
            }
            Program::Other => format(
                format!("{path} is neither a program for x86_64 nor a script that begins with `#!`"),
                "let its first line name its interpreter, such as `#!/bin/sh`, or have that run it: `run \"sh\" …`",
            ),
            Program::Foreign(machine) => Ok(Some(Fault::new(
                "program.machine",
                format!("{path} is a program for {machine}, and the guest is x86_64"),
                "build or download it for x86_64 (amd64)",
            ))),
            Program::Script { interpreter, argument } => {
                self.judge_script(path, &interpreter, argument.as_deref(), left)
            }
            Program::Elf(elf) => libraries::judge(self, path, elf),
        }
    }

    fn judge_script(
        &self,
        path: &str,
        interpreter: &str,
        argument: Option<&str>,
        left: usize,
    ) -> mkext4::Result<Verdict> {
        const CODE: &str = "program.interpreter";
        let absolute = self.absolute(interpreter);
        let entry = match self.find(&absolute)? {
            Found::Unknown => return Ok(None),
            Found::Nothing | Found::NotThere => {
                return Ok(Some(match interpreter.strip_suffix('\r') {
                    Some(meant) => carriage_return(path, meant),
                    None => Fault::new(
                        CODE,
                        format!("the interpreter of {path}, {interpreter}, is not in the image"),
                        "add the package that has it to the `image`, or name another one in the script's first line",
                    ),
                }));
            }
            Found::Inode(entry) => entry,
        };
        if let Some(fault) = self.refused(&absolute, entry)? {
            let why = format!("the interpreter of {path} cannot be executed: {}", fault.why);
            return Ok(Some(Fault::new(CODE, why, fault.help)));
        }
        let Some(left) = left.checked_sub(1) else { return Ok(None) };
        if let Some(fault) = self.judge(&absolute, entry, left)? {
            return Ok(Some(fault));
        }
        // `env` looks for its argument as the guest does for the program; with options it may do anything.
        let is_env = interpreter.rsplit('/').next() == Some("env");
        let Some(name) =
            argument.filter(|name| is_env && !name.starts_with('-') && !name.contains(['=', ' ', '\t']))
        else {
            return Ok(None);
        };
        match self.look_up(name)? {
            Lookup::Missing => Ok(Some(match name.strip_suffix('\r') {
                Some(meant) => carriage_return(path, meant),
                None => {
                    let Fault { code, why, help } = self.on_no_path(name)?;
                    Fault::new(code, format!("the interpreter of {path} is {name:?}, and {why}"), help)
                }
            })),
            Lookup::File(at, entry) if !name.contains('/') => match at == absolute {
                true => Ok(None),
                // It has execvp(3) run it, which has the shell run what the kernel makes nothing of.
                false => {
                    let fault = self.judge(&at, entry, left)?;
                    Ok(fault.filter(|fault| fault.code != "program.format"))
                }
            },
            _ => Ok(None),
        }
    }
}

fn carriage_return(path: &str, meant: &str) -> Fault {
    Fault::new(
        "program.carriage-return",
        format!(
            "the first line of {path} ends in a carriage return, which the kernel takes for a part of its \
             interpreter's name: \"{meant}\\r\" is not in the image"
        ),
        "save it with Unix line ends (`sed -i 's/\\r$//' FILE`); in a repository, `* text eol=lf` in .gitattributes \
         keeps them",
    )
}
