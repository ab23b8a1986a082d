use super::*;
use crate::name::{Name, VmId};
use crate::vmm::spec::{self, VmmBinary};
use serde_json::json;

pub(crate) fn spec() -> VmSpec {
    let name = |name: &str| Name::new(name).unwrap();
    let drive = |role: &str, read_only| spec::Drive { role: role.to_owned(), path: "/x".into(), read_only };
    VmSpec {
        id: VmId::derive(&name("project"), &name("vm")),
        vmm: VmmBinary::QemuPath { program: "/nowhere".into(), firmware: "/nowhere.rom".into() },
        kvm: true,
        kernel: "/store/vmlinux".into(),
        initramfs: "/store/init.cpio.gz".into(),
        tuning: Default::default(),
        cpus: 3,
        memory: 256 << 20,
        drives: vec![drive("base", true), drive("scratch", false), drive("volume-data", false)],
        net: NetSpec::Tap {
            name: "fg-0".to_owned(),
            host: [172, 19, 0, 1].into(),
            guest: [172, 19, 0, 2].into(),
            mac: [6, 0, 0xac, 0x13, 0, 2],
        },
        jail: None,
    }
}

pub(crate) fn paths() -> JailPaths {
    JailPaths {
        kernel: "/kernel".into(),
        initramfs: Some("/initramfs".into()),
        drives: ["/drives/00-base", "/drives/01-scratch", "/drives/02-volume-data"].map(Into::into).to_vec(),
        vsock: "/vsock".into(),
        cpu: "/cpu.json".into(),
        log: None,
        metrics: Some("/metrics".into()),
    }
}

#[test]
fn a_vm_becomes_this_file() {
    let written: serde_json::Value =
        serde_json::from_slice(&config(&spec(), &paths(), "panic=1").unwrap().to_json()).unwrap();
    let drive = |n: u32, path: &str, read_only: bool| json!({"drive_id": format!("drive{n}"), "is_root_device": false, "path_on_host": path, "is_read_only": read_only});
    let mut volume = drive(2, "/drives/02-volume-data", false);
    volume["cache_type"] = json!("Writeback");
    assert_eq!(
        written,
        json!({
            "boot-source": {"kernel_image_path": "/kernel", "initrd_path": "/initramfs", "boot_args": "panic=1"},
            "drives": [drive(0, "/drives/00-base", true), drive(1, "/drives/01-scratch", false), volume],
            "machine-config": {"vcpu_count": 3, "mem_size_mib": 256},
            "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "fg-0", "guest_mac": "06:00:ac:13:00:02"}],
            "vsock": {"guest_cid": 3, "uds_path": "/vsock"},
            "entropy": {},
            "metrics": {"metrics_path": "/metrics"},
        })
    );
}

#[test]
fn what_a_machine_is_tuned_by_is_in_the_file() {
    let mut tuned = spec();
    tuned.tuning = tuning::Tuning {
        huge_pages: Some(tuning::HugePages::Reserved),
        cpu_template: Some(CpuTemplate::T2CL),
        balloon: Some(tuning::Balloon { amount: 64 << 20, deflate_on_oom: true, free_page_reporting: true }),
        ..Default::default()
    };
    let written = |spec: &VmSpec| -> serde_json::Value {
        serde_json::from_slice(&config(spec, &paths(), "").unwrap().to_json()).unwrap()
    };
    let file = written(&tuned);
    let machine = json!({"vcpu_count": 3, "mem_size_mib": 256, "cpu_template": "T2CL", "huge_pages": "2M"});
    assert_eq!(file["machine-config"], machine);
    let balloon = json!({"amount_mib": 64, "deflate_on_oom": true, "free_page_reporting": true});
    assert_eq!(file["balloon"], balloon);
    tuned.tuning.huge_pages = Some(tuning::HugePages::Transparent);
    tuned.tuning.balloon = Some(tuning::Balloon { amount: 1 << 20, ..Default::default() });
    let file = written(&tuned);
    assert_eq!(file["machine-config"]["huge_pages"], "Transparent");
    assert_eq!(file["cpu-config"], serde_json::Value::Null);
    tuned.tuning.cpu_file = Some(tuning::CpuFile { path: "x.json".into(), changes: None });
    assert_eq!(written(&tuned)["cpu-config"], "/cpu.json");
    // Versions before 1.14 know no more of it.
    assert_eq!(file["balloon"], json!({"amount_mib": 1, "deflate_on_oom": false}));
}

#[test]
fn settings_and_the_file_they_become_need_the_same_version() {
    let reporting = tuning::Balloon { free_page_reporting: true, ..Default::default() };
    let mut seen = Vec::new();
    for huge_pages in [None, Some(tuning::HugePages::Reserved), Some(tuning::HugePages::Transparent)] {
        for balloon in [None, Some(tuning::Balloon::default()), Some(reporting)] {
            let mut tuned = spec();
            tuned.tuning = tuning::Tuning { huge_pages, balloon, ..Default::default() };
            let needs = tuned.tuning.needs();
            assert_eq!(config(&tuned, &paths(), "").unwrap().needs(), needs);
            seen.extend(needs);
        }
    }
    for need in [Need::HugePages, Need::TransparentHugePages, Need::Balloon, Need::FreePages] {
        assert!(seen.contains(&need), "{need:?}");
    }
}

#[test]
fn a_file_reads_back_as_it_was() {
    let mut before = config(&spec(), &paths(), "panic=1").unwrap();
    before.machine_config = before.machine_config.with_huge_pages(HugePages::Hugetlbfs2M).unwrap();
    before.cpu_config = Some("/cpu.json".into());
    assert_eq!(serde_json::from_slice::<Config>(&before.to_json()).unwrap(), before);
}

#[test]
fn what_firecracker_cannot_do_is_refused() {
    let mut user = spec();
    user.net = NetSpec::User { forwards: Vec::new(), mac: [0; 6] };
    assert_eq!(config(&user, &paths(), "").unwrap_err().code(), "firecracker.user-network");
    assert_eq!(Machine::new(33, 1 << 30).unwrap_err().code(), "firecracker.cpus");
    assert_eq!(Machine::new(0, 1 << 30).unwrap_err().code(), "firecracker.cpus");
    assert_eq!(Machine::new(1, (1 << 30) + 1).unwrap_err().code(), "firecracker.memory");
    let odd = Machine::new(1, 65 << 20).unwrap();
    assert_eq!(odd.with_huge_pages(HugePages::Transparent).unwrap_err().code(), "firecracker.huge-pages");
}

#[test]
fn a_plain_vm_needs_nothing_new_and_a_full_one_does() {
    assert_eq!(config(&spec(), &paths(), "").unwrap().needs(), []);
    let all = crate::vmm::firecracker::schema_tests::full().needs();
    assert_eq!(all, [Need::HugePages, Need::Balloon, Need::FreePages]);
}
