//! Protocols in UDP, by form. Each function is told a whole datagram; none looks beyond [`LOOKS_AT`] bytes of
//! it.
//!
//! Conditions marked "apart" are no rule of the protocol: they keep two forms from overlapping, at the price
//! of one genuine datagram in 2⁴⁰ or fewer. See the crate's text.

use crate::answer::may_be_random;

/// A DNS header, the longest name, type and class.
pub(crate) const LOOKS_AT: usize = 12 + 255 + 4;

/// Length of WireGuard's handshake initiation.
pub(crate) const WIREGUARD_LEN: usize = 148;
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const QUIC_MIN: usize = 1200;
const IKE_HEADER: usize = 28;

/// `01 00 00 00`, 148 bytes.
pub(crate) fn wireguard(bytes: &[u8]) -> bool {
    bytes.len() == WIREGUARD_LEN
        && bytes.starts_with(&[1, 0, 0, 0])
        // Apart from DNS; from IKE.
        && !has_dns_counts(bytes)
        && !no_responder_spi(bytes)
}

/// Long header, Initial, a version in use (1, 2, a draft, or one that asks for negotiation), at least 1200
/// bytes.
pub(crate) fn quic(bytes: &[u8]) -> bool {
    let (Some(&first), Some(version), Some(&id_len)) =
        (bytes.first(), bytes.get(1..).and_then(<[u8]>::first_chunk::<4>), bytes.get(5))
    else {
        return false;
    };
    let initial = match version {
        [0, 0, 0, 1] | [0xff, 0, 0, 0x1d..=0x22] => first >> 4 == 0b1100,
        [0x6b, 0x33, 0x43, 0xcf] => first >> 4 == 0b1101,
        _ => first >> 6 == 0b11 && version.iter().all(|byte| byte & 0x0f == 0x0a),
    };
    // A first destination id has 8 to 20 bytes, a source id up to 20.
    let source_len = bytes.get(6 + usize::from(id_len));
    initial
        && (8..=20).contains(&id_len)
        && source_len.is_some_and(|&len| len <= 20)
        && bytes.len() >= QUIC_MIN
        // Apart from IKE.
        && !no_responder_spi(bytes)
}

/// A handshake record of DTLS 1.0 to 1.3 in epoch 0 that holds (a part of) a ClientHello.
pub(crate) fn dtls(bytes: &[u8]) -> bool {
    let Some((header, rest)) = bytes.split_first_chunk::<13>() else { return false };
    let [0x16, 0xfe, 0xff | 0xfd, 0, 0, _, _, _, _, _, _, len @ ..] = header else { return false };
    let len = usize::from(u16::from_be_bytes(*len));
    // Type, length, message number, and where in the message this part lies.
    let [1, _, _, _, 0, _, ..] = rest else { return false };
    (12..=rest.len()).contains(&len)
}

/// A request or indication with the magic cookie, of a method that is in use, with attributes that fill it.
pub(crate) fn stun(bytes: &[u8]) -> bool {
    let Some((header, attributes)) = bytes.split_first_chunk::<20>() else { return false };
    let [high, low, len_high, len_low, cookie @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
    let len = usize::from(u16::from_be_bytes([*len_high, *len_low]));
    // The low bit of the first byte is set in answers; methods above 0xff and method 0 do not exist.
    let method = u16::from(high & 2) << 6 | u16::from(low >> 5) << 4 | u16::from(low & 0x0f);
    high & 0xfd == 0
        && method != 0
        && cookie == &STUN_COOKIE
        && len % 4 == 0
        && len == attributes.len()
        // Apart from IKE.
        && !no_responder_spi(bytes)
}

/// One question and nothing but additional records, of which a query has at most two.
pub(crate) fn dns(bytes: &[u8]) -> bool {
    let Some((header, rest)) = bytes.split_first_chunk::<12>() else { return false };
    let [_, _, recursion, checking, _, _, _, _, _, _, 0, additional @ 0..=2] = header else { return false };
    if recursion & 0xfe != 0 || checking & 0xcf != 0 || !has_dns_counts(bytes) {
        return false;
    }
    let Some([_, _, 0, 1 | 3 | 4 | 255, records @ ..]) = after_name(rest) else { return false };
    // The shortest record has the root's name and no data.
    if *additional == 0 { records.is_empty() } else { records.len() >= 11 * usize::from(*additional) }
}

/// What follows a name without compression; `None` when it is none.
fn after_name(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    loop {
        let (&len, tail) = rest.split_first()?;
        rest = tail.get(usize::from(len)..)?;
        if len > 63 || bytes.len() - rest.len() > 255 {
            return None;
        }
        if len == 0 {
            return Some(rest);
        }
    }
}

/// The first message of IKEv1 (main or aggressive mode) or IKEv2 (IKE_SA_INIT), also behind the marker of
/// port 4500: an initiator's id, none of the responder, and the length of all.
pub(crate) fn ike(bytes: &[u8]) -> bool {
    let message = bytes.strip_prefix(&[0; 4]).unwrap_or(bytes);
    let Some(header) = message.first_chunk::<IKE_HEADER>() else { return false };
    let (ids, [payload, version, exchange, flags, number @ .., l0, l1, l2, l3]) = header.split_at(16) else {
        return false;
    };
    let first = match version {
        0x10 => *payload == 1 && matches!(exchange, 2 | 4) && *flags == 0,
        0x20 => *payload != 0 && *exchange == 34 && *flags == 0x08,
        _ => false,
    };
    first
        && may_be_random(ids, 0, 8)
        && no_responder_spi(ids)
        && number.iter().all(|&byte| byte == 0)
        && usize::try_from(u32::from_be_bytes([*l0, *l1, *l2, *l3])) == Ok(message.len())
}

/// Bytes 4 to 9 as in a DNS query: one question, no answer, no authority.
pub(crate) fn has_dns_counts(bytes: &[u8]) -> bool {
    bytes.get(4..10) == Some(&[0, 1, 0, 0, 0, 0])
}

/// Bytes 8 to 15 are zero: the responder's id in the first message of IKE.
fn no_responder_spi(bytes: &[u8]) -> bool {
    !may_be_random(bytes, 8, 16)
}
