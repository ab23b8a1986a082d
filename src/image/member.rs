//! One file out of an archive that nobody vouches for.

use super::archive::{self, Entry, EntryKind, Limits};
use super::content::Content;
use super::tree::Kind;
use crate::error::{Error, Result};
use crate::store::write_failed;
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// As many links as Linux follows (MAXSYMLINKS of linux/namei.h).
const LINKS: usize = 40;
/// Names that are looked at for the nearest one.
const CONSIDERED: usize = 20_000;

/// Writes the regular file `member` to the new file `out`; tells whether its owner may execute it. Links are
/// followed within the archive. Large temporary files go to `scratch_dir`.
///
/// # Errors
/// `archive.*`, `store.disk-full`.
pub fn extract_member(path: &Path, member: &str, out: &Path, scratch_dir: &Path) -> Result<bool> {
    let name = path.display().to_string();
    let entries = archive::read(path, scratch_dir, (0, 0), Limits::default())?;
    let (entry, size, content) = find(&name, &entries, member)?;
    let failed = |e| write_failed(format_args!("taking {member} out of {name}"), e);
    let mut file =
        std::fs::File::options().write(true).create_new(true).mode(0o600).open(out).map_err(failed)?;
    let mut reader = content.open(size).map_err(|e| content.mismatch(member, Some(e)))?;
    let mut buffer = vec![0; 256 << 10];
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
        let got = match reader.read(&mut buffer[..want]) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(content.mismatch(member, Some(reader.fault().flatten().unwrap_or(e)))),
        };
        file.write_all(&buffer[..got]).map_err(failed)?;
        left -= got as u64;
    }
    if left > 0 {
        return Err(content.mismatch(member, None));
    }
    reader.finish().map_err(|cause| content.mismatch(member, cause))?;
    Ok(entry.meta.mode & 0o100 != 0)
}

fn find<'a>(archive: &str, entries: &'a [Entry], member: &str) -> Result<(&'a Entry, u64, &'a Content)> {
    let mut by_path: HashMap<&str, &Entry> = HashMap::with_capacity(entries.len());
    for entry in entries {
        let before = by_path.insert(&entry.path, entry);
        if before.is_some_and(|before| !is_dir(before) || !is_dir(entry)) {
            return Err(Error::failed(
                "archive.duplicate",
                format!("{archive}: the name {} occurs twice", entry.path),
            )
            .help("make the archive again: which of the two is meant cannot be told"));
        }
    }
    let mut path = archive::clean(archive, member.as_bytes())?;
    for _ in 0..=LINKS {
        path = resolve(archive, &by_path, &path, member)?;
        match by_path.get(path.as_str()) {
            Some(entry) => match &entry.kind {
                EntryKind::Leaf(Kind::File { size, content }) => return Ok((entry, *size, content)),
                EntryKind::HardLink(target) => path.clone_from(target),
                _ => return Err(no_file(archive, member, &path)),
            },
            // Directories need no entry of their own.
            None if is_parent(entries, &path) => return Err(no_file(archive, member, &path)),
            None => return Err(missing(archive, entries, member, &path)),
        }
    }
    Err(circle(archive, member))
}

/// Follows the symlinks in all parts of a path.
fn resolve(archive: &str, by_path: &HashMap<&str, &Entry>, path: &str, member: &str) -> Result<String> {
    let mut left: Vec<String> = parts(path).rev().map(str::to_owned).collect();
    let mut done: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == ".." {
            if done.pop().is_none() {
                return Err(Error::failed(
                    "archive.link-escape",
                    format!("{archive}: the links behind {member} leave the archive"),
                ));
            }
            continue;
        }
        done.push(part);
        let Some(Entry { kind: EntryKind::Leaf(Kind::Symlink(target)), .. }) =
            by_path.get(done.join("/").as_str())
        else {
            continue;
        };
        links += 1;
        if links > LINKS {
            return Err(circle(archive, member));
        }
        if target.starts_with('/') {
            // The archive's root is what it would be unpacked to.
            done.clear();
        } else {
            done.pop();
        }
        left.extend(parts(target).rev().map(str::to_owned));
    }
    Ok(done.join("/"))
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "."))
}

fn is_dir(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::Dir)
}

fn is_parent(entries: &[Entry], path: &str) -> bool {
    entries.iter().any(|e| e.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
}

fn circle(archive: &str, member: &str) -> Error {
    Error::failed("archive.link-loop", format!("{archive}: the links behind {member} lead in a circle"))
}

fn no_file(archive: &str, member: &str, path: &str) -> Error {
    let what = if member.trim_start_matches("./") == path {
        member.to_owned()
    } else {
        format!("{member} ({path})")
    };
    Error::failed("archive.no-file", format!("{archive}: {what} is no regular file"))
        .help("name a file in the archive, with its directories (`tar -tf` and `unzip -l` list them)")
}

fn missing(archive: &str, entries: &[Entry], member: &str, path: &str) -> Error {
    let error = if member.trim_start_matches("./").trim_end_matches('/') == path {
        Error::failed("archive.no-member", format!("{archive} has no member {member}"))
    } else {
        let message = format!("{archive}: {member} is a link to {path}, which is not in the archive");
        Error::failed("archive.no-member", message)
    };
    let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let wanted = base(path);
    let files = entries.iter().filter(|e| !is_dir(e)).take(CONSIDERED);
    let mut near: Vec<(usize, &str)> = files
        .map(|e| {
            let by_name = if base(&e.path) == wanted { 0 } else { usize::MAX };
            (by_name.min(strsim::damerau_levenshtein(path, &e.path)), e.path.as_str())
        })
        .filter(|(distance, _)| *distance <= 3.max(path.len() / 3))
        .collect();
    near.sort_unstable();
    let names: Vec<&str> = near.iter().take(3).map(|(_, name)| *name).collect();
    if names.is_empty() {
        let first: Vec<&str> =
            entries.iter().filter(|e| !is_dir(e)).take(3).map(|e| e.path.as_str()).collect();
        return match first.as_slice() {
            [] => error.help("the archive holds no files"),
            some => error.help(format!("it holds {} and the like", some.join(", "))),
        };
    }
    error.help(format!("did you mean {}?", names.join(" or ")))
}
