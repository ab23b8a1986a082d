//! Writes root file systems and the initramfs: deterministic, without root, without mounting.
