//! What `init` writes: a manifest that fits what is in the directory.

use crate::manifest::STARTER;
use std::path::Path;

/// What a directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Node {
        main: String,
        dependencies: bool,
    },
    Python {
        main: String,
    },
    /// A program that is built on this host: how, and where it is then.
    Program {
        build: String,
        path: String,
    },
    Pages,
    Other,
}

/// The manifest for a directory, and what it was taken for, if for anything.
pub(super) fn starter(dir: &Path) -> (String, Option<&'static str>) {
    let there = |name: &str| dir.join(name).is_file();
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    let kind = kind(&there, &read);
    let ignore = there(".gitignore");
    let known = match kind {
        Kind::Node { .. } => Some("Node.js"),
        Kind::Python { .. } => Some("Python"),
        Kind::Program { .. } => Some("a program that is built here"),
        Kind::Pages => Some("web pages"),
        Kind::Other => None,
    };
    (text(&kind, ignore), known)
}

fn kind(there: &dyn Fn(&str) -> bool, read: &dyn Fn(&str) -> Option<String>) -> Kind {
    let first = |names: &[&str]| names.iter().find(|name| there(name)).map(|name| (*name).to_owned());
    if let Some(text) = read("package.json") {
        let package: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let main = package["main"].as_str().filter(|main| there(main)).map(str::to_owned);
        let main = main.or_else(|| first(&["server.js", "app.js", "index.js", "main.js", "src/index.js"]));
        let dependencies = package["dependencies"].as_object().is_some_and(|all| !all.is_empty());
        return Kind::Node { main: main.unwrap_or_else(|| "index.js".to_owned()), dependencies };
    }
    if let Some(text) = read("Cargo.toml") {
        let package: toml::Table = text.parse().unwrap_or_default();
        let name =
            package.get("package").and_then(|package| package.get("name")).and_then(|name| name.as_str());
        let path = format!("./target/release/{}", name.unwrap_or("app"));
        return Kind::Program { build: "cargo build --release".to_owned(), path };
    }
    if there("go.mod") {
        return Kind::Program {
            build: "CGO_ENABLED=0 go build -o app .".to_owned(),
            path: "./app".to_owned(),
        };
    }
    let main = first(&["main.py", "app.py", "server.py", "manage.py", "src/main.py"]);
    if main.is_some() || ["requirements.txt", "pyproject.toml", "setup.py"].iter().any(|name| there(name)) {
        return Kind::Python { main: main.unwrap_or_else(|| "main.py".to_owned()) };
    }
    if there("index.html") { Kind::Pages } else { Kind::Other }
}

fn text(kind: &Kind, ignore: bool) -> String {
    let mut vm = String::new();
    let mut line = |text: &str| {
        vm.push_str("    ");
        vm.push_str(text);
        vm.push('\n');
    };
    match kind {
        Kind::Other if !ignore => return STARTER.to_owned(),
        Kind::Other => {
            let with = "// workload \"./app\" to=\"/app\" {\n    //     ignore from=\".gitignore\"\n    // }";
            return STARTER.replace("// workload \"./app\" to=\"/app\"", with);
        }
        Kind::Node { .. } => line("image {\n        debian \"nodejs\"\n    }"),
        Kind::Python { .. } => {
            line("// Packages of Debian's; modules are packages, too, such as \"python3-flask\".");
            line("image {\n        debian \"python3\"\n    }");
        }
        Kind::Pages => line("image {\n        debian \"python3-minimal\"\n    }"),
        Kind::Program { .. } => {}
    }
    match kind {
        Kind::Program { build, path } => {
            line(&format!(
                "// What `{build}` makes; libraries it needs are packages: image {{ debian \"libssl3\" }}"
            ));
            line(&format!("workload \"{path}\" to=\"/app/\""));
        }
        _ => {
            line("// All of this directory, but .git and firegopher's own files.");
            line("workload \".\" to=\"/app\" {");
            if ignore {
                line("    ignore from=\".gitignore\"");
            }
            if matches!(kind, Kind::Node { dependencies: true, .. }) {
                line("    // The VM has no network to install them from: `npm install` first.");
                line("    ignore \"!node_modules/\"");
            }
            line("    ignore \".env\"");
            line("}");
            line("workdir \"/app\"");
        }
    }
    line("");
    match kind {
        Kind::Node { main, .. } => line(&format!("run \"node\" \"{main}\"")),
        Kind::Python { main } => line(&format!("run \"python3\" \"{main}\"")),
        Kind::Pages => line("run \"python3\" \"-m\" \"http.server\" \"8000\""),
        Kind::Program { path, .. } => {
            line(&format!("run \"/app/{}\"", path.rsplit('/').next().unwrap_or_default()));
        }
        Kind::Other => {}
    }
    line("");
    let port = match kind {
        Kind::Node { .. } => 3000,
        Kind::Program { .. } => 8080,
        _ => 8000,
    };
    line(&format!(
        "// http://127.0.0.1:8080 leads to what listens on port {port} of all addresses in the VM."
    ));
    match port {
        8080 => line("port 8080"),
        port => line(&format!("port 8080 to={port}")),
    }
    line("memory \"256MiB\"");
    let vm: String = vm.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    let head: String =
        STARTER.lines().take_while(|line| line.starts_with("//")).map(|l| l.to_owned() + "\n").collect();
    format!("{head}\nvm \"app\" {{\n{vm}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;
    use fs_err as fs;

    #[test]
    fn a_starter_fits_its_directory_and_is_valid() {
        for (files, run, taken_for) in [
            (
                &[("package.json", "{\"main\":\"web.js\",\"dependencies\":{\"x\":\"1\"}}"), ("web.js", "")][..],
                &["node", "web.js"][..],
                Some("Node.js"),
            ),
            (
                &[("package.json", "broken"), (".gitignore", "node_modules\n")],
                &["node", "index.js"],
                Some("Node.js"),
            ),
            (&[("requirements.txt", ""), ("app.py", "")], &["python3", "app.py"], Some("Python")),
            (
                &[("Cargo.toml", "[package]\nname = \"hello\"\n")],
                &["/app/hello"],
                Some("a program that is built here"),
            ),
            (&[("go.mod", "module x\n")], &["/app/app"], Some("a program that is built here")),
            (&[("index.html", "")], &["python3", "-m", "http.server", "8000"], Some("web pages")),
            (&[("notes.txt", "")], &["sh", "-c", "echo hello from $(uname -sr)"], None),
            (&[(".gitignore", "x\n")], &["sh", "-c", "echo hello from $(uname -sr)"], None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            let (text, known) = starter(dir.path());
            assert_eq!(known, taken_for, "{files:?}");
            fs::write(dir.path().join(manifest::FILE_NAME), &text).unwrap();
            let manifest =
                manifest::load(dir.path()).unwrap_or_else(|e| panic!("{text}\n{}", crate::ui::render(&e)));
            assert_eq!(manifest.vms[0].run, run, "{text}");
            let ignored = manifest.vms[0].workloads.iter().any(|w| w.ignore_from.is_some());
            let has = files.iter().any(|(name, _)| *name == ".gitignore");
            assert!(ignored == has || known.is_none(), "{text}");
            assert!(!has || text.contains("ignore from=\".gitignore\""), "{text}");
            assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
        }
    }
}
