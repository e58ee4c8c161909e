//! OpenVPN's first packets, by form.
//!
//! ```text
//! plain       : 38 | sid 8 | 00 × 5                                       14 bytes
//! tls-auth    : 38 | sid 8 | HMAC n | id 4 | time 4 | 00 × 5              22 + n bytes
//! tls-crypt   : 38 | sid 8 | id 4 | time 4 | tag 32 | sealed 5            54 bytes
//! tls-crypt-v2: 50 | sid 8 | id 4 | time 4 | tag 32 | sealed 5 | key w    54 + w bytes, w = the last two
//! ```
//!
//! In a TCP connection two bytes of length come first.

use std::fmt;

use adit_openvpn::packet::{KeyId, Opcode};
use adit_openvpn::wkc;
use adit_openvpn::wrap::Digest;

use crate::answer::{Answer, may_be_random, may_be_zeros};

/// The most bytes of a TCP beginning that are looked at: a first packet with the largest wrapped key.
pub(crate) const LOOKS_AT: usize = 2 + wkc::FIRST_LEN + wkc::MAX_LEN;

/// First byte of a first packet; with tls-crypt-v2; both for key 0.
const FIRST: u8 = 0x38;
const FIRST_V2: u8 = 0x50;

/// Sizes of the HMACs OpenVPN builds offer for tls-auth: MD5, SHA1, SHA224, SHA256, SHA384, SHA512.
const MACS: [usize; 6] = [16, 20, 28, 32, 48, 64];
const PLAIN_LEN: usize = 14;
const CRYPT_LEN: usize = 54;

/// Which of OpenVPN's first packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenVpnForm {
    /// Any of the others.
    Any,
    /// Without protection.
    Plain,
    /// tls-auth with this digest, or with any.
    TlsAuth(Option<Digest>),
    /// tls-crypt.
    TlsCrypt,
    /// tls-crypt-v2.
    TlsCryptV2,
}

impl fmt::Display for OpenVpnForm {
    /// As in a named probe.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("openvpn"),
            Self::Plain => f.write_str("openvpn none"),
            Self::TlsAuth(None) => f.write_str("openvpn tls-auth"),
            Self::TlsAuth(Some(digest)) => write!(f, "openvpn tls-auth auth={}", digest.name()),
            Self::TlsCrypt => f.write_str("openvpn tls-crypt"),
            Self::TlsCryptV2 => f.write_str("openvpn tls-crypt-v2"),
        }
    }
}

impl OpenVpnForm {
    fn includes(self, kind: Kind) -> bool {
        match self {
            Self::Any => true,
            Self::Plain => kind == Kind::Plain,
            Self::TlsAuth(None) => matches!(kind, Kind::TlsAuth { .. }),
            Self::TlsAuth(Some(digest)) => kind == Kind::TlsAuth { mac: digest.size() },
            Self::TlsCrypt => kind == Kind::TlsCrypt,
            Self::TlsCryptV2 => kind == Kind::TlsCryptV2,
        }
    }

    /// True when packets of both forms have one length, so that form alone is no proof of either.
    pub(crate) fn looks_like(self, other: Self) -> bool {
        let ambiguous = |form| matches!(form, Self::TlsAuth(None | Some(Digest::Sha256)));
        (self == Self::TlsCrypt && ambiguous(other)) || (ambiguous(self) && other == Self::TlsCrypt)
    }

    pub(crate) fn datagram(self, bytes: &[u8]) -> bool {
        self.packet(bytes, bytes.len()) == Answer::Yes
    }

    pub(crate) fn stream(self, bytes: &[u8]) -> Answer {
        match record(bytes) {
            Record::Prefix(high) => {
                let short = high.is_none_or(|high| high == 0) && self != Self::TlsCryptV2;
                let long = is_v2_high(high) && self.includes(Kind::TlsCryptV2);
                if short || long { Answer::More } else { Answer::No }
            }
            // `04 01` and `04 02` are how SOCKS4 begins, and wrapped keys of just that length are rare.
            Record::Packet(_, 0x0401 | 0x0402) => Answer::No,
            Record::Packet(packet, len) => self.packet(packet, len),
        }
    }

    /// Judges as much as there is of a packet of `len` bytes.
    fn packet(self, packet: &[u8], len: usize) -> Answer {
        if matches!(packet.first(), Some(byte) if ![FIRST, FIRST_V2].contains(byte)) {
            return Answer::No;
        }
        let auth = len.checked_sub(22).filter(|mac| MACS.contains(mac)).map(|mac| Kind::TlsAuth { mac });
        let kinds = [
            (len == PLAIN_LEN).then_some(Kind::Plain),
            (len == CRYPT_LEN).then_some(Kind::TlsCrypt),
            is_v2_len(len).then_some(Kind::TlsCryptV2),
            auth,
        ];
        let mut possible = kinds.into_iter().flatten();
        if !possible.any(|kind| self.includes(kind) && kind.fits(packet, len)) {
            Answer::No
        } else if packet.len() < len {
            Answer::More
        } else {
            Answer::Yes
        }
    }
}

/// True for lengths of first packets with a wrapped key.
pub(crate) fn is_v2_len(len: usize) -> bool {
    (wkc::FIRST_LEN + wkc::MIN_LEN..=wkc::FIRST_LEN + wkc::MAX_LEN).contains(&len)
}

/// True when such a length may begin with this byte, if there is one yet.
pub(crate) fn is_v2_high(high: Option<u8>) -> bool {
    const HIGH: std::ops::RangeInclusive<usize> =
        (wkc::FIRST_LEN + wkc::MIN_LEN) >> 8..=(wkc::FIRST_LEN + wkc::MAX_LEN) >> 8;
    high.is_none_or(|high| HIGH.contains(&usize::from(high)))
}

/// The beginning of OpenVPN's framing in TCP.
pub(crate) enum Record<'a> {
    /// Nothing, or the upper byte of the length.
    Prefix(Option<u8>),
    /// As much as there is of the packet, and its whole length.
    Packet(&'a [u8], usize),
}

pub(crate) fn record(bytes: &[u8]) -> Record<'_> {
    let Some((len, rest)) = bytes.split_first_chunk() else { return Record::Prefix(bytes.first().copied()) };
    let len = usize::from(u16::from_be_bytes(*len));
    Record::Packet(rest.get(..len).unwrap_or(rest), len)
}

/// True when `byte` begins the first packet of a client with, or without, a wrapped key.
pub(crate) fn is_first_byte(byte: u8, v2: bool) -> bool {
    let opcode = if v2 { Opcode::HardResetClientV3 } else { Opcode::HardResetClientV2 };
    byte == opcode.with(KeyId::FIRST)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    TlsAuth { mac: usize },
    TlsCrypt,
    TlsCryptV2,
}

impl Kind {
    /// Whether nothing that is there of a packet of `len` bytes speaks against this kind. The conditions
    /// marked "apart" are those that keep other protocols out, see the crate's text.
    fn fits(self, packet: &[u8], len: usize) -> bool {
        let first = packet.first().is_none_or(|&byte| is_first_byte(byte, self == Self::TlsCryptV2));
        let session = may_be_random(packet, 1, 9);
        let apart = !crate::datagram::has_dns_counts(packet);
        first
            && session
            && apart
            && match self {
                Self::Plain => may_be_zeros(packet, 9, 14),
                Self::TlsAuth { mac } => {
                    // The seven bytes are apart from IKE, where they are zero.
                    may_be_random(packet, 9, 16)
                        && small_number(packet, 9 + mac, &[0])
                        && may_be_zeros(packet, len - 5, len)
                }
                Self::TlsCrypt => small_number(packet, 9, &[0]),
                Self::TlsCryptV2 => {
                    let wrapped = packet.get(len - 2..len);
                    small_number(packet, 9, &[0, 0x0f])
                        && wrapped.is_none_or(|w| w == ((len - wkc::FIRST_LEN) as u16).to_be_bytes())
                }
            }
    }
}

/// Whether a replay id of 1 to 255 may stand at `at`: clients start counting with each attempt. `high` is
/// what its highest byte may be.
fn small_number(packet: &[u8], at: usize, high: &[u8]) -> bool {
    packet.get(at).is_none_or(|byte| high.contains(byte))
        && may_be_zeros(packet, at + 1, at + 3)
        && packet.get(at + 3) != Some(&0)
}
