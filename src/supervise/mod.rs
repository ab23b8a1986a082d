//! One small detached process a VM: it boots, watches, logs, restarts and cleans up.
