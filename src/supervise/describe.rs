//! The end of a VM in words.

use super::outcome::{Outcome, Reason};
use firegopher_protocol::ExitRecord;

impl Outcome {
    /// A few words after the VM's name: `exited 0`, `was ended by SIGSEGV`, `failed: no such file`.
    pub fn describe(&self) -> String {
        if let Some(failure) = self.failure() {
            return format!("failed: {failure}");
        }
        let how = match &self.exit {
            Some(ExitRecord { code: Some(code), .. }) => format!("exited {code}"),
            Some(ExitRecord { signal: Some(signal), .. }) => format!("was ended by {}", signal_name(*signal)),
            _ => "was killed".to_owned(),
        };
        match (self.exit.as_ref().is_some_and(|e| e.oom), self.reason) {
            (true, _) => format!("{how} (out of memory: give it more with `memory`)"),
            (_, Reason::Stopped) => format!("stopped ({how})"),
            _ => how,
        }
    }

    /// What failed, if it was not the workload itself that decided how it ended.
    pub fn failure(&self) -> Option<&str> {
        let never_ran = self.exit.as_ref().and_then(|exit| exit.failed.as_deref());
        never_ran.or_else(|| match self.reason {
            Reason::Failed => Some(self.message.as_deref().unwrap_or("it ended without a word")),
            _ => None,
        })
    }
}

fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        // Real-time signals have no names of their own.
        Err(_) => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(reason: Reason, exit: Option<ExitRecord>) -> String {
        Outcome { reason, exit, message: Some("the console said so".to_owned()) }.describe()
    }

    #[test]
    fn ends_are_told_in_words() {
        let code = |c| Some(ExitRecord { code: Some(c), ..Default::default() });
        assert_eq!(with(Reason::Exited, code(7)), "exited 7");
        assert_eq!(with(Reason::Stopped, code(0)), "stopped (exited 0)");
        let signal = Some(ExitRecord { signal: Some(11), ..Default::default() });
        assert_eq!(with(Reason::Exited, signal), "was ended by SIGSEGV");
        let oom = Some(ExitRecord { signal: Some(9), oom: true, ..Default::default() });
        assert!(with(Reason::Exited, oom).contains("out of memory"));
        assert_eq!(with(Reason::Killed, None), "was killed");
        assert_eq!(with(Reason::Failed, None), "failed: the console said so");
        let never = Some(ExitRecord { failed: Some("no such file: /x".to_owned()), ..Default::default() });
        assert_eq!(with(Reason::Exited, never), "failed: no such file: /x");
    }
}
