//! Against Debian's docker-registry, with images made by umoci and copied by skopeo; what `umoci unpack` makes of
//! them is what our images must hold.

use super::super::login::Logins;
use super::super::*;
use super::local::Layout;
use super::tools::{Tools, tools};
use super::{fetch_as, resolve_as};
use crate::asset::Silent;
use crate::asset::progress::Progress;
use crate::image::tests::compare::{differences, of_dir, of_image, set_xattr};
use crate::image::{BASE_IMAGE, BaseSource, build_base};
use crate::lock::OciConfig;
use crate::store::Store;
use crate::store::testing::scratch;
use fs_err as fs;
use serde_json::json;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// user alice, password s3cret-p4ss
const HTPASSWD: &str = "alice:$2b$05$abcdefghijklmnopqrstuu65ZDstLtpWXejTDazfUkWdFkNYTSwOy\n";

/// An image of three layers with everything that a layer can say, and its tree as umoci unpacks it.
struct Sample {
    dir: tempfile::TempDir,
    tools: &'static Tools,
}

impl Sample {
    fn layout(&self) -> String {
        format!("oci:{}:v1", self.dir.path().join("layout").display())
    }
    fn tree(&self) -> PathBuf {
        self.dir.path().join("oracle/rootfs")
    }
}

fn sample() -> Option<&'static Sample> {
    static SAMPLE: OnceLock<Option<Sample>> = OnceLock::new();
    let made = SAMPLE.get_or_init(|| {
        let tools = tools()?;
        if !nix::unistd::geteuid().is_root() {
            crate::testing::skip("umoci unpack needs root to keep owners");
            return None;
        }
        Some(make(tools))
    });
    if made.is_none() {
        crate::testing::skip("the tools that make the images cannot be had");
    }
    made.as_ref()
}

fn make(tools: &'static Tools) -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout").display().to_string();
    let image = format!("{layout}:v1");
    let bundle = |name: &str| dir.path().join(name);
    tools.run("umoci", &["init", "--layout", &layout]);
    tools.run("umoci", &["new", "--image", &image]);
    for (name, change) in
        [("one", first as fn(&Path)), ("two", second as fn(&Path)), ("three", third as fn(&Path))]
    {
        let path = bundle(name).display().to_string();
        tools.run("umoci", &["unpack", "--image", &image, &path]);
        change(&bundle(name).join("rootfs"));
        tools.run("umoci", &["repack", "--image", &image, &path]);
    }
    tools.run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.entrypoint",
            "/bin/tool",
            "--config.cmd",
            "serve",
            "--config.env",
            "PATH=/usr/bin:/bin",
            "--config.user",
            "1000:1001",
            "--config.workingdir",
            "/srv",
            "--config.exposedports",
            "8080/tcp",
        ],
    );
    tools.run("umoci", &["unpack", "--image", &image, &bundle("oracle").display().to_string()]);
    Sample { dir, tools }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn first(root: &Path) {
    for dir in ["usr/bin", "usr/lib", "srv/data/deep", "etc", "opaque/old", "many", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (link, target) in
        [("bin", "usr/bin"), ("lib", "/usr/lib"), ("etc/far", "../../../outside"), ("was-link", "etc")]
    {
        symlink(target, root.join(link)).unwrap();
    }
    mode(&root.join("tmp"), 0o1777);
    for (name, size) in [
        ("usr/bin/tool", 100_000),
        ("etc/passwd", 30),
        ("etc/removed", 1),
        ("opaque/old/x", 5),
        ("opaque/y", 0),
        ("becomes-dir", 3),
        ("srv/data/deep/f", 70_000),
    ] {
        fs::write(root.join(name), vec![size as u8; size]).unwrap();
    }
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/same-tool")).unwrap();
    mode(&root.join("usr/bin/tool"), 0o4755);
    fs::write(root.join("etc/shadow"), "secret").unwrap();
    chown(root.join("etc/shadow"), Some(0), Some(42)).unwrap();
    mode(&root.join("etc/shadow"), 0);
    chown(root.join("srv/data"), Some(1000), Some(1_900_000_001)).unwrap();
    mode(&root.join("srv/data"), 0o2750);
    symlink("nowhere", root.join("srv/dangling")).unwrap();
    lchown(root.join("srv/dangling"), Some(1000), Some(7)).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let device = nix::sys::stat::makedev(1, 3);
    let (kind, bits) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::from_bits_truncate(0o666));
    nix::sys::stat::mknod(&root.join("null"), kind, bits, device).unwrap();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    set_xattr(&root.join("usr/bin/tool"), "security.capability", capability).unwrap();
    set_xattr(&root.join("srv/data"), "trusted.note", b"a\nb=c\0d").unwrap();
    for n in 0..500 {
        fs::write(root.join(format!("many/file-{n:04}")), n.to_string()).unwrap();
    }
}

fn second(root: &Path) {
    fs::remove_file(root.join("etc/removed")).unwrap();
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/new"), "new").unwrap();
    fs::remove_file(root.join("becomes-dir")).unwrap();
    fs::create_dir_all(root.join("becomes-dir/with")).unwrap();
    fs::write(root.join("becomes-dir/with/file"), "1").unwrap();
    fs::remove_file(root.join("was-link")).unwrap();
    fs::create_dir(root.join("was-link")).unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("etc/passwd-")).unwrap();
    fs::write(root.join("usr/lib/libx.so"), "x").unwrap();
    mode(&root.join("srv/data"), 0o700);
    for n in 0..100 {
        fs::remove_file(root.join(format!("many/file-{n:04}"))).unwrap();
    }
}

fn third(root: &Path) {
    fs::remove_dir_all(root.join("becomes-dir")).unwrap();
    fs::write(root.join("becomes-dir"), "a file again").unwrap();
    fs::remove_dir_all(root.join("srv/data/deep")).unwrap();
    symlink("/etc", root.join("srv/data/deep")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(root.join("Grüße 🎈"), "utf-8").unwrap();
}

fn build(store: &Store, layers: &[StoredLayer], dir: &Path) -> PathBuf {
    let layers: Vec<_> = layers.iter().map(|layer| layer.in_store(store)).collect();
    let out = dir.join("out");
    fs::create_dir_all(&out).unwrap();
    build_base(BaseSource::Layers(&layers), &out, dir).unwrap();
    out.join(BASE_IMAGE)
}

fn assert_is_the_oracle(image: &Path, sample: &Sample) {
    let (ours, theirs) = (of_image(image), of_dir(&sample.tree()));
    assert!(theirs.len() > 400, "the oracle is whole");
    let found = differences(&ours, &theirs);
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

/// Adds up what is downloaded.
#[derive(Default)]
struct Counted(AtomicU64);

impl Progress for Counted {
    fn start(&self, _what: &str, _total: Option<u64>) {}
    fn advance(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    fn note(&self, text: &str) {
        println!("note: {text}");
    }
}

fn check_defaults(config: &OciConfig) {
    assert_eq!(config.argv(), ["/bin/tool", "serve"]);
    assert_eq!((config.user.as_str(), config.workdir.as_str()), ("1000:1001", "/srv"));
    assert_eq!(config.ports, [8080]);
    assert!(config.env.contains(&("PATH".into(), "/usr/bin:/bin".into())), "{:?}", config.env);
}

#[test]
fn a_layout_becomes_the_tree_that_umoci_unpacks() {
    let Some(sample) = sample() else { return };
    let (s, dir) = (scratch(), tempfile::tempdir().unwrap());
    let image = open_local(&s.store, &sample.dir.path().join("layout"), Some("v1")).unwrap();
    check_defaults(&image.pin.config);
    assert_eq!(image.layers.len(), 3);
    assert_is_the_oracle(&build(&s.store, &image.layers, dir.path()), sample);
}

#[test]
fn archives_of_docker_and_of_oci_become_the_same_tree() {
    let Some(sample) = sample() else { return };
    for (transport, tag) in [("oci-archive", "v1"), ("docker-archive", "example.org/app:v1")] {
        let (s, dir) = (scratch(), tempfile::tempdir().unwrap());
        let path = dir.path().join("image.tar");
        sample.tools.copy(&[], &sample.layout(), &format!("{transport}:{}:{tag}", path.display()));
        for name in [None, Some("v1"), Some(tag)] {
            check_defaults(&inspect(&s.store, &path, name).unwrap().config);
        }
        let image = open_local(&s.store, &path, None).unwrap();
        assert_is_the_oracle(&build(&s.store, &image.layers, dir.path()), sample);
        Command::new("gzip").arg(&path).status().unwrap();
        let again = open_local(&s.store, &dir.path().join("image.tar.gz"), Some("v1")).unwrap();
        assert_eq!(again, image, "{transport}, compressed as a whole");
    }
}

#[test]
fn a_registry_serves_the_same_image_in_both_formats_and_layers_are_downloaded_once() {
    let Some(sample) = sample() else { return };
    let (s, dir) = (scratch(), tempfile::tempdir().unwrap());
    let registry = sample.tools.registry(dir.path(), "");
    let logins = Logins::default();
    let reference = |tag: &str| format!("{}/group/app:{tag}", registry.address);
    for format in ["oci", "v2s2"] {
        let to = format!("docker://{}", reference(format));
        sample.tools.copy(&["--format", format], &sample.layout(), &to);
    }
    let pin = resolve_as(&reference("oci"), &logins, &Silent).unwrap();
    check_defaults(&pin.config);
    assert!(!have(&s.store, &reference("oci"), &pin));
    let counted = Counted::default();
    let layers = fetch_as(&s.store, &reference("oci"), &pin, &logins, &counted).unwrap();
    assert_eq!(counted.0.load(Ordering::Relaxed), pin.layers.iter().map(|layer| layer.size).sum::<u64>());
    assert!(have(&s.store, &reference("oci"), &pin));
    let stored = stored_layers(&s.store, &reference("oci"), &pin, &layers).unwrap();
    assert_is_the_oracle(&build(&s.store, &stored, dir.path()), sample);

    let docker = resolve_as(&reference("v2s2"), &logins, &Silent).unwrap();
    assert_ne!(docker.manifest, pin.manifest);
    let counted = Counted::default();
    assert_eq!(fetch_as(&s.store, &reference("v2s2"), &docker, &logins, &counted).unwrap(), layers);
    assert_eq!(counted.0.load(Ordering::Relaxed), 0, "the layers are the same blobs");

    // By digest, and with the registry gone.
    let by_digest = format!("{}/group/app@{}", registry.address, pin.manifest);
    assert_eq!(resolve_as(&by_digest, &logins, &Silent).unwrap(), pin);
    drop(registry);
    assert_eq!(fetch_as(&s.store, &by_digest, &pin, &logins, &Silent).unwrap(), layers);
    let error = resolve_as(&by_digest, &logins, &Silent).unwrap_err();
    assert_eq!(error.code(), "oci.unreachable", "{error}");
}

#[test]
fn of_an_index_the_image_for_this_platform_is_taken() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    let registry = tools.registry(dir.path(), "");
    let mut layout = Layout::default();
    let arm = layout.image("arm64", json!({}), &[b"arm"]);
    let amd = layout.image("amd64", json!({ "Cmd": ["x"] }), &[b"amd"]);
    let push = |layout: &mut Layout, manifests: &[serde_json::Value], tag: &str| {
        let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
        let nested = layout.blob("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
        layout.index(std::slice::from_ref(&nested));
        let path = layout.dir(&dir.path().join(tag));
        let from = format!("oci:{}", path.display());
        tools.copy(
            &["--all", "--preserve-digests"],
            &from,
            &format!("docker://{}/multi:{tag}", registry.address),
        );
    };
    push(&mut layout, &[arm.clone(), amd.clone()], "both");
    push(&mut layout, std::slice::from_ref(&arm), "arm");
    let resolve =
        |tag: &str| resolve_as(&format!("{}/multi:{tag}", registry.address), &Logins::default(), &Silent);
    assert_eq!(resolve("both").unwrap().manifest, amd["digest"].as_str().unwrap());
    let error = resolve("arm").unwrap_err();
    assert_eq!(error.code(), "oci.no-platform");
    assert!(error.to_string().contains("linux/arm64"), "{error}");
    let error = resolve("absent").unwrap_err();
    assert_eq!(error.code(), "oci.unknown-image", "{error}");
    assert!(error.to_string().contains("/multi:absent"), "{error}");
}

#[test]
fn a_registry_with_passwords_wants_the_right_one() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
    let auth =
        format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", dir.path().join("htpasswd").display());
    let registry = tools.registry(dir.path(), &auth);
    let mut layout = Layout::default();
    let image = layout.image("amd64", json!({}), &[b"a layer"]);
    layout.index(std::slice::from_ref(&image));
    let path = layout.dir(&dir.path().join("layout"));
    let reference = format!("{}/private/app:1", registry.address);
    let from = format!("oci:{}", path.display());
    tools.copy(
        &["--preserve-digests", "--dest-creds", "alice:s3cret-p4ss"],
        &from,
        &format!("docker://{reference}"),
    );

    // base64 of alice:s3cret-p4ss and alice:wrong-p4ss.
    let logins = |auth: &str| {
        let file = dir.path().join("auth.json");
        fs::write(&file, json!({ "auths": { &registry.address: { "auth": auth } } }).to_string()).unwrap();
        Logins::of_files(vec![file])
    };
    let error = resolve_as(&reference, &Logins::default(), &Silent).unwrap_err();
    assert_eq!(error.code(), "oci.login-needed", "{error}");
    assert!(error.help_text().unwrap().contains("docker login 127.0.0.1"), "{error:?}");
    let error = resolve_as(&reference, &logins("YWxpY2U6d3JvbmctcDRzcw=="), &Silent).unwrap_err();
    assert_eq!(error.code(), "oci.login-refused", "{error}");
    assert!(!format!("{error:?}").contains("wrong-p4ss"), "{error:?}");

    let logins = logins("YWxpY2U6czNjcmV0LXA0c3M=");
    let pin = resolve_as(&reference, &logins, &Silent).unwrap();
    let s = scratch();
    let layers = fetch_as(&s.store, &reference, &pin, &logins, &Silent).unwrap();
    assert_eq!(s.store.read(&layers[0]).unwrap(), b"a layer");
}
