//! What a follower writes: the VMs' output as it comes or line by line, and lines of its own between.

use super::{Follower, How};
use crate::cli::screen::{Screen, Shown};
use crate::cli::stdio;
use crate::plan::render::escape;
use crate::supervise::Stream;
use crate::supervise::logs::Escaper;
use std::io::{self, IsTerminal};

/// What output looks like.
pub(super) enum Shape {
    /// Lines, escaped.
    Lines(Screen),
    /// Bytes as they come; an escaper for each output that is a terminal.
    Bytes([Option<Escaper>; 2]),
}

impl Follower {
    pub(super) fn output(&mut self, vm: usize, stream: Stream, bytes: &[u8]) {
        let mut shown = Shown::default();
        match &mut self.shape {
            Shape::Lines(screen) => screen.push(vm, stream, "", bytes, &mut shown),
            Shape::Bytes(escapers) => {
                let index = usize::from(stream == Stream::Stderr);
                let bytes = match &mut escapers[index] {
                    None => bytes.to_vec(),
                    Some(escaper) => {
                        let mut text = String::new();
                        escaper.push(bytes, &mut text);
                        text.into_bytes()
                    }
                };
                if let Some(last) = bytes.last() {
                    self.at_line_start = *last == b'\n';
                }
                shown.0.push((stream, bytes));
            }
        }
        self.write(shown, bytes.len());
    }

    /// Hands on what is to be written; `charge` came through the gate for it.
    pub(super) fn write(&self, shown: Shown, charge: usize) {
        let mut charge = charge;
        for (stream, bytes) in shown.0 {
            self.sink.write(stream, bytes, std::mem::take(&mut charge));
        }
        self.sink.write(Stream::Stdout, Vec::new(), charge);
    }

    pub(super) fn finish_lines(&mut self, vm: usize) {
        let mut shown = Shown::default();
        match &mut self.shape {
            Shape::Lines(screen) => screen.finish(vm, &mut shown),
            Shape::Bytes(escapers) => {
                for (stream, escaper) in [Stream::Stdout, Stream::Stderr].into_iter().zip(escapers) {
                    let Some(escaper) = escaper else { continue };
                    let mut text = String::new();
                    escaper.finish(&mut text);
                    if !escaper.active().is_empty() {
                        text.push_str("\x1b[0m");
                    }
                    if !text.is_empty() {
                        shown.0.push((stream, text.into_bytes()));
                    }
                }
            }
        }
        self.write(shown, 0);
    }

    /// Something worth knowing. `run` shows its workload's output and nothing else.
    pub(super) fn note(&mut self, text: &str) {
        if self.how != How::InPlace {
            self.say(text);
        }
    }

    /// Lines of this command's own.
    pub(super) fn say(&mut self, text: &str) {
        let mut shown = Shown::default();
        let mut own = String::new();
        let mut within = std::mem::take(&mut self.caret);
        match &mut self.shape {
            Shape::Lines(screen) => {
                screen.break_line(Stream::Stderr, &mut shown);
                within &= shown.len() == 0;
            }
            Shape::Bytes(_) => within |= !std::mem::replace(&mut self.at_line_start, true),
        }
        if within && io::stderr().is_terminal() {
            own.push('\n');
        }
        // Line by line: an error may bring the end of a console along.
        text.lines().for_each(|line| own += &format!("{}\n", escape(line)));
        shown.0.push((Stream::Stderr, own.into_bytes()));
        self.write(shown, 0);
    }

    /// Nobody reads an output any more, or it takes no more.
    pub(super) fn unwritable(&mut self, stream: Stream, error: Option<io::Error>) {
        let error = error.filter(|e| !stdio::is_closed(stream, e));
        let streams: &[Stream] = if self.together { &[Stream::Stdout, Stream::Stderr] } else { &[stream] };
        for stream in streams {
            let index = usize::from(*stream == Stream::Stderr);
            if std::mem::replace(&mut self.unread[index], true) {
                continue;
            }
            self.sink.close(*stream);
            match self.how {
                // What writes there is told, as it would be without a VM in between. One that cannot be reached any
                // more has ended.
                How::InPlace => self.commands.iter().for_each(|vm| drop(vm.close_output(*stream))),
                How::Attached if *stream == Stream::Stdout => {
                    self.end.closed = error.is_none();
                    self.detached = true;
                }
                How::Attached | How::Detached => {}
            }
        }
        if let Some(error) = error {
            let name = match stream {
                Stream::Stdout => "standard output",
                Stream::Stderr => "standard error",
            };
            self.end.unwritten = true;
            self.say(&format!("error: cannot write to {name}: {error}"));
        }
    }

    /// What those who were left to themselves come to.
    pub(super) fn say_goodbye(&mut self) {
        let left = (0..self.names.len()).any(|vm| self.outcomes[vm].is_none());
        if self.how == How::Attached && left && (self.end.closed || self.end.unwritten) {
            self.note("The VMs run on. `firegopher down` stops them.");
        }
    }
}
