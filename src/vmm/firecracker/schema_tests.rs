//! What is generated, held against Firecracker's own description of its API.

use super::api::{Action, BalloonUpdate, DriveUpdate, MachineUpdate, NetworkUpdate};
use super::config::{
    Balloon, CacheType, Config, CpuChanges, CpuTemplate, HugePages, IoEngine, Level, Logger, RateLimiter,
    TokenBucket, config,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// The part of the description that is understood here: `type`, `required`, `properties`, `items`, `enum`,
/// `minimum`, `maximum` and `$ref`.
struct Schema(Value);

impl Schema {
    /// Says so when there is no description.
    fn load() -> Option<Schema> {
        const BESIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/firecracker-api-1.16.yaml");
        let named = std::env::var_os("FIREGOPHER_TEST_FIRECRACKER_API");
        let path = named.map_or_else(|| PathBuf::from(BESIDE), PathBuf::from);
        if !path.exists() {
            crate::testing::skip("no description (FIREGOPHER_TEST_FIRECRACKER_API names no file)");
            return None;
        }
        Some(Schema(serde_norway::from_slice(&fs_err::read(path).unwrap()).unwrap()))
    }

    fn check(&self, definition: &str, value: &impl Serialize) -> Vec<String> {
        let mut found = Vec::new();
        let definition = &self.0["definitions"][definition];
        assert!(definition.is_object(), "no such definition");
        self.walk(definition, &serde_json::to_value(value).unwrap(), "", &mut found);
        found
    }

    fn walk(&self, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.strip_prefix("#/definitions/").unwrap();
            return self.walk(&self.0["definitions"][name], value, at, found);
        }
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64() || value.is_u64(),
            other => panic!("{at}: type {other:?}"),
        };
        if !fits {
            found.push(format!("{at}: {value} is no {}", schema["type"]));
            return;
        }
        if let Some(choices) = schema["enum"].as_array()
            && !choices.contains(value)
        {
            found.push(format!("{at}: {value} is none of {choices:?}"));
        }
        let beyond = |bound: &str, wrong: fn(i64, i64) -> bool| {
            value.as_i64().zip(schema[bound].as_i64()).is_some_and(|(value, bound)| wrong(value, bound))
        };
        if beyond("minimum", |value, bound| value < bound) || beyond("maximum", |value, bound| value > bound)
        {
            found.push(format!("{at}: {value} is out of range"));
        }
        for (n, item) in value.as_array().into_iter().flatten().enumerate() {
            self.walk(&schema["items"], item, &format!("{at}/{n}"), found);
        }
        let Some(object) = value.as_object() else { return };
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(required) {
                found.push(format!("{at}: {required} is missing"));
            }
        }
        for (key, value) in object {
            match schema["properties"].get(key) {
                Some(schema) => self.walk(schema, value, &format!("{at}/{key}"), found),
                None => found.push(format!("{at}: {key} is unknown")),
            }
        }
    }
}

/// Every field that there is, set.
pub(in crate::vmm::firecracker) fn full() -> Config {
    let limiter = || {
        let bucket = TokenBucket { size: 1 << 20, one_time_burst: Some(5), refill_time: 100 };
        Some(RateLimiter { bandwidth: Some(bucket.clone()), ops: Some(bucket) })
    };
    let mut all = config(&super::config::tests::spec(), &super::config::tests::paths(), "panic=1").unwrap();
    all.machine_config = all.machine_config.with_huge_pages(HugePages::Hugetlbfs2M).unwrap();
    all.machine_config.smt = Some(false);
    all.machine_config.track_dirty_pages = Some(true);
    all.machine_config.cpu_template = Some(CpuTemplate::T2);
    all.drives[0].io_engine = Some(IoEngine::Async);
    all.drives[1].cache_type = Some(CacheType::Unsafe);
    all.drives[1].rate_limiter = limiter();
    all.network_interfaces[0].mtu = Some(1500);
    all.network_interfaces[0].rx_rate_limiter = limiter();
    all.network_interfaces[0].tx_rate_limiter = limiter();
    all.entropy.as_mut().unwrap().rate_limiter = limiter();
    all.balloon = Some(Balloon {
        amount_mib: 0,
        deflate_on_oom: true,
        stats_polling_interval_s: Some(1),
        free_page_hinting: Some(false),
        free_page_reporting: Some(true),
    });
    all.logger = Some(Logger {
        log_path: Some("/log".into()),
        level: Some(Level::Warning),
        show_level: Some(true),
        show_log_origin: Some(true),
        module: Some("api_server".to_owned()),
    });
    all
}

#[test]
fn a_cpu_template_is_what_firecracker_describes() {
    let Some(schema) = Schema::load() else { return };
    let text = json!({
        "kvm_capabilities": ["!56"],
        "cpuid_modifiers": [{
            "leaf": "0x1", "subleaf": "0x0", "flags": 0,
            "modifiers": [{"register": "ecx", "bitmap": format!("0b{}", "x".repeat(32))}],
        }],
        "msr_modifiers": [{"addr": "0x10a", "bitmap": format!("0b{}", "x".repeat(64))}],
    });
    let changes = CpuChanges::parse(text.to_string().as_bytes(), "x").unwrap();
    assert_eq!(schema.check("CpuConfig", &changes), [""; 0]);
}

#[test]
fn the_configuration_file_is_what_firecracker_describes() {
    let Some(schema) = Schema::load() else { return };
    let plain = config(&super::config::tests::spec(), &super::config::tests::paths(), "panic=1").unwrap();
    assert_eq!(schema.check("FullVmConfiguration", &plain), [""; 0]);
    assert_eq!(schema.check("FullVmConfiguration", &full()), [""; 0]);
}

#[test]
fn the_check_finds_what_is_wrong() {
    let Some(schema) = Schema::load() else { return };
    let mut bad = serde_json::to_value(full()).unwrap();
    bad["drives"][0]["cache_type"] = json!("Never");
    bad["drives"][1].as_object_mut().unwrap().remove("drive_id");
    bad["machine-config"]["vcpu_count"] = json!(64);
    bad["machine-config"]["smt"] = json!("yes");
    bad["boot-source"]["kernel"] = json!("/kernel");
    bad["network-interfaces"][0]["mtu"] = json!(67);
    let found = schema.check("FullVmConfiguration", &bad);
    assert_eq!(found.len(), 6, "{found:#?}");
}

#[test]
fn requests_are_what_firecracker_describes() {
    let Some(schema) = Schema::load() else { return };
    let drive = DriveUpdate {
        drive_id: "drive0".to_owned(),
        path_on_host: Some("/x".into()),
        rate_limiter: Some(RateLimiter::default()),
    };
    let network = NetworkUpdate { iface_id: "eth0".to_owned(), ..NetworkUpdate::default() };
    let machine = MachineUpdate { vcpu_count: Some(1), mem_size_mib: Some(64) };
    let found = [
        schema.check("PartialDrive", &drive),
        schema.check("PartialNetworkInterface", &network),
        schema.check("BalloonUpdate", &BalloonUpdate { amount_mib: 1 }),
        schema.check("MachineConfiguration", &machine),
        schema.check("InstanceActionInfo", &json!({"action_type": Action::SendCtrlAltDel})),
        schema.check("InstanceActionInfo", &json!({"action_type": Action::FlushMetrics})),
        schema.check("InstanceActionInfo", &json!({"action_type": Action::InstanceStart})),
        schema.check("Vm", &json!({"state": "Paused"})),
        schema.check("Vm", &json!({"state": "Resumed"})),
    ];
    assert_eq!(found.concat(), [""; 0]);
}
