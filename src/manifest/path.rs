//! Paths: on the host, which stay in the project, and in the guest, which are absolute.

use super::decode::{Decoder, Spanned, Wrong};
use std::path::{Component, Path, PathBuf};

/// PATH_MAX of linux/limits.h, with the NUL.
const PATH_MAX: usize = 4096;
/// NAME_MAX of linux/limits.h.
const NAME_MAX: usize = 255;

impl Decoder<'_> {
    /// A path on the host, normalised, relative to the project unless it is absolute, which `absolute` allows.
    pub fn host_path(&self, subject: &str, text: &Spanned<String>, absolute: bool) -> Option<PathBuf> {
        let path = self.allowed_path(subject, text, absolute)?;
        let found = if self.existing { self.found(subject, &path) } else { Ok(()) };
        self.checked("manifest.no-such-file", &text.span, found).map(|()| path)
    }

    fn found(&self, subject: &str, path: &Path) -> Result<(), Wrong> {
        let Err(e) = self.dir.join(path).metadata() else { return Ok(()) };
        let why = match e.kind() {
            std::io::ErrorKind::NotFound => "is not there".to_owned(),
            _ => format!("cannot be opened: {e}"),
        };
        let help = match path.is_absolute() {
            true => "paths that start with a slash are this host's".to_owned(),
            false => format!("paths start at the manifest, in {}", self.dir.display()),
        };
        Err(Wrong::new("nothing here", format!("{subject} leads nowhere: {} {why}", path.display()), help))
    }

    fn allowed_path(&self, subject: &str, text: &Spanned<String>, absolute: bool) -> Option<PathBuf> {
        let path = self.checked("manifest.bad-path", &text.span, host_path(subject, &text.value))?;
        if path.is_absolute() {
            if absolute {
                return Some(path);
            }
            let inside = path.strip_prefix(self.dir).ok().map(|p| p.display().to_string());
            let help = match inside {
                Some(inside) if !inside.is_empty() => {
                    format!("write it relative to the manifest: \"{inside}\"")
                }
                _ => "copy it into the project and write a path relative to the manifest".to_owned(),
            };
            let wrong = Wrong::new("absolute", format!("{subject} must lie in the project"), help);
            return self.checked("manifest.absolute-path", &text.span, Err(wrong));
        }
        self.checked("manifest.path-leaves-project", &text.span, self.stays(subject, &path))?;
        Some(path)
    }

    /// Whether a normalised relative path leads out of the project, in its text or by way of links.
    fn stays(&self, subject: &str, path: &Path) -> Result<(), Wrong> {
        let help = "a project is one directory: move the file into it, or the manifest further up";
        if path.starts_with("..") {
            return Err(Wrong::new(
                "leaves the project",
                format!("{subject} leads out of the project"),
                help,
            ));
        }
        match self.dir.join(path).canonicalize() {
            Ok(real) if !real.starts_with(self.dir) => Err(Wrong::new(
                format!("is {}", real.display()),
                format!("{subject} leads out of the project by a symbolic link"),
                help,
            )),
            // What does not exist yet is reported by whoever wants to read it.
            _ => Ok(()),
        }
    }

    /// An absolute path in the guest, normalised; a trailing `/` is kept if `directory` has a meaning for it.
    pub fn guest_path(&self, subject: &str, text: &Spanned<String>) -> Option<String> {
        self.checked("manifest.bad-guest-path", &text.span, guest_path(subject, &text.value))
    }
}

fn host_path(subject: &str, text: &str) -> Result<PathBuf, Wrong> {
    if text.is_empty() {
        let help = "write a path relative to the manifest, such as \"./app\"";
        return Err(Wrong::new("empty", format!("{subject} is empty"), help));
    }
    lengths(subject, text)?;
    if text.starts_with('~') {
        let help = "`~` is a shell's word: write a path relative to the manifest";
        return Err(Wrong::new("not expanded", format!("{subject} starts with `~`"), help));
    }
    let mut path = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::CurDir => {}
            // `..` takes back a plain name; `a/..` is inside whatever `a` is, links included, or refused later.
            Component::ParentDir => match path.components().next_back() {
                Some(Component::Normal(_)) => {
                    path.pop();
                }
                Some(Component::RootDir) => {}
                _ => path.push(".."),
            },
            other => path.push(other),
        }
    }
    Ok(if path.as_os_str().is_empty() { PathBuf::from(".") } else { path })
}

fn lengths(subject: &str, text: &str) -> Result<(), Wrong> {
    if text.len() >= PATH_MAX || text.split('/').any(|name| name.len() > NAME_MAX) {
        let help = format!("Linux allows {} bytes, and {NAME_MAX} between two slashes", PATH_MAX - 1);
        return Err(Wrong::new("too long", format!("{subject} is too long"), help));
    }
    Ok(())
}

/// Without `.`, doubled and trailing slashes. `/` stays `/`.
pub(super) fn guest_path(subject: &str, text: &str) -> Result<String, Wrong> {
    if !text.starts_with('/') {
        let help = format!("paths in the guest start with `/`: \"/{}\"", text.trim_start_matches("./"));
        return Err(Wrong::new("relative", format!("{subject} is not an absolute path"), help));
    }
    lengths(subject, text)?;
    let mut parts = vec![];
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                let help = "write the path without `..`";
                return Err(Wrong::new("holds `..`", format!("{subject} holds `..`"), help));
            }
            _ if part.chars().any(char::is_control) => {
                let help = "remove the line break or control character";
                return Err(Wrong::new(
                    "control character",
                    format!("{subject} holds a control character"),
                    help,
                ));
            }
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Whether `path` is `dir` or lies beneath it; both are normalised.
pub(super) fn beneath(path: &str, dir: &str) -> bool {
    dir == "/" || path == dir || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_paths_are_normalised() {
        assert_eq!(guest_path("x", "//app/./b//"), Ok("/app/b".to_owned()));
        assert_eq!(guest_path("x", "/"), Ok("/".to_owned()));
        for bad in ["", "app", "./app", "/a/../b", "/a\nb", &format!("/{}", "x".repeat(256))] {
            assert!(guest_path("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_paths_are_normalised() {
        let path = |text| host_path("x", text).unwrap().display().to_string();
        assert_eq!(path("./app/"), "app");
        assert_eq!(path("."), ".");
        assert_eq!(path("a/../b"), "b");
        assert_eq!(path("a/../../b"), "../b");
        assert_eq!(path("/usr/./bin/../bin/x"), "/usr/bin/x");
    }

    #[test]
    fn beneath_counts_whole_names() {
        assert!(beneath("/data/db", "/data"));
        assert!(beneath("/data", "/data"));
        assert!(!beneath("/database", "/data"));
        assert!(beneath("/data", "/"));
    }
}
