//! `debian`: packages, exact versions, a suite and sources of their own.

use super::decode::{Decoder, Setting, Spanned, Wrong};
use super::diagnostic::Problem;
use super::table::{Block, DEBIAN};
use crate::packages::{self, PackageSet, PackageSource, Wanted};
use kdl::KdlEntry;
use std::collections::BTreeMap;
use std::ops::Range;

impl Decoder<'_> {
    /// The packages of a `debian`, without those that every image has.
    pub fn package_set(&self, setting: Setting<'_>) -> Option<PackageSet> {
        debug_assert!(matches!(setting.def.block, Block::Nodes(_)));
        let mut spans: BTreeMap<String, Range<usize>> = BTreeMap::new();
        let mut set = PackageSet::default();
        let mut whole = true;
        for entry in setting.args() {
            let Some(package) = self.package(entry) else {
                whole = false;
                continue;
            };
            let name = package.value.name.clone();
            if let Some(before) = spans.get(&name) {
                self.report::<()>(
                    Problem::new(
                        "manifest.duplicate-value",
                        package.span.clone(),
                        "named again",
                        format!("the package {name:?} is named twice"),
                    )
                    .also(before.clone(), "first named here")
                    .help("keep one of them"),
                );
            } else {
                spans.insert(name, package.span);
                set.packages.push(package.value);
            }
        }
        set.packages.sort();
        if setting.prop("suite").is_some() {
            set.suite = self.suite(self.text_prop(setting, "suite")?).map(|suite| suite.value);
        }
        set.scripts = setting.prop("scripts").is_some_and(|entry| entry.value().as_bool() == Some(true));
        if let Some(block) = setting.node.children() {
            for source in self.settings("debian", block, DEBIAN) {
                let read = self.package_source(source);
                let known = read.as_ref().is_some_and(|read| {
                    set.sources.iter().any(|seen| (&seen.url, &seen.suite) == (&read.url, &read.suite))
                });
                if known {
                    self.report::<()>(
                        Problem::new(
                            "manifest.duplicate-value",
                            source.span(),
                            "named again",
                            "this suite of this source is named twice",
                        )
                        .help("keep one of them, with the components of both"),
                    );
                }
                whole &= read.is_some();
                set.sources.extend(read);
            }
            if block.nodes().is_empty() {
                return self.report(
                    Problem::new(
                        "manifest.missing-source",
                        setting.span(),
                        "no source",
                        "the block of `debian` names no package source",
                    )
                    .help("remove it to use the host's sources, or write `source \"http://...\" \"jammy\" \"main\" keyring=\"...\"` in it"),
                );
            }
        }
        whole.then_some(set)
    }

    /// A line of sources.list with its keyring.
    fn package_source(&self, setting: Setting<'_>) -> Option<PackageSource> {
        let mut args = setting.args();
        let url = self.text_of("the address of `source`", args.next()?);
        let suite = args.next().and_then(|entry| self.text_of("the suite of `source`", entry));
        let components: Vec<_> = args.map(|entry| self.text_of("a component of `source`", entry)).collect();
        let keyring = self.needed_prop(
            setting,
            "keyring",
            "keyring=\"/usr/share/keyrings/ubuntu-archive-keyring.gpg\"",
        );
        let keyring = keyring.and_then(|text| {
            let path = self.host_path("the keyring", &text, true)?;
            Some(path.to_str()?.to_owned())
        });
        let url = url.and_then(|mut url| {
            while url.value.ends_with('/') && url.value.len() > 1 {
                url.value.pop();
            }
            let wrong = || {
                let message = format!("{:?} is not the address of a package source", url.value);
                let help = if url.value.contains('@') {
                    "an address holds no name or password: write them in /etc/apt/auth.conf.d (apt_auth.conf(5))"
                } else {
                    "it starts with http://, https:// or file:/, and holds no white space"
                };
                Err(Wrong::new("not an address", message, help))
            };
            let good = if packages::is_archive_url(&url.value) { Ok(()) } else { wrong() };
            self.checked("manifest.bad-source", &url.span, good)?;
            Some(url.value)
        });
        let components: Option<Vec<Spanned<String>>> = components.into_iter().collect();
        let (suite, components) = (suite?, components?);
        let source = PackageSource {
            url: url?,
            suite: suite.value,
            components: components.into_iter().map(|c| c.value).collect(),
            keyring: keyring?,
        };
        let checked = source.check().map_err(|why| {
            let help = "write it as in sources.list: the address, a suite such as \"jammy\", and components such as \"main\" \"universe\"";
            Wrong::new("not a source", why, help)
        });
        self.checked("manifest.bad-source", &setting.span(), checked)?;
        Some(source)
    }

    fn suite(&self, text: Spanned<String>) -> Option<Spanned<String>> {
        if packages::is_suite(&text.value) {
            return Some(text);
        }
        let message = format!("{:?} is not the name of a suite", text.value);
        let help = "name a suite or codename of the sources, such as \"bookworm-backports\"";
        self.checked("manifest.bad-suite", &text.span, Err(Wrong::new("not a suite", message, help)))
    }

    /// A Debian package's name (Debian policy 5.6.1), with a version or without.
    fn package(&self, entry: &KdlEntry) -> Option<Spanned<Wanted>> {
        let text = self.text_of("a package", entry)?;
        let wanted = Wanted::parse(&text.value);
        let good_name = wanted.name.len() >= 2 && packages::is_package_name(&wanted.name);
        if good_name && wanted.version.as_deref().is_none_or(packages::is_version) {
            return Some(Spanned { value: wanted, span: text.span });
        }
        let help = if good_name {
            "behind `=` stands a whole version as apt names it, such as \"curl=7.88.1-10+deb12u8\""
        } else if text.value.contains(':') {
            "write the bare name: everything is amd64"
        } else if text.value.contains('/') {
            "write the bare name; `suite=\"...\"` of `debian` chooses the suite for all of them"
        } else if text.value.contains(char::is_whitespace) {
            "write each package in quotes of its own"
        } else {
            "a package's name has at least two of a-z, 0-9, `+`, `-` and `.`, and starts with a letter or digit"
        };
        let message = format!("{:?} is not the name of a Debian package", text.value);
        self.checked("manifest.bad-package", &text.span, Err(Wrong::new("not a package", message, help)))
    }
}
