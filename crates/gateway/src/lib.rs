//! The gateway: configuration, people, keys, sessions, and the wiring of all of them.
#![forbid(unsafe_code)]

pub mod admin;
mod alarm;
pub mod archive;
pub mod check;
pub mod classify;
mod clock;
pub mod config;
mod control;
mod desk;
mod entrances;
pub mod http;
pub mod identities;
pub mod init;
pub mod keyring;
mod machine_state;
pub mod natfw;
mod port_plan;
mod push;
mod sites;
mod switch;
pub mod up;
