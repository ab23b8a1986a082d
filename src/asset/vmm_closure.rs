//! Finds, among the packages of QEMU's closure, the files that one running QEMU needs: the program, the loader,
//! the libraries it names (transitively), the TCG module and the firmware of the microvm machine.

use super::elf::needed;
use super::members;
use super::parallel::parallel;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;

/// The program's path in its package.
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// Accelerators are modules; KVM is compiled in.
const MODULES: &[&str] = &["accel-tcg-x86_64.so"];
/// Firmware and option ROMs that `-machine microvm -kernel` loads: a PVH kernel needs pvh.bin, a bzImage the other.
const FIRMWARE: &[&str] = &["bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin"];
/// Where firmware is looked for, in this order: QEMU's own choice comes first.
const FIRMWARE_DIRS: &[&str] = &["usr/share/qemu/", "usr/share/seabios/"];
/// The dynamic loader.
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Where a file goes in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Program,
    Loader,
    Library,
    Module,
    Firmware,
}

/// A file of the tree.
pub(super) struct Piece {
    pub place: Place,
    /// Its file name: for a library the name that it is needed by.
    pub name: String,
    pub bytes: Vec<u8>,
    /// The packages that it comes from, by index: two where a link leads into another package.
    pub debs: BTreeSet<usize>,
}

enum Entry {
    File(Vec<u8>),
    Link(String),
}

type Found = HashMap<String, (usize, Entry)>;

/// The packages, by index and ascending, that [`pieces`] takes a file from.
pub(super) fn contributors(debs: &[PathBuf]) -> Result<Vec<usize>> {
    let used: BTreeSet<usize> = pieces(debs)?.into_iter().flat_map(|piece| piece.debs).collect();
    Ok(used.into_iter().collect())
}

/// All files of the tree, sorted by place and name.
///
/// # Errors
/// Failed if a program, module, library or firmware is in none of the packages.
pub(super) fn pieces(debs: &[PathBuf]) -> Result<Vec<Piece>> {
    let found = collect(debs)?;
    let mut pieces: BTreeMap<(Place, String), Piece> = BTreeMap::new();
    let mut queue = VecDeque::new();
    let program = take(&found, &[""], PROGRAM).ok_or_else(|| lacks(PROGRAM))?;
    queue.push_back((Place::Program, "qemu-system-x86_64".to_owned(), program));
    for name in MODULES {
        let dirs = ["usr/lib/x86_64-linux-gnu/qemu/", "usr/lib/qemu/"];
        // Some distributions compile TCG in: running it is the proof, not the module.
        if let Some(module) = take(&found, &dirs, name) {
            queue.push_back((Place::Module, (*name).to_owned(), module));
        }
    }
    for name in FIRMWARE {
        let firmware = take(&found, FIRMWARE_DIRS, name).ok_or_else(|| lacks(name))?;
        queue.push_back((Place::Firmware, (*name).to_owned(), firmware));
    }
    let loader = library(&found, LOADER).ok_or_else(|| lacks(LOADER))?;
    queue.push_back((Place::Loader, "ld.so".to_owned(), loader));
    while let Some((place, name, (bytes, debs))) = queue.pop_front() {
        if pieces.contains_key(&(place, name.clone())) {
            continue;
        }
        if place != Place::Firmware {
            let wants = needed(bytes).ok_or_else(|| {
                Error::failed(
                    "asset.vmm",
                    format!("QEMU's packages hold {name}, which is no x86-64 ELF file"),
                )
            })?;
            // The loader is in the process already, under this very name.
            for want in wants.into_iter().filter(|want| want != LOADER) {
                let piece = library(&found, &want).ok_or_else(|| lacks(&want))?;
                queue.push_back((Place::Library, want, piece));
            }
        }
        pieces.insert((place, name.clone()), Piece { place, name, bytes: bytes.to_vec(), debs });
    }
    Ok(pieces.into_values().collect())
}

fn lacks(what: &str) -> Error {
    Error::failed("asset.vmm", format!("QEMU's packages lack {what}"))
        .help("run `firegopher update` to resolve them anew, or give the VMM by `path`")
}

/// Everything in the packages that could become a piece. The first package that has a path wins, in their order.
fn collect(debs: &[PathBuf]) -> Result<Found> {
    let each = parallel(debs, |deb| {
        let mut entries = Vec::new();
        members::for_each(deb, |member| {
            if is_candidate(&member.path) {
                let entry = match member.target.take() {
                    Some(target) => Entry::Link(target),
                    None => Entry::File(member.read()?),
                };
                entries.push((merged_usr(&member.path), entry));
            }
            Ok(())
        })?;
        Ok(entries)
    })?;
    let mut found = Found::new();
    for (index, entries) in each.into_iter().enumerate() {
        for (path, entry) in entries {
            found.entry(path).or_insert((index, entry));
        }
    }
    Ok(found)
}

fn is_candidate(path: &str) -> bool {
    if path == PROGRAM {
        return true;
    }
    if let Some(dir) = FIRMWARE_DIRS.iter().find(|dir| path.starts_with(**dir)) {
        // Links lead to files of other names, such as qboot.rom; all are small and flat.
        return !path[dir.len()..].contains('/') && [".bin", ".rom"].iter().any(|end| path.ends_with(end));
    }
    let path = path.strip_prefix("usr/").unwrap_or(path);
    let Some(file) = path.rsplit('/').next() else { return false };
    (path.starts_with("lib/") || path.starts_with("lib64/")) && {
        let is_qemu = path.contains("/qemu/");
        if is_qemu {
            MODULES.contains(&file)
        } else {
            file.contains(".so") && !path.contains("/gconv/") && !path.contains("python")
        }
    }
}

/// `lib/x` and `usr/lib/x` are the same file on a merged system, and links use both.
fn merged_usr(path: &str) -> String {
    match path.split('/').next() {
        Some("lib" | "lib64" | "bin" | "sbin") => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

fn library<'a>(found: &'a Found, name: &str) -> Option<(&'a [u8], BTreeSet<usize>)> {
    const DIRS: &[&str] = &["usr/lib/x86_64-linux-gnu/", "usr/lib/", "usr/lib64/"];
    if name.contains('/') {
        return None;
    }
    take(found, DIRS, name).or_else(|| {
        // Private directories that a RUNPATH would name: the one with the least path, if any.
        let inside = |path: &&String| path.starts_with("usr/lib/") && path.rsplit('/').next() == Some(name);
        let path = found.keys().filter(inside).min()?;
        take(found, &[""], path)
    })
}

/// The first of `dirs` that has `name`, links followed.
fn take<'a>(found: &'a Found, dirs: &[&str], name: &str) -> Option<(&'a [u8], BTreeSet<usize>)> {
    dirs.iter().find_map(|dir| {
        let mut path = format!("{dir}{name}");
        let mut debs = BTreeSet::new();
        for _ in 0..8 {
            let (deb, entry) = found.get(&path)?;
            debs.insert(*deb);
            match entry {
                Entry::File(bytes) => return Some((bytes.as_slice(), debs)),
                Entry::Link(target) => path = merged_usr(&join(&path, target)?),
            }
        }
        None
    })
}

/// A link's target as a path from the root; `None` if it leaves the root.
fn join(link: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = if target.starts_with('/') { Vec::new() } else { link.split('/').collect() };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Entry {
        Entry::File(text.as_bytes().to_vec())
    }

    #[test]
    fn links_are_followed_across_packages_and_never_out_of_the_root() {
        let link = |to: &str| Entry::Link(to.to_owned());
        let found = Found::from([
            ("usr/lib/x86_64-linux-gnu/libz.so.1".to_owned(), (3, link("libz.so.1.3"))),
            ("usr/lib/x86_64-linux-gnu/libz.so.1.3".to_owned(), (5, file("z"))),
            ("usr/lib64/ld-linux-x86-64.so.2".to_owned(), (0, link("/lib/x86_64-linux-gnu/ld.so"))),
            ("usr/lib/x86_64-linux-gnu/ld.so".to_owned(), (0, file("ld"))),
            ("usr/lib/evil.so".to_owned(), (0, link("../../../../etc/passwd"))),
            ("usr/lib/loop.so".to_owned(), (0, link("loop.so"))),
            ("usr/lib/x86_64-linux-gnu/private/libq.so".to_owned(), (7, file("q"))),
        ]);
        let get = |name: &str| {
            library(&found, name).map(|(bytes, debs)| (bytes.to_vec(), debs.into_iter().collect::<Vec<_>>()))
        };
        assert_eq!(get("libz.so.1"), Some((b"z".to_vec(), vec![3, 5])));
        assert_eq!(get("ld-linux-x86-64.so.2"), Some((b"ld".to_vec(), vec![0])));
        assert_eq!(get("libq.so"), Some((b"q".to_vec(), vec![7])));
        for none in ["evil.so", "loop.so", "libnone.so", "../passwd"] {
            assert_eq!(get(none), None, "{none}");
        }
    }

    #[test]
    fn only_what_could_be_needed_is_kept() {
        for yes in [
            PROGRAM,
            "usr/share/qemu/qboot.rom",
            "lib/x86_64-linux-gnu/libc.so.6",
            "usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
        ] {
            assert!(is_candidate(yes), "{yes}");
        }
        for no in [
            "usr/bin/qemu-system-i386",
            "usr/share/qemu/keymaps/de.bin",
            "usr/lib/x86_64-linux-gnu/qemu/ui-spice-core.so",
            "usr/lib/x86_64-linux-gnu/gconv/UTF-16.so",
        ] {
            assert!(!is_candidate(no), "{no}");
        }
    }
}
