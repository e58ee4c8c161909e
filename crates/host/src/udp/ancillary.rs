//! Addresses and control messages as the kernel lays them out, written and read as plain bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::c_int;

use super::messages::Address;

/// Length of `struct sockaddr_in6`, the longer of the two.
const NAME_LEN: usize = 28;
/// Length of `struct sockaddr_in`.
const NAME_LEN_V4: usize = 16;

/// A `struct sockaddr_in` or `sockaddr_in6`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Name([u8; NAME_LEN]);

impl Name {
    pub(super) const EMPTY: Self = Self([0; NAME_LEN]);
    pub(super) const LEN: usize = NAME_LEN;

    /// Writes `address` for a socket of the given family and returns the length: on an IPv6 socket an IPv4
    /// address stands in its mapped form (RFC 4291 §2.5.5.2).
    pub(super) fn write(&mut self, address: SocketAddr, v6_socket: bool) -> usize {
        self.0 = [0; NAME_LEN];
        let (family, length) = match (address, v6_socket) {
            (SocketAddr::V4(v4), false) => {
                self.put(4, &v4.ip().octets());
                (libc::AF_INET, NAME_LEN_V4)
            }
            (SocketAddr::V4(v4), true) => {
                self.put(8, &v4.ip().to_ipv6_mapped().octets());
                (libc::AF_INET6, NAME_LEN)
            }
            (SocketAddr::V6(v6), _) => {
                self.put(8, &v6.ip().octets());
                self.put(24, &v6.scope_id().to_ne_bytes());
                (libc::AF_INET6, NAME_LEN)
            }
        };
        self.put(0, &(family as u16).to_ne_bytes());
        self.put(2, &address.port().to_be_bytes());
        length
    }

    /// An address as the kernel wrote it elsewhere.
    fn copied(bytes: &[u8]) -> Self {
        let mut name = Self::EMPTY;
        name.put(0, bytes);
        name
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// Reads an address of `length` bytes; a mapped one becomes IPv4. `None` for anything else.
    pub(super) fn read(&self, length: usize) -> Option<SocketAddr> {
        let bytes = self.0.get(..length)?;
        let port = u16::from_be_bytes(array(bytes, 2)?);
        match c_int::from(u16::from_ne_bytes(array(bytes, 0)?)) {
            libc::AF_INET => Some((Ipv4Addr::from(array::<4>(bytes, 4)?), port).into()),
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(array::<16>(bytes, 8)?);
                Some(match ip.to_ipv4_mapped() {
                    Some(v4) => (v4, port).into(),
                    None => SocketAddrV6::new(ip, port, 0, u32::from_ne_bytes(array(bytes, 24)?)).into(),
                })
            }
            _ => None,
        }
    }
}

/// Length of `struct cmsghdr`: a size, a level and a type.
const HEADER: usize = size_of::<usize>() + 2 * size_of::<c_int>();

/// Bytes one control message of `data` bytes takes up: both parts are padded to the size of a pointer.
const fn space(data: usize) -> usize {
    HEADER.next_multiple_of(size_of::<usize>()) + data.next_multiple_of(size_of::<usize>())
}

/// Lengths of `struct in6_pktinfo` and `struct in_pktinfo`.
const PKTINFO_V6: usize = 20;
const PKTINFO_V4: usize = 12;

/// Room for everything a socket of this crate may be told about one datagram: the local address in two forms,
/// the TOS or traffic class, and one more number.
const CONTROL_LEN: usize = 144;
const _: () = assert!(space(NAME_LEN) + space(PKTINFO_V6) + 2 * space(size_of::<c_int>()) <= CONTROL_LEN);

/// Control messages of one datagram.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; CONTROL_LEN]);

/// What the kernel said about a received datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Arrival {
    /// The address it was sent to.
    pub(super) local: Option<IpAddr>,
    /// The address and port it was sent to, where the socket asked for that.
    pub(super) dialled: Option<SocketAddr>,
    /// The whole TOS or traffic class byte.
    pub(super) traffic_class: u8,
    /// Bytes of each datagram but the last, where the kernel joined several; else 0.
    pub(super) segment: usize,
}

impl Control {
    pub(super) const EMPTY: Self = Self([0; CONTROL_LEN]);
    pub(super) const LEN: usize = CONTROL_LEN;

    /// Writes what goes with a datagram, and returns the length: the source address, the ECN bits if they are not
    /// zero, and the size of the datagrams that it is to be cut into if that is not zero.
    pub(super) fn write(&mut self, address: &Address) -> usize {
        let Address { remote, local, v6_socket, ecn, segment } = *address;
        let mut at = local.map_or(0, |source| self.put_source(source, v6_socket));
        if ecn != 0 {
            // By the datagram's version: an IPv6 socket sends IPv4 with IPv4's field.
            let (level, kind) = match remote {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            at = self.put(at, level, kind, &c_int::from(ecn).to_ne_bytes());
        }
        if segment != 0 {
            at = self.put(at, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        at
    }

    fn put_source(&mut self, source: IpAddr, v6_socket: bool) -> usize {
        // An IPv6 source on an IPv4 socket becomes a message the kernel refuses, rather than one it
        // overlooks.
        let level = if v6_socket { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
        match (source, v6_socket) {
            (IpAddr::V4(v4), false) => {
                // Interface index, source, and the destination of received datagrams.
                let mut info = [0; PKTINFO_V4];
                copy(&mut info, 4, &v4.octets());
                self.put(0, level, libc::IP_PKTINFO, &info)
            }
            (source, _) => {
                let v6 = match source {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                let mut info = [0; PKTINFO_V6];
                copy(&mut info, 0, &v6.octets());
                self.put(0, level, libc::IPV6_PKTINFO, &info)
            }
        }
    }

    /// Writes one message at `at`; returns where the next one goes.
    fn put(&mut self, at: usize, level: c_int, kind: c_int, data: &[u8]) -> usize {
        copy(&mut self.0, at, &(HEADER + data.len()).to_ne_bytes());
        copy(&mut self.0, at + size_of::<usize>(), &level.to_ne_bytes());
        copy(&mut self.0, at + size_of::<usize>() + size_of::<c_int>(), &kind.to_ne_bytes());
        copy(&mut self.0, at + HEADER, data);
        at + space(data.len())
    }

    /// Reads the messages in the first `length` bytes; unknown ones are passed over.
    pub(super) fn read(&self, length: usize) -> Arrival {
        let mut arrival = Arrival::default();
        let mut rest = self.0.get(..length).unwrap_or(&self.0);
        while let Some((level, kind, data)) = message(rest) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    arrival.local = array::<4>(data, 8).map(|octets| Ipv4Addr::from(octets).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    arrival.local = array::<16>(data, 0).map(|octets| Ipv6Addr::from(octets).to_canonical());
                }
                (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) | (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) => {
                    arrival.dialled = Name::copied(data).read(data.len());
                }
                // One byte for IPv4, a number for IPv6 (RFC 3542 §6.5).
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    arrival.traffic_class = data.first().copied().unwrap_or_default();
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    arrival.traffic_class = array(data, 0).map_or(0, c_int::from_ne_bytes) as u8;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = array(data, 0).map_or(0, c_int::from_ne_bytes);
                    arrival.segment = usize::try_from(size).unwrap_or_default();
                }
                _ => {}
            }
            rest = rest.get(space(data.len())..).unwrap_or_default();
        }
        arrival
    }
}

/// Level, type and data of the first message in `bytes`.
fn message(bytes: &[u8]) -> Option<(c_int, c_int, &[u8])> {
    let length = usize::from_ne_bytes(array(bytes, 0)?);
    let level = c_int::from_ne_bytes(array(bytes, size_of::<usize>())?);
    let kind = c_int::from_ne_bytes(array(bytes, size_of::<usize>() + size_of::<c_int>())?);
    Some((level, kind, bytes.get(HEADER..length)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn copy(to: &mut [u8], at: usize, from: &[u8]) {
    for (to, from) in to.iter_mut().skip(at).zip(from) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_survive_the_way_through_the_kernels_layout() {
        for address in ["192.0.2.1:443", "[2001:db8::1]:65535", "[fe80::1%7]:1"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut name = Name::EMPTY;

            let length = name.write(address, address.is_ipv6());

            assert_eq!(name.read(length), Some(address));
        }
    }

    #[test]
    fn an_ipv4_address_on_an_ipv6_socket_is_mapped_and_comes_back_as_ipv4() {
        let mut name = Name::EMPTY;

        let length = name.write("192.0.2.1:443".parse().unwrap(), true);

        assert_eq!(
            (length, &name.0[8..24]),
            (28, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1][..])
        );
        assert_eq!(name.read(length), Some("192.0.2.1:443".parse().unwrap()));
    }

    #[test]
    fn the_layout_is_that_of_libc() {
        assert_eq!(NAME_LEN, size_of::<libc::sockaddr_in6>());
        assert_eq!(NAME_LEN_V4, size_of::<libc::sockaddr_in>());
        assert_eq!(HEADER, size_of::<libc::cmsghdr>());
        assert_eq!(PKTINFO_V4, size_of::<libc::in_pktinfo>());
        assert_eq!(PKTINFO_V6, size_of::<libc::in6_pktinfo>());
    }

    #[test]
    fn several_messages_are_read_and_strange_ones_passed_over() {
        let mut control = Control::EMPTY;
        let mut bytes = Vec::new();
        let mut add = |level: c_int, kind: c_int, data: &[u8]| {
            let length = control.put(0, level, kind, data);
            bytes.extend_from_slice(&control.0[..length]);
        };
        add(libc::SOL_SOCKET, 999, &[1, 2, 3]);
        add(libc::IPPROTO_IP, libc::IP_TOS, &[0xb9]);
        add(libc::IPPROTO_IP, libc::IP_PKTINFO, &[1, 0, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1]);
        let mut name = Name::EMPTY;
        let length = name.write("192.0.2.9:4443".parse().unwrap(), false);
        add(libc::IPPROTO_IP, libc::IP_ORIGDSTADDR, &name.0[..length]);
        add(libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes());
        let mut control = Control::EMPTY;
        control.0[..bytes.len()].copy_from_slice(&bytes);

        let arrival = control.read(bytes.len());

        let dialled = Some("192.0.2.9:4443".parse().unwrap());
        assert_eq!(
            arrival,
            Arrival {
                local: Some("192.0.2.1".parse().unwrap()),
                dialled,
                traffic_class: 0xb9,
                segment: 1452
            }
        );
    }

    #[test]
    fn what_goes_with_a_datagram_is_written_one_behind_the_other() {
        let mut control = Control::EMPTY;
        let remote = "[2001:db8::1]:1".parse().unwrap();
        let local = Some("2001:db8::2".parse().unwrap());
        let whole = Address { remote, local, v6_socket: true, ecn: 2, segment: 1200 };

        let length = control.write(&whole);

        assert_eq!(length, space(PKTINFO_V6) + space(4) + space(2));
        let arrival = control.read(length);
        assert_eq!((arrival.local, arrival.traffic_class), (local, 2));
        assert_eq!(control.write(&Address { local: None, ecn: 0, segment: 0, ..whole }), 0);
    }

    proptest! {
        #[test]
        fn random_control_bytes_never_panic_and_reading_them_ends(
            bytes: [u8; CONTROL_LEN],
            lengths in prop::collection::vec((0..CONTROL_LEN / 8, 0..64usize), 0..6),
            length in 0..200usize,
        ) {
            let mut control = Control(bytes);
            for (at, value) in lengths {
                copy(&mut control.0, at * 8, &value.to_ne_bytes());
            }
            let _ = control.read(length);
        }
    }
}
