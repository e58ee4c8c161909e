//! Rules about the project itself, kept as tests: see `tests/`.
#![forbid(unsafe_code)]
