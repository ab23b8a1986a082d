//! The settings of a VM's machine: console, huge pages, balloon, CPU template, network and rate limits.

use super::decode::{Decoder, Setting, Wrong};
use super::diagnostic::Problem;
use super::model::{Root, Volume};
use super::units::{Bounds, MEMORY};
use crate::vmm::firecracker::config::CpuTemplate;
use crate::vmm::tuning::{Balloon, Console, CpuFile, HugePages, Rate, Tuning};
use std::collections::BTreeMap;

/// Less than a page of a disk or a few packets a second is no limit but a standstill.
const BANDWIDTH: Bounds = Bounds { least: 64 << 10, most: 1 << 40, unit: 1 };
/// What IPv4 demands (RFC 791), up to what a frame of a tap holds.
const MTU: (u32, u32) = (68, 65_521);
/// Guest memory comes in these.
const HUGE_PAGE: u64 = 2 << 20;

const TEMPLATES: [(&str, CpuTemplate); 6] = [
    ("C3", CpuTemplate::C3),
    ("T2", CpuTemplate::T2),
    ("T2S", CpuTemplate::T2S),
    ("T2CL", CpuTemplate::T2CL),
    ("T2A", CpuTemplate::T2A),
    ("V1N1", CpuTemplate::V1N1),
];

/// Reads them out of a VM's settings. `memory` and `root` are the VM's, as far as they are right.
pub(super) fn decode(
    d: &Decoder<'_>,
    settings: &[Setting<'_>],
    volumes: &[&Volume],
    memory: Option<u64>,
    root: Option<Root>,
) -> Option<Tuning> {
    let one = |name: &str| settings.iter().copied().find(|s| s.name() == name);
    let console = one("console").map_or(Some(Console::Quiet), |s| d.console(s));
    let huge_pages = match one("huge-pages") {
        Some(setting) => d.huge_pages(setting, memory).map(Some),
        None => Some(None),
    };
    let balloon = match one("balloon") {
        Some(setting) => d.balloon(setting, memory, huge_pages.flatten()).map(Some),
        None => Some(None),
    };
    let cpu_template = match one("cpu-template") {
        Some(setting) => d.cpu_template(setting),
        None => Some((None, None)),
    };
    if let Some(setting) = one("network").filter(|setting| setting.node.entries().is_empty()) {
        d.report::<()>(
            Problem::new(
                "manifest.unused-setting",
                setting.span(),
                "has no use",
                "this `network` sets nothing",
            )
            .help("give it a property, such as `network mtu=1400`, or remove it"),
        );
    }
    let mtu = match one("network").and_then(|s| s.prop("mtu")) {
        Some(entry) => d.number_of("`mtu`", entry, MTU.0, MTU.1).map(|n| u16::try_from(n.value).ok()),
        None => Some(None),
    };
    let network = |bandwidth, ops| match one("network") {
        Some(setting) => d.rate(setting, bandwidth, ops),
        None => Some(Rate::default()),
    };
    let (receive, send) = (network("receive", "receive-packets"), network("send", "send-packets"));
    let scratch = match one("root") {
        Some(setting) => {
            d.rate(setting, "bandwidth", "ops").filter(|rate| d.root_has_a_disk(setting, *rate, root))
        }
        None => Some(Rate::default()),
    };
    let mut limits = Some(BTreeMap::new());
    for setting in settings.iter().copied().filter(|s| s.name() == "volume") {
        let rate = d.rate(setting, "bandwidth", "ops");
        let name = setting.args().next().and_then(|e| e.value().as_string());
        match (rate, &mut limits, name.filter(|name| volumes.iter().any(|v| v.name.as_str() == *name))) {
            (Some(rate), Some(limits), Some(name)) if rate.is_limit() => {
                limits.insert(name.to_owned(), rate);
            }
            (None, ..) => limits = None,
            _ => {}
        }
    }
    let (cpu_template, cpu_file) = cpu_template.unzip();
    Some(Tuning {
        console: console?,
        huge_pages: huge_pages?,
        balloon: balloon?,
        cpu_template: cpu_template?,
        cpu_file: cpu_file?,
        mtu: mtu?,
        receive: receive?,
        send: send?,
        scratch: scratch?,
        volumes: limits?,
    })
}

impl Decoder<'_> {
    fn console(&self, setting: Setting<'_>) -> Option<Console> {
        let text = self.text_arg(setting)?;
        Some(match self.choice("`console`", &text, &["quiet", "all"])? {
            "all" => Console::All,
            _ => Console::Quiet,
        })
    }

    fn huge_pages(&self, setting: Setting<'_>, memory: Option<u64>) -> Option<HugePages> {
        let text = self.text_arg(setting)?;
        let pages = match self.choice("`huge-pages`", &text, &["2MiB", "transparent"])? {
            "2MiB" => HugePages::Reserved,
            _ => HugePages::Transparent,
        };
        let whole = match memory {
            Some(bytes) if !bytes.is_multiple_of(HUGE_PAGE) => Err(Wrong::new(
                "pages of 2MiB",
                format!("memory of {} is no whole number of huge pages", super::units::show(bytes)),
                format!("the next size is \"{}\"", super::units::show(bytes.next_multiple_of(HUGE_PAGE))),
            )),
            _ => Ok(pages),
        };
        self.checked("manifest.out-of-range", &text.span, whole)
    }

    fn balloon(
        &self,
        setting: Setting<'_>,
        memory: Option<u64>,
        pages: Option<HugePages>,
    ) -> Option<Balloon> {
        let truth = |name| setting.prop(name).and_then(|entry| entry.value().as_bool()).unwrap_or_default();
        let amount = match setting.args().next() {
            Some(_) => {
                let most = memory.map_or(MEMORY.most, |bytes| bytes - bytes.min(MEMORY.least));
                let bounds = Bounds { least: 0, most, unit: MEMORY.unit };
                self.text_size(setting).and_then(|text| self.size("`balloon`", &text, &bounds))?
            }
            None => 0,
        };
        let balloon = Balloon {
            amount,
            deflate_on_oom: truth("deflate-on-oom"),
            free_page_reporting: truth("free-page-reporting"),
        };
        let useless = |code, message: &str, help: &str| {
            self.report(Problem::new(code, setting.span(), "has no use", message).help(help))
        };
        if amount == 0 && !balloon.free_page_reporting {
            return useless(
                "manifest.unused-setting",
                "this balloon never gives memory back",
                "give it a size, such as `balloon \"64MiB\"`, or `free-page-reporting=#true`",
            );
        }
        if pages == Some(HugePages::Reserved) {
            return useless(
                "manifest.conflict",
                "a balloon gives back pages of 4 KiB, never a part of the 2 MiB ones of `huge-pages`",
                "remove one of the two, or write `huge-pages \"transparent\"`",
            );
        }
        Some(balloon)
    }

    /// A name or a file, and exactly one of them.
    fn cpu_template(&self, setting: Setting<'_>) -> Option<(Option<CpuTemplate>, Option<CpuFile>)> {
        match (setting.args().next(), setting.prop("path")) {
            (Some(_), None) => {
                let text = self.text_arg(setting)?;
                let name = self.choice("`cpu-template`", &text, &TEMPLATES.map(|(name, _)| name))?;
                let found = TEMPLATES.iter().find(|(known, _)| *known == name);
                found.map(|(_, template)| (Some(*template), None))
            }
            (None, Some(_)) => {
                let text = self.text_prop(setting, "path")?;
                let path = self.host_path("`path` of `cpu-template`", &text, true)?;
                Some((None, Some(CpuFile { path, changes: None })))
            }
            (None, None) => self.report(
                Problem::new(
                    "manifest.missing-value",
                    setting.span(),
                    "names nothing",
                    "`cpu-template` needs a template",
                )
                .help("write `cpu-template \"T2\"`, or `cpu-template path=\"./cpu.json\"`"),
            ),
            (Some(_), Some(entry)) => self.report(
                Problem::new(
                    "manifest.other-source",
                    self.entry_span(entry),
                    "a second template",
                    "`cpu-template` has both a name and a `path`",
                )
                .help("remove one of them"),
            ),
        }
    }

    /// A limit each second out of two properties.
    fn rate(&self, setting: Setting<'_>, bandwidth: &'static str, ops: &'static str) -> Option<Rate> {
        let bandwidth = match setting.prop(bandwidth) {
            Some(_) => {
                let text = self.text_prop(setting, bandwidth);
                text.and_then(|text| self.size(&format!("`{bandwidth}`"), &text, &BANDWIDTH)).map(Some)
            }
            None => Some(None),
        };
        let ops = match setting.prop(ops) {
            Some(entry) => self.number_of(&format!("`{ops}`"), entry, 1, u32::MAX).map(|n| Some(n.value)),
            None => Some(None),
        };
        Some(Rate { bandwidth: bandwidth?, ops: ops? })
    }

    fn root_has_a_disk(&self, setting: Setting<'_>, rate: Rate, root: Option<Root>) -> bool {
        let Some(entry) = setting.prop("bandwidth").or_else(|| setting.prop("ops")) else { return true };
        if !rate.is_limit() || root != Some(Root::Tmpfs) {
            return true;
        }
        self.report::<()>(
            Problem::new(
                "manifest.unused-property",
                self.entry_span(entry),
                "has no use",
                "`root \"tmpfs\"` is no disk whose rate could be limited",
            )
            .help("remove it, or use `root \"scratch\"`"),
        );
        false
    }
}
