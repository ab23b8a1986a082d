//! Debian packages as a manifest asks for them: names, versions, suite, sources. What it may hold is decided here,
//! for the manifest and for the lock.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Packages, and what decides which versions of them are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PackageSet {
    /// Sorted by name, each name once.
    pub packages: Vec<Wanted>,
    /// What is preferred to all else, with what it depends on, as `apt-get -t` does: a suite or codename.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// Where the packages come from; the host's own sources if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<PackageSource>,
    /// Whether the packages' maintainer scripts run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub scripts: bool,
}

/// One package by name, of any or of one exact version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its version, epoch included.
    pub version: Option<String>,
}

/// A suite of an archive, as a line of sources.list(5) names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageSource {
    /// `http://`, `https://` or `file:/`, without a trailing `/`.
    pub url: String,
    /// Such as `jammy-updates`; with a trailing `/` the path of a flat archive, which has no components.
    pub suite: String,
    /// Such as `main`, in the order of the manifest.
    pub components: Vec<String>,
    /// The file that holds the keys of whoever signs it: as written, relative to the manifest, or absolute.
    pub keyring: String,
}

impl PackageSet {
    /// These packages, of any version, from the host's sources.
    pub fn of<S: Into<String>>(names: impl IntoIterator<Item = S>) -> PackageSet {
        let wanted = |name: S| Wanted { name: name.into(), version: None };
        let mut packages: Vec<Wanted> = names.into_iter().map(wanted).collect();
        packages.sort();
        packages.dedup();
        PackageSet { packages, ..PackageSet::default() }
    }

    /// Adds a package, unless it is there in whatever version.
    pub fn add(&mut self, name: &str) {
        if let Err(at) = self.packages.binary_search_by(|wanted| wanted.name.as_str().cmp(name)) {
            self.packages.insert(at, Wanted { name: name.to_owned(), version: None });
        }
    }

    /// The packages' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.packages.iter().map(|wanted| wanted.name.as_str())
    }

    /// Whether everything holds what it may, and is in order.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        for wanted in &self.packages {
            if !is_package_name(&wanted.name) {
                return Err(format!("{:?} is no Debian package name", wanted.name));
            }
            if let Some(version) = wanted.version.as_deref().filter(|version| !is_version(version)) {
                return Err(format!("{version:?} is no version"));
            }
        }
        if self.packages.windows(2).any(|pair| pair[0].name >= pair[1].name) {
            return Err("its names are not sorted, or one is there twice".to_owned());
        }
        if let Some(suite) = self.suite.as_deref().filter(|suite| !is_suite(suite)) {
            return Err(format!("{suite:?} is no suite"));
        }
        self.sources.iter().try_for_each(PackageSource::check)
    }
}

impl PackageSource {
    /// Whether every field holds what it may.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        if !is_archive_url(&self.url) {
            return Err(format!("{:?} is no address of an archive", self.url));
        }
        let flat = self.suite.strip_suffix('/');
        if !flat.map_or_else(|| is_suite(&self.suite), |path| path == "." || path.split('/').all(is_suite)) {
            return Err(format!("{:?} is no suite", self.suite));
        }
        if flat.is_some() != self.components.is_empty() {
            return Err(match flat {
                Some(_) => format!("{:?} is a path in a flat archive, which has no components", self.suite),
                None => format!("the suite {:?} needs components, such as \"main\"", self.suite),
            });
        }
        if let Some(bad) = self.components.iter().find(|c| !c.split('/').all(is_suite)) {
            return Err(format!("{bad:?} is no component"));
        }
        let twice =
            (1..self.components.len()).find(|&at| self.components[..at].contains(&self.components[at]));
        if let Some(again) = twice.map(|at| &self.components[at]) {
            return Err(format!("the component {again:?} is named twice"));
        }
        if self.keyring.is_empty() || self.keyring.chars().any(|c| c.is_control() || matches!(c, '"' | '\\'))
        {
            return Err(format!("{:?} is no path of a keyring", self.keyring));
        }
        Ok(())
    }
}

impl Wanted {
    /// Reads `name` or `name=version`, without checking either.
    pub fn parse(text: &str) -> Wanted {
        match text.split_once('=') {
            Some((name, version)) => Wanted { name: name.to_owned(), version: Some(version.to_owned()) },
            None => Wanted { name: text.to_owned(), version: None },
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}={version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl From<Wanted> for String {
    fn from(wanted: Wanted) -> String {
        wanted.to_string()
    }
}

/// What every image out of Debian packages has.
pub const BASE_PACKAGES: &[&str] = &["base-files", "base-passwd", "dash", "bash", "coreutils", "libc-bin"];

impl fmt::Display for PackageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Those that every image has go without saying.
        let base = |name: &str| self.packages.iter().any(|w| w.name == name && w.version.is_none());
        let has_base = BASE_PACKAGES.iter().all(|name| base(name));
        let plain = |wanted: &&Wanted| {
            !has_base || wanted.version.is_some() || !BASE_PACKAGES.contains(&wanted.name.as_str())
        };
        let mut chosen = self.packages.iter().filter(plain).peekable();
        if chosen.peek().is_none() {
            f.write_str("base packages")?;
        }
        for (at, wanted) in chosen.enumerate() {
            write!(f, "{}{wanted}", if at == 0 { "" } else { " " })?;
        }
        if let Some(suite) = &self.suite {
            write!(f, " (suite {suite})")?;
        }
        for source in &self.sources {
            write!(f, " ({} {})", source.url, source.suite)?;
        }
        if self.scripts { f.write_str(" (scripts)") } else { Ok(()) }
    }
}

/// Debian policy 5.6.1, without the minimum length.
pub fn is_package_name(name: &str) -> bool {
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.bytes().next().is_some_and(lower) && name.bytes().all(|b| lower(b) || b"+-.".contains(&b))
}

/// deb-version(7).
pub fn is_version(version: &str) -> bool {
    version.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-:~".contains(&b))
}

/// What suites, codenames and components are made of.
pub fn is_suite(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-_~".contains(&b))
}

/// An address that a sources file can hold. The schemes are those that need no other program's configuration.
pub fn is_archive_url(url: &str) -> bool {
    let rest = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let rest = rest.or_else(|| url.strip_prefix("file:").filter(|path| path.starts_with('/')));
    rest.is_some_and(|rest| {
        // Names and passwords in addresses would end in the lock; apt_auth.conf(5) is the place for them.
        !rest.is_empty()
            && !rest.ends_with('/')
            && rest.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\<>[]{}|^`@?#$()".contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> PackageSource {
        PackageSource {
            url: "http://archive.example.org/ubuntu".into(),
            suite: "jammy".into(),
            components: vec!["main".into(), "universe".into()],
            keyring: "./ubuntu.gpg".into(),
        }
    }

    #[test]
    fn what_a_sources_file_can_hold_is_taken() {
        source().check().unwrap();
        for url in ["https://a.example.org:8443/x~y/debian", "file:/srv/archive", "file:///srv/archive"] {
            PackageSource { url: url.into(), ..source() }.check().unwrap();
        }
        for suite in ["./", "stable/", "a/b/"] {
            PackageSource { suite: suite.into(), components: vec![], ..source() }.check().unwrap();
        }
        PackageSource { suite: "stable".into(), components: vec!["updates/main".into()], ..source() }
            .check()
            .unwrap();
    }

    #[test]
    fn what_could_end_a_line_or_add_an_option_is_refused() {
        type Set = fn(&mut PackageSource, String);
        let bad: [(&str, Set); 4] = [
            ("http:// http://x/ ftp://x/y cdrom:x http://x\ny http://u:p@x/y http://x/y/ file:x", |s, v| {
                s.url = v
            }),
            ("-x ../ a//b/ jammy\nTrusted:yes [trusted=yes]", |s, v| s.suite = v),
            ("-x main\nTrusted ../main", |s, v| s.components = vec![v]),
            ("a\nb a\"b", |s, v| s.keyring = v),
        ];
        for (values, set) in bad {
            for value in values.split(' ') {
                let mut one = source();
                set(&mut one, value.to_owned());
                assert!(one.check().is_err(), "{value:?}");
            }
        }
        assert!(PackageSource { components: vec![], ..source() }.check().is_err());
        assert!(PackageSource { suite: "./".into(), ..source() }.check().is_err());
        assert!(
            PackageSource { components: vec!["main".into(), "main".into()], ..source() }.check().is_err()
        );
    }

    #[test]
    fn a_set_says_what_distinguishes_it() {
        let mut set = PackageSet::of(["nginx", "curl"]);
        set.packages[0] = Wanted::parse("curl=7.88.1-10+deb12u8");
        set.add("curl");
        set.add("dash");
        set.suite = Some("bookworm-backports".into());
        set.check().unwrap();
        assert_eq!(set.to_string(), "curl=7.88.1-10+deb12u8 dash nginx (suite bookworm-backports)");
    }
}
