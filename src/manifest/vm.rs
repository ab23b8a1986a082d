//! One `vm` block to one `Vm`.

use super::decode::{Decoder, Setting, Spanned, Wrong, not_yet};
use super::diagnostic::Problem;
use super::habits;
use super::model::{Egress, ImageSource, Port, Restart, Root, Secret, Vm, Volume, Workdir};
use super::source::{Sources, default_image, default_kernel};
use super::table::{self, Block};
use super::units::{Bounds, MEMORY};
use super::{limits, model, tuning, units};
use crate::name::Name;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Smaller ext4 images have no room for a journal.
const DISK: Bounds = Bounds { least: 32 * MIB, most: 16 << 40, unit: 4096 };
const DEFAULT_MEMORY: u64 = 256 * MIB;
const DEFAULT_SCRATCH: u64 = 2 << 30;
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
const DEFAULT_BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A VM and the places that are compared with others.
pub(super) struct Decoded {
    pub vm: Option<Vm>,
    pub name: Option<Spanned<Name>>,
    pub ports: Vec<Spanned<Port>>,
    pub mounts: Vec<Spanned<Volume>>,
    pub workloads: Vec<Spanned<model::Workload>>,
}

/// Reads a `vm` node; the result's `vm` is `None` if anything in it is wrong enough.
pub(super) fn decode(d: &Decoder<'_>, setting: Setting<'_>, sources: &Sources) -> Decoded {
    let name = d.name_arg(setting);
    let settings = match setting.node.children() {
        Some(block) => d.settings("vm", block, table::VM),
        None => vec![],
    };
    let one = |name: &str| settings.iter().copied().find(|s| s.name() == name);
    let many = |name: &'static str| settings.iter().copied().filter(move |s| s.name() == name);

    let kernel = one("kernel").map_or_else(|| Some(default_kernel()), |s| sources.kernel(d, s));
    let image = one("image").map_or_else(|| Some(default_image()), |s| sources.image(d, s));
    let run = match one("run") {
        Some(run) => d.argv(run),
        // It may bring a program of its own.
        None if matches!(image, Some(ImageSource::Oci(_) | ImageSource::OciPath { .. })) => Some(vec![]),
        // A misspelt `run` has been reported as unknown; saying that it is missing helps all the same.
        None => d.report(
            Problem::new(
                "manifest.missing-run",
                setting.span(),
                "has no `run`",
                "a VM needs `run`: what shall it do?",
            )
            .help("for example `run \"python3\" \"server.py\"`; each argument is a text of its own"),
        ),
    };
    let env = one("env").map(|s| d.env(s)).unwrap_or_default();
    let secrets: Vec<_> = many("secret").filter_map(|s| d.secret(s)).collect();
    d.same_variables(&env, &secrets);
    let none: Vec<_> = many("port").filter(|s| is_none(*s)).collect();
    let ports: Vec<_> = many("port").filter(|s| !is_none(*s)).filter_map(|s| d.port(s)).collect();
    d.no_ports(&none, many("port").find(|s| !is_none(*s)));
    let mounts: Vec<_> = many("volume").filter_map(|s| d.volume(s)).collect();
    let workloads: Vec<_> = many("workload").filter_map(|s| d.workload(s)).collect();

    let vmm = one("vmm").map_or(Some(model::VmmSource::Auto), |s| sources.vmm(d, s));
    let workdir = one("workdir").map_or(Some(None), |s| {
        let path = d.text_arg(s).and_then(|text| d.guest_path("`workdir`", &text))?;
        Some(Some(Workdir::Own(path)))
    });
    let user = one("user").map_or(Some(None), |s| d.user(s).map(Some));
    let cpus = one("cpus")
        .map_or(Some(1), |s| s.args().next().and_then(|e| d.number_of("`cpus`", e, 1, 32)).map(|n| n.value));
    let memory = one("memory")
        .map_or(Some(DEFAULT_MEMORY), |s| d.text_size(s).and_then(|text| d.size("`memory`", &text, &MEMORY)));
    let egress = one("egress").map_or(Some(Egress::None), |s| d.egress(s));
    let root = one("root").map_or(Some(Root::Scratch(DEFAULT_SCRATCH)), |s| d.root(s));
    let restart = one("restart").map_or(Some(Restart::No), |s| d.restart(s));
    let grace = one("grace").map_or(Some(DEFAULT_GRACE), |s| d.duration(s, Duration::ZERO));
    let boot_timeout =
        one("boot-timeout").map_or(Some(DEFAULT_BOOT_TIMEOUT), |s| d.duration(s, Duration::from_secs(1)));
    let hostname = one("hostname").map(|s| d.hostname(s));

    let sysctls = limits::sysctls(d, &settings);
    let limits = limits::limits(d, &settings);
    let no_new_privileges = one("no-new-privileges").map_or(Some(false), |s| d.truth_arg(s));
    let tuning = {
        let volumes: Vec<&Volume> = mounts.iter().map(|m| &m.value).collect();
        tuning::decode(d, &settings, &volumes, memory, root)
    };

    let vm = (|| {
        let name = name.as_ref()?.value.clone();
        Some(Vm {
            hostname: hostname.unwrap_or_else(|| Some(name.to_string()))?,
            name,
            kernel: kernel?,
            image: image?,
            vmm: vmm?,
            vmm_elsewhere: None,
            workloads: workloads.iter().map(|w| w.value.clone()).collect(),
            run: run?,
            workdir: workdir?,
            user: user?,
            env: env.iter().map(|e| e.value.clone()).collect(),
            secrets: secrets.iter().map(|s| s.value.clone()).collect(),
            cpus: cpus?,
            memory: memory?,
            ports: ports.iter().map(|p| p.value.clone()).collect(),
            exposed: none.is_empty(),
            egress: egress?,
            volumes: mounts.iter().map(|v| v.value.clone()).collect(),
            root: root?,
            restart: restart?,
            grace: grace?,
            boot_timeout: boot_timeout?,
            sysctls: sysctls?,
            limits: limits?,
            no_new_privileges: no_new_privileges?,
            tuning: tuning?,
        })
    })();
    Decoded { vm, name, ports, mounts, workloads }
}

/// `port "none"`.
fn is_none(setting: Setting<'_>) -> bool {
    setting.args().next().is_some_and(|entry| entry.value().as_string() == Some("none"))
}

impl Decoder<'_> {
    fn argv(&self, setting: Setting<'_>) -> Option<Vec<String>> {
        let mut argv = vec![];
        let mut good = true;
        for (i, entry) in setting.args().enumerate() {
            match self.text_of("an argument of `run`", entry) {
                Some(text) if i == 0 && text.value.is_empty() => {
                    good = false;
                    self.report::<()>(
                        Problem::new(
                            "manifest.empty-program",
                            text.span,
                            "empty",
                            "the program of `run` is empty",
                        )
                        .help("the first argument names the program"),
                    );
                }
                Some(text) if i == 0 && text.value.contains(' ') && setting.args().count() == 1 => {
                    good = false;
                    let split: Vec<String> =
                        text.value.split_whitespace().map(|w| format!("{w:?}")).collect();
                    self.report::<()>(
                        Problem::new(
                            "manifest.unsplit-command",
                            text.span,
                            "one argument",
                            "`run` is not split on spaces: all of this would be the program's name",
                        )
                        .help(format!(
                            "write `run {}`, or `run \"sh\" \"-c\" {:?}` for a shell's language",
                            split.join(" "),
                            text.value
                        )),
                    );
                }
                Some(text) => argv.push(text.value),
                None => good = false,
            }
        }
        (good && !argv.is_empty()).then_some(argv)
    }

    fn variable_name(&self, name: &str, span: &Range<usize>) -> Option<()> {
        let good = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let wrong = || {
            Wrong::new(
                "not a variable's name",
                format!("{name:?} cannot be the name of an environment variable"),
                "a variable's name has letters, digits and `_`, and does not start with a digit",
            )
        };
        self.checked("manifest.bad-variable", span, if good { Ok(()) } else { Err(wrong()) })
    }

    fn env(&self, setting: Setting<'_>) -> Vec<Spanned<(String, String)>> {
        let Block::Names(form) = setting.def.block else { return vec![] };
        let Some(block) = setting.node.children() else {
            self.report::<()>(
                Problem::new("manifest.missing-block", setting.span(), "has no block", "`env` needs a block")
                    .help(format!("its block holds {form}")),
            );
            return vec![];
        };
        let mut env: Vec<Spanned<(String, String)>> = vec![];
        for node in block.nodes() {
            let name = node.name().value();
            let span = super::decode::name_span(node);
            let named = self.variable_name(name, &span);
            let good = match node.entries() {
                [only] if only.name().is_none() && node.children().is_none() && only.ty().is_none() => {
                    Some(only)
                }
                _ => self.report(
                    Problem::new(
                        "manifest.bad-variable",
                        span.clone(),
                        "needs one text",
                        format!("the variable `{name}` needs exactly one text as its value"),
                    )
                    .help(format!("write `{name} \"value\"`")),
                ),
            };
            let value = good.and_then(|e| self.text_of(&format!("the variable `{name}`"), e));
            if let (Some(()), Some(value)) = (named, value) {
                env.push(Spanned { value: (name.to_owned(), value.value), span });
            }
        }
        env
    }

    fn secret(&self, setting: Setting<'_>) -> Option<Spanned<Secret>> {
        let name = self.text_arg(setting);
        let env = self.needed_prop(setting, "env", "secret \"API_KEY\" env=\"API_KEY\"");
        let name = name.and_then(|n| self.variable_name(&n.value, &n.span).map(|()| n));
        let env = env.and_then(|e| self.variable_name(&e.value, &e.span).map(|()| e));
        let name = name?;
        Some(Spanned { value: Secret { name: name.value, env: env?.value }, span: name.span })
    }

    fn same_variables(&self, env: &[Spanned<(String, String)>], secrets: &[Spanned<Secret>]) {
        let all = env
            .iter()
            .map(|e| (e.value.0.as_str(), &e.span))
            .chain(secrets.iter().map(|s| (s.value.name.as_str(), &s.span)));
        let mut first: HashMap<&str, &Range<usize>> = HashMap::new();
        for (name, span) in all {
            if let Some(before) = first.get(name) {
                self.report::<()>(
                    Problem::new(
                        "manifest.duplicate-variable",
                        span.clone(),
                        "set again",
                        format!("the variable `{name}` is set twice"),
                    )
                    .also((*before).clone(), "first set here")
                    .help("keep one of them"),
                );
            } else {
                first.insert(name, span);
            }
        }
    }

    /// `port "none"` stands alone.
    fn no_ports(&self, none: &[Setting<'_>], other: Option<Setting<'_>>) {
        let Some(first) = none.first() else { return };
        let beside = other.or(none.get(1).copied());
        if let Some(beside) = beside {
            self.report::<()>(
                Problem::new(
                    "manifest.bad-value",
                    first.span(),
                    "publishes nothing",
                    "`port \"none\"` stands beside another `port`",
                )
                .also(beside.span(), "the other one")
                .help("keep `port \"none\"` alone, or remove it: a `port` of your own replaces those of a container image"),
            );
        }
        for entry in first.node.entries().iter().filter(|entry| entry.name().is_some()) {
            self.report::<()>(
                Problem::new(
                    "manifest.unused-property",
                    self.entry_span(entry),
                    "means nothing here",
                    "`port \"none\"` has no properties",
                )
                .help("remove it"),
            );
        }
    }

    fn port(&self, setting: Setting<'_>) -> Option<Spanned<Port>> {
        let host = setting.args().next()?;
        if let Some(text) = host.value().as_string() {
            let help = match habits::published(text) {
                Ok(port) => format!("write `{port}`"),
                Err(why) => {
                    format!("{why}: `port 8080 to=80` leads from the host's port 8080 to the guest's 80")
                }
            };
            return self.report(
                Problem::new(
                    "manifest.wrong-type",
                    self.entry_span(host),
                    "a text, not a number",
                    "a host port is a number, not a text",
                )
                .help(help),
            );
        }
        let host = self.number_of("a host port", host, 1, 65535);
        let guest = match setting.prop("to") {
            Some(entry) => self.number_of("a guest port", entry, 1, 65535).map(Some),
            None => Some(None),
        };
        let address = match setting.prop("address") {
            None => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            Some(_) => self.text_prop(setting, "address").and_then(|text| {
                let parsed = text.value.parse().map_err(|_| {
                    Wrong::new(
                        "not an IP address",
                        format!("{:?} is not an IP address", text.value),
                        "\"127.0.0.1\" publishes on this host alone, \"0.0.0.0\" on all of its addresses",
                    )
                });
                self.checked("manifest.bad-address", &text.span, parsed)
            }),
        };
        let host = host?;
        // In range: number_of checked it against 65535.
        let narrow = |n: u32| u16::try_from(n).expect("invariant: at most 65535");
        let guest = guest?.map_or(host.value, |g| g.value);
        Some(Spanned {
            value: Port { address: address?, host: narrow(host.value), guest: narrow(guest) },
            span: host.span,
        })
    }

    fn egress(&self, setting: Setting<'_>) -> Option<Egress> {
        let text = self.text_arg(setting)?;
        if matches!(text.value.as_str(), "public" | "all" | "rules" | "allow") {
            return self.report(not_yet(
                text.span,
                &format!("egress {:?}", text.value),
                "only `egress \"none\"` is, which is the default: published ports work, nothing else leaves the guest",
            ));
        }
        if setting.node.children().is_some() {
            return None; // reported with the node's shape
        }
        self.choice("`egress`", &text, &["none"]).map(|_| Egress::None)
    }

    fn volume(&self, setting: Setting<'_>) -> Option<Spanned<Volume>> {
        let example = "volume \"data\" at=\"/data\" size=\"1GiB\"";
        let name = self.name_arg(setting);
        let at_text = self.needed_prop(setting, "at", example);
        let at = at_text.as_ref().and_then(|text| self.guest_path("a volume's mount point", text));
        let size = self.needed_prop(setting, "size", example);
        let size = size.and_then(|text| self.size("a volume's size", &text, &DISK));
        let value = Volume { name: name?.value, at: at?, size: size? };
        Some(Spanned { value, span: at_text?.span })
    }

    fn root(&self, setting: Setting<'_>) -> Option<Root> {
        let kind = self.text_arg(setting);
        let kind = kind.and_then(|text| self.choice("`root`", &text, &["scratch", "tmpfs"]));
        let size = match setting.prop("size") {
            None => Some(DEFAULT_SCRATCH),
            Some(entry) if kind == Some("tmpfs") => self.report(
                Problem::new(
                    "manifest.unused-property",
                    self.entry_span(entry),
                    "has no use",
                    "`root \"tmpfs\"` has no size",
                )
                .help("it takes the guest's memory: set `memory`, or use `root \"scratch\"`"),
            ),
            Some(_) => self
                .text_prop(setting, "size")
                .and_then(|text| self.size("the scratch disk's size", &text, &DISK)),
        };
        match kind? {
            "tmpfs" => size.map(|_| Root::Tmpfs),
            _ => size.map(Root::Scratch),
        }
    }

    fn restart(&self, setting: Setting<'_>) -> Option<Restart> {
        let kind = self.text_arg(setting);
        let kind = kind.and_then(|text| {
            if text.value == "never" {
                return self.checked(
                    "manifest.unknown-value",
                    &text.span,
                    Err(Wrong::new("unknown", "`restart` cannot be \"never\"", "write `restart \"no\"`")),
                );
            }
            self.choice("`restart`", &text, &["no", "on-failure", "always"])
        });
        let max = match setting.prop("max") {
            None => Some(None),
            Some(entry) if kind == Some("no") => self.report(
                Problem::new(
                    "manifest.unused-property",
                    self.entry_span(entry),
                    "has no use",
                    "`restart \"no\"` has no `max`",
                )
                .help("remove it, or write `restart \"on-failure\"`"),
            ),
            Some(entry) => self.number_of("`max` of `restart`", entry, 1, u32::MAX).map(|n| Some(n.value)),
        };
        match (kind?, max?) {
            ("always", max) => Some(Restart::Always { max }),
            ("on-failure", max) => Some(Restart::OnFailure { max }),
            _ => Some(Restart::No),
        }
    }

    fn duration(&self, setting: Setting<'_>, least: Duration) -> Option<Duration> {
        let subject = format!("`{}`", setting.name());
        let entry = setting.args().next()?;
        let text = match entry.value().as_integer() {
            // A bare number gets the message about units.
            Some(n) => Spanned { value: n.to_string(), span: self.entry_span(entry) },
            None => self.text_of(&subject, entry)?,
        };
        let duration =
            self.checked("manifest.bad-duration", &text.span, units::duration(&subject, &text.value))?;
        if duration < least || duration > HOUR {
            let least = if least.is_zero() { "0s" } else { "1s" };
            let wrong = Wrong::new(
                format!("not in {least} to 1h"),
                format!("{subject} is {}", text.value),
                format!("it must be from {least} to 1h"),
            );
            return self.checked("manifest.out-of-range", &text.span, Err(wrong));
        }
        Some(duration)
    }

    /// A size's text; a bare number is let through to the message about units.
    pub(super) fn text_size(&self, setting: Setting<'_>) -> Option<Spanned<String>> {
        let entry = setting.args().next()?;
        match entry.value().as_integer() {
            Some(n) => Some(Spanned { value: n.to_string(), span: self.entry_span(entry) }),
            None => self.text_of(&format!("`{}`", setting.name()), entry),
        }
    }

    pub(super) fn size(&self, subject: &str, text: &Spanned<String>, bounds: &Bounds) -> Option<u64> {
        let bytes = self.checked("manifest.bad-size", &text.span, units::size(subject, &text.value))?;
        let Bounds { least, most, unit } = *bounds;
        let (label, help) = if bytes < least {
            ("too small".to_owned(), format!("it must be at least {}", units::show(least)))
        } else if bytes > most {
            ("too large".to_owned(), format!("it must be at most {}", units::show(most)))
        } else if !bytes.is_multiple_of(unit) {
            let up = bytes.next_multiple_of(unit);
            (
                format!("not a multiple of {}", units::show(unit)),
                format!("the next one is \"{}\"", units::show(up)),
            )
        } else {
            return Some(bytes);
        };
        let wrong = Wrong::new(label, format!("{subject} cannot be {}", text.value), help);
        self.checked("manifest.out-of-range", &text.span, Err(wrong))
    }

    fn hostname(&self, setting: Setting<'_>) -> Option<String> {
        let text = self.text_arg(setting)?;
        let good = text.value.len() <= 63
            && text.value.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            });
        let wrong = Wrong::new(
            "not a host name",
            format!("{:?} cannot be a host name", text.value),
            "a host name has at most 63 letters, digits, `-` and `.`, and no `-` at either end of a part",
        );
        self.checked("manifest.bad-hostname", &text.span, if good { Ok(()) } else { Err(wrong) })?;
        Some(text.value)
    }
}
