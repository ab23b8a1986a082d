//! Turns what workloads write into lines that can be shown together: whole, bounded, escaped, each with its VM's name
//! where there are several.

use crate::supervise::Stream;
use crate::supervise::logs::{Colours, Escaper};
use std::time::{Duration, Instant};

/// A line longer than this is shown in pieces, each as a line: Docker's logs have the same limit.
pub(super) const MAX_LINE: usize = 16 * 1024;
/// A line without an end is shown after this time without more of it: a prompt waits for its answer.
pub(super) const QUIET: Duration = Duration::from_millis(200);
/// The same where several VMs write: their lines would be torn by each other's.
const QUIET_AMONG_OTHERS: Duration = Duration::from_secs(1);

/// Of the VMs' names, in turn. No red, which reads as an error.
const PALETTE: [&str; 10] = ["36", "33", "32", "35", "34", "96", "93", "92", "95", "94"];

/// What is to be written where, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shown(pub(super) Vec<(Stream, Vec<u8>)>);

impl Shown {
    fn add(&mut self, stream: Stream, text: &str) {
        match self.0.last_mut() {
            Some((last, bytes)) if *last == stream => bytes.extend_from_slice(text.as_bytes()),
            _ if text.is_empty() => {}
            _ => self.0.push((stream, text.as_bytes().to_vec())),
        }
    }

    /// Bytes of all.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

/// How a screen shows lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Look {
    /// Colours pass on standard output, and on standard error.
    pub(super) colours: [bool; 2],
    /// Both outputs end in the same place.
    pub(super) together: bool,
    /// The time before each line.
    pub(super) timestamps: bool,
}

/// Lines of several VMs.
pub(super) struct Screen {
    look: Look,
    /// Of the names; 0 shows none.
    width: usize,
    vms: Vec<Vm>,
    /// By output: the one whose line is shown but has no end yet. One cell for both outputs in the same place.
    open: [Option<(usize, Stream)>; 2],
}

struct Vm {
    name: String,
    lines: [Line; 2],
}

/// The line that one output is writing.
struct Line {
    escaper: Escaper,
    /// Escaped, and not shown yet.
    text: String,
    /// Bytes of it as they came, shown or not.
    length: usize,
    time: String,
    /// When the last of it came.
    touched: Option<Instant>,
    /// Its beginning is shown.
    begun: bool,
    carriage: Carriage,
    /// Colours in force at the beginning of `text`.
    colours: String,
}

/// A carriage return ends a line as a newline does; both together end it once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carriage {
    None,
    /// It was the last byte.
    Returned,
    /// It was, and its line is shown.
    Shown,
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

impl Screen {
    /// For these VMs.
    pub(super) fn new(names: impl IntoIterator<Item = String>, look: Look) -> Screen {
        let line = |colours: bool| Line {
            escaper: Escaper::new(if colours { Colours::Keep } else { Colours::Drop }),
            text: String::new(),
            length: 0,
            time: String::new(),
            touched: None,
            begun: false,
            carriage: Carriage::None,
            colours: String::new(),
        };
        let vms: Vec<Vm> = names.into_iter().map(|name| Vm { name, lines: look.colours.map(line) }).collect();
        let longest = vms.iter().map(|vm| vm.name.chars().count()).max().unwrap_or(0);
        let width = if vms.len() > 1 { longest } else { 0 };
        Screen { look, width, vms, open: [None; 2] }
    }

    /// Takes output of a VM that came at `time`.
    pub(super) fn push(&mut self, vm: usize, stream: Stream, time: &str, bytes: &[u8], shown: &mut Shown) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let line = &mut self.vms[vm].lines[index(stream)];
            // Bytes that may be added: a line is cut between them, the escaper keeps characters whole.
            let room = MAX_LINE.saturating_sub(line.length);
            let end = memchr::memchr2(b'\n', b'\r', &rest[..rest.len().min(room + 1)]);
            let (text, after) = rest.split_at(end.unwrap_or(rest.len().min(room)));
            if text.is_empty() && end.is_none() {
                // Full, and there is more of it.
                self.end_line(vm, stream, shown);
                continue;
            }
            if !text.is_empty() {
                if line.carriage == Carriage::Returned {
                    self.end_line(vm, stream, shown);
                }
                let line = &mut self.vms[vm].lines[index(stream)];
                line.carriage = Carriage::None;
                if line.length == 0 {
                    time.clone_into(&mut line.time);
                }
                line.escaper.push(text, &mut line.text);
                line.length += text.len();
                line.touched = Some(Instant::now());
            }
            rest = after;
            let line = &mut self.vms[vm].lines[index(stream)];
            match rest.first() {
                Some(b'\r') if end.is_some() => {
                    // What was shown ended with the one before.
                    if line.carriage == Carriage::None && (line.length > 0 || line.begun) {
                        line.carriage = Carriage::Returned;
                        line.touched = Some(Instant::now());
                    }
                    rest = &rest[1..];
                }
                Some(b'\n') if end.is_some() => {
                    match line.carriage {
                        Carriage::Shown => line.carriage = Carriage::None,
                        _ => {
                            if line.length == 0 {
                                time.clone_into(&mut line.time);
                            }
                            self.finish_line(vm, stream, shown);
                        }
                    }
                    rest = &rest[1..];
                }
                _ => {}
            }
        }
    }

    /// Shows lines without an end that have been quiet; how long until the next one has been, if there is one.
    pub(super) fn flush_quiet(&mut self, shown: &mut Shown) -> Option<Duration> {
        let quiet = if self.width > 0 { QUIET_AMONG_OTHERS } else { QUIET };
        let mut next: Option<Duration> = None;
        for vm in 0..self.vms.len() {
            for stream in [Stream::Stdout, Stream::Stderr] {
                let line = &mut self.vms[vm].lines[index(stream)];
                let Some(touched) = line.touched else { continue };
                let left = quiet.saturating_sub(touched.elapsed());
                if !left.is_zero() {
                    next = Some(next.map_or(left, |next| next.min(left)));
                } else if line.carriage == Carriage::Returned {
                    self.end_line(vm, stream, shown);
                    self.vms[vm].lines[index(stream)].carriage = Carriage::Shown;
                } else {
                    line.touched = None;
                    if !line.text.is_empty() {
                        self.show(vm, stream, false, shown);
                    }
                }
            }
        }
        next
    }

    /// Shows what a VM's lines without an end hold, and ends them: it writes no more.
    pub(super) fn finish(&mut self, vm: usize, shown: &mut Shown) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = &mut self.vms[vm].lines[index(stream)];
            line.escaper.finish(&mut line.text);
            if !line.text.is_empty() || line.begun {
                self.end_line(vm, stream, shown);
            }
            self.vms[vm].lines[index(stream)].carriage = Carriage::None;
        }
    }

    /// Ends whatever line is open on an output, so that something else can be written there.
    pub(super) fn break_line(&mut self, stream: Stream, shown: &mut Shown) {
        let cell = self.cell(stream);
        if let Some((_, stream)) = self.open[cell].take() {
            shown.add(stream, "\n");
        }
    }

    fn cell(&self, stream: Stream) -> usize {
        if self.look.together { 0 } else { index(stream) }
    }

    /// A newline came: what the escaper kept back was no character.
    fn finish_line(&mut self, vm: usize, stream: Stream, shown: &mut Shown) {
        let line = &mut self.vms[vm].lines[index(stream)];
        line.escaper.finish(&mut line.text);
        self.end_line(vm, stream, shown);
    }

    fn end_line(&mut self, vm: usize, stream: Stream, shown: &mut Shown) {
        self.show(vm, stream, true, shown);
        let line = &mut self.vms[vm].lines[index(stream)];
        (line.length, line.touched, line.begun, line.carriage) = (0, None, false, Carriage::None);
    }

    /// Shows what is there of a line, and ends it or leaves it open.
    fn show(&mut self, vm: usize, stream: Stream, end: bool, shown: &mut Shown) {
        let cell = self.cell(stream);
        let goes_on = self.open[cell] == Some((vm, stream));
        // Its beginning was shown and then ended by something else: there is nothing more of it.
        let nothing = end && !goes_on && self.vms[vm].lines[index(stream)].begun;
        if nothing && self.vms[vm].lines[index(stream)].text.is_empty() {
            return;
        }
        if !goes_on {
            self.break_line(stream, shown);
            shown.add(stream, &self.prefix(vm, stream));
        }
        let line = &mut self.vms[vm].lines[index(stream)];
        let text = std::mem::take(&mut line.text);
        // Colours end with what is shown together, and come back with the next of it.
        let active = line.escaper.active();
        if !text.is_empty() {
            shown.add(stream, &line.colours);
            shown.add(stream, &text);
            if !active.is_empty() {
                shown.add(stream, "\x1b[0m");
            }
        }
        active.clone_into(&mut line.colours);
        line.begun = true;
        self.open[cell] = if end { None } else { Some((vm, stream)) };
        if end {
            shown.add(stream, "\n");
        }
    }

    /// What stands before a line.
    fn prefix(&self, vm: usize, stream: Stream) -> String {
        let Vm { name, lines } = &self.vms[vm];
        let time = match self.look.timestamps {
            true => format!("{} ", lines[index(stream)].time),
            false => String::new(),
        };
        match (self.width, self.look.colours[index(stream)]) {
            (0, _) => time,
            (width, false) => format!("{name:<width$} | {time}"),
            (width, true) => format!("\x1b[{}m{name:<width$} |\x1b[0m {time}", PALETTE[vm % PALETTE.len()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stream::{Stderr, Stdout};

    fn screen(names: &[&str], look: Look) -> Screen {
        Screen::new(names.iter().map(|name| (*name).to_owned()), look)
    }

    fn text(shown: &Shown) -> String {
        shown.0.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// All that one VM's pieces come to.
    fn all(pieces: &[&[u8]]) -> String {
        let (mut screen, mut shown) = (screen(&["web"], Look::default()), Shown::default());
        for piece in pieces {
            screen.push(0, Stdout, "", piece, &mut shown);
        }
        screen.finish(0, &mut shown);
        text(&shown)
    }

    /// As if the quiet time were over.
    fn wait(screen: &mut Screen, shown: &mut Shown) {
        for line in screen.vms.iter_mut().flat_map(|vm| &mut vm.lines) {
            line.touched = line.touched.map(|at| at - QUIET_AMONG_OTHERS);
        }
        assert_eq!(screen.flush_quiet(shown), None);
    }

    #[test]
    fn lines_of_several_vms_stay_whole() {
        let together = Look { together: true, ..Look::default() };
        let (mut screen, mut shown) = (screen(&["a", "bcd"], together), Shown::default());
        screen.push(0, Stdout, "", b"one ", &mut shown);
        screen.push(1, Stdout, "", b"other\n", &mut shown);
        screen.push(0, Stderr, "", b"error\n", &mut shown);
        screen.push(0, Stdout, "", b"line\n", &mut shown);
        screen.push(1, Stdout, "", b"rest", &mut shown);
        screen.finish(1, &mut shown);
        assert_eq!(text(&shown), "bcd | other\na   | error\na   | one line\nbcd | rest\n");
        assert_eq!(shown.0[1].0, Stderr);
    }

    #[test]
    fn a_prompt_is_shown_and_goes_on_where_it_stood() {
        let together = Look { together: true, ..Look::default() };
        let (mut screen, mut shown) = (screen(&["a", "b"], together), Shown::default());
        screen.push(0, Stdout, "", b"name? ", &mut shown);
        assert!(screen.flush_quiet(&mut shown).is_some_and(|left| left <= QUIET_AMONG_OTHERS));
        assert_eq!(text(&shown), "");
        wait(&mut screen, &mut shown);
        assert_eq!(text(&shown), "a | name? ");
        screen.push(0, Stdout, "", b"Bob\nage? ", &mut shown);
        wait(&mut screen, &mut shown);
        assert_eq!(text(&shown), "a | name? Bob\na | age? ");
        // Something else ends the line; what comes then has a beginning of its own.
        screen.push(1, Stderr, "", b"hello\n", &mut shown);
        screen.push(0, Stdout, "", b"7\n", &mut shown);
        assert_eq!(text(&shown), "a | name? Bob\na | age? \nb | hello\na | 7\n");
        screen.push(0, Stdout, "", b"end", &mut shown);
        wait(&mut screen, &mut shown);
        screen.break_line(Stderr, &mut shown);
        screen.finish(0, &mut shown);
        assert!(text(&shown).ends_with("a | 7\na | end\n"), "{}", text(&shown));
    }

    #[test]
    fn a_carriage_return_ends_a_line_once() {
        assert_eq!(
            all(&[b"one\r\ntwo\r\r\n", b"three\r", b"\nfour\r", b"five\r"]),
            "one\ntwo\nthree\nfour\nfive\n"
        );
        assert_eq!(all(&[b"\r\n\r\r10%\r\r20%\r"]), "\n10%\n20%\n");
        let (mut screen, mut shown) = (screen(&["web"], Look::default()), Shown::default());
        screen.push(0, Stdout, "", b"10%\r", &mut shown);
        wait(&mut screen, &mut shown);
        assert_eq!(text(&shown), "10%\n");
        screen.push(0, Stdout, "", b"\n20%\r", &mut shown);
        wait(&mut screen, &mut shown);
        screen.push(0, Stdout, "", b"\r30%", &mut shown);
        screen.finish(0, &mut shown);
        assert_eq!(text(&shown), "10%\n20%\n30%\n");
    }

    #[test]
    fn a_line_without_end_is_shown_in_bounded_pieces_and_takes_linear_time() {
        let begun = Instant::now();
        let (mut screen, mut shown) = (screen(&["web"], Look::default()), Shown::default());
        let (piece, mut seen) = ("y".repeat(100), 0);
        for _ in 0..1_000_000 {
            screen.push(0, Stdout, "", piece.as_bytes(), &mut shown);
            let held = &screen.vms[0].lines[0];
            assert!(held.text.len() <= MAX_LINE && held.text.capacity() <= 4 * MAX_LINE);
            seen += shown.len();
            assert!(shown.0.iter().all(|(_, bytes)| bytes.len() == MAX_LINE + 1));
            shown.0.clear();
        }
        assert_eq!(seen, 100_000_000 / MAX_LINE * (MAX_LINE + 1));
        // It was quadratic: 100 MB took hours.
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    }

    #[test]
    fn cutting_tears_neither_characters_nor_colours() {
        for special in ["\u{20ac}", "\x1b[1;31m", "\u{1f600}"] {
            for before in MAX_LINE - 8..=MAX_LINE {
                let line = format!("{}{special}{}", "x".repeat(before), "y".repeat(50));
                let look = Look { colours: [true; 2], ..Look::default() };
                let (mut screen, mut shown) = (screen(&["web"], look), Shown::default());
                screen.push(0, Stdout, "", line.as_bytes(), &mut shown);
                screen.finish(0, &mut shown);
                let text = text(&shown);
                assert_eq!(text.matches('\n').count(), 2, "{special:?} after {before}");
                assert_eq!(
                    text.matches(special).count(),
                    1 + usize::from(special == "\x1b[1;31m" && text.contains("0m\n\x1b[1"))
                );
                assert!(!text.contains("\\x"), "{special:?} after {before}");
            }
        }
    }

    #[test]
    fn colours_end_with_the_line_and_come_back_on_the_next() {
        let look = Look { colours: [true, false], timestamps: true, ..Look::default() };
        let (mut screen, mut shown) = (screen(&["a", "b"], look), Shown::default());
        screen.push(0, Stdout, "T1", b"\x1b[31mred\nstill\x1b[0m\nplain\n", &mut shown);
        screen.push(1, Stderr, "T2", b"\x1b[31mred\x07\n", &mut shown);
        let prefix = "\x1b[36ma |\x1b[0m T1 ";
        assert_eq!(
            text(&shown),
            format!(
                "{prefix}\x1b[31mred\x1b[0m\n{prefix}\x1b[31mstill\x1b[0m\n{prefix}plain\nb | T2 red\\x07\n"
            )
        );
    }
}
