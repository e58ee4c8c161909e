//! The public-key infrastructure of a gateway: private keys, an authority that issues certificates and
//! revocation lists, and the reading of certificates, requests and lists that others made.
//!
//! No sockets, no clock: times are [`UnixTime`] arguments. Files are touched in [`files`] alone.
//!
//! ```
//! use adit_pki::{Authority, KeyKind, Leaf, PrivateKey, Profile, Signer, UnixTime};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = UnixTime::from_secs(1_750_000_000);
//! let year = Duration::from_secs(365 * 24 * 3600);
//! let authority = Authority::create("example CA", Box::new(PrivateKey::generate(KeyKind::P384)?), now, 10 * year)?;
//! let device = PrivateKey::generate(KeyKind::Ed25519)?;
//! let certificate = authority.issue(&Leaf {
//!     public_key: device.public_key(),
//!     common_name: "ann-laptop",
//!     profile: Profile::Client,
//!     now,
//!     lifetime: year,
//! })?;
//! assert_eq!(certificate.common_name().as_deref(), Some("ann-laptop"));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod algorithm;
mod authority;
mod certificate;
mod crl;
mod key;
mod kind;
mod name;
mod request;
mod revocations;
mod serial;
mod signed;
#[cfg(test)]
mod testing;
mod time;

pub mod ed448;
pub mod files;
pub mod pem;

pub use algorithm::BadSignature;
pub use authority::{Authority, AuthorityError, BACKDATE, Leaf, Profile, SubjectName};
pub use certificate::{Certificate, CertificateError, Purpose};
pub use crl::{Crl, CrlError, Reason, Revoked};
pub use key::{KeyError, PrivateKey, SignFault, Signer};
pub use kind::{KeyKind, UnknownKeyKind};
pub use request::{Request, RequestError};
pub use revocations::Revocations;
pub use serial::{BadSerial, Serial};
pub use time::UnixTime;
