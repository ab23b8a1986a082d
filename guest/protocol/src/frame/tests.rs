use super::*;

#[test]
fn frames_survive_any_split_of_the_stream() {
    let mut wire = Vec::new();
    encode_message(&serde_json::json!({}), &mut wire).unwrap();
    encode_stream(2, b"", &mut wire);
    encode_stream(3, &[7; 1000], &mut wire);
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
    encode_stream(2, &vec![1; MAX_PAYLOAD + 5], &mut wire);
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
            encode_frame(*channel, payload, &mut wire).unwrap();
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

/// Everything that a stream of bytes holds, and whether it ended within a frame.
fn decoded(wire: &[u8], noise: &mut Noise) -> Vec<Frame> {
    let (mut decoder, mut seen, mut rest) = (Decoder::default(), Vec::new(), wire);
    while !rest.is_empty() {
        let (piece, later) = rest.split_at((1 + noise.next() % 100_000).min(rest.len()));
        decoder.push(piece);
        while let Some(frame) = decoder.frame().unwrap() {
            seen.push(frame);
        }
        rest = later;
    }
    assert_eq!(decoder.buffer.len(), decoder.start, "half a frame is left");
    seen
}

#[test]
fn a_message_is_one_frame_or_an_error_whatever_its_size() {
    let mut noise = Noise(3);
    // Two quotes are part of it.
    let around = (MAX_PAYLOAD - 6)..(MAX_PAYLOAD + 6);
    let random = (0..100).map(|_| noise.next() % (3 * MAX_PAYLOAD)).collect::<Vec<_>>();
    let mut noise = Noise(4);
    for len in around.chain(random) {
        // Text that grows when it is written: `"` becomes two bytes, a control character six.
        for (text, written) in
            [("a".repeat(len), len + 2), ("\"".repeat(len), 2 * len + 2), ("\u{1}".repeat(len), 6 * len + 2)]
        {
            let mut wire = Vec::new();
            encode_message(&"before", &mut wire).unwrap();
            let before = wire.clone();
            let result = encode_message(&text, &mut wire);
            assert_eq!(result.is_ok(), written <= MAX_PAYLOAD, "{len} characters, {written} bytes");
            if result.is_err() {
                assert_eq!(result, Err(EncodeError::TooLarge));
                assert!(wire == before, "half a message was appended");
            }
            encode_message(&"after", &mut wire).unwrap();
            let frames = decoded(&wire, &mut noise);
            assert_eq!(frames.len(), if result.is_ok() { 3 } else { 2 });
            for frame in &frames {
                assert_eq!(frame.channel, CONTROL);
                serde_json::from_slice::<String>(&frame.payload).expect("each frame is a whole document");
            }
            if result.is_ok() {
                assert_eq!(serde_json::from_slice::<String>(&frames[1].payload).unwrap(), text);
            }
        }
    }
}

#[test]
fn a_frame_is_never_split() {
    let mut wire = Vec::new();
    encode_frame(CONTROL, &vec![7; MAX_PAYLOAD], &mut wire).unwrap();
    let len = wire.len();
    assert_eq!(encode_frame(CONTROL, &vec![7; MAX_PAYLOAD + 1], &mut wire), Err(EncodeError::TooLarge));
    assert_eq!(wire.len(), len);
}

#[test]
#[should_panic(expected = "messages are never split")]
fn channel_0_is_no_stream() {
    encode_stream(CONTROL, b"{}", &mut Vec::new());
}

#[test]
fn what_cannot_be_json_is_an_error() {
    let odd = std::collections::BTreeMap::from([((1, 2), 3)]);
    let mut wire = Vec::new();
    assert!(matches!(encode_message(&odd, &mut wire), Err(EncodeError::Json(_))));
    assert!(wire.is_empty());
}
