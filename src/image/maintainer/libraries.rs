//! Libraries that only ldconfig(8) makes known: glibc's loader does not read /etc/ld.so.conf.d, but the cache that
//! ldconfig makes of it, which an image has only if scripts run.

use super::root::Root;
use super::{Undone, note};
use crate::image::tree::Tree;
use std::collections::{BTreeSet, HashMap};

/// Where the list of directories is, a file a package.
const LISTS: &str = "/etc/ld.so.conf.d";

/// Where the loaders look without a cache, those of 32 bits too.
const DEFAULTS: [&str; 10] = [
    "/lib",
    "/usr/lib",
    "/lib64",
    "/usr/lib64",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib32",
    "/usr/lib32",
    "/libx32",
    "/usr/libx32",
];

/// Names the packages that count on a cache of libraries. `packages` are their names by origin.
pub(in crate::image) fn uncached(tree: &mut Tree, packages: &HashMap<u32, String>, undone: &mut Vec<Undone>) {
    let mut root = Root::new(tree, 0);
    for name in root.names(LISTS).into_iter().filter(|name| name.ends_with(".conf")) {
        let path = format!("{LISTS}/{name}");
        let Some(text) = root.text(&path) else { continue };
        let dirs = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let dirs = dirs.filter(|dir| dir.starts_with('/') && !DEFAULTS.contains(&dir.trim_end_matches('/')));
        let with_libraries: BTreeSet<String> = dirs
            .filter(|dir| root.names(dir).iter().any(|name| name.ends_with(".so") || name.contains(".so.")))
            .map(|dir| format!("ldconfig for {dir}"))
            .collect();
        let origin = root.at(&path).map(|id| root.tree.node(id).origin);
        // A list that a script wrote is nobody's.
        let package = origin.and_then(|origin| packages.get(&origin)).map_or(path.as_str(), String::as_str);
        note(undone, package, with_libraries);
    }
    undone.sort_by(|a, b| a.package.cmp(&b.package));
}
