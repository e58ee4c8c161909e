//! What end-to-end tests share, on top of the testbed.
#![forbid(unsafe_code)]

mod matrix;
mod parallel;
mod scene;

pub use matrix::{CIPHERS, Case, Run, certificate_line, run};
pub use parallel::in_parallel;
pub use scene::Scene;
