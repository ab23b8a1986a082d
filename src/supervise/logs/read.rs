//! Reads a workload's log from its oldest record and follows it through rotations.

use super::rotated;
use super::write::MAX_TEXT;
use crate::supervise::outcome::Stream;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The longest line a writer makes: time, stream, tag and text.
const MAX_LINE: u64 = MAX_TEXT as u64 + 64;

/// One record: a line, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// RFC 3339 in UTC with milliseconds.
    pub time: String,
    /// Which output.
    pub stream: Stream,
    /// The line goes on in this stream's next record: no newline follows `text`.
    pub partial: bool,
    /// Raw bytes without the newline: escape them before a terminal sees them.
    pub text: Vec<u8>,
    /// Bytes this record takes in the file.
    pub raw: u64,
}

impl Record {
    /// The bytes as the workload wrote them.
    pub fn into_output(mut self) -> Vec<u8> {
        if !self.partial {
            self.text.push(b'\n');
        }
        self.text
    }
}

/// A position in a log. Holds the file it is in, so a rotation loses nothing that is still on disk.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
    skipped: bool,
}

impl LogReader {
    /// At the oldest record. The log need not exist yet.
    pub fn from_start(path: &Path) -> io::Result<Self> {
        let mut reader = LogReader { path: path.to_owned(), file: None, line: Vec::new(), skipped: false };
        reader.file = open(&rotated(path))?;
        if reader.file.is_none() {
            reader.file = open(path)?;
        }
        Ok(reader)
    }

    /// Behind the newest record: only what comes is read.
    pub fn at_end(path: &Path) -> io::Result<Self> {
        let mut file = open(path)?;
        if let Some(file) = &mut file {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(LogReader { path: path.to_owned(), file, line: Vec::new(), skipped: false })
    }

    /// The next record, `None` if there is none yet: call again later to follow.
    /// (Not an `Iterator`: that would end for good.)
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            if self.file.is_none() {
                self.file = open(&self.path)?;
            }
            let Some(file) = &mut self.file else { return Ok(None) };
            let left = MAX_LINE.saturating_sub(self.line.len() as u64);
            file.take(left).read_until(b'\n', &mut self.line)?;
            if self.line.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                // A line that no writer of ours made is skipped.
                match parse(&line) {
                    Some(record) => return Ok(Some(record)),
                    None => continue,
                }
            }
            if self.line.len() as u64 >= MAX_LINE {
                self.line.clear();
                continue;
            }
            // At the end. If this file is not the newest any more it gets nothing more: go on in the next.
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// Whether records were lost since the last call, because reading was two rotations behind.
    pub fn take_skipped(&mut self) -> bool {
        std::mem::take(&mut self.skipped)
    }

    fn advance(&mut self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let mine = id(file.get_ref())?;
        let newest = match open(&self.path)? {
            Some(newest) => newest,
            None => return Ok(false),
        };
        if id(newest.get_ref())? == mine {
            return Ok(false);
        }
        self.line.clear();
        self.file = match open(&rotated(&self.path))? {
            Some(older) if id(older.get_ref())? == mine => Some(newest),
            Some(older) => {
                self.skipped = true;
                Some(older)
            }
            // Started anew by the next VM.
            None => Some(newest),
        };
        Ok(true)
    }
}

/// The end of a console log, escaped, at most `lines` lines; empty if there is none.
pub fn console_tail(path: &Path, lines: usize) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(8 * 1024)))?;
        let mut bytes = Vec::new();
        file.take(8 * 1024).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    tail(&read().unwrap_or_default(), lines)
}

fn tail(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    let all: Vec<&str> = text.lines().collect();
    super::escaped(all[all.len().saturating_sub(lines)..].join("\n").as_bytes())
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::with_capacity(MAX_LINE as usize, file))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn id(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

fn parse(line: &[u8]) -> Option<Record> {
    let mut parts = line.strip_suffix(b"\n")?.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?.to_owned();
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match parts.next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(Record { time, stream, partial, text: parts.next()?.to_vec(), raw: line.len() as u64 })
}

#[cfg(test)]
mod tests {
    use super::super::{WORKLOAD_LOG, WorkloadLog};
    use super::*;

    fn collect(reader: &mut LogReader) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            out.extend(record.into_output());
        }
        out
    }

    #[test]
    fn output_comes_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WORKLOAD_LOG);
        let mut log = WorkloadLog::create(&path, 1 << 20).unwrap();
        let mut reader = LogReader::from_start(&path).unwrap();
        let long = vec![b'x'; 40_000];
        let pieces: [&[u8]; 6] = [b"one\ntwo\n", b"par", b"tial\n", b"\n\n", &long, b"\nend"];
        for piece in pieces {
            log.output(Stream::Stdout, piece);
        }
        assert_eq!(collect(&mut reader), pieces.concat());
        assert_eq!(collect(&mut LogReader::from_start(&path).unwrap()), pieces.concat());
        assert_eq!(collect(&mut LogReader::at_end(&path).unwrap()), b"");
    }

    #[test]
    fn a_flood_stays_within_two_files_and_a_follower_sees_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WORKLOAD_LOG);
        let mut log = WorkloadLog::create(&path, 10_000).unwrap();
        let mut reader = LogReader::from_start(&path).unwrap();
        let mut seen = Vec::new();
        for n in 0..2000 {
            log.output(Stream::Stderr, format!("line {n}\n").as_bytes());
            if n % 100 == 0 {
                seen.extend(collect(&mut reader));
            }
        }
        seen.extend(collect(&mut reader));
        let want: String = (0..2000).map(|n| format!("line {n}\n")).collect();
        assert_eq!(String::from_utf8(seen).unwrap(), want);
        assert!(!reader.take_skipped());
        let size = |p: &Path| std::fs::metadata(p).unwrap().len();
        assert!(size(&path) <= 10_000 && size(&rotated(&path)) <= 10_000);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_reader_far_behind_is_told_that_it_missed_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WORKLOAD_LOG);
        let mut log = WorkloadLog::create(&path, 1000).unwrap();
        log.output(Stream::Stdout, b"first\n");
        let mut reader = LogReader::from_start(&path).unwrap();
        for _ in 0..200 {
            log.output(Stream::Stdout, b"more\n");
        }
        let seen = collect(&mut reader);
        assert!(seen.starts_with(b"first\n") && seen.ends_with(b"more\n"));
        assert!(reader.take_skipped());
    }

    #[test]
    fn a_follower_survives_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WORKLOAD_LOG);
        let mut reader = LogReader::from_start(&path).unwrap();
        assert!(reader.next_record().unwrap().is_none());
        WorkloadLog::create(&path, 1000).unwrap().output(Stream::Stdout, b"a\n");
        assert_eq!(collect(&mut reader), b"a\n");
        WorkloadLog::create(&path, 1000).unwrap().output(Stream::Stdout, b"b\n");
        assert_eq!(collect(&mut reader), b"b\n");
    }

    #[test]
    fn foreign_lines_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WORKLOAD_LOG);
        let huge = "y".repeat(50_000);
        std::fs::write(&path, format!("rubbish\n{huge}\n2026 stdout F fine\n2026 stdout Q bad\n")).unwrap();
        assert_eq!(collect(&mut LogReader::from_start(&path).unwrap()), b"fine\n");
    }
}
