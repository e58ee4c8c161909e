//! The OpenVPN protocol (as spoken by OpenVPN 2.4 to 2.7) as machines without I/O, for servers and clients.
//!
//! * [`gate`] judges packets that belong to no session; what it admits becomes a [`Machine`].
//! * [`Machine`] runs the control channel of one session and hands out its [`data::Channel`].
//! * The other modules are the parts: packets, protection, reliability, key exchange, push options, text.
#![forbid(unsafe_code)]

mod budget;
pub mod data;
pub mod gate;
pub mod kex;
pub mod keyfile;
pub mod keys;
pub mod machine;
pub mod occ;
pub mod packet;
pub mod peer_info;
pub mod profile;
pub mod push;
pub mod reliable;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod tls;
pub mod wkc;
pub mod wrap;

pub use machine::Machine;

/// Which side of a session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Accepts sessions, is the TLS server, pushes options.
    Server,
    /// Starts sessions, is the TLS client, takes options.
    Client,
}
