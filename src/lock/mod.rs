//! `firegopher.lock`: every asset pinned by version and digest.
