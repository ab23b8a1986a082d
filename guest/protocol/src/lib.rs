//! The control protocol between a supervisor on the host and PID 1 in its guest: one byte stream of frames,
//! each a length, a channel and a payload. Channel 0 carries JSON messages, the others raw bytes.
//! Host and guest share this crate, so the two cannot drift apart.

mod frame;
mod message;

pub use frame::{
    Decoder, EncodeError, Frame, FrameError, HEADER_LEN, MAX_PAYLOAD, encode_frame, encode_message,
    encode_stream,
};
pub use message::*;
