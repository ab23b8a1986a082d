//! One transfer: asks one URL for what is missing and moves the answer into the sink.

use super::client::{Asker, retry_after, silent};
use super::failure::Failure;
use super::resume::Origin;
use super::sink::Sink;
use super::url::{label, path};
use super::{Wanted, client};
use crate::asset::{Progress, room};
use crate::error::Error;
use crate::store::Partial;
use hyper::body::Bytes;
use reqwest::header::{
    CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, IF_RANGE, RANGE, TRANSFER_ENCODING,
};
use reqwest::{Response, StatusCode, Url};
use std::io::Read;
use tokio::sync::watch;

/// A download under way, over all its transfers.
pub(super) struct State<'a> {
    pub wanted: &'a Wanted,
    pub progress: &'a dyn Progress,
    pub shared: &'a client::Shared,
    pub asker: Asker<'a>,
    pub partial: &'a Partial,
    pub sink: Sink,
    /// What the sink holds is part of; nothing if it is empty.
    pub origin: Option<Origin>,
    /// The sink's bytes are not all of one answer.
    pub pieced: bool,
    /// Progress was told of this download.
    pub told: bool,
    pub stop: watch::Receiver<bool>,
}

/// How a transfer went that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The sink holds everything that the server has.
    Whole,
    /// Another download failed, and this one shall end.
    Stopped,
}

enum Answer {
    /// The file, or what the sink lacks of it.
    Body(Response),
    /// The sink had everything.
    Complete,
    /// What the sink holds is of no use here.
    Useless,
}

impl State<'_> {
    /// Tries one URL once.
    pub async fn transfer(&mut self, url: &Url) -> Result<Ended, Failure> {
        if url.scheme() == "file" {
            return self.copy(url);
        }
        if self.sink.len() > 0 && !self.origin.as_ref().is_some_and(|o| o.allows(self.wanted, url)) {
            self.restart()?;
        }
        let mut stop = self.stop.clone();
        let answer = tokio::select! {
            answer = self.ask(url) => answer?,
            _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
        };
        let response = match answer {
            Answer::Complete => return Ok(Ended::Whole),
            Answer::Body(response) => response,
            Answer::Useless => {
                self.restart()?;
                match self.ask(url).await? {
                    Answer::Body(response) => response,
                    Answer::Complete => return Ok(Ended::Whole),
                    Answer::Useless => {
                        return Err(Failure::passing(
                            "http.broken",
                            url,
                            "its answers contradict each other",
                        ));
                    }
                }
            }
        };
        tokio::select! {
            moved = self.receive(url, response) => moved.map(|()| Ended::Whole),
            _ = stop.wait_for(|stop| *stop) => Ok(Ended::Stopped),
        }
    }

    /// Throws away what has arrived.
    pub fn restart(&mut self) -> Result<(), Failure> {
        (self.origin, self.pieced) = (None, false);
        // First of all: what comes next must never pass for what came before.
        let _ = std::fs::remove_file(self.partial.note());
        self.sink.restart().map_err(Failure::ours)
    }

    async fn ask(&mut self, url: &Url) -> Result<Answer, Failure> {
        let have = self.sink.len();
        let mut headers = HeaderMap::new();
        if let Some(origin) = self.origin.as_ref().filter(|_| have > 0) {
            let range = HeaderValue::from_str(&format!("bytes={have}-"));
            headers.insert(RANGE, range.expect("invariant: a number is a header's value"));
            if let Some(validator) = origin.if_range(url) {
                headers.insert(IF_RANGE, validator);
            }
        }
        let response = self.asker.get(url, &headers).await?;
        match (response.status(), &self.origin) {
            (StatusCode::OK, _) => {
                if have > 0 {
                    self.restart()?;
                }
                let total = length(&response);
                self.check_length(url, &response, total)?;
                let origin = Origin::of(url, response.headers(), total);
                origin.save(&self.partial.note());
                self.origin = Some(origin);
                Ok(Answer::Body(response))
            }
            (StatusCode::PARTIAL_CONTENT, Some(origin)) if have > 0 => {
                let (start, total) = content_range(&response);
                if start != Some(have) || !origin.matches(url, response.headers(), total) {
                    return Ok(Answer::Useless);
                }
                let rest = length(&response).and_then(|rest| rest.checked_add(have));
                self.check_length(url, &response, total.or(rest))?;
                if let Some(origin) = &mut self.origin {
                    origin.total = origin.total.or(total).or(rest);
                }
                self.pieced = true;
                Ok(Answer::Body(response))
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) if have > 0 => {
                let (_, total) = content_range(&response);
                Ok(if total == Some(have) { Answer::Complete } else { Answer::Useless })
            }
            (status, _) if status.is_success() => {
                Err(Failure::lasting("http.status", url, format!("the server answers {status}")))
            }
            (status, _) => Err(Failure::status(status, retry_after(&response), url)),
        }
    }

    /// Refuses what is too long or has another length than it should, and what would not fit on the disk, before
    /// any of it moves.
    fn check_length(&self, url: &Url, response: &Response, total: Option<u64>) -> Result<(), Failure> {
        let Some(total) = total else {
            let ends_by_itself = response.headers().contains_key(TRANSFER_ENCODING);
            if self.wanted.sha256.is_none() && self.wanted.size.is_none() && !ends_by_itself {
                let why = "the server does not say how long it is, so nobody could tell if it is all there";
                return Err(Failure::lasting("http.no-length", url, why).help("give its sha256"));
            }
            return Ok(());
        };
        if let Some(size) = self.wanted.size.filter(|size| *size != total) {
            return Err(other_size(url, size, total));
        }
        if total > self.wanted.max {
            return Err(Failure::too_long(url, total, self.wanted.max));
        }
        self.check_room(total.saturating_sub(self.sink.len()))
    }

    fn check_room(&self, bytes: u64) -> Result<(), Failure> {
        let path = self.partial.bytes();
        room::check(path.parent().unwrap_or(&path), bytes).map_err(Failure::ours)
    }

    async fn receive(&mut self, url: &Url, mut response: Response) -> Result<(), Failure> {
        let total = self.origin.as_ref().and_then(|o| o.total);
        self.tell(url, total);
        let stall = self.shared.settings.stall;
        loop {
            let piece = match tokio::time::timeout(stall, response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => break,
                Ok(Err(e)) => return Err(self.flushed(Failure::client(e, url))),
                Err(_) => return Err(self.flushed(silent(url, stall))),
            };
            self.push(url, piece)?;
        }
        self.sink.flush().map_err(Failure::ours)?;
        match total {
            Some(total) if self.sink.len() < total => {
                let why = format!("the connection ended after {} of {total} bytes", self.sink.len());
                Err(Failure::passing("http.broken", url, why)
                    .help("run it again: it goes on where it stopped, if the server allows"))
            }
            _ => Ok(()),
        }
    }

    /// What has arrived is worth keeping, whatever else went wrong.
    fn flushed(&mut self, failure: Failure) -> Failure {
        match self.sink.flush() {
            Ok(()) => failure,
            Err(e) => Failure::ours(e),
        }
    }

    fn push(&mut self, url: &Url, piece: Bytes) -> Result<(), Failure> {
        let length = self.sink.len().saturating_add(piece.len() as u64);
        if let Some(size) = self.wanted.size.filter(|size| length > *size) {
            return Err(other_size(url, size, length));
        }
        if length > self.wanted.max {
            return Err(Failure::too_long(url, length, self.wanted.max));
        }
        self.progress.advance(piece.len() as u64);
        self.sink.push(piece).map_err(Failure::ours)
    }

    /// Begins a bar, or a new one after starting over.
    fn tell(&mut self, url: &Url, total: Option<u64>) {
        if !self.told || self.sink.len() == 0 {
            self.told = true;
            self.progress.start(&format!("downloading {}", label(url)), total);
            self.progress.advance(self.sink.len());
        }
    }

    /// A `file:` URL.
    fn copy(&mut self, url: &Url) -> Result<Ended, Failure> {
        self.restart()?;
        let failed = |e: std::io::Error| Failure::lasting("http.file", url, e).help("check the path");
        let from = path(url)
            .ok_or_else(|| Failure::ours(Error::bug("a file URL without a path passed the check")))?;
        // fs::metadata first: opening a pipe would wait for its other end.
        let meta = std::fs::metadata(&from).map_err(failed)?;
        if !meta.is_file() {
            return Err(Failure::lasting("http.file", url, "it is no regular file"));
        }
        if let Some(size) = self.wanted.size.filter(|size| *size != meta.len()) {
            return Err(other_size(url, size, meta.len()));
        }
        if meta.len() > self.wanted.max {
            return Err(Failure::too_long(url, meta.len(), self.wanted.max));
        }
        self.check_room(meta.len())?;
        let mut file = std::fs::File::open(&from).map_err(failed)?;
        self.tell(url, Some(meta.len()));
        loop {
            let mut piece = vec![0; 256 << 10];
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(got) => piece.truncate(got),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(e)),
            }
            self.push(url, piece.into())?;
            if *self.stop.borrow() {
                return Ok(Ended::Stopped);
            }
        }
        self.sink.flush().map_err(Failure::ours)?;
        Ok(Ended::Whole)
    }
}

/// The error for another length than was asked for.
pub(super) fn other_size(url: &Url, wanted: u64, found: u64) -> Failure {
    Failure::lasting("http.size", url, format!("it has {found} bytes where {wanted} were expected")).help(
        "the file has changed, or is not the one that was meant: `firegopher update` pins what is there now",
    )
}

fn length(response: &Response) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// `bytes START-END/TOTAL` or `bytes */TOTAL`.
fn content_range(response: &Response) -> (Option<u64>, Option<u64>) {
    let parse = || {
        let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let start = range.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
        Some((start, total.trim().parse().ok()))
    };
    parse().unwrap_or((None, None))
}
