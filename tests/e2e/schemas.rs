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
                assert_eq!(rule, "^[0-9a-f]{64}$", "the only pattern that this check knows");
                let hex =
                    |text: &str| text.len() == 64 && text.bytes().all(|b| b"0123456789abcdef".contains(&b));
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
