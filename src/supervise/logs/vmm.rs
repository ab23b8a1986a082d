//! What a VMM says of itself, apart from its guest: its log as it came, and its metrics, one JSON object a line.

use super::{BoundedFile, METRICS_LOG, VMM_LOG, rotated};
use crate::vmm::Said;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of the log, and as many before them.
const LOG_BYTES: u64 = 1 << 20;
/// The same of metrics: some hundred snapshots.
const METRICS_BYTES: u64 = 1 << 20;
/// The longest snapshot that is kept: Firecracker's have some 10 KiB.
const MAX_LINE: usize = 256 << 10;

/// Writes both. Nothing that a VMM sends makes them grow beyond their bounds.
#[derive(Debug)]
pub struct VmmLog {
    log: BoundedFile,
    metrics: BoundedFile,
    /// A line that is not yet whole.
    line: Vec<u8>,
    /// It is too long.
    skip: bool,
    failed: bool,
}

impl VmmLog {
    /// Removes what an earlier VM left.
    pub fn clear(dir: &Path) -> io::Result<()> {
        for path in [VMM_LOG, METRICS_LOG].map(|name| dir.join(name)) {
            for path in [rotated(&path), path] {
                match std::fs::remove_file(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Goes on with what the boots before wrote.
    pub fn resume(dir: &Path) -> io::Result<VmmLog> {
        Ok(VmmLog {
            log: BoundedFile::resume(&dir.join(VMM_LOG), LOG_BYTES)?,
            metrics: BoundedFile::resume(&dir.join(METRICS_LOG), METRICS_BYTES)?,
            line: Vec::new(),
            skip: false,
            failed: false,
        })
    }

    /// Takes bytes as they came. Tells once if they cannot be written.
    pub fn take(&mut self, said: Said, bytes: &[u8]) -> Option<io::Error> {
        let written = match said {
            Said::Log => self.log.append(bytes),
            Said::Metrics => self.metrics(bytes),
        };
        match written {
            Err(e) if !std::mem::replace(&mut self.failed, true) => Some(e),
            _ => None,
        }
    }

    fn metrics(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.skip |= self.line.len() + piece.len() > MAX_LINE;
            if !self.skip {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                // Whatever is no JSON object is no snapshot.
                type Object = serde_json::Map<String, serde_json::Value>;
                let whole = !self.skip && serde_json::from_slice::<Object>(&self.line).is_ok();
                if whole {
                    self.metrics.append(&self.line)?;
                }
                self.line.clear();
                self.skip = false;
            }
        }
        Ok(())
    }
}

/// The newest snapshot of the metrics in a VM's directory.
pub fn last_metrics(dir: &Path) -> io::Result<Option<serde_json::Value>> {
    let path = dir.join(METRICS_LOG);
    for path in [path.clone(), rotated(&path)] {
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let len = file.metadata()?.len();
        // The last line, and a newline before it.
        file.seek(SeekFrom::Start(len.saturating_sub(MAX_LINE as u64 + 1)))?;
        let mut bytes = Vec::new();
        file.take(MAX_LINE as u64 + 1).read_to_end(&mut bytes)?;
        let lines = bytes.split(|b| *b == b'\n').rev().filter(|line| !line.is_empty());
        // One that was cut off by a full disk is passed over.
        if let Some(found) = lines.filter_map(|line| serde_json::from_slice(line).ok()).next() {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(path: &Path) -> u64 {
        std::fs::metadata(path).map_or(0, |meta| meta.len())
    }

    #[test]
    fn a_vmm_without_end_stays_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = VmmLog::resume(dir.path()).unwrap();
        for n in 0..3000 {
            assert!(log.take(Said::Log, &[b'x'; 4096]).is_none());
            // Neither lines without end nor nonsense count as metrics.
            assert!(log.take(Said::Metrics, &[b'y'; 4096]).is_none());
            if n % 100 == 0 {
                log.take(Said::Metrics, b"\n[1]\nnot json\n");
            }
        }
        let (path, metrics) = (dir.path().join(VMM_LOG), dir.path().join(METRICS_LOG));
        assert!(size(&path) <= LOG_BYTES && size(&rotated(&path)) <= LOG_BYTES && size(&rotated(&path)) > 0);
        assert_eq!((size(&metrics), size(&rotated(&metrics))), (0, 0));
        assert_eq!(last_metrics(dir.path()).unwrap(), None);
        for n in 0..20_000 {
            log.take(
                Said::Metrics,
                format!("{{\"n\": {n}, \"text\": \"{}\"}}\n", "z".repeat(100)).as_bytes(),
            );
        }
        assert!(size(&metrics) <= METRICS_BYTES && size(&rotated(&metrics)) > METRICS_BYTES / 2);
        assert_eq!(last_metrics(dir.path()).unwrap().unwrap()["n"], 19_999);
    }

    #[test]
    fn a_boot_goes_on_where_the_last_one_stopped_until_another_vm_begins() {
        let dir = tempfile::tempdir().unwrap();
        for word in ["one\n", "two\n"] {
            let mut log = VmmLog::resume(dir.path()).unwrap();
            log.take(Said::Log, word.as_bytes());
            // In two pieces, as a pipe may give it.
            log.take(Said::Metrics, b"{\"word\":");
            log.take(Said::Metrics, format!("{word:?}}}\n").as_bytes());
        }
        assert_eq!(std::fs::read(dir.path().join(VMM_LOG)).unwrap(), b"one\ntwo\n");
        assert_eq!(last_metrics(dir.path()).unwrap().unwrap()["word"], "two\n");
        VmmLog::clear(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        VmmLog::clear(dir.path()).unwrap();
    }
}
