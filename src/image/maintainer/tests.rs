//! Scripts of the shapes that packages have, followed over small trees.

use super::root::Root;
use super::*;
use crate::image::tree::Kind;

/// A tree with some files, of which those that end in `/` are directories, and lists of users.
fn tree(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::new(Meta::root(0o755), 1);
    let mut root = Root::new(&mut tree, 1);
    let base = [
        ("/etc/passwd", "root:*:0:0:root:/root:/bin/bash\nwww-data:*:33:33::/var/www:/usr/sbin/nologin\n"),
        ("/etc/group", "root:*:0:\nadm:*:4:\nwww-data:*:33:\nnogroup:*:65534:\n"),
        ("/tmp/", ""),
        ("/run/", ""),
    ];
    for (path, text) in base.iter().chain(files) {
        let (dir, name) = path.rsplit_once('/').unwrap();
        if !dir.is_empty() {
            assert!(root.make_dir(dir, Meta::root(0o755)), "{dir}");
        }
        if !name.is_empty() {
            assert!(root.write(path, text), "{path}");
        }
    }
    tree
}

fn scripts(package: &str, postinst: &str) -> Scripts {
    Scripts {
        package: package.to_owned(),
        postinst: format!("#!/bin/sh\nset -e\n{postinst}"),
        ..Scripts::default()
    }
}

/// Follows one script; what it left undone.
fn follow(tree: &mut Tree, postinst: &str) -> Vec<String> {
    let undone = configure(tree, 2, &[scripts("p", postinst)]);
    undone.into_iter().flat_map(|one| one.what).collect()
}

fn text(tree: &mut Tree, path: &str) -> String {
    Root::new(tree, 1).text(path).unwrap_or_else(|| panic!("no {path}"))
}

fn link(tree: &mut Tree, path: &str) -> Option<String> {
    Root::new(tree, 1).link_at(path)
}

/// Mode and owner.
fn owner(tree: &mut Tree, path: &str) -> (u16, u32, u32) {
    let id = Root::new(tree, 1).at(path).unwrap_or_else(|| panic!("no {path}"));
    let meta = &tree.node(id).meta;
    (meta.mode, meta.uid, meta.gid)
}

const NOTHING: [&str; 0] = [];

#[test]
fn alternatives_in_loops_and_with_options_lead_to_the_highest_priority() {
    let mut tree = tree(&[
        ("/usr/lib/vm/bin/tool", ""),
        ("/usr/lib/vm/bin/keys", ""),
        ("/usr/lib/vm/man/tool.1", ""),
        ("/usr/bin/run8", ""),
        ("/usr/bin/run9", ""),
        ("/usr/bin/taken", "a file of a package's"),
    ]);
    let script = r#"
basedir=/usr/lib/vm
priority=1711
tools='tool keys'
case "$1" in
configure)
    if [ -z "$2" ]; then
        update_alternatives=y
    fi
    if [ "$update_alternatives" != y ] && [ $priority -gt 1060 ]; then
        for i in $tools; do
            old=$(update-alternatives --query tool | awk '/x/ {print $2; exit}')
        done
    fi
    if [ "$update_alternatives" = y ]; then
        if [ -n "amd64" ] && [ "$DPKG_MAINTSCRIPT_ARCH" != $(dpkg --print-architecture) ]; then
            priority=$(expr $priority - 1)
        fi
        for i in $tools; do
            unset slave || true
            if [ -e $basedir/man/$i.1 ]; then
                slave="--slave \
                    /usr/share/man/man1/$i.1 $i.1 $basedir/man/$i.1"
            fi
            update-alternatives --quiet \
                --install /usr/bin/$i $i $basedir/bin/$i $priority $slave
        done
    fi
    for version in 8 9; do
        update-alternatives --install /usr/bin/run run /usr/bin/run$version 8$version
    done
    update-alternatives --install /usr/bin/taken taken /usr/bin/run8 1
    update-alternatives --install /usr/bin/absent absent /usr/bin/none 1 || true
    ;;
esac
"#;
    assert_eq!(follow(&mut tree, script), NOTHING);
    for (path, target) in [
        ("/usr/bin/tool", "/etc/alternatives/tool"),
        ("/etc/alternatives/tool", "/usr/lib/vm/bin/tool"),
        ("/etc/alternatives/keys", "/usr/lib/vm/bin/keys"),
        ("/usr/share/man/man1/tool.1", "/etc/alternatives/tool.1"),
        ("/etc/alternatives/run", "/usr/bin/run9"),
    ] {
        assert_eq!(link(&mut tree, path).as_deref(), Some(target), "{path}");
    }
    assert_eq!(link(&mut tree, "/usr/bin/absent"), None);
    assert_eq!(text(&mut tree, "/usr/bin/taken"), "a file of a package's");
}

#[test]
fn users_groups_and_what_they_own_are_made() {
    let mut tree = tree(&[("/etc/server/", ""), ("/etc/server/server.conf", "")]);
    let script = r#"
USER="server"
GROUP="$USER"
Setup_dir () {
    DIR="${1}"; MODE="${2}"; GROUP="${3}"
    mkdir -p ${DIR}
    if ! dpkg-statoverride --list ${DIR} >/dev/null 2>&1
    then
        chown ${USER}:${GROUP} ${DIR}
        chmod ${MODE} ${DIR}
    fi
}
if ! getent group cache >/dev/null ; then addgroup --system cache >/dev/null; fi
if ! getent passwd server > /dev/null; then
    adduser \
        --system --home /var/lib/server --quiet --group --gecos "A \"server\"" \
        ${USER} || true
fi
adduser --quiet server cache
useradd --system --no-create-home -g cache -s /bin/false other
Setup_dir /var/log/server 2750 adm
Setup_dir /var/lib/server 750 ${USER}
dpkg-statoverride --update --add ${USER} server 640 /etc/server/server.conf
[ -d /var/run/server ] || install -d -m 2775 -o server -g server /run/server
"#;
    assert_eq!(follow(&mut tree, script), NOTHING);
    let passwd = text(&mut tree, "/etc/passwd");
    assert!(
        passwd.contains("\nserver:x:101:101:A \"server\":/var/lib/server:/usr/sbin/nologin\n"),
        "{passwd}"
    );
    assert!(passwd.contains("\nother:x:999:100::/home/other:/bin/false\n"), "{passwd}");
    let group = text(&mut tree, "/etc/group");
    assert!(group.contains("\ncache:x:100:server\nserver:x:101:\n"), "{group}");
    assert_eq!(owner(&mut tree, "/var/log/server"), (0o2750, 101, 4));
    assert_eq!(owner(&mut tree, "/var/lib/server"), (0o750, 101, 101));
    assert_eq!(owner(&mut tree, "/etc/server/server.conf"), (0o640, 101, 101));
    assert_eq!(owner(&mut tree, "/run/server"), (0o2775, 101, 101));
}

#[test]
fn a_web_servers_links_logs_and_pages_are_made() {
    let mut tree = tree(&[
        ("/etc/web/sites-available/default", "server {}"),
        ("/etc/web/sites-enabled/", ""),
        ("/var/log/web/", ""),
        ("/usr/share/web/index.html", "hello"),
        ("/var/www/html/", ""),
        ("/etc/apache2/mods-available/mpm_event.load", "LoadModule mpm_event\n"),
        ("/etc/apache2/mods-available/mpm_event.conf", ""),
        ("/etc/apache2/mods-available/status.load", "# Depends: mime\nLoadModule status\n"),
        ("/etc/apache2/mods-available/mime.load", "LoadModule mime\n"),
        ("/etc/apache2/sites-available/000-default.conf", ""),
        ("/etc/init.d/web", ""),
    ]);
    let script = r#"
. /usr/share/debconf/confmodule
is_fresh_install()
{
    if [ -z "$2" ] ; then
        return 0
    fi
    return 1
}
logdir="/var/log/web"
if ! dpkg-statoverride --list "$logdir" >/dev/null; then
    chown root:adm $logdir
    chmod 0755 $logdir
fi
if [ -z "$2" ]; then
    access_log="$logdir/access.log"
    if [ ! -e "$access_log" ]; then
        touch "$access_log"; chmod 640 "$access_log"; chown www-data:adm "$access_log"
    fi
fi
if [ -z $2 ] && [ ! -e /etc/web/sites-enabled/default ] &&
   [ -d /etc/web/sites-enabled ] && [ -d /etc/web/sites-available ]; then
    ln -s /etc/web/sites-available/default /etc/web/sites-enabled/default
fi
if is_fresh_install $@; then
    for module in mpm_event status; do a2enmod -m -q $module; done
    a2ensite -q 000-default
    do_copy=true
    for dir in /var/www /var/www/html; do
        for ext in html php; do
            if [ -e $dir/index.$ext ]; then do_copy=false; fi
        done
    done
    if $do_copy ; then
        cp /usr/share/web/index.html /var/www/html/index.html
    fi
fi
if [ -x "/etc/init.d/web" ]; then update-rc.d web defaults >/dev/null || exit 1; fi
if invoke-rc.d --quiet web status >/dev/null; then
    invoke-rc.d web upgrade || invoke-rc.d web restart
    exit $?
else
    if [ -z "$(ss -nlt 'sport = 80' | grep -v ^State)" ]; then
        invoke-rc.d web start || exit $?
    else
        echo "Not attempting to start, port 80 is already in use."
        exit 0
    fi
fi
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
exit 0
"#;
    assert_eq!(follow(&mut tree, script), NOTHING);
    assert_eq!(owner(&mut tree, "/var/log/web/access.log"), (0o640, 33, 4));
    for (path, target) in [
        ("/etc/web/sites-enabled/default", "/etc/web/sites-available/default"),
        ("/etc/apache2/mods-enabled/mpm_event.load", "../mods-available/mpm_event.load"),
        ("/etc/apache2/mods-enabled/mpm_event.conf", "../mods-available/mpm_event.conf"),
        ("/etc/apache2/mods-enabled/mime.load", "../mods-available/mime.load"),
        ("/etc/apache2/sites-enabled/000-default.conf", "../sites-available/000-default.conf"),
    ] {
        assert_eq!(link(&mut tree, path).as_deref(), Some(target), "{path}");
    }
    assert_eq!(text(&mut tree, "/var/www/html/index.html"), "hello");
}

#[test]
fn questions_have_their_defaults_and_configuration_files_their_places() {
    let mut tree = tree(&[
        ("/usr/share/p/p.conf", "setting = 1\n"),
        ("/etc/p/", ""),
        ("/usr/lib/p/helper", "configure_p() { echo \"version ${1%%.*}\" > /etc/p/version; }\n"),
        ("/usr/sbin/p-setup", "#!/bin/sh\nln -sf \"$2\" \"/etc/p/$1\"\n"),
    ]);
    let mut one = scripts(
        "p-15",
        r#"
. /usr/share/debconf/confmodule
db_get p/kind
case "$RET" in
    slight) ln -s /usr/share/p/slight.conf /etc/p/kind.conf ;;
    *) ln -s /usr/share/p/other.conf /etc/p/kind.conf ;;
esac
ucf --three-way --debconf-ok /usr/share/p/p.conf /etc/p/p.conf
ucfr p /etc/p/p.conf
. /usr/lib/p/helper
configure_p ${DPKG_MAINTSCRIPT_PACKAGE##*-}.4
p-setup current "/etc/p/p.conf"
cat > /etc/p/root.crt <<EOF
for $DPKG_MAINTSCRIPT_PACKAGE
EOF
if dpkg --compare-versions "$2" lt-nl "2.0"; then rm -r /etc/p; fi
db_stop
"#,
    );
    one.templates = "Template: p/kind\nType: select\nDefault: slight\nDescription: x\n".to_owned();
    assert_eq!(configure(&mut tree, 2, &[one]), []);
    assert_eq!(link(&mut tree, "/etc/p/kind.conf").as_deref(), Some("/usr/share/p/slight.conf"));
    assert_eq!(text(&mut tree, "/etc/p/p.conf"), "setting = 1\n");
    assert_eq!(text(&mut tree, "/etc/p/version"), "version 15\n");
    assert_eq!(text(&mut tree, "/etc/p/root.crt"), "for p-15\n");
    assert_eq!(link(&mut tree, "/etc/p/current").as_deref(), Some("/etc/p/p.conf"));
}

#[test]
fn what_cannot_be_followed_is_named_and_the_rest_is_done() {
    for (script, named) in [
        ("mysql_install_db --user=mysql\n", "mysql_install_db --user=mysql"),
        ("x=$(compute)\nmkdir /made/$x\n", "mkdir /made/$x"),
        ("if probe --now; then mkdir /x; fi\n", "probe --now"),
        ("compute > /etc/x\n", "compute"),
        ("sed -i s/a/b/ /etc/passwd\n", "sed -i s/a/b/ /etc/passwd"),
        ("generate | sort > /etc/x\n", "generate"),
        ("(cd /x && make)\n", "a subshell"),
        (". /usr/lib/absent.sh\n", ". /usr/lib/absent.sh"),
        ("update-alternatives --config x\n", "update-alternatives --config x"),
        ("chown nobody-here /etc\n", "chown nobody-here /etc"),
        ("f() { f; }\nf\n", "functions that call each other"),
    ] {
        let mut tree = tree(&[("/before/", ""), ("/proc", "")]);
        let undone = follow(&mut tree, &format!("mkdir -p /first\n{script}mkdir -p /last\n"));
        assert_eq!(undone, [named], "{script}");
        for dir in ["/first", "/last"] {
            assert!(Root::new(&mut tree, 1).is_dir(dir), "{script}");
        }
    }
    let mut tree = tree(&[]);
    assert_eq!(follow(&mut tree, "mkdir /etc/passwd/y\nmkdir /x\n"), ["mkdir /etc/passwd/y (it ends there)"]);
    let perl =
        Scripts { package: "p".into(), postinst: "#!/usr/bin/perl\nexit 0;\n".into(), ..Scripts::default() };
    let undone = configure(&mut tree, 2, &[perl]);
    assert_eq!(undone[0].what, ["it is a script for perl"]);
}

#[test]
fn what_changes_nothing_is_not_named() {
    for script in [
        "echo hello; printf '%s' x >&2\n",
        "if [ \"$1\" = triggered ]; then rebuild_everything; fi\n",
        "[ \"$(uname -r)\" = x ] && echo 'odd kernel'\n",
        "if which update-binfmts >/dev/null && [ -r /x ]; then update-binfmts --import x; fi\n",
        "case \"$(uname -s)\" in Linux) : ;; esac\n",
        "dpkg-maintscript-helper rm_conffile /etc/x 1~ -- \"$@\"\n",
        "if [ -n \"$2\" ] && dpkg --compare-versions \"$2\" lt 3; then migrate; fi\n",
        "deb-systemd-helper unmask 'x.service' >/dev/null || true\n",
        "find /etc/absent -type f -delete || true\n",
        "py3compile -p python3-x\nldconfig\n",
        "files=$(dpkg -L x | sed -n '/py$/p')\nif [ -n \"$files\" ]; then\n\
         /usr/bin/python3.11 -E /usr/lib/python3.11/py_compile.py $files\n\
         if grep -sq '^x' /etc/x; then /usr/bin/python3.11 -O /usr/lib/py_compile.py $files; fi\n\
         else echo none >&2; fi\n",
        "if ! getent group www-data | grep -q '^www-data:[^:]*:33'; then groupmod -g 33 www-data; fi\n",
        "if ! grep -sq '^root[^#]*0' /etc/passwd; then migrate; fi\n",
        "if grep -q '^x$' /etc/absent; then migrate; fi\n",
        "if ls -L /etc/absent >/dev/null 2>&1; then migrate; fi\n",
        "if getcap /etc/passwd | grep -qs \"/etc/passwd\"; then setcap -r /etc/passwd; fi\n",
    ] {
        assert_eq!(follow(&mut tree(&[]), script), NOTHING, "{script}");
    }
}

#[test]
fn hostile_scripts_end_and_stay_in_the_tree() {
    let long = "a && ".repeat(20_000) + "b\n";
    let nested = "if true; then ".repeat(500);
    let loops = (0..6).map(|n| format!("for a{n} in 1 2 3 4 5 6 7 8 9; do ")).collect::<String>();
    let loops = format!("{loops}:; {}\n", "done; ".repeat(6));
    let numbers: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let doubling = format!("x=a; for i in {}; do x=$x$x; done\n", numbers.join(" "));
    for script in [
        &loops,
        "ln -s ../../../.. /up; ln -s /loop /loop; mkdir -p /up/up/up/x; touch /loop; mkdir /loop/x\n",
        "rm -r -f /\n",
        &doubling,
        "adduser --system 'a:b'\nadduser --system --gecos 'x\ny::' evil\n",
        &long,
        &nested,
    ] {
        let mut tree = tree(&[]);
        follow(&mut tree, script);
        let passwd = text(&mut tree, "/etc/passwd");
        assert_eq!(passwd.lines().count(), 2, "{passwd}");
    }
    let sixteen = "x".repeat(16 << 10);
    let hundred = "1 2 3 4 5 6 7 8 9 0 ".repeat(10);
    for (script, why) in [
        // Deep where it stands in a line.
        (format!("{}x\n", "exec ".repeat(40_000)), "x"),
        (format!("{}x\n", "command ".repeat(30_000)), "x"),
        (format!("test {}x && migrate\n", "! ".repeat(100_000)), "test ! ! !"),
        (format!("[ {}x {}] && migrate\n", "'(' ".repeat(30_000), "')' ".repeat(30_000)), "[ ( ( ("),
        (format!("[ x {}] && migrate\n", "-o x ".repeat(40_000)), "[ x -o x"),
        ("f() { if true; then { f; }; fi; }\nf\n".to_owned(), "functions that call each other"),
        // Large where it is followed.
        (format!("set -- a\nfor i in {hundred}; do set -- \"$@\" \"$@\"; done\n"), "it makes too much text"),
        (format!("x=a\nfor i in {hundred}; do export x=$x$x; done\n"), "$x"),
        (
            format!("for i in {hundred}; do for j in {hundred}; do y=\"a${{i:+{sixteen}}}\"; done; done\n"),
            "it makes too much text",
        ),
        (format!("cat {}> /o\n", "/large ".repeat(100)), "it makes too much text"),
        (format!("for i in {hundred}; do cat /large > /o; done\n"), "it makes too much text"),
        (format!("for i in {hundred}; do . /large; done\n"), "it makes too much text"),
        (
            format!(
                "for i in {hundred}; do for j in {hundred}; do for k in {hundred}; do touch /$i$j$k; rm -f /$i$j$k; done; done; done\n"
            ),
            "it takes too many steps",
        ),
        (
            format!(
                "ln -s {} /x\nfor i in {hundred}; do for j in {hundred}; do mkdir -p /x/$i/$j/{}; done; done\n",
                "a/".repeat(40),
                "a/".repeat(200)
            ),
            "it makes too much text",
        ),
        (format!("mkdir -p /{}\n", "a/".repeat(32_000)), "mkdir -p"),
        // Slow where it compares.
        (format!("x={sixteen}\ny=${{x#*y}}\nrm -f $y\n"), "it takes too many steps"),
        (
            format!(
                "x={sixteen}\nfor i in {hundred}; do case $x in {}y) :;; esac; done\n",
                "*x".repeat(1_000)
            ),
            "it takes too many steps",
        ),
        (format!("case x in {}y) migrate;; esac\n", "*x".repeat(4_000)), "a pattern that is too long"),
        ("cat > /x <<e\ne\n".repeat(10_000), "it cannot be read"),
    ] {
        let mut tree = tree(&[("/large", &"# nothing\n".repeat(100_000))]);
        let begun = std::time::Instant::now();
        let undone = follow(&mut tree, &script).join(" | ");
        let shown: String = script.chars().take(80).collect();
        assert!(undone.contains(why), "{shown}: {undone}");
        // Entries that were replaced are counted, too.
        assert!(tree.slots() < 20_000, "{shown}: {}", tree.slots());
        assert!(begun.elapsed().as_secs() < 60, "{shown}: {:?}", begun.elapsed());
    }
    let huge = format!("#!/bin/sh\n{}", ":\n".repeat(MOST_TEXT));
    let huge = Scripts { package: "p".into(), postinst: huge, ..Scripts::default() };
    assert_eq!(configure(&mut tree(&[]), 2, &[huge])[0].what.len(), 1);
}

#[test]
fn declared_users_and_files_are_made_where_nothing_has_their_names() {
    let mut tree = tree(&[
        (
            "/usr/lib/sysusers.d/db.conf",
            "# x\ng shared 150\nu db 140:shared \"A database\" /var/lib/db /bin/sh\nu! agent - -\nm db adm\n",
        ),
        (
            "/usr/lib/tmpfiles.d/db.conf",
            "d /run/db 2775 db db -\nd /run/db 0700 db shared\nL+ /etc/link - - - - ../usr/x\n\
             f /etc/file 0600 db - - text\nd /home/%u 0700\nd /run/ghost 0755 ghost ghost\n",
        ),
        ("/usr/lib/tmpfiles.d/masked.conf", "d /run/masked\n"),
        ("/etc/tmpfiles.d/masked.conf", "# nothing\n"),
    ]);
    assert_eq!(configure(&mut tree, 2, &[]), []);
    tmpfiles(&mut tree, 2);
    let passwd = text(&mut tree, "/etc/passwd");
    assert!(passwd.contains("\ndb:x:140:150:A database:/var/lib/db:/bin/sh\n"), "{passwd}");
    assert!(passwd.contains("\nagent:x:999:999::/:/usr/sbin/nologin\n"), "{passwd}");
    assert!(text(&mut tree, "/etc/group").contains("adm:*:4:db\n"));
    // There is no group db.
    assert_eq!(owner(&mut tree, "/run/db"), (0o700, 140, 150));
    assert_eq!(link(&mut tree, "/etc/link").as_deref(), Some("../usr/x"));
    assert_eq!(owner(&mut tree, "/etc/file"), (0o600, 140, 0));
    let names = Root::new(&mut tree, 1).names("/run");
    assert_eq!(names, ["db"]);
}

#[test]
fn diversions_and_users_of_what_runs_before_unpacking_are_known() {
    let pre = |package: &str, preinst: &str| Scripts {
        package: package.into(),
        preinst: format!("#!/bin/sh\nset -e\n{preinst}"),
        ..Scripts::default()
    };
    let all = [
        pre(
            "shell",
            "if [ \"$1\" = install ]; then\n \
             dpkg-divert --package shell --add --rename --divert /bin/sh.distrib /bin/sh\nfi\n",
        ),
        pre(
            "users",
            "case $1 in install|upgrade) adduser --system --no-create-home early;; esac\nrm -r /etc/keep\n",
        ),
    ];
    let diverted = Diversion { from: "bin/sh".into(), to: "bin/sh.distrib".into(), holder: "shell".into() };
    assert_eq!(diversions(&all), [diverted]);
    let mut tree = tree(&[("/etc/keep", "")]);
    assert_eq!(configure(&mut tree, 2, &all), []);
    assert!(text(&mut tree, "/etc/passwd").contains("\nearly:x:100:65534:"));
    // What it would remove is not there when it runs.
    assert_eq!(text(&mut tree, "/etc/keep"), "");
}

#[test]
fn a_package_hears_what_others_brought_where_it_is_interested() {
    let listener = |postinst: &str| Scripts {
        triggers:
            "# x\ninterest-noawait /usr/share/schemas\ninterest other-name\ninterest /usr/share/absent\n"
                .into(),
        ..scripts("p", postinst)
    };
    let script = "if [ \"$1\" = triggered ]; then for dir in $2; do compile $dir; done; fi\n";
    let mut full = tree(&[("/usr/share/schemas/one.xml", "")]);
    assert_eq!(configure(&mut full, 2, &[listener(script)])[0].what, ["compile /usr/share/schemas"]);
    assert_eq!(configure(&mut tree(&[]), 2, &[listener(script)]), []);
}

#[test]
fn a_file_that_is_written_anew_leaves_its_other_names_alone() {
    let mut tree = tree(&[("/a", "one")]);
    let id = Root::new(&mut tree, 1).at("/a").unwrap();
    tree.link(Tree::ROOT, "b", id);
    assert_eq!(follow(&mut tree, "echo two > /a\n"), NOTHING);
    assert_eq!((text(&mut tree, "/a"), text(&mut tree, "/b")), ("two\n".into(), "one".into()));
    assert!(matches!(tree.node(id).kind, Kind::File { .. }));
}

#[test]
fn php_modules_shadow_files_and_searches_are_followed() {
    let mut tree = tree(&[
        ("/etc/php/8.2/mods-available/opcache.ini", "; priority=10\nzend_extension=opcache.so\n"),
        ("/etc/php/8.2/mods-available/json.ini", "extension=json.so\n"),
        ("/usr/lib/php/8.2/sapi/cli", ""),
        ("/usr/lib/php/8.2/sapi/fpm", ""),
        ("/usr/lib/php/php-maintscript-helper", "#!/bin/sh\nphp_msg() ( echo x )\n"),
        ("/etc/my.cnf.low", ""),
        ("/etc/my.cnf.high", ""),
        ("/usr/share/glib-2.0/schemas/", ""),
    ]);
    let script = r#"
say() (
    echo "$1"
)
say hello
. /usr/lib/php/php-maintscript-helper
php_invoke enmod 8.2 ALL opcache
mods=$(phpquery -M -v 8.2)
for mod in $mods; do php_invoke enmod 8.2 cli $mod; done
pwconv; grpconv
each () { for one in "$@"; do if ! [ -d $one ]; then mkdir $one; fi; done; }
each /one /two
adduser --system --group late
if ! id -Gn late | grep -qw adm; then adduser --quiet late adm; fi
if id -Gn late | grep -qw adm; then mkdir /joined; fi
update-alternatives --install /etc/my.cnf my.cnf /etc/my.cnf.low 100
if ! update-alternatives --query my.cnf | grep --quiet "Value: /etc/my.cnf.high"; then
    update-alternatives --install /etc/my.cnf my.cnf /etc/my.cnf.high 500
fi
/usr/lib/x86_64-linux-gnu/glib-2.0/glib-compile-schemas /usr/share/glib-2.0/schemas || true
if [ "$(uname -s)" = "Linux" ]; then touch /linux; fi
"#;
    assert_eq!(follow(&mut tree, script), NOTHING);
    for path in ["/etc/php/8.2/cli/conf.d/10-opcache.ini", "/etc/php/8.2/fpm/conf.d/10-opcache.ini"] {
        assert_eq!(
            link(&mut tree, path).as_deref(),
            Some("/etc/php/8.2/mods-available/opcache.ini"),
            "{path}"
        );
    }
    assert!(link(&mut tree, "/etc/php/8.2/cli/conf.d/20-json.ini").is_some());
    assert!(text(&mut tree, "/etc/passwd").starts_with("root:x:0:0:"));
    let shadow = text(&mut tree, "/etc/shadow");
    assert!(shadow.starts_with("root:*:1::::::\n") && shadow.ends_with("late:!:1::::::\n"), "{shadow}");
    assert_eq!(owner(&mut tree, "/etc/shadow").0, 0o640);
    assert_eq!(link(&mut tree, "/etc/alternatives/my.cnf").as_deref(), Some("/etc/my.cnf.high"));
    for dir in ["/joined", "/one", "/two"] {
        assert!(Root::new(&mut tree, 1).is_dir(dir), "{dir}");
    }
    assert_eq!(text(&mut tree, "/linux"), "");
    let mut schemas = self::tree(&[("/s/one.xml", "")]);
    assert_eq!(follow(&mut schemas, "glib-compile-schemas /s\n"), ["glib-compile-schemas /s"]);
}

#[test]
fn libraries_that_only_a_cache_makes_known_are_named_with_their_package() {
    let mut tree = tree(&[
        ("/etc/ld.so.conf.d/atlas.conf", "# a comment\n/usr/lib/atlas  # fast\n/usr/lib/none\n"),
        ("/usr/lib/atlas/libblas.so.3", ""),
        ("/etc/ld.so.conf.d/libc.conf", "/usr/local/lib\n/usr/lib\n"),
        ("/usr/lib/libx.so", ""),
        ("/usr/local/lib/", ""),
    ]);
    let mut undone = Vec::new();
    uncached(&mut tree, &[(1, "libatlas3-base".to_owned())].into(), &mut undone);
    let named = Undone { package: "libatlas3-base".into(), what: vec!["ldconfig for /usr/lib/atlas".into()] };
    assert_eq!(undone, [named]);
}

#[test]
fn profiles_of_pam_are_named_as_not_made() {
    let script = r#"
. /usr/share/debconf/confmodule
sum()
{
    sed -n -e'1,/# x/p' "$DPKG_ROOT"/etc/pam.d/"$1" | md5sum | awk '{ print $1 }'
}
force=
if [ -z "$2" ] || dpkg --compare-versions "$2" lt 1.0.1-11
then
    force=--force
    for file in common-auth common-account; do
        if [ -f "$DPKG_ROOT"/etc/pam.d/$file ] && \
            ! fgrep -q $(sum $file) "$DPKG_ROOT"/usr/share/pam/$file.md5sums 2>/dev/null
        then
            force=
        fi
    done
fi
pam-auth-update --root "$DPKG_ROOT" --package $force
"#;
    // The program is perl.
    for files in [&[][..], &[("/usr/sbin/pam-auth-update", "#!/usr/bin/perl -w\nuse strict;\n")]] {
        let undone = follow(&mut tree(files), script);
        assert_eq!(undone, ["pam-auth-update --root --package --force"]);
    }
}

#[test]
fn relative_paths_begin_where_a_script_has_gone() {
    let mut tree =
        tree(&[("/srv/app/old", "x"), ("/app", "kept"), ("/srv/enter", "#!/bin/sh\ncd /etc\ntouch here\n")]);
    let script = "cd /srv\ntouch made\nmkdir -p app/sub && cd app/sub\ncd ../../app\nrm -f old\nln -s ../made link\n\
                  /srv/enter\nfor f in *; do touch /found-$f; done\ntouch $PWD/here\ncd nowhere || touch stayed\n";
    assert_eq!(follow(&mut tree, script), NOTHING);
    let mut root = Root::new(&mut tree, 1);
    for path in ["/srv/made", "/srv/app/sub", "/srv/app/here", "/srv/app/stayed", "/etc/here", "/found-link"]
    {
        assert!(root.exists(path), "{path}");
    }
    assert!(!root.exists("/made") && !root.exists("/srv/app/old"));
    assert_eq!(root.text("/app").as_deref(), Some("kept"));
    // Where it cannot be told, nothing goes on.
    for (script, named) in [
        ("cd /absent\nrm -f app\n", "cd /absent"),
        ("cd $(somewhere)\nrm -f app\n", "cd $(...)"),
        ("cd -\nrm -f app\n", "cd -"),
        ("if frobnicate; then cd /srv; fi\nrm -f app\n", "frobnicate"),
        ("frobnicate && cd /srv\nrm -f app\n", "frobnicate"),
    ] {
        assert_eq!(follow(&mut tree, script), [named], "{script}");
        assert_eq!(text(&mut tree, "/app"), "kept", "{script}");
    }
}

#[test]
fn commands_change_what_they_name_and_nothing_else() {
    let mut tree =
        tree(&[("/srv/dir/", ""), ("/srv/file", "file"), ("/srv/other", "other"), ("/srv/target", "")]);
    let script = "chmod 2770 /srv/dir\ninstall -m 600 -o www-data /srv/file /srv/dir/\n\
                  ln -s target /srv/link\nchown -h www-data /srv/link\n\
                  ln -s other /srv/alias\nmv /srv/file /srv/alias\n";
    assert_eq!(follow(&mut tree, script), NOTHING);
    assert_eq!(owner(&mut tree, "/srv/dir"), (0o2770, 0, 0));
    assert_eq!(owner(&mut tree, "/srv/dir/file"), (0o600, 33, 0));
    assert_eq!(owner(&mut tree, "/srv/target"), (0o644, 0, 0));
    let id = tree.lookup("srv/link").unwrap();
    assert_eq!(tree.node(id).meta.uid, 33);
    // A rename takes the link's name, and not what it leads to.
    assert_eq!(text(&mut tree, "/srv/other"), "other");
    assert_eq!(text(&mut tree, "/srv/alias"), "file");
    for script in ["mv /srv/other /srv/other\n", "mv /srv/other /srv/../srv/other\n"] {
        assert_eq!(follow(&mut tree, script).len(), 1, "{script}");
        assert_eq!(text(&mut tree, "/srv/other"), "other");
    }
    for script in [
        "chown 4294967295 /srv/other\n",
        "chgrp 4294967295 /srv/other\n",
        "adduser --system --uid 4294967295 x\n",
    ] {
        assert_eq!(follow(&mut tree, script).len(), 1, "{script}");
    }
    assert_eq!(owner(&mut tree, "/srv/other"), (0o644, 0, 0));
}

#[test]
fn a_diversion_that_leads_out_is_none() {
    let pre = |line: &str| Scripts {
        package: "p".into(),
        preinst: format!("#!/bin/sh\ndpkg-divert --add --divert {line}\n"),
        ..Scripts::default()
    };
    let long = format!("/usr/{} /bin/x", "a".repeat(300));
    for line in ["/usr/../../etc/x /bin/x", "/ /bin/x", "/usr/x /usr/../bin/x", &long] {
        assert_eq!(diversions(&[pre(line)]), [], "{line}");
    }
    let cleaned = Diversion { from: "bin/x".into(), to: "usr/x".into(), holder: "p".into() };
    assert_eq!(diversions(&[pre("//usr/./x /bin//x")]), [cleaned]);
}
