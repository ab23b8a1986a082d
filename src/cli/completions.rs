//! `firegopher completions`: what a shell needs to complete commands and options.

use super::{Cli, print};
use crate::error::{Error, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell to write them for.
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "firegopher", &mut script);
    let script = String::from_utf8(script).map_err(|_| Error::bug("completions are not text"))?;
    print(&script)?;
    Ok(ExitCode::SUCCESS)
}
