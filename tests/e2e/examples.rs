//! Every example does what its first line says.

use crate::harness::{Project, guests, try_get};

#[test]
fn hello_prints_and_exits_with_0() {
    let Some(_turn) = guests(1) else { return };
    let hello = Project::example("hello");
    let run = hello.ok(&["run"]);
    assert_eq!(run.stdout, "hello from a microVM\n");
    // The same, supervised: the end is told, and what was printed stays in the log.
    let up = hello.up(&[]);
    assert_eq!(up.stdout, "hello from a microVM\n");
    assert_eq!(hello.logs("hello"), "hello from a microVM\n");
    assert_eq!(hello.ps("hello").unwrap()["status"], "exited");
}

#[test]
fn python_web_answers_http_until_it_is_taken_down() {
    let Some(_turn) = guests(1) else { return };
    let web = Project::example("python-web");
    let up = web.up(&["-d"]);
    up.says(&format!("web runs: 127.0.0.1:{} (guest port 8000)", web.ports[0]));
    assert_eq!(web.wait_http("/"), "hello from web\n");
    web.ok(&["down"]).says("web is down");
    assert!(try_get(web.ports[0], "/").is_err());
    assert_eq!(web.ps("web"), None);
}

#[test]
fn python_web_zip_answers_http() {
    let Some(_turn) = guests(1) else { return };
    let web = Project::example("python-web-zip");
    web.up(&["-d"]);
    assert_eq!(web.wait_http("/"), "hello from web\n");
}

#[test]
fn volume_counts_across_down_and_up_and_starts_anew_without_its_volumes() {
    let Some(_turn) = guests(1) else { return };
    let counter = Project::example("volume");
    counter.up(&[]).prints("boot number 1\n");
    counter.ok(&["down"]);
    counter.up(&[]).prints("boot number 2\n");
    counter.ok(&["down", "--volumes"]).says("deleted the project's volumes");
    counter.up(&[]).prints("boot number 1\n");
}

#[test]
fn exit_code_ends_run_with_7_and_up_with_1() {
    let Some(_turn) = guests(1) else { return };
    let seven = Project::example("exit-code");
    seven.run(&["run"]).expect(7).prints("about to fail\n");
    seven.run(&["up"]).expect(1).says("seven exited 7");
}
