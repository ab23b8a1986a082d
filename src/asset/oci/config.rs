//! An image's configuration: what it says of running the image, read as leniently as container runtimes do. What it
//! leaves out, says oddly or says of things that no VM has stops nobody; the latter two are told.

use super::image::{invalid, other_platform};
use crate::error::Result;
use crate::lock::{FIRST_PUBLISHED, MOST_ITEMS, MOST_PUBLISHED, OciConfig, is_digest};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Document {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<Said>,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Said {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Option<Value>,
    volumes: Option<Value>,
    stop_signal: Option<String>,
    // Docker's, which the specification of images does not know.
    healthcheck: Option<Value>,
}

/// A command: a list, or one word, which Docker takes for a list of one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<String>),
    One(String),
}

fn read(bytes: &[u8], subject: &str) -> Result<Document> {
    serde_json::from_slice(bytes).map_err(|e| invalid(subject, "its configuration cannot be read").because(e))
}

/// Reads the configuration that has this digest.
pub(super) fn config(bytes: &[u8], digest: String, subject: &str) -> Result<OciConfig> {
    let Document { architecture, os, config, .. } = read(bytes, subject)?;
    // Who does not say has no other in mind: runtimes take it for their own.
    let given =
        |text: Option<String>, usual: &str| text.filter(|t| !t.is_empty()).unwrap_or(usual.to_owned());
    let (os, architecture) = (given(os, "linux"), given(architecture, "amd64"));
    if (os.as_str(), architecture.as_str()) != ("linux", "amd64") {
        return Err(other_platform(subject, &format!("{os}/{architecture}")));
    }
    let said = config.unwrap_or_default();
    let ports = Ports::of(&said);
    let mut workdir = said.working_dir.unwrap_or_default();
    if !workdir.is_empty() && !workdir.starts_with('/') {
        workdir.insert(0, '/');
    }
    let mut env: Vec<(String, String)> = Vec::new();
    for variable in said.env.iter().flatten() {
        // Without a name, or a name without a value: sets nothing in any runtime.
        let Some((name, value)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            continue;
        };
        // The last one wins, as in a container.
        env.retain(|(before, _)| before != name);
        env.push((name.to_owned(), value.to_owned()));
    }
    Ok(OciConfig {
        digest,
        blake3: blake3::hash(bytes).into(),
        entrypoint: words(said.entrypoint),
        cmd: words(said.cmd),
        env,
        user: user(said.user.unwrap_or_default().trim()),
        workdir,
        ports: ports.tcp,
    })
}

/// A command. `[""]`, which resets it for Docker and containerd, is none.
fn words(said: Option<Words>) -> Vec<String> {
    let words = match said {
        Some(Words::List(words)) => words,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    };
    if words.iter().all(String::is_empty) { Vec::new() } else { words }
}

/// What stands in a set: in a map whose values mean nothing, or in a list, which some builders write.
fn items(set: Option<&Value>) -> Vec<String> {
    let text = |item: &Value| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
    match set {
        Some(Value::Object(map)) => map.keys().cloned().collect(),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        None | Some(Value::Null) => Vec::new(),
        Some(other) => vec![text(other)],
    }
}

/// `USER[:GROUP]`, either of which may be empty: no group is the user's own, no user is root.
fn user(text: &str) -> String {
    match text.split_once(':') {
        Some((user, "")) => user.to_owned(),
        Some(("", group)) => format!("0:{group}"),
        _ => text.to_owned(),
    }
}

/// The digests of the layers' tars once they are no longer compressed, lowest first, each checked to be one that is
/// known here; one for each of `layers`, or nothing where the configuration leaves them out.
pub(super) fn diff_ids(config: &[u8], layers: usize, subject: &str) -> Result<Vec<Option<String>>> {
    let diff_ids = read(config, subject)?.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
    if let Some(other) = diff_ids.iter().find(|digest| !is_digest(digest)) {
        let what =
            format!("a layer's digest {other:?}, uncompressed, is neither of the kind sha256 nor sha512");
        return Err(invalid(subject, &what));
    }
    match diff_ids.len() {
        0 => Ok(vec![None; layers]),
        count if count == layers => Ok(diff_ids.into_iter().map(Some).collect()),
        count => {
            let what = format!("its manifest has {layers} layers and its configuration {count}");
            Err(invalid(subject, &what))
        }
    }
}

/// What a configuration says that no VM takes over, or not by itself, in words, for whoever pins or builds the image.
pub(super) fn left_out(config: &[u8]) -> Vec<String> {
    // Whether the image can be used at all is for others to say.
    let said = serde_json::from_slice::<Document>(config).ok().and_then(|document| document.config);
    let Some(said) = said else { return Vec::new() };
    let mut left = Ports::of(&said).left_out();
    let volumes = items(said.volumes.as_ref());
    if !volumes.is_empty() {
        left.push(format!(
            "what is written to {} goes with the VM, unless the manifest has a `volume` there, which takes over what \
             the image has in it",
            volumes.join(", ")
        ));
    }
    let signal = said.stop_signal.unwrap_or_default();
    if !matches!(signal.as_str(), "" | "15" | "TERM" | "SIGTERM") {
        left.push(format!("its stop signal {signal} is not sent: a VM is stopped by SIGTERM"));
    }
    let test = items(said.healthcheck.as_ref().and_then(|check| check.get("Test")));
    if test.iter().any(|word| !word.is_empty()) && test != ["NONE"] {
        left.push("its health check is not run".to_owned());
    }
    left
}

/// What an image exposes.
#[derive(Default)]
struct Ports {
    /// Ascending, each once; none if they are more than a lock holds.
    tcp: Vec<u16>,
    /// How many there are.
    count: usize,
    /// As they stand there.
    other_protocols: Vec<String>,
    nonsense: Vec<String>,
}

impl Ports {
    fn of(said: &Said) -> Ports {
        let mut ports = Ports::default();
        let mut tcp = Vec::new();
        for text in items(said.exposed_ports.as_ref()) {
            let (range, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
            match (range_of(range), protocol.to_ascii_lowercase().as_str()) {
                (Some(range), "tcp" | "") => tcp.push(range),
                (Some(_), "udp" | "sctp") => ports.other_protocols.push(text),
                _ => ports.nonsense.push(text),
            }
        }
        // Ranges may overlap a million times: each port is counted once.
        tcp.sort_unstable_by_key(|range| *range.start());
        for range in tcp {
            let next = ports.tcp.last().map_or(Some(0), |last| last.checked_add(1));
            let Some(next) = next else { break };
            ports.tcp.extend(next.max(*range.start())..=*range.end());
        }
        ports.count = ports.tcp.len();
        if ports.count > MOST_ITEMS {
            ports.tcp.clear();
        }
        ports
    }

    fn left_out(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.count > MOST_PUBLISHED {
            left.push(format!(
                "it exposes {} ports, of which none is published by itself: write a `port` for each that you need",
                self.count
            ));
        } else {
            let low: Vec<u16> = self.tcp.iter().copied().filter(|port| *port < FIRST_PUBLISHED).collect();
            if let Some(first) = low.first() {
                let list: Vec<String> = low.iter().map(u16::to_string).collect();
                left.push(format!(
                    "it exposes {}, and ports below {FIRST_PUBLISHED} are not published by themselves: write for example \
                     `port {} to={first}`",
                    list.join(", "),
                    8000 + first
                ));
            }
        }
        if !self.other_protocols.is_empty() {
            let list = self.other_protocols.join(", ");
            left.push(format!("{list} is exposed and not published: only TCP is"));
        }
        if !self.nonsense.is_empty() {
            let list: Vec<String> = self.nonsense.iter().map(|text| format!("{text:?}")).collect();
            left.push(format!("{} is exposed and no port: it is ignored", list.join(", ")));
        }
        left
    }
}

/// `80` or `8000-8010`.
fn range_of(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first != 0 && first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(document: &Value) -> Result<OciConfig> {
        config(document.to_string().as_bytes(), format!("sha256:{}", "0a".repeat(32)), "the image")
    }

    fn with(config: &Value) -> OciConfig {
        of(&json!({ "os": "linux", "architecture": "amd64", "config": config })).unwrap()
    }

    #[test]
    fn what_a_configuration_leaves_out_stops_nobody() {
        for document in [
            json!({}),
            json!({ "config": null, "rootfs": null }),
            json!({ "os": "linux", "config": {} }),
            json!({ "architecture": "amd64", "rootfs": {} }),
            json!({ "os": "", "architecture": "", "rootfs": { "type": "layers", "diff_ids": null } }),
            json!({ "config": { "Cmd": null, "Env": null, "Entrypoint": null, "ExposedPorts": null, "Volumes": null,
                "User": null, "WorkingDir": null, "Labels": null, "StopSignal": null, "Healthcheck": null } }),
            json!({ "unknown": [1], "variant": "v1", "history": null, "config": { "Foo": { "a": 1 } } }),
        ] {
            let config = of(&document).unwrap();
            assert!(
                config.argv().is_empty() && config.env.is_empty() && config.ports.is_empty(),
                "{document}"
            );
            let bytes = document.to_string();
            assert_eq!(diff_ids(bytes.as_bytes(), 2, "the image").unwrap(), [None, None], "{document}");
            assert_eq!(left_out(bytes.as_bytes()), [""; 0]);
        }
        for (os, architecture) in [("linux", "arm64"), ("windows", "amd64"), ("windows", "")] {
            let document = json!({ "os": os, "architecture": architecture });
            assert_eq!(of(&document).unwrap_err().code(), "oci.no-platform");
        }
        let document = json!({ "rootfs": { "diff_ids": ["sha256:00"] } }).to_string();
        assert_eq!(diff_ids(document.as_bytes(), 1, "it").unwrap_err().code(), "oci.invalid");
        let digest = format!("sha256:{}", "0a".repeat(32));
        let document = json!({ "rootfs": { "diff_ids": [digest] } }).to_string();
        assert!(diff_ids(document.as_bytes(), 1, "it").is_ok());
        assert!(diff_ids(document.as_bytes(), 2, "it").unwrap_err().to_string().contains("2 layers and its"));
    }

    #[test]
    fn an_empty_string_as_the_command_is_no_command() {
        let argv =
            |entrypoint: Value, cmd: Value| with(&json!({ "Entrypoint": entrypoint, "Cmd": cmd })).argv();
        assert_eq!(argv(json!([""]), json!(["/bin/echo", "ran"])), ["/bin/echo", "ran"]);
        assert_eq!(argv(json!(["", ""]), json!(["/x"])), ["/x"]);
        assert_eq!(argv(json!(["/x"]), json!([""])), ["/x"]);
        assert_eq!(argv(json!([""]), json!([""])), [""; 0]);
        assert_eq!(argv(json!(["/x", ""]), json!(["", "y"])), ["/x", "", "", "y"], "arguments may be empty");
    }

    #[test]
    fn one_word_is_a_command_and_what_is_told_only_may_have_any_shape() {
        let config = with(&json!({ "Entrypoint": "/bin/app", "Cmd": "serve" }));
        assert_eq!(config.argv(), ["/bin/app", "serve"]);
        assert_eq!(with(&json!({ "Entrypoint": "", "Cmd": ["/x"] })).argv(), ["/x"]);
        let said = json!({ "Cmd": ["/x"], "Volumes": ["/data", "/log"], "Healthcheck": { "Test": "curl localhost" } });
        assert_eq!(with(&said).argv(), ["/x"]);
        let left = left_out(json!({ "config": said }).to_string().as_bytes());
        assert!(left[0].contains("written to /data, /log goes"), "{left:?}");
        assert_eq!(left[1], "its health check is not run");
        for nothing in [
            json!({ "Volumes": [], "Healthcheck": { "Test": "" } }),
            json!({ "Volumes": {}, "Healthcheck": { "Test": "NONE" } }),
            json!({ "Healthcheck": { "Test": ["NONE"] } }),
            json!({ "Healthcheck": true }),
        ] {
            with(&nothing);
            assert_eq!(left_out(json!({ "config": nothing }).to_string().as_bytes()), [""; 0]);
        }
    }

    #[test]
    fn ranges_of_ports_that_overlap_are_counted_once() {
        let list: Vec<String> = (0..1000).map(|n| format!("{}-65535", n + 1)).collect();
        let said: Said = serde_json::from_value(json!({ "ExposedPorts": list })).unwrap();
        let ports = Ports::of(&said);
        assert_eq!(ports.count, 65_535);
        assert!(ports.tcp.capacity() <= 1 << 17, "{}", ports.tcp.capacity());
        let said = json!({ "ExposedPorts": ["3000-3004", "3002", "3001-3006/tcp", "3009"] });
        assert_eq!(with(&said).ports, [3000, 3001, 3002, 3003, 3004, 3005, 3006, 3009]);
    }

    #[test]
    fn a_user_may_have_an_empty_half() {
        for (said, means) in
            [("app:", "app"), (":video", "0:video"), (" app ", "app"), (":", ""), ("1:2", "1:2"), ("", "")]
        {
            let config = with(&json!({ "User": said }));
            assert_eq!(config.user, means, "{said:?}");
        }
    }

    #[test]
    fn odd_ports_are_told_and_ignored() {
        let said = json!({ "ExposedPorts": { "8080/tcp": {}, "9000-9002": {}, "53/udp": {}, "http/tcp": {}, "0/tcp": {},
            "70000": {}, "9-8/tcp": {}, "": {}, "$PORT/tcp": {}, "8443/TCP": {}, "1/2/3": {} } });
        let config = with(&said);
        assert_eq!(config.ports, [8080, 8443, 9000, 9001, 9002]);
        let left = left_out(json!({ "config": said }).to_string().as_bytes());
        assert_eq!(left[0], "53/udp is exposed and not published: only TCP is");
        for odd in ["http/tcp", "0/tcp", "70000", "9-8/tcp", "\"\"", "$PORT/tcp", "1/2/3"] {
            assert!(
                left[1].contains(odd) && left[1].ends_with("is exposed and no port: it is ignored"),
                "{left:?}"
            );
        }
        assert_eq!(with(&json!({ "ExposedPorts": ["8080/tcp", 9000] })).ports, [8080, 9000]);
        assert_eq!(with(&json!({ "ExposedPorts": "x" })).ports, [0; 0]);
    }

    #[test]
    fn ports_that_are_not_published_by_themselves_are_told() {
        let left =
            |ports: Value| left_out(json!({ "config": { "ExposedPorts": ports } }).to_string().as_bytes());
        let told = left(json!({ "80/tcp": {}, "443/tcp": {}, "8080/tcp": {} }));
        assert!(told[0].contains("it exposes 80, 443,") && told[0].contains("`port 8080 to=80`"), "{told:?}");
        assert_eq!(left(json!({ "1024/tcp": {} })), [""; 0]);
        let told = left(json!({ "2000-3499/tcp": {} }));
        assert!(told[0].contains("it exposes 1500 ports, of which none is published"), "{told:?}");
        assert_eq!(left(json!({ "2000-2015/tcp": {} })), [""; 0]);
        // More than a lock holds.
        assert!(with(&json!({ "ExposedPorts": { "1-65535": {} } })).ports.is_empty());
        assert!(left(json!({ "1-65535": {} }))[0].contains("65535 ports"));
    }
}
