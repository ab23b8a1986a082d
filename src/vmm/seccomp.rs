//! A filter of system calls for every VMM, beneath those that they set for themselves, and for programs of packages: none
//! reaches the kernel's keyrings, neither the session's (which it leaves, too) nor its user's.

use std::io;

/// `AUDIT_ARCH_X86_64` (linux/audit.h): 62 with the bits for 64 bits and little-endian.
const X86_64: u32 = 0xc000_003e;
/// Of the x32 ABI's system calls (`__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Calls of other ABIs, whose numbers mean other things, are refused with the rest.
const FILTER: [libc::sock_filter; 9] = [
    word(LOAD, ARCH),
    jump(IF_EQUAL, X86_64, 0, 6),
    word(LOAD, NUMBER),
    jump(IF_AT_LEAST, X32, 4, 0),
    jump(IF_EQUAL, libc::SYS_keyctl as u32, 3, 0),
    jump(IF_EQUAL, libc::SYS_add_key as u32, 2, 0),
    jump(IF_EQUAL, libc::SYS_request_key as u32, 1, 0),
    word(RETURN, libc::SECCOMP_RET_ALLOW),
    word(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
];

const fn word(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Sets the filter for this thread and all that it starts. Makes a system call and nothing else; without privileges
/// it may follow `PR_SET_NO_NEW_PRIVS` only.
pub(crate) fn forbid_keyrings() -> io::Result<()> {
    // The kernel does not write to it, whatever the type says.
    let program = libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: a program of so many instructions that lives as long as the call; the kernel copies it.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
