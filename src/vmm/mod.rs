//! Where a VMM comes in: one trait-sized interface, one back end a VMM, and the jail around it.

pub mod spec;
