use super::model::*;
use super::table::{Block, Node, TOP};
use super::*;
use crate::packages::PackageSet;
use crate::vmm::firecracker::config::CpuTemplate;
use crate::vmm::tuning::{Balloon, Console, CpuFile, HugePages, Rate, Tuning};
use firegopher_protocol::{Limit, Resource};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLE: &str = include_str!("../../firegopher.kdl.example");

fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/", dir.path().join("link-out")).unwrap();
    std::os::unix::fs::symlink(".", dir.path().join("link-in")).unwrap();
    std::fs::write(dir.path().join("note.txt"), "a single file").unwrap();
    dir
}

fn parsed(text: &str) -> Result<Manifest, Diagnostics> {
    let dir = project();
    parse(text, FILE_NAME, &dir.path().canonicalize().unwrap())
}

fn good(text: &str) -> Manifest {
    parsed(text).unwrap_or_else(|d| panic!("{}", d.render(false, 100)))
}

fn codes(text: &str) -> Vec<&'static str> {
    parsed(text).expect_err(text).problems().iter().map(|p| p.code).collect()
}

#[test]
fn a_vm_needs_only_run() {
    let manifest = good("vm \"app\" { run \"true\"; }");
    let vm = &manifest.vms[0];
    assert_eq!(vm.run, ["true"]);
    assert_eq!(vm.kernel, KernelSource::Debian(PackageSet::of(["linux-image-cloud-amd64"])));
    let base = ["base-files", "base-passwd", "bash", "coreutils", "dash", "libc-bin"];
    assert_eq!(vm.image, ImageSource::Debian(PackageSet::of(base)));
    assert_eq!(vm.vmm, VmmSource::Auto);
    assert_eq!((vm.cpus, vm.memory), (1, 256 << 20));
    assert_eq!((vm.user.clone(), vm.workdir.clone(), vm.hostname.as_str()), (None, None, "app"));
    assert_eq!((vm.egress, vm.restart, vm.root), (Egress::None, Restart::No, Root::Scratch(2 << 30)));
    assert_eq!((vm.grace, vm.boot_timeout), (Duration::from_secs(10), Duration::from_secs(60)));
    assert!(vm.workloads.is_empty() && vm.env.is_empty() && vm.secrets.is_empty());
    assert!(vm.ports.is_empty() && vm.volumes.is_empty());
    assert!(vm.sysctls.is_empty() && vm.limits.is_empty());
}

#[test]
fn the_example_means_what_its_comments_say() {
    let manifest = good(EXAMPLE);
    assert_eq!(manifest.project, Some(Name::new("example").unwrap()));
    let [web, worker, tuned, shaped] = manifest.vms.as_slice() else { panic!("four VMs") };
    assert_eq!(shaped.tuning.cpu_file, Some(CpuFile { path: "cpu.json".into(), changes: None }));
    assert_eq!(web.workloads.len(), 3);
    assert_eq!(
        web.workloads[0],
        Workload {
            source: WorkloadFrom::Path("app".into()),
            to: "/app".into(),
            owner: (1000, 1000),
            keep_modes: true,
            ignore: ["*.pyc", "__pycache__/", "/tests"].map(String::from).to_vec(),
            ignore_from: Some(".gitignore".into()),
        }
    );
    assert_eq!(web.run, ["python3", "server.py", "--port", "8000"]);
    assert_eq!(web.user, Some(User::Id { uid: 1000, gid: 1000 }));
    assert_eq!(web.env[1], ("LOG_LEVEL".to_owned(), "info".to_owned()));
    assert_eq!(web.secrets, [Secret { name: "API_KEY".into(), env: "MY_API_KEY".into() }]);
    assert_eq!(web.ports, [Port { address: "127.0.0.1".parse().unwrap(), host: 8080, guest: 8000 }]);
    assert_eq!(web.root, Root::Scratch(4 << 30));
    let sysctl = |path: &str, value: &str| (path.to_owned(), value.to_owned());
    assert_eq!(
        web.sysctls,
        [sysctl("net/core/somaxconn", "1024"), sysctl("net/ipv4/ip_local_port_range", "20000 60000")]
    );
    let limit = |resource, soft, hard| Limit { resource, soft, hard };
    assert_eq!(
        web.limits,
        [
            limit(Resource::Nofile, Some(4096), Some(65_536)),
            limit(Resource::Memlock, Some(64 << 20), Some(64 << 20)),
            limit(Resource::Core, None, None),
        ]
    );
    assert_eq!(web.restart, Restart::OnFailure { max: Some(5) });
    assert_eq!(web.volumes[0].size, 1 << 30);
    assert_eq!(worker.kernel, KernelSource::Path("boot/vmlinux".into()));
    assert_eq!(worker.vmm, VmmSource::QemuPath(PathBuf::from("/usr/bin/qemu-system-x86_64")));
    assert_eq!(worker.root, Root::Tmpfs);
    let rate = |mib: u64, ops| Rate { bandwidth: Some(mib << 20), ops: Some(ops) };
    assert_eq!((web.tuning.scratch, web.tuning.volumes["data"]), (rate(200, 5000), rate(50, 1000)));
    assert_eq!(worker.tuning, Tuning::default());
    let wanted = Tuning {
        console: Console::All,
        huge_pages: Some(HugePages::Transparent),
        balloon: Some(Balloon { amount: 64 << 20, deflate_on_oom: true, free_page_reporting: true }),
        cpu_template: Some(CpuTemplate::T2),
        mtu: Some(1400),
        receive: rate(10, 10_000),
        send: rate(10, 10_000),
        ..Tuning::default()
    };
    assert_eq!(tuned.tuning, wanted);
    assert!(worker.run[3].ends_with("done") && worker.run[3].contains("line.\nwhile"));
}

/// Every setting and property in the tables, as a path such as `vm/port@to`.
fn names(prefix: &str, nodes: &[Node], out: &mut BTreeSet<String>) {
    for node in nodes {
        let path = format!("{prefix}{}", node.name);
        for prop in node.props {
            out.insert(format!("{path}@{}", prop.name));
        }
        if let Block::Nodes(nodes) = node.block {
            names(&format!("{path}/"), nodes, out);
        }
        out.insert(path);
    }
}

fn used(prefix: &str, doc: &kdl::KdlDocument, out: &mut BTreeSet<String>) {
    for node in doc.nodes() {
        let path = format!("{prefix}{}", node.name().value());
        for name in node.entries().iter().filter_map(|e| e.name()) {
            out.insert(format!("{path}@{}", name.value()));
        }
        if let Some(children) = node.children() {
            used(&format!("{path}/"), children, out);
        }
        out.insert(path);
    }
}

#[test]
fn the_example_has_every_setting_that_exists() {
    let (mut known, mut shown) = (BTreeSet::new(), BTreeSet::new());
    names("", TOP, &mut known);
    used("", &kdl::KdlDocument::parse_v2(EXAMPLE).unwrap(), &mut shown);
    // A VM's own kernel is the same block as a shared one, a download and a package source everywhere the same.
    let missing: Vec<_> = known
        .difference(&shown)
        .filter(|n| {
            !["vm/kernel/", "vm/image/", "image/url", "kernel/debian/", "vm/vmm/"]
                .iter()
                .any(|p| n.starts_with(p))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_starter_is_valid() {
    assert_eq!(good(STARTER).vms[0].name.as_str(), "app");
    assert!(!STARTER.contains('\t') && STARTER.ends_with("}\n"));
    // So is everything that it has commented out.
    let code = |l: &str| {
        l.trim_start().starts_with("// ")
            && !l.trim_start()[3..].starts_with(|c: char| c.is_ascii_uppercase())
    };
    let open: Vec<_> =
        STARTER.lines().map(|l| if code(l) { l.replacen("// ", "", 1) } else { l.to_owned() }).collect();
    assert_eq!(good(&open.join("\n")).vms[0].ports[0].host, 8080);
}

/// `testdata/manifest/NAME.kdl` each has its report in a snapshot, as a user without colours sees it.
#[test]
fn bad_manifests_are_explained() {
    let mut files: Vec<_> = fs::read_dir("testdata/manifest").unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 20);
    let dir = project();
    let dir = dir.path().canonicalize().unwrap();
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        let Err(diagnostics) = parse(&text, FILE_NAME, &dir) else { panic!("{name} is valid") };
        for problem in diagnostics.problems() {
            assert!(problem.code.starts_with("manifest."), "{problem:?}");
            assert!(text.get(problem.span()).is_some(), "{problem:?}");
            assert!(problem.help.is_some(), "{name} offers no help: {problem:?}");
        }
        let report = diagnostics.render(false, 100);
        assert!(!report.contains('\x1b'));
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, report);
        });
    }
}

#[test]
fn shared_sources_may_stand_behind_their_vms() {
    let manifest = good(
        "vm \"a\" { run \"x\"; kernel \"k\"; image \"i\"; vmm \"v\"; }
         kernel \"k\" { path \"/boot/vmlinuz\"; }
         image \"i\" { debian \"python3\" \"bash\"; }
         vmm \"v\" { path \"/q\"; }",
    );
    let vm = &manifest.vms[0];
    assert_eq!(vm.kernel, KernelSource::Path("/boot/vmlinuz".into()));
    assert!(matches!(&vm.image, ImageSource::Debian(set) if set.packages.len() == 7 && set.check().is_ok()));
    assert_eq!(vm.vmm, VmmSource::QemuPath("/q".into()));
}

#[test]
fn spacing_comments_and_order_of_packages_mean_nothing() {
    let a = good("vm \"a\" { run \"x\"; image { debian \"b1\" \"a1\"; } }");
    let b = good(
        "\u{FEFF}/* ** / * */ vm /* x */ \"a\" /-b /-c=1 { // y\r\n image { debian \"a1\" \\ // z\n #\"b1\"# /-{ q; }\n }; run x /-{ }\n /-run 1 { /-b 2; }\n}",
    );
    assert_eq!(a.vms[0], b.vms[0]);
}

#[test]
fn ports_may_share_a_number_on_different_addresses() {
    let text = |a: &str, b: &str| {
        format!("vm \"a\" {{ run \"x\"; port 80 address=\"{a}\"; port 80 address=\"{b}\"; }}")
    };
    good(&text("127.0.0.1", "127.0.0.2"));
    good(&text("127.0.0.1", "::1"));
    good(&text("0.0.0.0", "::1"));
    for (a, b) in [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::"), ("0.0.0.0", "::")] {
        assert_eq!(codes(&text(a, b)), ["manifest.duplicate-port"], "{a} {b}");
    }
}

#[test]
fn volumes_may_nest_and_lie_in_a_workload() {
    good(
        "vm \"a\" { run \"x\"; workload \"app\" to=\"/app\"; volume \"d\" at=\"/data\" size=\"1GiB\"
           volume \"e\" at=\"/data/db\" size=\"1GiB\"; volume \"f\" at=\"/app/data\" size=\"32MiB\"; }",
    );
}

#[test]
fn links_inside_the_project_are_fine() {
    let manifest =
        good("vm \"a\" { run \"x\"; workload \"./link-in/../app\" to=\"/x/\"; workload \".\" to=\"/\"; }");
    assert_eq!(manifest.vms[0].workloads[0].to, "/x/");
    assert_eq!(manifest.vms[0].workloads[1].source, WorkloadFrom::Path(PathBuf::from(".")));
}

#[test]
fn files_that_are_no_manifests_are_refused() {
    let dir = project();
    let load = |bytes: &[u8]| {
        fs::write(dir.path().join(FILE_NAME), bytes).unwrap();
        super::load(dir.path()).unwrap_err()
    };
    let error = super::load(dir.path()).unwrap_err();
    assert_eq!((error.code(), error.kind().exit_code()), ("manifest.missing", 64));
    assert!(error.help_text().unwrap().contains("firegopher init"));
    let error = load(b"vm \"a\" {\n  run \"\xff\"; }");
    assert_eq!(error.code(), "manifest.not-utf8");
    assert!(error.to_string().contains("offset 16 (line 2, column 8)"), "{error}");
    assert!(load(b"\xff\xfev\0m\0").help_text().unwrap().contains("UTF-16"));
    assert_eq!(load(&vec![b' '; 10 << 20]).code(), "manifest.too-large");
    assert_eq!(load(b"").code(), "manifest.empty");
    let error = load(b"vm \"a\" { rnu \"x\"; }");
    assert_eq!((error.code(), error.kind().exit_code()), ("manifest.invalid", 64));
    assert!(error.report().unwrap().contains("did you mean `run`?"));
    fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    fs::create_dir(dir.path().join(FILE_NAME)).unwrap();
    assert_eq!(super::load(dir.path()).unwrap_err().code(), "manifest.not-a-file");
}

#[test]
fn exactly_one_mebibyte_is_allowed() {
    let mut text = "vm \"a\" { run \"x\"; }\n".to_owned();
    text += &"/".repeat((1 << 20) - text.len());
    good(&text);
    assert_eq!(codes(&(text + " ")), ["manifest.too-large"]);
}

#[test]
fn projects_are_named_after_their_directory() {
    let name = |dir: &str| {
        let mut manifest = good("vm \"a\" { run \"x\"; }");
        manifest.dir = dir.into();
        project_name(&manifest).to_string()
    };
    assert!(name("/srv/My_App!").starts_with("my-app-"));
    assert_ne!(name("/a/app"), name("/b/app"));
    assert_eq!(name("/a/app"), name("/a/app"));
    assert!(name("/").starts_with("project-"));
    assert!(name("/ü").starts_with("project-"));
    assert_eq!(name(&format!("/{}", "x".repeat(99))).len(), NAME_MAX);
    assert_eq!(project_name(&good("project \"p\"; vm \"a\" { run \"x\"; }")).as_str(), "p");
}

#[test]
fn port_none_stands_alone() {
    let vm = |text: &str| format!("vm \"a\" {{ run \"x\"; {text}; }}\n");
    let manifest = good(&vm("port \"none\""));
    assert!(manifest.vms[0].ports.is_empty() && !manifest.vms[0].exposed);
    assert!(good(&vm("cpus 1")).vms[0].exposed);
    assert_eq!(codes(&vm("port \"none\"; port 80")), ["manifest.bad-value"]);
    assert_eq!(codes(&vm("port 80; port \"none\"")), ["manifest.bad-value"]);
    assert_eq!(codes(&vm("port \"none\"; port \"none\"")), ["manifest.bad-value"]);
    assert_eq!(codes(&vm("port \"none\" to=80")), ["manifest.unused-property"]);
    assert_eq!(codes(&vm("port \"80\"")), ["manifest.wrong-type"]);
}

#[test]
fn firecracker_is_named_by_its_directory() {
    let vmm = |text: &str| {
        let text =
            format!("vm \"a\" {{ run \"x\"; vmm {text}; }}\nvmm \"fast\" {{ firecracker \"/opt/fc\"; }}\n");
        super::parse(&text, "test", Path::new("/")).map(|m| m.vms[0].vmm.clone()).map_err(|_| codes(&text))
    };
    let fast = |version: Option<&str>| Firecracker {
        from: FirecrackerFrom::Dir("/opt/fc".into()),
        version: version.map(|v| v.parse().unwrap()),
    };
    let release = |version: &str| {
        let urls = vec!["https://example.org/fc.tgz".to_owned()];
        let source = UrlSource { urls, sha256: None, member: None, max: None };
        Firecracker { from: FirecrackerFrom::Release(source), version: Some(version.parse().unwrap()) }
    };
    assert_eq!(vmm("\"firecracker\" { path \"/opt/fc\"; }"), Ok(VmmSource::Firecracker(fast(None))));
    assert_eq!(vmm("\"fast\""), Ok(VmmSource::Firecracker(fast(None))));
    assert_eq!(vmm("\"auto\" { firecracker \"/opt/fc\"; }"), Ok(VmmSource::AutoFirecracker(fast(None))));
    assert_eq!(vmm("\"firecracker\""), Err(vec!["manifest.missing-source"]));
    assert_eq!(vmm("\"qemu\" { firecracker \"/opt/fc\"; }"), Err(vec!["manifest.other-source"]));
    assert_eq!(vmm("\"auto\" { path \"/usr/bin/qemu\"; }"), Err(vec!["manifest.other-source"]));
    let url = "url \"https://example.org/fc.tgz\"";
    assert_eq!(
        vmm(&format!("\"firecracker\" version=\"1.16.1\" {{ {url}; }}")),
        Ok(VmmSource::Firecracker(release("1.16.1")))
    );
    assert_eq!(
        vmm(&format!("\"auto\" version=\"1.6.0\" {{ {url}; }}")),
        Ok(VmmSource::AutoFirecracker(release("1.6.0")))
    );
    assert_eq!(vmm("\"fast\" version=\"1.9.0\""), Ok(VmmSource::Firecracker(fast(Some("1.9.0")))));
    assert_eq!(vmm("\"fast\" version=\"newest\""), Err(vec!["manifest.bad-version"]));
    assert_eq!(vmm("\"qemu\" version=\"7.2\""), Err(vec!["manifest.unused-property"]));
    assert_eq!(vmm(&format!("\"qemu\" {{ {url}; }}")), Err(vec!["manifest.other-source"]));
    assert_eq!(
        vmm(&format!("\"firecracker\" {{ {url} member=\"x\"; }}")),
        Err(vec!["manifest.unknown-property"])
    );
}

#[test]
fn workloads_are_not_placed_where_the_guest_mounts_its_own() {
    for to in ["/proc/x", "/sys", "/dev/x"] {
        let text = format!("vm \"a\" {{ run \"x\"; workload \"./app\" to=\"{to}\"; }}");
        assert_eq!(codes(&text), ["manifest.hidden-workload"], "{to}");
    }
    let beside = "vm \"a\" { run \"x\"; workload \"./app\" to=\"/process\"; }";
    assert!(parse(beside, "test", Path::new("/")).is_ok());
}

#[test]
fn a_machine_is_tuned_within_bounds() {
    let of = |text: &str| codes(&format!("vm \"a\" {{ run \"x\"; {text}; }}"));
    assert_eq!(of("memory \"65MiB\"; huge-pages \"2MiB\""), ["manifest.out-of-range"]);
    assert_eq!(of("huge-pages \"1GiB\""), ["manifest.unknown-value"]);
    assert_eq!(of("console \"loud\""), ["manifest.unknown-value"]);
    assert_eq!(of("balloon"), ["manifest.unused-setting"]);
    assert_eq!(of("network"), ["manifest.unused-setting"]);
    assert_eq!(of("balloon \"0MiB\" deflate-on-oom=#true"), ["manifest.unused-setting"]);
    assert_eq!(of("balloon \"64.5MiB\""), ["manifest.bad-size"]);
    assert_eq!(of("balloon \"100KiB\""), ["manifest.out-of-range"]);
    assert_eq!(of("memory \"128MiB\"; balloon \"65MiB\""), ["manifest.out-of-range"], "64 MiB stay");
    assert_eq!(of("balloon \"64MiB\" free-page-reporting=\"yes\""), ["manifest.wrong-type"]);
    assert_eq!(of("balloon \"64MiB\"; huge-pages \"2MiB\""), ["manifest.conflict"]);
    assert_eq!(of("cpu-template \"t2\""), ["manifest.unknown-value"]);
    assert_eq!(of("cpu-template"), ["manifest.missing-value"]);
    assert_eq!(of("cpu-template \"T2\" path=\"x.json\""), ["manifest.other-source"]);
    assert_eq!(of("cpu-template path=\"../x.json\""), ["manifest.path-leaves-project"]);
    assert_eq!(of("network mtu=20"), ["manifest.out-of-range"]);
    assert_eq!(of("network send=\"1KiB\""), ["manifest.out-of-range"]);
    assert_eq!(of("network receive=\"10MB\" send-packets=0"), ["manifest.bad-size", "manifest.out-of-range"]);
    assert_eq!(of("root \"tmpfs\" ops=5"), ["manifest.unused-property"]);
    assert_eq!(of("volume \"v\" at=\"/v\" size=\"1GiB\" bandwidth=\"5\""), ["manifest.bad-size"]);
}

#[test]
fn a_balloon_is_a_size_or_reports_what_is_free() {
    let of = |text: &str| good(&format!("vm \"a\" {{ run \"x\"; {text}; }}")).vms[0].tuning.balloon;
    let plain = Balloon { amount: 192 << 20, ..Balloon::default() };
    assert_eq!(of("balloon \"192MiB\""), Some(plain));
    let reporting = Balloon { free_page_reporting: true, ..Balloon::default() };
    assert_eq!(of("balloon free-page-reporting=#true"), Some(reporting));
    assert_eq!(of("balloon \"192MiB\" deflate-on-oom=#false"), Some(plain));
    assert_eq!(of("cpus 1"), None);
}

#[test]
fn limits_have_their_own_units_and_bounds() {
    let of = |text: &str| good(&format!("vm \"a\" {{ run \"x\"; {text}; }}")).vms[0].limits.clone();
    let limit = |resource, soft, hard| vec![Limit { resource, soft, hard }];
    assert_eq!(of("limit \"stack\" \"0B\""), limit(Resource::Stack, Some(0), Some(0)));
    assert_eq!(of("limit \"nice\" 40"), limit(Resource::Nice, Some(40), Some(40)));
    assert_eq!(of("limit \"as\" soft=\"1GiB\" hard=\"unlimited\""), limit(Resource::As, Some(1 << 30), None));
    // What the kernel takes for "unlimited" (RLIM_INFINITY) is no number.
    let most = u64::MAX - 1;
    assert_eq!(of(&format!("limit \"nproc\" {most}")), limit(Resource::Nproc, Some(most), Some(most)));
    assert_eq!(
        codes(&format!("vm \"a\" {{ run \"x\"; limit \"nproc\" {}; }}", u64::MAX)),
        ["manifest.out-of-range"]
    );
}

/// `FIREGOPHER_UPDATE_SCHEMA=1 cargo test` writes the file anew.
#[test]
fn the_schema_says_what_the_tables_say() {
    let path = "schema/firegopher.kdl-schema";
    let document = schema::document();
    kdl::KdlDocument::parse_v2(&document).unwrap();
    if std::env::var_os("FIREGOPHER_UPDATE_SCHEMA").is_some() {
        fs::write(path, &document).unwrap();
    }
    assert!(fs::read_to_string(path).unwrap() == document, "{path} is out of step with the tables");
}

#[test]
fn what_comes_later_is_not_called_unknown() {
    for later in table::LATER {
        let text = match later.parent {
            "vm" => format!("vm \"a\" {{ run \"x\"; {} \"y\"; }}", later.name),
            "vmm" => format!("vm \"a\" {{ run \"x\"; vmm \"qemu\" {{ {} \"y\"; }} }}", later.name),
            parent => {
                format!("vm \"a\" {{ run \"x\"; {parent} {{ {} \"y\" sha256=\"0\" {{ z; }} }} }}", later.name)
            }
        };
        assert_eq!(codes(&text), ["manifest.not-yet"], "{text}");
    }
    for text in ["egress \"all\"", "egress { allow \"x\"; }", "egress \"public\" { x; }"] {
        let codes = codes(&format!("vm \"a\" {{ run \"x\"; {text} }}"));
        assert!(codes.iter().all(|c| *c == "manifest.not-yet"), "{text} {codes:?}");
    }
}

#[test]
fn a_report_fits_the_terminal_and_breaks_no_word() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::create_dir(dir.path().join("app")).unwrap();
    let text = r#"vm "web" {
    workload "./app" to="/app" owner="nobody-knows-this-user-at-all" keep="everything-there-is-and-more"
    run "x"
    prot 8080
}
"#;
    let found = parse(text, "firegopher.kdl", dir.path()).unwrap_err();
    for width in [80, 120] {
        for colours in [false, true] {
            let report = found.render_fitted(colours, width);
            let visible = |line: &str| {
                let mut out = String::new();
                let mut rest = line;
                while let Some((before, after)) = rest.split_once('\u{1b}') {
                    out.push_str(before);
                    rest = after.split_once('m').map_or("", |(_, rest)| rest);
                }
                out + rest
            };
            let lines: Vec<String> = report.lines().map(visible).collect();
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{report}");
            assert!(lines.iter().any(|line| line.contains("everything-there-is-and-more\"")), "{report}");
        }
    }
}
