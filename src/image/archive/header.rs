//! A tar header's 512 bytes, in every dialect that there has been: V7, ustar and pax, star, GNU's old one, and what Go
//! wrote before 1.8. Names and numbers are read as GNU tar does and, where it is stricter than Go's reader (which
//! umoci, podman and containerd use), as both can.

/// Where a field stands.
type Field = std::ops::Range<usize>;

const NAME: Field = 0..100;
const MODE: Field = 100..108;
const UID: Field = 108..116;
const GID: Field = 116..124;
const SIZE: Field = 124..136;
const MTIME: Field = 136..148;
const CHECKSUM: Field = 148..156;
const TYPE: usize = 156;
const LINK: Field = 157..257;
/// With the version.
const MAGIC: Field = 257..265;
const MAJOR: Field = 329..337;
const MINOR: Field = 337..345;
const PREFIX: Field = 345..500;
/// GNU's and star's, where others have the prefix or its end.
const GNU_ATIME: Field = 345..357;
const GNU_CTIME: Field = 357..369;

/// A header whose checksum is right.
#[derive(Clone)]
pub(super) struct Header(pub [u8; 512]);

/// What a header says of the member that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
    /// A file without its holes, as GNU tar had it first.
    GnuSparse,
    /// The next member's name, or its target, follows.
    GnuLongName,
    GnuLongLink,
    /// PAX records follow, for the next member or for all.
    Pax,
    PaxGlobal,
    /// The name of a volume: no member.
    Label,
    Other(u8),
}

/// A field that holds no number, or one that nothing here can stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoNumber;

impl Header {
    /// The header in the first 512 bytes of `block`, if these are one.
    pub fn read(block: &[u8]) -> Option<Header> {
        let header = Header(block.get(..512)?.try_into().ok()?);
        let stored = number(&header.0[CHECKSUM]).ok()?;
        // Some writers of old took bytes for signed.
        let sum = |value: fn(u8) -> i64| {
            let counted = |(at, byte): (usize, &u8)| if CHECKSUM.contains(&at) { 32 } else { value(*byte) };
            header.0.iter().enumerate().map(counted).sum::<i64>()
        };
        let right = stored == sum(i64::from) || stored == sum(|byte| i64::from(byte.cast_signed()));
        right.then_some(header)
    }

    pub fn kind(&self) -> Type {
        match self.0[TYPE] {
            0 | b'0' | b'7' => Type::File,
            b'1' => Type::HardLink,
            b'2' => Type::Symlink,
            b'3' => Type::Char,
            b'4' => Type::Block,
            b'5' => Type::Dir,
            b'6' => Type::Fifo,
            b'S' => Type::GnuSparse,
            b'L' => Type::GnuLongName,
            b'K' => Type::GnuLongLink,
            b'x' => Type::Pax,
            b'g' => Type::PaxGlobal,
            b'V' => Type::Label,
            other => Type::Other(other),
        }
    }

    /// The name, with its prefix if there is one.
    pub fn name(&self) -> Vec<u8> {
        let name = text(&self.0[NAME]);
        match self.prefix() {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    /// What stands before the name. The version after ustar's magic is not looked at: many writers leave it blank.
    fn prefix(&self) -> &[u8] {
        let prefix = text(&self.0[PREFIX]);
        if self.0[MAGIC].starts_with(b"ustar\0") {
            return prefix;
        }
        if !self.is_gnu() {
            return b"";
        }
        // GNU's headers have times there. Go before 1.8 took that magic and wrote a prefix: then they are no numbers.
        let time = |field: Field| {
            let field = &self.0[field];
            matches!(field[0], 0 | 0x80..)
                || field.iter().all(|byte| blank(*byte) || matches!(byte, b'0'..=b'7'))
        };
        if (time(GNU_ATIME) && time(GNU_CTIME)) || !prefix.is_ascii() { b"" } else { prefix }
    }

    /// Whether it has what only GNU's old format has, such as maps of holes.
    pub fn is_gnu(&self) -> bool {
        self.0[MAGIC] == *b"ustar  \0"
    }

    pub fn link(&self) -> Vec<u8> {
        text(&self.0[LINK]).to_vec()
    }

    /// Permissions and the special bits; whatever else is in the field means nothing.
    pub fn mode(&self) -> Result<u16, NoNumber> {
        Ok((number(&self.0[MODE])? & 0o7777) as u16)
    }

    pub fn uid(&self) -> Result<i64, NoNumber> {
        number(&self.0[UID])
    }

    pub fn gid(&self) -> Result<i64, NoNumber> {
        number(&self.0[GID])
    }

    pub fn size(&self) -> Result<u64, NoNumber> {
        number(&self.0[SIZE])?.try_into().map_err(|_| NoNumber)
    }

    /// Seconds since 1970, or before.
    pub fn mtime(&self) -> Result<i64, NoNumber> {
        number(&self.0[MTIME])
    }

    /// Major and minor number. V7 knows no devices.
    pub fn device(&self) -> Result<(u32, u32), NoNumber> {
        if !self.0[MAGIC].starts_with(b"ustar") {
            return Ok((0, 0));
        }
        // What ext4 and the kernel have bits for.
        let within = |field: Field, bits: u32| match u32::try_from(number(&self.0[field])?) {
            Ok(number) if number >> bits == 0 => Ok(number),
            _ => Err(NoNumber),
        };
        Ok((within(MAJOR, 12)?, within(MINOR, 20)?))
    }
}

/// What stands around a number.
fn blank(byte: u8) -> bool {
    byte == 0 || byte == 0x0b || byte.is_ascii_whitespace()
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number as any writer puts it: octal digits after spaces or NULs and before a space, a NUL or the field's end; or,
/// marked by the first bit, all bits of it in two's complement. A blank field is 0.
pub(super) fn number(field: &[u8]) -> Result<i64, NoNumber> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return binary(field);
    }
    let Some(start) = field.iter().position(|byte| !blank(*byte)) else { return Ok(0) };
    let digits = field[start..].split(|byte| blank(*byte)).next().unwrap_or_default();
    let digit = |value: i64, byte: &u8| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    };
    digits.iter().try_fold(0, digit).ok_or(NoNumber)
}

fn binary(field: &[u8]) -> Result<i64, NoNumber> {
    let Some((first, rest)) = field.split_first() else { return Err(NoNumber) };
    // The mark is no part of it, the bit after it is the sign.
    let first = i128::from(first & 0x3f) - i128::from(first & 0x40);
    // Twelve bytes at most: no overflow.
    let value = rest.iter().fold(first, |value, byte| value << 8 | i128::from(*byte));
    value.try_into().map_err(|_| NoNumber)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_numbers_are_read_however_they_are_padded() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"0000644 ", 0o644),
            (b"00000644", 0o644),
            (b"   644 \0", 0o644),
            (b"   644\x00 ", 0o644),
            (b"\0\0\x00644\0", 0o644),
            (b"\0  644 \0", 0o644),
            (b"644\0\0\0\0\0", 0o644),
            (b"644\0junk", 0o644),
            (b"644 junk", 0o644),
            (b"\t644\0\0\0\0", 0o644),
            (b"77777777777\0", 0o77777777777),
            (b"777777777777", 0o777777777777),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"   \0    ", 0),
            (b"", 0),
        ] {
            assert_eq!(number(field), Ok(value), "{field:?}");
        }
        for field in [
            &b"644x\0\0\0\0"[..],
            b"8\0",
            b"x",
            b"-1\0",
            b"+1\0",
            b"0x1f\0",
            b"6.44\0",
            b"7777777777777777777777777",
        ] {
            assert_eq!(number(field), Err(NoNumber), "{field:?}");
        }
    }

    #[test]
    fn binary_numbers_have_a_sign() {
        let field = |mark: u8, fill: u8, tail: &[u8], length: usize| {
            let mut field = vec![fill; length];
            field[0] = mark;
            field[length - tail.len()..].copy_from_slice(tail);
            field
        };
        for length in [8, 12] {
            assert_eq!(number(&field(0x80, 0, &[1, 0], length)), Ok(256));
            assert_eq!(number(&field(0x80, 0, &[], length)), Ok(0));
            assert_eq!(number(&field(0xff, 0xff, &[], length)), Ok(-1));
            assert_eq!(number(&field(0xff, 0xff, &[0xfe, 0xae, 0x80], length)), Ok(-86_400));
            assert_eq!(number(&field(0x80, 0, &[0xff, 0xff, 0xff, 0xff], length)), Ok(0xffff_ffff));
        }
        assert_eq!(number(&field(0x80, 0, &i64::MAX.to_be_bytes(), 12)), Ok(i64::MAX));
        assert_eq!(number(&field(0xff, 0xff, &i64::MIN.to_be_bytes(), 12)), Ok(i64::MIN));
        // Beyond what is called a number here.
        assert_eq!(number(&field(0x80, 0, &[1, 0, 0, 0, 0, 0, 0, 0, 0], 12)), Err(NoNumber));
        assert_eq!(number(&field(0x81, 0, &[], 12)), Err(NoNumber));
        assert_eq!(number(&field(0xc0, 0, &[], 12)), Err(NoNumber));
    }
}
