//! Reads `WWW-Authenticate` (RFC 9110, 11.6.1) as lenient as registries need it: several challenges in one header or
//! in many, names in any case, spaces around `=`, commas too many.

/// One way in which a server wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case.
    pub scheme: String,
    /// Names in lower case, and values without quotes.
    params: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter, if it is there.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All challenges of a header's values, in order. What is no challenge is passed over.
pub(super) fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    values.flat_map(|value| Text(value).challenges()).collect()
}

/// What is left of a value.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn challenges(mut self) -> Vec<Challenge> {
        let mut found: Vec<Challenge> = Vec::new();
        loop {
            self.0 = self.0.trim_start_matches([' ', '\t', ',']);
            if self.0.is_empty() {
                return found;
            }
            let word = self.token();
            if word.is_empty() {
                // Nobody's grammar: on with what follows the next comma.
                self.0 = self.0.split_once(',').map_or("", |(_, rest)| rest);
                continue;
            }
            let rest = self.0.trim_start_matches([' ', '\t']);
            match (rest.strip_prefix('='), found.last_mut()) {
                (Some(rest), Some(challenge)) => {
                    self.0 = rest.trim_start_matches([' ', '\t']);
                    let value = self.value();
                    challenge.params.push((word.to_ascii_lowercase(), value));
                }
                _ => found.push(Challenge { scheme: word.to_ascii_lowercase(), params: Vec::new() }),
            }
        }
    }

    fn token(&mut self) -> &'a str {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.0.find(|c| !is_token(c)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        token
    }

    /// A quoted string, or whatever stands before the next comma or space: URLs come without quotes, too.
    fn value(&mut self) -> String {
        let Some(quoted) = self.0.strip_prefix('"') else {
            let end = self.0.find([',', ' ', '\t']).unwrap_or(self.0.len());
            let (value, rest) = self.0.split_at(end);
            self.0 = rest;
            return value.to_owned();
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &quoted[at + 1..];
                    return value;
                }
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                c => value.push(c),
            }
        }
        self.0 = "";
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Vec<String> {
        let show = |challenge: Challenge| {
            let params: Vec<_> = challenge.params.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("{} [{}]", challenge.scheme, params.join("; "))
        };
        parse(values.iter().copied()).into_iter().map(show).collect()
    }

    #[test]
    fn every_way_of_writing_a_challenge_is_read() {
        let bearer = "bearer [realm=https://t/x; service=reg]";
        for text in [
            r#"Bearer realm="https://t/x",service="reg""#,
            r#"bearer REALM="https://t/x" , Service=reg"#,
            r#"Bearer   realm = "https://t/x" ,  service  =  "reg""#,
            r#", Bearer realm="https://t/x",,service="reg", "#,
            "Bearer realm=https://t/x,service=reg",
            "BEARER\trealm\t=\t\"https://t/x\", service=\"reg\"",
        ] {
            assert_eq!(read(&[text]), [bearer], "{text}");
        }
        assert_eq!(
            read(&[r#"Basic realm="a, b=\"c\"", Bearer realm="https://t/x",service="r\\g""#]),
            [r#"basic [realm=a, b="c"]"#, r"bearer [realm=https://t/x; service=r\g]"]
        );
        assert_eq!(
            read(&["Negotiate, Basic", r#"Bearer realm="x""#]),
            ["negotiate []", "basic []", "bearer [realm=x]"]
        );
        assert_eq!(read(&["Basic"]), ["basic []"]);
        assert_eq!(read(&["Basic realm="]), ["basic [realm=]"]);
    }

    #[test]
    fn no_text_makes_the_reader_fail_or_stay() {
        let mut random = fastrand::Rng::with_seed(7);
        let alphabet: Vec<char> = "aB =\",\\/;\tä".chars().collect();
        for _ in 0..20_000 {
            let length = random.usize(..24);
            let text: String = (0..length).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            let _ = read(&[&text]);
        }
        assert_eq!(read(&["", ",,", "\"", "=x", "/"]), [""; 0]);
    }
}
