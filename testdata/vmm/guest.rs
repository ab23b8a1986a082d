//! PID 1 of the guests that the VMM's own tests boot: takes orders, a line each, over the control port.
//! Compiled by the tests, on its own and statically; it uses nothing but std and the C library behind it.

use std::ffi::{c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

unsafe extern "C" {
    fn mount(from: *const c_char, at: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void)
    -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn reboot(how: c_int) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
}

const SYS_FINIT_MODULE: c_long = 313;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const RB_AUTOBOOT: c_int = 0x0123_4567;
const SIOCSIFADDR: c_ulong = 0x8916;
const SIOCSIFNETMASK: c_ulong = 0x891c;
const SIOCSIFFLAGS: c_ulong = 0x8914;

fn main() {
    for (kind, at) in [(c"devtmpfs", c"/dev"), (c"proc", c"/proc"), (c"sysfs", c"/sys")] {
        let _ = fs::create_dir(at.to_str().unwrap());
        let none: *const c_char = kind.as_ptr();
        // SAFETY: all strings are NUL-terminated constants.
        unsafe { mount(none, at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    }
    let mut modules: Vec<_> = fs::read_dir("/modules").unwrap().map(|e| e.unwrap().path()).collect();
    modules.sort();
    for path in modules {
        let file = File::open(path).unwrap();
        // SAFETY: an open file, an empty string, no flags.
        unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd() as c_long, c"".as_ptr(), 0 as c_long) };
    }
    let port = control_port();
    let mut say = port.try_clone().unwrap();
    let mut tell = |text: String| say.write_all(format!("{text}\n").as_bytes()).unwrap();
    tell("hello".to_owned());
    for line in BufReader::new(port).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            // SAFETY: reboot(2) takes a number.
            ["poweroff"] => drop(unsafe { reboot(RB_POWER_OFF) }),
            // SAFETY: as above.
            ["reboot"] => drop(unsafe { reboot(RB_AUTOBOOT) }),
            ["panic"] => fs::write("/proc/sysrq-trigger", "c").unwrap(),
            ["drives"] => tell(drives()),
            ["serve", address, mask] => tell(serve(address, mask)),
            ["try", address] => tell(attempt(address)),
            ["fill", mebibytes] => {
                // Kept, and every byte written: it takes memory of the host.
                std::mem::forget(vec![0x5a_u8; mebibytes.parse::<usize>().unwrap() << 20]);
                tell("filled".to_owned());
            }
            _ => tell(format!("what is {line:?}?")),
        }
    }
}

/// The port appears some time after its driver.
fn control_port() -> File {
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == "org.firegopher.control" {
                let path = format!("/dev/{}", entry.file_name().to_str().unwrap());
                return OpenOptions::new().read(true).write(true).open(path).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Each drive's name, first six bytes, serial number and whether it is read-only.
fn drives() -> String {
    let mut found = Vec::new();
    for letter in 'a'..='z' {
        let Ok(mut file) = File::open(format!("/dev/vd{letter}")) else { break };
        let mut start = [0; 6];
        file.read_exact(&mut start).unwrap();
        let attribute = |name: &str| fs::read_to_string(format!("/sys/block/vd{letter}/{name}")).unwrap();
        let access = if attribute("ro").trim() == "1" { "ro" } else { "rw" };
        found.push(format!("vd{letter}={}={}={access}", String::from_utf8_lossy(&start), attribute("serial").trim()));
    }
    found.join(" ")
}

/// Gives eth0 an address and answers "hi" on port 80.
fn serve(address: &str, mask: &str) -> String {
    // SAFETY: socket takes numbers.
    let control = unsafe { socket(2, 2, 0) };
    let set = |what: c_ulong, value: &[u8]| {
        let mut request = [0_u8; 40];
        request[..4].copy_from_slice(b"eth0");
        request[16..16 + value.len()].copy_from_slice(value);
        // SAFETY: `request` is a whole ifreq.
        unsafe { ioctl(control, what, request.as_mut_ptr()) }
    };
    let inet = |text: &str| [&[2_u8, 0, 0, 0][..], &text.parse::<std::net::Ipv4Addr>().unwrap().octets()].concat();
    let done = set(SIOCSIFADDR, &inet(address)) + set(SIOCSIFNETMASK, &inet(mask)) + set(SIOCSIFFLAGS, &[0x41, 0]);
    let listener = TcpListener::bind(("0.0.0.0", 80)).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let _ = (&client).write_all(b"hi");
        }
    });
    format!("serving {done}")
}

fn attempt(address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
        Ok(_) => "reached".to_owned(),
        Err(e) => format!("not reached: {e}"),
    }
}
