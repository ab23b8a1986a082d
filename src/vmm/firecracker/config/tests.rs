use super::*;
use crate::name::{Name, VmId};
use crate::vmm::spec::{self, VmmBinary};
use serde_json::json;

pub(crate) fn spec() -> VmSpec {
    let name = |name: &str| Name::new(name).unwrap();
    let drive = |role: &str, read_only| spec::Drive { role: role.to_owned(), path: "/x".into(), read_only };
    VmSpec {
        id: VmId::derive(&name("project"), &name("vm")),
        vmm: VmmBinary::QemuPath("/nowhere".into()),
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
fn a_file_reads_back_as_it_was() {
    let mut before = config(&spec(), &paths(), "panic=1").unwrap();
    before.machine_config = before.machine_config.with_huge_pages(HugePages::Hugetlbfs2M).unwrap();
    before.cpu_config = Some(CpuConfig::Path("/cpu.json".into()));
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
    assert_eq!(all, [Need::HugePages, Need::InlineCpuConfig, Need::Mtu, Need::FreePages]);
}
