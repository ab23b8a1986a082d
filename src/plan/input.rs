//! Names of step inputs. A name is a value of [`InputName`]; as text, which is what keys and records hold, no two
//! names are equal: whatever comes from a manifest stands in quotes, and our own words hold none.

use super::StepKind;
use std::fmt;

/// What an input of a step is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InputName {
    /// A setting, or something that firegopher brings along, by a word of ours.
    Setting(String),
    /// The output of the step's parent of this kind, or another effect of the same VM.
    Output(StepKind),
    /// A pinned package.
    Package(String),
    /// A file or directory on this host that is not a workload.
    File(String),
    /// The file that is taken out of a downloaded archive.
    Member(String),
    /// A layer of a container image, by its place.
    Layer(usize),
    /// What a workload holds or how it is placed, by its source.
    Workload(String, Part),
    /// A variable of the environment.
    Env(String),
    /// A kernel parameter.
    Sysctl(String),
    /// A resource limit.
    Limit(String),
    /// A secret, by its variable in the guest.
    Secret(String),
    /// A volume.
    Volume(String),
    /// A published port, by the host's address and number.
    Port(std::net::IpAddr, u16),
}

/// Which property of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Its bytes.
    Content,
    /// Its place in the guest.
    To,
    /// The owner of its files.
    Owner,
    /// Whether a single file is a program.
    Executable,
}

/// What stands in an order that counts: the order itself may be all that changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    /// In the plural, for people.
    pub(super) list: &'static str,
    /// Which one of the list.
    pub(super) item: String,
}

impl Part {
    const ALL: [Part; 4] = [Part::Content, Part::To, Part::Owner, Part::Executable];

    fn word(self) -> &'static str {
        match self {
            Part::Content => "content",
            Part::To => "to",
            Part::Owner => "owner",
            Part::Executable => "executable",
        }
    }
}

impl From<&str> for InputName {
    fn from(word: &str) -> Self {
        InputName::Setting(word.to_owned())
    }
}

impl From<String> for InputName {
    fn from(word: String) -> Self {
        InputName::Setting(word)
    }
}

/// Whether a word of ours is told from all other names without quotes.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && !word.contains('"')
}

impl InputName {
    fn fields(&self) -> (&'static str, Vec<String>) {
        let one = |text: &String| vec![text.clone()];
        match self {
            InputName::Setting(word) => ("setting", one(word)),
            InputName::Output(kind) => ("output", vec![kind.label().to_owned()]),
            InputName::Package(name) => ("package", one(name)),
            InputName::File(path) => ("file", one(path)),
            InputName::Member(path) => ("member", one(path)),
            InputName::Layer(index) => ("layer", vec![index.to_string()]),
            InputName::Workload(source, part) => ("workload", vec![source.clone(), part.word().to_owned()]),
            InputName::Env(name) => ("env", one(name)),
            InputName::Sysctl(path) => ("sysctl", one(path)),
            InputName::Limit(name) => ("limit", one(name)),
            InputName::Secret(name) => ("secret", one(name)),
            InputName::Volume(name) => ("volume", one(name)),
            InputName::Port(address, number) => ("port", vec![address.to_string(), number.to_string()]),
        }
    }

    /// The name that [`fmt::Display`] wrote. What an older version wrote is a setting.
    pub fn parse(text: &str) -> InputName {
        Self::read(text).unwrap_or_else(|| InputName::Setting(text.to_owned()))
    }

    fn read(text: &str) -> Option<InputName> {
        let (kind, rest) = text.split_once(" \"")?;
        let quoted = format!("\"{rest}");
        let mut fields = Vec::new();
        let mut values = serde_json::Deserializer::from_str(&quoted).into_iter::<String>();
        for field in &mut values {
            fields.push(field.ok()?);
        }
        Some(match (kind, fields.as_slice()) {
            ("setting", [word]) => InputName::Setting(word.clone()),
            ("output", [label]) => InputName::Output(StepKind::ALL.into_iter().find(|k| k.label() == label)?),
            ("package", [name]) => InputName::Package(name.clone()),
            ("file", [path]) => InputName::File(path.clone()),
            ("member", [path]) => InputName::Member(path.clone()),
            ("layer", [index]) => InputName::Layer(index.parse().ok()?),
            ("workload", [source, part]) => {
                InputName::Workload(source.clone(), Part::ALL.into_iter().find(|p| p.word() == part)?)
            }
            ("env", [name]) => InputName::Env(name.clone()),
            ("sysctl", [path]) => InputName::Sysctl(path.clone()),
            ("limit", [name]) => InputName::Limit(name.clone()),
            ("secret", [name]) => InputName::Secret(name.clone()),
            ("volume", [name]) => InputName::Volume(name.clone()),
            ("port", [address, number]) => InputName::Port(address.parse().ok()?, number.parse().ok()?),
            _ => return None,
        })
    }

    /// The name for people.
    pub fn shown(&self) -> String {
        match self {
            InputName::Setting(text) | InputName::Package(text) | InputName::File(text) => text.clone(),
            InputName::Member(text) | InputName::Workload(text, Part::Content) => text.clone(),
            InputName::Output(kind) => kind.label().to_owned(),
            InputName::Layer(index) => format!("layer {index}"),
            InputName::Workload(source, part) => format!("{source} {}", part.word()),
            InputName::Env(name) => format!("env {name}"),
            InputName::Sysctl(path) => format!("sysctl {path}"),
            InputName::Limit(name) => format!("limit {name}"),
            InputName::Secret(name) => format!("secret {name}"),
            InputName::Volume(name) => format!("volume {name}"),
            InputName::Port(address, number) if address.is_loopback() => format!("port {number}"),
            InputName::Port(address, number) => {
                format!("port {}", std::net::SocketAddr::new(*address, *number))
            }
        }
    }

    /// The list that it stands in, if the order of that counts.
    pub(super) fn listed(&self) -> Option<Listed> {
        let (list, item) = match self {
            InputName::Workload(source, Part::To) => ("workloads", source),
            InputName::Env(name) => ("variables", name),
            InputName::Sysctl(path) => ("sysctls", path),
            InputName::Limit(name) => ("limits", name),
            InputName::Secret(name) => ("secrets", name),
            InputName::Volume(name) => ("volumes", name),
            InputName::Package(name) => ("packages", name),
            InputName::Port(_, number) => return Some(Listed { list: "ports", item: number.to_string() }),
            InputName::Setting(_)
            | InputName::Output(_)
            | InputName::File(_)
            | InputName::Member(_)
            | InputName::Layer(_)
            | InputName::Workload(..) => return None,
        };
        Some(Listed { list, item: item.clone() })
    }
}

impl fmt::Display for InputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let InputName::Setting(word) = self
            && is_plain(word)
        {
            return f.write_str(word);
        }
        let (kind, fields) = self.fields();
        f.write_str(kind)?;
        fields.into_iter().try_for_each(|field| write!(f, " {}", serde_json::Value::String(field)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Text that tries to look like something else: quotes, blanks, marks and words of ours.
    fn text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\"".to_owned()),
            Just(" ".to_owned()),
            Just("\\".to_owned()),
            Just(" to".to_owned()),
            Just("!b".to_owned()),
            Just("env \"".to_owned()),
            Just("modes".to_owned()),
            "[a-c./é\u{1}]{0,3}",
        ];
        prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
    }

    fn name() -> impl Strategy<Value = InputName> {
        let part = prop::sample::select(Part::ALL.to_vec());
        prop_oneof![
            text().prop_map(InputName::Setting),
            prop::sample::select(StepKind::ALL.to_vec()).prop_map(InputName::Output),
            text().prop_map(InputName::Package),
            text().prop_map(InputName::File),
            text().prop_map(InputName::Member),
            any::<usize>().prop_map(InputName::Layer),
            (text(), part).prop_map(|(source, part)| InputName::Workload(source, part)),
            text().prop_map(InputName::Env),
            text().prop_map(InputName::Sysctl),
            text().prop_map(InputName::Limit),
            text().prop_map(InputName::Secret),
            text().prop_map(InputName::Volume),
            (any::<std::net::IpAddr>(), any::<u16>()).prop_map(|(a, n)| InputName::Port(a, n)),
        ]
    }

    proptest! {
        /// Whatever can be read back is told from everything else.
        #[test]
        fn a_name_is_read_back_from_its_text(name in name()) {
            prop_assert_eq!(InputName::parse(&name.to_string()), name);
        }

        #[test]
        fn distinct_names_never_have_one_text(a in name(), b in name()) {
            prop_assert_eq!(a == b, a.to_string() == b.to_string());
        }
    }
}
