//! What is set of the guest's kernel and of the workload's processes: `sysctl` and `limit`.

use super::decode::{Decoder, Setting, Spanned, Wrong};
use super::diagnostic::{Problem, listed, nearest};
use super::units::Bounds;
use firegopher_protocol::{Limit, Resource};
use kdl::{KdlEntry, KdlValue};
use std::ops::Range;

/// What says that there is no limit.
const UNLIMITED: &str = "unlimited";
/// The kernel takes the highest number for "unlimited" (RLIM_INFINITY).
const BYTES: Bounds = Bounds { least: 0, most: u64::MAX - 1, unit: 1 };
/// Limits that Linux knows and does not look at, since 2.4 (getrlimit(2)).
const WITHOUT_EFFECT: [&str; 2] = ["locks", "rss"];

/// The kernel parameters of a VM in their order, as paths below /proc/sys; `None` if one is wrong.
pub(super) fn sysctls(d: &Decoder<'_>, settings: &[Setting<'_>]) -> Option<Vec<(String, String)>> {
    let all = settings.iter().filter(|s| s.name() == "sysctl").map(|s| d.sysctl(*s)).collect();
    d.each_once("manifest.duplicate-sysctl", "sysctl", all, |(path, _)| path)
}

/// The resource limits of a VM in their order; `None` if one is wrong.
pub(super) fn limits(d: &Decoder<'_>, settings: &[Setting<'_>]) -> Option<Vec<Limit>> {
    let all = settings.iter().filter(|s| s.name() == "limit").map(|s| d.limit(*s)).collect();
    d.each_once("manifest.duplicate-limit", "limit", all, |limit| limit.resource.name())
}

/// The path below /proc/sys, as sysctl.d(5) has it: the first separator decides, and with a dot the two are swapped,
/// so that `net.ipv4.conf.eth0/1.rp_filter` is the one of `eth0.1`.
fn path_of(name: &str) -> Option<String> {
    let path: String = match name.find(['.', '/']).and_then(|at| name[at..].chars().next())? {
        '/' => name.to_owned(),
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-');
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    (path.chars().all(known) && path.split('/').all(part)).then_some(path)
}

impl Decoder<'_> {
    fn sysctl(&self, setting: Setting<'_>) -> Option<Spanned<(String, String)>> {
        let mut entries = setting.args();
        let (name, value) = (entries.next()?, entries.next());
        let name = self.text_of("the name of `sysctl`", name)?;
        let wrong = || {
            Wrong::new(
                "not a parameter's name",
                format!("{:?} cannot be the name of a kernel parameter", name.value),
                "it is a path below /proc/sys, with dots or slashes, such as \"net.core.somaxconn\"",
            )
        };
        let path = self.checked("manifest.bad-sysctl", &name.span, path_of(&name.value).ok_or_else(wrong));
        let value = self.sysctl_value(&name.value, value?);
        let path = path?;
        if path == "kernel/hostname" {
            return self.report(
                Problem::new(
                    "manifest.conflict",
                    name.span,
                    "has a setting of its own",
                    "the guest's host name is no `sysctl`",
                )
                .help("write `hostname \"...\"`, which the guest's /etc/hosts knows too"),
            );
        }
        Some(Spanned { value: (path, value?), span: name.span })
    }

    fn sysctl_value(&self, name: &str, entry: &KdlEntry) -> Option<String> {
        let subject = format!("the sysctl {name:?}");
        let text = match entry.value() {
            KdlValue::Integer(number) => return Some(number.to_string()),
            KdlValue::Bool(truth) => {
                let wrong = Wrong::new(
                    "a truth value",
                    format!("{subject} is a text or a number, not a truth value"),
                    format!("write {}", u8::from(*truth)),
                );
                return self.checked("manifest.wrong-type", &self.entry_span(entry), Err(wrong));
            }
            _ => self.text_of(&subject, entry)?,
        };
        // Values of several numbers have tabs between them.
        let wrong = text.value.contains(|c: char| c.is_control() && c != '\t');
        let wrong = wrong.then(|| {
            Wrong::new(
                "not one line",
                format!("{subject} holds a control character"),
                "its value is one line, such as \"32768 60999\"",
            )
        });
        self.checked("manifest.bad-value", &text.span, wrong.map_or(Ok(()), Err))?;
        Some(text.value)
    }

    fn limit(&self, setting: Setting<'_>) -> Option<Spanned<Limit>> {
        let mut entries = setting.args();
        let (name, both) = (entries.next()?, entries.next());
        let name = self.text_of("the name of `limit`", name)?;
        let resource = self.resource(&name)?;
        let form =
            format!("write `limit \"{0}\" VALUE`, or `limit \"{0}\" soft=VALUE hard=VALUE`", name.value);
        let (soft, hard) = match (both, setting.prop("soft"), setting.prop("hard")) {
            (Some(both), None, None) => {
                let value = self.limit_value(&format!("the limit `{}`", name.value), resource, both)?;
                (value, value)
            }
            (None, Some(soft), Some(hard)) => {
                let of = |which: &str, entry| {
                    self.limit_value(&format!("the {which} limit `{}`", name.value), resource, entry)
                };
                let (soft_value, hard_value) = (of("soft", soft), of("hard", hard));
                let (soft_value, hard_value) = (soft_value?, hard_value?);
                if soft_value.unwrap_or(u64::MAX) > hard_value.unwrap_or(u64::MAX) {
                    return self.report(
                        Problem::new(
                            "manifest.out-of-range",
                            self.entry_span(soft),
                            "above the hard one",
                            format!("the soft limit `{}` is above its hard limit", name.value),
                        )
                        .also(self.entry_span(hard), "the hard one")
                        .help("the hard limit is what a process may raise the soft one to"),
                    );
                }
                (soft_value, hard_value)
            }
            (Some(_), ..) => {
                let entry = setting.prop("soft").or_else(|| setting.prop("hard"))?;
                return self.report(
                    Problem::new(
                        "manifest.conflict",
                        self.entry_span(entry),
                        "a second value",
                        format!(
                            "the limit `{}` has a value already, which is both soft and hard",
                            name.value
                        ),
                    )
                    .help(form),
                );
            }
            (None, soft, hard) => {
                let lacking = match (soft, hard) {
                    (Some(_), _) => "has no `hard`",
                    (_, Some(_)) => "has no `soft`",
                    _ => "has no value",
                };
                return self.report(
                    Problem::new(
                        "manifest.missing-value",
                        setting.span(),
                        lacking,
                        format!("the limit `{}` {lacking}", name.value),
                    )
                    .help(form),
                );
            }
        };
        Some(Spanned { value: Limit { resource, soft, hard }, span: name.span })
    }

    fn resource(&self, name: &Spanned<String>) -> Option<Resource> {
        if let Some((_, resource)) = Resource::ALL.iter().find(|(known, _)| *known == name.value) {
            return Some(*resource);
        }
        let problem =
            |label: &str, message| Problem::new("manifest.unknown-value", name.span.clone(), label, message);
        if WITHOUT_EFFECT.contains(&name.value.as_str()) {
            let message = format!("Linux has the limit {:?} by name only", name.value);
            return self.report(problem("without effect", message).help("remove it: the kernel ignores it"));
        }
        let lower = name.value.to_lowercase();
        let known = || Resource::ALL.iter().map(|(known, _)| *known);
        let help = match nearest(lower.trim_start_matches("rlimit_"), known()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("it is one of {}: the names of setrlimit(2)", listed(known())),
        };
        self.report(problem("unknown", format!("there is no limit {:?}", name.value)).help(help))
    }

    /// A number, or a size of what is counted in bytes; `Some(None)` is no limit.
    fn limit_value(&self, subject: &str, resource: Resource, entry: &KdlEntry) -> Option<Option<u64>> {
        let span = self.entry_span(entry);
        let say = |code, label: &str, message: String, help: &str| {
            self.checked(code, &span, Err(Wrong::new(label, message, help)))
        };
        let text = match entry.value() {
            KdlValue::Integer(-1) => {
                let message = format!("{subject} cannot be -1");
                return say("manifest.bad-value", "not a limit", message, "write \"unlimited\"");
            }
            // A bare number of bytes gets the message about units.
            KdlValue::Integer(number) if resource.in_bytes() => number.to_string(),
            KdlValue::Integer(number) => return self.limit_number(subject, resource, *number, &span),
            // Of a property, a wrong type has been reported with the node's shape.
            KdlValue::String(_) => self.text_of(subject, entry)?.value,
            _ if entry.name().is_some() => return None,
            _ => return self.wrong_type(entry, subject, "a number"),
        };
        if text == UNLIMITED && resource == Resource::Nofile {
            let message = format!("{subject} cannot be \"unlimited\": the kernel has a ceiling");
            let help = "write a number up to 1048576; a higher one needs a `sysctl \"fs.nr_open\"` beside it";
            return say("manifest.out-of-range", "above the ceiling", message, help);
        }
        if text == UNLIMITED {
            return Some(None);
        }
        if nearest(&text, [UNLIMITED]).is_some() || text == "infinity" {
            let message = format!("{subject} cannot be {text:?}");
            return say("manifest.unknown-value", "unknown", message, "did you mean \"unlimited\"?");
        }
        if resource.in_bytes() {
            return self.size(subject, &Spanned { value: text, span }, &BYTES).map(Some);
        }
        if text.parse::<u64>().is_ok() {
            return self.wrong_type(entry, subject, "a number");
        }
        let message = format!("{subject} cannot be {text:?}");
        say("manifest.unknown-value", "not a limit", message, "it is a number, or \"unlimited\"")
    }

    fn limit_number(
        &self,
        subject: &str,
        resource: Resource,
        number: i128,
        span: &Range<usize>,
    ) -> Option<Option<u64>> {
        let most = match resource {
            // 20 less the lowest nice value, which is -20.
            Resource::Nice => 40,
            Resource::Rtprio => 99,
            _ => u64::MAX - 1,
        };
        let good = u64::try_from(number).ok().filter(|number| *number <= most);
        let wrong = || {
            Wrong::new(
                format!("not in 0 to {most}"),
                format!("{subject} is {number}"),
                format!("it must be from 0 to {most}"),
            )
        };
        self.checked("manifest.out-of-range", span, good.ok_or_else(wrong)).map(Some)
    }

    /// Reports what is set twice. `None` if there is such a thing, or if one was wrong before.
    fn each_once<T>(
        &self,
        code: &'static str,
        what: &str,
        all: Vec<Option<Spanned<T>>>,
        name: impl Fn(&T) -> &str,
    ) -> Option<Vec<T>> {
        let mut good = all.iter().all(Option::is_some);
        let mut first: Vec<Spanned<T>> = vec![];
        for one in all.into_iter().flatten() {
            let Some(before) = first.iter().find(|before| name(&before.value) == name(&one.value)) else {
                first.push(one);
                continue;
            };
            good = false;
            let message = format!("the {what} `{}` is set twice", name(&one.value));
            self.report::<()>(
                Problem::new(code, one.span, "set again", message)
                    .also(before.span.clone(), "first set here")
                    .help("keep one of them"),
            );
        }
        good.then(|| first.into_iter().map(|one| one.value).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::path_of;

    #[test]
    fn dots_and_slashes_separate_as_sysctl_has_them() {
        let path = |name| path_of(name).unwrap();
        assert_eq!(path("net.core.somaxconn"), "net/core/somaxconn");
        assert_eq!(path("net/core/somaxconn"), "net/core/somaxconn");
        assert_eq!(path("net.ipv4.conf.eth0/1.rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(path("net/ipv4/conf/eth0.1/rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
    }

    #[test]
    fn no_name_leaves_the_directory_of_parameters() {
        let bad = [
            "",
            "somaxconn",
            ".",
            "/",
            "..",
            "net..core",
            "/net/core",
            ".net.core",
            "net.core.",
            "net/core/",
            "net/../x",
            "../x.y",
            "./x.y",
            "net.//.x",
            "a b.c",
            "net.core\n.x",
            "net.ü",
        ];
        for name in bad {
            assert_eq!(path_of(name), None, "{name:?}");
        }
    }
}
