//! The test cases of the KDL project (`testdata/kdl/README.md`): the right verdict and meaning for each.

use super::prescan;
use kdl::{KdlDocument, KdlValue};
use std::collections::BTreeMap;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    text: String,
    /// The same document in its plainest form; absent where the text is no KDL.
    means: Option<String>,
}

/// What the parser decides otherwise where it is asked alone; the scan before it makes up for that.
const WRONG_ALONE: [&str; 5] = [
    "multiline_raw_string_single_line_err_fail",
    "unicode_delete_fail",
    "zero_space_before_slashdash_arg",
    "zero_space_before_slashdash_children",
    "zero_space_before_slashdash_prop",
];

/// What a document says: of equal properties the last one, in the order of their names.
fn meaning(document: &KdlDocument) -> String {
    let node = |node: &kdl::KdlNode| {
        let value = |entry: &kdl::KdlEntry| {
            let kind = entry.ty().map(|ty| format!("({:?})", ty.value())).unwrap_or_default();
            let value = match entry.value() {
                KdlValue::Float(float) => format!("{float:e}"),
                other => format!("{other:?}"),
            };
            format!("{kind}{value}")
        };
        let mut said = vec![format!("{:?}{:?}", node.ty().map(|ty| ty.value()), node.name().value())];
        said.extend(node.entries().iter().filter(|e| e.name().is_none()).map(value));
        let named = node.entries().iter().filter_map(|e| Some((e.name()?.value(), value(e))));
        said.extend(BTreeMap::from_iter(named).into_iter().map(|(name, value)| format!("{name:?}={value}")));
        said.extend(node.children().filter(|c| !c.nodes().is_empty()).map(|c| format!("{{{}}}", meaning(c))));
        said.join(" ")
    };
    document.nodes().iter().map(node).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_languages_own_cases_get_the_right_verdict_and_meaning() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../../testdata/kdl/cases.json")).unwrap();
    assert_eq!(cases.len(), 336);
    let mut wrong = Vec::new();
    let mut wrong_alone = Vec::new();
    for Case { name, text, means } in &cases {
        let read = prescan(text)
            .map_err(|problems| problems[0].message.clone())
            .and_then(|clean| KdlDocument::parse_v2(&clean).map_err(|e| format!("the parser: {e:?}")));
        match (read, means) {
            (Ok(document), Some(means)) => {
                let (got, wanted) = (meaning(&document), meaning(&KdlDocument::parse_v2(means).unwrap()));
                if got != wanted {
                    wrong.push(format!("{name}: {got} instead of {wanted}"));
                }
            }
            (Ok(_), None) => wrong.push(format!("{name}: accepted: {text:?}")),
            (Err(message), Some(_)) => wrong.push(format!("{name}: refused: {message}: {text:?}")),
            (Err(_), None) => {}
        }
        if KdlDocument::parse_v2(text).is_ok() != means.is_some() {
            wrong_alone.push(name.as_str());
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(wrong_alone, WRONG_ALONE, "testdata/kdl/README.md names them");
}
