//! One layer's download: verified while it arrives, gone on with where a connection broke or a process was killed.

use super::blob::Intake;
use super::reference::Place;
use super::registry::Registry;
use super::settings::Settings;
use super::trouble::{Trouble, What};
use crate::asset::progress::Progress;
use crate::error::{Error, Result};
use crate::lock::Layer;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;

const NOT_OURS: &str =
    "somebody on the way or the registry itself changes it: do not use it before you know who";

/// A layer on its way.
pub(super) struct Download<'a> {
    pub registry: &'a Registry<'a>,
    pub place: &'a Place,
    pub settings: &'a Settings,
    pub layer: &'a Layer,
    pub progress: &'a dyn Progress,
    /// How far progress was told. After a restart the same bytes come again, and a bar does not go back.
    pub told: u64,
}

impl Download<'_> {
    /// Fills the intake and publishes it.
    pub async fn run(&mut self, intake: &mut Intake<'_>) -> Result<()> {
        // Bytes of an earlier process: what is wrong with the whole may be wrong with those.
        let mut pieced = intake.got() > 0;
        self.tell(intake);
        loop {
            self.complete(intake).await?;
            match intake.finish()? {
                Ok(_) => return Ok(()),
                Err(_) if pieced => {
                    self.progress
                        .note(&format!("a layer of {} was damaged; starting over", self.place.shown()));
                    pieced = false;
                }
                Err(why) => {
                    return Err(Error::failed(
                        "oci.digest",
                        format!(
                            "the registry {} serves a layer of {} that is not what its manifest names ({}): {why}",
                            self.place.registry(),
                            self.place.shown(),
                            self.layer.digest
                        ),
                    )
                    .help(NOT_OURS));
                }
            }
        }
    }

    /// Receives until everything is there, with pauses after what may pass.
    async fn complete(&mut self, intake: &mut Intake<'_>) -> Result<()> {
        let mut tried = 0;
        while intake.got() < self.layer.size {
            tried += 1;
            let before = intake.got();
            let received = self.receive(intake).await;
            intake.flush()?;
            let Err(trouble) = received else { return Ok(()) };
            if intake.got() > before {
                // It does move: only standing still uses the tries up.
                tried = 1;
            }
            trouble.pause(tried, self.settings, self.progress).await?;
        }
        Ok(())
    }

    /// Receives what is missing, in one answer.
    async fn receive(&mut self, intake: &mut Intake<'_>) -> Result<(), Trouble> {
        let Download { registry, place, layer, .. } = *self;
        let rest = format!("blobs/{}", layer.digest);
        let mut response = registry.get(&rest, What::Blob, "*/*", intake.got()).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // What we have is all that it has, or is not of what it has: the whole in one answer tells.
            if let Some(size) = whole(&response).filter(|size| *size < layer.size) {
                return Err(self.too_short(intake, size));
            }
            intake.restart().map_err(Trouble::lasting)?;
            let message = format!("the registry {} cannot go on with {}", place.registry(), place.shown());
            return Err(Trouble::passing(Error::failed("oci.unreachable", message)));
        }
        if intake.got() > 0 && !continues(&response, intake.got()) {
            intake.restart().map_err(Trouble::lasting)?;
        }
        let length = response.content_length();
        if length.is_some_and(|length| !intake.fits(length)) {
            return Err(self.too_long(intake));
        }
        if let Some(size) = length.and_then(|length| length.checked_add(intake.got()))
            && size < layer.size
        {
            return Err(self.too_short(intake, size));
        }
        while let Some(chunk) = response.chunk().await.map_err(|e| Trouble::of_client(e, place))? {
            if !intake.fits(chunk.len() as u64) {
                return Err(self.too_long(intake));
            }
            intake.take(chunk).map_err(Trouble::lasting)?;
            self.tell(intake);
        }
        if intake.got() < layer.size {
            let message =
                format!("the registry {} breaks off a layer of {}", place.registry(), place.shown());
            return Err(Trouble::passing(
                Error::failed("oci.unreachable", message)
                    .help("run it again: it goes on where it stopped, if the registry allows"),
            ));
        }
        Ok(())
    }

    fn tell(&mut self, intake: &Intake<'_>) {
        self.progress.advance(intake.got().saturating_sub(self.told));
        self.told = self.told.max(intake.got());
    }

    /// Less than was announced, and the registry says so itself: asking again changes nothing.
    fn too_short(&self, intake: &mut Intake<'_>, size: u64) -> Trouble {
        if let Err(error) = intake.restart() {
            return Trouble::lasting(error);
        }
        let message = format!(
            "the registry {} has only {size} of the {} bytes of a layer of {} ({}): it was cut short there",
            self.place.registry(),
            self.layer.size,
            self.place.shown(),
            self.layer.digest
        );
        let help = "push the image again, or ask whoever runs the registry: its storage is damaged";
        Trouble::lasting(Error::failed("oci.size", message).help(help))
    }

    /// More than was announced: nothing of it can be right.
    fn too_long(&self, intake: &mut Intake<'_>) -> Trouble {
        if let Err(error) = intake.restart() {
            return Trouble::lasting(error);
        }
        let message = format!(
            "the registry {} serves a layer of {} with more than the {} bytes that its manifest names ({})",
            self.place.registry(),
            self.place.shown(),
            self.layer.size,
            self.layer.digest
        );
        Trouble::lasting(Error::failed("oci.size", message).help(NOT_OURS))
    }
}

/// The size of the whole, of an answer of 416: `bytes */SIZE`.
fn whole(response: &reqwest::Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.trim().strip_prefix("bytes */")?.parse().ok()
}

/// Whether an answer begins at `offset`.
fn continues(response: &reqwest::Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}
