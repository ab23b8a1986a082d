//! What differs between two listings, for people: `app/server.py b3:41ab… → b3:77d0…`.

use super::{Listed, ListedKind, Listing};
use std::cmp::Ordering;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Relative to the root.
    pub path: String,
    /// What happened to it.
    pub kind: ChangeKind,
    /// What it was: a short digest, `directory` or `-> target`, with the mode if only that changed.
    pub old: Option<String>,
    /// What it is, likewise.
    pub new: Option<String>,
}

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Only the new listing has it.
    Added,
    /// Only the old listing has it.
    Removed,
    /// Contents, kind, mode or target differ.
    Changed,
}

impl Listing {
    /// The differences from `old` to `new`, in path order.
    pub fn diff(old: &Listing, new: &Listing) -> Vec<Change> {
        let mut changes = Vec::new();
        let (mut old, mut new) = (old.entries.iter().peekable(), new.entries.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.path.cmp(&b.path),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            changes.extend(change(before, after));
        }
    }
}

fn change(before: Option<&Listed>, after: Option<&Listed>) -> Option<Change> {
    let path = after.or(before)?.path.clone();
    let (kind, old, new) = match (before, after) {
        (Some(a), Some(b)) if a == b => return None,
        (Some(a), Some(b)) if a.kind == b.kind => {
            let with_mode = |entry: &Listed| format!("{} {:04o}", describe(entry), entry.mode);
            (ChangeKind::Changed, Some(with_mode(a)), Some(with_mode(b)))
        }
        (Some(a), Some(b)) => (ChangeKind::Changed, Some(describe(a)), Some(describe(b))),
        (Some(a), None) => (ChangeKind::Removed, Some(describe(a)), None),
        (None, b) => (ChangeKind::Added, None, b.map(describe)),
    };
    Some(Change { path, kind, old, new })
}

fn describe(entry: &Listed) -> String {
    match &entry.kind {
        ListedKind::Dir => "directory".to_owned(),
        ListedKind::File { digest, .. } => digest.short(),
        ListedKind::Symlink { target } => format!("-> {target}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ObjectDigest;

    fn file(path: &str, mode: u16, content: &[u8]) -> Listed {
        let digest = ObjectDigest::from(blake3::hash(content));
        Listed { path: path.to_owned(), mode, kind: ListedKind::File { size: content.len() as u64, digest } }
    }

    #[test]
    fn equal_listings_have_no_differences() {
        let listing = Listing { entries: vec![file("a", 0o644, b"x")] };
        assert_eq!(Listing::diff(&listing, &listing), []);
    }

    #[test]
    fn each_kind_of_difference_is_told() {
        let dir = Listed { path: "d".into(), mode: 0o755, kind: ListedKind::Dir };
        let link = Listed { path: "d".into(), mode: 0o777, kind: ListedKind::Symlink { target: "a".into() } };
        let old = Listing {
            entries: vec![file("a", 0o644, b"x"), file("b", 0o644, b"x"), file("c", 0o644, b"x"), dir],
        };
        let new = Listing {
            entries: vec![file("a0", 0o644, b"y"), file("b", 0o755, b"x"), file("c", 0o644, b"z"), link],
        };
        let short = |content: &[u8]| ObjectDigest::from(blake3::hash(content)).short();
        let change = |path: &str, kind, old: Option<String>, new: Option<String>| Change {
            path: path.into(),
            kind,
            old,
            new,
        };
        let expected = [
            change("a", ChangeKind::Removed, Some(short(b"x")), None),
            change("a0", ChangeKind::Added, None, Some(short(b"y"))),
            change(
                "b",
                ChangeKind::Changed,
                Some(format!("{} 0644", short(b"x"))),
                Some(format!("{} 0755", short(b"x"))),
            ),
            change("c", ChangeKind::Changed, Some(short(b"x")), Some(short(b"z"))),
            change("d", ChangeKind::Changed, Some("directory".into()), Some("-> a".into())),
        ];
        assert_eq!(Listing::diff(&old, &new), expected);
    }
}
