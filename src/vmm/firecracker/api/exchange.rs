//! One request and its answer over a unix socket.

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use std::path::Path;
use tokio::net::UnixStream;

/// Far more than any answer of Firecracker's API.
const MAX_ANSWER: usize = 1 << 20;

/// What came back.
pub(super) struct Answer {
    /// 2xx.
    pub ok: bool,
    pub body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("the connection broke")]
    Http(#[from] hyper::Error),
    #[error("the answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    #[error("the answer broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the request makes no sense")]
    Request(#[from] hyper::http::Error),
}

impl Failure {
    /// Whether nobody is there, as against somebody who answers nonsense.
    pub fn is_about_the_socket(&self) -> bool {
        match self {
            Failure::Connect(_) => true,
            Failure::Http(e) => {
                e.is_closed() || e.is_canceled() || e.is_incomplete_message() || !e.is_parse()
            }
            _ => false,
        }
    }
}

/// Sends a request and reads the whole answer. The caller bounds the time.
pub(super) async fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Answer, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(Failure::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json");
    let request = match body {
        Some(body) => {
            request.header(header::CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body)))?
        }
        None => request.body(Full::default())?,
    };
    let talk = async {
        let response = sender.send_request(request).await?;
        let ok = response.status().is_success();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| if e.is::<LengthLimitError>() { Failure::TooLong } else { Failure::Body(e) })?;
        Ok(Answer { ok, body: body.to_bytes().to_vec() })
    };
    // The connection has to be driven beside the request. Its own end is reported by the request as well.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = talk => answer,
        () = drive => unreachable!("it never ends"),
    }
}
