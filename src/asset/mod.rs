//! Finds, fetches and verifies what boots: kernels, VMMs, base packages.
