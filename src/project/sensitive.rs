//! Files of a workload that look like secrets, by their names: whoever boots the image can read them, and whoever gets
//! it. Told once, until another one appears.

use crate::listing::{ListedKind, Listing};
use crate::replace;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

/// The file in a project's state that says what was told. No name of a VM has a dot.
const TOLD: &str = "told-secrets.json";
/// Of a file that may or may not hold a key, at most this much is looked at.
const LOOK: u64 = 64 << 10;
/// At most so many files are looked into: a tree of certificates must not cost time.
const LOOKS: usize = 64;

/// Names that hold nothing but secrets.
const NAMES: &[&str] = &[
    ".env",
    ".envrc",
    ".netrc",
    ".pgpass",
    ".pypirc",
    ".git-credentials",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "credentials.json",
    "service-account.json",
];
/// Likewise, with the directory they are in.
const PLACES: &[&str] = &[".aws/credentials", ".docker/config.json", ".kube/config", ".config/gcloud"];
/// `.env.example` and its like are meant to be shared.
const SHARED: &[&str] = &["example", "sample", "template", "dist", "defaults", "test"];

/// Paths in a listing that look like secrets. `root` is the scanned directory.
pub(super) fn find(listing: &Listing, root: &Path) -> Vec<String> {
    let mut looks = 0;
    let mut holds = |path: &str, words: &[&str]| {
        looks += 1;
        let mut text = Vec::new();
        let mut read = || std::fs::File::open(root.join(path))?.take(LOOK).read_to_end(&mut text);
        looks <= LOOKS && read().is_ok() && {
            let text = String::from_utf8_lossy(&text);
            words.iter().any(|word| text.contains(word))
        }
    };
    let files = listing.entries.iter().filter(|entry| matches!(entry.kind, ListedKind::File { .. }));
    let mut found = Vec::new();
    for entry in files {
        let path = entry.path.as_str();
        let name = path.rsplit('/').next().unwrap_or_default();
        let place = |place: &&&str| {
            path == **place || path.strip_suffix(**place).is_some_and(|before| before.ends_with('/'))
        };
        let secret = NAMES.contains(&name)
            || is_environment(name)
            || PLACES.iter().any(|p| place(&p))
            || ([".pem", ".key"].iter().any(|end| name.ends_with(end)) && holds(path, &["PRIVATE KEY"]))
            || ([".p12", ".pfx", ".jks", ".kdbx"].iter().any(|end| name.ends_with(end)))
            || (name == ".npmrc" && holds(path, &["_authToken", "_auth=", "_password"]));
        if secret {
            found.push(path.to_owned());
        }
    }
    found
}

/// `.env.production`, but not `.env.example`.
fn is_environment(name: &str) -> bool {
    name.strip_prefix(".env.").is_some_and(|kind| !SHARED.iter().any(|shared| kind.contains(shared)))
}

/// What a command writes down of what it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remember {
    /// Nothing: it tells everything, each time.
    Nothing,
    /// What it found beside what was found before: it looks at a part of the project.
    More,
    /// What it found alone: what is gone would be told again.
    All,
}

/// What of `found` is to be told now.
pub(super) fn news(state: &Path, mut found: BTreeSet<String>, remember: Remember) -> Vec<String> {
    if remember == Remember::Nothing {
        return found.into_iter().collect();
    }
    let path = state.join(TOLD);
    let told = replace::read(&path).ok().flatten().and_then(|text| serde_json::from_slice(&text).ok());
    let told: BTreeSet<String> = told.unwrap_or_default();
    let new = found.difference(&told).cloned().collect();
    if remember == Remember::More {
        found.extend(told.iter().cloned());
    }
    if told != found && state.is_dir() {
        // What cannot be remembered is told again.
        let _ = serde_json::to_vec(&found).map(|text| replace::replace(&path, &text));
    }
    new
}

/// The warning about some files of a workload.
pub(super) fn warning(new: &[String]) -> String {
    let shown = new.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match new.len().saturating_sub(5) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let first = new.first().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    format!(
        "{shown}{more}: looks like a secret, and is copied into the image; leave it out with `ignore \"{first}\"` in \
         the workload's block, and pass values with `secret`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scan::{ScanOptions, scan_dir};
    use crate::store::testing::scratch;

    #[test]
    fn files_that_hold_secrets_are_found_by_name_and_keys_by_what_is_in_them() {
        let s = scratch();
        let root = s.dir.path().join("app");
        let key = "-----BEGIN EC PRIVATE KEY-----\n";
        let secret = [
            (".env", ""),
            ("api/.env.production", ""),
            ("deploy/id_rsa", ""),
            ("tls/server.pem", key),
            ("tls/server.key", key),
            (".npmrc", "//registry/:_authToken=abc"),
            ("home/.aws/credentials", ""),
            (".docker/config.json", ""),
            ("store.p12", ""),
        ];
        let harmless = [
            (".env.example", ""),
            ("id_rsa.pub", ""),
            ("tls/ca.pem", "-----BEGIN CERTIFICATE-----\n"),
            ("slides.key", "zip"),
            ("web/.npmrc", "registry=https://registry.example"),
            ("config.json", ""),
            ("environment.py", ""),
        ];
        for (path, text) in secret.iter().chain(&harmless) {
            let path = root.join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        let listing = scan_dir(&s.store, &root, &ScanOptions::default()).unwrap().listing;
        let mut expected: Vec<&str> = secret.iter().map(|(path, _)| *path).collect();
        expected.sort_unstable();
        let mut found = find(&listing, &root);
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let set = |paths: &[&str]| paths.iter().map(|p| (*p).to_owned()).collect::<BTreeSet<_>>();
        let say = |paths: &[&str], remember| {
            let remember = if remember { Remember::All } else { Remember::Nothing };
            news(dir.path(), set(paths), remember)
        };
        assert_eq!(say(&["a"], false), ["a"]);
        assert_eq!(say(&["a"], true), ["a"], "a plan remembers nothing");
        assert!(say(&["a"], true).is_empty());
        assert_eq!(say(&["a"], false), ["a"], "a plan tells it each time");
        // Of one VM, which is not the one that has the first.
        assert_eq!(news(dir.path(), set(&["c"]), Remember::More), ["c"]);
        assert!(news(dir.path(), set(&["c"]), Remember::More).is_empty());
        assert!(say(&["a", "c"], true).is_empty(), "what others have is not forgotten");
        assert_eq!(say(&["a", "b"], true), ["b"]);
        assert!(say(&[], true).is_empty());
        assert_eq!(say(&["a"], true), ["a"], "it came back");
        let text = warning(&say(&["./app/.env", "x/id_rsa"], false));
        assert!(text.contains("./app/.env, x/id_rsa") && text.contains("`ignore \".env\"`"), "{text}");
    }
}
