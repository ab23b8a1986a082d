//! Sources that come over the network: addresses, digests, references of container images.

use super::decode::{Decoder, Setting, Spanned, Wrong};
use super::diagnostic::Problem;
use super::model::UrlSource;
use super::units;
use crate::reference::{self, is_loopback};
use url::Url;

/// Longer ones are refused by servers and proxies.
const URL_MAX: usize = 8000;

impl Decoder<'_> {
    /// `url "ADDRESS" "MIRROR"… sha256="…" member="…" max="…"`.
    pub fn url_source(&self, setting: Setting<'_>) -> Option<UrlSource> {
        let mut urls = Some(vec![]);
        for entry in setting.args() {
            let text = self.text_of("an address of `url`", entry);
            let text = text.and_then(|t| self.checked("manifest.bad-url", &t.span, address(&t.value)));
            urls = urls.zip(text).map(|(mut all, one)| {
                all.push(one);
                all
            });
        }
        let sha256 = self.optional(setting, "sha256", "manifest.bad-digest", sha256);
        let member = self.optional(setting, "member", "manifest.bad-member", member);
        let max = match setting.prop("max") {
            None => Some(None),
            Some(_) => self.text_prop(setting, "max").and_then(|text| {
                let size = units::size("`max` of `url`", &text.value).and_then(|size| match size {
                    0 => Err(Wrong::new(
                        "nothing",
                        "`max` of `url` is 0",
                        "write a larger size, or leave it out",
                    )),
                    size => Ok(size),
                });
                self.checked("manifest.bad-size", &text.span, size).map(Some)
            }),
        };
        let urls = urls.filter(|all| !all.is_empty())?;
        let sha256 = sha256?;
        if sha256.is_none() {
            self.no_blind_http(setting, &urls)?;
        }
        if let (Some(digest), Some(entry)) = (&sha256, setting.prop("sha256")) {
            let digest = Spanned { value: digest.clone(), span: self.entry_span(entry) };
            self.digests.borrow_mut().push((urls[0].clone(), digest));
        }
        Some(UrlSource { urls, sha256, member: member?, max: max? })
    }

    /// Refuses bytes that anybody on the way may exchange and nothing checks.
    fn no_blind_http(&self, setting: Setting<'_>, urls: &[String]) -> Option<()> {
        let open = |url: &str| {
            Url::parse(url)
                .is_ok_and(|url| url.scheme() == "http" && !url.host_str().is_some_and(is_loopback))
        };
        match setting.args().zip(urls).find(|(_, url)| open(url)) {
            None => Some(()),
            Some((entry, _)) => self.report(
                Problem::new(
                    "manifest.unverified-url",
                    self.entry_span(entry),
                    "comes unencrypted",
                    "this comes unencrypted and without a `sha256`: anybody on the way could exchange it",
                )
                .help("use https, or add the sha256 of the file that you trust"),
            ),
        }
    }

    /// A property that may be missing. `None`: it is wrong, which has been reported.
    fn optional(
        &self,
        setting: Setting<'_>,
        name: &str,
        code: &'static str,
        parse: fn(&str) -> Result<String, Wrong>,
    ) -> Option<Option<String>> {
        match setting.prop(name) {
            None => Some(None),
            Some(_) => {
                let text = self.text_prop(setting, name)?;
                self.checked(code, &text.span, parse(&text.value)).map(Some)
            }
        }
    }

    /// The reference of a container image, as written.
    pub fn oci_reference(&self, setting: Setting<'_>) -> Option<String> {
        let Spanned { value, span } = self.text_arg(setting)?;
        if let Some((scheme, rest)) = value.split_once("://") {
            return self.report(
                Problem::new(
                    "manifest.bad-reference",
                    span,
                    "not a reference",
                    format!("{value:?} is an address, not the reference of an image"),
                )
                .help(format!("write it without `{scheme}://`: \"{rest}\"")),
            );
        }
        self.checked("manifest.bad-reference", &span, reference(&value)).map(|()| value)
    }
}

fn address(text: &str) -> Result<String, Wrong> {
    let wrong = |label: &str, message: String, help: &str| Err(Wrong::new(label, message, help));
    if text.len() > URL_MAX {
        return wrong("too long", "an address is too long".to_owned(), "8,000 bytes are the most");
    }
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(e) => {
            let help = "write it in full, such as \"https://example.org/file.tar.gz\"";
            return wrong("not an address", format!("{text:?} is not an address: {e}"), help);
        }
    };
    if !matches!(url.scheme(), "http" | "https" | "file") {
        let message = format!("`{}` is no way to download a file", url.scheme());
        return wrong("unknown scheme", message, "http, https and file are");
    }
    if url.scheme() == "file" && url.host_str().is_some_and(|host| !host.is_empty()) {
        let help = "write three slashes: \"file:///srv/file.tar\"";
        return wrong("names a host", "a `file` address names a file on this host".to_owned(), help);
    }
    if !url.username().is_empty() || url.password().is_some() {
        let help = "a manifest is checked in: remove the user and password from it";
        return wrong("holds a login", "an address must not hold a login".to_owned(), help);
    }
    if url.fragment().is_some() {
        let help = "remove `#` and what follows; `sha256=` holds a digest, `member=` a file in an archive";
        return wrong("has a fragment", "an address with a fragment names no file".to_owned(), help);
    }
    Ok(url.into())
}

fn sha256(text: &str) -> Result<String, Wrong> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(digits);
    }
    let help = format!(
        "a SHA-256 has 64 hexadecimal digits, this has {}: copy it from where the file is published, \
         or leave `sha256` out and run `firegopher lock`, which pins what comes",
        digits.len()
    );
    Err(Wrong::new("not a digest", "this is not a SHA-256".to_owned(), help))
}

fn member(text: &str) -> Result<String, Wrong> {
    let path = text.strip_prefix("./").unwrap_or(text);
    let good = !path.is_empty()
        && path.len() < 4096
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if good {
        return Ok(path.to_owned());
    }
    let help = "write the file's path as the archive lists it, such as \"release/bin/tool\"";
    Err(Wrong::new("not a member", format!("{text:?} cannot be a file in an archive"), help))
}

fn reference(text: &str) -> Result<(), Wrong> {
    let help = "a reference is [registry/]name[:tag][@digest], such as \"docker.io/library/python:3\"";
    let wrong =
        |why| Wrong::new("not a reference", format!("{text:?} names no image of a registry: {why}"), help);
    reference::parse(text).map(drop).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_whole_and_hold_no_login() {
        assert_eq!(address("https://Example.org/a"), Ok("https://example.org/a".to_owned()));
        assert_eq!(address("file:///srv/a.tar"), Ok("file:///srv/a.tar".to_owned()));
        for bad in
            ["", "a.tar", "ftp://example.org/a", "file://host/a", "https://u:p@example.org/a", "http://x/#y"]
        {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_digest_may_have_its_prefix_and_capitals() {
        let digits = "AB".repeat(32);
        assert_eq!(sha256(&digits), Ok("ab".repeat(32)));
        assert_eq!(sha256(&format!("sha256:{digits}")), Ok("ab".repeat(32)));
        assert!(sha256("ab").is_err() && sha256(&"zz".repeat(32)).is_err());
    }

    #[test]
    fn members_stay_in_their_archive() {
        assert_eq!(member("./a/b"), Ok("a/b".to_owned()));
        for bad in ["", "/a", "a/../b", "a//b", "."] {
            assert!(member(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn references_have_no_spaces_and_no_scheme() {
        let pinned = format!("localhost:5000/a/b@sha256:{}", "0a".repeat(32));
        for good in ["alpine", "docker.io/library/python:3.12-slim", &pinned] {
            assert_eq!(reference(good), Ok(()), "{good}");
        }
        for bad in ["", "a b", "/a", "a:", "a\n", "Alpine", "a@sha256:1234"] {
            assert!(reference(bad).is_err(), "{bad}");
        }
    }
}
