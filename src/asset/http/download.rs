//! One file's download: mirrors in order, again after failures that pass, verified, published.

use super::client::{Asker, Shared};
use super::failure::{Failure, Next};
use super::resume::Origin;
use super::sink::{Hashed, Sink};
use super::transfer::{Ended, State, other_size};
use super::url::shown;
use super::{Fetched, Wanted};
use crate::asset::Progress;
use crate::digest::{FieldHasher, StepKey};
use crate::error::{Error, Result};
use crate::store::{Action, Partial, Store};
use reqwest::Url;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// As much as has to arrive for a broken transfer to be gone on with at once.
const ADVANCE: u64 = 64 << 10;

/// One file to download.
pub(super) struct Job<'a> {
    pub store: &'a Store,
    pub wanted: &'a Wanted,
    pub urls: &'a [Url],
    pub progress: &'a dyn Progress,
    pub shared: &'a Shared,
}

impl Job<'_> {
    /// Downloads it; nothing if it was stopped.
    pub fn run(&self, stop: watch::Receiver<bool>) -> Result<Option<Fetched>> {
        if let Some(found) = known(self.store, self.wanted)? {
            return Ok(Some(found));
        }
        let key = partial_key(self.wanted);
        let waiting = |who: &str| self.progress.note(&format!("waiting for {who}, which downloads the same"));
        let partial = self.store.partial(&key, &waiting)?;
        // Whoever had it may have finished it.
        if let Some(found) = known(self.store, self.wanted)? {
            partial.discard();
            return Ok(Some(found));
        }
        let begin = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::failed("http.client", "cannot prepare for downloads").because(e))?;
        let done = runtime.block_on(self.download(&partial, stop));
        self.progress.end();
        // Not waiting for a name server that takes its time.
        runtime.shutdown_background();
        match done {
            Ok(Some((hashed, url))) => {
                partial.publish(self.store, &hashed.blake3)?;
                let fetched = Fetched {
                    object: hashed.blake3,
                    sha256: hashed.sha256,
                    size: hashed.size,
                    url: self.wanted.urls[url].clone(),
                };
                self.record(&fetched, begin.elapsed())?;
                partial.discard();
                Ok(Some(fetched))
            }
            Ok(None) => Ok(None),
            Err(e) => {
                let empty = std::fs::metadata(partial.bytes()).is_ok_and(|meta| meta.len() == 0);
                // On a full disk it would be in everybody's way.
                if empty || e.code() == "store.disk-full" {
                    partial.discard();
                }
                Err(e)
            }
        }
    }

    async fn download(
        &self,
        partial: &Partial,
        stop: watch::Receiver<bool>,
    ) -> Result<Option<(Hashed, usize)>> {
        let mut state = self.resume(partial, stop)?;
        if let Some(hashed) = self.was_complete(&mut state)? {
            return Ok(Some((hashed, 0)));
        }
        let settings = &self.shared.settings;
        // Of each URL the last failure, and whether it is of use any more.
        let mut failures: Vec<Option<Failure>> = self.urls.iter().map(|_| None).collect();
        for round in 0..settings.rounds {
            // The least that any of them asks for.
            let mut asked: Option<Option<Duration>> = None;
            for (index, url) in self.urls.iter().enumerate() {
                if matches!(&failures[index], Some(f) if f.next == Next::OtherUrl) {
                    continue;
                }
                match self.try_url(&mut state, url).await {
                    Ok(Some(hashed)) => return Ok(Some((hashed, index))),
                    Ok(None) => return Ok(None),
                    Err(failure) => {
                        match failure.next {
                            Next::Nothing => return Err(*failure.error),
                            Next::Again(after) => {
                                asked = Some(asked.map_or(after, |before| before.min(after)))
                            }
                            Next::OtherUrl => {}
                        }
                        failures[index] = Some(failure);
                    }
                }
            }
            let alive = failures.iter().flatten().find(|f| f.next != Next::OtherUrl);
            let Some(failure) = alive.filter(|_| round + 1 < settings.rounds) else { break };
            let Some(pause) = settings.pause_after(round, asked.flatten()) else { break };
            self.progress.note(&format!("{}; trying again in {:.1} s", failure.error, pause.as_secs_f32()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = state.stop.wait_for(|stop| *stop) => return Ok(None),
            }
        }
        Err(Failure::combine(failures.into_iter().flatten().collect()))
    }

    /// What has arrived before, if it can be told what it is part of.
    fn resume<'a>(&'a self, partial: &'a Partial, stop: watch::Receiver<bool>) -> Result<State<'a>> {
        let origin = Origin::load(&partial.note());
        let useful = origin.as_ref().is_some_and(|o| self.urls.iter().any(|url| o.allows(self.wanted, url)));
        if !useful {
            // Before it is hashed for nothing.
            let _ = std::fs::remove_file(partial.bytes());
        }
        let sink = Sink::open(&partial.bytes())?;
        let pieced = sink.len() > 0;
        let origin = origin.filter(|_| pieced);
        if pieced {
            self.progress.note(&format!(
                "going on with {} after {} bytes",
                shown(self.urls[0].as_str()),
                sink.len()
            ));
        }
        Ok(State {
            wanted: self.wanted,
            progress: self.progress,
            shared: self.shared,
            asker: Asker::new(self.shared),
            partial,
            sink,
            origin,
            pieced,
            told: false,
            stop,
        })
    }

    /// Whether a process before us had received everything and only not published it.
    fn was_complete(&self, state: &mut State<'_>) -> Result<Option<Hashed>> {
        let total = self.wanted.size.or(state.origin.as_ref().and_then(|o| o.total));
        if self.wanted.sha256.is_none() || state.sink.len() == 0 || total.is_none_or(|t| state.sink.len() < t)
        {
            return Ok(None);
        }
        let hashed = state.sink.finish()?;
        if self.is_wanted(&hashed) {
            return Ok(Some(hashed));
        }
        state.restart().map_err(|f| *f.error)?;
        Ok(None)
    }

    /// Tries one URL for as long as it brings something new.
    async fn try_url(&self, state: &mut State<'_>, url: &Url) -> Result<Option<Hashed>, Failure> {
        let mut furthest = state.sink.len();
        loop {
            match state.transfer(url).await {
                Ok(Ended::Stopped) => return Ok(None),
                Ok(Ended::Whole) => {}
                Err(failure) => {
                    let length = state.sink.len();
                    if !matches!(failure.next, Next::Again(_)) || length < furthest + ADVANCE {
                        return Err(failure);
                    }
                    furthest = length;
                    self.progress.note(&format!("{}; going on", failure.error));
                    continue;
                }
            }
            let pieced = state.pieced;
            let hashed = state.sink.finish().map_err(Failure::ours)?;
            if self.is_wanted(&hashed) {
                return Ok(Some(hashed));
            }
            state.restart()?;
            if !pieced {
                return Err(self.unwanted(url, &hashed));
            }
            // Parts of different files, perhaps: the whole from one answer tells.
            self.progress.note(&format!("{} has changed meanwhile; starting over", shown(url.as_str())));
        }
    }

    fn is_wanted(&self, hashed: &Hashed) -> bool {
        let right =
            self.wanted.sha256.as_ref().is_none_or(|sha256| sha256.eq_ignore_ascii_case(&hashed.sha256));
        let sized = self.wanted.size.is_none_or(|size| size == hashed.size);
        right && sized && (1..=self.wanted.max).contains(&hashed.size)
    }

    fn unwanted(&self, url: &Url, hashed: &Hashed) -> Failure {
        if let Some(size) = self.wanted.size.filter(|size| *size != hashed.size) {
            return other_size(url, size, hashed.size);
        }
        if hashed.size == 0 {
            return Failure::lasting("http.empty", url, "it has no bytes at all".to_owned())
                .help("the address may be a page that hands out nothing: look at it with `curl -IL`");
        }
        let wanted = self.wanted.sha256.as_deref().unwrap_or_default();
        let why = format!("its sha256 is {}, not {}", hashed.sha256, wanted.to_ascii_lowercase());
        // A pin says the size, too; the manifest's digest comes alone.
        Failure::lasting("http.digest", url, why).help(match self.wanted.size {
            Some(_) => {
                "if its source is trusted, `firegopher update` pins what it serves now; else find out who changed it"
            }
            None => {
                "if its source is trusted, write this sha256 into the manifest; else find out who changed the file"
            }
        })
    }

    fn record(&self, fetched: &Fetched, took: Duration) -> Result<()> {
        let inputs = inputs(&fetched.url, &fetched.sha256);
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let action =
            Action { kind: "url".to_owned(), output: fetched.object, inputs, millis, subject: String::new() };
        self.store.record(&file_key(&fetched.sha256), &action)
    }
}

/// What the store has by its SHA-256. An error if it is known to be something else than is wanted.
pub(super) fn known(store: &Store, wanted: &Wanted) -> Result<Option<Fetched>> {
    let Some(sha256) = wanted.sha256.as_ref().map(|sha256| sha256.to_ascii_lowercase()) else {
        return Ok(None);
    };
    let Some(action) = store.action(&file_key(&sha256)) else { return Ok(None) };
    let Ok(meta) = std::fs::metadata(store.object_path(&action.output)) else { return Ok(None) };
    let url = wanted.urls.first().cloned().unwrap_or_default();
    if let Some(size) = wanted.size.filter(|size| *size != meta.len()) {
        let message =
            format!("the file with the sha256 {sha256} has {} bytes where {size} were expected", meta.len());
        return Err(Error::failed("http.size", message)
            .help("size and sha256 do not belong together: `firegopher update` pins both anew"));
    }
    Ok(Some(Fetched { object: action.output, sha256, size: meta.len(), url }))
}

/// What a record says of a file.
pub(super) fn inputs(url: &str, sha256: &str) -> Vec<(String, String)> {
    vec![("url".to_owned(), shown(url)), ("sha256".to_owned(), sha256.to_owned())]
}

/// Of the record that leads from a file's SHA-256 to its object.
pub(super) fn file_key(sha256: &str) -> StepKey {
    FieldHasher::new("firegopher url file v1").field(sha256).finish().into()
}

/// Files that are the same if they arrive: by their digest, else by where they are.
fn partial_key(wanted: &Wanted) -> StepKey {
    let mut hasher = FieldHasher::new("firegopher partial v1");
    match &wanted.sha256 {
        Some(sha256) => _ = hasher.field("sha256").field(sha256.to_ascii_lowercase()),
        None => wanted.urls.iter().for_each(|url| _ = hasher.field("url").field(url)),
    }
    hasher.finish().into()
}
