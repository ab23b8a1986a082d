//! Says and counts what cannot be tested on this machine. Every test binary includes this file, so that none of
//! them passes in silence: the reasons come at its end, past the test harness, which shows nothing of tests that pass.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Where this is set to anything but nothing, a machine without packages is a failure: CI has them.
pub const STRICT: &str = "FIREGOPHER_TEST_STRICT";

/// How often each reason was given.
static SKIPPED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Says why a test, or a part of one, does not run here.
pub fn skip(why: impl std::fmt::Display) {
    let why = why.to_string();
    println!("skipped: {why}");
    let mut skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    if skipped.is_empty() {
        // SAFETY: the function is static, takes nothing and does not unwind.
        unsafe { libc::atexit(report) };
    }
    *skipped.entry(why).or_default() += 1;
}

/// Says that a test does not run for want of packages, which is a failure where they have to be there.
pub fn skip_for_want_of_packages(why: impl std::fmt::Display) {
    assert!(std::env::var_os(STRICT).is_none_or(|set| set.is_empty()), "{STRICT} is set, but {why}");
    skip(why);
}

extern "C" fn report() {
    let skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let total: usize = skipped.values().sum();
    let mut text = format!("{total} skipped:\n");
    for (why, count) in &*skipped {
        let first = why.lines().next().unwrap_or_default();
        text.push_str(&format!("  {count} x skipped: {first}\n"));
    }
    // SAFETY: the buffer is live and as long as said; standard error may be closed, which harms nothing.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}
