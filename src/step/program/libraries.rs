//! Whether a dynamic program finds its loader and its libraries, as glibc's and musl's loaders look for them (ld.so(8)).
//! Looks into more directories than they do rather than into fewer.

use super::{Fault, Look, Verdict};
use crate::image::program::{Elf, Program};
use crate::image::stacked::Found;
use std::collections::{BTreeSet, VecDeque};

/// Where every loader looks, and those of the distributions besides.
const DEFAULTS: [&str; 12] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib/x86_64-linux-gnu",
    "/usr/local/lib64",
    "/usr/local/lib",
    "/lib/x86_64-linux-musl",
    "/usr/lib/x86_64-linux-musl",
    "/usr/glibc-compat/lib",
];
/// Directories below those of libraries for newer processors.
const NEWER: [&str; 3] = ["glibc-hwcaps/x86-64-v4", "glibc-hwcaps/x86-64-v3", "glibc-hwcaps/x86-64-v2"];
/// A program with more libraries is not judged.
const MOST: usize = 2000;
/// Larger lists of directories are not read.
const LIST: usize = 4 << 20;
/// What is a part of musl's loader whatever its name (ldso/dynlink.c).
const IN_MUSL: [&str; 7] = ["libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet."];

/// What is wrong with the loader or the libraries of the program at `path`.
pub(super) fn judge(look: &Look<'_>, path: &str, elf: Elf) -> mkext4::Result<Verdict> {
    let Some(loader) = elf.interpreter.clone() else { return Ok(None) };
    match look.find(&look.absolute(&loader))? {
        Found::Unknown => return Ok(None),
        Found::Nothing | Found::NotThere => return Ok(Some(no_loader(path, &loader))),
        Found::Inode(entry) => {
            if let Some(fault) = look.refused(&loader, entry)? {
                let why = format!("the loader of {path} cannot be executed: {}", fault.why);
                return Ok(Some(Fault::new("program.interpreter", why, fault.help)));
            }
        }
    }
    // gcompat lets musl's loader answer to the name of glibc's.
    let real = look.images.real(&look.absolute(&loader))?;
    let musl = [&loader, &real].into_iter().any(|path| path.contains("ld-musl-") || path.contains("gcompat"));
    if !musl && !loader.contains("ld-linux-x86-64") {
        return Ok(None);
    }
    let preloads = look.variable("LD_PRELOAD") != Ok(None)
        || !matches!(look.find("/etc/ld.so.preload")?, Found::Nothing);
    let (Ok(more), false) = (look.variable("LD_LIBRARY_PATH"), preloads) else { return Ok(None) };
    let mut search = Search { look, musl, dirs: Vec::new(), known: BTreeSet::new(), unknown: false };
    for dir in more.unwrap_or_default().split([':', ';']) {
        search.add(dir, path)?;
    }
    search.lists()?;
    DEFAULTS.iter().for_each(|dir| search.dirs.push((*dir).to_owned()));
    // glibc's loader has its own directory compiled in, as Nix and Guix use it. What others one elsewhere has, nobody
    // knows.
    for path in [&look.absolute(&loader), &real] {
        search.add(directory(path), "")?;
    }
    search.unknown |= !DEFAULTS.contains(&directory(&real));
    search.known.insert(loader.rsplit('/').next().unwrap_or_default().to_owned());
    search.run(path, elf)
}

fn no_loader(path: &str, loader: &str) -> Fault {
    let why = format!("{path} is a dynamic program whose loader, {loader}, is not in the image");
    let help = match () {
        () if loader.contains("ld-musl-") => {
            "it was built for musl, as Alpine's programs are: add the package `musl` to a Debian image, take the \
             build for glibc, or link it statically"
        }
        () if loader.contains("ld-linux") => {
            "it was built for glibc, as most programs are: take an image with glibc (package `libc6`), the build for \
             musl, or link it statically"
        }
        () => "add the package that has it to the `image`, or link the program statically",
    };
    Fault::new("program.interpreter", why, help)
}

fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

struct Search<'a> {
    look: &'a Look<'a>,
    musl: bool,
    /// Where libraries of every object are looked for.
    dirs: Vec<String>,
    /// Names that are loaded already: file names and those that libraries call themselves.
    known: BTreeSet<String>,
    /// A directory cannot be told, so nothing is known to be missing.
    unknown: bool,
}

/// A library that is needed, and by which file.
struct Needed {
    name: String,
    by: String,
}

impl Search<'_> {
    /// A directory of a list in the object at `path`; empty for a list of the system's.
    fn add(&mut self, dir: &str, path: &str) -> mkext4::Result<()> {
        if dir.is_empty() {
            return Ok(());
        }
        // The program's own is where it really is, a library's where it was found: both are looked into.
        let mut origins = vec![directory(path).to_owned()];
        if dir.contains("ORIGIN") {
            origins.push(directory(&self.look.images.real(path)?).to_owned());
        }
        for origin in origins {
            let dir = dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin);
            // What $LIB and $PLATFORM are is the loader's choice.
            if dir.contains('$') {
                self.unknown = true;
                continue;
            }
            let dir = self.look.absolute(&dir);
            if !self.dirs.contains(&dir) {
                self.dirs.push(dir);
            }
        }
        Ok(())
    }

    /// The directories of /etc/ld.so.conf, of the cache that was made of them, and of musl's list.
    fn lists(&mut self) -> mkext4::Result<()> {
        let mut pending = vec!["/etc/ld.so.conf".to_owned(), "/etc/ld-musl-x86_64.path".to_owned()];
        let mut seen = BTreeSet::new();
        while let Some(path) = pending.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let text = self.file(&path)?;
            for line in String::from_utf8_lossy(&text).lines() {
                let line = line.split('#').next().unwrap_or_default().trim();
                let Some(pattern) = line.strip_prefix("include").filter(|rest| rest.starts_with([' ', '\t']))
                else {
                    for dir in line.split([':', ',', ' ', '\t']) {
                        self.add(dir.split('=').next().unwrap_or(dir), "")?;
                    }
                    continue;
                };
                let pattern = pattern.trim();
                let pattern =
                    if pattern.starts_with('/') { pattern.to_owned() } else { format!("/etc/{pattern}") };
                match pattern.rsplit_once('/') {
                    Some((dir, "*.conf")) if !dir.contains(['*', '?', '[']) => {
                        let names = self.look.images.names(dir, &|_| false)?;
                        pending.extend(
                            names.iter().filter(|n| n.ends_with(".conf")).map(|n| format!("{dir}/{n}")),
                        );
                    }
                    _ if pattern.contains(['*', '?', '[']) => self.unknown = true,
                    _ => pending.push(pattern),
                }
            }
        }
        // Of the cache only the names in it are wanted, which are paths that end with a NUL.
        for path in self.file("/etc/ld.so.cache")?.split(|byte| *byte == 0) {
            if let Ok(path) = std::str::from_utf8(path)
                && path.starts_with('/')
                && let Some((dir, _)) = path.rsplit_once('/')
            {
                self.add(dir, "")?;
            }
        }
        Ok(())
    }

    /// A file's bytes; none of one that is not there or absurdly large.
    fn file(&mut self, path: &str) -> mkext4::Result<Vec<u8>> {
        match self.look.find(path)? {
            Found::Inode(entry) => match entry.open()? {
                Some(contents) if contents.size() <= LIST as u64 => contents.read(0, LIST),
                _ => {
                    self.unknown = true;
                    Ok(Vec::new())
                }
            },
            Found::Unknown => {
                self.unknown = true;
                Ok(Vec::new())
            }
            Found::Nothing | Found::NotThere => Ok(Vec::new()),
        }
    }

    fn run(&mut self, path: &str, elf: Elf) -> mkext4::Result<Verdict> {
        let mut pending: VecDeque<(String, Elf)> = VecDeque::from([(path.to_owned(), elf)]);
        let mut missing: Vec<Needed> = Vec::new();
        while let Some((path, elf)) = pending.pop_front() {
            self.known.extend(elf.soname);
            // Wider than the loader, which asks each object's own: nothing that it finds is missed.
            for list in [&elf.rpath, &elf.runpath].into_iter().flatten() {
                for dir in list.split(':') {
                    self.add(dir, &path)?;
                }
            }
            for name in elf.needed {
                let part = self.musl && IN_MUSL.iter().any(|part| name.starts_with(part));
                if part || self.known.contains(&name) {
                    continue;
                }
                if self.known.len() > MOST {
                    return Ok(None);
                }
                match self.library(&name)? {
                    Some(found) => {
                        self.known.insert(name);
                        pending.push_back(found);
                    }
                    None => missing.push(Needed { name, by: path.clone() }),
                }
            }
        }
        // One that is loaded may call itself so, or a later one's directories may have it.
        for Needed { name, by } in missing {
            if self.unknown {
                return Ok(None);
            }
            if self.known.contains(&name) || self.library(&name)?.is_some() {
                continue;
            }
            let by = if by == path { String::new() } else { format!(" (for {by})") };
            return Ok(Some(Fault::new(
                "program.library",
                format!("{path} needs the library {name}{by}, which is not in the image"),
                format!(
                    "add the package that has it to the `image` (`apt-file search {name}` names it), bring it in a \
                     `workload`, or link the program statically"
                ),
            )));
        }
        Ok(None)
    }

    /// The library of this name that the loader would take.
    fn library(&mut self, name: &str) -> mkext4::Result<Option<(String, Elf)>> {
        if name.contains('$') {
            self.unknown = true;
            return Ok(None);
        }
        let candidates: Vec<String> = match name.contains('/') {
            true => vec![self.look.absolute(name)],
            false => {
                let newer = |dir: &String| NEWER.map(|newer| format!("{dir}/{newer}/{name}"));
                let all = self.dirs.iter().map(|dir| format!("{dir}/{name}"));
                all.chain(self.dirs.iter().flat_map(newer)).collect()
            }
        };
        for path in candidates {
            let contents = match self.look.find(&path)? {
                Found::Unknown => {
                    self.unknown = true;
                    continue;
                }
                Found::Nothing | Found::NotThere => continue,
                Found::Inode(entry) => entry,
            };
            match contents.open()?.as_ref().map(Program::of).transpose()? {
                Some(Program::Elf(elf)) => return Ok(Some((path, elf))),
                // One for another machine is passed over.
                Some(Program::Foreign(_) | Program::Unknown) | None => {}
                // The loader says that it is damaged; the words are its own.
                Some(_) => self.unknown = true,
            }
        }
        Ok(None)
    }
}
