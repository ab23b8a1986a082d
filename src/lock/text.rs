//! The lock's text: TOML with one line a package and nothing that depends on time or order, so that two branches
//! which pin different things merge.

use super::{AssetId, FORMAT, Lock, Origin, Pin, Pins, check};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::fmt::Write;
use std::path::Path;

const HEADER: &str = "# Written by firegopher: every package that is fetched, by version and digest. Commit this file.\n\
                      # `firegopher update` renews it; it is not meant to be edited.\n";

pub(super) fn render(lock: &Lock) -> String {
    let mut out = String::from(HEADER);
    // No value needs escaping: `check` has seen all of them.
    let mut line =
        |args: std::fmt::Arguments<'_>| out.write_fmt(args).expect("invariant: a String takes all writes");
    line(format_args!("format = {FORMAT}\n"));
    for (id, pins) in &lock.assets {
        line(format_args!("\n[[asset]]\nkind = \"{}\"\n", id.kind()));
        if !id.names().is_empty() {
            let names: Vec<String> = id.names().iter().map(|name| format!("\"{name}\"")).collect();
            line(format_args!("names = [{}]\n", names.join(", ")));
        }
        let Origin { distribution, suite } = &pins.origin;
        line(format_args!("distribution = \"{distribution}\"\nsuite = \"{suite}\"\npackages = [\n"));
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
    distribution: String,
    suite: String,
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
        let Asset { kind, names, distribution, suite, mut packages } = asset;
        let id = match (kind.as_str(), names.as_slice()) {
            ("kernel", [name]) => AssetId::Kernel(name.clone()),
            ("kernel", _) => return Err(invalid("a kernel has exactly one name".to_owned())),
            ("vmm", []) => AssetId::Vmm,
            ("vmm", _) => return Err(invalid("the vmm has no names".to_owned())),
            ("image", _) => AssetId::Image(names),
            _ => return Err(invalid(format!("asset kind {kind:?} is none of kernel, vmm, image"))),
        };
        packages.sort();
        let pins = Pins { origin: Origin { distribution, suite }, packages };
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
