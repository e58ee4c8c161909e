//! The kinds of key that certificates and signatures are made with.

use std::fmt;
use std::str::FromStr;

/// Kind of a private or public key. `Display` gives the canonical name of the configuration file and
/// `FromStr` reads it without regard to case, with the usual other names of the curves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// RSA with this many bits of modulus. Keys from 2048 to 8192 bits can be read and used; those listed in
    /// [`KeyKind::ALL`] can be generated.
    Rsa(u16),
    /// ECDSA on NIST P-256 (secp256r1, prime256v1).
    P256,
    /// ECDSA on NIST P-384 (secp384r1).
    P384,
    /// ECDSA on NIST P-521 (secp521r1).
    P521,
    /// Ed25519 (RFC 8032, RFC 8410).
    Ed25519,
    /// Ed448 (RFC 8032, RFC 8410).
    Ed448,
}

impl KeyKind {
    /// Every kind that can be generated.
    pub const ALL: [Self; 9] = [
        Self::Rsa(2048),
        Self::Rsa(3072),
        Self::Rsa(4096),
        Self::Rsa(8192),
        Self::P256,
        Self::P384,
        Self::P521,
        Self::Ed25519,
        Self::Ed448,
    ];

    /// True for RSA of any size.
    pub const fn is_rsa(self) -> bool {
        matches!(self, Self::Rsa(_))
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::P521 => f.write_str("secp521r1"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Ed448 => f.write_str("Ed448"),
        }
    }
}

/// A key kind's name that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown key kind {given:?}; use one of {}", names())]
pub struct UnknownKeyKind {
    /// What was given.
    pub given: String,
}

impl FromStr for KeyKind {
    type Err = UnknownKeyKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let alias = match text.trim().to_ascii_lowercase().as_str() {
            "secp256r1" | "prime256v1" => Some(Self::P256),
            "secp384r1" => Some(Self::P384),
            "p-521" => Some(Self::P521),
            _ => None,
        };
        alias
            .or_else(|| Self::ALL.into_iter().find(|kind| kind.to_string().eq_ignore_ascii_case(text.trim())))
            .ok_or_else(|| UnknownKeyKind { given: text.to_owned() })
    }
}

fn names() -> String {
    KeyKind::ALL.map(|kind| kind.to_string()).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_back_from_its_name_in_any_case() {
        for kind in KeyKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(kind.to_string().to_uppercase().parse(), Ok(kind));
            assert_eq!(kind.to_string().to_lowercase().parse(), Ok(kind));
        }
    }

    #[test]
    fn curves_are_known_by_their_other_names() {
        for (name, kind) in [
            ("P-521", KeyKind::P521),
            ("p-521", KeyKind::P521),
            ("SECP256R1", KeyKind::P256),
            ("prime256v1", KeyKind::P256),
            ("secp384r1", KeyKind::P384),
        ] {
            assert_eq!(name.parse(), Ok(kind), "{name}");
        }
    }

    #[test]
    fn an_unknown_kind_lists_the_known_ones() {
        let error = "RSA-1024".parse::<KeyKind>().unwrap_err().to_string();

        assert!(error.starts_with("unknown key kind \"RSA-1024\""), "{error}");
        assert!(
            error.contains("RSA-2048, RSA-3072, RSA-4096, RSA-8192, P-256, P-384, secp521r1, Ed25519, Ed448")
        );
    }
}
