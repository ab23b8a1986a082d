//! What is placed over the base image, and whom things run as and belong to.

use super::decode::{Decoder, Setting, Spanned, Wrong};
use super::diagnostic::Problem;
use super::model::{User, Workload, WorkloadFrom};
use super::table::WORKLOAD;
use kdl::KdlValue;
use std::path::PathBuf;

/// Archives keep their own owners, modes and contents.
const ARCHIVES: &[&str] = &[
    ".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2",
    ".tar.lz4", ".tlz4",
];

/// 4,294,967,295 is `(uid_t)-1`, which means "leave it" (chown(2)).
const ID_MAX: u32 = u32::MAX - 1;

/// Whether a workload's name is that of an archive, which is unpacked rather than placed.
pub fn is_archive(name: &str) -> bool {
    let lower = name.to_lowercase();
    ARCHIVES.iter().any(|ending| lower.ends_with(ending))
}

impl Decoder<'_> {
    pub fn workload(&self, setting: Setting<'_>) -> Option<Spanned<Workload>> {
        let source_text = setting.args().next().and_then(|_| self.text_arg(setting));
        let block = setting.node.children().map(|block| self.settings("workload", block, WORKLOAD));
        let block = block.unwrap_or_default();
        let source = self.workload_source(setting, &block);
        let to_text = self.needed_prop(setting, "to", "workload \"./app\" to=\"/app\"");
        let to = to_text.as_ref().and_then(|text| {
            let path = self.guest_path("`to` of a workload", text)?;
            // For a single file it says "into this directory".
            Some(if text.value.ends_with('/') && path != "/" { path + "/" } else { path })
        });
        let owner = match setting.prop("owner") {
            Some(_) => self.owner(setting),
            None => Some((0, 0)),
        };
        let keep_modes = match setting.prop("keep") {
            Some(_) => self
                .text_prop(setting, "keep")
                .and_then(|text| self.choice("`keep` of `workload`", &text, &["modes"]))
                .map(|_| true),
            None => Some(false),
        };
        let ignore = self.ignored(&block);
        let ignore_from = self.ignored_from(&block);
        let (archive, file) = match (&source, &source_text) {
            (Some(WorkloadFrom::Url(source)), _) => (is_archive(source.file_name()), true),
            (_, Some(text)) => {
                let path = self.dir.join(&text.value);
                (is_archive(&text.value) && !path.is_dir(), path.is_file())
            }
            _ => (false, false),
        };
        if archive {
            self.only_for_directories(setting, "an archive", &["owner", "keep"]);
        } else if file {
            self.only_for_directories(setting, "a single file", &["keep"]);
        }
        Some(Spanned {
            value: Workload {
                source: source?,
                to: to?,
                owner: owner?,
                keep_modes: keep_modes?,
                ignore: ignore?,
                ignore_from: ignore_from?,
            },
            span: to_text?.span,
        })
    }

    /// A path, or the `url` in the block.
    fn workload_source(&self, setting: Setting<'_>, block: &[Setting<'_>]) -> Option<WorkloadFrom> {
        let urls: Vec<_> = block.iter().copied().filter(|s| s.name() == "url").collect();
        match (setting.args().next(), urls.as_slice()) {
            (Some(_), []) => {
                let text = self.text_arg(setting)?;
                self.host_path("a workload's path", &text, false).map(WorkloadFrom::Path)
            }
            (None, [url]) => self.url_source(*url).map(WorkloadFrom::Url),
            (Some(path), [url, ..]) => self.report(
                Problem::new(
                    "manifest.two-sources",
                    url.span(),
                    "another source",
                    "`workload` has a path and a `url`".to_owned(),
                )
                .also(self.entry_span(path), "one source")
                .help("keep one of them"),
            ),
            (None, _) => self.report(
                Problem::new(
                    "manifest.missing-argument",
                    setting.span(),
                    "needs a path",
                    "`workload` does not say what is placed".to_owned(),
                )
                .help("write a path in the project behind it, in quotes, or a `url` in its block"),
            ),
        }
    }

    fn ignored(&self, block: &[Setting<'_>]) -> Option<Vec<String>> {
        let mut patterns = Some(vec![]);
        for ignore in block.iter().filter(|s| s.name() == "ignore") {
            for entry in ignore.args() {
                let text = self.text_of("a pattern of `ignore`", entry);
                let text = text.and_then(|text| {
                    let parsed = pattern(&text.value);
                    self.checked("manifest.bad-pattern", &text.span, parsed).map(|()| text.value)
                });
                patterns = patterns.zip(text).map(|(mut all, one)| {
                    all.push(one);
                    all
                });
            }
        }
        patterns
    }

    /// The pattern file, if there is one.
    fn ignored_from(&self, block: &[Setting<'_>]) -> Option<Option<PathBuf>> {
        let mut found: Option<Option<(PathBuf, std::ops::Range<usize>)>> = Some(None);
        for ignore in block.iter().filter(|s| s.name() == "ignore") {
            let Some(entry) = ignore.prop("from") else {
                if ignore.args().next().is_none() {
                    self.report::<()>(
                        Problem::new(
                            "manifest.missing-argument",
                            ignore.span(),
                            "ignores nothing",
                            "`ignore` needs patterns, or a file of them",
                        )
                        .help("write patterns behind it, as in `ignore \"*.log\"`, or `ignore from=\".gitignore\"`"),
                    );
                }
                continue;
            };
            let span = self.entry_span(entry);
            let path = self.text_prop(*ignore, "from").and_then(|text| {
                let docker = text.value.rsplit('/').next() == Some(".dockerignore");
                let parsed = match docker {
                    true => Err(Wrong::new(
                        "of Docker",
                        "the patterns of a .dockerignore mean something else than git's".to_owned(),
                        "copy them into `ignore \"…\"`, each with a slash before it where only the top is meant",
                    )),
                    false => Ok(()),
                };
                self.checked("manifest.bad-pattern", &text.span, parsed)?;
                self.host_path("`from` of `ignore`", &text, false)
            });
            if let Some(Some((_, first))) = &found {
                self.report::<()>(
                    Problem::new("manifest.duplicate-node", span.clone(), "again", "`ignore` has two files")
                        .also(first.clone(), "first here")
                        .help("keep one: files of its name further down count by themselves"),
                );
                continue;
            }
            found = path.map(|path| Some((path, span)));
        }
        Some(found?.map(|(path, _)| path))
    }

    fn only_for_directories(&self, setting: Setting<'_>, what: &str, props: &[&str]) {
        let report = |span, name: &str| {
            self.report::<()>(
                Problem::new("manifest.unused-property", span, "has no use", format!("{what} has no `{name}`"))
                    .help(match what {
                        "an archive" => "archives keep their own contents, owners and modes: remove it, or unpack the archive into a directory",
                        _ => "remove it",
                    }),
            );
        };
        for name in props {
            if let Some(entry) = setting.prop(name) {
                report(self.entry_span(entry), name);
            }
        }
        if let Some(ignore) = setting.node.children().and_then(|block| block.get("ignore")) {
            report(super::decode::name_span(ignore), "ignore");
        }
    }

    fn owner(&self, setting: Setting<'_>) -> Option<(u32, u32)> {
        let entry = setting.prop("owner")?;
        let text = match entry.value() {
            KdlValue::Integer(n) => Spanned { value: n.to_string(), span: self.entry_span(entry) },
            _ => self.text_prop(setting, "owner")?,
        };
        let parsed = ids(&text.value).ok_or_else(|| {
            Wrong::new(
                "not numeric",
                format!("{:?} is not an owner", text.value),
                "an owner is uid:gid in numbers, such as \"1000:1000\": names belong to the guest, where they may differ",
            )
        });
        self.checked("manifest.bad-owner", &text.span, parsed)
    }

    pub fn user(&self, setting: Setting<'_>) -> Option<User> {
        let entry = setting.args().next()?;
        let text = match entry.value() {
            KdlValue::Integer(n) => Spanned { value: n.to_string(), span: self.entry_span(entry) },
            _ => self.text_of("`user`", entry)?,
        };
        self.checked("manifest.bad-user", &text.span, user(&text.value))
    }
}

/// `uid` or `uid:gid`; the gid equals the uid unless set.
fn ids(text: &str) -> Option<(u32, u32)> {
    let id = |s: &str| s.parse().ok().filter(|n| *n <= ID_MAX && s.bytes().all(|b| b.is_ascii_digit()));
    match text.split_once(':') {
        Some((uid, gid)) => Some((id(uid)?, id(gid)?)),
        None => id(text).map(|n| (n, n)),
    }
}

fn user(text: &str) -> Result<User, Wrong> {
    if let Some((uid, gid)) = ids(text) {
        return Ok(User::Id { uid, gid });
    }
    // As useradd(8) allows them.
    let name = text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-'));
    if name {
        return Ok(User::Name(text.to_owned()));
    }
    let help = match text.split_once(':') {
        Some((first, _)) if first.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            "a user by name brings the groups of that name: write the name alone, or uid:gid in numbers"
                .to_owned()
        }
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            format!("ids are numbers from 0 to {ID_MAX}: \"1000\" or \"1000:1000\"")
        }
        _ => "a user is a name of a-z, 0-9, `_` and `-`, or uid, or uid:gid".to_owned(),
    };
    Err(Wrong::new("not a user", format!("{text:?} is not a user"), help))
}

fn pattern(text: &str) -> Result<(), Wrong> {
    let bad = |why: String| {
        Wrong::new(
            "not a pattern",
            format!("{text:?} cannot be a pattern: {why}"),
            "patterns are those of a .gitignore file, one in each pair of quotes",
        )
    };
    if text.trim().is_empty() || text.contains('\n') {
        return Err(bad("it is not one line with text".to_owned()));
    }
    let mut builder = ignore::gitignore::GitignoreBuilder::new("/");
    builder.add_line(None, text).map(|_| ()).map_err(|e| bad(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_names_or_numbers() {
        assert_eq!(user("app"), Ok(User::Name("app".to_owned())));
        assert_eq!(user("1000"), Ok(User::Id { uid: 1000, gid: 1000 }));
        assert_eq!(user("1000:7"), Ok(User::Id { uid: 1000, gid: 7 }));
        for bad in ["", "a:b", "1:", ":1", "1:2:3", "-1", "4294967295", "App", "a b", "+1", "1000:staff"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_are_those_of_git() {
        for good in ["*.pyc", "/build/", "!keep.me", "**/x"] {
            assert_eq!(pattern(good), Ok(()), "{good}");
        }
        for bad in ["", "a\\", "a\nb"] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }
}
