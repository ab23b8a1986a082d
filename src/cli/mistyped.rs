//! Commands and options that people type by habit, and what they mean here.

use crate::error::Error;
use clap::CommandFactory;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Commands of other tools, and a help for each.
const COMMANDS: &[(&[&str], &str)] = &[
    (
        &["stop", "halt", "poweroff", "shutdown", "rm", "remove", "delete"],
        "`firegopher down` stops VMs and removes what they used; volumes stay.",
    ),
    (&["kill"], "`firegopher down --kill` ends VMs at once."),
    (&["destroy"], "`firegopher down` stops VMs; `down --volumes` deletes their volumes, too."),
    (
        &["start", "apply", "deploy", "create", "launch", "boot"],
        "`firegopher up` builds what changed and boots; `up -d` returns once the workloads run.",
    ),
    (
        &["restart", "reload", "reboot"],
        "`firegopher up` restarts what changed. To restart all the same: `firegopher down`, then `firegopher up -d`.",
    ),
    (
        &["prune", "clean", "cleanup", "rmi"],
        "`firegopher gc` removes what nobody needs; `gc --max-size 0` all of it.",
    ),
    (
        &["ls", "list", "status", "top", "stats", "inspect"],
        "`firegopher ps` lists this project's VMs, `ps --all` all projects.",
    ),
    (
        &["log", "tail", "console"],
        "`firegopher logs -f` follows what workloads write; `logs --console` shows a VM's serial console.",
    ),
    (
        &["exec", "shell", "sh", "ssh", "bash", "enter"],
        "A command cannot be run in a VM that is up. `firegopher run VM -- COMMAND` runs one in a throw-away VM with the same image.",
    ),
    (&["attach", "follow"], "`firegopher up` follows VMs that run already; `logs -f` shows what they write."),
    (
        &["config", "validate", "check", "diff", "preview", "show"],
        "`firegopher plan` checks the manifest and shows what would happen, and why.",
    ),
    (
        &["pull", "fetch", "install", "download"],
        "`firegopher build` fetches and builds everything; `lock` pins what the manifest names.",
    ),
    (&["upgrade", "outdated"], "`firegopher update` moves pins to what the package sources serve now."),
    (
        &["images", "image", "volume", "volumes", "cache", "df", "system", "du"],
        "`firegopher store` shows what is kept, and what projects and volumes take.",
    ),
    (&["new", "scaffold"], "`firegopher init` writes a manifest to start from."),
    (&["version"], "`firegopher --version` prints it."),
    (&["info", "diagnose"], "`firegopher doctor` shows what this host can do."),
    (
        &["watch", "dev", "push", "cp", "copy", "port", "rename", "wait", "pause", "unpause"],
        "There is nothing like it.",
    ),
];

/// Options that are typed by habit: the command (empty for any), the option, and a tip.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("up", "--build", "`up` builds what changed by itself"),
    (
        "up",
        "--force-recreate",
        "`up` replaces what changed; to restart all the same: `firegopher down`, then `up -d`",
    ),
    ("up", "--no-build", "`firegopher plan` shows whether anything would be built"),
    ("up", "--remove-orphans", "`up` stops VMs that left the manifest by itself"),
    ("up", "--detached", "`up -d` or `up --detach`"),
    ("up", "--watch", "run `firegopher up` again after a change: it does what is needed only"),
    ("up", "--scale", "a manifest names each VM"),
    ("up", "-v", "a manifest names volumes: volume \"data\" at=\"/data\" size=\"1GiB\""),
    ("up", "-p", "a manifest publishes ports: port 8080 to=80"),
    ("run", "--rm", "`run` always removes its VM"),
    ("run", "-it", "`run` passes standard input on; it has no terminal"),
    ("run", "-i", "`run` passes standard input on by itself"),
    ("run", "-t", "`run` has no terminal"),
    ("run", "-p", "a throw-away VM publishes no ports; `firegopher up` does"),
    ("run", "-e", "write it into the manifest: env { NAME \"value\" }"),
    ("run", "-v", "write it into the manifest: workload \"./app\" to=\"/app\""),
    ("down", "--rmi", "`firegopher gc` removes images that nobody needs"),
    ("down", "--remove-orphans", "`down` stops all VMs of the project, also those that left the manifest"),
    ("down", "-f", "`down` asks nothing; `down --kill` ends VMs at once"),
    ("down", "--force", "`down` asks nothing; `down --kill` ends VMs at once"),
    ("gc", "--all", "`gc --max-size 0` removes all that nobody needs"),
    ("gc", "-a", "`gc --max-size 0` removes all that nobody needs"),
    ("gc", "-f", "`gc` asks nothing; `gc --dry-run` only says what would go"),
    ("gc", "--force", "`gc` asks nothing; `gc --dry-run` only says what would go"),
    ("gc", "--volumes", "`firegopher down --volumes` deletes the volumes of a project"),
    ("ps", "-q", "`ps --json` is for scripts"),
    ("ps", "--format", "`ps --json` is for scripts"),
    ("plan", "--out", "`plan --json` prints the plan for scripts"),
    ("init", "--force", "move the manifest away first"),
    ("", "-f", "write it before the command: firegopher -f FILE COMMAND"),
    ("", "--file", "write it before the command: firegopher -f FILE COMMAND"),
    ("", "-y", "firegopher asks no questions"),
    ("", "--yes", "firegopher asks no questions"),
    ("", "--debug", "`firegopher logs --vmm` and `logs --console` show what VMM and kernel say"),
    (
        "",
        "--project-name",
        "`ps`, `down` and `logs` take `--project NAME`; a manifest gives `project \"NAME\"`",
    ),
];

/// What is wrong with the command line: an error of our own, or clap's with a tip.
pub(super) enum Wrong {
    /// Shown as any error of ours.
    Ours(Error),
    /// Printed by clap.
    Clap(clap::Error),
}

/// Adds what a person who typed this may have meant. `words` are the arguments after the program's name.
pub(super) fn explain(mut error: clap::Error, words: &[String]) -> Wrong {
    let context = |error: &clap::Error, kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let typed = context(&error, ContextKind::InvalidSubcommand).unwrap_or_default();
            let known = COMMANDS.iter().find(|(names, _)| names.contains(&typed.as_str()));
            match known {
                Some((_, help)) => {
                    let text = format!("there is no command `{typed}`");
                    Wrong::Ours(Error::usage("command.unknown", text).help(*help))
                }
                None => Wrong::Clap(error),
            }
        }
        ErrorKind::UnknownArgument => {
            let typed = context(&error, ContextKind::InvalidArg).unwrap_or_default();
            let typed = typed.split_once('=').map_or(typed.as_str(), |(name, _)| name);
            let command = command_in(words).unwrap_or_default();
            let tip =
                OPTIONS.iter().find(|(of, option, _)| (of.is_empty() || *of == command) && *option == typed);
            if let Some((_, _, tip)) = tip {
                let tips = vec![StyledStr::from(*tip)];
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
                error.remove(ContextKind::SuggestedArg);
            }
            Wrong::Clap(error)
        }
        _ => Wrong::Clap(error),
    }
}

/// The command in a command line: the first word that is one.
fn command_in(words: &[String]) -> Option<String> {
    let commands = super::Cli::command();
    words.iter().find(|word| commands.find_subcommand(word).is_some()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn said(line: &str) -> String {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let error =
            Cli::try_parse_from(std::iter::once("firegopher".to_owned()).chain(words.clone())).unwrap_err();
        match explain(error, &words) {
            Wrong::Ours(error) => crate::ui::render(&error),
            Wrong::Clap(error) => error.to_string(),
        }
    }

    #[test]
    fn no_habit_is_a_command() {
        let commands = Cli::command();
        for word in COMMANDS.iter().flat_map(|(words, _)| *words) {
            assert!(commands.find_subcommand(word).is_none(), "{word} is a command");
        }
        for (command, option, _) in OPTIONS.iter().filter(|(command, ..)| !command.is_empty()) {
            let command = commands.find_subcommand(command).unwrap();
            let has = |arg: &clap::Arg| {
                arg.get_long().is_some_and(|long| format!("--{long}") == *option)
                    || arg.get_short().is_some_and(|short| format!("-{short}") == *option)
            };
            assert!(!command.get_arguments().any(has), "{} has {option}", command.get_name());
        }
    }

    #[test]
    fn commands_and_options_of_other_tools_lead_to_those_of_this_one() {
        for (line, words) in [
            ("stop web", "firegopher down"),
            ("start", "up -d"),
            ("prune", "firegopher gc"),
            ("destroy", "down --volumes"),
            ("exec web sh", "run VM -- COMMAND"),
            ("-C /tmp status", "firegopher ps"),
            ("up --build", "builds what changed by itself"),
            ("up web -f x.kdl", "firegopher -f FILE COMMAND"),
            ("gc --all", "gc --max-size 0"),
            ("run --rm web", "always removes"),
        ] {
            let text = said(line);
            assert!(text.contains(words), "{line}: {text}");
        }
        // What is only misspelt is clap's to tell.
        assert!(said("pln").contains("plan"));
        assert!(said("up --detch").contains("--detach"));
    }
}
