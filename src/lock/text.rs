//! The lock's text: TOML with one line a package and nothing that depends on time or order, so that two branches
//! merge where what they changed stands apart. New entries that sort into the same place conflict.

use super::{
    AssetId, FORMAT, FilePin, FileRole, Lock, OciConfig, OciLayer, OciPin, Origin, Pin, Pinned, Pins,
    Release, check,
};
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::packages::{PackageSet, PackageSource, Wanted};
use serde::Deserialize;
use std::fmt::Write;
use std::path::Path;

const HEADER: &str = "# Written by firegopher: everything that is fetched, by version and digest. Commit this file.\n\
                      # `firegopher update` renews it; it is not meant to be edited.\n";

/// The one tool there is.
/// Entries of earlier versions, for a program that ran scripts: nothing needs them any more.
const RETIRED: &str = "tool";

pub(super) fn render(lock: &Lock) -> String {
    let mut out = String::from(HEADER);
    let mut line =
        |args: std::fmt::Arguments<'_>| out.write_fmt(args).expect("invariant: a String takes all writes");
    line(format_args!("format = {FORMAT}\n"));
    for (id, pinned) in &lock.assets {
        line(format_args!("\n[[asset]]\nkind = \"{}\"\n", id.kind()));
        match id {
            AssetId::File { url, member, .. } => {
                line(format_args!("url = {}\n", quoted(url)));
                if let Some(member) = member {
                    line(format_args!("member = {}\n", quoted(member)));
                }
            }
            AssetId::Oci(reference) => line(format_args!("oci = {}\n", quoted(reference))),
            AssetId::Vmm => {}
            AssetId::Kernel(set) | AssetId::Image(set) => render_set(&mut line, set),
        }
        match pinned {
            Pinned::Packages(pins) => render_packages(&mut line, pins),
            Pinned::File(FilePin { size, sha256, blake3 }) => {
                line(format_args!("size = {size}\nsha256 = \"{sha256}\"\nblake3 = \"{blake3}\"\n"));
            }
            Pinned::Oci(pin) => render_oci(&mut line, pin),
        }
    }
    out
}

type Line<'a> = &'a mut dyn FnMut(std::fmt::Arguments<'_>);

fn render_set(line: Line<'_>, PackageSet { packages, suite, sources, scripts }: &PackageSet) {
    line(format_args!("names = {}\n", list(packages)));
    if let Some(suite) = suite {
        line(format_args!("target = \"{suite}\"\n"));
    }
    if *scripts {
        line(format_args!("scripts = true\n"));
    }
    if !sources.is_empty() {
        line(format_args!("sources = [\n"));
        for PackageSource { url, suite, components, keyring } in sources {
            line(format_args!(
                "  {{ url = {}, suite = \"{suite}\", components = {}, keyring = {} }},\n",
                quoted(url),
                list(components),
                quoted(keyring)
            ));
        }
        line(format_args!("]\n"));
    }
}

fn render_packages(line: Line<'_>, pins: &Pins) {
    // No value of these needs escaping: `check` has seen all of them.
    let Origin { distribution, suite } = &pins.origin;
    line(format_args!("distribution = \"{distribution}\"\nsuite = \"{suite}\"\n"));
    if !pins.snapshot.is_empty() {
        line(format_args!("snapshot = [\n"));
        for Release { origin, suite, codename, date, sha256 } in &pins.snapshot {
            line(format_args!(
                "  {{ origin = \"{origin}\", suite = \"{suite}\", codename = \"{codename}\", date = \"{date}\", sha256 = \"{sha256}\" }},\n"
            ));
        }
        line(format_args!("]\n"));
    }
    line(format_args!("packages = [\n"));
    for Pin { package, arch, version, size, sha256, blake3, pool } in &pins.packages {
        line(format_args!(
            "  {{ name = \"{package}\", arch = \"{arch}\", version = \"{version}\", size = {size}, \
             sha256 = \"{sha256}\", blake3 = \"{blake3}\", path = \"{pool}\" }},\n"
        ));
    }
    line(format_args!("]\n"));
}

fn render_oci(line: Line<'_>, pin: &OciPin) {
    let OciPin { manifest, blake3, layers, config } = pin;
    line(format_args!("manifest = \"{manifest}\"\nblake3 = \"{blake3}\"\nlayers = [\n"));
    for OciLayer { digest, size, media, blake3 } in layers {
        line(format_args!(
            "  {{ digest = \"{digest}\", blake3 = \"{blake3}\", size = {size}, media = \"{media}\" }},\n"
        ));
    }
    let OciConfig { digest, blake3, entrypoint, cmd, env, user, workdir, ports } = config;
    line(format_args!("]\n\n[asset.config]\ndigest = \"{digest}\"\nblake3 = \"{blake3}\"\n"));
    for (name, words) in [("entrypoint", entrypoint), ("cmd", cmd)] {
        if !words.is_empty() {
            line(format_args!("{name} = {}\n", list(words)));
        }
    }
    if !env.is_empty() {
        line(format_args!("env = [\n"));
        for (name, value) in env {
            line(format_args!("  [{}, {}],\n", quoted(name), quoted(value)));
        }
        line(format_args!("]\n"));
    }
    for (name, text) in [("user", user), ("workdir", workdir)] {
        if !text.is_empty() {
            line(format_args!("{name} = {}\n", quoted(text)));
        }
    }
    if !ports.is_empty() {
        line(format_args!("ports = {ports:?}\n"));
    }
}

/// On one line, whatever it holds.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

fn list<T: ToString>(words: &[T]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(&word.to_string())).collect();
    format!("[{}]", words.join(", "))
}

#[derive(Deserialize)]
struct JustFormat {
    format: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "format")]
    _format: i64,
    #[serde(default)]
    asset: Vec<Asset>,
}

/// All that an entry of any source may hold; [`Asset::entry`] sorts out what belongs together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asset {
    kind: String,
    names: Option<Vec<String>>,
    target: Option<String>,
    scripts: Option<bool>,
    sources: Option<Vec<PackageSource>>,
    snapshot: Option<Vec<Release>>,
    distribution: Option<String>,
    suite: Option<String>,
    packages: Option<Vec<Package>>,
    url: Option<String>,
    member: Option<String>,
    size: Option<u64>,
    sha256: Option<String>,
    blake3: Option<ObjectDigest>,
    oci: Option<String>,
    manifest: Option<String>,
    layers: Option<Vec<Layer>>,
    config: Option<Config>,
}

/// What lacks its `blake3` was written before the lock had one for everything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    name: String,
    arch: String,
    version: String,
    size: u64,
    sha256: String,
    blake3: Option<ObjectDigest>,
    path: String,
}

impl Package {
    fn pin(self) -> Option<Pin> {
        let Package { name: package, arch, version, size, sha256, blake3, path: pool } = self;
        Some(Pin { package, arch, version, size, sha256, blake3: blake3?, pool })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    digest: String,
    size: u64,
    media: String,
    blake3: Option<ObjectDigest>,
}

impl Layer {
    fn pin(self) -> Option<OciLayer> {
        let Layer { digest, size, media, blake3 } = self;
        Some(OciLayer { digest, size, media, blake3: blake3? })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    digest: String,
    blake3: Option<ObjectDigest>,
    #[serde(default)]
    entrypoint: Vec<String>,
    #[serde(default)]
    cmd: Vec<String>,
    #[serde(default)]
    env: Vec<(String, String)>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    workdir: String,
    #[serde(default)]
    ports: Vec<u16>,
}

impl Config {
    fn pin(self) -> Option<OciConfig> {
        let Config { digest, blake3, entrypoint, cmd, env, user, workdir, ports } = self;
        Some(OciConfig { digest, blake3: blake3?, entrypoint, cmd, env, user, workdir, ports })
    }
}

fn image(
    manifest: String,
    blake3: Option<ObjectDigest>,
    layers: Vec<Layer>,
    config: Config,
) -> Option<OciPin> {
    let layers = layers.into_iter().map(Layer::pin).collect::<Option<_>>()?;
    Some(OciPin { manifest, blake3: blake3?, layers, config: config.pin()? })
}

impl Asset {
    /// The asset, and what it is pinned to; `None` if something of that lacks its `blake3`.
    fn entry(self) -> std::result::Result<(AssetId, Option<Pinned>), String> {
        match self {
            Asset {
                kind,
                url: Some(url),
                member,
                size: Some(size),
                sha256: Some(sha256),
                blake3: Some(blake3),
                names: None,
                target: None,
                scripts: None,
                sources: None,
                snapshot: None,
                distribution: None,
                suite: None,
                packages: None,
                oci: None,
                manifest: None,
                layers: None,
                config: None,
            } => {
                let role = FileRole::ALL.into_iter().find(|role| role.word() == kind);
                let role = role
                    .ok_or_else(|| format!("asset kind {kind:?} is none of kernel, vmm, image, workload"))?;
                let pin = FilePin { size, sha256, blake3 };
                Ok((AssetId::File { role, url, member }, Some(Pinned::File(pin))))
            }
            Asset {
                kind,
                oci: Some(reference),
                manifest: Some(manifest),
                blake3,
                layers: Some(layers),
                config: Some(config),
                names: None,
                target: None,
                scripts: None,
                sources: None,
                snapshot: None,
                distribution: None,
                suite: None,
                packages: None,
                url: None,
                member: None,
                size: None,
                sha256: None,
            } => match kind.as_str() {
                "image" => {
                    Ok((AssetId::Oci(reference), image(manifest, blake3, layers, config).map(Pinned::Oci)))
                }
                _ => Err(format!("a {kind} cannot be a container image")),
            },
            Asset {
                kind,
                names,
                target,
                scripts,
                sources,
                snapshot,
                distribution: Some(distribution),
                suite: Some(suite),
                packages: Some(packages),
                url: None,
                member: None,
                size: None,
                sha256: None,
                blake3: None,
                oci: None,
                manifest: None,
                layers: None,
                config: None,
            } => {
                let names = names.unwrap_or_default();
                let plain = target.is_none() && scripts.is_none() && sources.is_none();
                let set = || PackageSet {
                    packages: names.iter().map(|name| Wanted::parse(name)).collect(),
                    suite: target.clone(),
                    sources: sources.clone().unwrap_or_default(),
                    scripts: scripts.unwrap_or_default(),
                };
                let id = match (kind.as_str(), names.as_slice()) {
                    ("kernel", [_]) => AssetId::Kernel(set()),
                    ("kernel", _) => return Err("a kernel has exactly one name".to_owned()),
                    ("vmm", []) if plain => AssetId::Vmm,
                    ("vmm", _) => return Err("the vmm has no names, target, sources or scripts".to_owned()),
                    ("image", _) => AssetId::Image(set()),
                    _ => return Err(format!("asset kind {kind:?} is none of kernel, vmm, image")),
                };
                let origin = Origin { distribution, suite };
                let packages = packages.into_iter().map(Package::pin).collect::<Option<Vec<Pin>>>();
                let snapshot = snapshot.unwrap_or_default();
                Ok((id, packages.map(|packages| Pins { origin, snapshot, packages }.into())))
            }
            Asset { kind, .. } => Err(format!(
                "an asset of kind {kind:?} is neither one of packages, nor of a url, nor of oci: fields are \
                 missing, or too many"
            )),
        }
    }
}

pub(super) fn parse(text: &str, path: &Path) -> Result<Lock> {
    let shown = path.display();
    let invalid = |why: String| {
        Error::usage("lock.invalid", format!("{shown} is not a lock file: {why}"))
            .help("restore the file from version control, or delete it and run `firegopher lock` to pin everything anew")
    };
    if let Some(number) = text.lines().position(|l| l.starts_with("<<<<<<< ") || l.starts_with(">>>>>>> ")) {
        return Err(Error::usage(
            "lock.conflict",
            format!("{shown} holds an unresolved merge conflict (line {})", number + 1),
        )
        .help("take one side of the conflict, then run `firegopher lock` to add what is missing"));
    }
    let document: Document = match toml::from_str(text) {
        Ok(document) => document,
        // Only now ask for the format: a valid file is parsed once.
        Err(error) => {
            return Err(match toml::from_str::<JustFormat>(text) {
                Ok(JustFormat { format: Some(format) }) if format > FORMAT => newer(path, format),
                _ => invalid(error.to_string().trim_end().to_owned()),
            });
        }
    };
    if document._format > FORMAT {
        return Err(newer(path, document._format));
    }
    if document._format != FORMAT {
        return Err(invalid(format!("it has format {}, this firegopher reads {FORMAT}", document._format)));
    }
    let mut lock = Lock::default();
    for asset in document.asset.into_iter().filter(|asset| asset.kind != RETIRED) {
        let (id, pinned) = asset.entry().map_err(invalid)?;
        match &pinned {
            Some(pinned) => check(&id, pinned),
            None => id.check(),
        }
        .map_err(|why| invalid(format!("asset {id}: {why}")))?;
        if lock.assets.contains_key(&id) || lock.outdated.contains(&id) {
            return Err(invalid(format!("asset {id} is there twice")));
        }
        match pinned {
            Some(pinned) => _ = lock.assets.insert(id, pinned),
            None => _ = lock.outdated.insert(id),
        }
    }
    Ok(lock)
}

fn newer(path: &Path, format: i64) -> Error {
    Error::usage(
        "lock.newer",
        format!("{} has format {format}, this firegopher reads up to {FORMAT}", path.display()),
    )
    .help("use the firegopher that wrote it, or a newer one")
}
