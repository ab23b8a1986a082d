//! Facts about images of registries and of this machine.

mod fake;
mod faults;
mod local;
mod random;
mod real;
mod tokens;
mod tools;
