//! Layouts and archives made byte by byte.

use super::super::*;
use crate::asset::oci::image::digest_of;
use crate::asset::oci::local::archive_key;
use crate::error::Error;
use crate::lock::{OciConfig, OciImage};
use crate::store::Action;
use crate::store::scan::scan_file;
use crate::store::testing::{Scratch, scratch};
use fs_err as fs;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The files of a layout, by name.
#[derive(Default, Clone)]
pub(super) struct Layout(pub BTreeMap<String, Vec<u8>>);

impl Layout {
    /// Adds a blob; its descriptor.
    pub fn blob(&mut self, media: &str, bytes: &[u8]) -> Value {
        let digest = digest_of(bytes);
        self.0.insert(format!("blobs/{}", digest.replace(':', "/")), bytes.to_vec());
        json!({ "mediaType": media, "digest": digest, "size": bytes.len() })
    }

    /// Adds an image of these layers; its manifest's descriptor.
    pub fn image(&mut self, arch: &str, config: Value, layers: &[&[u8]]) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
        let config = json!({ "os": "linux", "architecture": arch, "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(LAYER, layer)).collect();
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = json!({ "os": "linux", "architecture": arch });
        descriptor
    }

    pub fn index(&mut self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.0.insert("index.json".into(), index.to_string().into_bytes());
        self.0.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    }

    pub fn dir(&self, root: &Path) -> PathBuf {
        for (name, bytes) in &self.0 {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), bytes).unwrap();
        }
        root.to_owned()
    }

    pub fn tar(&self) -> Vec<u8> {
        let mut tar = ::tar::Builder::new(Vec::new());
        for (name, bytes) in &self.0 {
            let mut header = ::tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            tar.append_data(&mut header, name, &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    descriptor
}

fn config() -> Value {
    json!({ "Entrypoint": ["/app"], "Cmd": ["--serve"], "Env": ["PATH=/bin", "A=1", "A=2", "BARE"], "User": "1000:1000",
        "WorkingDir": "/srv", "ExposedPorts": { "8080/tcp": {}, "53/udp": {}, "9000-9002": {} } })
}

/// A store with a directory beside it.
fn bench() -> (Scratch, tempfile::TempDir) {
    (scratch(), tempfile::tempdir().unwrap())
}

#[test]
fn an_image_brings_its_defaults_and_its_layers() {
    let (s, dir) = bench();
    let mut layout = Layout::default();
    let image = layout.image("amd64", config(), &[b"lower layer", b"upper layer"]);
    layout.index(std::slice::from_ref(&image));
    let path = layout.dir(&dir.path().join("layout"));
    let opened = open_local(&s.store, &path, None).unwrap();
    let LocalImage { pin, layers, left_out } = opened.clone();
    assert_eq!(pin.manifest, image["digest"].as_str().unwrap());
    assert_eq!(pin.config.argv(), ["/app", "--serve"]);
    let env: Vec<_> = pin.config.env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(env, [("PATH", "/bin"), ("A", "2")]);
    assert_eq!((pin.config.user.as_str(), pin.config.workdir.as_str()), ("1000:1000", "/srv"));
    assert_eq!(pin.config.ports, [8080, 9000, 9001, 9002]);
    assert_eq!(left_out, ["53/udp is exposed and not published: only TCP is"]);
    assert_eq!(s.store.read(&layers[0].object).unwrap(), b"lower layer");
    assert_eq!(s.store.read(&layers[1].object).unwrap(), b"upper layer");
    assert_eq!(layers[1].diff_id, Some(digest_of(b"upper layer")));
    assert!(pin.image().layers.iter().all(|layer| stored(&s.store, layer).is_some()));
    assert_eq!(inspect(&s.store, &path, None).unwrap(), pin.image());

    // The same as an archive, plain and compressed.
    let tar = dir.path().join("image.tar");
    fs::write(&tar, layout.tar()).unwrap();
    assert_eq!(open_local(&s.store, &tar, None).unwrap(), opened);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layout.tar()).unwrap();
    fs::write(&tar, gzip.finish().unwrap()).unwrap();
    assert_eq!(open_local(&s.store, &tar, None).unwrap(), opened);
}

#[test]
fn what_a_compressed_archive_says_is_remembered_by_its_bytes() {
    let (s, dir) = bench();
    let path = dir.path().join("image.tar.gz");
    let pack = |argument: &str| {
        let mut layout = Layout::default();
        let image = layout.image("amd64", json!({ "Cmd": [argument] }), &[b"a layer"]);
        layout.index(&[named(image, "v1")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&layout.tar()).unwrap();
        // A new file: of one whose time is that of this moment no digest is kept.
        let _ = fs::remove_file(&path);
        fs::write(&path, gzip.finish().unwrap()).unwrap();
    };
    let argv = |tag| inspect(&s.store, &path, tag).map(|pin| pin.config.argv());
    let kept = || s.store.objects().unwrap().len();
    pack("one");
    assert_eq!(argv(None).unwrap(), ["one"]);
    assert_eq!(kept(), 1);
    assert_eq!(argv(Some("v1")).unwrap(), ["one"]);
    assert_eq!(
        argv(Some("")).unwrap_err().code(),
        "oci.unknown-tag",
        "no tag is another one than an empty tag"
    );
    assert_eq!(kept(), 1, "both say the same");
    pack("two");
    assert_eq!(argv(None).unwrap(), ["two"]);
    assert_eq!(kept(), 2);

    // What is remembered stands for the archive, which is not unpacked again.
    let key = archive_key(&scan_file(&s.store, &path).unwrap().digest, None);
    let remember = |bytes: &[u8]| {
        let output = s.store.publish_bytes(bytes).unwrap();
        s.store.record(&key, &Action { output, ..s.store.action(&key).unwrap() }).unwrap();
    };
    let image = inspect(&s.store, &path, None).unwrap();
    let config = OciConfig { cmd: vec!["three".into()], ..image.config.clone() };
    remember(&serde_json::to_vec(&OciImage { config, ..image }).unwrap());
    assert_eq!(argv(None).unwrap(), ["three"]);
    for nonsense in ["{}", "no JSON"] {
        remember(nonsense.as_bytes());
        assert_eq!(argv(None).unwrap(), ["two"], "what cannot be believed is read again");
    }
}

#[test]
fn a_tag_chooses_among_several_images() {
    let (s, dir) = bench();
    let mut layout = Layout::default();
    let (one, two) =
        (layout.image("amd64", json!({}), &[b"one"]), layout.image("amd64", json!({}), &[b"two"]));
    layout.index(&[named(one.clone(), "1.0"), named(two.clone(), "reg.example.org/app:2.0")]);
    let path = layout.dir(dir.path());
    let open = |tag| open_local(&s.store, &path, tag).map(|image| image.pin.manifest);
    assert_eq!(open(Some("1.0")).unwrap(), one["digest"].as_str().unwrap());
    for tag in ["2.0", "reg.example.org/app:2.0", "app:2.0", "reg.example.org/app"] {
        assert_eq!(open(Some(tag)).unwrap(), two["digest"].as_str().unwrap(), "{tag}");
    }
    let error = open(None).unwrap_err();
    assert_eq!(error.code(), "oci.several-images");
    assert!(error.help_text().unwrap().contains("1.0, reg.example.org/app:2.0"), "{error:?}");
    let error = open(Some("3.0")).unwrap_err();
    assert_eq!(error.code(), "oci.unknown-tag");
    assert!(error.help_text().unwrap().contains("1.0"), "{error:?}");
}

#[test]
fn of_several_platforms_ours_is_taken() {
    let (s, dir) = bench();
    let mut layout = Layout::default();
    let (arm, amd) =
        (layout.image("arm64", json!({}), &[b"arm"]), layout.image("amd64", json!({}), &[b"amd"]));
    let attestation = json!({ "mediaType": MANIFEST, "digest": amd["digest"], "size": 1,
        "platform": { "os": "unknown", "architecture": "unknown" } });
    let nested = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [arm, attestation, amd] });
    let nested = layout.blob(INDEX, nested.to_string().as_bytes());
    layout.index(&[named(nested, "latest")]);
    let path = layout.dir(&dir.path().join("both"));
    let image = open_local(&s.store, &path, None).unwrap();
    assert_eq!(image.pin.manifest, amd["digest"].as_str().unwrap());

    layout.index(&[arm.clone(), amd.clone()]);
    assert_eq!(open_local(&s.store, &layout.dir(&path), None).unwrap(), image, "without an index of its own");

    for manifests in [vec![arm.clone()], vec![arm.clone(), attestation_of(&arm)]] {
        layout.index(&manifests);
        let error = open_local(&s.store, &layout.dir(&path), None).unwrap_err();
        assert_eq!(error.code(), "oci.no-platform", "{error}");
        assert!(
            error.to_string().contains("linux/arm64") && !error.to_string().contains("unknown"),
            "{error}"
        );
    }
}

fn attestation_of(image: &Value) -> Value {
    json!({ "mediaType": MANIFEST, "digest": image["digest"], "size": 1,
        "platform": { "os": "unknown", "architecture": "unknown" } })
}

#[test]
fn what_an_index_says_of_artifacts_and_leaves_empty_keeps_nobody_from_the_image() {
    let (s, dir) = bench();
    let mut layout = Layout::default();
    let (signature, image) =
        (layout.image("amd64", json!({}), &[b"sig"]), layout.image("amd64", json!({}), &[b"image"]));
    let wanted = image["digest"].as_str().unwrap().to_owned();
    let mut open = |name: &str, manifests: Vec<Value>| {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let index = layout.blob(INDEX, index.to_string().as_bytes());
        layout.index(&[index]);
        open_local(&s.store, &layout.dir(&dir.path().join(name)), None).unwrap().pin.manifest
    };
    let artifact = json!({ "mediaType": MANIFEST, "digest": signature["digest"], "size": signature["size"],
        "platform": signature["platform"], "artifactType": "application/vnd.dev.cosign" });
    assert_eq!(open("beside", vec![artifact, image.clone()]), wanted);
    let mut unnamed = image;
    unnamed["platform"] = json!({ "os": "", "architecture": "" });
    assert_eq!(open("empty", vec![unnamed]), wanted);
}

/// What `docker save` before version 25 wrote, with the second image's layer being a link to the first one's.
fn docker_archive() -> Vec<u8> {
    let mut layout = Layout::default();
    let config = |n: u32, layers: &[&[u8]]| {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
        json!({ "os": "linux", "architecture": "amd64", "config": { "Cmd": ["/bin/sh", n.to_string()] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids } })
    };
    let (one, two) = (config(1, &[b"lower"]), config(2, &[b"lower", b"upper"]));
    layout.0.insert("one.json".into(), one.to_string().into_bytes());
    layout.0.insert("two.json".into(), two.to_string().into_bytes());
    layout.0.insert("aa/layer.tar".into(), b"lower".to_vec());
    layout.0.insert("bb/layer.tar".into(), b"upper".to_vec());
    let manifest = json!([
        { "Config": "one.json", "RepoTags": ["app:1"], "Layers": ["aa/layer.tar"] },
        { "Config": "two.json", "RepoTags": ["app:2", "app:latest"], "Layers": ["cc/layer.tar", "bb/layer.tar"] },
    ]);
    layout.0.insert("manifest.json".into(), manifest.to_string().into_bytes());
    let mut tar = layout.tar();
    tar.truncate(tar.len() - 1024);
    let mut builder = ::tar::Builder::new(tar);
    let mut header = ::tar::Header::new_ustar();
    header.set_entry_type(::tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_link(&mut header, "cc/layer.tar", "../aa/layer.tar").unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn what_docker_save_writes_is_read() {
    let (s, dir) = bench();
    let path = dir.path().join("saved.tar");
    fs::write(&path, docker_archive()).unwrap();
    let error = open_local(&s.store, &path, None).unwrap_err();
    assert_eq!(error.code(), "oci.several-images");
    assert!(error.help_text().unwrap().contains("app:1, app:2, app:latest"), "{error:?}");
    let one = open_local(&s.store, &path, Some("1")).unwrap();
    assert_eq!(one.pin.config.argv(), ["/bin/sh", "1"]);
    assert_eq!(one.pin.manifest, one.pin.config.digest);
    let two = open_local(&s.store, &path, Some("app:latest")).unwrap();
    assert_eq!(two.layers[0], one.layers[0], "a layer of two images is one object");
    assert_eq!(s.store.read(&two.layers[1].object).unwrap(), b"upper");
}

fn refused(change: impl FnOnce(&mut Layout, Value)) -> Error {
    let (s, dir) = bench();
    let mut layout = Layout::default();
    let image = layout.image("amd64", json!({}), &[b"a layer"]);
    layout.index(std::slice::from_ref(&image));
    change(&mut layout, image);
    let error = open_local(&s.store, &layout.dir(dir.path()), None).unwrap_err();
    let left = s.store.objects().unwrap();
    assert_eq!(left, [], "nothing is published: {error}");
    error
}

fn blob_name(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

#[test]
fn a_damaged_or_hostile_image_is_refused_and_says_why() {
    let layer = format!("blobs/{}", digest_of(b"a layer").replace(':', "/"));
    type Change<'a> = Box<dyn FnOnce(&mut Layout, Value) + 'a>;
    let image_with = |change: fn(&mut Value)| -> Change<'_> {
        Box::new(move |layout: &mut Layout, image: Value| {
            let mut manifest: Value = serde_json::from_slice(&layout.0[&blob_name(&image)]).unwrap();
            change(&mut manifest);
            let image = layout.blob(MANIFEST, manifest.to_string().as_bytes());
            layout.index(&[image]);
        })
    };
    let (changed, gone, grown, short) = (layer.clone(), layer.clone(), layer.clone(), layer.clone());
    let cases: Vec<(Change<'_>, &str, &str)> = vec![
        (Box::new(move |l, _| drop(l.0.insert(changed, b"A layer".to_vec()))), "oci.invalid", "are those of"),
        (Box::new(move |l, _| drop(l.0.remove(&gone))), "oci.invalid", "lacks the layer"),
        (
            Box::new(move |l, _| drop(l.0.insert(grown, vec![0; 9000]))),
            "oci.invalid",
            "more than its 7 bytes",
        ),
        (Box::new(move |l, _| drop(l.0.insert(short, b"a".to_vec()))), "oci.invalid", "1 bytes instead of 7"),
        (Box::new(|l, i| drop(l.0.remove(&blob_name(&i)))), "oci.invalid", "lacks the blob"),
        (Box::new(|l, i| drop(l.0.insert(blob_name(&i), b"{}".to_vec()))), "oci.invalid", "other bytes"),
        (Box::new(|l, _| drop(l.0.remove("index.json"))), "oci.unknown-format", "no container image"),
        (
            Box::new(|l, _| drop(l.0.insert("index.json".into(), b"{".to_vec()))),
            "oci.invalid",
            "cannot be read",
        ),
        (Box::new(|l, _| drop(l.0.insert("index.json".into(), vec![b' '; 5 << 20]))), "oci.invalid", "most"),
        (Box::new(|l, _| l.index(&[])), "oci.invalid", "no image at all"),
        (image_with(|m| m["schemaVersion"] = json!(1)), "oci.schema-1", "schema 1"),
        (image_with(|m| m["schemaVersion"] = json!(3)), "oci.invalid", "schema version"),
        (image_with(|m| m["manifests"] = json!([])), "oci.invalid", "at once"),
        (image_with(|m| m["mediaType"] = json!(INDEX)), "oci.invalid", "type that it declares"),
        (image_with(|m| m["mediaType"] = json!("text/plain")), "oci.invalid", "text/plain"),
        (image_with(|m| m["layers"] = json!([])), "oci.invalid", "0 layers and its configuration 1"),
        (
            image_with(|m| m["layers"][0]["mediaType"] = json!("application/x+encrypted")),
            "oci.invalid",
            "encrypted",
        ),
        (
            image_with(|m| m["layers"][0]["digest"] = json!(format!("sha384:{}", "0".repeat(96)))),
            "oci.invalid",
            "sha256",
        ),
        (
            image_with(|m| m["layers"][0]["digest"] = json!("sha256:../../../etc/passwd")),
            "oci.invalid",
            "cannot be read",
        ),
        (image_with(|m| m["layers"][0]["size"] = json!(-1)), "oci.invalid", "cannot be read"),
        (image_with(|m| m["layers"][0]["size"] = json!(6)), "oci.invalid", "more than its 6 bytes"),
        (
            image_with(|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")),
            "oci.invalid",
            "helm",
        ),
        (image_with(|m| m["config"]["size"] = json!(1)), "oci.invalid", "other bytes"),
        (
            Box::new(|layout: &mut Layout, _| {
                let config = json!({ "os": "linux", "architecture": "amd64",
                    "rootfs": { "type": "layers", "diff_ids": ["md5:0"] } });
                let config = layout.blob(CONFIG, config.to_string().as_bytes());
                let layer = layout.blob(LAYER, b"a layer");
                let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
                let image = layout.blob(MANIFEST, manifest.to_string().as_bytes());
                layout.index(&[image]);
            }),
            "oci.invalid",
            "\"md5:0\", uncompressed, is neither of the kind sha256",
        ),
    ];
    for (change, code, says) in cases {
        let error = refused(change);
        assert_eq!(error.code(), code, "{says}: {error}");
        assert!(error.to_string().contains(says), "{says:?} is not in: {error}");
        assert!(!says.starts_with("lacks") || error.help_text().is_some(), "{error:?}");
    }
}

#[test]
fn what_is_no_image_names_what_is_read() {
    let (s, dir) = bench();
    let error = open_local(&s.store, &dir.path().join("absent"), None).unwrap_err();
    assert_eq!(error.code(), "oci.read");
    let file = dir.path().join("file");
    fs::write(&file, "hello").unwrap();
    assert_eq!(open_local(&s.store, &file, None).unwrap_err().code(), "archive.unknown-format");
    fs::create_dir(dir.path().join("d")).unwrap();
    // What the transport dir: of skopeo writes has a manifest.json too, of another kind.
    fs::write(dir.path().join("d/manifest.json"), "[{\"Config\":\"../../etc/shadow\",\"Layers\":[]}]")
        .unwrap();
    let error = open_local(&s.store, &dir.path().join("d"), None).unwrap_err();
    assert_eq!(error.code(), "oci.unknown-format");
    nix::unistd::mkfifo(&dir.path().join("d/index.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(open_local(&s.store, &dir.path().join("d"), None).unwrap_err().code(), "oci.read");
}
