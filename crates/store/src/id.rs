//! 128-bit ids, random but for the first half of a session's, one type for each kind of thing.

use std::fmt;

use data_encoding::HEXLOWER;

use crate::fault::StoreFault;

/// A text that is not an id: ids are 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id; an id is 32 lower-case hexadecimal digits")]
pub struct IdFault;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        ///
        /// Written as 32 lower-case hexadecimal digits.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// A new random id.
            pub(crate) fn random() -> Result<Self, StoreFault> {
                random_octets().map(Self)
            }

            /// The digits, without allocating.
            pub(crate) fn hex(self) -> Hex {
                Hex::of(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.hex().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdFault;

            fn from_str(text: &str) -> Result<Self, IdFault> {
                parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdFault;

            fn try_from(text: String) -> Result<Self, IdFault> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    )+};
}

ids! {
    /// A gateway: the owner of its own journal of sessions, leases and audit rows.
    GatewayId;
    /// A user.
    UserId;
    /// A device of a user.
    DeviceId;
    /// A session of a device. The first eight octets are its place in its gateway's journal.
    SessionId;
    /// A lease of inner addresses.
    LeaseId;
    /// A forwarded port.
    ForwardId;
}

impl SessionId {
    /// A new id for the session at a place in the journal. It begins with the place, and eight octets are random: so
    /// the row is found by its place, and the ids need no index, which would cost each login one more page.
    pub(crate) fn at(seq: i64) -> Result<Self, StoreFault> {
        let Self(mut bytes) = Self::random()?;
        for (byte, place) in bytes.iter_mut().zip(seq.to_be_bytes()) {
            *byte = place;
        }
        Ok(Self(bytes))
    }

    /// The place in the journal at which the session is, if it is one of this gateway's.
    pub(crate) fn seq(self) -> i64 {
        (u128::from_be_bytes(self.0) >> 64) as i64
    }
}

/// An id's digits on the stack.
pub(crate) struct Hex([u8; 32]);

impl Hex {
    fn of(bytes: [u8; 16]) -> Self {
        let mut digits = [0; 32];
        HEXLOWER.encode_mut(&bytes, &mut digits);
        Self(digits)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

/// Random octets of the system's.
pub(crate) fn random_octets<const N: usize>() -> Result<[u8; N], StoreFault> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StoreFault::Randomness)?;
    Ok(bytes)
}

fn parse(text: &str) -> Result<[u8; 16], IdFault> {
    if text.len() != 32 {
        return Err(IdFault);
    }
    let mut bytes = [0; 16];
    HEXLOWER.decode_mut(text.as_bytes(), &mut bytes).map_err(|_| IdFault)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_being_written_and_read() {
        let id = UserId::random().unwrap();

        assert_eq!(id.to_string().parse::<UserId>().unwrap(), id);
        assert_eq!(serde_json::from_str::<UserId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
        assert_ne!(UserId::random().unwrap(), id);
    }

    #[test]
    fn only_32_lower_case_digits_are_an_id() {
        let good = "00112233445566778899aabbccddeeff";
        assert!(good.parse::<UserId>().is_ok());

        for bad in ["", "00", &good.to_uppercase(), &format!("{good}00"), &good.replace('0', "g"), "é"] {
            assert_eq!(bad.parse::<UserId>(), Err(IdFault), "{bad}");
        }
    }
}
