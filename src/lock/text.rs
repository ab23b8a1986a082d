//! The lock's text: TOML with one line a package and nothing that depends on time or order, so that two branches
//! which pin different things merge.

use super::{AssetId, FORMAT, Lock, Origin, Pin, Pins, Release, check};
use crate::error::{Error, Result};
use crate::packages::{PackageSet, PackageSource, Wanted};
use serde::Deserialize;
use std::fmt::Write;
use std::path::Path;

const HEADER: &str = "# Written by firegopher: every package that is fetched, by version and digest. Commit this file.\n\
                      # `firegopher update` renews it; it is not meant to be edited.\n";

const MMDEBSTRAP: &str = "mmdebstrap";

pub(super) fn render(lock: &Lock) -> String {
    let mut out = String::from(HEADER);
    // No value needs escaping: `check` has seen all of them.
    let mut line =
        |args: std::fmt::Arguments<'_>| out.write_fmt(args).expect("invariant: a String takes all writes");
    line(format_args!("format = {FORMAT}\n"));
    for (id, pins) in &lock.assets {
        line(format_args!("\n[[asset]]\nkind = \"{}\"\n", id.kind()));
        if let Some(PackageSet { packages, suite, sources, scripts }) = id.set() {
            line(format_args!("names = [{}]\n", list(packages)));
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
                        "  {{ url = \"{url}\", suite = \"{suite}\", components = [{}], keyring = \"{keyring}\" }},\n",
                        list(components)
                    ));
                }
                line(format_args!("]\n"));
            }
        }
        if *id == AssetId::Mmdebstrap {
            line(format_args!("names = [\"{MMDEBSTRAP}\"]\n"));
        }
        let Origin { distribution, suite } = &pins.origin;
        line(format_args!("distribution = \"{distribution}\"\nsuite = \"{suite}\"\n"));
        if !pins.snapshot.is_empty() {
            line(format_args!("snapshot = [\n"));
            for Release { origin, codename, date, sha256 } in &pins.snapshot {
                line(format_args!(
                    "  {{ origin = \"{origin}\", codename = \"{codename}\", date = \"{date}\", sha256 = \"{sha256}\" }},\n"
                ));
            }
            line(format_args!("]\n"));
        }
        line(format_args!("packages = [\n"));
        for Pin { package, arch, version, size, sha256, pool } in &pins.packages {
            line(format_args!(
                "  {{ name = \"{package}\", arch = \"{arch}\", version = \"{version}\", size = {size}, \
                 sha256 = \"{sha256}\", path = \"{pool}\" }},\n"
            ));
        }
        line(format_args!("]\n"));
    }
    out
}

fn list<T: std::fmt::Display>(values: &[T]) -> String {
    values.iter().map(|value| format!("\"{value}\"")).collect::<Vec<_>>().join(", ")
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asset {
    kind: String,
    #[serde(default)]
    names: Vec<String>,
    target: Option<String>,
    #[serde(default)]
    scripts: bool,
    #[serde(default)]
    sources: Vec<PackageSource>,
    distribution: String,
    suite: String,
    #[serde(default)]
    snapshot: Vec<Release>,
    packages: Vec<Pin>,
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
    for asset in document.asset {
        let Asset { kind, names, target, scripts, sources, distribution, suite, mut snapshot, mut packages } =
            asset;
        let plain = target.is_none() && !scripts && sources.is_empty();
        let set = || PackageSet {
            packages: names.iter().map(|name| Wanted::parse(name)).collect(),
            suite: target.clone(),
            sources: sources.clone(),
            scripts,
        };
        let id = match (kind.as_str(), names.as_slice()) {
            ("kernel", [_]) => AssetId::Kernel(set()),
            ("kernel", _) => return Err(invalid("a kernel has exactly one name".to_owned())),
            ("vmm", []) if plain => AssetId::Vmm,
            ("vmm", _) => return Err(invalid("the vmm has no names, target, sources or scripts".to_owned())),
            ("image", _) => AssetId::Image(set()),
            ("tool", [name]) if name == MMDEBSTRAP && plain => AssetId::Mmdebstrap,
            ("tool", _) => return Err(invalid(format!("the only tool is {MMDEBSTRAP}"))),
            _ => return Err(invalid(format!("asset kind {kind:?} is none of kernel, vmm, image, tool"))),
        };
        packages.sort();
        snapshot.sort();
        let pins = Pins { origin: Origin { distribution, suite }, snapshot, packages };
        check(&id, &pins).map_err(|why| invalid(format!("asset {id}: {why}")))?;
        let again = id.to_string();
        if lock.assets.insert(id, pins).is_some() {
            return Err(invalid(format!("asset {again} is there twice")));
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
