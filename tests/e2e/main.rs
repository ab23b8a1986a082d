//! The built binary as somebody at a terminal uses it: commands, real guests, exit codes. One binary for all of
//! these tests, so that they link once, share one warm store and take turns booting.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bases;
mod building;
mod changes;
mod commands;
mod downloads;
mod examples;
mod faults;
mod harness;
mod identity;
mod inside;
mod isolation;
mod kernels;
mod oci;
mod ordinary_user;
mod output;
mod refusals;
mod run;
mod schemas;
mod scripts;
mod secrets;
mod settings;
mod shortages;
mod signals;
mod snapshots;
mod soak;
mod traces;
mod ubuntu;
mod upkeep;
mod users;
mod volumes;

#[path = "../support/web.rs"]
#[expect(dead_code, reason = "the library's own tests use the rest of it")]
mod web;
