//! Whether KVM is there, may be used, and has hardware behind it.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

/// `_IO(KVMIO, 0x00)` (linux/kvm.h).
const KVM_GET_API_VERSION: libc::Ioctl = 0xAE00;
/// `_IO(KVMIO, 0x01)`.
const KVM_CREATE_VM: libc::Ioctl = 0xAE01;
/// The only version there has been since 2007.
const API_VERSION: i32 = 12;

const NO_HARDWARE: &str = "the CPU shows neither vmx nor svm";

/// What `/dev/kvm` is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// A VM can be made and the CPU helps.
    Hardware,
    /// It is there and answers, but stock kernels crawl or die on it: why.
    Software(String),
    /// It is not there, or does not work: why.
    Absent(String),
    /// It is there, but not for this user.
    NoAccess,
}

impl Kvm {
    /// Whether `vmm "auto"` uses it.
    pub fn is_usable(&self) -> bool {
        *self == Kvm::Hardware
    }
}

/// What it is worth; asked once in a process.
pub fn kvm() -> Kvm {
    static ASKED: OnceLock<Kvm> = OnceLock::new();
    ASKED.get_or_init(ask).clone()
}

/// Why kernels made for real hardware crawl or die on this host's KVM, if that is so. Makes no VM to find out.
pub fn kvm_without_hardware() -> Option<&'static str> {
    // The first CPU's flags stand in the first lines; a host with many CPUs takes long to tell of all.
    let mut text = Vec::new();
    let read =
        fs_err::File::open("/proc/cpuinfo").and_then(|file| file.take(16 << 10).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    // Nothing is said of a host that does not tell its flags.
    (read.is_ok() && text.contains("flags") && !has_hardware(&text)).then_some(NO_HARDWARE)
}

/// Opens `/dev/kvm`, makes a VM and throws it away.
fn ask() -> Kvm {
    let device = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(device) => device,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return Kvm::NoAccess,
        Err(e) if e.kind() == ErrorKind::NotFound => return Kvm::Absent("there is no /dev/kvm".to_owned()),
        Err(e) => return Kvm::Absent(format!("/dev/kvm cannot be opened: {e}")),
    };
    // SAFETY: this request takes no argument.
    let version = unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    if version != API_VERSION {
        return Kvm::Absent(format!("/dev/kvm speaks version {version}, not {API_VERSION}"));
    }
    // SAFETY: the argument is the machine type, a number; 0 is the default one.
    let vm = unsafe { libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM, 0) };
    if vm < 0 {
        return Kvm::Absent(format!("KVM makes no VM: {}", io::Error::last_os_error()));
    }
    // SAFETY: the kernel just made this descriptor for us; closing it ends the VM.
    drop(unsafe { OwnedFd::from_raw_fd(vm) });
    let cpuinfo = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if has_hardware(&cpuinfo) { Kvm::Hardware } else { Kvm::Software(NO_HARDWARE.to_owned()) }
}

fn has_hardware(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_flags_count_as_hardware() {
        assert!(has_hardware("processor\t: 0\nflags\t\t: fpu svm sse\n"));
        assert!(has_hardware("flags\t\t: fpu vmx\n"));
        assert!(!has_hardware("flags\t\t: fpu svm_lock sse\nvmx flags\t: vnmi\n"));
    }

    #[test]
    fn asking_twice_gives_the_same_answer() {
        assert_eq!(ask(), ask());
        assert_eq!(kvm(), ask());
        match kvm() {
            Kvm::Hardware => assert_eq!(kvm_without_hardware(), None),
            Kvm::Software(why) => assert_eq!(kvm_without_hardware(), Some(why.as_str())),
            Kvm::Absent(_) | Kvm::NoAccess => {}
        }
    }
}
