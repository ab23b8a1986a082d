//! Guest kernels of a few bytes: they prove that a VMM, its jail and KVM work, in a fraction of the time that
//! a Linux kernel takes, and also where KVM is emulated. Each is an ELF64 without a PVH note, which Firecracker
//! therefore enters in long mode by the 64-bit boot protocol of Linux, with rsi at the zero page
//! (Documentation/arch/x86/boot.rst).

/// Where it is loaded and entered. Firecracker takes no kernel below 1 MiB.
const ADDRESS: u64 = 0x10_0000;
/// Sizes of the ELF header and of one program header (elf(5)).
const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// What a stub does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stub {
    /// Prints its command line and a line feed on the serial console, then resets, which ends the VM.
    Reset,
    /// Prints its command line and a line feed, then halts with interrupts off: it stays up at no CPU and
    /// nothing inside it ever ends it.
    Halt,
    /// Writes `x` to the serial console for ever.
    Flood,
    /// Prints its command line, then every byte that its keyboard sends, and resets after Delete.
    Keys,
    /// For QEMU's microvm, which enters kernels by their PVH note and has no keyboard controller: prints its command
    /// line and a line feed, then resets by a fault that nothing handles.
    PvhReset,
}

/// Prints the command line and a line feed.
const ECHO: &[u8] = &[
    0x8b, 0xb6, 0x28, 0x02, 0x00,
    0x00, // mov esi, [rsi + 0x228]: hdr.cmd_line_ptr; rsi's upper half is 0
    0x66, 0xba, 0xf8, 0x03, //             mov dx, 0x3f8: COM1
    0xac, //                         next: lodsb; the direction flag is clear on entry
    0x84, 0xc0, //                         test al, al
    0x74, 0x03, //                         jz done
    0xee, //                               out dx, al
    0xeb, 0xf8, //                         jmp next
    0xb0, b'\n', //                  done: mov al, '\n'
    0xee,  //                               out dx, al
];
/// Pulses the CPU's reset line by the keyboard controller.
const RESET: &[u8] = &[
    0xb0, 0xfe, //                         mov al, 0xfe
    0xe6, 0x64, //                         out 0x64, al
];
/// Never goes on.
const HALT: &[u8] = &[
    0xfa, //                               cli
    0xf4, //                        again: hlt
    0xeb, 0xfd, //                         jmp again: a non-maskable interrupt wakes it
];
const FLOOD: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, //             mov dx, 0x3f8: COM1
    0xb0, b'x', //                         mov al, 'x'
    0xee, //                        again: out dx, al
    0xeb, 0xfd, //                         jmp again
];

const KEYS: &[u8] = &[
    0xe4, 0x64, //                  wait:  in al, 0x64: the keyboard controller's status
    0xa8, 0x01, //                         test al, 1: it has a byte
    0x74, 0xfa, //                         jz wait
    0xe4, 0x60, //                         in al, 0x60
    0x66, 0xba, 0xf8, 0x03, //             mov dx, 0x3f8: COM1
    0xee, //                               out dx, al
    0x3c, 0x71, //                         cmp al, 0x71: the last byte of Delete in scan code set 2
    0x75, 0xef, //                         jne wait
];

/// As `ECHO`, in protected mode with ebx at the start info (Xen's docs/misc/pvh.pandoc).
const PVH_ECHO: &[u8] = &[
    0x8b, 0x73, 0x18, //                   mov esi, [ebx + 0x18]: cmdline_paddr
    0x66, 0xba, 0xf8, 0x03, //             mov dx, 0x3f8: COM1
    0xac, //                         next: lodsb
    0x84, 0xc0, //                         test al, al
    0x74, 0x03, //                         jz done
    0xee, //                               out dx, al
    0xeb, 0xf8, //                         jmp next
    0xb0, b'\n', //                  done: mov al, '\n'
    0xee,  //                               out dx, al
];

/// Takes all handlers away and faults. The table of none lies behind.
fn pvh_reset() -> Vec<u8> {
    let mut code = PVH_ECHO.to_vec();
    code.extend([0x0f, 0x01, 0x1d]); //    lidt [table]
    // The instruction's address, int3 and the jump come before it.
    let table = ADDRESS as u32 + code.len() as u32 + 4 + 1;
    code.extend(table.to_le_bytes());
    code.push(0xcc); //                    int3
    code.extend([0; 6]); //         table: limit and base
    code
}

impl Stub {
    /// The kernel's bytes.
    pub fn elf(self) -> Vec<u8> {
        if self == Stub::PvhReset {
            return wrap(&pvh_reset(), Some(&pvh_note()));
        }
        let parts: &[&[u8]] = match self {
            Stub::Reset => &[ECHO, RESET, HALT],
            Stub::Halt => &[ECHO, HALT],
            Stub::Flood => &[FLOOD],
            Stub::Keys => &[ECHO, KEYS, RESET, HALT],
            Stub::PvhReset => &[],
        };
        wrap(&parts.concat(), None)
    }
}

/// XEN_ELFNOTE_PHYS32_ENTRY (xen/elfnote.h): where to enter in protected mode.
fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4_u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(ADDRESS.to_le_bytes());
    note
}

/// One segment that holds `code` and starts with its entry point, and maybe a note behind it.
fn wrap(code: &[u8], note: Option<&[u8]>) -> Vec<u8> {
    let headers = 1 + u16::from(note.is_some());
    let start = u64::from(HEADER + PROGRAM_HEADER * headers);
    let size = code.len() as u64;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01"); // 64 bits, little endian, version 1
    elf.resize(16, 0);
    elf.extend(2_u16.to_le_bytes()); // e_type: ET_EXEC
    elf.extend(62_u16.to_le_bytes()); // e_machine: EM_X86_64
    elf.extend(1_u32.to_le_bytes()); // e_version
    elf.extend(ADDRESS.to_le_bytes()); // e_entry
    elf.extend(u64::from(HEADER).to_le_bytes()); // e_phoff
    elf.extend(0_u64.to_le_bytes()); // e_shoff
    elf.extend(0_u32.to_le_bytes()); // e_flags
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    for half in [HEADER, PROGRAM_HEADER, headers, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes()); // p_type: PT_LOAD
    elf.extend(5_u32.to_le_bytes()); // p_flags: read, execute
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for word in [start, ADDRESS, ADDRESS, size, size, 1] {
        elf.extend(word.to_le_bytes());
    }
    if let Some(note) = note {
        elf.extend(4_u32.to_le_bytes()); // p_type: PT_NOTE
        elf.extend(4_u32.to_le_bytes()); // p_flags: read
        let (start, size) = (start + size, note.len() as u64);
        for word in [start, 0, 0, size, size, 4] {
            elf.extend(word.to_le_bytes());
        }
    }
    elf.extend(code);
    elf.extend(note.unwrap_or_default());
    elf
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::firecracker::testing::{Bare, cpu_time};
    use std::time::{Duration, Instant};

    #[test]
    fn a_stub_is_an_elf_with_one_segment_at_its_entry() {
        // The note behind it is aligned to 4 bytes.
        assert_eq!(pvh_reset().len() % 4, 0);
        for stub in [Stub::Reset, Stub::Halt, Stub::Flood, Stub::Keys] {
            let bytes = stub.elf();
            let file = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&bytes).unwrap();
            let segments = file.segments().unwrap();
            assert_eq!(segments.len(), 1);
            let segment = segments.get(0).unwrap();
            assert_eq!((file.ehdr.e_entry, segment.p_paddr), (ADDRESS, ADDRESS));
            assert_eq!(segment.p_offset + segment.p_filesz, bytes.len() as u64);
        }
    }

    #[test]
    fn the_resetting_stub_prints_its_command_line_and_ends() {
        let Some(bare) = Bare::prepare(Stub::Reset, "hello=world") else { return };
        let start = Instant::now();
        let mut child = bare.start(&["--no-api"]);
        let status = child.wait().unwrap();
        println!("start to exit: {:?}", start.elapsed());
        assert!(status.success(), "{status}");
        assert!(bare.console().contains("hello=world"), "{}", bare.console());
    }

    #[test]
    fn the_halting_stub_stays_up_without_using_the_cpu() {
        let Some(bare) = Bare::prepare(Stub::Halt, "halt=1") else { return };
        let mut child = bare.start(&["--no-api"]);
        bare.wait_for("halt=1");
        let before = cpu_time(child.id());
        std::thread::sleep(Duration::from_millis(500));
        let used = cpu_time(child.id()) - before;
        let running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(running, "{}", bare.console());
        assert!(used <= Duration::from_millis(20), "{used:?}");
    }
}
