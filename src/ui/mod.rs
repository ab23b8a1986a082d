//! What the user sees on stderr: steps as they run, downloads, warnings, errors. Data for pipes goes to stdout
//! and is written by the commands themselves.

pub mod human;
pub mod page;
mod progress;
mod report;
pub mod style;
pub mod wrap;

pub use progress::{Step, Ui};
pub use report::{exit_code, render};
