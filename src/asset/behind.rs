//! What is behind an error of the HTTP client.

use std::error::Error as StdError;

/// How looking a host's name up failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Whoever was asked says that there is no such name.
    NoSuchHost,
    /// Nobody could say: that may pass.
    NoAnswer,
}

/// Whether an error is about a host's name, and in what way.
pub(super) fn lookup(error: &reqwest::Error) -> Option<Lookup> {
    // Its type says that it is about a name. Whether there is none, only the C library's words tell, for std keeps no
    // number of getaddrinfo's. They are English in every locale: no Rust program asks for another one.
    const NO_SUCH_HOST: [&str; 3] = [
        "Name or service not known",           // EAI_NONAME of glibc
        "No address associated with hostname", // EAI_NODATA of glibc
        "Name does not resolve",               // EAI_NONAME of musl
    ];
    error.is_dns().then(|| {
        let words = root_cause(error);
        match NO_SUCH_HOST.iter().any(|known| words.contains(known)) {
            true => Lookup::NoSuchHost,
            false => Lookup::NoAnswer,
        }
    })
}

/// The innermost message.
pub(super) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

/// An error and all that is behind it, outermost first.
pub(super) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let next = |e: &&'a (dyn StdError + 'static)| -> Option<&'a (dyn StdError + 'static)> {
        let e = *e;
        match e.downcast_ref::<std::io::Error>() {
            // Its `source` passes over what it wraps.
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => e.source(),
        }
    };
    std::iter::successors(Some(error), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A resolver whose answer is this error.
    struct Fails(&'static str);

    impl reqwest::dns::Resolve for Fails {
        fn resolve(&self, _name: reqwest::dns::Name) -> reqwest::dns::Resolving {
            let words = format!("failed to lookup address information: {}", self.0);
            Box::pin(async move { Err(std::io::Error::other(words).into()) })
        }
    }

    fn asked(resolver: Option<&'static str>, url: &str) -> reqwest::Error {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut builder = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls);
        if let Some(words) = resolver {
            builder = builder.dns_resolver(std::sync::Arc::new(Fails(words)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(builder.build().unwrap().get(url).send()).unwrap_err()
    }

    #[test]
    fn a_name_that_is_not_there_differs_from_a_name_server_that_is_not() {
        let url = "http://somewhere.invalid/";
        let of = |words| lookup(&asked(Some(words), url));
        assert_eq!(of("Name or service not known"), Some(Lookup::NoSuchHost));
        assert_eq!(of("Name does not resolve"), Some(Lookup::NoSuchHost));
        assert_eq!(of("Temporary failure in name resolution"), Some(Lookup::NoAnswer));
        // The words alone prove nothing.
        let refused = asked(None, "http://127.0.0.1:1/Name%20or%20service%20not%20known");
        assert!(refused.is_connect());
        assert_eq!(lookup(&refused), None);
    }

    #[test]
    fn the_hosts_own_resolver_is_understood() {
        // Reserved never to exist (RFC 6761); a host without a name server cannot say so.
        assert!(lookup(&asked(None, "http://no-such-host.invalid/")).is_some());
    }
}
