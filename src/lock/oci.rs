//! What the lock says of a container image: its manifest, its layers and the defaults that it brings. Plain values;
//! how they are found is `asset::oci`'s.

use crate::digest::{FieldHasher, ObjectDigest};
use serde::{Deserialize, Serialize};

/// More layers than any builder makes (overlay's own limit is 500, Docker's 127).
const MOST_LAYERS: usize = 512;
/// Words of a command, variables, ports.
const MOST_ITEMS: usize = 4096;
/// Bytes of all texts of a configuration together.
const MOST_TEXT: usize = 1 << 20;

/// The media types of layers that are applied, by how they are compressed.
const LAYER_TYPES: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// One exact image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OciPin {
    /// `sha256:…` of the manifest for linux/amd64 (never of an index).
    pub manifest: String,
    /// Lowest first.
    pub layers: Vec<OciLayer>,
    /// What the image says about running it.
    pub config: OciConfig,
}

/// One layer's blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OciLayer {
    /// `sha256:…` of the blob as served, compression included.
    pub digest: String,
    /// Its size in bytes, as served.
    pub size: u64,
    /// Its media type, one that [`is_layer_type`] knows.
    pub media: String,
}

/// What an image says about running it: the defaults of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OciConfig {
    /// `sha256:…` of the configuration blob.
    pub digest: String,
    /// ENTRYPOINT: argv's first words; may be empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// CMD: the words after the entrypoint, or the whole argv without one; may be empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// ENV: names and values in the image's order, each name once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// USER: `name`, `uid`, `uid:gid`, `name:group` or a mix; empty means root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// WORKDIR: absolute; empty means `/`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workdir: String,
    /// EXPOSE: TCP ports, ascending, each once, never 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

impl OciPin {
    /// A digest over every field.
    pub fn fingerprint(&self) -> ObjectDigest {
        let OciPin { manifest, layers, config } = self;
        let OciConfig { digest, entrypoint, cmd, env, user, workdir, ports } = config;
        let mut hasher = FieldHasher::new("firegopher oci pin v1");
        hasher.field(manifest).field(digest).field(user).field(workdir);
        let mut list = |name: &str, fields: Vec<String>| {
            hasher.field(name).field(fields.len().to_string());
            fields.iter().for_each(|field| _ = hasher.field(field));
        };
        let layer = |OciLayer { digest, size, media }: &OciLayer| format!("{digest} {size} {media}");
        list("layers", layers.iter().map(layer).collect());
        list("entrypoint", entrypoint.clone());
        list("cmd", cmd.clone());
        list("env", env.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).collect());
        list("ports", ports.iter().map(u16::to_string).collect());
        hasher.finish().into()
    }

    /// Whether the pin is one that could have been written.
    ///
    /// # Errors
    /// What is wrong, to stand after a colon.
    pub fn check(&self) -> Result<(), String> {
        if !is_digest(&self.manifest) {
            return Err(format!("the manifest {:?} is no sha256 digest", self.manifest));
        }
        if self.layers.is_empty() || self.layers.len() > MOST_LAYERS {
            return Err(format!("{} layers", self.layers.len()));
        }
        self.layers.iter().try_for_each(OciLayer::check)?;
        self.config.check()
    }
}

impl OciLayer {
    /// Whether the layer is one that could have been written.
    ///
    /// # Errors
    /// What is wrong, to stand after a colon.
    pub fn check(&self) -> Result<(), String> {
        if !is_digest(&self.digest) {
            return Err(format!("the layer {:?} is no sha256 digest", self.digest));
        }
        if self.size == 0 || self.size > i64::MAX as u64 {
            return Err(format!("a layer of {} bytes", self.size));
        }
        if !is_layer_type(&self.media) {
            return Err(format!("a layer of the type {:?}, which is not read", self.media));
        }
        Ok(())
    }
}

impl OciConfig {
    /// The command to run: entrypoint and cmd; empty if the image names none.
    pub fn argv(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// Whether the configuration is one that could have been written.
    ///
    /// # Errors
    /// What is wrong, to stand after a colon.
    pub fn check(&self) -> Result<(), String> {
        if !is_digest(&self.digest) {
            return Err(format!("the configuration {:?} is no sha256 digest", self.digest));
        }
        let counts = [self.entrypoint.len(), self.cmd.len(), self.env.len(), self.ports.len()];
        if counts.iter().any(|count| *count > MOST_ITEMS) {
            return Err(format!("more than {MOST_ITEMS} words, variables or ports"));
        }
        let words = self.entrypoint.iter().chain(&self.cmd);
        let texts = words
            .chain(self.env.iter().flat_map(|(name, value)| [name, value]))
            .chain([&self.user, &self.workdir]);
        let mut length = 0;
        for text in texts {
            length += text.len();
            if text.contains('\0') {
                return Err(format!("{text:?} contains a NUL byte"));
            }
        }
        if length > MOST_TEXT {
            return Err(format!("a configuration of {length} bytes"));
        }
        if self.argv().first().is_some_and(String::is_empty) {
            return Err("the command is empty".to_owned());
        }
        let mut names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        if let Some(bad) = names.iter().find(|name| name.is_empty() || name.contains('=')) {
            return Err(format!("{bad:?} is no name of a variable"));
        }
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("the variable {} is there twice", pair[0]));
        }
        if !is_user(&self.user) {
            return Err(format!("the user {:?} is neither NAME, UID nor either with a group", self.user));
        }
        if !self.workdir.is_empty() && !self.workdir.starts_with('/') {
            return Err(format!("the working directory {:?} is not absolute", self.workdir));
        }
        if self.ports.first() == Some(&0) || self.ports.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err("the ports are not ascending".to_owned());
        }
        Ok(())
    }
}

/// Whether `text` is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Whether layers of this media type are applied.
pub fn is_layer_type(media: &str) -> bool {
    LAYER_TYPES.contains(&media)
}

/// `USER[:GROUP]`, each a name or a number; empty is root.
fn is_user(text: &str) -> bool {
    let name = |part: &str| {
        !part.is_empty()
            && part.len() <= 256
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-$@+".contains(&b))
    };
    match text.split_once(':') {
        Some((user, group)) => name(user) && name(group),
        None => text.is_empty() || name(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn pin() -> OciPin {
        OciPin {
            manifest: digest("0a"),
            layers: vec![OciLayer { digest: digest("0b"), size: 1, media: LAYER_TYPES[1].to_owned() }],
            config: OciConfig {
                digest: digest("0c"),
                entrypoint: vec!["/bin/sh".into()],
                cmd: vec!["-c".into(), String::new()],
                env: vec![("PATH".into(), "/bin".into()), ("A".into(), "x=\"y\"\n".into())],
                user: "www-data:1000".into(),
                workdir: "/srv".into(),
                ports: vec![80, 443],
            },
        }
    }

    #[test]
    fn a_pin_round_trips() {
        let pin = pin();
        pin.check().unwrap();
        let text = serde_json::to_string(&pin).unwrap();
        assert_eq!(serde_json::from_str::<OciPin>(&text).unwrap(), pin);
        assert_eq!(pin.config.argv(), ["/bin/sh", "-c", ""]);
    }

    #[test]
    fn a_pin_edited_by_hand_is_named() {
        type Edit = fn(&mut OciPin);
        let cases: &[(Edit, &str)] = &[
            (|p| p.manifest = "sha256:0".into(), "manifest"),
            (|p| p.manifest = p.manifest.to_uppercase(), "manifest"),
            (|p| p.layers.clear(), "0 layers"),
            (|p| p.layers[0].digest = "md5:0".into(), "layer"),
            (|p| p.layers[0].size = 0, "0 bytes"),
            (|p| p.layers[0].media = "text/plain".into(), "text/plain"),
            (|p| p.config.digest.clear(), "configuration"),
            (|p| p.config.entrypoint[0].clear(), "command is empty"),
            (|p| p.config.cmd = vec!["\0".into()], "NUL"),
            (|p| p.config.cmd = vec![String::new(); 5000], "4096"),
            (|p| p.config.cmd = vec!["x".repeat(2 << 20)], "bytes"),
            (|p| p.config.env.push(("A".into(), "again".into())), "twice"),
            (|p| p.config.env.push(("B=C".into(), "".into())), "name of a variable"),
            (|p| p.config.user = "a:b:c".into(), "user"),
            (|p| p.config.user = "a b".into(), "user"),
            (|p| p.config.workdir = "srv".into(), "absolute"),
            (|p| p.config.ports = vec![0], "ports"),
            (|p| p.config.ports = vec![443, 80], "ports"),
        ];
        for (edit, says) in cases {
            let mut pin = pin();
            edit(&mut pin);
            let why = pin.check().unwrap_err();
            assert!(why.contains(says), "{says}: {why}");
        }
    }
}
