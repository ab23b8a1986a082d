//! What QEMU's events tell of a guest and its end (docs/interop/qmp-spec and qapi/run-state.json, block-core.json).
//!
//! | event | what it means here |
//! |---|---|
//! | `SHUTDOWN` | the end, with its reason |
//! | `GUEST_PANICKED` | the end that follows comes from a panic |
//! | `BLOCK_IO_ERROR` | the guest is told of the failure, or will be stopped: only for want of space (`werror=enospc`) |
//! | `STOP`, `RESUME` | the CPUs stand still, or run again; without a reason that was told before, QEMU is asked for it |
//! | `SUSPEND`, `SUSPEND_DISK`, `WAKEUP` | the guest suspended itself; nothing here would wake it |
//! | `MEMORY_FAILURE` | the host's memory failed |
//! | `RESET` | nothing: with `-no-reboot` a reset is a `SHUTDOWN` |
//! | `WATCHDOG`, `POWERDOWN` | nothing: there is no watchdog, and nobody presses the power button |
//! | others | nothing: they are about devices that come, go or change |

use super::Ended;
use super::condition::{Condition, Pause, word};
use serde_json::Value;
use tokio::sync::watch;

/// Asks for the state behind a `STOP`.
const QUERY: &[u8] = b"{\"execute\":\"query-status\",\"id\":\"status\"}\n";
/// Lets a stopped guest go on; requests that found no space are tried again.
pub(super) const CONTINUE: &[u8] = b"{\"execute\":\"cont\"}\n";

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Why the VM ends.
    pub reason: Option<Ended>,
    /// Why the stop comes that is about to come.
    stopping: Option<Pause>,
    /// A stop came without a reason, and QEMU was asked for it.
    asked: bool,
}

impl Events {
    /// Takes one line; returns what is to be sent to QEMU because of it.
    pub fn line(&mut self, line: &[u8], condition: &watch::Sender<Condition>) -> Option<&'static [u8]> {
        let message = serde_json::from_slice::<Value>(line).ok()?;
        let data = &message["data"];
        match message["event"].as_str() {
            None => {
                if message["id"] == "status" && std::mem::take(&mut self.asked) {
                    state(&message["return"], condition);
                }
            }
            Some("GUEST_PANICKED") => self.reason = Some(Ended::GuestPanic),
            Some("SHUTDOWN") => {
                let told = match data["reason"].as_str() {
                    Some("guest-shutdown") => Some(Ended::GuestShutdown),
                    Some("guest-reset") => Some(Ended::GuestReset),
                    Some("guest-panic") => Some(Ended::GuestPanic),
                    Some("host-signal") => Some(Ended::HostSignal),
                    Some("host-qmp-quit") => Some(Ended::HostQuit),
                    _ => None,
                };
                // A panic comes before the shutdown it causes and says more.
                if self.reason != Some(Ended::GuestPanic) && told.is_some() {
                    self.reason = told;
                }
            }
            Some("BLOCK_IO_ERROR") => {
                let drive = drive(data);
                let reason = data["reason"].as_str().unwrap_or("it does not say why");
                if data["action"] == "stop" {
                    self.stopping = Some(match data["nospace"].as_bool() {
                        Some(true) => Pause::DiskFull { drive },
                        _ => Pause::Other(word(reason)),
                    });
                } else {
                    let operation = data["operation"].as_str().unwrap_or("request");
                    condition.send_modify(|c| c.fail(drive, operation, reason));
                }
            }
            Some("STOP") => match self.stopping.take() {
                Some(pause) => stop(condition, pause),
                None => {
                    self.asked = true;
                    return Some(QUERY);
                }
            },
            Some("SUSPEND" | "SUSPEND_DISK") => stop(condition, Pause::Suspended),
            Some("RESUME" | "WAKEUP") => {
                (self.stopping, self.asked) = (None, false);
                condition.send_modify(|c| c.paused = None);
            }
            Some("MEMORY_FAILURE") => condition.send_modify(|c| c.memory_errors += 1),
            Some(_) => {}
        }
        None
    }
}

fn stop(condition: &watch::Sender<Condition>, pause: Pause) {
    condition.send_modify(|c| {
        c.paused = Some(pause);
        c.pauses += 1;
    });
}

/// What `query-status` returned (`RunState` in qapi/run-state.json).
fn state(returned: &Value, condition: &watch::Sender<Condition>) {
    let Some(status) = returned["status"].as_str() else { return };
    if returned["running"] == true {
        return;
    }
    let pause = match status {
        "io-error" => Pause::DiskFull { drive: None },
        "suspended" => Pause::Suspended,
        "internal-error" | "guest-panicked" | "shutdown" => Pause::Broken(word(status)),
        other => Pause::Other(word(other)),
    };
    stop(condition, pause);
}

/// Nodes are called `drive2` or, behind a limit of their rate, `limited2`.
fn drive(data: &Value) -> Option<usize> {
    let node = data["node-name"].as_str()?;
    node.trim_start_matches(|c: char| c.is_ascii_lowercase()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Told {
        events: Events,
        condition: watch::Sender<Condition>,
    }

    impl Told {
        fn new() -> Told {
            Told { events: Events::default(), condition: watch::channel(Condition::default()).0 }
        }
        fn line(&mut self, line: &str) -> Option<&'static [u8]> {
            self.events.line(line.as_bytes(), &self.condition)
        }
        fn event(&mut self, name: &str, data: Value) -> Option<&'static [u8]> {
            self.line(&json!({"event": name, "data": data, "timestamp": {}}).to_string())
        }
        fn now(&self) -> Condition {
            self.condition.borrow().clone()
        }
    }

    fn reason(lines: &[&str]) -> Option<Ended> {
        let mut told = Told::new();
        for line in lines {
            told.line(line);
        }
        told.events.reason
    }

    #[test]
    fn the_shutdown_reason_is_understood() {
        let line =
            |r| format!("{{\"event\":\"SHUTDOWN\",\"data\":{{\"guest\":true,\"reason\":\"{r}\"}}}}\r\n");
        assert_eq!(reason(&[&line("guest-shutdown")]), Some(Ended::GuestShutdown));
        assert_eq!(reason(&[&line("guest-reset")]), Some(Ended::GuestReset));
        assert_eq!(reason(&[&line("host-signal")]), Some(Ended::HostSignal));
        assert_eq!(reason(&[&line("new-in-qemu-99")]), None);
    }

    #[test]
    fn a_panic_outweighs_the_shutdown_it_causes() {
        let lines = [
            "{\"event\":\"GUEST_PANICKED\",\"data\":{}}",
            "{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}",
        ];
        assert_eq!(reason(&lines), Some(Ended::GuestPanic));
    }

    #[test]
    fn nonsense_tells_nothing() {
        assert_eq!(reason(&["not json", "[]", "{\"event\":7}", "{\"return\":{}}", ""]), None);
    }

    #[test]
    fn a_full_disk_stops_the_guest_until_it_goes_on() {
        let mut told = Told::new();
        // As QEMU 7.2 and 10.0 send them, behind a limit of the rate and without one.
        for (node, drive) in [("limited2", Some(2)), ("drive1", Some(1)), ("#block123", None)] {
            let full = json!({"device": "", "node-name": node, "operation": "write", "action": "stop",
                "nospace": true, "reason": "No space left on device"});
            assert_eq!(told.event("BLOCK_IO_ERROR", full), None);
            assert_eq!(told.now().paused, None, "it is not stopped yet");
            assert_eq!(told.event("STOP", json!({})), None, "the reason is known");
            assert_eq!(told.now().paused, Some(Pause::DiskFull { drive }));
            told.event("RESUME", json!({}));
            assert_eq!(told.now().paused, None);
        }
        assert_eq!((told.now().pauses, told.now().failed.len()), (3, 0));
    }

    #[test]
    fn an_error_that_the_guest_is_told_of_stops_nothing() {
        let mut told = Told::new();
        let failed = json!({"node-name": "drive0", "operation": "read", "action": "report",
            "nospace": false, "reason": "Input/output error"});
        told.event("BLOCK_IO_ERROR", failed.clone());
        told.event("BLOCK_IO_ERROR", failed);
        let now = told.now();
        assert_eq!(now.paused, None);
        let failed = &now.failed[&Some(0)];
        assert_eq!((failed.count, failed.operation.as_str()), (2, "read"));
        assert_eq!(failed.reason, "Input/output error");
    }

    #[test]
    fn a_stop_without_a_reason_is_asked_about() {
        for (status, pause) in [
            ("internal-error", Pause::Broken("internal-error".into())),
            ("io-error", Pause::DiskFull { drive: None }),
            ("suspended", Pause::Suspended),
            ("paused", Pause::Other("paused".into())),
        ] {
            let mut told = Told::new();
            assert_eq!(told.event("STOP", json!({})), Some(QUERY));
            told.line(&json!({"return": {"status": status, "running": false}, "id": "status"}).to_string());
            assert_eq!(told.now().paused, Some(pause));
        }
        // An answer that comes when the guest runs again says nothing of now.
        let mut told = Told::new();
        told.event("STOP", json!({}));
        told.event("RESUME", json!({}));
        told.line(&json!({"return": {"status": "paused", "running": false}, "id": "status"}).to_string());
        assert_eq!(told.now().paused, None);
    }

    #[test]
    fn every_event_of_the_run_state_is_decided_on() {
        let mut told = Told::new();
        told.event("SUSPEND", json!({}));
        assert_eq!(told.now().paused, Some(Pause::Suspended));
        told.event("WAKEUP", json!({}));
        assert_eq!(told.now().paused, None);
        told.event("MEMORY_FAILURE", json!({"recipient": "hypervisor", "action": "ignore", "flags": {}}));
        assert_eq!(told.now().memory_errors, 1);
        let before = told.now();
        for name in ["RESET", "WATCHDOG", "POWERDOWN", "GUEST_CRASHLOADED", "VSERPORT_CHANGE", "NEW_IN_99"] {
            told.event(name, json!({"action": "reset", "reason": "guest-reset"}));
        }
        assert_eq!((told.now(), told.events.reason), (before, None));
    }
}
