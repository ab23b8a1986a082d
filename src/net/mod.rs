//! The project's network namespace, its taps and addresses.
