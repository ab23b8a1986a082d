//! The tests' web server over TLS, with a certificate of its own making.

use super::web::{Reply, Request, Server, Stream};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// What a connection is inside.
struct Tls(rustls::StreamOwned<rustls::ServerConnection, TcpStream>);

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Stream for Tls {
    fn set_patience(&self, time: Duration) -> std::io::Result<()> {
        self.0.sock.set_read_timeout(Some(time))
    }
}

/// A server on loopback that shows a certificate for `name`, and that certificate.
pub fn server(
    name: &str,
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> (Server, rcgen::Certificate) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let wrap = move |stream| -> Box<dyn Stream> {
        let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        Box::new(Tls(rustls::StreamOwned::new(session, stream)))
    };
    (Server::start_with("https", Box::new(wrap), answer), made.cert)
}
