//! Guest kernels of a few instructions, to try a whole VMM with: 64-bit ELF files that Firecracker starts in long
//! mode with the boot parameters' address in rsi (Documentation/arch/x86/boot.rst, "64-bit boot protocol").

/// Where it is loaded: the first mebibyte belongs to the boot parameters.
const LOAD: u64 = 0x10_0000;
/// ELF header and one program header.
const HEADERS: usize = 64 + 56;

/// Prints the command line to the first serial port.
const PRINT: &[u8] = &[
    0x8b, 0xb6, 0x28, 0x02, 0x00, 0x00, // mov esi, [rsi + 0x228]: cmd_line_ptr
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz end
    0xee, // out dx, al
    0xeb, 0xf8, // jmp next
    0xb0, b'\n', // end: mov al, '\n'
    0xee,  // out dx, al
];
/// Pulses the reset line of the keyboard's controller.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
/// Stops for good, at no CPU time.
const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd]; // cli; hlt; jmp to hlt
/// Prints without end.
const FLOOD: &[u8] = &[0xee, 0xeb, 0xfd]; // out dx, al; jmp to out

/// A kernel that prints its command line and resets the machine.
pub fn resetting() -> Vec<u8> {
    elf(&[PRINT, RESET, HALT])
}

/// A kernel that prints its command line and stays, halted with interrupts off.
pub fn halting() -> Vec<u8> {
    elf(&[PRINT, HALT])
}

/// A kernel that prints its command line and then newlines for ever.
pub fn flooding() -> Vec<u8> {
    elf(&[PRINT, FLOOD])
}

fn elf(code: &[&[u8]]) -> Vec<u8> {
    let code = code.concat();
    let size = (HEADERS + code.len()) as u64;
    let mut out = Vec::with_capacity(HEADERS + code.len());
    out.extend_from_slice(b"\x7fELF\x02\x01\x01"); // 64 bits, little-endian, version 1
    out.resize(16, 0);
    out.extend_from_slice(&2_u16.to_le_bytes()); // ET_EXEC
    out.extend_from_slice(&62_u16.to_le_bytes()); // EM_X86_64
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(&(LOAD + HEADERS as u64).to_le_bytes()); // e_entry
    out.extend_from_slice(&64_u64.to_le_bytes()); // e_phoff
    out.extend_from_slice(&0_u64.to_le_bytes()); // e_shoff
    out.extend_from_slice(&0_u32.to_le_bytes()); // e_flags
    for half in [64_u16, 56, 1, 64, 0, 0] {
        out.extend_from_slice(&half.to_le_bytes()); // sizes and counts of the headers
    }
    out.extend_from_slice(&1_u32.to_le_bytes()); // PT_LOAD
    out.extend_from_slice(&7_u32.to_le_bytes()); // readable, writable, executable
    for word in [0, LOAD, LOAD, size, size, 0x1000] {
        out.extend_from_slice(&word.to_le_bytes()); // offset, addresses, sizes, alignment
    }
    out.extend_from_slice(&code);
    out
}
