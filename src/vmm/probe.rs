//! Finds out what this host can do, by doing it.
