//! Turns the names of an untrusted archive into paths that cannot mean anything else, or refuses them.

use crate::error::{Error, Result};

/// NAME_MAX and PATH_MAX of linux/limits.h.
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;

/// What ".." in a name does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Up {
    /// It is refused.
    Never,
    /// It takes the part before it away, as long as there is one.
    Inside,
    /// As that; at the root it stays there, as in any root.
    Contained,
}

/// A relative path without empty, "." or ".." parts; "" for the archive's own root.
pub(in crate::image) fn clean(archive: &str, raw: &[u8]) -> Result<String> {
    clean_with(archive, raw, Up::Never)
}

/// The same for a tar's member, whose name may go up and down as long as it stays inside: by its letters, links are
/// not followed for it. That is how GNU tar, umoci, containerd and podman have it; readers of zip differ.
pub(super) fn clean_member(archive: &str, raw: &[u8]) -> Result<String> {
    clean_with(archive, raw, Up::Inside)
}

fn clean_with(archive: &str, raw: &[u8], up: Up) -> Result<String> {
    let shown = || String::from_utf8_lossy(raw).into_owned();
    let Ok(text) = std::str::from_utf8(raw) else {
        return Err(Error::failed(
            "archive.name-encoding",
            format!("{archive}: the name {:?} is not UTF-8", shown()),
        )
        .help("rename the file, or make the archive in a UTF-8 locale"));
    };
    if text.starts_with('/') {
        return Err(Error::failed(
            "archive.absolute-path",
            format!("{archive}: {text:?} is an absolute path"),
        )
        .help("make the archive with relative names (tar does so unless given -P)"));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => continue,
            ".." => {
                let inside = parts.pop().is_some();
                if up == Up::Never || (up == Up::Inside && !inside) {
                    return Err(Error::failed(
                        "archive.parent-path",
                        format!("{archive}: {text:?} leads out through '..'"),
                    )
                    .help("make the archive without '..' in its names"));
                }
            }
            part if part.len() > NAME_MAX => {
                return Err(Error::failed(
                    "archive.long-name",
                    format!("{archive}: a name of {} bytes is longer than {NAME_MAX}", part.len()),
                ));
            }
            part if part.contains('\0') => {
                return Err(Error::failed(
                    "archive.name-encoding",
                    format!("{archive}: {text:?} contains a NUL byte"),
                ));
            }
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    if path.len() >= PATH_MAX {
        return Err(Error::failed(
            "archive.long-name",
            format!("{archive}: a path of {} bytes is longer than {}", path.len(), PATH_MAX - 1),
        ));
    }
    Ok(path)
}

/// The target of a hard link: another member's path. One that begins at the root or climbs above it stays inside, as
/// GNU tar, umoci and containerd have it.
pub(super) fn clean_hard_link(archive: &str, path: &str, raw: &[u8]) -> Result<String> {
    let start = raw.iter().position(|byte| *byte != b'/').unwrap_or(raw.len());
    clean_with(archive, &raw[start..], Up::Contained).map_err(|cause| {
        Error::failed("archive.bad-link", format!("{archive}: {path} is a hard link to what cannot be there"))
            .because(cause)
    })
}

/// The path that a link's target means, seen from its directory; none if it leads out.
pub(super) fn join(dir: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The target of a symlink, as text.
pub(super) fn symlink_text(archive: &str, path: &str, raw: &[u8]) -> Result<Box<str>> {
    let bad = |what: &str| {
        Err(Error::failed("archive.bad-link", format!("{archive}: the target of the link {path} {what}")))
    };
    match std::str::from_utf8(raw) {
        Ok("") => bad("is empty"),
        Ok(text) if text.contains('\0') => bad("contains a NUL byte"),
        Ok(text) if text.len() >= PATH_MAX => bad("is too long"),
        Ok(text) => Ok(text.into()),
        Err(_) => bad("is not UTF-8"),
    }
}
