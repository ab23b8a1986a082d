//! Users and groups of the image, in the files that passwd(5) and group(5) describe.

use super::root::Root;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
const SHADOW: &str = "/etc/shadow";
const GSHADOW: &str = "/etc/gshadow";

/// The ids that Debian gives to system users as they come.
const SYSTEM: std::ops::RangeInclusive<u32> = 100..=999;

/// A user to be made.
#[derive(Debug, Default)]
pub(super) struct NewUser {
    pub name: String,
    pub uid: Option<u32>,
    /// A group that is there, by name or number; else nogroup.
    pub group: Option<String>,
    pub comment: String,
    pub home: Option<String>,
    pub shell: Option<String>,
    /// Whether ids are given from above, as useradd(8) and sysusers do.
    pub from_above: bool,
}

impl Root<'_> {
    fn field(&mut self, file: &str, name: &str, field: usize) -> Option<String> {
        let text = self.text(file)?;
        let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
        line.split(':').nth(field).map(str::to_owned)
    }

    /// A line of the file by name or number.
    pub fn entry(&mut self, group: bool, name: &str) -> Option<String> {
        let text = self.text(if group { GROUP } else { PASSWD })?;
        let found = text.lines().find(|line| {
            let mut fields = line.split(':');
            fields.next() == Some(name) || fields.nth(1) == Some(name)
        });
        found.map(str::to_owned)
    }

    /// The number of a user that is given by name or number.
    pub fn uid(&mut self, user: &str) -> Option<u32> {
        id(user).or_else(|| id(&self.field(PASSWD, user, 2)?))
    }

    /// The number of a group.
    pub fn gid(&mut self, group: &str) -> Option<u32> {
        id(group).or_else(|| id(&self.field(GROUP, group, 2)?))
    }

    /// The group of a user.
    pub fn group_of(&mut self, user: &str) -> Option<u32> {
        id(&self.field(PASSWD, user, 3)?)
    }

    fn free(&mut self, from_above: bool) -> Option<u32> {
        let taken: Vec<u32> = [PASSWD, GROUP]
            .iter()
            .filter_map(|file| self.text(file))
            .flat_map(|text| {
                text.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok()).collect::<Vec<u32>>()
            })
            .collect();
        let free = |id: &u32| !taken.contains(id);
        if from_above { SYSTEM.rev().find(free) } else { SYSTEM.clone().find(free) }
    }

    fn append(&mut self, file: &str, line: &str) -> bool {
        let Some(mut text) = self.text(file) else { return false };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(line);
        text.push('\n');
        self.write(file, &text)
    }

    /// Adds a system group unless it is there.
    pub fn add_group(&mut self, name: &str, gid: Option<u32>, from_above: bool) -> bool {
        if !plain(name) || gid == Some(NOBODY) {
            return false;
        }
        if self.gid(name).is_some() {
            return true;
        }
        let Some(gid) = gid.or_else(|| self.free(from_above)) else { return false };
        self.append(GROUP, &format!("{name}:x:{gid}:"))
    }

    /// Adds a system user unless it is there.
    pub fn add_user(&mut self, user: NewUser) -> bool {
        let fields = [
            &user.comment,
            user.home.as_ref().unwrap_or(&user.name),
            user.shell.as_ref().unwrap_or(&user.name),
        ];
        if !plain(&user.name)
            || user.uid == Some(NOBODY)
            || fields.iter().any(|field| field.contains([':', '\n']))
        {
            return false;
        }
        if self.uid(&user.name).is_some() {
            return true;
        }
        let gid = match &user.group {
            Some(group) => self.gid(group),
            None => self.gid("nogroup"),
        };
        let own = user.group.as_deref() == Some(&user.name);
        // A user and its group have one number where it is free.
        let same = gid.filter(|gid| own && self.entry(false, &gid.to_string()).is_none());
        let uid = user.uid.or(same).or_else(|| self.free(user.from_above));
        let (Some(uid), Some(gid)) = (uid, gid) else { return false };
        let NewUser { name, comment, home, shell, .. } = user;
        let home = home.unwrap_or_else(|| "/nonexistent".to_owned());
        let shell = shell.unwrap_or_else(|| "/usr/sbin/nologin".to_owned());
        let done = self.append(PASSWD, &format!("{name}:x:{uid}:{gid}:{comment}:{home}:{shell}"));
        if self.exists(SHADOW) {
            self.append(SHADOW, &format!("{name}:!:1::::::"));
        }
        done
    }

    /// The groups that a user is in, its own first.
    pub fn groups_of(&mut self, user: &str) -> Vec<String> {
        let Some(gid) = self.group_of(user) else { return Vec::new() };
        let text = self.text(GROUP).unwrap_or_default();
        let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
        let own = text.lines().filter(|line| line.split(':').nth(2) == Some(&gid.to_string())).map(name);
        let member = |line: &&str| {
            line.rsplit(':').next().is_some_and(|members| members.split(',').any(|member| member == user))
        };
        own.chain(text.lines().filter(member).map(name)).collect()
    }

    /// pwconv(8) and grpconv(8): passwords, of which there are none, move to a file that only root can read.
    pub fn shadow(&mut self, group: bool) -> bool {
        let (file, shadow) = if group { (GROUP, GSHADOW) } else { (PASSWD, SHADOW) };
        let Some(text) = self.text(file) else { return false };
        if self.exists(shadow) {
            return true;
        }
        let (mut open, mut hidden) = (String::new(), String::new());
        for line in text.lines() {
            let mut fields: Vec<&str> = line.split(':').collect();
            let [name, password, ..] = fields[..] else { return false };
            let password = if password == "x" { "!" } else { password };
            let (name, members) = (name.to_owned(), fields.last().copied().unwrap_or_default());
            match group {
                true => hidden.push_str(&format!("{name}:{password}::{members}\n")),
                false => hidden.push_str(&format!("{name}:{password}:1::::::\n")),
            }
            fields[1] = "x";
            open.push_str(&fields.join(":"));
            open.push('\n');
        }
        let gid = self.gid("shadow").unwrap_or(0);
        self.write(shadow, &hidden)
            && self.change(shadow, false, &|meta, _| (meta.mode, meta.gid) = (0o640, gid))
            && self.write(file, &open)
    }

    /// Adds a user to a group.
    pub fn join(&mut self, user: &str, group: &str) -> bool {
        if !plain(user) {
            return false;
        }
        let Some(text) = self.text(GROUP) else { return false };
        let mut found = false;
        let lines = text.lines().map(|line| {
            if line.split(':').next() != Some(group) {
                return line.to_owned();
            }
            found = true;
            let members = line.rsplit(':').next().unwrap_or_default();
            match members {
                "" => format!("{line}{user}"),
                _ if members.split(',').any(|member| member == user) => line.to_owned(),
                _ => format!("{line},{user}"),
            }
        });
        let text = lines.map(|line| line + "\n").collect::<String>();
        found && self.write(GROUP, &text)
    }
}

/// The number that means none: chown(2) leaves an owner as it is for it.
const NOBODY: u32 = u32::MAX;

/// A number of a user or group.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != NOBODY)
}

/// Whether a name can stand in these files.
fn plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}
