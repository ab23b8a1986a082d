//! `firegopher man`: a man page for each command, from the same declarations as `--help`.

use super::Cli;
use super::place::Place;
use crate::error::{Context, Result};
use crate::ui::Ui;
use clap::CommandFactory;
use fs_err as fs;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to write them, such as ~/.local/share/man/man1; made if it is not there.
    #[arg(value_name = "DIR")]
    into: PathBuf,
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let dir = place.dir.join(&args.into);
    let pages = pages().or_failed("man.write", || "cannot write the man pages")?;
    fs::create_dir_all(&dir).or_failed("man.write", || format!("cannot make {}", dir.display()))?;
    for (name, text) in &pages {
        fs::write(dir.join(name), text).or_failed("man.write", || format!("cannot write {name}"))?;
    }
    Ui::stderr().note(&format!("Wrote {} man pages into {}.", pages.len(), dir.display()));
    Ok(ExitCode::SUCCESS)
}

/// Each page with its file's name: `firegopher.1` and one for each command.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = vec![page(&command)?];
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        // Built, so it knows itself as `firegopher-up`.
        pages.push(page(sub)?);
    }
    Ok(pages)
}

fn page(command: &clap::Command) -> std::io::Result<(String, Vec<u8>)> {
    let man = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    man.render(&mut text)?;
    Ok((man.get_filename(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_options() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"firegopher.1") && names.contains(&"firegopher-up.1"), "{names:?}");
        assert_eq!(names.len(), Cli::command().get_subcommands().count() + 1);
        let up = &pages.iter().find(|(name, _)| name == "firegopher-up.1").unwrap().1;
        let up = String::from_utf8_lossy(up);
        assert!(up.starts_with(".ie") && up.contains("detach") && up.contains("Build what changed"), "{up}");
    }
}
