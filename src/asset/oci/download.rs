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
            // A part that is less than the rest is no trouble: the next one is asked for.
            let Err(trouble) = received else { continue };
            if intake.got() > before {
                // It does move: only standing still uses the tries up.
                tried = 1;
            }
            trouble.pause(tried, self.settings, self.progress).await?;
        }
        Ok(())
    }

    /// Receives what one answer has of what is missing.
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
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let total = if partial {
            let Some(range) = Range::of(&response).filter(|range| range.first == intake.got()) else {
                intake.restart().map_err(Trouble::lasting)?;
                let message = format!(
                    "the registry {} sends another part of a layer of {} than was asked for",
                    place.registry(),
                    place.shown()
                );
                return Err(Trouble::passing(Error::failed("oci.unreachable", message)));
            };
            // It may be a shorter range than was asked for (RFC 9110, 15.3.7): only what it says of the whole counts.
            range.total
        } else {
            if intake.got() > 0 {
                intake.restart().map_err(Trouble::lasting)?;
            }
            response.content_length()
        };
        match total {
            Some(total) if total > layer.size => return Err(self.too_long(intake)),
            Some(total) if total < layer.size => return Err(self.too_short(intake, total)),
            _ => {}
        }
        let before = intake.got();
        while let Some(chunk) = response.chunk().await.map_err(|e| Trouble::of_client(e, place))? {
            if !intake.fits(chunk.len() as u64) {
                return Err(self.too_long(intake));
            }
            intake.take(chunk).map_err(Trouble::lasting)?;
            self.tell(intake);
        }
        if intake.got() < layer.size && !(partial && intake.got() > before) {
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

/// What an answer of 206 has: `bytes FIRST-LAST/TOTAL`.
struct Range {
    first: u64,
    /// None where the server does not know it (`*`).
    total: Option<u64>,
}

impl Range {
    fn of(response: &reqwest::Response) -> Option<Range> {
        let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
        let (part, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let first = part.split_once('-')?.0.trim().parse().ok()?;
        Some(Range { first, total: total.trim().parse().ok() })
    }
}
