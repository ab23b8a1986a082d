//! What commands of scripts do to an image.

use super::accounts::NewUser;
use super::run::{Runner, Status, Unknown};
use crate::image::tree::Meta;

type Done = Result<Status, Unknown>;

impl Runner<'_, '_> {
    /// Does what a command does; `None` if it is none of those that are known here.
    pub fn effect(&mut self, name: &str, args: &[String]) -> Option<Done> {
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        Some(match name {
            "update-alternatives" => {
                let shared = &mut *self.shared;
                shared.alternatives.call(&mut shared.root, args)
            }
            "mkdir" => self.mkdir(&words),
            "install" => self.install(&words),
            "chown" | "chgrp" | "chmod" => self.change(name, &words),
            "touch" => self.touch(&words),
            "ln" => self.ln(&words),
            "cp" => self.cp(&words),
            "rm" => self.rm(&words),
            "mv" => self.mv(&words),
            "find" => self.find(&words),
            "ucf" => self.ucf(&words),
            "dpkg-statoverride" => self.statoverride(&words),
            "dpkg-divert" => self.divert(&words),
            "adduser" => self.adduser(&words),
            "useradd" => self.useradd(&words),
            "addgroup" | "groupadd" => self.addgroup(&words),
            "usermod" => self.usermod(&words),
            "getent" => match words.as_slice() {
                [kind @ ("passwd" | "group"), name] => {
                    Ok(Some(self.root().entry(*kind == "group", name).is_some()))
                }
                _ => Err(unknown(name, &words)),
            },
            "id" => match words.iter().rfind(|word| !word.starts_with('-')) {
                Some(user) => Ok(Some(self.root().uid(user).is_some())),
                None => Ok(Some(true)),
            },
            "which" | "command" => match words.iter().rfind(|word| !word.starts_with('-')) {
                Some(program) => Ok(Some(self.which(program).is_some())),
                None => Ok(None),
            },
            "mountpoint" => Ok(Some(words.contains(&"/proc"))),
            "dpkg" => self.dpkg(&words),
            "pwconv" | "grpconv" => Ok(Some(self.root().shadow(name == "grpconv"))),
            "glib-compile-schemas" => match words.last() {
                Some(dir) if !self.root().names(dir).iter().any(|name| name.ends_with(".xml")) => {
                    Ok(Some(true))
                }
                _ => Err(unknown(name, &words)),
            },
            "php_invoke" => self.php(&words),
            "a2enmod" | "a2enconf" | "a2ensite" => self.a2en(&name[4..], &words),
            _ => return None,
        })
    }

    /// Fails as the command would if this is false.
    fn mkdir(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &["-m", "--mode"]);
        let mut mode = 0o755;
        for (option, value) in &options {
            match (*option, value) {
                ("-m" | "--mode", Some(value)) => {
                    mode = octal(value).ok_or_else(|| unknown("mkdir", words))?
                }
                ("-p" | "-v" | "--parents" | "-pv" | "-vp", _) => {}
                _ => return Err(unknown("mkdir", words)),
            }
        }
        Ok(Some(paths.iter().all(|path| self.root().make_dir(path, Meta::root(mode)))))
    }

    fn install(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &["-m", "-o", "-g", "--mode", "--owner", "--group"]);
        let wrong = || unknown("install", words);
        let (mut meta, mut dirs) = (Meta::root(0o755), false);
        for (option, value) in options {
            match (option, value) {
                ("-d" | "--directory", _) => dirs = true,
                ("-m" | "--mode", Some(value)) => meta.mode = octal(value).ok_or_else(wrong)?,
                ("-o" | "--owner", Some(user)) => meta.uid = self.root().uid(user).ok_or_else(wrong)?,
                ("-g" | "--group", Some(group)) => meta.gid = self.root().gid(group).ok_or_else(wrong)?,
                ("-p" | "-v" | "-D", _) => {}
                _ => return Err(wrong()),
            }
        }
        let set = |there: &mut Meta, _: bool| {
            (there.mode, there.uid, there.gid) = (meta.mode, meta.uid, meta.gid);
        };
        if dirs {
            let made = paths.iter().all(|path| {
                self.root().make_dir(path, Meta::root(0o755)) && self.root().change(path, false, &set)
            });
            return Ok(Some(made));
        }
        let [from, to] = paths.as_slice() else { return Err(wrong()) };
        let to = self.root().target(from, to);
        Ok(Some(self.root().copy(from, &to, false) && self.root().change(&to, false, &set)))
    }

    fn change(&mut self, name: &str, words: &[&str]) -> Done {
        let wrong = || unknown(name, words);
        let plain = |word: &&&str| !word.starts_with('-') || word.len() == 1;
        let deep = words.iter().any(|word| matches!(*word, "-R" | "--recursive" | "-Rf" | "-hR" | "-Rh"));
        // A tree's links are not followed, and chown(1) changes them themselves.
        let links = name != "chmod"
            && (deep || words.iter().any(|word| matches!(*word, "-h" | "--no-dereference" | "-hf" | "-fh")));
        let quiet = words.iter().any(|word| matches!(*word, "-f" | "--silent" | "--quiet"));
        let mut rest = words.iter().filter(plain).copied();
        let what = rest.next().ok_or_else(wrong)?;
        let (mut uid, mut gid) = (None, None);
        match name {
            "chmod" => {}
            "chgrp" => gid = Some(self.root().gid(what).ok_or_else(wrong)?),
            _ => {
                let (user, group) = what.split_once([':', '.']).map_or((what, None), |(u, g)| (u, Some(g)));
                if !user.is_empty() {
                    uid = Some(self.root().uid(user).ok_or_else(wrong)?);
                }
                gid = match group {
                    Some("") => self.root().group_of(user),
                    Some(group) => Some(self.root().gid(group).ok_or_else(wrong)?),
                    None => None,
                };
            }
        }
        if name == "chmod" && symbolic(what, 0, false).is_none() {
            return Err(wrong());
        }
        let set = |meta: &mut Meta, is_dir: bool| {
            if name == "chmod" {
                meta.mode = symbolic(what, meta.mode, is_dir).unwrap_or(meta.mode);
            }
            meta.uid = uid.unwrap_or(meta.uid);
            meta.gid = gid.unwrap_or(meta.gid);
        };
        let all: Vec<bool> = rest.map(|path| self.root().change_at(path, deep, links, &set)).collect();
        Ok(Some(quiet || all.iter().all(|done| *done)))
    }

    fn touch(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &[]);
        if !options.is_empty() {
            return Err(unknown("touch", words));
        }
        let done = paths.iter().all(|path| self.root().exists(path) || self.root().write(path, ""));
        Ok(Some(done))
    }

    fn ln(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &[]);
        let known = options
            .iter()
            .all(|(option, _)| option.trim_start_matches('-').chars().all(|c| "sfnvT".contains(c)));
        let has = |c| options.iter().any(|(option, _)| option.contains(c));
        let [target, link] = paths.as_slice() else { return Err(unknown("ln", words)) };
        if !known || !has('s') {
            return Err(unknown("ln", words));
        }
        let inside = self.root().is_dir(link) && !has('n') && !has('T');
        let link = match inside {
            true => format!("{link}/{}", target.rsplit('/').next().unwrap_or_default()),
            false => (*link).to_owned(),
        };
        if self.root().has(&link) && !has('f') {
            return Ok(Some(false));
        }
        if !self.root().is_dir(&link) {
            self.root().remove(&link);
        }
        Ok(Some(self.root().make_link(&link, target)))
    }

    fn cp(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &[]);
        let known = options.iter().all(|(option, _)| {
            *option == "--preserve" || option.trim_start_matches('-').chars().all(|c| "pafvPd".contains(c))
        });
        let keep = options.iter().any(|(option, _)| option.contains(['p', 'a']));
        match paths.as_slice() {
            [from, to] if known && self.root().is_file(from) => Ok(Some(self.root().copy(from, to, keep))),
            [from, _] if known && !self.root().exists(from) => Ok(Some(false)),
            _ => Err(unknown("cp", words)),
        }
    }

    fn rm(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &[]);
        let deep = options.iter().any(|(option, _)| option.contains(['r', 'R']));
        for path in paths {
            if self.root().link_at(path).is_none() && self.root().is_dir(path) && !deep {
                return Ok(Some(false));
            }
            if path.trim_matches('/').is_empty() {
                return Err(unknown("rm", words));
            }
            if matches!(path.rsplit('/').find(|part| !part.is_empty()), Some("." | "..")) {
                return Ok(Some(false));
            }
            self.root().remove(path);
        }
        Ok(Some(true))
    }

    fn mv(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &[]);
        let known = options.iter().all(|(option, _)| matches!(*option, "-f" | "-v" | "-T" | "--force"));
        let [from, to] = paths.as_slice() else { return Err(unknown("mv", words)) };
        if !known {
            return Err(unknown("mv", words));
        }
        if !self.root().has(from) {
            return Ok(Some(false));
        }
        if !self.root().is_file(from) || self.root().is_dir(to) || self.root().link_at(from).is_some() {
            return Err(unknown("mv", words));
        }
        Ok(Some(self.root().rename(from, to)))
    }

    /// Whatever is not there needs no change, and empty directories hurt nobody.
    fn find(&mut self, words: &[&str]) -> Done {
        let acts = words.iter().any(|word| word.starts_with("-exec") || *word == "-delete" || *word == "-ok");
        let tops: Vec<&&str> = words.iter().take_while(|word| !word.starts_with('-')).collect();
        let nothing = tops.iter().all(|top| !self.root().exists(top));
        if !acts || nothing || (words.contains(&"-empty") && words.contains(&"-delete")) {
            return Ok(if nothing { Some(false) } else { None });
        }
        Err(unknown("find", words))
    }

    /// ucf(1): a configuration file that a script puts in its place.
    fn ucf(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &["--sum-file", "--src-dir", "--state-dir"]);
        if options.iter().any(|(option, _)| matches!(*option, "-p" | "--purge")) {
            return Ok(Some(true));
        }
        let [from, to] = paths.as_slice() else { return Err(unknown("ucf", words)) };
        if self.root().exists(to) {
            return Ok(Some(true));
        }
        if !self.root().is_file(from) {
            return Err(unknown("ucf", words));
        }
        Ok(Some(self.root().copy(from, to, false)))
    }

    fn statoverride(&mut self, words: &[&str]) -> Done {
        if words.contains(&"--list") {
            return Ok(Some(false));
        }
        let plain: Vec<&&str> = words.iter().filter(|word| !word.starts_with("--")).collect();
        let (true, [user, group, mode, path]) = (words.contains(&"--add"), plain.as_slice()) else {
            return Err(unknown("dpkg-statoverride", words));
        };
        let wrong = || unknown("dpkg-statoverride", words);
        let number =
            |name: &str| name.strip_prefix('#').map(str::to_owned).unwrap_or_else(|| name.to_owned());
        let uid = self.root().uid(&number(user)).ok_or_else(wrong)?;
        let gid = self.root().gid(&number(group)).ok_or_else(wrong)?;
        let mode = octal(mode).ok_or_else(wrong)?;
        self.root().change(path, false, &|meta, _| (meta.uid, meta.gid, meta.mode) = (uid, gid, mode));
        Ok(Some(true))
    }

    /// dpkg-divert(1): other packages' files of a name go elsewhere.
    fn divert(&mut self, words: &[&str]) -> Done {
        let (options, paths) = options(words, &["--package", "--divert"]);
        if !self.work(self.shared.diversions.len() * (words.len() + 16)) {
            return Err(unknown("dpkg-divert", words));
        }
        let of = |wanted: &str| options.iter().find(|(option, _)| *option == wanted);
        if of("--list").is_some() || of("--truename").is_some() {
            return Ok(Some(true));
        }
        if of("--remove").is_some() {
            self.shared.diversions.retain(|(from, ..)| !paths.contains(&from.as_str()));
            return Ok(Some(true));
        }
        let [from] = paths.as_slice() else { return Err(unknown("dpkg-divert", words)) };
        let to =
            of("--divert").and_then(|(_, to)| *to).map_or_else(|| format!("{from}.distrib"), str::to_owned);
        let holder = of("--package").and_then(|(_, package)| *package).unwrap_or(self.package);
        let holder = if of("--local").is_some() { "" } else { holder };
        let diversion = ((*from).to_owned(), to, holder.to_owned());
        if !self.shared.diversions.contains(&diversion) {
            self.shared.diversions.push(diversion);
        }
        Ok(Some(true))
    }

    fn adduser(&mut self, words: &[&str]) -> Done {
        const VALUED: [&str; 9] = [
            "--home",
            "--shell",
            "--ingroup",
            "--gecos",
            "--comment",
            "--uid",
            "--gid",
            "--firstuid",
            "--lastuid",
        ];
        let (options, names) = options(words, &VALUED);
        let wrong = || unknown("adduser", words);
        if let [user, group] = names.as_slice() {
            return Ok(Some(self.root().join(user, group)));
        }
        let [name] = names.as_slice() else { return Err(wrong()) };
        let has = |wanted: &str| options.iter().any(|(option, _)| *option == wanted);
        let of =
            |wanted: &str| options.iter().find(|(option, _)| *option == wanted).and_then(|(_, value)| *value);
        if !has("--system") {
            return Err(wrong());
        }
        let uid = of("--uid").map(|uid| uid.parse().map_err(|_| wrong())).transpose()?;
        let mut group = of("--ingroup").or(of("--gid")).map(str::to_owned);
        if has("--group") {
            if !self.root().add_group(name, uid, false) {
                return Err(wrong());
            }
            group = Some((*name).to_owned());
        }
        let there = self.root().uid(name).is_some();
        let home = of("--home").map(str::to_owned);
        let user = NewUser {
            name: (*name).to_owned(),
            uid,
            group,
            comment: of("--gecos").or(of("--comment")).unwrap_or_default().to_owned(),
            home: home.clone(),
            shell: of("--shell").map(str::to_owned),
            from_above: false,
        };
        if !self.root().add_user(user) {
            return Err(wrong());
        }
        if let Some(home) = home.filter(|home| !there && !has("--no-create-home") && home != "/nonexistent") {
            self.make_home(name, &home);
        }
        Ok(Some(true))
    }

    fn make_home(&mut self, name: &str, home: &str) {
        let root = self.root();
        let (uid, gid) = (root.uid(name).unwrap_or(0), root.group_of(name).unwrap_or(0));
        if !root.exists(home) {
            root.make_dir(home, Meta { uid, gid, ..Meta::root(0o755) });
        }
    }

    fn useradd(&mut self, words: &[&str]) -> Done {
        const VALUED: [&str; 14] = [
            "-u",
            "-g",
            "-d",
            "-s",
            "-c",
            "-G",
            "--uid",
            "--gid",
            "--home-dir",
            "--home",
            "--shell",
            "--comment",
            "--groups",
            "-K",
        ];
        let (options, names) = options(words, &VALUED);
        let wrong = || unknown("useradd", words);
        let [name] = names.as_slice() else { return Err(wrong()) };
        let has = |all: &[&str]| options.iter().any(|(option, _)| all.contains(option));
        let of = |all: &[&str]| {
            options.iter().find(|(option, _)| all.contains(option)).and_then(|(_, value)| *value)
        };
        // Letters stand together.
        let letters = |c| options.iter().any(|(option, _)| !option.starts_with("--") && option.contains(c));
        if !has(&["--system"]) && !letters('r') {
            return Err(wrong());
        }
        if self.root().uid(name).is_some() {
            return Ok(Some(false));
        }
        let mut group = of(&["-g", "--gid"]).map(str::to_owned);
        if group.is_none() && !letters('N') && !has(&["--no-user-group"]) {
            self.root().add_group(name, None, true);
            group = Some((*name).to_owned());
        }
        let uid = of(&["-u", "--uid"]).map(|uid| uid.parse().map_err(|_| wrong())).transpose()?;
        let home = of(&["-d", "--home-dir", "--home"]).map_or_else(|| format!("/home/{name}"), str::to_owned);
        let user = NewUser {
            name: (*name).to_owned(),
            uid,
            group,
            comment: of(&["-c", "--comment"]).unwrap_or_default().to_owned(),
            home: Some(home.clone()),
            shell: Some(of(&["-s", "--shell"]).unwrap_or("/bin/sh").to_owned()),
            from_above: true,
        };
        if !self.root().add_user(user) {
            return Err(wrong());
        }
        for group in of(&["-G", "--groups"]).unwrap_or_default().split(',').filter(|group| !group.is_empty())
        {
            self.root().join(name, group);
        }
        if letters('m') || has(&["--create-home"]) {
            self.make_home(name, &home);
        }
        Ok(Some(true))
    }

    fn addgroup(&mut self, words: &[&str]) -> Done {
        let (options, names) = options(words, &["--gid", "-g", "-K"]);
        let [name] = names.as_slice() else {
            return match names.as_slice() {
                [user, group] => Ok(Some(self.root().join(user, group))),
                _ => Err(unknown("addgroup", words)),
            };
        };
        let gid =
            options.iter().find(|(option, _)| matches!(*option, "--gid" | "-g")).and_then(|(_, gid)| *gid);
        let gid = gid.map(|gid| gid.parse().map_err(|_| unknown("addgroup", words))).transpose()?;
        if self.root().add_group(name, gid, false) { Ok(Some(true)) } else { Err(unknown("addgroup", words)) }
    }

    fn usermod(&mut self, words: &[&str]) -> Done {
        match words {
            ["-aG" | "-a -G", groups, user] | ["-a", "-G", groups, user] => {
                Ok(Some(groups.split(',').all(|group| self.root().join(user, group))))
            }
            _ => Err(unknown("usermod", words)),
        }
    }

    /// Versions are compared with that of what was there before, which is none.
    fn dpkg(&mut self, words: &[&str]) -> Done {
        match words {
            ["--compare-versions", "", how, _] => Ok(Some(match *how {
                "lt" | "le" | "ne" | "<<" | "<=" | "<" | "ge-nl" | "gt-nl" => true,
                "gt" | "ge" | "eq" | ">>" | ">=" | ">" | "=" | "lt-nl" | "le-nl" => false,
                _ => return Err(unknown("dpkg", words)),
            })),
            ["--compare-versions", "lt" | "le" | "gt" | "ge" | "lt-nl" | "le-nl", _] => Ok(None),
            ["-s" | "-l" | "-L" | "-S" | "--status" | "--list", ..] => Ok(None),
            _ => Err(unknown("dpkg", words)),
        }
    }

    /// PHP's modules: links from the directory of each kind of server, which is a file below /usr/lib/php.
    fn php(&mut self, words: &[&str]) -> Done {
        let ["enmod", version, server, modules @ ..] = words else {
            return Err(unknown("php_invoke", words));
        };
        if words.iter().any(|word| word.contains("..")) {
            return Err(unknown("php_invoke", words));
        }
        let servers = match *server {
            "ALL" => self.root().names(&format!("/usr/lib/php/{version}/sapi")),
            one => vec![one.to_owned()],
        };
        for module in modules {
            let ini = format!("/etc/php/{version}/mods-available/{module}.ini");
            let Some(text) = self.root().text(&ini) else { return Ok(Some(false)) };
            let priority = text.lines().find_map(|line| {
                let (name, value) = line.trim_start_matches([';', ' ']).split_once('=')?;
                (name.trim() == "priority").then(|| value.trim().parse::<u32>().ok())?
            });
            let link = format!("{:02}-{module}.ini", priority.unwrap_or(20));
            for server in &servers {
                let dir = format!("/etc/php/{version}/{server}/conf.d");
                self.root().make_dir(&dir, Meta::root(0o755));
                self.root().make_link(&format!("{dir}/{link}"), &ini);
            }
        }
        Ok(Some(true))
    }

    /// a2enmod(8) and the like: links to what is available, and to what that depends on.
    fn a2en(&mut self, kind: &str, words: &[&str]) -> Done {
        let (what, suffixes): (&str, &[&str]) = match kind {
            "mod" => ("mods", &[".load", ".conf"]),
            "conf" => ("conf", &[".conf"]),
            _ => ("sites", &[".conf"]),
        };
        let mut pending: Vec<String> =
            words.iter().filter(|word| !word.starts_with('-')).map(|word| (*word).to_owned()).collect();
        let mut done: Vec<String> = Vec::new();
        while let Some(name) = pending.pop() {
            if name.contains('/') || done.contains(&name) {
                continue;
            }
            for suffix in suffixes {
                let from = format!("/etc/apache2/{what}-available/{name}{suffix}");
                let Some(text) = self.root().text(&from) else {
                    if *suffix == suffixes[0] {
                        return Ok(Some(false));
                    }
                    continue;
                };
                self.root().make_link(
                    &format!("/etc/apache2/{what}-enabled/{name}{suffix}"),
                    &format!("../{what}-available/{name}{suffix}"),
                );
                let needs = text.lines().filter_map(|line| line.strip_prefix("# Depends:"));
                pending.extend(needs.flat_map(str::split_whitespace).map(str::to_owned));
            }
            done.push(name);
        }
        Ok(Some(true))
    }
}

fn unknown(name: &str, words: &[&str]) -> Unknown {
    Unknown(format!("{name} {}", words.join(" ")))
}

/// An option as it stands there, with the word that is its value.
type Given<'w> = (&'w str, Option<&'w str>);

/// Options, those of `valued` with a value, and all other words.
fn options<'w>(words: &[&'w str], valued: &[&str]) -> (Vec<Given<'w>>, Vec<&'w str>) {
    let (mut options, mut plain) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word {
            &"--" => plain.extend(words.by_ref()),
            _ if !word.starts_with('-') || word.len() == 1 => plain.push(*word),
            _ => match word.split_once('=') {
                Some((option, value)) => options.push((option, Some(value))),
                None if valued.contains(word) => options.push((*word, words.next().copied())),
                // A letter and its value, such as -m755.
                None if !word.starts_with("--") && word.len() > 2 && valued.contains(&&word[..2]) => {
                    options.push((&word[..2], Some(&word[2..])));
                }
                None => options.push((*word, None)),
            },
        }
    }
    (options, plain)
}

fn octal(text: &str) -> Option<u16> {
    u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}

/// A mode of chmod(1) on top of another.
fn symbolic(text: &str, mode: u16, is_dir: bool) -> Option<u16> {
    if let Some(mode) = octal(text) {
        return Some(mode);
    }
    let mut mode = mode;
    for clause in text.split(',') {
        let at = clause.find(['+', '-', '='])?;
        let (who, rest) = clause.split_at(at);
        let mut mask = 0;
        for c in who.chars() {
            mask |= match c {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                'a' => 0o7777,
                _ => return None,
            };
        }
        if who.is_empty() {
            mask = 0o7777;
        }
        let mut bits = 0;
        for c in rest[1..].chars() {
            bits |= match c {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                'X' => 0,
                's' => 0o6000,
                't' => 0o1000,
                _ => return None,
            };
        }
        let bits = bits & mask;
        mode = match &rest[..1] {
            "+" => mode | bits,
            "-" => mode & !bits,
            _ => (mode & !(mask & 0o777)) | bits,
        };
    }
    Some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_chmod() {
        for (text, before, after) in [
            ("0755", 0, 0o755),
            ("u+s", 0o755, 0o4755),
            ("g-w,o=", 0o775, 0o750),
            ("a+rX", 0o600, 0o644),
            ("+x", 0o644, 0o755),
        ] {
            assert_eq!(symbolic(text, before, false), Some(after), "{text}");
        }
        assert_eq!(symbolic("nonsense", 0, false), None);
        assert_eq!(symbolic("", 0, false), None);
    }
}
