use super::*;
use kdl::{KdlDocument, KdlValue};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn accepted(text: &str) -> String {
    prescan(text).unwrap_or_else(|p| panic!("{text:?}: {p:?}"))
}

/// What a document says, without spacing and spans.
fn meaning(doc: &KdlDocument) -> String {
    let mut out = String::new();
    for node in doc.nodes() {
        out += &format!("{:?} {:?}", node.ty().map(|t| t.value()), node.name().value());
        for entry in node.entries() {
            let value = match entry.value() {
                KdlValue::Float(f) => format!("{f}"),
                other => format!("{other:?}"),
            };
            out +=
                &format!(" {:?}{:?}={value}", entry.ty().map(|t| t.value()), entry.name().map(|n| n.value()));
        }
        if let Some(children) = node.children() {
            out += &format!(" {{ {} }}", meaning(children));
        }
        out += ";";
    }
    out
}

#[test]
fn comments_and_slashdash_are_blanked_byte_for_byte() {
    assert_eq!(accepted("a 1 /* é */ 2 // x\nb"), "a 1          2     \nb");
    assert_eq!(accepted("a /-1 2 /-k=\"}\" 3\n/-b { c; }\nd"), "a     2         3\n           d");
    assert_eq!(accepted("a \"// /* /-\" #\"// \"#"), "a \"// /* /-\" #\"// \"#");
    assert_eq!(accepted("\u{FEFF}a"), "   a");
}

#[test]
fn strings_and_comments_hide_braces() {
    let hidden = "{".repeat(100);
    for text in [
        format!("a \"{hidden}\""),
        format!("a #\"{hidden}\"\"#"),
        format!("a ##\"{hidden}\"#{hidden}\"##"),
        format!("a \"\\\"{hidden}\""),
        format!("a \"\"\"\n {hidden}\"{hidden}\"\"\n \"\"\""),
        format!("a #\"\"\"\n {hidden}\n \\\"\"\"\n \"\"\"#"),
        format!("a // {hidden}"),
        format!("a /* {hidden} /* */ {hidden} */ 1"),
    ] {
        let clean = accepted(&text);
        assert_eq!(KdlDocument::parse_v2(&clean).unwrap().nodes().len(), 1, "{text}");
    }
}

#[test]
fn nesting_is_limited_before_the_parser_sees_it() {
    let nested = |n| "a {".repeat(n) + &"}".repeat(n);
    KdlDocument::parse_v2(&accepted(&nested(DEPTH_MAX))).unwrap();
    for text in [nested(DEPTH_MAX + 1), nested(100_000), "a /-{".repeat(100_000), "/-a{".repeat(100_000)] {
        assert_eq!(prescan(&text).unwrap_err()[0].code, "manifest.too-deep");
    }
}

/// Each of these overflows the parser's stack, or keeps it busy for hours.
#[test]
fn what_would_hurt_the_parser_never_reaches_it() {
    let slow = |inner: &str| (0..30).fold(inner.to_owned(), |text, _| format!("a\n/-b {{ {text} }}\n"));
    let blocks = (0..30).fold("1".to_owned(), |text, _| format!("a /-{{ {text} }}"));
    let mut texts = vec![
        slow("x"),
        blocks.replace("{ 1 }", "{ x; }"),
        format!("a /*{}*/ 1", "*".repeat(500_000)),
        format!("a /*{}*/ 1", "/ *".repeat(200_000)),
    ];
    for piece in [
        "}", "{", "=", "a=", "a)", ")", "(", "/", "\\", "\"", "#", "/*", "/-", ";", "*/", "a;", "\"\"\"\n",
        "#\"", "a=a=", "a\n)\n", "1 ", "\\u{", "a \"\\", "a{};", "\u{85}", "r\"", "a (", "a (b", "a /- \n",
    ] {
        texts.push(piece.repeat(100_000));
    }
    for text in texts {
        let start = Instant::now();
        let head: String = text.chars().take(20).collect();
        if let Ok(clean) = prescan(&text) {
            assert!(KdlDocument::parse_v2(&clean[..clean.len().min(4_000)]).is_ok(), "{head}");
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{head}");
    }
}

#[test]
fn the_depth_limit_leaves_room_on_a_threads_stack() {
    // Threads have 2 MiB unless told otherwise; a build without optimisation uses 1.1 MiB here.
    let thread = std::thread::Builder::new().stack_size(1536 << 10);
    let text = "a \"x\" b=(c)1 {".repeat(DEPTH_MAX) + &"}".repeat(DEPTH_MAX);
    thread.spawn(move || KdlDocument::parse_v2(&accepted(&text)).unwrap()).unwrap().join().unwrap();
}

#[test]
fn numbers_are_those_of_kdl() {
    for good in ["0", "-1", "+1_000", "1.5", "1.5e-3", "1e9", "0xFf_0", "0o17", "0b1_0", "-0x1"] {
        KdlDocument::parse_v2(&accepted(&format!("a {good}"))).unwrap();
    }
    let long = "9".repeat(40);
    for bad in ["1.", "1.e", "0x", "0xg", "1a", "0b2", "1__", "_", "-.5", ".5", "1.5.5", long.as_str()] {
        // Some of these are bare words; the parser must agree on each.
        if prescan(&format!("a {bad}")).is_ok() {
            KdlDocument::parse_v2(&format!("a {bad}")).unwrap();
        }
    }
}

/// Pieces of KDL that are likely to make sense together, or nearly so.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "vm",
        "true",
        "-",
        ".",
        "+1",
        "1",
        "0x1",
        "1.5",
        "1e",
        "#true",
        "#nan",
        "#",
        "##",
        "\"",
        "\"\"\"",
        "\\",
        "/",
        "*",
        "/*",
        "*/",
        "//",
        "/-",
        "{",
        "}",
        "(",
        ")",
        "=",
        ";",
        "\n",
        "\r\n",
        " ",
        "  ",
        "\t",
        "é",
        "\u{A0}",
        "\u{85}",
        "\u{2028}",
        "\"s\"",
        "\"x y\"",
        "#\"r\"#",
        "##\"r\"#\"##",
        "k=1",
        "(t)",
        "\\n",
        "\\u{41}",
        "\\ ",
        "\\\n",
        "\"\"\"\n  a\n  \"\"\"",
        "#\"\"\"\n a\n \"\"\"#",
        "a { b; }",
        "a 1\n",
        "/-a\n",
        "// c\n",
        "/* c */",
        "r\"",
        ",",
        "[",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|p| p.concat())
}

/// Without optimisation the parser takes 0.1 ms a node: `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(1000), failure_persistence: None, ..default }
}

/// The parser takes more than the language has: no space before `/-`, no end after what it takes out.
fn lax(text: &str, problem: &Problem) -> bool {
    text.contains("/-") && problem.message.starts_with("unexpected")
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_parser_takes_whatever_the_scan_lets_through(text in pieces()) {
        if let Ok(clean) = prescan(&text) {
            prop_assert_eq!(clean.len(), text.len());
            let parsed = KdlDocument::parse_v2(&clean);
            prop_assert!(parsed.is_ok(), "{:?} {:?} {:?}", text, clean, parsed);
        }
    }

    #[test]
    fn the_scan_lets_through_whatever_the_parser_takes(text in pieces()) {
        if let Ok(doc) = KdlDocument::parse_v2(&text) {
            match prescan(&text) {
                Ok(clean) => {
                    let cleaned = KdlDocument::parse_v2(&clean);
                    prop_assert!(cleaned.is_ok(), "{:?} {:?}", text, clean);
                    prop_assert_eq!(meaning(&doc), meaning(&cleaned.unwrap()), "{:?} {:?}", text, clean);
                }
                Err(problems) if lax(&text, &problems[0]) => {}
                Err(problems) => prop_assert!(false, "{:?} {:?}", text, problems),
            }
        }
    }

    #[test]
    fn no_text_crashes_the_whole_reader(text in "\\PC{0,60}|[ -~\n]{0,80}|(vm|run|port|\"a\"|[{}=;# \n\"/*-]){0,40}") {
        let read = crate::manifest::parse(&text, "f", std::path::Path::new("/"));
        if let Err(diagnostics) = read {
            prop_assert!(!diagnostics.problems().is_empty());
            prop_assert!(!diagnostics.render(false, 80).is_empty());
        }
    }
}
