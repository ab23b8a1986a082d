//! Makes bytes from a guest harmless on a terminal.

/// The longest escape sequence that passes: a colour has some twenty bytes.
const MAX_SEQUENCE: usize = 48;
/// Colours that are in force together: more bytes than this are no colours any more.
const MAX_ACTIVE: usize = 128;

/// What becomes of colour sequences (SGR, `ESC [ … m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Colours {
    /// They become visible, as all other control bytes do.
    #[default]
    Show,
    /// They pass.
    Keep,
    /// They are left out.
    Drop,
}

/// Escapes a byte stream piece by piece: control bytes except tab and newline become visible, as do C1 controls,
/// bidirectional overrides and what is not UTF-8. A character or a colour split between two pieces survives.
#[derive(Debug, Default)]
pub struct Escaper {
    colours: Colours,
    /// Carriage returns, and erasing to the end of the line, pass: progress bars need them.
    redraws: bool,
    pending: Vec<u8>,
    active: String,
}

/// What begins at an escape byte.
enum Sequence {
    /// Of this many bytes. A colour, or what redraws a line.
    Colour(usize),
    Redraw(usize),
    /// More bytes are needed.
    Cut,
    /// Something else.
    Other,
}

impl Escaper {
    /// With colours kept, dropped or shown.
    pub fn new(colours: Colours) -> Escaper {
        Escaper { colours, ..Escaper::default() }
    }

    /// As `new`, for a terminal that shows one program's output and nothing else: lines may be drawn anew.
    pub fn redrawing(colours: Colours) -> Escaper {
        Escaper { colours, redraws: true, ..Escaper::default() }
    }

    /// Escapes `bytes` onto `out`, keeping back an unfinished character or sequence.
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
            let plain = rest.iter().position(|b| !matches!(b, b' '..=b'~' | b'\t' | b'\n'));
            let (text, special) = rest.split_at(plain.unwrap_or(rest.len()));
            // ASCII: nothing is replaced.
            out.push_str(&String::from_utf8_lossy(text));
            let Some(first) = special.first() else { return };
            let taken = match first {
                0x1b => self.sequence(special, out),
                b'\r' if self.redraws => {
                    out.push('\r');
                    Some(1)
                }
                0..=0x1f | 0x7f => {
                    hex(*first, out);
                    Some(1)
                }
                _ => character(special, out),
            };
            match taken {
                Some(taken) => rest = &special[taken..],
                None => {
                    self.pending = special.to_vec();
                    return;
                }
            }
        }
    }

    /// Ends the stream: an unfinished character or sequence is shown as bytes.
    pub fn finish(&mut self, out: &mut String) {
        for byte in std::mem::take(&mut self.pending) {
            match byte {
                b' '..=b'~' => out.push(char::from(byte)),
                byte => hex(byte, out),
            }
        }
    }

    /// The colours that are in force after what was pushed; empty if there are none.
    pub fn active(&self) -> &str {
        &self.active
    }

    /// Takes what begins with an escape byte; `None` if its end has yet to come.
    fn sequence(&mut self, bytes: &[u8], out: &mut String) -> Option<usize> {
        let found = match (self.colours, self.redraws) {
            (Colours::Show, false) => Sequence::Other,
            _ => parse(bytes),
        };
        match found {
            Sequence::Cut => None,
            Sequence::Colour(length) if self.colours != Colours::Show => {
                if self.colours == Colours::Keep {
                    let text = String::from_utf8_lossy(&bytes[..length]);
                    out.push_str(&text);
                    self.colour(&text);
                }
                Some(length)
            }
            Sequence::Redraw(length) if self.redraws => {
                out.push_str(&String::from_utf8_lossy(&bytes[..length]));
                Some(length)
            }
            _ => {
                hex(0x1b, out);
                Some(1)
            }
        }
    }

    /// Remembers what a colour sequence leaves in force.
    fn colour(&mut self, sequence: &str) {
        let parameters = &sequence[2..sequence.len() - 1];
        let first = parameters.split(';').next().unwrap_or_default();
        if first.bytes().all(|b| b == b'0') || self.active.len() + sequence.len() > MAX_ACTIVE {
            self.active.clear();
        }
        if !parameters.bytes().all(|b| b == b'0') {
            self.active.push_str(sequence);
        }
    }
}

fn parse(bytes: &[u8]) -> Sequence {
    match bytes.get(1) {
        None => return Sequence::Cut,
        Some(b'[') => {}
        Some(_) => return Sequence::Other,
    }
    let most = bytes.len().min(MAX_SEQUENCE);
    match bytes[2..most].iter().position(|b| !matches!(b, b'0'..=b'9' | b';' | b':')) {
        Some(at) => match bytes[at + 2] {
            b'm' => Sequence::Colour(at + 3),
            b'K' => Sequence::Redraw(at + 3),
            _ => Sequence::Other,
        },
        None if bytes.len() < MAX_SEQUENCE => Sequence::Cut,
        None => Sequence::Other,
    }
}

/// Takes one character beyond ASCII, or bytes that are none; `None` if its end has yet to come.
fn character(bytes: &[u8], out: &mut String) -> Option<usize> {
    let window = &bytes[..bytes.len().min(4)];
    let (valid, bad) = match std::str::from_utf8(window) {
        Ok(text) => (text, None),
        Err(e) => (std::str::from_utf8(&window[..e.valid_up_to()]).unwrap_or_default(), Some(e.error_len())),
    };
    match (valid.chars().next(), bad) {
        (Some(c), _) => {
            match c {
                // C1 controls act on terminals; overrides make text read as what it is not.
                '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    out.extend(c.escape_unicode());
                }
                c => out.push(c),
            }
            Some(c.len_utf8())
        }
        (None, Some(Some(bad))) => {
            bytes[..bad].iter().for_each(|b| hex(*b, out));
            Some(bad)
        }
        (None, _) => None,
    }
}

/// Escapes one whole piece of text, colours included.
pub fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    let mut escaper = Escaper::default();
    escaper.push(bytes, &mut out);
    escaper.finish(&mut out);
    out
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
    use proptest::prelude::*;

    fn pushed(mut escaper: Escaper, bytes: &[u8]) -> String {
        let mut out = String::new();
        escaper.push(bytes, &mut out);
        escaper.finish(&mut out);
        out
    }

    #[test]
    fn controls_become_visible_and_text_stays() {
        assert_eq!(escaped(b"a\tb\n"), "a\tb\n");
        assert_eq!(escaped(b"\x1b[31mred\x07\r"), "\\x1b[31mred\\x07\\r");
        assert_eq!(escaped("gr\u{fc}n \u{9b}31m \u{202e}".as_bytes()), "gr\u{fc}n \\u{9b}31m \\u{202e}");
        assert_eq!(escaped(b"\xff\x7f"), "\\xff\\x7f");
        assert_eq!(escaped(b"\xe2\x82"), "\\xe2\\x82");
    }

    #[test]
    fn colours_pass_or_are_left_out_and_nothing_else_does() {
        let text = b"\x1b[1;38;5;8mbold\x1b[0m \x1b[m\x1b[2Jclear \x1b]0;title\x07 \x1b[K\r\x1b[12;12H";
        assert_eq!(
            pushed(Escaper::new(Colours::Keep), text),
            "\x1b[1;38;5;8mbold\x1b[0m \x1b[m\\x1b[2Jclear \\x1b]0;title\\x07 \\x1b[K\\r\\x1b[12;12H"
        );
        assert_eq!(
            pushed(Escaper::new(Colours::Drop), text),
            "bold \\x1b[2Jclear \\x1b]0;title\\x07 \\x1b[K\\r\\x1b[12;12H"
        );
        assert_eq!(
            pushed(Escaper::redrawing(Colours::Drop), text),
            "bold \\x1b[2Jclear \\x1b]0;title\\x07 \x1b[K\r\\x1b[12;12H"
        );
        // A sequence without an end is no colour.
        let endless = [b"\x1b[".to_vec(), vec![b'1'; 100], b"m".to_vec()].concat();
        assert!(pushed(Escaper::new(Colours::Keep), &endless).starts_with("\\x1b[111"));
        assert_eq!(pushed(Escaper::new(Colours::Keep), b"end \x1b[3"), "end \\x1b[3");
    }

    #[test]
    fn the_colours_in_force_are_known() {
        let mut escaper = Escaper::new(Colours::Keep);
        let mut out = String::new();
        let mut after = |text: &str| {
            escaper.push(text.as_bytes(), &mut out);
            escaper.active().to_owned()
        };
        assert_eq!(after("\x1b[1m"), "\x1b[1m");
        assert_eq!(after("x\x1b[31m"), "\x1b[1m\x1b[31m");
        assert_eq!(after("\x1b[0;4m"), "\x1b[0;4m");
        assert_eq!(after("\x1b[m"), "");
        assert!(after(&"\x1b[32m".repeat(1000)).len() <= MAX_ACTIVE);
        assert_eq!(after("\x1b[00m"), "");
    }

    proptest! {
        #[test]
        fn how_a_stream_is_cut_makes_no_difference(
            bytes in proptest::collection::vec(
                prop_oneof![Just(0x1b), Just(b'['), Just(b'm'), Just(b';'), Just(b'3'), Just(b'\r'), any::<u8>()],
                0..200,
            ),
            at in 0_usize..200,
            mode in 0..4,
        ) {
            let new = || match mode {
                0 => Escaper::default(),
                1 => Escaper::new(Colours::Keep),
                2 => Escaper::new(Colours::Drop),
                _ => Escaper::redrawing(Colours::Keep),
            };
            let at = at.min(bytes.len());
            let mut cut = String::new();
            let mut escaper = new();
            escaper.push(&bytes[..at], &mut cut);
            escaper.push(&bytes[at..], &mut cut);
            escaper.finish(&mut cut);
            prop_assert_eq!(&cut, &pushed(new(), &bytes));
            // Whatever passes, a terminal is never told more than colours and redrawn lines.
            let harmless = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\x1b' | '\r');
            prop_assert!(cut.chars().all(harmless));
        }
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
