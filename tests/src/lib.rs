//! What end-to-end tests share, on top of the testbed.
#![forbid(unsafe_code)]

pub mod backends;
pub mod calls;
mod ends;
mod matrix;
mod parallel;
mod scene;
mod starter;

pub use ends::Ends;
pub use matrix::{CIPHERS, Case, Run, certificate_line, run};
pub use parallel::in_parallel;
pub use scene::Scene;
pub use starter::Starter;
