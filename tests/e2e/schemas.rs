//! What `--json` prints is what `schema/*.schema.json` documents, field by field.

use crate::harness::{Project, free_port, guests};
use serde_json::Value;

#[test]
fn json_output_follows_its_schemas() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(&format!(
        "vm \"box\" {{ workload \"./app\" to=\"/app\"; run \"sleep\" \"600\"; port {} to=80 }}",
        free_port()
    ));
    project.write("app/file", "one");
    let follows = |schema: &str, args: &[&str]| {
        let document = project.ok(args).json();
        assert_eq!(document["format_version"], 1);
        check_document(schema, &document);
        document
    };
    // Before, while and after it runs; with reasons that have old and new values.
    assert_eq!(follows("plan", &["plan", "--json"])["changes"], true);
    follows("build", &["build", "--json"]);
    follows("ps", &["ps", "--json"]);
    project.up(&["-d"]);
    assert_eq!(follows("plan", &["plan", "--json"])["changes"], false);
    assert_eq!(follows("ps", &["ps", "--json"])["vms"][0]["status"], "running");
    project.write("app/file", "two");
    follows("plan", &["plan", "--json"]);
    for step in follows("build", &["build", "--json"])["steps"].as_array().unwrap() {
        assert!(std::path::Path::new(step["path"].as_str().unwrap()).exists(), "{step}");
    }
    project.manifest("vm \"other\" { run \"true\" }");
    follows("plan", &["plan", "--json"]);
}

#[test]
fn the_schemas_refuse_what_is_not_documented() {
    let good = serde_json::json!({"format_version": 1, "project": "x", "vms": []});
    check_document("ps", &good);
    let breaks: [(&str, Value); 4] = [
        ("/format_version", 2.into()),
        ("/vms", "none".into()),
        ("/vms", serde_json::json!([{"name": "x"}])),
        ("/project", 7.into()),
    ];
    for (at, value) in breaks {
        let mut bad = good.clone();
        *bad.pointer_mut(at).unwrap() = value;
        let refused = std::panic::catch_unwind(|| check_document("ps", &bad));
        assert!(refused.is_err(), "{bad}");
    }
}

#[test]
fn lock_files_follow_their_schema() {
    // What the lock's own tests write: every field of every kind of entry.
    let snapshots = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lock/snapshots");
    let mut entries = Vec::new();
    for file in std::fs::read_dir(snapshots).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let lock: Value = toml::from_str(text.splitn(3, "---\n").nth(2).unwrap()).unwrap();
        check_document("lock", &lock);
        entries.extend(lock["asset"].as_array().unwrap().clone());
    }
    for field in ["packages", "sources", "snapshot", "scripts", "member", "blake3", "layers", "config"] {
        assert!(entries.iter().any(|entry| !entry[field].is_null()), "no entry has {field}");
    }
    let lock = |entry: &Value| serde_json::json!({ "format": 1, "asset": [entry] });
    for entry in &entries {
        check_document("lock", &lock(entry));
        for field in entry.as_object().unwrap().keys() {
            let mut broken = entry.clone();
            broken[field] = serde_json::json!({ "not": "this" });
            let refused = std::panic::catch_unwind(|| check_document("lock", &lock(&broken)));
            assert!(refused.is_err(), "{broken}");
        }
    }
}

pub fn check_document(schema: &str, document: &Value) {
    let path = format!("{}/schema/{schema}.schema.json", env!("CARGO_MANIFEST_DIR"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    check(&schema, &schema, document, "");
}

/// The part of JSON Schema that our schemas use; any other keyword is an error. Stricter in one way: a property that
/// is not documented is refused, while the schemas leave room for fields of later versions.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" => {}
            "$ref" => {
                let target = rule.as_str().unwrap().strip_prefix('#').unwrap();
                check(root, root.pointer(target).unwrap(), value, at);
            }
            "type" => {
                let names = if rule.is_array() { list(rule) } else { vec![rule.clone()] };
                assert!(
                    names.iter().any(|name| is_a(value, name.as_str().unwrap())),
                    "{at} is no {rule}: {value}"
                );
            }
            "const" => assert_eq!(value, rule, "{at}"),
            "enum" => assert!(list(rule).contains(value), "{at} is none of {rule}: {value}"),
            "minimum" => assert!(value.as_f64().is_none_or(|v| v >= rule.as_f64().unwrap()), "{at}: {value}"),
            "maximum" => assert!(value.as_f64().is_none_or(|v| v <= rule.as_f64().unwrap()), "{at}: {value}"),
            "pattern" => {
                // The only patterns that this check knows: a digest, with and without its kind.
                let kind = match rule.as_str() {
                    Some("^[0-9a-f]{64}$") => "",
                    Some("^sha256:[0-9a-f]{64}$") => "sha256:",
                    _ => panic!("this check does not know the pattern {rule}"),
                };
                let hex = |text: &str| {
                    let digits = text.strip_prefix(kind).unwrap_or_default();
                    digits.len() == 64 && digits.bytes().all(|b| b"0123456789abcdef".contains(&b))
                };
                assert!(value.as_str().is_some_and(hex), "{at} is no digest: {value}");
            }
            "required" => {
                for name in list(rule) {
                    assert!(value.get(name.as_str().unwrap()).is_some(), "{at} lacks {name}: {value}");
                }
            }
            "properties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    let rule = rule.get(name).unwrap_or_else(|| panic!("{at}/{name} is not documented"));
                    check(root, rule, value, &format!("{at}/{name}"));
                }
            }
            "items" => {
                for (n, item) in list(value).iter().enumerate() {
                    check(root, rule, item, &format!("{at}/{n}"));
                }
            }
            "oneOf" => {
                let fits = |rule: &Value| {
                    let passes = std::panic::AssertUnwindSafe(|| check(root, rule, value, at));
                    std::panic::catch_unwind(passes).is_ok()
                };
                let count = list(rule).iter().filter(|rule| fits(rule)).count();
                assert_eq!(count, 1, "{at} is to be one of {rule}: {value}");
            }
            other => panic!("this check does not know the keyword {other}"),
        }
    }
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("this check does not know the type {other}"),
    }
}
