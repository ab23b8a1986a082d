//! Writes the tables as a KDL schema document, for editors: `schema/firegopher.kdl-schema`.

use super::table::{Block, Kind, Node, TOP};
use std::fmt::Write;

const HEAD: &str = "// The settings of firegopher.kdl, in the KDL schema language (https://kdl.dev).
// Written from the tables that the reader uses; a test keeps both in step.

document {
    info {
        title \"firegopher.kdl\"
        description \"What firegopher boots: microVMs and where their parts come from\"
        license \"Apache-2.0\" spdx=\"Apache-2.0\"
    }
";

/// The whole document.
pub(super) fn document() -> String {
    let mut out = HEAD.to_owned();
    nodes(&mut out, 1, TOP);
    out + "}\n"
}

fn nodes(out: &mut String, depth: usize, all: &[Node]) {
    for node in all {
        let mut line = |depth: usize, text: &str| {
            writeln!(out, "{}{text}", "    ".repeat(depth))
                .expect("invariant: writing to a String cannot fail");
        };
        line(depth, &format!("node {:?} description={:?} {{", node.name, node.about));
        if !node.many {
            line(depth + 1, "max 1");
        }
        if node.args.1 > 0 {
            line(depth + 1, "value {");
            line(depth + 2, &format!("min {}", node.args.0));
            if node.args.1 < usize::MAX {
                line(depth + 2, &format!("max {}", node.args.1));
            }
            type_of(&mut line, depth + 2, node.kind);
            line(depth + 1, "}");
        }
        for prop in node.props {
            line(depth + 1, &format!("prop {:?} description={:?} {{", prop.name, prop.about));
            if prop.needed {
                line(depth + 2, "required #true");
            }
            type_of(&mut line, depth + 2, prop.kind);
            line(depth + 1, "}");
        }
        match node.block {
            Block::None => {}
            Block::Names(_) => {
                line(depth + 1, "children {");
                line(depth + 2, "other-nodes-allowed #true");
                line(depth + 1, "}");
            }
            Block::Nodes(children) => {
                line(depth + 1, "children {");
                nodes(out, depth + 2, children);
                let _ = writeln!(out, "{}}}", "    ".repeat(depth + 1));
            }
        }
        let _ = writeln!(out, "{}}}", "    ".repeat(depth));
    }
}

fn type_of(line: &mut impl FnMut(usize, &str), depth: usize, kind: Kind) {
    match kind {
        Kind::Text => line(depth, "type \"string\""),
        Kind::Number => line(depth, "type \"number\""),
        Kind::Truth => line(depth, "type \"boolean\""),
        Kind::TextOrNumber | Kind::NumberOrText => line(depth, "type \"string\" \"number\""),
    }
}
