//! URLs as they are given: which are taken, and what of them may be shown.

use super::Wanted;
use crate::error::{Error, Result};
use crate::reference::is_loopback;
use reqwest::Url;
use std::path::PathBuf;

/// A URL without what may be secret in it: user and password, query and fragment.
pub fn shown(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else {
        // Not even a URL: nothing in it is known to be harmless, but its beginning helps to find it.
        return format!(
            "{:?}…",
            url.chars().take_while(|c| !matches!(c, '@' | '?' | '#')).take(24).collect::<String>()
        );
    };
    let _ = parsed.set_username("");
    let _ = parsed.set_password(None);
    parsed.set_fragment(None);
    if parsed.query().is_some() {
        parsed.set_query(Some("…"));
    }
    parsed.as_str().replace("?%E2%80%A6", "?…")
}

/// What progress calls the file.
pub(super) fn label(url: &Url) -> String {
    let name = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
    match (name, url.host_str()) {
        ("", Some(host)) => host.to_owned(),
        (name, Some(host)) => format!("{name} from {host}"),
        (name, None) => name.to_owned(),
    }
}

/// All URLs of a file, parsed; everything else about it that can be told without asking anybody.
pub(super) fn check(wanted: &Wanted) -> Result<Vec<Url>> {
    let urls = wanted.urls.iter().map(|url| parse(url)).collect::<Result<Vec<_>>>()?;
    let Some(first) = urls.first() else {
        return Err(Error::bug("a download without a URL"));
    };
    if let Some(sha256) = &wanted.sha256
        && (sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(Error::usage(
            "http.sha256",
            format!("the sha256 of {} is not 64 hexadecimal digits", shown(first.as_str())),
        )
        .help("take it from `sha256sum FILE`, or from where the file is published"));
    }
    if let Some(size) = wanted.size.filter(|size| *size > wanted.max) {
        return Err(too_long(first, size, wanted.max));
    }
    if wanted.sha256.is_none()
        && let Some(url) =
            urls.iter().find(|url| url.scheme() == "http" && !url.host_str().is_some_and(is_loopback))
    {
        return Err(Error::usage(
            "http.unverified",
            format!(
                "{} comes unencrypted and without a sha256: anybody on the way could exchange it",
                shown(url.as_str())
            ),
        )
        .help("use https, or add the sha256 of the file that you trust"));
    }
    Ok(urls)
}

/// The error for what is longer than it may be.
pub(super) fn too_long(url: &Url, size: u64, max: u64) -> Error {
    Error::failed(
        "http.too-long",
        format!("cannot download {}: it has {size} bytes, and at most {max} are taken", shown(url.as_str())),
    )    .help(
        "check that the URL leads to what is meant; if it is that long, say so: `max` of its `url`, as in max=\"2GiB\"",
    )
}

fn parse(text: &str) -> Result<Url> {
    let bad = |why: String| {
        Err(Error::usage("http.url", format!("{} is no URL to download from: {why}", shown(text))))
    };
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(e) => return bad(e.to_string()),
    };
    match url.scheme() {
        "http" | "https" => Ok(url),
        "file" => match path(&url) {
            Some(_) => Ok(url),
            None => bad("file URLs name an absolute path on this host".to_owned()),
        },
        other => bad(format!("{other}: is not read; http, https and file are")),
    }
}

/// The file that a `file:` URL names.
pub(super) fn path(url: &Url) -> Option<PathBuf> {
    // "localhost" is nobody else (RFC 8089); the parser has dropped it.
    if url.host_str().is_some() {
        return None;
    }
    url.to_file_path().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(url: &str) -> Wanted {
        Wanted { urls: vec![url.to_owned()], sha256: None, size: None, max: 100 }
    }

    #[test]
    fn secrets_of_a_url_are_not_shown() {
        let url = "https://user:hunter2@example.org/a/b.tar?token=hunter2#hunter2";
        assert_eq!(shown(url), "https://example.org/a/b.tar?…");
        assert!(!shown("htps//user:hunter2@x?hunter2").contains("unter2@"));
        assert!(!shown("http://[user:hunter2@x").contains("hunter2@x"));
    }

    #[test]
    fn only_http_https_and_file_are_taken() {
        for good in ["https://example.org/x", "file:///x/y", "file://localhost/x", "http://127.0.0.1:1/x"] {
            assert!(check(&wanted(good)).is_ok(), "{good}");
        }
        for bad in ["ftp://example.org/x", "x.tar", "", "file://elsewhere/x", "http://", "data:,x"] {
            assert_eq!(check(&wanted(bad)).unwrap_err().code(), "http.url", "{bad}");
        }
    }

    #[test]
    fn plain_http_needs_a_digest_except_from_this_host() {
        let far = wanted("http://example.org/x");
        assert_eq!(check(&far).unwrap_err().code(), "http.unverified");
        assert!(check(&Wanted { sha256: Some("0".repeat(64)), ..far }).is_ok());
        for near in ["http://localhost:8/x", "http://[::1]/x", "http://127.8.0.1/"] {
            assert!(check(&wanted(near)).is_ok(), "{near}");
        }
    }

    #[test]
    fn what_is_asked_for_has_to_make_sense() {
        let url = "https://example.org/x";
        assert_eq!(check(&Wanted { size: Some(101), ..wanted(url) }).unwrap_err().code(), "http.too-long");
        let odd = Wanted { sha256: Some("xyz".to_owned()), ..wanted(url) };
        assert_eq!(check(&odd).unwrap_err().code(), "http.sha256");
    }
}
