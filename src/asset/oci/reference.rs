//! Image references as people write them: `nginx`, `ghcr.io/owner/image:tag`, `localhost:5000/app@sha256:…`.

use super::image::{digest_like, is_of};
use crate::error::{Error, Result};
use crate::reference::{self, is_loopback};
use oci_spec::distribution::Reference;
use reqwest::Url;

/// What answers for docker.io.
const HUB: &str = "registry-1.docker.io";

/// An image of a registry.
#[derive(Debug, Clone)]
pub(super) struct Place {
    reference: Reference,
}

/// The full form of a reference: with registry, and with the tag `latest` where neither tag nor digest is given.
///
/// # Errors
/// What is wrong with it, to stand after a colon.
pub fn full_reference(text: &str) -> std::result::Result<String, String> {
    Ok(Place::parse_text(text)?.shown())
}

impl Place {
    pub fn parse(text: &str) -> Result<Self> {
        Place::parse_text(text).map_err(|why| {
            Error::usage("oci.reference", format!("{text:?} names no image of a registry: {why}"))
                .help("write it as for `docker pull`: [REGISTRY/]NAME[:TAG][@sha256:DIGEST]")
        })
    }

    fn parse_text(text: &str) -> std::result::Result<Self, String> {
        reference::parse(text).map(|reference| Place { reference })
    }

    /// The full reference.
    pub fn shown(&self) -> String {
        self.reference.whole()
    }

    /// The registry's name as people and login files write it.
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    pub fn repository(&self) -> &str {
        self.reference.repository()
    }

    /// The digest that the reference demands.
    pub fn digest(&self) -> Option<&str> {
        self.reference.digest()
    }

    /// The digest or the tag to ask for.
    pub fn version(&self) -> &str {
        self.digest().or(self.reference.tag()).unwrap_or("latest")
    }

    /// Whether the registry is on this machine, where plain http is fine.
    pub fn is_loopback(&self) -> bool {
        let registry = self.registry();
        is_loopback(registry.rsplit_once(':').map_or(registry, |(host, _)| host))
    }

    /// Whether the registry may lead us to an address: by https, or, as it is on this machine itself, to another
    /// server on it.
    pub fn may_lead_to(&self, url: &Url) -> bool {
        match url.scheme() {
            "https" => true,
            "http" => self.is_loopback() && url.host_str().is_some_and(is_loopback),
            _ => false,
        }
    }

    /// The address of something in the repository.
    pub fn url(&self, rest: &str) -> String {
        let scheme = if self.is_loopback() { "http" } else { "https" };
        let host = if self.registry() == "docker.io" { HUB } else { self.registry() };
        format!("{scheme}://{host}/v2/{}/{rest}", self.repository())
    }

    /// The names under which login files may keep a login for this image, the most specific first.
    pub fn login_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut name = format!("{}/{}", self.registry(), self.repository());
        while let Some((shorter, _)) = name.rsplit_once('/') {
            let shorter = shorter.to_owned();
            names.push(std::mem::replace(&mut name, shorter));
        }
        names.push(name);
        if self.registry() == "docker.io" {
            // What `docker login` writes.
            names.push("https://index.docker.io/v1/".to_owned());
        }
        names
    }

    /// Whether a document is the one that the reference demands.
    pub fn check_digest(&self, bytes: &[u8]) -> std::result::Result<(), String> {
        match self.digest() {
            Some(digest) if !is_of(digest, bytes) => Err(digest_like(digest, bytes)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_references_mean_what_docker_means() {
        let sha = format!("sha256:{}", "0a".repeat(32));
        for (text, full, url) in [
            (
                "nginx",
                "docker.io/library/nginx:latest".to_owned(),
                "https://registry-1.docker.io/v2/library/nginx/x",
            ),
            (
                "owner/app:1.0",
                "docker.io/owner/app:1.0".into(),
                "https://registry-1.docker.io/v2/owner/app/x",
            ),
            (
                "reg.example.org/a/b/c",
                "reg.example.org/a/b/c:latest".into(),
                "https://reg.example.org/v2/a/b/c/x",
            ),
            ("localhost:5000/app:t", "localhost:5000/app:t".into(), "http://localhost:5000/v2/app/x"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest".into(), "http://127.0.0.1:5000/v2/app/x"),
            (
                &format!("app@{sha}"),
                format!("docker.io/library/app@{sha}"),
                "https://registry-1.docker.io/v2/library/app/x",
            ),
        ] {
            let place = Place::parse(text).unwrap();
            assert_eq!(place.shown(), full);
            assert_eq!(place.url("x"), url);
            assert_eq!(full_reference(&full).unwrap(), full);
        }
        assert_eq!(Place::parse(&format!("a:t@{sha}")).unwrap().version(), sha);
    }

    #[test]
    fn what_is_no_reference_says_why() {
        for (text, why) in [
            ("", "at least one component"),
            ("docker://nginx", "leave docker:// out"),
            ("Nginx", "lower case"),
            ("a b", "invalid"),
            ("a/../b", "invalid"),
            ("app@sha256:00", "invalid"),
            (&format!("app@sha512:{}", "0A".repeat(64)), "sha512"),
        ] {
            let error = Place::parse(text).unwrap_err();
            assert_eq!(error.code(), "oci.reference");
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn logins_are_looked_up_from_the_image_to_its_registry() {
        let names = Place::parse("reg.example.org/a/b").unwrap().login_names();
        assert_eq!(names, ["reg.example.org/a/b", "reg.example.org/a", "reg.example.org"]);
        let hub = Place::parse("nginx").unwrap().login_names();
        assert_eq!(hub.last().unwrap(), "https://index.docker.io/v1/");
    }
}
