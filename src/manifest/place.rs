//! Errors that are found out after a manifest was read, shown at their place in it.

use super::diagnostic::{Diagnostics, Problem};
use super::{Location, prescan, read, rendered};
use crate::error::Error;
use crate::name::Name;
use kdl::{KdlDocument, KdlNode};

/// A setting of a VM.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The VM's name.
    pub vm: &'a Name,
    /// The setting's; where the manifest does not write it, the VM itself is the place.
    pub setting: &'a str,
}

/// A usage error, with an excerpt of the manifest if the place is still there.
pub fn error_at(
    at: &Location,
    place: Place<'_>,
    code: &'static str,
    text: &str,
    label: &str,
    help: &str,
) -> Error {
    let error = Error::usage(code, text).help(help);
    match report(at, place, code, text, label, help) {
        Some(report) => error.with_report(report),
        None => error,
    }
}

fn report(
    at: &Location,
    place: Place<'_>,
    code: &'static str,
    message: &str,
    label: &str,
    help: &str,
) -> Option<String> {
    let file = at.path();
    let text = read(at).ok()?;
    let clean = prescan::prescan(&text).ok()?;
    let doc = KdlDocument::parse_v2(&clean).ok()?;
    let is_it = |node: &&KdlNode| {
        let name = node.entries().iter().find(|entry| entry.name().is_none());
        node.name().value() == "vm" && name.and_then(|n| n.value().as_string()) == Some(place.vm.as_str())
    };
    let vm = doc.nodes().iter().find(is_it)?;
    let setting = vm.children().and_then(|children| children.get(place.setting));
    let (first, last) = match setting {
        Some(node) => (node.name().span(), node.entries().last().map_or(node.name().span(), |e| e.span())),
        None => (vm.name().span(), vm.entries().first().map_or(vm.name().span(), |e| e.span())),
    };
    let span = first.offset()..(last.offset() + last.len()).min(text.len());
    let shown = file.strip_prefix("./").unwrap_or(&file).display().to_string();
    let problem = Problem::new(code, span, label, message).help(help);
    Some(rendered(&Diagnostics::new(&shown, &text, vec![problem])))
}
