//! How much of the host's memory a VMM may take: its guest's, and what it needs itself, part by part. The parts were
//! measured; docs/vmm-memory.md has the figures and how to repeat them.

use super::spec::{VmSpec, VmmBinary};

const MIB: u64 = 1 << 20;
/// Of QEMU's own whatever it runs: program, libraries, heap, up to 64 threads of its I/O pool, the kernel's and the
/// initramfs's files in the page cache. 45 MiB were seen, and the page cache can be taken away again.
const QEMU: u64 = 128 * MIB;
/// Of Firecracker's own: 5 MiB were seen, and devices keep buffers.
const FIRECRACKER: u64 = 48 * MIB;
/// One part in so many of a guest's memory goes into page tables: a 512th into those of the process and another into
/// those of the guest (EPT), each rounded up by levels above.
const PAGE_TABLES: u64 = 128;
/// What QEMU remembers of translated blocks lies in its heap, and is a part of their code's size: between 13 and 24 %
/// were seen.
const BLOCKS: (u64, u64) = (3, 8);
/// An emulated CPU's own translations of addresses (softmmu TLB): two tables of 32 bytes an entry, one pair for the
/// kernel and one for programs.
const TLB_ENTRY: u64 = 2 * 32 * 2;
/// QEMU doubles a table that is 70 % full. More than this many entries fill only within one time slice of a guest.
const TLB_ENTRIES: u64 = 1 << 19;
/// Entries of a table for so many guest pages: the next power of two and one doubling.
const TLB_SPARE: u64 = 2;
const PAGE: u64 = 4096;

/// Code that emulation has translated is kept up to this size; then QEMU throws all of it away and begins anew. By
/// itself QEMU takes 1 GiB, which short-lived programs fill within half a minute.
const MOST_CODE: u64 = 256 * MIB;
/// With less, the code that is always in use is thrown away too often.
const LEAST_CODE: u64 = 32 * MIB;
/// The part of the host's memory that one VM's code may take, as QEMU bounds it by itself.
const CODE_PART: u64 = 8;

/// What is allowed to one VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The guest's memory.
    pub guest: u64,
    /// Code that emulation translates, and what is remembered of it.
    pub translation: u64,
    /// Everything else of the VMM's.
    pub vmm: u64,
}

impl Budget {
    /// For `spec` on this host.
    pub fn of(spec: &VmSpec) -> Budget {
        let vmm = match spec.vmm {
            VmmBinary::Firecracker { .. } => FIRECRACKER,
            VmmBinary::QemuTree(_) | VmmBinary::QemuPath { .. } => QEMU,
        };
        let emulated = !spec.kvm && !matches!(spec.vmm, VmmBinary::Firecracker { .. });
        let translation = if emulated {
            let code = code_buffer(super::room::host_memory());
            code + code * BLOCKS.0 / BLOCKS.1 + u64::from(spec.cpus) * tlb(spec.memory)
        } else {
            0
        };
        Budget { guest: spec.memory, translation, vmm: vmm + spec.memory / PAGE_TABLES }
    }

    /// All of it.
    pub fn total(self) -> u64 {
        self.guest + self.translation + self.vmm
    }
}

/// Bytes of translated code that an emulated VM may keep on a host of `host` bytes of memory; whole mebibytes.
pub(super) fn code_buffer(host: Option<u64>) -> u64 {
    let part = host.map_or(MOST_CODE, |host| host / CODE_PART / MIB * MIB);
    part.clamp(LEAST_CODE, MOST_CODE)
}

/// Bytes of one emulated CPU's tables for a guest of `memory` bytes.
fn tlb(memory: u64) -> u64 {
    ((memory / PAGE).next_power_of_two() * TLB_SPARE).min(TLB_ENTRIES) * TLB_ENTRY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::firecracker::config::tests::spec;

    #[test]
    fn an_emulated_vm_may_take_its_guest_its_code_and_what_qemu_needs() {
        let mut spec = spec();
        (spec.kvm, spec.cpus, spec.memory) = (false, 1, 256 * MIB);
        spec.vmm = VmmBinary::QemuTree("/q".into());
        let budget = Budget::of(&spec);
        assert_eq!(budget.guest, 256 * MIB);
        // What a loop of `ls` took after ten minutes, docs/vmm-memory.md.
        assert!(budget.translation >= 330 * MIB && budget.translation < 400 * MIB, "{budget:?}");
        assert_eq!(budget.vmm, 130 * MIB);
        assert_eq!(budget.total(), budget.guest + budget.translation + budget.vmm);
        let more = Budget::of(&VmSpec { cpus: 2, memory: 1024 * MIB, ..spec.clone() });
        assert_eq!(more.translation - budget.translation, 2 * 64 * MIB - 16 * MIB, "each CPU has tables");
        let kvm = Budget::of(&VmSpec { kvm: true, ..spec });
        assert_eq!((kvm.translation, kvm.vmm), (0, 130 * MIB), "nothing is translated");
    }

    #[test]
    fn the_code_buffer_is_bounded_by_the_host() {
        assert_eq!(code_buffer(None), 256 * MIB);
        assert_eq!(code_buffer(Some(64 << 30)), 256 * MIB);
        assert_eq!(code_buffer(Some((1 << 30) + 12_345)), 128 * MIB);
        assert_eq!(code_buffer(Some(100 * MIB)), 32 * MIB);
    }
}
