//! TLS for OpenVPN's control channel: [`ServerTls`] and [`ClientTls`] make rustls connections over buffers,
//! with the certificate rules of OpenVPN in place of those of the web.
//!
//! No sockets and no tasks. TLS 1.2 and 1.3; ECDHE (with ML-KEM-768 where both sides have it) and AEAD
//! ciphers; certificates and keys of every [`KeyKind`](adit_pki::KeyKind), Ed448 included, which the library
//! lacks. No resumption, no tickets, no early data, no renegotiation: OpenVPN has no use for them.
//!
//! A refused peer is told by a TLS alert, and the log by a text that says why and what to do. Such texts hold
//! nothing that the peer chose, serial numbers and dates of its certificate apart.
//!
//! ```
//! use adit_openvpn::tls::TlsSource;
//! use adit_pki::{Authority, KeyKind, Leaf, PrivateKey, Profile, Signer, UnixTime};
//! use adit_tls::{Clock, Identity, ServerSettings, ServerTls, SystemClock, Trust};
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let year = Duration::from_secs(365 * 24 * 3600);
//! let now = SystemClock.now();
//! let authority = Authority::create("CA", Box::new(PrivateKey::generate(KeyKind::P384)?), now, year)?;
//! let key = PrivateKey::generate(KeyKind::P256)?;
//! let certificate = authority.issue(&Leaf {
//!     public_key: key.public_key(),
//!     common_name: "gateway",
//!     profile: Profile::Server { names: Vec::new() },
//!     now,
//!     lifetime: year,
//! })?;
//! let server = ServerTls::new(ServerSettings {
//!     identities: vec![Identity::new(&[certificate], &key)?],
//!     client_authorities: Arc::new(Trust::new(vec![authority.certificate().clone()])?),
//!     ..ServerSettings::default()
//! })?;
//! let connection = server.start()?;
//! assert!(!connection.established());
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod client;
mod clock;
mod connection;
mod fault;
mod identity;
mod proven;
mod provider;
mod secp521r1;
mod server;
mod settings;
mod trust;

#[cfg(test)]
mod tests;

pub use client::{ClientSettings, ClientTls, NameCheck};
pub use clock::{Clock, SystemClock};
pub use identity::Identity;
pub use provider::provider;
pub use server::{ServerSettings, ServerTls};
pub use settings::{SettingsError, Versions};
pub use trust::{LiveRevocations, Trust};
