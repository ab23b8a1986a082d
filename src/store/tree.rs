//! The digest of a published tree: BLAKE3 over a canonical, length-prefixed listing of what it holds.

use super::hash::hash_sealed;
use crate::digest::{FieldHasher, ObjectDigest};
use crate::error::{Context, Error, Result};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What happens to each entry while the digest is made.
pub(super) enum Visit<'a> {
    /// A regular file, open, before it is hashed.
    File(&'a Path, &'a File, &'a std::fs::Metadata),
    /// A directory, after all that it holds.
    Dir(&'a Path),
}

/// The digest of the tree at `root`: paths, kinds, executable bits, sizes, contents and link targets count;
/// owners, times and other mode bits do not. Hard links are just files. Fails on sockets, pipes and devices.
pub fn tree_digest(root: &Path) -> Result<ObjectDigest> {
    digest_with(root, &mut |_| Ok(()))
}

pub(super) fn digest_with(
    root: &Path,
    visit: &mut dyn FnMut(Visit<'_>) -> std::io::Result<()>,
) -> Result<ObjectDigest> {
    let mut hasher = FieldHasher::new("firegopher tree v1");
    let mut dirs = Vec::new();
    let mut buffer = Vec::new();
    // By name within each directory, so a parent comes before its children: a fixed order is all it takes.
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.or_failed("store.io", || format!("cannot read the tree {}", root.display()))?;
        let path = entry.path();
        let failed = || format!("cannot read {}", path.display());
        let name = path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes();
        let kind = entry.file_type();
        if kind.is_dir() {
            dirs.push(path.to_owned());
            hasher.field("dir").field(name);
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path).or_failed("store.io", failed)?;
            hasher.field("symlink").field(name).field(target.as_os_str().as_bytes());
        } else if kind.is_file() {
            let mut file = File::options()
                .read(true)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(path)
                .or_failed("store.io", failed)?;
            let meta = file.metadata().or_failed("store.io", failed)?;
            visit(Visit::File(path, &file, &meta))
                .map_err(|e| super::write_failed(format_args!("sealing {}", path.display()), e))?;
            let (size, digest) = hash_sealed(&mut file, meta.len(), meta.blocks(), &mut buffer)
                .or_failed("store.io", failed)?;
            let kind = if meta.mode() & 0o100 != 0 { "executable" } else { "file" };
            hasher.field(kind).field(name).field(size.to_le_bytes()).field(digest.as_bytes());
        } else {
            return Err(Error::failed(
                "store.special-file",
                format!(
                    "{} is neither file, directory nor symbolic link and cannot be published",
                    path.display()
                ),
            ));
        }
    }
    for dir in dirs.iter().rev() {
        visit(Visit::Dir(dir))
            .map_err(|e| super::write_failed(format_args!("sealing {}", dir.display()), e))?;
    }
    Ok(hasher.finish().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Debug, Clone, PartialEq)]
    enum Node {
        Dir,
        File(Vec<u8>, bool),
        Link(String),
    }

    type Tree = BTreeMap<String, Node>;

    fn node() -> impl Strategy<Value = Node> {
        prop_oneof![
            Just(Node::Dir),
            (prop::collection::vec(any::<u8>(), 0..4), any::<bool>()).prop_map(|(b, x)| Node::File(b, x)),
            "[ab]{1,2}".prop_map(Node::Link),
        ]
    }

    /// Few and short names, so that two random trees are often alike but for one thing.
    fn tree() -> impl Strategy<Value = Tree> {
        prop::collection::btree_map("[ab]{1,2}(/[ab]){0,2}", node(), 0..4).prop_map(|mut tree| {
            for path in tree.keys().cloned().collect::<Vec<_>>() {
                for (at, _) in path.match_indices('/') {
                    tree.insert(path[..at].to_owned(), Node::Dir);
                }
            }
            tree
        })
    }

    fn write(tree: &Tree, root: &Path) {
        for (path, node) in tree {
            let path = root.join(path);
            match node {
                Node::Dir => fs_err::create_dir_all(path).unwrap(),
                Node::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                Node::File(bytes, executable) => {
                    fs_err::write(&path, bytes).unwrap();
                    let mode = if *executable { 0o755 } else { 0o644 };
                    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
                }
            }
        }
    }

    fn digest(tree: &Tree) -> ObjectDigest {
        let dir = tempfile::tempdir().unwrap();
        write(tree, dir.path());
        tree_digest(dir.path()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn trees_have_one_digest_exactly_if_they_are_equal(a in tree(), b in tree()) {
            prop_assert_eq!(a == b, digest(&a) == digest(&b));
        }

        #[test]
        fn any_single_difference_changes_the_digest(tree in tree(), pick in any::<prop::sample::Index>(), bit in 0..4) {
            let Some(path) = (!tree.is_empty()).then(|| tree.keys().nth(pick.index(tree.len())).unwrap().clone())
            else { return Ok(()) };
            let mut other = tree.clone();
            match other.get_mut(&path).unwrap() {
                Node::File(bytes, _) if bit == 0 => bytes.push(0),
                Node::File(bytes, _) if bit == 1 && !bytes.is_empty() => bytes[0] ^= 1,
                Node::File(_, executable) => *executable = !*executable,
                Node::Link(target) => target.push('c'),
                Node::Dir => _ = other.insert("c".to_owned(), Node::Dir),
            }
            prop_assert_ne!(digest(&tree), digest(&other));
        }
    }

    #[test]
    fn times_and_owners_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs_err::write(&path, "x").unwrap();
        let before = tree_digest(dir.path()).unwrap();
        File::open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        assert_eq!(tree_digest(dir.path()).unwrap(), before);
    }

    #[test]
    fn pipes_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = tree_digest(dir.path()).unwrap_err();
        assert_eq!(error.code(), "store.special-file");
        assert!(error.to_string().contains("pipe"));
    }
}
