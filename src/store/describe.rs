//! Puts a record into words: what its step was about, read from its inputs.

use super::Action;
use std::io::Read;
use std::path::Path;

/// At most this many names; the rest are counted.
const NAMED: usize = 2;

/// What a step was about, in a few words, such as `python3` or `./app`; empty if its record does not say.
pub(super) fn subject(action: &Action) -> String {
    if !action.subject.is_empty() {
        return action.subject.clone();
    }
    // What is no step of the graph, or was written by an older version.
    let inputs = || action.inputs.iter();
    let after = |prefix: &str| inputs().find_map(|(name, _)| name.strip_prefix(prefix).map(str::to_owned));
    let value = |wanted: &str| inputs().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let found = match action.kind.as_str() {
        "deb" => value("package"),
        "image" => after("fetch image "),
        "initramfs" => after("fetch kernel "),
        "unpack" => Some(listed(inputs().filter_map(|(name, _)| name.strip_suffix(" to")))),
        "init" => value("hostname").map(|name| name.trim_matches('"').to_owned()),
        kind if kind.starts_with("fetch") => Some(listed(inputs().map(|(name, _)| name.as_str()))),
        _ => inputs().next().map(|(_, value)| value.clone()),
    };
    found.unwrap_or_default()
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.len() {
        0..=NAMED => names.join(", "),
        n => format!("{} and {} more", names[..NAMED].join(", "), n - NAMED),
    }
}

/// The runs of exactly 64 hexadecimal digits in a text: BLAKE3 and SHA-256 digests.
pub(super) fn digests(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !matches!(c, '0'..='9' | 'a'..='f')).filter(|run| run.len() == 64)
}

/// Whether a file is the listing of a workload.
pub(super) fn is_listing(path: &Path) -> bool {
    let mut start = [0; 8];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && crate::listing::Listing::starts(&start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ObjectDigest;

    fn about(kind: &str, inputs: &[(&str, &str)]) -> String {
        let inputs = inputs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        subject(&Action {
            kind: kind.into(),
            output: ObjectDigest::new([0; 32]),
            inputs,
            millis: 0,
            subject: String::new(),
        })
    }

    #[test]
    fn a_record_says_what_it_was_about() {
        assert_eq!(about("deb", &[("package", "dash 0.5 amd64"), ("sha256", "x")]), "dash 0.5 amd64");
        assert_eq!(about("image", &[("image writer", "1"), ("fetch image python3", "x")]), "python3");
        assert_eq!(
            about("initramfs", &[("guest init", "x"), ("fetch kernel linux-image", "x")]),
            "linux-image"
        );
        assert_eq!(about("unpack", &[("./app to", "/app"), ("./app", "x"), ("image python3", "x")]), "./app");
        assert_eq!(about("init", &[("argv", "[]"), ("hostname", "\"web\"")]), "web");
        let debs = [("bash", "1"), ("coreutils", "1"), ("dash", "1"), ("libc6", "1")];
        assert_eq!(about("fetch image", &debs), "bash, coreutils and 2 more");
        assert_eq!(about("image", &[]), "");
        let named = Action {
            subject: "app".into(),
            kind: "unpack".into(),
            output: ObjectDigest::new([0; 32]),
            inputs: vec![],
            millis: 0,
        };
        assert_eq!(subject(&named), "app");
    }

    #[test]
    fn digests_are_found_in_any_text() {
        let (a, b) = ("a".repeat(64), "0".repeat(64));
        let text = format!("sha256:{a} {{\"x\":\"{b}\"}} {}", "a".repeat(65));
        assert_eq!(digests(&text).collect::<Vec<_>>(), [&a, &b]);
    }
}
