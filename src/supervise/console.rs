//! The guest's console: kept bounded on disk, its end in memory, and watched for the exit record's fallback line.

use super::hub::Hub;
use super::logs::{BoundedFile, escaped};
use firegopher_protocol::{EXIT_LINE, ExitRecord, MAX_TEXT};
use std::collections::VecDeque;
use std::io;
use std::path::Path;

/// Bytes of the console's end kept for error messages.
const TAIL: usize = 8 * 1024;
/// The longest line looked at: an exit record is shorter, even if all of its text is escaped.
const MAX_LINE: usize = 8 * MAX_TEXT;

/// What the kernel prints before it gives up (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";

/// One boot's console.
pub(super) struct Console {
    file: BoundedFile,
    tail: VecDeque<u8>,
    line: Vec<u8>,
    exit: Option<ExitRecord>,
}

impl Console {
    /// Starts the log anew.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        let file = BoundedFile::create(path, limit)?;
        Ok(Console { file, tail: VecDeque::new(), line: Vec::new(), exit: None })
    }

    /// Forgets the last boot; the file goes on.
    pub fn next_boot(&mut self) {
        self.tail.clear();
        self.line.clear();
        self.exit = None;
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8], hub: &Hub) {
        if let Err(e) = self.file.append(bytes) {
            hub.warn_once(&format!("the console's log cannot be written: {e}"));
        }
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        for byte in bytes {
            match byte {
                b'\n' => {
                    if let Some(record) = exit_line(&self.line) {
                        self.exit = Some(record);
                    }
                    self.line.clear();
                }
                byte if self.line.len() < MAX_LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    /// The exit record that the guest printed, if it did.
    pub fn exit_record(&mut self) -> Option<ExitRecord> {
        let rest = std::mem::take(&mut self.line);
        self.exit.take().or_else(|| exit_line(&rest))
    }

    /// The last lines for an error message, escaped; empty if the guest printed nothing.
    pub fn last_lines(&self, lines: usize) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().filter(|b| *b != b'\r').collect();
        let text = escaped(&bytes);
        let all: Vec<&str> = text.lines().collect();
        let last = all.len().saturating_sub(lines);
        // What led to a panic tells more than the end of its call trace.
        let panic =
            all.iter().rposition(|line| line.contains(PANIC)).map(|at| (at + 3).saturating_sub(lines));
        let first = panic.map_or(last, |first| first.min(last));
        all[first..].iter().take(lines).copied().collect::<Vec<_>>().join("\n")
    }

    /// Why the kernel panicked, if it did: its own words, and how to mend it where that is known.
    pub fn panic(&self) -> Option<(String, Option<&'static str>)> {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let (_, panic) = text.rsplit_once(PANIC)?;
        let words = panic.lines().next().unwrap_or_default().trim_end();
        // mm/oom_kill.c and init/initramfs.c
        let signs = ["deadlocked on memory", "Out of memory", "Initramfs unpacking failed"];
        let memory = signs.iter().any(|sign| text.contains(sign));
        let help = "the guest has too little memory for its kernel: give it more with `memory`";
        Some((escaped(words.as_bytes()), memory.then_some(help)))
    }
}

fn exit_line(line: &[u8]) -> Option<ExitRecord> {
    // Kernel messages may precede it on its line.
    let text = std::str::from_utf8(line).ok()?;
    let (_, json) = text.split_once(EXIT_LINE)?;
    let mut record: ExitRecord = serde_json::from_str(json.trim_end()).ok()?;
    record.clip();
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::logs::WorkloadLog;

    #[test]
    fn the_fallback_line_is_found_among_noise() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new(WorkloadLog::create(&dir.path().join("w"), 1000).unwrap(), false);
        let mut console = Console::create(&dir.path().join("c"), 100_000).unwrap();
        console.push(b"[    0.1] hello\r\n", &hub);
        console.push(&vec![b'x'; 20_000], &hub);
        console.push(b"\nfiregopher-exit: {\"code\"", &hub);
        console.push(b":3,\"oom\":false}\r\n[    2.0] reboot: \x1b[1mPower down", &hub);
        assert_eq!(console.last_lines(1), "[    2.0] reboot: \\x1b[1mPower down");
        assert_eq!(console.exit_record().and_then(|e| e.code), Some(3));
        console.push(b"firegopher-exit: rubbish\n", &hub);
        assert_eq!(console.exit_record(), None);
    }

    #[test]
    fn a_console_without_end_stays_bounded_on_disk_and_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new(WorkloadLog::create(&dir.path().join("w"), 1000).unwrap(), false);
        let path = dir.path().join("c");
        let mut console = Console::create(&path, 100_000).unwrap();
        for n in 0..1000 {
            console.push(format!("{n:04}{}\n", "x".repeat(995)).as_bytes(), &hub);
        }
        let read = |path: &Path| std::fs::read(path).unwrap();
        let (now, before) = (read(&path), read(&crate::supervise::logs::rotated(&path)));
        assert_eq!((now.len(), before.len()), (100_000, 100_000));
        assert!(
            now.starts_with(b"0900") && before.starts_with(b"0800"),
            "the end of it, and what came before"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "and nothing else");
    }

    #[test]
    fn a_panic_is_told_with_what_led_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new(WorkloadLog::create(&dir.path().join("w"), 1000).unwrap(), false);
        let mut console = Console::create(&dir.path().join("c"), 100_000).unwrap();
        console.push(b"one\ntwo\nthree\n", &hub);
        assert_eq!(console.panic(), None);
        console.push(b"[ 1.0] Kernel panic - not syncing: System is deadlocked on memory\r\n", &hub);
        (0..50).for_each(|n| console.push(format!("trace {n}\n").as_bytes(), &hub));
        let (words, help) = console.panic().unwrap();
        assert_eq!(words, "System is deadlocked on memory");
        assert!(help.unwrap().contains("`memory`"));
        let shown = console.last_lines(4);
        assert!(
            shown.starts_with("three\n[ 1.0] Kernel panic") || shown.starts_with("two\nthree\n[ 1.0] Kernel"),
            "{shown}"
        );
        assert_eq!(shown.lines().count(), 4);
        console.push(b"Kernel panic - not syncing: VFS: no root\n", &hub);
        console.next_boot();
        assert_eq!(console.panic(), None);
    }
}
