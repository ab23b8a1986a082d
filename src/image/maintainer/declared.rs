//! What packages declare for systemd's programs: users (sysusers.d(5)) and files (tmpfiles.d(5)).

use super::accounts::NewUser;
use super::root::Root;
use crate::image::tree::{Meta, Tree};

/// Makes the users and groups that packages declare.
pub(super) fn sysusers(root: &mut Root<'_>) {
    for line in lines(root, "/usr/lib/sysusers.d") {
        let fields = fields(&line);
        let field = |at: usize| fields.get(at).map(String::as_str).filter(|field| *field != "-");
        let (Some(kind), Some(name)) = (field(0), field(1)) else { continue };
        if name.contains('%') {
            continue;
        }
        let (uid, gid) = field(2).map_or((None, None), |id| {
            id.split_once(':').map_or((Some(id), None), |(u, g)| (Some(u), Some(g)))
        });
        match kind.trim_end_matches('!') {
            "g" => _ = root.add_group(name, uid.and_then(|gid| gid.parse().ok()), true),
            "m" => {
                if let Some(group) = field(2) {
                    root.join(name, group);
                }
            }
            "u" => {
                let group = match gid {
                    Some(group) => Some(group.to_owned()),
                    None => {
                        root.add_group(name, uid.and_then(|uid| uid.parse().ok()), true);
                        Some(name.to_owned())
                    }
                };
                root.add_user(NewUser {
                    name: name.to_owned(),
                    uid: uid.and_then(|uid| uid.parse().ok()),
                    group,
                    comment: field(3).unwrap_or_default().to_owned(),
                    home: Some(field(4).unwrap_or("/").to_owned()),
                    shell: field(5).map(str::to_owned),
                    from_above: true,
                });
            }
            _ => {}
        }
    }
}

/// Makes the directories, links and files that packages declare, where nothing has their names. In /run, too: what a
/// service manager would make at each boot is in the image.
pub(in crate::image) fn tmpfiles(tree: &mut Tree, origin: u32) {
    let mut root = Root::new(tree, origin);
    for line in lines(&mut root, "/usr/lib/tmpfiles.d") {
        let fields = fields(&line);
        let field = |at: usize| fields.get(at).map(String::as_str).filter(|field| *field != "-");
        let (Some(kind), Some(path)) = (field(0), field(1)) else { continue };
        let argument = fields.get(6).map(String::as_str).unwrap_or_default();
        if path.contains(['%', '*', '?', '[']) || argument.contains('%') || !path.starts_with('/') {
            continue;
        }
        if root.has(path) {
            continue;
        }
        let plain = kind.trim_end_matches(['!', '-', '+', '=', '~', '^', '$', '?']);
        let default = if matches!(plain, "f" | "F") { 0o644 } else { 0o755 };
        let mode = field(2).and_then(|mode| u16::from_str_radix(mode.trim_start_matches(['~', ':']), 8).ok());
        let uid = field(3).map_or(Some(0), |user| root.uid(user.trim_start_matches(':')));
        let gid = field(4).map_or(Some(0), |group| root.gid(group.trim_start_matches(':')));
        // Whoever is not in the image owns nothing there.
        let (Some(uid), Some(gid)) = (uid, gid) else { continue };
        let meta = Meta { uid, gid, ..Meta::root(mode.unwrap_or(default) & 0o7777) };
        match plain {
            "d" | "D" | "v" | "q" | "Q" => _ = root.make_dir(path, meta),
            "L" if !argument.is_empty() => _ = root.make_link(path, argument),
            "f" | "F" if root.write(path, argument) => {
                root.change(path, false, &|there, _| {
                    (there.mode, there.uid, there.gid) = (meta.mode, meta.uid, meta.gid);
                });
            }
            "C" if root.is_file(argument) => _ = root.copy(argument, path, true),
            _ => {}
        }
    }
}

/// The lines of all files of a directory and of what /etc has in their place.
fn lines(root: &mut Root<'_>, dir: &str) -> Vec<String> {
    let etc = dir.replace("/usr/lib/", "/etc/");
    let mut names = [root.names(dir), root.names(&etc)].concat();
    names.sort();
    names.dedup();
    let mut lines = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".conf")) {
        let text = root.text(&format!("{etc}/{name}")).or_else(|| root.text(&format!("{dir}/{name}")));
        let all = text.unwrap_or_default();
        let useful = all.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.extend(useful.map(str::to_owned));
    }
    lines
}

/// The fields of a line; one with blanks stands in quotes.
fn fields(line: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let (field, after) = match quote {
            Some(quote) => rest[1..].split_once(quote).unwrap_or((&rest[1..], "")),
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        fields.push(field.to_owned());
        rest = after.trim_start();
    }
    fields
}
