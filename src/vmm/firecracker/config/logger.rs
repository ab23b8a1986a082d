//! Firecracker's own log.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `logger`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logger {
    /// File or pipe; must exist before 1.14. stdout unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// What is logged; `Info` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Whether each line names its level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether each line names its source file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Logs this module alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Error,
    Warning,
    Info,
    Debug,
    Trace,
    Off,
}

impl Logger {
    /// Warnings and errors into `log_path`. `Info` would write a line for every API request.
    pub(super) fn to(log_path: PathBuf) -> Logger {
        Logger {
            log_path: Some(log_path),
            level: Some(Level::Warning),
            show_level: Some(true),
            ..Logger::default()
        }
    }
}
