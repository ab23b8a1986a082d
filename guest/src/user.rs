//! Whom the workload runs as: resolved from the root's own passwd and group files, created there when lacking.
//! Nothing of libc's name service is used, as a static binary has none to rely on.

use crate::failure::{Context, Failure, Result};
use crate::identity;
use firegopher_protocol::RunUser;
use nix::unistd::{Gid, Uid};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

/// First uid and gid given to a created user, as useradd does (login.defs, UID_MIN).
const FIRST_ID: u32 = 1000;
/// nobody and, above it, what other systems reserve.
const END_OF_IDS: u32 = 60_000;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name; `None` for a number that passwd does not know.
    pub name: Option<String>,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// The user was added to the files just now, so its home has to be made.
    pub created: bool,
}

/// What has to be appended to the two files.
#[derive(Debug, Default, PartialEq, Eq)]
struct Additions {
    passwd: String,
    group: String,
}

/// Resolves `user` in the root at `root`, writing it to passwd and group if they lack its name.
pub fn resolve(user: &RunUser, root: &Path) -> Result<Account> {
    let (passwd_path, group_path) = (root.join("etc/passwd"), root.join("etc/group"));
    let (passwd, group) = (read(&passwd_path)?, read(&group_path)?);
    // What is no UTF-8 (a full name, at most) is of no interest here and must survive the writing.
    let (account, additions) =
        find_or_make(user, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group))?;
    for (path, mut text, new) in
        [(&group_path, group, &additions.group), (&passwd_path, passwd, &additions.passwd)]
    {
        if !new.is_empty() {
            if text.last().is_some_and(|last| *last != b'\n') {
                text.push(b'\n');
            }
            text.extend_from_slice(new.as_bytes());
            fs::create_dir_all(root.join("etc")).context(|| "creating /etc".to_owned())?;
            identity::replace(path, &text, 0o644)?;
        }
    }
    Ok(account)
}

/// Makes the home of a user that was created, once volumes are mounted. An existing directory is left as it is.
pub fn make_home(account: &Account, root: &Path) -> Result<()> {
    let home = root.join(account.home.trim_start_matches('/'));
    if !account.created || home.exists() {
        return Ok(());
    }
    let make = || {
        if let Some(parent) = home.parent() {
            fs::create_dir_all(parent)?;
        }
        DirBuilder::new().mode(0o750).create(&home)?;
        chown(&home, Some(account.uid), Some(account.gid))
    };
    make().context(|| format!("making the home {}", account.home))
}

/// A missing file is an empty one.
fn read(path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.context(|| format!("reading {}", path.display())),
    }
}

/// name, uid, gid and home of a passwd line; nonsense lines are none.
fn passwd_line(line: &str) -> Option<(&str, u32, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _) = (fields.next()?, fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (_, home) = (fields.next()?, fields.next()?);
    Some((name, uid, gid, home))
}

/// name, gid and members of a group line.
fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _) = (fields.next()?, fields.next()?);
    Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or("")))
}

fn find_or_make(user: &RunUser, passwd: &str, group: &str) -> Result<(Account, Additions)> {
    let known = |wanted: &dyn Fn(&str, u32) -> bool| {
        passwd.lines().filter_map(passwd_line).find(|(name, uid, ..)| wanted(name, *uid))
    };
    let account = |name: &str, uid, gid, home: &str| Account {
        name: Some(name.to_owned()),
        uid,
        gid,
        groups: groups_of(name, gid, group),
        home: if home.is_empty() { "/".to_owned() } else { home.to_owned() },
        created: false,
    };
    match user {
        RunUser::Id { uid, gid } => {
            // -1 means "leave unchanged" to setresuid and setresgid.
            if *uid == u32::MAX || *gid == u32::MAX {
                return Err(Failure::new(format!("the user {uid}:{gid} cannot exist: 4294967295 is no id")));
            }
            let found = match known(&|_, u| u == *uid) {
                Some((name, _, _, home)) => account(name, *uid, *gid, home),
                None => Account {
                    name: (*uid == 0).then(|| "root".to_owned()),
                    uid: *uid,
                    gid: *gid,
                    groups: vec![*gid],
                    home: if *uid == 0 { "/root" } else { "/" }.to_owned(),
                    created: false,
                },
            };
            Ok((found, Additions::default()))
        }
        RunUser::Image { user, group: wanted } => {
            let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
            let lacks = |file: &str, name: &str| {
                Failure::new(format!("the image runs as {name:?}, which its own {file} does not know"))
            };
            // A number is a uid, as container runtimes have it, even if somebody's name is made of these digits.
            let found = match id(user) {
                Some(number) => known(&|_, uid| uid == number),
                None => known(&|name, _| name == user),
            };
            let mut found = match (found, id(user)) {
                (Some((name, uid, gid, home)), _) => account(name, uid, gid, home),
                (None, Some(uid)) => Account {
                    name: (uid == 0).then(|| "root".to_owned()),
                    uid,
                    gid: 0,
                    groups: vec![0],
                    home: if uid == 0 { "/root" } else { "/" }.to_owned(),
                    created: false,
                },
                (None, None) if user == "root" => account("root", 0, 0, "/root"),
                (None, None) => return Err(lacks("/etc/passwd", user)),
            };
            if let Some(wanted) = wanted {
                let named = || group.lines().filter_map(group_line).find(|(name, ..)| name == wanted);
                let gid = id(wanted).or_else(|| named().map(|(_, gid, _)| gid));
                found.gid = gid.ok_or_else(|| lacks("/etc/group", wanted))?;
                // Who names a group gets that one and no other.
                found.groups = vec![found.gid];
            }
            Ok((found, Additions::default()))
        }
        RunUser::Name(name) => {
            if let Some((name, uid, gid, home)) = known(&|n, _| n == name) {
                return Ok((account(name, uid, gid, home), Additions::default()));
            }
            if name == "root" {
                return Ok((account("root", 0, 0, "/root"), Additions::default()));
            }
            let (uid, gid, additions) = add(name, passwd, group)?;
            let mut account = account(name, uid, gid, &format!("/home/{name}"));
            account.created = true;
            Ok((account, additions))
        }
    }
}

/// Picks ids for a new user and writes its lines.
fn add(name: &str, passwd: &str, group: &str) -> Result<(u32, u32, Additions)> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    // A colon or a line break would write somebody else's line; 32 is useradd's limit.
    if name.is_empty() || name.len() > 32 || !name.chars().all(fits) || name.starts_with(['-', '.']) {
        return Err(Failure::new(format!("{name:?} is no name for a user")));
    }
    let own_group = group.lines().filter_map(group_line).find(|(n, ..)| *n == name).map(|(_, gid, _)| gid);
    let mut taken: BTreeSet<u32> =
        passwd.lines().filter_map(passwd_line).flat_map(|(_, u, g, _)| [u, g]).collect();
    taken.extend(
        group.lines().filter_map(group_line).map(|(_, gid, _)| gid).filter(|gid| own_group != Some(*gid)),
    );
    let uid = (FIRST_ID..END_OF_IDS).find(|id| !taken.contains(id)).ok_or_else(|| {
        Failure::new(format!("no free user id for {name:?}: {FIRST_ID} to {END_OF_IDS} are taken"))
    })?;
    let gid = own_group.unwrap_or(uid);
    let mut additions = Additions { passwd: String::new(), group: String::new() };
    if passwd.is_empty() && name != "root" {
        additions.passwd.push_str("root:x:0:0:root:/root:/bin/sh\n");
    }
    if group.is_empty() {
        additions.group.push_str("root:x:0:\n");
    }
    additions.passwd.push_str(&format!("{name}:x:{uid}:{gid}::/home/{name}:/bin/sh\n"));
    if own_group.is_none() {
        additions.group.push_str(&format!("{name}:x:{gid}:\n"));
    }
    Ok((uid, gid, additions))
}

fn groups_of(name: &str, gid: u32, group: &str) -> Vec<u32> {
    let mut groups = vec![gid];
    for (_, other, members) in group.lines().filter_map(group_line) {
        if !groups.contains(&other) && members.split(',').any(|m| m.trim() == name) {
            groups.push(other);
        }
    }
    groups
}

impl Account {
    /// The groups in nix's type.
    pub fn gids(&self) -> Vec<Gid> {
        self.groups.iter().copied().map(Gid::from_raw).collect()
    }

    /// Whether this is the superuser.
    pub fn is_root(&self) -> bool {
        Uid::from_raw(self.uid).is_root()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, TempDir};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
                          broken line\nodd:x:notanumber:1::/:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
    const GROUP: &str =
        "root:x:0:\nwww-data:x:33:\nssl:x:110:ann,www-data\nvideo:x:44:ann\nann:x:1000:\nbad\n";

    fn name(n: &str) -> RunUser {
        RunUser::Name(n.to_owned())
    }

    #[test]
    fn a_known_name_brings_its_ids_home_and_supplementary_groups() {
        let (account, additions) = find_or_make(&name("ann"), PASSWD, GROUP).unwrap();
        assert_eq!((account.uid, account.gid, account.home.as_str()), (1000, 1000, "/home/ann"));
        assert_eq!(account.groups, [1000, 110, 44]);
        assert_eq!(additions, Additions::default());
    }

    #[test]
    fn a_number_works_with_and_without_a_passwd_line() {
        let (account, _) = find_or_make(&RunUser::Id { uid: 33, gid: 7 }, PASSWD, GROUP).unwrap();
        assert_eq!((account.name.as_deref(), account.gid), (Some("www-data"), 7));
        assert_eq!(account.groups, [7, 110]);
        let (account, additions) =
            find_or_make(&RunUser::Id { uid: 5000, gid: 6000 }, PASSWD, GROUP).unwrap();
        assert_eq!((account.name, account.uid, account.gid, account.home), (None, 5000, 6000, "/".into()));
        assert_eq!(additions, Additions::default());
    }

    #[test]
    fn an_images_user_is_looked_up_as_container_runtimes_do() {
        let look = |user: &str, group: Option<&str>| {
            let user = RunUser::Image { user: user.to_owned(), group: group.map(str::to_owned) };
            find_or_make(&user, PASSWD, GROUP).map(|(account, additions)| {
                assert_eq!(additions, Additions::default());
                (account.uid, account.gid, account.groups, account.home)
            })
        };
        let home = |home: &str| home.to_owned();
        assert_eq!(look("ann", None).unwrap(), (1000, 1000, vec![1000, 110, 44], home("/home/ann")));
        assert_eq!(look("1000", None).unwrap(), (1000, 1000, vec![1000, 110, 44], home("/home/ann")));
        assert_eq!(look("7", None).unwrap(), (7, 0, vec![0], home("/")), "group 0 for an unknown number");
        assert_eq!(look("ann", Some("video")).unwrap(), (1000, 44, vec![44], home("/home/ann")));
        assert_eq!(look("7", Some("8")).unwrap(), (7, 8, vec![8], home("/")));
        assert_eq!(look("root", Some("ssl")).unwrap(), (0, 110, vec![110], home("/root")));
        for (user, group) in
            [("bob", None), ("ann", Some("nobody")), ("4294967295", None), ("7", Some("4294967295"))]
        {
            assert!(look(user, group).is_err(), "{user} {group:?}");
        }
        let passwd = "root:x:0:0::/root:/bin/sh\n2000:x:3000:3000::/home/2000:/bin/sh\n";
        let user = |user: &str, group: Option<&str>| {
            let user = RunUser::Image { user: user.to_owned(), group: group.map(str::to_owned) };
            let (account, _) = find_or_make(&user, passwd, "7:x:70:\n").unwrap();
            (account.uid, account.gid, account.home)
        };
        assert_eq!(user("2000", None), (2000, 0, "/".to_owned()), "digits are a uid, whoever is called so");
        assert_eq!(user("3000", None), (3000, 3000, "/home/2000".to_owned()));
        assert_eq!(user("3000", Some("7")), (3000, 7, "/home/2000".to_owned()), "and a gid");
        let user = RunUser::Image { user: "root".into(), group: None };
        let (account, _) = find_or_make(&user, "", "").unwrap();
        assert_eq!((account.uid, account.gid), (0, 0), "without a passwd there is still root");
    }

    #[test]
    fn the_id_that_means_unchanged_is_refused() {
        assert!(find_or_make(&RunUser::Id { uid: u32::MAX, gid: 0 }, PASSWD, GROUP).is_err());
        assert!(find_or_make(&RunUser::Id { uid: 0, gid: u32::MAX }, PASSWD, GROUP).is_err());
    }

    #[test]
    fn a_lacking_name_is_created_with_the_first_free_id() {
        let (account, additions) = find_or_make(&name("app"), PASSWD, GROUP).unwrap();
        assert_eq!((account.uid, account.gid, account.created), (1001, 1001, true));
        assert_eq!(additions.passwd, "app:x:1001:1001::/home/app:/bin/sh\n");
        assert_eq!(additions.group, "app:x:1001:\n");
    }

    #[test]
    fn a_group_of_the_same_name_becomes_the_primary_one() {
        let (account, additions) = find_or_make(&name("ssl"), PASSWD, GROUP).unwrap();
        assert_eq!((account.uid, account.gid), (1001, 110));
        assert_eq!(additions.group, "");
    }

    #[test]
    fn root_needs_no_passwd_file() {
        let (account, additions) = find_or_make(&name("root"), "", "").unwrap();
        assert_eq!((account.uid, account.home.as_str()), (0, "/root"));
        assert_eq!(additions, Additions::default());
    }

    #[test]
    fn names_that_would_forge_lines_are_refused() {
        for bad in ["", "a:b", "a\nroot::0:0::/:", "-x", ".", "..", "a/b", "é", &"x".repeat(33)] {
            assert!(find_or_make(&name(bad), PASSWD, GROUP).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn files_are_extended_once_and_a_missing_line_end_is_mended() {
        let dir = TempDir::new();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), b"root:x:0:0:R\xf6t:/root:/bin/sh").unwrap();
        let first = resolve(&name("app"), dir.path()).unwrap();
        let second = resolve(&name("app"), dir.path()).unwrap();
        assert_eq!((first.uid, second.uid, second.created), (1000, 1000, false));
        assert_eq!(
            fs::read(dir.path().join("etc/passwd")).unwrap(),
            b"root:x:0:0:R\xf6t:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
        );
        assert_eq!(fs::read_to_string(dir.path().join("etc/group")).unwrap(), "root:x:0:\napp:x:1000:\n");
    }

    #[test]
    fn an_empty_image_gets_the_files_too() {
        let dir = TempDir::new();
        let account = resolve(&name("app"), dir.path()).unwrap();
        assert_eq!(account.uid, 1000);
        assert!(fs::read_to_string(dir.path().join("etc/passwd")).unwrap().starts_with("root:x:0:0:"));
        if crate::testing::root("giving away a home") {
            make_home(&account, dir.path()).unwrap();
            assert!(dir.path().join("home/app").is_dir());
        }
    }

    #[test]
    fn no_text_makes_the_parsers_fail() {
        let mut noise = Noise(99);
        let alphabet = b":\n,0a1x-\t ";
        for _ in 0..5000 {
            let text: String =
                (0..noise.below(60)).map(|_| char::from(alphabet[noise.below(alphabet.len())])).collect();
            if let Ok((account, additions)) = find_or_make(&name("app"), &text, &text) {
                assert!(!account.groups.is_empty());
                assert!(additions.passwd.lines().all(|l| passwd_line(l).is_some()), "{:?}", additions.passwd);
            }
        }
    }
}
