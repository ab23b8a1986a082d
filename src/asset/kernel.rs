//! Turns a kernel's packages, or a kernel file, into what a VMM boots: `vmlinux`, the modules in load order, the
//! configuration and `kernel.json`.

use super::elf::{loadable, module_info};
use super::ikconfig;
use super::members::{self, Member};
use super::modules::{self, Modules, Order};
use crate::error::{Context, Error, Result};
use crate::image::vmlinux;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// `kernel.json`: what the tree next to it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// As `uname -r` says it; empty if a kernel file does not tell.
    pub release: String,
    /// File names below `modules/`, in load order.
    pub modules: Vec<String>,
}

impl KernelInfo {
    /// Reads `kernel.json` of a kernel tree.
    ///
    /// # Errors
    /// Failed if it is not there or not valid.
    pub fn load(tree: &Path) -> Result<KernelInfo> {
        let path = tree.join("kernel.json");
        let failed = || format!("cannot read {}", path.display());
        serde_json::from_slice(&fs::read(&path).or_failed("asset.kernel", failed)?)
            .or_failed("asset.kernel", failed)
    }
}

/// The modules' paths in a kernel tree, in load order.
///
/// # Errors
/// As [`KernelInfo::load`].
pub fn module_paths(tree: &Path) -> Result<Vec<PathBuf>> {
    Ok(KernelInfo::load(tree)?.modules.iter().map(|name| tree.join("modules").join(name)).collect())
}

/// Writes `out/vmlinux`, `out/modules/NN-NAME.ko` (uncompressed, in load order), `out/config` and
/// `out/kernel.json` from the packages of one kernel. `out` is made; it must not hold anything.
///
/// # Errors
/// Usage if the packages hold no kernel, several, or one that lacks what a guest needs (naming the options).
pub fn kernel_tree(debs: &[PathBuf], out: &Path) -> Result<()> {
    let mut found = Found { wanted: modules::first_guess(), ..Found::default() };
    for deb in debs {
        members::for_each(deb, |member| found.take(member, true))?;
    }
    let (release, image) = found.image()?;
    found.modules.builtin = modules::builtin(&found.builtin);
    // With a configuration the kernel is judged for the VMM that is to boot it, before it does.
    if found.config.is_none() {
        found.modules.check_drivers(&release)?;
    }
    let order = loop {
        match found.modules.order()? {
            Order::Complete(order) => break order,
            Order::Unread(names) => {
                found.wanted = names;
                for deb in debs {
                    members::for_each(deb, |member| found.take(member, false))?;
                }
                if let Some(name) = found.wanted.iter().find(|name| !found.bytes.contains_key(*name)) {
                    return Err(Error::bug(format!("the kernel module {name} was seen once, then not")));
                }
            }
        }
    };
    let vmlinux = vmlinux::extract(&image).map_err(|e| unusable(&format!("the kernel {release}"), e))?;
    write(out, &release, &vmlinux, found.config.take(), &order, &found.bytes)
}

/// The same layout from a vmlinux or bzImage, without modules: all drivers must be built in. The configuration is
/// the one that the kernel carries in itself, if it does.
///
/// # Errors
/// `kernel.*` if it is no whole x86-64 kernel; `asset.read` if it cannot be read.
pub fn kernel_from_path(path: &Path, out: &Path) -> Result<()> {
    let bytes =
        fs::read(path).or_failed("asset.read", || format!("cannot read the kernel {}", path.display()))?;
    let name = path.display().to_string();
    let vmlinux = vmlinux::extract(&bytes).map_err(|e| unusable(&name, e))?;
    if !loadable(&vmlinux) {
        let what = "it is cut off, or no x86-64 ELF file that can be loaded";
        return Err(unusable(&name, Error::failed("kernel.damaged", what)));
    }
    write(out, "", &vmlinux, None, &[], &BTreeMap::new())
}

fn unusable(name: &str, cause: Error) -> Error {
    let help = cause.help_text().unwrap_or("give it as vmlinux, or as the vmlinuz of an x86_64 distribution");
    Error::failed(cause.code(), format!("{name} cannot be used as a kernel"))
        .help(help.to_owned())
        .because(cause)
}

/// What was found in the packages.
#[derive(Default)]
struct Found {
    images: Vec<(String, Vec<u8>)>,
    config: Option<String>,
    builtin: String,
    modules: Modules,
    /// Module names whose contents are to be read.
    wanted: BTreeSet<String>,
    /// Uncompressed modules by name, with their file name.
    bytes: BTreeMap<String, (String, Vec<u8>)>,
}

impl Found {
    fn take(&mut self, member: &mut Member<'_>, all: bool) -> io::Result<()> {
        if member.target.is_some() {
            return Ok(());
        }
        let path = member.path.clone();
        if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
            if all {
                self.images.push((release.to_owned(), member.read()?));
            }
        } else if path.starts_with("boot/config-") {
            if all {
                self.config = Some(String::from_utf8_lossy(&member.read()?).into_owned());
            }
        } else if let Some(rest) = path.strip_prefix("usr/").unwrap_or(&path).strip_prefix("lib/modules/") {
            let Some((_release, file)) = rest.split_once('/') else { return Ok(()) };
            if file == "modules.builtin" {
                if all {
                    self.builtin = String::from_utf8_lossy(&member.read()?).into_owned();
                }
            } else if let Some((name, suffix)) = modules::module_file(file) {
                if self.wanted.contains(&name) {
                    let bytes = decompress(suffix, member.read()?)?;
                    let info = module_info(&bytes).ok_or_else(|| {
                        io::Error::new(io::ErrorKind::InvalidData, format!("{path} is no kernel module"))
                    })?;
                    let stem = file
                        .rsplit('/')
                        .next()
                        .and_then(|f| f.split_once(".ko"))
                        .map_or(file, |(stem, _)| stem);
                    self.modules.loaded.insert(name.clone(), info);
                    self.bytes.insert(name.clone(), (format!("{stem}.ko"), bytes));
                }
                self.modules.present.insert(name);
            }
        }
        Ok(())
    }

    fn image(&mut self) -> Result<(String, Vec<u8>)> {
        match self.images.len() {
            0 => Err(Error::usage("asset.no-kernel", "the kernel's packages hold no /boot/vmlinuz")
                .help("name a package such as linux-image-cloud-amd64")),
            1 => Ok(self.images.remove(0)),
            n => Err(Error::usage("asset.kernels", format!("the kernel's packages hold {n} kernels"))
                .help("name one kernel package")),
        }
    }
}

fn decompress(suffix: &str, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match suffix {
        "" => return Ok(bytes),
        "xz" => liblzma::read::XzDecoder::new_multi_decoder(&bytes[..]).read_to_end(&mut out)?,
        "zst" => zstd::stream::read::Decoder::new(&bytes[..])?.read_to_end(&mut out)?,
        "gz" => flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut out)?,
        other => return Err(io::Error::other(format!("modules compressed with {other} are not known"))),
    };
    Ok(out)
}

fn write(
    out: &Path,
    release: &str,
    vmlinux: &[u8],
    config: Option<String>,
    order: &[String],
    bytes: &BTreeMap<String, (String, Vec<u8>)>,
) -> Result<()> {
    let failed = || format!("cannot write the kernel tree {}", out.display());
    let put = |name: &str, bytes: &[u8]| fs::write(out.join(name), bytes).or_failed("asset.write", failed);
    fs::create_dir_all(out.join("modules")).or_failed("asset.write", failed)?;
    let mut names = Vec::with_capacity(order.len());
    for (index, module) in order.iter().enumerate() {
        let (file, bytes) = &bytes[module];
        let name = format!("{index:02}-{file}");
        put(&format!("modules/{name}"), bytes)?;
        names.push(name);
    }
    put("vmlinux", vmlinux)?;
    if let Some(config) = config.or_else(|| ikconfig::of(vmlinux)) {
        put("config", config.as_bytes())?;
    }
    let release =
        if release.is_empty() { banner_release(vmlinux).unwrap_or_default() } else { release.to_owned() };
    let info = KernelInfo { release, modules: names };
    let json = serde_json::to_vec_pretty(&info)
        .map_err(|e| Error::bug("kernel.json cannot be written").because(e))?;
    put("kernel.json", &json)
}

/// The release in the banner `Linux version RELEASE (…`, which every kernel carries.
fn banner_release(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let is_release = |b: &u8| b.is_ascii_alphanumeric() || b"._+~-".contains(b);
    // Format strings such as "Linux version %s" come first in some kernels.
    memchr::memmem::find_iter(vmlinux, BANNER).find_map(|at| {
        let rest = &vmlinux[at + BANNER.len()..];
        let length = rest.iter().take(128).take_while(|b| is_release(b)).count();
        let text = std::str::from_utf8(&rest[..length]).ok()?;
        text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn modules_are_uncompressed_whatever_packed_them() {
        let plain = b"module".repeat(1000);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&plain).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let zst = zstd::stream::encode_all(&plain[..], 1).unwrap();
        for (suffix, packed) in
            [("", plain.clone()), ("xz", xz.finish().unwrap()), ("gz", gz.finish().unwrap()), ("zst", zst)]
        {
            assert_eq!(decompress(suffix, packed).unwrap(), plain, "{suffix}");
        }
        assert!(decompress("xz", plain).is_err());
    }

    #[test]
    fn a_release_is_found_in_the_banner_and_not_in_formats() {
        let image = b"\0Linux version %s (%s)\0Linux version 6.1.0-9-cloud-amd64 (a@b) (gcc)\0";
        assert_eq!(banner_release(image).as_deref(), Some("6.1.0-9-cloud-amd64"));
        assert_eq!(banner_release(b"Linux version "), None);
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        fs::write(&path, "hello").unwrap();
        assert!(kernel_from_path(&path, &dir.path().join("out")).is_err());
        assert!(kernel_from_path(&dir.path().join("absent"), &dir.path().join("out")).is_err());
        assert!(!dir.path().join("out").exists());
    }
}
