//! Container images: out of a registry and out of a layout, booted by what they say of themselves.

use crate::harness::{Project, free_port, guests, skip};
use crate::traces::home_with_packages;
use crate::web::{Reply, Server};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

mod entries;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What a shell and nothing else is made of on Debian.
const SHELL: [(&str, &str); 3] = [
    ("/bin/dash", "bin/sh"),
    ("/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"),
    ("/lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libc.so.6"),
];

/// Says who and where it is, with what; stays if it is told to.
const MAIN: &str = r#"
while read name value rest; do
    case $name in Uid:|Gid:|Groups:) echo "$name $value";; esac
done < /proc/self/status
echo "in $PWD: $# $1 $GREETING $OWN"
[ -O . ] && echo "$PWD is mine"
[ -e /etc/gone ] && echo "/etc/gone is there"
[ -n "$STAY" ] && read forever < /srv/fifo
exit 7
"#;

/// The files of an OCI layout.
struct Layout {
    files: BTreeMap<String, Vec<u8>>,
    manifest: Value,
}

impl Layout {
    fn blob(&mut self, media: &str, bytes: &[u8]) -> Value {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        self.files.insert(format!("blobs/sha256/{hex}"), bytes.to_vec());
        json!({ "mediaType": media, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    fn write(&self, dir: &Path) {
        for (name, bytes) in &self.files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    /// Serves the image as `group/app:1`.
    fn serve(&self) -> Server {
        self.serve_as(&Arc::new(Mutex::new(self.manifest["digest"].as_str().unwrap().to_owned())))
    }

    /// Serves all blobs, and what has this digest as `group/app:1`.
    fn serve_as(&self, tagged: &Arc<Mutex<String>>) -> Server {
        let (files, tagged) = (self.files.clone(), Arc::clone(tagged));
        Server::start(move |request| {
            let version = request.target.rsplit('/').next().unwrap_or_default();
            let manifest = tagged.lock().unwrap().clone();
            let digest = if version == "1" { manifest.as_str() } else { version };
            let blob = files.get(&format!("blobs/{}", digest.replace(':', "/")));
            match blob.filter(|_| request.target.starts_with("/v2/group/app/")) {
                Some(blob) => Reply::ok(blob.as_slice()),
                None => Reply::status(404),
            }
        })
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).unwrap();
}

/// An image with a shell in its lower layer and a program in its upper one.
fn image(port: u16) -> Option<Layout> {
    image_with(port, |_| ())
}

/// The same with another configuration.
fn image_with(port: u16, change: impl FnOnce(&mut Value)) -> Option<Layout> {
    use tar::EntryType as Type;
    if let Some((missing, _)) = SHELL.iter().find(|(path, _)| !Path::new(path).exists()) {
        skip(format!("no {missing} to make an image of"));
        return None;
    }
    let mut lower = tar::Builder::new(Vec::new());
    for (path, to) in SHELL {
        append(&mut lower, to, Type::Regular, 0o755, &std::fs::read(path).unwrap());
    }
    append(
        &mut lower,
        "etc/passwd",
        Type::Regular,
        0o644,
        b"root:x:0:0::/:/bin/sh\napp:x:1234:1234::/srv:/bin/sh\n",
    );
    append(&mut lower, "etc/group", Type::Regular, 0o644, b"root:x:0:\nstaff:x:50:\nmore:x:60:app\n");
    append(&mut lower, "etc/gone", Type::Regular, 0o644, b"");
    append(&mut lower, "srv/", Type::Directory, 0o755, b"");
    let mut upper = tar::Builder::new(Vec::new());
    append(&mut upper, "bin/main", Type::Regular, 0o755, MAIN.as_bytes());
    append(&mut upper, "etc/.wh.gone", Type::Regular, 0o644, b"");
    append(&mut upper, "srv/fifo", Type::Fifo, 0o666, b"");
    let layers = [lower.into_inner().unwrap(), upper.into_inner().unwrap()];

    let mut layout = Layout { files: BTreeMap::new(), manifest: Value::Null };
    let layers: Vec<Value> =
        layers.iter().map(|layer| layout.blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let mut config = json!({
        "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "config": {
            "Entrypoint": ["/bin/sh", "/bin/main"], "Cmd": ["one two"], "Env": ["GREETING=hello", "OWN=image"],
            "User": "app:staff", "WorkingDir": "/srv", "ExposedPorts": { format!("{port}/tcp"): {} },
        },
    });
    change(&mut config);
    let config = layout.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    layout.manifest = layout.blob(MANIFEST, manifest.to_string().as_bytes());
    layout.manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [&layout.manifest] });
    layout.files.insert("index.json".into(), index.to_string().into_bytes());
    layout.files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    Some(layout)
}

/// The text of a lock as it was before everything had a BLAKE3.
pub fn without_blake3(lock: &str) -> String {
    let mut pieces = lock.split("blake3 = ");
    let mut out = pieces.next().unwrap().to_owned();
    for piece in pieces {
        // Less the digest, its quotes, and what parts it from the next field.
        let rest = &piece[66..];
        out.push_str(rest.strip_prefix(", ").or(rest.strip_prefix('\n')).unwrap_or(rest));
    }
    out
}

/// The text of a lock with another BLAKE3 in `line`.
pub fn other_blake3(lock: &str, line: &str) -> String {
    let at = line.find("blake3 = \"").unwrap() + "blake3 = \"".len();
    let edited = format!("{}{}{}", &line[..at], "0".repeat(64), &line[at + 64..]);
    lock.replace(line, &edited)
}

const SAYS: &str = "Uid: 1234\nGid: 50\nGroups: 50\nin /srv: 1 one two hello image\n";

#[test]
fn a_container_image_runs_as_it_says_itself() {
    let Some(_turn) = guests(1) else { return };
    let port = free_port();
    let Some(layout) = image(port) else { return };
    let registry = layout.serve();
    let reference = format!("{}/group/app:1", registry.address());
    let project = Project::new(&format!("vm \"app\" {{ image {{ oci \"{reference}\"; }} }}"));
    project.ok(&["lock"]);
    let lock = project.read("firegopher.lock");
    assert!(lock.contains(layout.manifest["digest"].as_str().unwrap()), "{lock}");
    assert_eq!(project.run(&["run", "--locked"]).expect(7).stdout, SAYS);
    let asked = registry.seen().len();
    assert_eq!(project.run(&["run", "app", "--locked"]).expect(7).stdout, SAYS);
    assert_eq!(registry.seen().len(), asked, "nothing is asked for twice");
    drop(registry);

    // What the manifest says wins; the exposed port is published while it says nothing of ports.
    project.manifest(&format!(
        "vm \"app\" {{ image {{ oci \"{reference}\"; }}; workdir \"/\"; user \"root\"; env {{ OWN \"mine\"; STAY \"yes\"; }} }}"
    ));
    project.ok(&["up", "-d", "--offline"]);
    let ps = project.ok(&["ps", "--json"]).stdout;
    assert!(ps.contains(&port.to_string()), "{ps}");
    let said = "Uid: 0\nGid: 0\nGroups: 0\nin /: 1 one two hello mine\n";
    let last = said.lines().next_back().unwrap_or_default();
    assert!(project.wait_log("app", last).contains(said));
    project.ok(&["down"]);
}

#[test]
fn a_layout_in_the_project_boots_without_a_network_and_without_a_lock_entry() {
    let Some(_turn) = guests(1) else { return };
    let Some(layout) = image(free_port()) else { return };
    let project = Project::new("vm \"app\" { image { oci-path \"./layout\" tag=\"1\"; } }");
    layout.write(&project.path().join("layout"));
    assert_eq!(project.run(&["run", "--locked", "--offline"]).expect(7).stdout, SAYS);
    project.ok(&["build", "--locked", "--offline"]);
    project.ok(&["build", "--locked", "--offline"]).says("Nothing to build");

    project.manifest("vm \"app\" { image { oci-path \"./layout\" tag=\"2\"; } }");
    project.run(&["plan"]).expect(64).says("holds no image named 2").says("1");
}

#[test]
fn what_of_a_layout_no_vm_takes_over_is_told_when_it_is_built() {
    let settings = |config: &mut Value| {
        let config = &mut config["config"];
        config["Volumes"] = json!({ "/var/lib/data": {} });
        config["Healthcheck"] = json!({ "Test": ["CMD", "true"] });
        config["StopSignal"] = json!("SIGINT");
        config["ExposedPorts"]["53/udp"] = json!({});
    };
    let Some(_turn) = guests(1) else { return };
    let Some(layout) = image_with(free_port(), settings) else { return };
    let project = Project::new("vm \"app\" { image { oci-path \"layout\"; } }");
    layout.write(&project.path().join("layout"));
    let built = project.ok(&["build"]);
    let built = built.says("layout: 53/udp is exposed and not published");
    let built = built.says("layout: what is written to /var/lib/data goes with the VM");
    built.says("layout: its stop signal SIGINT is not sent").says("layout: its health check is not run");
}

#[test]
fn a_layer_that_unpacks_to_something_else_makes_no_image() {
    let lie =
        |config: &mut Value| config["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", "1".repeat(64)));
    let Some(_turn) = guests(1) else { return };
    let Some(layout) = image_with(free_port(), lie) else { return };
    let lower =
        layout.files.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0.replace("blobs/sha256/", "");
    let registry = layout.serve();
    for source in [format!("oci \"{}/group/app:1\"", registry.address()), "oci-path \"layout\"".to_owned()] {
        let project = Project::new(&format!("vm \"app\" {{ image {{ {source}; }} }}"));
        layout.write(&project.path().join("layout"));
        let name = source.split('"').nth(1).unwrap();
        let output = project.run(&["build"]).expect(1);
        output.says(&format!("the layer sha256:{lower} of {name} unpacks to sha256:")).says("help: ");
        let plan = project.ok(&["plan", "--verbose"]).stdout;
        assert!(plan.lines().any(|line| line.contains("image") && line.contains("run")), "{plan}");
    }
}

#[test]
fn a_working_directory_that_no_layer_holds_is_made_for_the_user() {
    let Some(_turn) = guests(1) else { return };
    let elsewhere = |config: &mut Value| config["config"]["WorkingDir"] = json!("/srv/not/there");
    let Some(layout) = image_with(free_port(), elsewhere) else { return };
    let project = Project::new("vm \"app\" { image { oci-path \"layout\"; } }");
    layout.write(&project.path().join("layout"));
    let said = SAYS.replace("in /srv:", "in /srv/not/there:") + "/srv/not/there is mine\n";
    assert_eq!(project.run(&["run"]).expect(7).stdout, said);

    // One that the manifest names has to be there.
    project.manifest("vm \"app\" { image { oci-path \"layout\"; }; workdir \"/srv/nor/this\"; }");
    let output = project.run(&["run"]).expect(125);
    output
        .says("cannot enter the working directory \"/srv/nor/this\"")
        .says("set `workdir` to one that the image");
}

/// A registry of the image that lets in alice with her password alone.
fn guarded(layout: &Layout) -> Server {
    // alice:s3cret-p4ss
    const LOGIN: &str = "Basic YWxpY2U6czNjcmV0LXA0c3M=";
    let (files, manifest) = (layout.files.clone(), layout.manifest["digest"].as_str().unwrap().to_owned());
    Server::start(move |request| {
        if request.header("authorization") != Some(LOGIN) {
            return Reply::status(401).header("www-authenticate", "Basic realm=\"here\"");
        }
        let version = request.target.rsplit('/').next().unwrap_or_default();
        let digest = if version == "1" { &manifest } else { version };
        match files.get(&format!("blobs/{}", digest.replace(':', "/"))) {
            Some(blob) => Reply::ok(blob.as_slice()),
            None => Reply::status(404),
        }
    })
}

#[test]
fn credential_helpers_are_asked_for_the_login() {
    let Some(layout) = image(free_port()) else { return };
    let registry = guarded(&layout);
    let address = registry.address();
    let reference = format!("{address}/group/app:1");
    let text = format!("vm \"app\" {{ image {{ oci \"{reference}\"; }} }}");
    let dir = tempfile::tempdir().unwrap();
    let (bin, config) = (dir.path().join("bin"), dir.path().join("docker"));
    for made in [&bin, &config] {
        std::fs::create_dir(made).unwrap();
    }
    // As docker-credential-helpers speak: the server on stdin, JSON on stdout, words and status 1 for no login.
    let helper = |name: &str, knows: &str| {
        let path = bin.join(format!("docker-credential-{name}"));
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = get ] || exit 2\nread server\necho \"$server\" >> {asked}\n\
             if [ \"$server\" = \"{knows}\" ]; then\n\
             echo '{{\"ServerURL\":\"{knows}\",\"Username\":\"alice\",\"Secret\":\"s3cret-p4ss\"}}'\nelse\n\
             echo 'credentials not found in native keychain'\nexit 1\nfi\n",
            asked = dir.path().join(name).display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    helper("right", &address.to_string());
    helper("empty", "elsewhere.example.org");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let lock = |logins: Value| {
        std::fs::write(config.join("config.json"), logins.to_string()).unwrap();
        let project = Project::new(&text)
            .env("PATH", &path)
            .env("DOCKER_CONFIG", config.to_str().unwrap())
            .env("HOME", dir.path().to_str().unwrap())
            .env("XDG_CONFIG_HOME", dir.path().to_str().unwrap())
            .env("XDG_RUNTIME_DIR", dir.path().to_str().unwrap());
        let output = project.run(&["lock"]);
        let lock = project.read("firegopher.lock");
        for said in [&output.stdout, &output.stderr, &lock] {
            assert!(!said.contains("s3cret") && !said.contains("czNjcmV0"), "{said}");
        }
        output
    };
    // One helper for this registry, one for all, and the one for this registry before that for all.
    let per_registry = |name: &str| json!({ address.to_string(): name });
    lock(json!({ "credHelpers": per_registry("right") })).expect(0);
    lock(json!({ "credsStore": "right" })).expect(0);
    lock(json!({ "credsStore": "empty", "credHelpers": per_registry("right") })).expect(0);
    let asked = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    assert!(asked("right").lines().all(|line| line.starts_with(&address.to_string())), "{}", asked("right"));

    lock(json!({ "credsStore": "empty" })).expect(1).says("without a login").says("docker login");
    assert!(!asked("empty").is_empty());
    lock(json!({ "credsStore": "absent" })).expect(1).says("config.json").says("could not be run");
}

/// The same layers under other settings: another image.
fn variant(layout: &mut Layout, extra: &Value) -> String {
    let read = |layout: &Layout, digest: &Value| -> Value {
        let name = format!("blobs/{}", digest.as_str().unwrap().replace(':', "/"));
        serde_json::from_slice(&layout.files[&name]).unwrap()
    };
    let mut manifest = read(layout, &layout.manifest["digest"]);
    let mut config = read(layout, &manifest["config"]["digest"]);
    for (name, value) in extra.as_object().unwrap() {
        config["config"][name] = value.clone();
    }
    manifest["config"] =
        layout.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let descriptor = layout.blob(MANIFEST, manifest.to_string().as_bytes());
    descriptor["digest"].as_str().unwrap().to_owned()
}

#[test]
fn update_by_reference_follows_a_tag_that_moved() {
    let Some(mut layout) = image(free_port()) else { return };
    let extra = json!({ "Cmd": ["two"], "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
        "Volumes": { "/data": {} }, "StopSignal": "SIGQUIT", "Healthcheck": { "Test": ["CMD", "true"] } });
    let first = layout.manifest["digest"].as_str().unwrap().to_owned();
    let second = variant(&mut layout, &extra);
    let tagged = Arc::new(Mutex::new(first.clone()));
    let registry = layout.serve_as(&tagged);
    let reference = format!("{}/group/app:1", registry.address());
    let project = Project::new(&format!("vm \"app\" {{ image {{ oci \"{reference}\"; }} }}"));
    let locked = project.ok(&["lock"]);
    assert!(!locked.stderr.contains("is not"), "nothing of it is left out: {}", locked.stderr);
    *tagged.lock().unwrap() = second.clone();
    project.ok(&["lock"]).says("has every pin already");
    assert!(project.read("firegopher.lock").contains(&first));

    let short = |digest: &str| digest[..19].to_owned();
    let update = project.ok(&["update", &reference]);
    let line = format!("image {reference} {} → {}\n", short(&first), short(&second));
    assert!(update.stdout.contains(&line), "{update:?}");
    // What of it no VM takes over is told once, when it is pinned.
    let update = update.says("53/udp is exposed and not published").says("/data goes with the VM");
    update.says("stop signal SIGQUIT").says("health check is not run");
    let lock = project.read("firegopher.lock");
    assert!(lock.contains(&second) && !lock.contains(&first), "{lock}");
    project.ok(&["update", &format!("image {reference}")]).says("newest pins already");

    *tagged.lock().unwrap() = first.clone();
    let json = project.ok(&["update", "--json", &reference]).json();
    crate::schemas::check_document("update", &json);
    let change = &json["changes"][0];
    assert_eq!((change["old"].as_str().unwrap(), change["new"].as_str().unwrap()), (&*second, &*first));
    project.run(&["update", "127.0.0.1:1/group/app:1"]).expect(64).says("needs no asset").says(&reference);
}

#[test]
fn an_image_that_cannot_be_had_says_why() {
    let Some(layout) = image(free_port()) else { return };
    let registry = layout.serve();
    let address = registry.address();
    let project = Project::new("");
    for (reference, says) in [
        (format!("{address}/group/other:1"), "has no image"),
        (format!("{address}/group/app@sha256:{}", "0".repeat(64)), "has no image"),
        (format!("127.0.0.1:{}/app", free_port()), "cannot be reached"),
        (format!("{address}/Group/app"), "lower case"),
    ] {
        project.manifest(&format!("vm \"app\" {{ image {{ oci \"{reference}\"; }} }}"));
        let run = project.run(&["lock"]);
        assert!(run.code.is_some_and(|code| code != 0), "{}", run.stderr);
        run.says(says);
    }
}

#[test]
fn two_homes_that_share_nothing_build_the_same_of_a_lock() {
    let Some(_turn) = guests(1) else { return };
    let Some(layout) = image(free_port()) else { return };
    let registry = layout.serve();
    let text = format!(
        "vm \"served\" {{ image {{ oci \"{}/group/app:1\"; }}; workload \"./app\" to=\"/app\" }}\n\
         vm \"here\" {{ image {{ oci-path \"./layout\" tag=\"1\"; }}; workload \"./app\" to=\"/app\"; port \"none\" }}",
        registry.address()
    );
    let copy = || {
        let project = Project::new(&format!("project \"twice\"\n{text}"));
        layout.write(&project.path().join("layout"));
        project.write("app/run.sh", "echo run");
        project
    };
    let locked = copy();
    locked.ok(&["lock"]);
    let lock = locked.read("firegopher.lock");
    let built: Vec<_> = (0..2)
        .map(|_| {
            let own = tempfile::tempdir().unwrap();
            let home = own.path().join("home");
            // Packages as they are downloaded, and nothing made of them.
            home_with_packages(&home);
            let project = copy().with_home(&home);
            project.write("firegopher.lock", &lock);
            let asked = registry.seen().len();
            let built = project.ok(&["build", "--locked", "--json"]).says("Built ").json();
            assert!(registry.seen().len() >= asked + 2, "both layers are downloaded anew");
            assert_eq!(project.read("firegopher.lock"), lock);
            let steps = built["steps"].as_array().unwrap().clone();
            let of =
                |step: &Value| format!("{} {} {} {}", step["kind"], step["vms"], step["key"], step["output"]);
            steps.iter().map(of).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(built[0], built[1]);
    // The same image, wherever it comes from.
    for kind in ["fetch-image", "image", "unpack"] {
        let start = format!("\"{kind}\" ");
        let of_kind = built[0].iter().filter(|step| step.starts_with(&start));
        let outputs: Vec<&str> = of_kind.filter_map(|step| step.rsplit(' ').next()).collect();
        assert!(outputs.len() == 2 && outputs[0] == outputs[1], "{kind}: {outputs:?}");
    }
}

#[test]
fn an_image_that_says_little_runs_and_a_bad_one_stops_only_the_vms_that_use_it() {
    let sparing = |document: &mut Value| {
        for field in ["os", "architecture", "rootfs"] {
            document.as_object_mut().unwrap().remove(field);
        }
        let config = &mut document["config"];
        config["Entrypoint"] = json!([""]);
        config["Cmd"] = json!(["/bin/sh", "/bin/main", "one two"]);
        config["User"] = json!("app:");
        config["ExposedPorts"] = json!({ "http/tcp": {}, "80/tcp": {} });
        // What was built before is told once: this is never the same image.
        config["Labels"] = json!({ "run": format!("{:?}", std::time::SystemTime::now()) });
    };
    let lie =
        |config: &mut Value| config["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", "1".repeat(64)));
    let Some(_turn) = guests(1) else { return };
    let Some(layout) = image_with(free_port(), sparing) else { return };
    let Some(damaged) = image_with(free_port(), lie) else { return };
    let project = Project::new(
        "vm \"good\" { image { oci-path \"./layout\"; }; env { STAY \"yes\"; }; }\nvm \"bad\" { image { oci-path \"./bad\"; }; }",
    );
    layout.write(&project.path().join("layout"));
    // Found out when the manifest is completed.
    std::fs::create_dir(project.path().join("bad")).unwrap();
    std::fs::write(project.path().join("bad/index.json"), "{}").unwrap();
    project.run(&["plan"]).expect(1).says("bad is left out").prints("+ good boots\n");
    let up = project.run(&["up", "-d"]).expect(1).says("bad is left out");
    up.says("\"http/tcp\" is exposed and no port").says("ports below 1024 are not published");
    project.wait_log("good", "Uid: 1234\nGid: 1234\n");
    // Found out when its layers are unpacked; what runs stays.
    damaged.write(&project.path().join("bad"));
    project.run(&["build"]).expect(1).says("bad is left out").says("unpacks to");
    project.run(&["run", "bad"]).expect(125).says("unpacks to");
    project.run(&["up", "-d", "bad"]).expect(1);
    assert!(project.ok(&["ps"]).stdout.contains("good"));
    project.ok(&["down"]);
}
