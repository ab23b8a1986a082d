//! Kernels, base images and VMMs: where they come from, alone or shared under a name.

use super::BASE_PACKAGES;
use super::decode::{Decoder, Setting, Spanned, Wrong};
use super::diagnostic::{Problem, listed, nearest};
use super::model::{Firecracker, FirecrackerFrom, ImageSource, KernelSource, VmmSource};
use super::table::{IMAGE, KERNEL, Node, VMM};
use crate::name::Name;
use crate::packages::PackageSet;
use crate::vmm::firecracker::version::Version;
use std::collections::BTreeMap;

/// The kernel of a VM that names none.
const DEFAULT_KERNEL: &str = "linux-image-cloud-amd64";
/// The kinds of VMM; no shared one can have such a name.
const VMM_KINDS: &[&str] = &["auto", "qemu", "firecracker"];

/// What stands at the top level under a name. `None`: declared, but wrong.
pub(super) struct Shared<T>(BTreeMap<String, Option<T>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared(BTreeMap::new())
    }
}

/// The three kinds of shared sources.
#[derive(Default)]
pub(super) struct Sources {
    kernels: Shared<KernelSource>,
    images: Shared<ImageSource>,
    vmms: Shared<VmmSource>,
}

/// A kind of source: how it is read and what its default is.
pub(super) trait Source: Clone {
    const KIND: &'static str;
    const TABLE: &'static [Node];
    fn read(d: &Decoder<'_>, setting: Setting<'_>) -> Option<Self>;
    /// Adds what the node says around the block.
    fn finish(self, _: &Decoder<'_>, _: Setting<'_>) -> Option<Self> {
        Some(self)
    }
}

impl Source for KernelSource {
    const KIND: &'static str = "kernel";
    const TABLE: &'static [Node] = KERNEL;
    fn read(d: &Decoder<'_>, setting: Setting<'_>) -> Option<Self> {
        match setting.name() {
            "debian" => d.package_set(setting).map(KernelSource::Debian),
            "url" => d.url_source(setting).map(KernelSource::Url),
            _ => d.host_path("the kernel's path", &d.text_arg(setting)?, true).map(KernelSource::Path),
        }
    }
}

impl Source for ImageSource {
    const KIND: &'static str = "image";
    const TABLE: &'static [Node] = IMAGE;
    fn read(d: &Decoder<'_>, setting: Setting<'_>) -> Option<Self> {
        match setting.name() {
            "path" => {
                let path = d.host_path("the image's path", &d.text_arg(setting)?, true)?;
                let keep_modes = match setting.prop("keep") {
                    Some(_) => {
                        let text = d.text_prop(setting, "keep")?;
                        d.choice("`keep` of `path`", &text, &["modes"])?;
                        true
                    }
                    None => false,
                };
                return Some(ImageSource::Path { path, keep_modes });
            }
            "url" => return d.url_source(setting).map(ImageSource::Url),
            "oci" => return d.oci_reference(setting).map(ImageSource::Oci),
            "oci-path" => {
                let path = d.host_path("the image's path", &d.text_arg(setting)?, true)?;
                let tag = match setting.prop("tag") {
                    Some(_) => Some(d.text_prop(setting, "tag")?.value),
                    None => None,
                };
                return Some(ImageSource::OciPath { path, tag });
            }
            _ => {}
        }
        d.package_set(setting).map(debian_image)
    }
}

impl Source for VmmSource {
    const KIND: &'static str = "vmm";
    const TABLE: &'static [Node] = VMM;
    fn read(d: &Decoder<'_>, setting: Setting<'_>) -> Option<Self> {
        let firecracker = |from| VmmSource::Firecracker(Firecracker { from, version: None });
        if setting.name() == "url" {
            return d.url_source(setting).map(FirecrackerFrom::Release).map(firecracker);
        }
        let path = d.host_path("the VMM's path", &d.text_arg(setting)?, true)?;
        Some(match setting.name() {
            "firecracker" => firecracker(FirecrackerFrom::Dir(path)),
            _ => VmmSource::QemuPath(path),
        })
    }
    fn finish(self, d: &Decoder<'_>, setting: Setting<'_>) -> Option<Self> {
        d.version(setting, self)
    }
}

impl Decoder<'_> {
    /// Adds the version that a `vmm` demands.
    fn version(&self, setting: Setting<'_>, mut source: VmmSource) -> Option<VmmSource> {
        let Some(entry) = setting.prop("version") else { return Some(source) };
        let text = self.text_prop(setting, "version")?;
        let (VmmSource::Firecracker(firecracker) | VmmSource::AutoFirecracker(firecracker)) = &mut source
        else {
            return self.report(
                Problem::new(
                    "manifest.unused-property",
                    self.entry_span(entry),
                    "has no use",
                    "only Firecracker is asked for its version",
                )
                .help("remove it: QEMU's packages are pinned in the lock file"),
            );
        };
        let version = text.value.parse::<Version>().map_err(|e| {
            Wrong::new("not a version", e.to_string(), "write it as the release does: version=\"1.16.1\"")
        });
        firecracker.version = Some(self.checked("manifest.bad-version", &text.span, version)?);
        Some(source)
    }
}

/// The image of these packages and of those that every image has.
fn debian_image(mut set: PackageSet) -> ImageSource {
    BASE_PACKAGES.iter().for_each(|package| set.add(package));
    ImageSource::Debian(set)
}

pub(super) fn default_kernel() -> KernelSource {
    KernelSource::Debian(PackageSet::of([DEFAULT_KERNEL]))
}

pub(super) fn default_image() -> ImageSource {
    debian_image(PackageSet::default())
}

impl Sources {
    /// Takes in a shared `kernel`, `image` or `vmm`.
    pub fn declare(&mut self, d: &Decoder<'_>, setting: Setting<'_>) {
        match setting.name() {
            "kernel" => self.kernels.declare(d, setting),
            "image" => self.images.declare(d, setting),
            _ => self.vmms.declare(d, setting),
        }
    }

    pub fn kernel(&self, d: &Decoder<'_>, setting: Setting<'_>) -> Option<KernelSource> {
        self.kernels.of_vm(d, setting)
    }

    pub fn image(&self, d: &Decoder<'_>, setting: Setting<'_>) -> Option<ImageSource> {
        self.images.of_vm(d, setting)
    }

    pub fn vmm(&self, d: &Decoder<'_>, setting: Setting<'_>) -> Option<VmmSource> {
        let kind = d.text_arg(setting)?;
        let block = setting.node.children();
        match (kind.value.as_str(), block) {
            ("firecracker", Some(_)) => match read_block(d, setting)? {
                VmmSource::QemuPath(dir) => {
                    let from = FirecrackerFrom::Dir(dir);
                    d.version(setting, VmmSource::Firecracker(Firecracker { from, version: None }))
                }
                other => d.version(setting, other),
            },
            ("firecracker", None) => d.report(
                Problem::new(
                    "manifest.missing-source",
                    kind.span,
                    "no source",
                    "`vmm \"firecracker\"` does not say where it comes from".to_owned(),
                )
                .help("`vmm \"firecracker\" { path \"DIR\" }` names a directory that holds firecracker and jailer, `{ url \"...\" }` the archive of a release"),
            ),
            ("qemu", Some(_)) => match read_block(d, setting)? {
                VmmSource::Firecracker(_) => d.report(other_vmm(kind, "path \"...\"")),
                source => d.version(setting, source),
            },
            ("qemu", None) => d.version(setting, VmmSource::Qemu),
            ("auto", Some(_)) => match read_block(d, setting)? {
                VmmSource::Firecracker(source) => d.version(setting, VmmSource::AutoFirecracker(source)),
                _ => d.report(other_vmm(kind, "firecracker \"...\"")),
            },
            (_, Some(_)) => d.report(
                Problem::new(
                    "manifest.unexpected-block",
                    kind.span,
                    "takes no block",
                    format!("`vmm {:?}` takes no block here", kind.value),
                )
                .help("a path goes with `vmm \"qemu\" { path \"...\" }` or `vmm \"firecracker\" { path \"...\" }`, or with a `vmm` of that name at the top level"),
            ),
            ("auto", None) => d.version(setting, VmmSource::Auto),
            (_, None) => {
                let shared = self.vmms.named(d, &kind, &["auto", "qemu", "firecracker"])?;
                d.version(setting, shared)
            }
        }
    }
}

impl<T: Source> Shared<T> {
    fn declare(&mut self, d: &Decoder<'_>, setting: Setting<'_>) {
        let source = if setting.node.children().is_some() {
            read_block(d, setting)
        } else {
            missing_source::<T>(d, setting)
        };
        let Some(name) = d.name_arg(setting) else { return };
        if T::KIND == "vmm" && VMM_KINDS.contains(&name.value.as_str()) {
            d.report::<()>(
                Problem::new(
                    "manifest.reserved-name",
                    name.span,
                    "a kind of VMM",
                    format!("a shared `vmm` cannot be called {:?}", name.value.as_str()),
                )
                .help("give it a name of its own"),
            );
            return;
        }
        let source = source.and_then(|source| source.finish(d, setting));
        // Doubled names are found where all names are compared.
        self.0.entry(name.value.as_str().to_owned()).or_insert(source);
    }

    /// A VM's source: by the name of a shared one, or by a block.
    fn of_vm(&self, d: &Decoder<'_>, setting: Setting<'_>) -> Option<T> {
        match (setting.args().next(), setting.node.children()) {
            (Some(entry), Some(_)) => d.report(
                Problem::new(
                    "manifest.name-and-block",
                    d.entry_span(entry),
                    "a name",
                    format!("a VM's `{}` has a name and a block", T::KIND),
                )
                .help(format!(
                    "keep the block for a source of its own, or the name for a `{}` of the top level",
                    T::KIND
                )),
            ),
            (Some(entry), None) => self.named(d, &d.text_of(&format!("`{}`", T::KIND), entry)?, &[]),
            (None, Some(_)) => read_block(d, setting),
            (None, None) => missing_source::<T>(d, setting),
        }
    }

    fn named(&self, d: &Decoder<'_>, name: &Spanned<String>, more: &[&str]) -> Option<T> {
        if let Some(source) = self.0.get(&name.value) {
            return source.clone();
        }
        let problem = Problem::new(
            "manifest.unknown-name",
            name.span.clone(),
            "not declared",
            format!("there is no {} named {:?}", T::KIND, name.value),
        );
        let known = || self.0.keys().map(String::as_str).chain(more.iter().copied());
        d.report(problem.help(match nearest(&name.value, known()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if known().next().is_some() => format!("there is {}", listed(known())),
            None => format!(
                "declare it at the top level: `{} {:?} {{ ... }}`; a source of the VM's own stands in a block",
                T::KIND,
                name.value
            ),
        }))
    }
}

fn other_vmm(kind: Spanned<String>, wanted: &str) -> Problem {
    let message = format!("`vmm {:?}` takes another source", kind.value);
    Problem::new("manifest.other-source", kind.span, "another source", message)
        .help(format!("write `vmm {:?} {{ {wanted} }}`, or name the VMM that the source is of", kind.value))
}

/// The one source in a block.
fn read_block<T: Source>(d: &Decoder<'_>, setting: Setting<'_>) -> Option<T> {
    let block = setting.node.children()?;
    let settings = d.settings(T::KIND, block, T::TABLE);
    match settings.as_slice() {
        // An unknown or early one has been reported.
        [] if !block.nodes().is_empty() => None,
        [] => missing_source::<T>(d, setting),
        [only] => T::read(d, *only),
        [first, second, ..] => {
            for each in &settings {
                T::read(d, *each);
            }
            d.report(
                Problem::new(
                    "manifest.two-sources",
                    second.span(),
                    "another source",
                    format!("`{}` has two sources", T::KIND),
                )
                .also(first.span(), "one source")
                .help("keep one of them"),
            )
        }
    }
}

fn missing_source<T: Source>(d: &Decoder<'_>, setting: Setting<'_>) -> Option<T> {
    d.report(
        Problem::new(
            "manifest.missing-source",
            setting.span(),
            "no source",
            format!("`{}` does not say where it comes from", T::KIND),
        )
        .help(format!(
            "write a block with {}",
            listed(T::TABLE.iter().map(|n| n.name)).replace(" and ", " or ")
        )),
    )
}

impl Decoder<'_> {
    /// A project's, VM's, volume's or shared source's name.
    pub fn name_arg(&self, setting: Setting<'_>) -> Option<Spanned<Name>> {
        let text = self.text_arg(setting)?;
        match Name::new(text.value.as_str()) {
            Ok(value) => Some(Spanned { value, span: text.span }),
            Err(why) => {
                let usable: String = text
                    .value
                    .to_lowercase()
                    .chars()
                    .map(|c| if matches!(c, 'a'..='z' | '0'..='9') { c } else { '-' })
                    .take(crate::name::NAME_MAX)
                    .collect();
                let usable = usable.trim_matches('-');
                let problem = Problem::new(
                    "manifest.bad-name",
                    text.span,
                    "not a name",
                    format!("{:?} cannot be the name of a {}", text.value, setting.name()),
                );
                self.report(problem.help(if usable.is_empty() {
                    why
                } else {
                    format!("{why}; for example \"{usable}\"")
                }))
            }
        }
    }
}
