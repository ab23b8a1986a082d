//! What an unfinished download is part of, so that only more of the same is appended to it.

use super::Wanted;
use crate::digest::FieldHasher;
use fs_err as fs;
use reqwest::Url;
use reqwest::header::{DATE, ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Stands beside the bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// A digest of the URL: the URL itself may hold a password.
    url: String,
    /// What the server knows these very bytes by: a strong entity tag, or a time of change.
    validator: Option<String>,
    /// Of the whole file.
    pub total: Option<u64>,
    /// Bytes that nothing vouches for are not trusted across a power cut, which may leave holes in them.
    boot: String,
}

impl Origin {
    /// What an answer of 200 says.
    pub fn of(url: &Url, headers: &HeaderMap, total: Option<u64>) -> Origin {
        Origin { url: url_digest(url), validator: validator(headers), total, boot: boot() }
    }

    /// The note at `path`, if there is one that can be read.
    pub fn load(path: &Path) -> Option<Origin> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes the note. Without it the bytes are worthless, not wrong, so failing to is no error.
    pub fn save(&self, path: &Path) {
        if let Ok(json) = serde_json::to_vec(self) {
            let _ = fs::write(path, json);
        }
    }

    /// Whether bytes from here can be gone on with at `url`. With a digest all that arrives is checked in the end,
    /// and a mirror may continue what another one began; without one the server has to vouch for it.
    pub fn allows(&self, wanted: &Wanted, url: &Url) -> bool {
        wanted.sha256.is_some()
            || (self.url == url_digest(url) && self.validator.is_some() && self.boot == boot())
    }

    /// The value of If-Range for `url`.
    pub fn if_range(&self, url: &Url) -> Option<HeaderValue> {
        if self.url != url_digest(url) {
            return None;
        }
        HeaderValue::from_str(self.validator.as_deref()?).ok()
    }

    /// Whether an answer of 206 belongs to the same bytes, as far as it says.
    pub fn matches(&self, url: &Url, headers: &HeaderMap, total: Option<u64>) -> bool {
        let same_total = self.total.is_none() || total.is_none() || self.total == total;
        let same_tag = match (&self.validator, text(headers, ETAG)) {
            (Some(ours), Some(theirs)) if ours.starts_with('"') && self.url == url_digest(url) => {
                *ours == theirs
            }
            _ => true,
        };
        same_total && same_tag
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Only what RFC 9110 (8.8.1, 8.8.2.2) calls strong: weak tags stand for several contents.
fn validator(headers: &HeaderMap) -> Option<String> {
    if let Some(tag) = text(headers, ETAG).filter(|tag| tag.starts_with('"')) {
        return Some(tag.to_owned());
    }
    let modified = text(headers, LAST_MODIFIED)?;
    let at = httpdate::parse_http_date(modified).ok()?;
    let now = text(headers, DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    // Times are in whole seconds: what changed just now may change again within the same one.
    let age = now.unwrap_or_else(SystemTime::now).duration_since(at).ok()?;
    (age > Duration::from_secs(1)).then(|| modified.to_owned())
}

fn url_digest(url: &Url) -> String {
    FieldHasher::new("firegopher url v1").field(url.as_str()).finish().to_hex().to_string()
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn only_strong_validators_count() {
        let some = |pairs: &[_]| validator(&headers(pairs));
        assert_eq!(some(&[("etag", "\"x\"")]).as_deref(), Some("\"x\""));
        assert_eq!(some(&[("etag", "W/\"x\"")]), None);
        let then = "Tue, 01 Jul 2025 10:00:00 GMT";
        assert_eq!(some(&[("last-modified", then), ("date", then)]), None, "it may still be changing");
        let later = ("date", "Tue, 01 Jul 2025 10:01:00 GMT");
        assert_eq!(some(&[("last-modified", then), later]).as_deref(), Some(then));
        assert_eq!(some(&[("etag", "W/\"x\""), ("last-modified", then), later]).as_deref(), Some(then));
        assert_eq!(some(&[]), None);
    }

    #[test]
    fn without_a_digest_only_the_same_server_may_go_on() {
        let url = Url::parse("https://a.example.org/x").unwrap();
        let other = Url::parse("https://b.example.org/x").unwrap();
        let blind = Wanted { urls: vec![], sha256: None, size: None, max: 1 };
        let known = Wanted { sha256: Some("0".repeat(64)), ..blind.clone() };
        let tagged = Origin::of(&url, &headers(&[("etag", "\"x\"")]), None);
        assert!(
            tagged.allows(&blind, &url) && !tagged.allows(&blind, &other) && tagged.allows(&known, &other)
        );
        assert!(!Origin::of(&url, &headers(&[]), None).allows(&blind, &url));
        let before_power_cut = Origin { boot: "other".to_owned(), ..tagged.clone() };
        assert!(!before_power_cut.allows(&blind, &url));
        assert_eq!(tagged.if_range(&other), None);
    }
}
