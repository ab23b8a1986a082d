//! KDL text to the typed model; every problem of a manifest in one run, each with its span.

pub mod model;
