//! The cases of `testdata/layers.txt`: what layers make up, or why not.

use super::*;
use crate::image::{BASE_IMAGE, BaseSource, build_base};
use std::collections::BTreeMap;

const CASES: &str = include_str!("../../../testdata/layers.txt");

#[derive(Default)]
struct Case {
    name: String,
    /// `None` has no bytes at all.
    layers: Vec<Option<Tar>>,
    /// Lines below `is`.
    wanted: Vec<Vec<String>>,
    refused: Option<String>,
}

/// The words of a line; those that stand for many lines are written out.
fn lines(text: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<String> = line.split(' ').map(|word| word.replace("\\s", " ")).collect();
        match words.as_slice() {
            [chain, length, target] if chain == "chain" => {
                let length: usize = length.parse().unwrap();
                for n in 1..=length {
                    let next = if n == length { target.clone() } else { format!("chain-{}", n + 1) };
                    all.push(vec!["chain".into(), format!("chain-{n}"), next]);
                }
            }
            [deep, depth, name] if deep == "deep" => {
                let path = "d/".repeat(depth.parse().unwrap()) + name;
                all.push(vec!["deep".into(), path, name.clone()]);
            }
            _ => all.push(words),
        }
    }
    all
}

fn parse() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut in_layers = true;
    for words in lines(CASES) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let ["case", name @ ..] = words.as_slice() {
            cases.push(Case { name: name.join(" "), ..Case::default() });
            in_layers = true;
            continue;
        }
        let case = cases.last_mut().expect("the file begins with a case");
        let entry = |tar: Tar| match words.as_slice() {
            ["f", path] => tar.file(path, b""),
            ["f", path, contents] | ["deep", path, contents] => {
                long(tar, path).file(cut(path), contents.as_bytes())
            }
            ["d", path] => tar.dir(path),
            ["l" | "chain", path, target] => tar.symlink(path, target),
            ["h", path, target] => tar.hard_link(path, target),
            ["p", path] => tar.raw(path.as_bytes(), b'6', 0o644, (0, 0), b"", 0, b""),
            ["m", path, mode] => {
                let mode = u32::from_str_radix(mode, 8).unwrap();
                tar.raw(path.as_bytes(), b'5', mode, (0, 0), b"", 0, b"")
            }
            other => panic!("{}: {other:?} is no entry", case.name),
        };
        match words.as_slice() {
            ["layer"] => case.layers.push(Some(Tar::default())),
            ["empty"] => case.layers.push(None),
            ["is"] => in_layers = false,
            ["refused", code] => case.refused = Some((*code).to_owned()),
            _ if in_layers => {
                let tar = case.layers.last_mut().and_then(Option::take).expect("an entry is of a layer");
                let tar = entry(tar);
                *case.layers.last_mut().expect("it was there") = Some(tar);
            }
            _ => case.wanted.push(words.iter().map(|word| (*word).to_owned()).collect()),
        }
    }
    cases
}

/// A name that the header's field is too short for stands before it.
fn long(tar: Tar, path: &str) -> Tar {
    if path.len() > 100 { tar.pax(&[("path", path.as_bytes())]) } else { tar }
}

fn cut(path: &str) -> &str {
    &path[..path.len().min(100)]
}

/// All that is no directory, and what it is.
fn leaves(image: &Image, dir: &str, found: &mut BTreeMap<String, String>) {
    for name in image.names(if dir.is_empty() { "/" } else { dir }) {
        let path = format!("{dir}/{name}");
        let what = match image.inode(&path).mode >> 12 {
            0o04 if path == "/lost+found" => continue,
            0o04 => {
                leaves(image, &path, found);
                continue;
            }
            0o12 => format!("-> {}", image.target(&path)),
            0o01 => "| a pipe".to_owned(),
            _ => match image.read(&path) {
                bytes if bytes.is_empty() => "-".to_owned(),
                bytes => String::from_utf8(bytes).unwrap(),
            },
        };
        found.insert(path, what);
    }
}

/// What differs from what is wanted.
fn verdict(case: &Case, bench: &Bench) -> Result<(), String> {
    let write = |(n, tar): (usize, &Option<Tar>)| {
        let bytes = tar.as_ref().map(|tar| Tar(tar.0.clone()).end()).unwrap_or_default();
        layer(bench.write(&format!("layer-{n}"), bytes))
    };
    let layers: Vec<Layer> = case.layers.iter().enumerate().map(write).collect();
    let out = bench.path("out");
    let _ = std::fs::remove_dir_all(&out);
    let built = build_base(BaseSource::Layers(&layers), &bench.make_dir("out"), &bench.scratch());
    match (built, &case.refused) {
        (Err(error), Some(code)) if error.code() == code => return Ok(()),
        (Err(error), _) => return Err(format!("{}: {error}", error.code())),
        (Ok(_), Some(code)) => return Err(format!("built, and {code} was expected")),
        (Ok(_), None) => {}
    }
    let image = Image::open(&out.join(BASE_IMAGE));
    let mut found = BTreeMap::new();
    leaves(&image, "", &mut found);
    for words in &case.wanted {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let path = format!(
            "/{}",
            words.get(1).filter(|_| matches!(words[0], "chain" | "deep")).unwrap_or(&words[0])
        );
        let path = if words[0] == "\"\"" { "/".to_owned() } else { path };
        let what = match words.as_slice() {
            ["chain", _, target] => Some(format!("-> {target}")),
            ["deep", _, contents] => Some((*contents).to_owned()),
            [dir, mode @ ..] if dir.ends_with('/') || *dir == "\"\"" => {
                let inode = image.has(&path).then(|| image.inode(&path));
                let Some(inode) = inode.filter(|inode| inode.mode >> 12 == 0o04) else {
                    return Err(format!("{path} is no directory"));
                };
                let wanted = mode.first().map(|mode| u16::from_str_radix(mode, 8).unwrap());
                if wanted.is_some_and(|wanted| wanted != inode.mode & 0o7777) {
                    return Err(format!("{path} has the mode {:o}", inode.mode & 0o7777));
                }
                None
            }
            [_, "==", other] => {
                let other = format!("/{other}");
                if !image.has(&path) || !image.has(&other) || image.number(&path) != image.number(&other) {
                    return Err(format!("{path} is not {other}"));
                }
                found.get(&path).cloned()
            }
            [_, what @ ..] => Some(what.join(" ")),
            [] => None,
        };
        if let Some(what) = what {
            match found.remove(&path) {
                Some(is) if is == what => {}
                is => return Err(format!("{path} is {is:?}, and {what:?} was expected")),
            }
        }
    }
    if found.is_empty() { Ok(()) } else { Err(format!("nobody expected {found:?}")) }
}

#[test]
fn every_case_of_layers_is_what_the_table_says() {
    let cases = parse();
    assert!(cases.len() > 120, "{}", cases.len());
    let bench = Bench::new();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| verdict(case, &bench).err().map(|why| format!("{}: {why}", case.name)))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn no_two_cases_have_one_name() {
    let mut names: Vec<String> = parse().into_iter().map(|case| case.name).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}
