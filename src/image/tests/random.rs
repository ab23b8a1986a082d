//! Any tree comes back out of its image as it went in.

use super::*;
use crate::image::Role;
use crate::image::content::Content;
use crate::image::tree::{Kind, Node, Tree};
use crate::image::writer::{Ext4, ImageWriter as _};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Plan {
    Dir(BTreeMap<String, (Plan, Look)>),
    File(Vec<u8>),
    Link(String),
    Char(u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
struct Look {
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattr: Option<Vec<u8>>,
}

fn look() -> impl Strategy<Value = Look> {
    let xattr = proptest::option::weighted(0.2, vec(any::<u8>(), 0..300));
    (0..0o10000u16, any::<u32>(), any::<u32>(), -(1i64 << 31)..1 << 33, 0..1_000_000_000u32, xattr)
        .prop_map(|(mode, uid, gid, s, n, xattr)| Look { mode, uid, gid, mtime: (s, n), xattr })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-zA-Zäß0-9 _-]{1,12}", 1 => "[a-z]{200,255}"]
}

fn plan() -> impl Strategy<Value = Plan> {
    let leaf = prop_oneof![
        4 => vec(any::<u8>(), 0..6000).prop_map(Plan::File),
        1 => (1usize..40_000).prop_map(|n| Plan::File(vec![9; n])),
        2 => "[a-z/.]{1,150}".prop_map(Plan::Link),
        1 => (0..4096u32, 0..1_048_576u32).prop_map(|(major, minor)| Plan::Char(major, minor)),
        1 => Just(Plan::Fifo),
    ];
    let node = leaf
        .prop_recursive(4, 120, 40, |inner| btree_map(name(), (inner, look()), 0..40).prop_map(Plan::Dir));
    btree_map(name(), (node, look()), 0..12).prop_map(Plan::Dir)
}

fn meta(look: &Look) -> Meta {
    let xattrs = look.xattr.iter().map(|value| ("user.any".to_owned(), value.clone())).collect();
    Meta { mode: look.mode, uid: look.uid, gid: look.gid, mtime: look.mtime, xattrs }
}

fn grow(tree: &mut Tree, dir: crate::image::tree::NodeId, plan: &Plan) {
    let Plan::Dir(children) = plan else { return };
    for (name, (child, look)) in children {
        let kind = match child {
            Plan::Dir(_) => Kind::Dir(BTreeMap::new()),
            Plan::File(bytes) => {
                Kind::File { size: bytes.len() as u64, content: Content::Bytes(bytes.clone().into()) }
            }
            Plan::Link(target) => Kind::Symlink(target.as_str().into()),
            Plan::Char(major, minor) => Kind::Char { major: *major, minor: *minor },
            Plan::Fifo => Kind::Fifo,
        };
        let id = tree.add(Node { meta: meta(look), kind, origin: 1 });
        tree.link(dir, name, id);
        grow(tree, id, child);
    }
}

fn compare(image: &Image, path: &str, plan: &Plan) {
    let Plan::Dir(children) = plan else { return };
    let mut names = image.names(path);
    names.retain(|name| !(path == "/" && name == "lost+found"));
    assert_eq!(names, children.keys().cloned().collect::<Vec<_>>());
    for (name, (child, look)) in children {
        let path = format!("{}/{name}", path.trim_end_matches('/'));
        let inode = image.inode(&path);
        assert_eq!((inode.mode & 0o7777, inode.uid, inode.gid), (look.mode, look.uid, look.gid), "{path}");
        assert_eq!(Inode::timestamp(inode.mtime, inode.mtime_extra), look.mtime, "{path}");
        assert_eq!(image.xattrs(&path), meta(look).xattrs, "{path}");
        match child {
            Plan::Dir(_) => compare(image, &path, child),
            Plan::File(bytes) => assert!(image.read(&path) == *bytes, "{path}"),
            Plan::Link(target) => assert_eq!(image.target(&path), *target),
            Plan::Char(major, minor) => assert_eq!(inode.dev_numbers(), Some((*major, *minor))),
            Plan::Fifo => assert_eq!(inode.mode & 0o170000, 0o010000),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_survives(plan in plan()) {
        let bench = Bench::new();
        let mut tree = Tree::new(Meta::root(0o755), 0);
        grow(&mut tree, Tree::ROOT, &plan);
        let path = bench.path("image");
        Ext4.write(&tree, Role::Base, &path).unwrap();
        compare(&Image::open(&path), "/", &plan);
    }
}
