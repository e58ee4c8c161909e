//! The PROXY protocol: who connected to a proxy, told by the first bytes of its connection to the server (HAProxy's
//! proxy-protocol.txt, versions 1 and 2).
//!
//! Anyone can write such bytes, so [`parse`] is for connections from proxies that are trusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bytes::{array, be16, put, put16};

/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = 16;
/// The first bytes of version 1.
const WORD: &[u8] = b"PROXY ";
/// The longest line of version 1, with its end.
const LONGEST_LINE: usize = 107;
/// The longest header of version 2 that is taken for one; addresses need 52 bytes, the rest is extras.
pub const MAX_LEN: usize = 2048;
/// The longest header that [`build`] makes.
pub const MAX_BUILT: usize = FIXED + 36;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// They may become a header.
    More,
    /// They are none.
    None,
    /// A header.
    Header {
        /// Its bytes; what the client sent begins behind them.
        length: usize,
        /// Who connected to whom; `None` when the proxy speaks for itself or names no IP addresses: then those of the
        /// connection count.
        addresses: Option<Addresses>,
    },
}

/// Both ends of the connection that a proxy took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
}

/// What the proxied connection consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
}

/// Reads the header that `bytes`, the first of a connection, begin with.
#[must_use]
pub fn parse(bytes: &[u8]) -> Preamble {
    if agree(bytes, SIGNATURE) {
        version_2(bytes).unwrap_or(Preamble::More)
    } else if agree(bytes, WORD) {
        version_1(bytes)
    } else {
        Preamble::None
    }
}

/// Writes a header of version 2 and returns its length; `None` when `out` has no room. Addresses of two families are
/// both written as IPv6.
pub fn build(out: &mut [u8], source: SocketAddr, destination: SocketAddr, kind: Kind) -> Option<usize> {
    let kind = match kind {
        Kind::Stream => 1,
        Kind::Datagram => 2,
    };
    put(out, 0, SIGNATURE)?;
    let (family, ports) = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            put(out, FIXED, &source.octets())?;
            put(out, FIXED + 4, &destination.octets())?;
            (0x10, FIXED + 8)
        }
        (source, destination) => {
            put(out, FIXED, &mapped(source).octets())?;
            put(out, FIXED + 16, &mapped(destination).octets())?;
            (0x20, FIXED + 32)
        }
    };
    put(out, 12, &[0x21, family | kind])?;
    put16(out, 14, u16::try_from(ports + 4 - FIXED).ok()?)?;
    put16(out, ports, source.port())?;
    put16(out, ports + 2, destination.port())?;
    Some(ports + 4)
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// One of them begins with the other.
fn agree(bytes: &[u8], expected: &[u8]) -> bool {
    bytes.iter().zip(expected).all(|(byte, expected)| byte == expected)
}

/// `None` while bytes are missing.
fn version_2(bytes: &[u8]) -> Option<Preamble> {
    let command = *bytes.get(12)?;
    if !matches!(command, 0x20 | 0x21) {
        return Some(Preamble::None);
    }
    let family = *bytes.get(13)?;
    let length = FIXED + usize::from(be16(bytes, 14)?);
    if length > MAX_LEN {
        return Some(Preamble::None);
    }
    let body = bytes.get(FIXED..length)?;
    let addresses = match (command, family) {
        (0x21, 0x11 | 0x12) => pair::<4, Ipv4Addr>(body),
        (0x21, 0x21 | 0x22) => pair::<16, Ipv6Addr>(body),
        _ => return Some(Preamble::Header { length, addresses: None }),
    };
    // Addresses that are announced and do not fit are a lie.
    Some(
        addresses.map_or(Preamble::None, |addresses| Preamble::Header { length, addresses: Some(addresses) }),
    )
}

/// Two addresses of `N` bytes, then two ports.
fn pair<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(body: &[u8]) -> Option<Addresses> {
    let address = |at| Some(A::from(array::<N>(body, at)?).into().to_canonical());
    let (source, destination) = (address(0)?, address(N)?);
    Some(Addresses {
        source: (source, be16(body, 2 * N)?).into(),
        destination: (destination, be16(body, 2 * N + 2)?).into(),
    })
}

fn version_1(bytes: &[u8]) -> Preamble {
    let start = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(end) = start.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LONGEST_LINE { Preamble::More } else { Preamble::None };
    };
    let length = end + 2;
    let line = start.get(WORD.len()..end).unwrap_or_default();
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Preamble::Header { length, addresses: None };
    }
    let addresses = std::str::from_utf8(line).ok().and_then(words);
    addresses.map_or(Preamble::None, |addresses| Preamble::Header { length, addresses: Some(addresses) })
}

/// `TCP4 source destination source-port destination-port`.
fn words(line: &str) -> Option<Addresses> {
    let mut words = line.split(' ');
    let v4 = match words.next()? {
        "TCP4" => true,
        "TCP6" => false,
        _ => return None,
    };
    let mut address = || words.next()?.parse().ok().filter(|address: &IpAddr| address.is_ipv4() == v4);
    let (source, destination) = (address()?, address()?);
    let mut port =
        || words.next().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok();
    let (source_port, destination_port) = (port()?, port()?);
    if words.next().is_some() {
        return None;
    }
    Some(Addresses {
        source: (source.to_canonical(), source_port).into(),
        destination: (destination.to_canonical(), destination_port).into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(length: usize, source: &str, destination: &str) -> Preamble {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Preamble::Header { length, addresses: Some(Addresses { source, destination }) }
    }

    #[test]
    fn built_headers_are_the_bytes_of_the_specification() {
        let mut out = [0; MAX_BUILT];
        let length = build(
            &mut out,
            "192.0.2.1:4660".parse().unwrap(),
            "198.51.100.7:443".parse().unwrap(),
            Kind::Stream,
        );
        let v4: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x07\x12\x34\x01\xbb";
        assert_eq!(&out[..length.unwrap()], v4);

        let length = build(
            &mut out,
            "[2001:db8::1]:1".parse().unwrap(),
            "198.51.100.7:2".parse().unwrap(),
            Kind::Datagram,
        );
        let v6: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x22\0\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\
            \0\0\0\0\0\0\0\0\0\0\xff\xff\xc6\x33\x64\x07\0\x01\0\x02";
        assert_eq!(&out[..length.unwrap()], v6);
        assert_eq!(parse(v6), header(52, "[2001:db8::1]:1", "198.51.100.7:2"));
    }

    #[test]
    fn every_beginning_of_a_header_waits_for_the_rest() {
        let v1 = b"PROXY TCP4 192.0.2.1 198.51.100.7 4660 443\r\n";
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc0\0\x02\x01\xc6\x33\x64\x07\x12\x34\x01\xbb\x04\0\0";
        for whole in [&v1[..], v2] {
            for length in 0..whole.len() {
                assert_eq!(parse(&whole[..length]), Preamble::More, "{length}");
            }
            let expected = header(whole.len(), "192.0.2.1:4660", "198.51.100.7:443");
            assert_eq!(parse(whole), expected);
            assert_eq!(parse(&[whole, b"hello"].concat()), expected);
        }
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_names_nobody() {
        for bytes in [
            &b"PROXY UNKNOWN\r\n"[..],
            b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x07\x12\x34\x01\xbb",
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
            b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0",
        ] {
            assert_eq!(parse(bytes), Preamble::Header { length: bytes.len(), addresses: None });
        }
    }

    #[test]
    fn what_only_resembles_a_header_is_none() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 107]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY\tTCP4",
            b"PROXY TCP4 ::1 ::2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY \xff\r\n",
            &long,
            b"\r\n\r\n\0\r\nQUIT\n\x11",
            b"\r\n\r\n\0\r\nQUIT\n\x22",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b\xc0\0\x02\x01\xc6\x33\x64\x07\x12\x34\x01",
            b"\r\n\r\n\0\r\nQUIT\r",
        ] {
            assert_eq!(parse(bytes), Preamble::None, "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn whatever_is_built_is_read_again(source: SocketAddr, destination: SocketAddr, datagram: bool) {
            let kind = if datagram { Kind::Datagram } else { Kind::Stream };
            let mut out = [0; MAX_BUILT];
            let length = build(&mut out, source, destination, kind).unwrap();
            let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
            let addresses = Some(Addresses { source: plain(source), destination: plain(destination) });
            prop_assert_eq!(parse(&out[..length]), Preamble::Header { length, addresses });
            prop_assert_eq!(build(&mut out[..length - 1], source, destination, kind), None);
        }

        #[test]
        fn random_bytes_give_a_header_within_them_or_none(
            start in prop::sample::select(vec![&SIGNATURE[..], WORD, b""]),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [start, &rest].concat();
            if let Preamble::Header { length, .. } = parse(&bytes) {
                prop_assert!(length <= bytes.len());
                prop_assert_eq!(parse(&bytes[..length]), parse(&bytes));
            }
        }
    }
}
