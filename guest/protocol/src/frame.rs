//! Framing: `u32` payload length, `u16` channel, both little-endian, then the payload.

use crate::message::channel::CONTROL;
use serde::Serialize;
use std::{fmt, io};

/// Bytes before each payload.
pub const HEADER_LEN: usize = 6;
/// The largest payload in bytes. A longer one is a malformed frame.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// See `message::channel`.
    pub channel: u16,
    /// At most `MAX_PAYLOAD` bytes.
    pub payload: Vec<u8>,
}

/// The peer sent what is no frame; the stream cannot be trusted any further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameError {
    /// The length the peer declared, in bytes.
    pub declared: usize,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a frame of {} bytes was announced; the most is {MAX_PAYLOAD}", self.declared)
    }
}

impl std::error::Error for FrameError {}

/// What does not fit into one frame and must not be split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncodeError {
    /// It is longer than `MAX_PAYLOAD`. Nothing was appended.
    TooLarge,
    /// It cannot be written as JSON. Nothing was appended.
    Json(String),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::TooLarge => write!(f, "a message takes more than {MAX_PAYLOAD} bytes"),
            EncodeError::Json(why) => write!(f, "a message cannot be written as JSON: {why}"),
        }
    }
}

impl std::error::Error for EncodeError {}

/// Appends bytes of a raw channel, in as many frames as they need: receivers take no notice of where one ends. No
/// bytes are one empty frame, which closes the channel.
///
/// # Panics
/// On channel 0: a message is one frame, and half of one means something else or nothing.
pub fn encode_stream(channel: u16, bytes: &[u8], out: &mut Vec<u8>) {
    assert_ne!(channel, CONTROL, "invariant: messages are never split");
    let mut rest = bytes;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        header(channel, now.len(), out);
        out.extend_from_slice(now);
        rest = later;
        if rest.is_empty() {
            return;
        }
    }
}

/// Appends one frame, whole.
///
/// # Errors
/// A payload that is too large; nothing is appended then.
pub fn encode_frame(channel: u16, payload: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(EncodeError::TooLarge);
    }
    header(channel, payload.len(), out);
    out.extend_from_slice(payload);
    Ok(())
}

/// Appends one message as one frame of channel 0. It is written where it stays: with room for it beforehand, no copy
/// of what it holds is left in freed memory.
///
/// # Errors
/// A message that does not fit into a frame; nothing is appended then.
pub fn encode_message<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    header(CONTROL, 0, out);
    let mut payload = Bounded { out, left: MAX_PAYLOAD };
    let written = serde_json::to_writer(&mut payload, message);
    let len = MAX_PAYLOAD - payload.left;
    match written {
        Ok(()) => {
            out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
            Ok(())
        }
        Err(e) => {
            // It may have held secrets.
            out[start..].fill(0);
            out.truncate(start);
            Err(if e.is_io() { EncodeError::TooLarge } else { EncodeError::Json(e.to_string()) })
        }
    }
}

fn header(channel: u16, len: usize, out: &mut Vec<u8>) {
    // At most `MAX_PAYLOAD`, which fits.
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&channel.to_le_bytes());
}

/// Takes no more than is left.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    left: usize,
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` if more bytes are needed. Not named `next`: errors end the stream.
    pub fn frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((header, rest)) = self.buffer[self.start..].split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, c0, c1] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > MAX_PAYLOAD {
            return Err(FrameError { declared: len });
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        let frame = Frame { channel: u16::from_le_bytes([c0, c1]), payload: payload.to_vec() };
        self.start += HEADER_LEN + len;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests;
