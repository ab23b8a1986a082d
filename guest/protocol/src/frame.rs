//! Framing: `u32` payload length, `u16` channel, both little-endian, then the payload.

use std::fmt;

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

/// Appends one frame to `out`, splitting a payload that is larger than `MAX_PAYLOAD`
/// (harmless on the raw channels; control messages are far smaller).
pub fn encode(channel: u16, payload: &[u8], out: &mut Vec<u8>) {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        out.extend_from_slice(&(now.len() as u32).to_le_bytes());
        out.extend_from_slice(&channel.to_le_bytes());
        out.extend_from_slice(now);
        rest = later;
        if rest.is_empty() {
            return;
        }
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
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split_of_the_stream() {
        let mut wire = Vec::new();
        encode(0, b"{}", &mut wire);
        encode(2, b"", &mut wire);
        encode(3, &[7; 1000], &mut wire);
        for step in 1..wire.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.frame().unwrap() {
                    seen.push((frame.channel, frame.payload.len()));
                }
            }
            assert_eq!(seen, [(0, 2), (2, 0), (3, 1000)]);
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 0x7f, 0, 0]);
        assert!(decoder.frame().is_err());
    }

    #[test]
    fn a_large_payload_is_split_and_loses_nothing() {
        let mut wire = Vec::new();
        encode(2, &vec![1; MAX_PAYLOAD + 5], &mut wire);
        let mut decoder = Decoder::default();
        decoder.push(&wire);
        let mut total = 0;
        while let Some(frame) = decoder.frame().unwrap() {
            total += frame.payload.len();
        }
        assert_eq!(total, MAX_PAYLOAD + 5);
    }

    /// xorshift64: reproducible noise.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 as usize
        }
    }

    #[test]
    fn random_frames_in_random_pieces_come_out_as_they_went_in() {
        let mut noise = Noise(1);
        for _ in 0..200 {
            let frames: Vec<(u16, Vec<u8>)> = (0..noise.next() % 20)
                .map(|_| {
                    let len = noise.next() % [1, 100, 70_000][noise.next() % 3];
                    (noise.next() as u16, (0..len).map(|i| (i ^ len) as u8).collect())
                })
                .collect();
            let mut wire = Vec::new();
            for (channel, payload) in &frames {
                encode(*channel, payload, &mut wire);
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            let mut rest = &wire[..];
            while !rest.is_empty() {
                let (piece, later) = rest.split_at((1 + noise.next() % 40_000).min(rest.len()));
                decoder.push(piece);
                while let Some(frame) = decoder.frame().unwrap() {
                    seen.push((frame.channel, frame.payload));
                }
                rest = later;
            }
            assert_eq!(seen, frames);
        }
    }

    #[test]
    fn noise_is_refused_or_waited_for_and_never_more_is_kept_than_one_frame() {
        let mut noise = Noise(2);
        for _ in 0..500 {
            let mut decoder = Decoder::default();
            'stream: for _ in 0..50 {
                let bytes: Vec<u8> = (0..noise.next() % 300).map(|_| (noise.next() & 0x83) as u8).collect();
                decoder.push(&bytes);
                loop {
                    match decoder.frame() {
                        Ok(Some(frame)) => assert!(frame.payload.len() <= MAX_PAYLOAD),
                        Ok(None) => break,
                        Err(error) => {
                            assert!(error.declared > MAX_PAYLOAD);
                            break 'stream;
                        }
                    }
                }
                assert!(decoder.buffer.len() - decoder.start <= HEADER_LEN + MAX_PAYLOAD);
            }
        }
    }
}
