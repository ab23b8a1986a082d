//! The content-addressed store. Nothing else writes below its directories.
