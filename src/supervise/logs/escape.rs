//! Makes bytes from a guest harmless on a terminal.

/// Escapes a byte stream piece by piece: control bytes except tab and newline become visible, as do C1 controls,
/// bidirectional overrides and what is not UTF-8. A character split between two pieces survives.
#[derive(Debug, Default)]
pub struct Escaper {
    pending: Vec<u8>,
}

impl Escaper {
    /// Escapes `bytes` onto `out`, keeping back an unfinished character.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        let joined;
        let mut rest = match self.pending.is_empty() {
            true => bytes,
            false => {
                self.pending.extend_from_slice(bytes);
                joined = std::mem::take(&mut self.pending);
                &joined
            }
        };
        loop {
            let (valid, error) = match std::str::from_utf8(rest) {
                Ok(text) => (text.len(), None),
                Err(e) => (e.valid_up_to(), Some(e.error_len())),
            };
            // Already checked: this re-borrows the valid part.
            text(&String::from_utf8_lossy(&rest[..valid]), out);
            match error {
                None => return,
                Some(None) => {
                    self.pending = rest[valid..].to_vec();
                    return;
                }
                Some(Some(bad)) => {
                    rest[valid..valid + bad].iter().for_each(|b| hex(*b, out));
                    rest = &rest[valid + bad..];
                }
            }
        }
    }

    /// Ends the stream: an unfinished character is shown as bytes.
    pub fn finish(&mut self, out: &mut String) {
        std::mem::take(&mut self.pending).into_iter().for_each(|b| hex(b, out));
    }
}

/// Escapes one whole piece of text.
pub fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    let mut escaper = Escaper::default();
    escaper.push(bytes, &mut out);
    escaper.finish(&mut out);
    out
}

fn text(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\t' | '\n' => out.push(c),
            c if c.is_ascii_control() => hex(c as u8, out),
            // C1 controls act on terminals; overrides make text read as what it is not.
            '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
}

fn hex(byte: u8, out: &mut String) {
    match byte {
        b'\r' => out.push_str("\\r"),
        b => out.push_str(&format!("\\x{b:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_become_visible_and_text_stays() {
        assert_eq!(escaped(b"a\tb\n"), "a\tb\n");
        assert_eq!(escaped(b"\x1b[31mred\x07\r"), "\\x1b[31mred\\x07\\r");
        assert_eq!(escaped("gr\u{fc}n \u{9b}31m \u{202e}".as_bytes()), "gr\u{fc}n \\u{9b}31m \\u{202e}");
        assert_eq!(escaped(b"\xff\x7f"), "\\xff\\x7f");
    }

    #[test]
    fn a_character_split_between_pieces_survives() {
        let text = "\u{20ac}x\u{1f600}";
        for at in 0..text.len() {
            let mut out = String::new();
            let mut escaper = Escaper::default();
            escaper.push(&text.as_bytes()[..at], &mut out);
            escaper.push(&text.as_bytes()[at..], &mut out);
            escaper.finish(&mut out);
            assert_eq!(out, text);
        }
    }
}
