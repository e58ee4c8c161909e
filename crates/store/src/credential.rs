//! What certificates are known by: issuer, serial number, key; and why they are revoked.

use std::fmt;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

/// The most octets of a serial number. RFC 5280 section 4.1.2.2 allows 20; old authorities wrote longer ones.
const LONGEST_SERIAL: usize = 40;
/// The most octets of an issuer's id.
const LONGEST_ISSUER: usize = 64;

/// A text or bytes that cannot be what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {what}; {what} is {form}")]
pub struct CredentialFault {
    what: &'static str,
    form: &'static str,
}

/// Makes text forms of a type that shows itself as text and is made of text by `FromStr`.
macro_rules! as_text {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl TryFrom<String> for $name {
            type Error = CredentialFault;

            fn try_from(text: String) -> Result<Self, CredentialFault> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

/// The serial number of a certificate, in one form whatever it was written like: lower-case hexadecimal octets
/// without leading zero octets. `0A`, `000a` and `0a` are one serial number, so none of them escapes a revocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(String);

impl Serial {
    const FAULT: CredentialFault =
        CredentialFault { what: "a serial number", form: "1 to 40 octets in hexadecimal, two digits each" };

    /// Takes the octets of a serial number, as they stand in a certificate.
    pub fn from_bytes(octets: &[u8]) -> Result<Self, CredentialFault> {
        let significant = octets.iter().position(|&octet| octet != 0).unwrap_or(octets.len());
        // Zero keeps one octet, so that no serial number is empty.
        let significant = significant.min(octets.len().saturating_sub(1));
        match octets.get(significant..) {
            Some(octets) if (1..=LONGEST_SERIAL).contains(&octets.len()) => Ok(Self(HEXLOWER.encode(octets))),
            _ => Err(Self::FAULT),
        }
    }

    /// The hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Serial {
    type Err = CredentialFault;

    fn from_str(text: &str) -> Result<Self, CredentialFault> {
        let octets = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| Self::FAULT)?;
        Self::from_bytes(&octets)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(Serial);

/// The authority that issued a certificate, by an id of the caller's choice that stays the same for as long as the
/// authority's key does, such as the hash of its public key: 1 to 64 octets in lower-case hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Issuer(String);

impl Issuer {
    const FAULT: CredentialFault =
        CredentialFault { what: "an issuer's id", form: "1 to 64 octets in hexadecimal, two digits each" };

    /// Takes the octets of an id.
    pub fn from_bytes(octets: &[u8]) -> Result<Self, CredentialFault> {
        let fits = (1..=LONGEST_ISSUER).contains(&octets.len());
        if fits { Ok(Self(HEXLOWER.encode(octets))) } else { Err(Self::FAULT) }
    }

    /// The hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Issuer {
    type Err = CredentialFault;

    fn from_str(text: &str) -> Result<Self, CredentialFault> {
        let octets = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| Self::FAULT)?;
        Self::from_bytes(&octets)
    }
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(Issuer);

/// The SHA-256 of a certificate's public key (its SubjectPublicKeyInfo in DER, RFC 5280 section 4.1.2.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    const FAULT: CredentialFault = CredentialFault { what: "a key hash", form: "64 hexadecimal digits" };

    /// Takes the hash.
    pub const fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl std::str::FromStr for KeyHash {
    type Err = CredentialFault;

    fn from_str(text: &str) -> Result<Self, CredentialFault> {
        let octets = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| Self::FAULT)?;
        octets.try_into().map(Self).map_err(|_| Self::FAULT)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

as_text!(KeyHash);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)+) => {
        /// Why a certificate was revoked: the reason codes of RFC 5280 section 5.3.1 that are final.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Reason { $($(#[$doc])* $name,)+ }

        impl Reason {
            /// The code in a revocation list.
            pub const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)+ }
            }

            /// The reason with this code.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }

            /// The reason as a word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// No reason is given.
    #[default]
    Unspecified = 0, "unspecified";
    /// The key is known to somebody else.
    KeyCompromise = 1, "key-compromise";
    /// The authority's key is known to somebody else.
    CaCompromise = 2, "ca-compromise";
    /// The holder has changed.
    AffiliationChanged = 3, "affiliation-changed";
    /// Another certificate takes its place.
    Superseded = 4, "superseded";
    /// The certificate is needed no more.
    CessationOfOperation = 5, "cessation-of-operation";
    /// What the certificate allowed is allowed no more.
    PrivilegeWithdrawn = 9, "privilege-withdrawn";
    /// The attribute authority's key is known to somebody else.
    AaCompromise = 10, "aa-compromise";
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_serial_number_has_one_form() {
        let one: Serial = "0a1b".parse().unwrap();

        for same in ["0A1B", "000a1b", "00000A1b"] {
            assert_eq!(same.parse::<Serial>().unwrap(), one, "{same}");
        }
        assert_eq!(Serial::from_bytes(&[0, 0x0a, 0x1b]).unwrap(), one);
        assert_eq!("0000".parse::<Serial>().unwrap().as_str(), "00");
    }

    #[test]
    fn what_is_no_serial_number_is_refused() {
        for bad in ["", "a", "0x0a", "zz", "0a 1b", "0a\n", &"11".repeat(41)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
        assert!("11".repeat(40).parse::<Serial>().is_ok());
        assert!(Serial::from_bytes(&[]).is_err());
    }

    #[test]
    fn key_hashes_and_issuers_keep_their_octets() {
        let hash = KeyHash::from_bytes([0; 32]);
        assert_eq!(hash.to_string().parse::<KeyHash>().unwrap(), hash);
        assert!("00".parse::<KeyHash>().is_err());
        assert!("00".repeat(33).parse::<KeyHash>().is_err());

        assert_eq!("00AB".parse::<Issuer>().unwrap().as_str(), "00ab");
        assert!("".parse::<Issuer>().is_err());
        assert!("00".repeat(65).parse::<Issuer>().is_err());
    }

    #[test]
    fn reason_codes_lead_back_to_their_reason() {
        for code in 0..=u8::MAX {
            if let Some(reason) = Reason::from_code(code) {
                assert_eq!(reason.code(), code);
                assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
            }
        }
        assert_eq!(Reason::from_code(6), None, "a hold could be taken back");
    }

    proptest! {
        #[test]
        fn equal_serial_numbers_are_equal_numbers(octets in prop::collection::vec(any::<u8>(), 1..24), zeros in 0..4usize) {
            let padded = [vec![0; zeros], octets.clone()].concat();

            let (plain, padded) = (Serial::from_bytes(&octets).unwrap(), Serial::from_bytes(&padded).unwrap());

            prop_assert_eq!(&plain, &padded);
            prop_assert_eq!(plain.to_string().parse::<Serial>().unwrap(), plain);
        }
    }
}
