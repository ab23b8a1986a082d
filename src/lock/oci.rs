//! What the lock says of a container image: its manifest, its layers and the defaults that it brings. Plain values;
//! how they are found is `asset::oci`'s.

use crate::digest::{FieldHasher, ObjectDigest};
use serde::{Deserialize, Serialize};

/// More layers than any builder makes (overlay's own limit is 500, Docker's 127).
const MOST_LAYERS: usize = 512;
/// Words of a command, variables, ports.
pub const MOST_ITEMS: usize = 4096;
/// As many ports of an image as are published by themselves; of one that exposes more, none is.
pub const MOST_PUBLISHED: usize = 16;
/// The first port of an image that is published by itself. Those below belong to the host's own services.
pub const FIRST_PUBLISHED: u16 = 1024;
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
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
];

/// One exact image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OciPin {
    /// `sha256:…` of the manifest for linux/amd64 (never of an index).
    pub manifest: String,
    /// The manifest as the store names it.
    pub blake3: ObjectDigest,
    /// Lowest first.
    pub layers: Vec<OciLayer>,
    /// What the image says about running it.
    pub config: OciConfig,
}

/// One layer's blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OciLayer {
    /// `sha256:…` of the blob as served, compression included.
    pub digest: String,
    /// Its size in bytes, as served.
    pub size: u64,
    /// Its media type, one that [`is_layer_type`] knows.
    pub media: String,
    /// The blob as the store names it.
    pub blake3: ObjectDigest,
}

/// One exact image by what its documents say, whether its layers were ever seen or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciImage {
    /// As in [`OciPin`].
    pub manifest: String,
    /// As in [`OciPin`].
    pub blake3: ObjectDigest,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// As in [`OciPin`].
    pub config: OciConfig,
}

/// One layer's blob, as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// As in [`OciLayer`].
    pub digest: String,
    /// As in [`OciLayer`].
    pub size: u64,
    /// As in [`OciLayer`].
    pub media: String,
}

/// What an image says about running it: the defaults of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OciConfig {
    /// `sha256:…` of the configuration blob.
    pub digest: String,
    /// The configuration blob as the store names it.
    pub blake3: ObjectDigest,
    /// ENTRYPOINT: argv's first words; may be empty.
    pub entrypoint: Vec<String>,
    /// CMD: the words after the entrypoint, or the whole argv without one; may be empty.
    pub cmd: Vec<String>,
    /// ENV: names and values in the image's order, each name once.
    pub env: Vec<(String, String)>,
    /// USER: `name`, `uid`, `uid:gid`, `name:group` or a mix; empty means root.
    pub user: String,
    /// WORKDIR: absolute; empty means `/`.
    pub workdir: String,
    /// EXPOSE: TCP ports, ascending, each once, never 0.
    pub ports: Vec<u16>,
}

impl OciPin {
    /// A digest over every field.
    pub fn fingerprint(&self) -> ObjectDigest {
        let OciPin { manifest, blake3, layers, config } = self;
        let OciConfig { digest, blake3: config_blake3, entrypoint, cmd, env, user, workdir, ports } = config;
        let mut hasher = FieldHasher::new("firegopher oci pin v3");
        hasher.field(manifest).field(blake3.as_bytes()).field(digest).field(config_blake3.as_bytes());
        hasher.field(user).field(workdir);
        let mut list = |name: &str, fields: Vec<String>| {
            hasher.field(name).field(fields.len().to_string());
            fields.iter().for_each(|field| _ = hasher.field(field));
        };
        let layer = |OciLayer { digest, size, media, blake3 }: &OciLayer| {
            [digest.clone(), size.to_string(), media.clone(), blake3.to_hex()]
        };
        list("layers", layers.iter().flat_map(layer).collect());
        list("entrypoint", entrypoint.clone());
        list("cmd", cmd.clone());
        list("env", env.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).collect());
        list("ports", ports.iter().map(u16::to_string).collect());
        hasher.finish().into()
    }

    /// The pin without what only layers tell.
    pub fn image(&self) -> OciImage {
        let OciPin { manifest, blake3, layers, config } = self.clone();
        let layer = |OciLayer { digest, size, media, .. }| Layer { digest, size, media };
        OciImage { manifest, blake3, layers: layers.into_iter().map(layer).collect(), config }
    }

    /// Whether the pin is one that could have been written.
    ///
    /// # Errors
    /// What is wrong, to stand after a colon.
    pub fn check(&self) -> Result<(), String> {
        self.image().check()
    }
}

impl OciImage {
    /// The pin, given its layers as the store names them, lowest first.
    pub fn pinned(self, objects: &[ObjectDigest]) -> OciPin {
        let OciImage { manifest, blake3, layers, config } = self;
        let layer = |(Layer { digest, size, media }, blake3): (_, &ObjectDigest)| OciLayer {
            digest,
            size,
            media,
            blake3: *blake3,
        };
        OciPin { manifest, blake3, layers: layers.into_iter().zip(objects).map(layer).collect(), config }
    }

    /// Whether a pin of the image could be written.
    ///
    /// # Errors
    /// What is wrong, to stand after a colon.
    pub fn check(&self) -> Result<(), String> {
        if !is_digest(&self.manifest) {
            return Err(format!("the manifest {:?} is no sha256 or sha512 digest", self.manifest));
        }
        if self.layers.is_empty() || self.layers.len() > MOST_LAYERS {
            return Err(format!("{} layers", self.layers.len()));
        }
        self.layers.iter().try_for_each(Layer::check)?;
        self.config.check()
    }
}

impl Layer {
    fn check(&self) -> Result<(), String> {
        if !is_digest(&self.digest) {
            return Err(format!("the layer {:?} is no sha256 or sha512 digest", self.digest));
        }
        if self.size > i64::MAX as u64 {
            return Err(format!("a layer of {} bytes", self.size));
        }
        if !is_layer_type(&self.media) {
            return Err(format!("a layer of the type {:?}, which is not read", self.media));
        }
        Ok(())
    }
}

impl OciConfig {
    /// The ports that are published without the manifest saying so: few, and none that only root may bind.
    pub fn published(&self) -> impl Iterator<Item = u16> + '_ {
        let ports = if self.ports.len() > MOST_PUBLISHED { &[] } else { self.ports.as_slice() };
        ports.iter().copied().filter(|port| *port >= FIRST_PUBLISHED)
    }

    /// The command to run: entrypoint and cmd; empty if the image names none.
    pub fn argv(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    fn check(&self) -> Result<(), String> {
        if !is_digest(&self.digest) {
            return Err(format!("the configuration {:?} is no sha256 or sha512 digest", self.digest));
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

/// Whether `text` is `sha256:` and 64 lower-case hexadecimal digits, or `sha512:` and 128.
pub fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(kind, hex)| {
        matches!((kind, hex.len()), ("sha256", 64) | ("sha512", 128))
            && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
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
        let layer = OciLayer {
            digest: digest("0b"),
            size: 1,
            media: LAYER_TYPES[1].to_owned(),
            blake3: ObjectDigest::new([2; 32]),
        };
        OciPin {
            manifest: digest("0a"),
            blake3: ObjectDigest::new([1; 32]),
            layers: vec![layer],
            config: OciConfig {
                digest: digest("0c"),
                blake3: ObjectDigest::new([3; 32]),
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
    fn a_pin_is_its_image_and_its_layers() {
        let pin = pin();
        pin.check().unwrap();
        assert_eq!(pin.image().pinned(&[pin.layers[0].blake3]), pin);
        assert_eq!(pin.config.argv(), ["/bin/sh", "-c", ""]);
    }

    #[test]
    fn no_part_has_another_name_and_the_same_fingerprint() {
        let edits: [fn(&mut OciPin); 3] = [
            |p| p.blake3 = ObjectDigest::new([9; 32]),
            |p| p.layers[0].blake3 = ObjectDigest::new([9; 32]),
            |p| p.config.blake3 = ObjectDigest::new([9; 32]),
        ];
        for edit in edits {
            let mut other = pin();
            edit(&mut other);
            assert_ne!(other.fingerprint(), pin().fingerprint());
        }
    }

    #[test]
    fn a_pin_edited_by_hand_is_named() {
        type Edit = fn(&mut OciPin);
        let cases: &[(Edit, &str)] = &[
            (|p| p.manifest = "sha256:0".into(), "manifest"),
            (|p| p.manifest = p.manifest.to_uppercase(), "manifest"),
            (|p| p.layers.clear(), "0 layers"),
            (|p| p.layers[0].digest = "md5:0".into(), "layer"),
            (|p| p.layers[0].digest = format!("sha512:{}", "0a".repeat(32)), "layer"),
            (|p| p.layers[0].size = u64::MAX, "bytes"),
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
