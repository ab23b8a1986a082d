//! What the workload may do: identity, capabilities, limits. Runs in the child, between fork and exec.

use crate::failure::{Context, Result};
use crate::limits;
use crate::user::Account;
use firegopher_protocol::Limit;
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

// linux/capability.h
const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const KILL: u32 = 5;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const SETPCAP: u32 = 8;
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const IPC_LOCK: u32 = 14;
const SYS_CHROOT: u32 = 18;
const SYS_NICE: u32 = 23;
const SYS_RESOURCE: u32 = 24;
const MKNOD: u32 = 27;
const AUDIT_WRITE: u32 = 29;
const SETFCAP: u32 = 31;

/// What there is in the workload's guest: everything a server or a package manager needs. Root has all of it; others get
/// what programs bring them, by their set-user-ID bits and file capabilities. Not kept is what reaches the kernel or
/// PID 1: modules, raw memory, mounts, tracing, the clock, reboot.
const KEPT: &[u32] = &[
    CHOWN,
    DAC_OVERRIDE,
    DAC_READ_SEARCH,
    FOWNER,
    FSETID,
    KILL,
    SETGID,
    SETUID,
    SETPCAP,
    NET_BIND_SERVICE,
    NET_ADMIN,
    NET_RAW,
    IPC_LOCK,
    SYS_CHROOT,
    SYS_NICE,
    SYS_RESOURCE,
    MKNOD,
    AUDIT_WRITE,
    SETFCAP,
];

const _: () = {
    let mut i = 0;
    while i < KEPT.len() {
        assert!(KEPT[i] < 32, "`set` packs the kept capabilities into the first word");
        i += 1;
    }
};

/// Turns this process into the workload's user with no more rights than it needs.
pub fn confine(account: &Account, limits: &[Limit], no_new_privileges: bool) -> Result<()> {
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    limits::set_limits(limits)?;
    bound().context(|| "dropping capabilities".to_owned())?;
    let gid = Gid::from_raw(account.gid);
    let uid = Uid::from_raw(account.uid);
    setgroups(&account.gids()).context(|| "setting the supplementary groups".to_owned())?;
    setresgid(gid, gid, gid).context(|| format!("becoming the group {gid}"))?;
    setresuid(uid, uid, uid).context(|| format!("becoming the user {uid}"))?;
    let own: &[u32] = if account.is_root() { KEPT } else { &[] };
    set(own).context(|| "setting capabilities".to_owned())?;
    if no_new_privileges {
        set_no_new_privs().context(|| "setting no_new_privs".to_owned())?;
    }
    Ok(())
}

/// Empties the bounding set but for what is kept, whoever the user is, so that no exec ever brings more. An empty one
/// would make programs with file capabilities impossible to execute, not only without effect.
fn bound() -> nix::Result<()> {
    for capability in 0..64u32 {
        if KEPT.contains(&capability) {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes one number and touches no memory of ours.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        match Errno::result(done) {
            // Beyond the kernel's last capability.
            Err(Errno::EINVAL) => return Ok(()),
            other => other.map(drop)?,
        }
    }
    Ok(())
}

/// Sets permitted and effective to what is there of `keep`, inheritable to nothing.
fn set(keep: &[u32]) -> nix::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3 has two words of each set; pid 0 is this thread.
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut data = [Data::default(), Data::default()];
    // SAFETY: both pointers are to live values laid out as capget(2) asks for version 3.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let bits = keep.iter().fold(0, |bits, capability| bits | 1 << capability) & data[0].permitted;
    data = [Data { effective: bits, permitted: bits, inheritable: 0 }, Data::default()];
    // SAFETY: as above; the kernel only reads them.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}
