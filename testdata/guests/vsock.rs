//! A guest kernel of its own that drives virtio-vsock: it connects to the host's port 1024 and plays a script, which
//! is its initramfs: what to say at once, and what to say once the host has answered. When the host answers again, it
//! resets. Where there is a balloon it does something else: it fills it twice, as often as it is told how far, and
//! resets. Built by a test with rustc alone; entered in long mode by the 64-bit boot protocol of Linux
//! (Documentation/arch/x86/boot.rst), on a machine whose first GiB is mapped one to one.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::ptr::{addr_of, addr_of_mut, read_unaligned, read_volatile, write_unaligned, write_volatile};

// A stack, and the registers that compiled code expects to be usable.
global_asm!(
    ".globl _start",
    "_start:",
    "lea rsp, [rip + stack + 65536]",
    "mov rax, cr4",
    "or rax, 0x600", // OSFXSR and OSXMMEXCPT
    "mov cr4, rax",
    "mov rdi, rsi",
    "call play",
    ".bss",
    ".balign 16",
    "stack: .skip 65536",
    ".text",
);

/// Registers of a virtio-mmio device, version 2 (virtio 1.2, 4.2.2).
mod reg {
    pub const MAGIC: usize = 0x000;
    pub const DEVICE: usize = 0x008;
    pub const FEATURES: usize = 0x020;
    pub const FEATURES_SEL: usize = 0x024;
    pub const QUEUE_SEL: usize = 0x030;
    pub const QUEUE_NUM: usize = 0x038;
    pub const QUEUE_READY: usize = 0x044;
    pub const NOTIFY: usize = 0x050;
    pub const STATUS: usize = 0x070;
    pub const DESC: usize = 0x080;
    pub const AVAIL: usize = 0x090;
    pub const USED: usize = 0x0a0;
}

/// How much a balloon shall take and how much it has, in pages: in its configuration space (virtio 1.2, 5.5.4).
const NUM_PAGES: usize = 0x100;
const ACTUAL: usize = 0x104;

const VSOCK: u32 = 19;
const BALLOON: u32 = 5;
/// Where the memory lies that a balloon gets.
const GIVEN: usize = 32 << 20;
/// Pages named to it at once.
const AT_ONCE: usize = 256;
const MAGIC: u32 = 0x7472_6976;
const PORT: u32 = 1024;
const RX: usize = 0;
const TX: usize = 1;
/// Descriptors of each queue: pairs of header and data.
const SIZE: usize = 16;
const BUFFER: usize = 4096;

// Operations of a vsock packet (virtio 1.2, 5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const RW: u16 = 5;

#[repr(C, align(4096))]
struct Queue {
    desc: [Desc; SIZE],
    avail: Ring<u16>,
    // Padding to where the device may write.
    _gap: [u64; 64],
    used: Ring<[u32; 2]>,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Desc {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[repr(C, align(8))]
struct Ring<T> {
    flags: u16,
    index: u16,
    ring: [T; SIZE],
    _event: u16,
}

#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
struct Header {
    src_cid: u64,
    dst_cid: u64,
    src_port: u32,
    dst_port: u32,
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

const HEADER: usize = size_of::<Header>();

#[repr(C, align(4096))]
struct Memory {
    /// Maps the fourth GiB, where the devices are. First, as its address has to be a multiple of 4096.
    directory: [u64; 512],
    queues: [Queue; 3],
    buffers: [[[u8; BUFFER]; SIZE / 2]; 2],
    headers: [[[u8; 64]; SIZE / 2]; 2],
}

static mut MEMORY: Memory = unsafe { core::mem::zeroed() };

unsafe fn out(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) };
}

unsafe fn print(text: &str) {
    for byte in text.bytes() {
        unsafe { out(0x3f8, byte) };
    }
}

unsafe fn end(word: &str) -> ! {
    unsafe {
        print(word);
        out(0x64, 0xfe);
        loop {
            asm!("cli", "hlt");
        }
    }
}

struct Device(usize);

impl Device {
    unsafe fn read(&self, reg: usize) -> u32 {
        unsafe { read_volatile((self.0 + reg) as *const u32) }
    }

    unsafe fn write(&self, reg: usize, value: u32) {
        unsafe { write_volatile((self.0 + reg) as *mut u32, value) };
    }

    unsafe fn write_address(&self, reg: usize, address: u64) {
        unsafe {
            self.write(reg, address as u32);
            self.write(reg + 4, (address >> 32) as u32);
        }
    }
}

/// The device of this kind among those that the command line names as `virtio_mmio.device=4K@ADDRESS:IRQ`.
unsafe fn find(mut line: *const u8, kind: u32) -> Option<Device> {
    unsafe {
        while *line != 0 {
            if *line == b'@' && *line.add(1) == b'0' && *line.add(2) == b'x' {
                let (mut address, mut digit) = (0_usize, line.add(3));
                while let Some(value) = (*digit as char).to_digit(16) {
                    address = address << 4 | value as usize;
                    digit = digit.add(1);
                }
                let device = Device(address);
                if device.read(reg::MAGIC) == MAGIC && device.read(reg::DEVICE) == kind {
                    return Some(device);
                }
            }
            line = line.add(1);
        }
        None
    }
}

/// Maps 3 to 4 GiB in 2 MiB pages, beside the first GiB.
unsafe fn map_devices() {
    unsafe {
        let directory = addr_of_mut!(MEMORY.directory);
        for n in 0..512_u64 {
            // Present, writable, uncached, a large page.
            (*directory)[n as usize] = (3 << 30) + (n << 21) | 0x93;
        }
        let root: u64;
        asm!("mov {}, cr3", out(reg) root);
        let table = (*(root as *const u64) & !0xfff) as *mut u64;
        write_volatile(table.add(3), directory as u64 | 3);
        asm!("mov cr3, {}", in(reg) root);
    }
}

unsafe fn set_up(device: &Device, queues: usize) {
    unsafe {
        device.write(reg::STATUS, 0);
        // Acknowledged, driven, features, driver ready: one at a time.
        device.write(reg::STATUS, 1);
        device.write(reg::STATUS, 1 | 2);
        device.write(reg::FEATURES_SEL, 0);
        device.write(reg::FEATURES, 0);
        device.write(reg::FEATURES_SEL, 1);
        device.write(reg::FEATURES, 1); // VIRTIO_F_VERSION_1
        device.write(reg::STATUS, 1 | 2 | 8);
        let memory = addr_of_mut!(MEMORY);
        for n in 0..queues {
            let queue = addr_of_mut!((*memory).queues[n]);
            device.write(reg::QUEUE_SEL, n as u32);
            device.write(reg::QUEUE_NUM, SIZE as u32);
            device.write_address(reg::DESC, addr_of!((*queue).desc) as u64);
            device.write_address(reg::AVAIL, addr_of!((*queue).avail) as u64);
            device.write_address(reg::USED, addr_of!((*queue).used) as u64);
            device.write(reg::QUEUE_READY, 1);
        }
        for n in 0..2 {
            for pair in 0..SIZE / 2 {
                let writable = if n == RX { 2 } else { 0 };
                let desc = addr_of_mut!((*memory).queues[n].desc);
                let header = addr_of!((*memory).headers[n][pair]) as u64;
                let data = addr_of!((*memory).buffers[n][pair]) as u64;
                (*desc)[pair * 2] =
                    Desc { address: header, len: HEADER as u32, flags: 1 | writable, next: pair as u16 * 2 + 1 };
                (*desc)[pair * 2 + 1] = Desc { address: data, len: BUFFER as u32, flags: writable, next: 0 };
            }
        }
        device.write(reg::STATUS, 1 | 2 | 8 | 4);
    }
}

/// Fills a balloon up to what is asked for, twice.
unsafe fn inflate(device: &Device) -> ! {
    unsafe {
        // Inflating and deflating; features bring more queues, and none is taken.
        set_up(device, 2);
        let (mut given, mut requests) = (0_u32, 0_u16);
        for _ in 0..2 {
            let wanted = loop {
                let wanted = device.read(NUM_PAGES);
                if wanted > given {
                    break wanted;
                }
                asm!("pause");
            };
            while given < wanted {
                let count = AT_ONCE.min((wanted - given) as usize);
                let numbers = addr_of_mut!(MEMORY.buffers[RX][0]).cast::<u32>();
                for n in 0..count {
                    let page = GIVEN + (given as usize + n) * 4096;
                    // It is the host's from its first byte on, and then no more.
                    write_volatile(page as *mut u64, !0);
                    write_volatile(numbers.add(n), (page / 4096) as u32);
                }
                let desc = addr_of_mut!(MEMORY.queues[RX].desc);
                (*desc)[0] = Desc { address: numbers as u64, len: count as u32 * 4, flags: 0, next: 0 };
                offer(device, RX, 0);
                used(RX, requests);
                requests += 1;
                given += count as u32;
            }
            device.write(ACTUAL, given);
            let gone = read_volatile((GIVEN + (given as usize - 1) * 4096) as *const u64) == 0;
            print(if gone { "given\n" } else { "kept\n" });
        }
        end("done\n")
    }
}

/// Hands a pair of descriptors to the device.
unsafe fn offer(device: &Device, queue: usize, pair: usize) {
    unsafe {
        let avail = addr_of_mut!(MEMORY.queues[queue].avail);
        let index = read_volatile(addr_of!((*avail).index));
        write_volatile(addr_of_mut!((*avail).ring[index as usize % SIZE]), pair as u16 * 2);
        asm!("mfence");
        write_volatile(addr_of_mut!((*avail).index), index.wrapping_add(1));
        asm!("mfence");
        device.write(reg::NOTIFY, queue as u32);
    }
}

/// Waits for the device to be done with the `nth` pair it was given.
unsafe fn used(queue: usize, nth: u16) -> usize {
    unsafe {
        let used = addr_of!(MEMORY.queues[queue].used);
        while read_volatile(addr_of!((*used).index)) == nth {
            asm!("pause");
        }
        read_volatile(addr_of!((*used).ring[nth as usize % SIZE]))[0] as usize / 2
    }
}

struct Stream {
    device: Device,
    sent: u16,
    received: u16,
    taken: u32,
}

impl Stream {
    unsafe fn send(&mut self, op: u16, mut bytes: &[u8]) {
        unsafe {
            loop {
                let now = bytes.len().min(BUFFER);
                let pair = self.sent as usize % (SIZE / 2);
                let header = Header {
                    src_cid: 3,
                    dst_cid: 2,
                    src_port: 5000,
                    dst_port: PORT,
                    len: now as u32,
                    kind: 1,
                    op,
                    flags: 0,
                    buf_alloc: 1 << 16,
                    fwd_cnt: self.taken,
                };
                write_unaligned(addr_of_mut!(MEMORY.headers[TX][pair]).cast(), header);
                let desc = addr_of_mut!(MEMORY.queues[TX].desc);
                (*desc)[pair * 2].flags = u16::from(now > 0);
                (*desc)[pair * 2 + 1].len = now as u32;
                let to = addr_of_mut!(MEMORY.buffers[TX][pair]).cast::<u8>();
                core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, now);
                offer(&self.device, TX, pair);
                used(TX, self.sent);
                self.sent = self.sent.wrapping_add(1);
                bytes = &bytes[now..];
                if bytes.is_empty() {
                    return;
                }
            }
        }
    }

    /// Waits for a packet of this kind.
    unsafe fn wait(&mut self, op: u16) {
        unsafe {
            loop {
                let pair = used(RX, self.received);
                self.received = self.received.wrapping_add(1);
                let header: Header = read_unaligned(addr_of!(MEMORY.headers[RX][pair]).cast());
                if header.op == RW {
                    self.taken += header.len;
                }
                offer(&self.device, RX, pair);
                let got = header.op;
                if got == op {
                    return;
                }
                if got == RESET {
                    end("refused\n");
                }
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn play(zero_page: *const u8) -> ! {
    unsafe {
        // hdr.cmd_line_ptr, hdr.ramdisk_image and hdr.ramdisk_size.
        let field = |offset: usize| read_unaligned(zero_page.add(offset).cast::<u32>()) as usize;
        let mut line = field(0x228) as *const u8;
        let script = core::slice::from_raw_parts(field(0x218) as *const u8, field(0x21c));
        map_devices();
        let balloon = find(line, BALLOON);
        let Some(device) = find(line, VSOCK) else { end("no vsock\n") };
        while *line != 0 {
            out(0x3f8, *line);
            line = line.add(1);
        }
        out(0x3f8, b'\n');
        if let Some(balloon) = balloon {
            inflate(&balloon);
        }
        set_up(&device, 3);
        for pair in 0..SIZE / 2 {
            offer(&device, RX, pair);
        }
        let mut stream = Stream { device, sent: 0, received: 0, taken: 0 };
        stream.send(REQUEST, &[]);
        stream.wait(RESPONSE);
        print("connected\n");
        let (len, rest) = script.split_at(4);
        let first = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let (len, more) = rest[first..].split_at(4);
        let second = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        stream.send(RW, &rest[..first]);
        stream.wait(RW);
        print("answered\n");
        stream.send(RW, &more[..second]);
        stream.wait(RW);
        end("done\n")
    }
}

/// What compiled code may call without asking.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    unsafe { asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}

/// Named by the core library, which was built to unwind.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe { end("panic\n") }
}
