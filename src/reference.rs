//! References of container images, and which hosts are this one: what manifests and registries read alike.

use crate::lock::is_digest;
use oci_spec::distribution::Reference;

/// A reference as people write it: `nginx`, `ghcr.io/owner/image:tag`, `localhost:5000/app@sha256:…`.
///
/// # Errors
/// What is wrong with it, to stand after a colon.
pub fn parse(text: &str) -> Result<Reference, String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!("leave {scheme}:// out: {rest}"));
    }
    let reference: Reference = text.parse().map_err(|e| {
        // The pattern of the parser knows no reason.
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            "names are written in lower case".to_owned()
        } else {
            format!("{e}")
        }
    })?;
    match reference.digest() {
        Some(digest) if !is_digest(digest) => {
            Err(format!("the digest {digest} is neither of the kind sha256 nor sha512"))
        }
        _ => Ok(reference),
    }
}

/// Whether a host name or address is this machine by definition, whatever a name server says.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
