//! PID 1 of a firegopher guest.

fn main() {}
