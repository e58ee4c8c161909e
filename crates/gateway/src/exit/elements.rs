//! Leases as elements of the kernel's maps.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use adit_host::nft::{Change, ElementChange};
use adit_plan::nat::{Block, Forwards};
use adit_plan::rules::{BLOCKS, FORWARDS, FORWARDS_ANY, SITES};
use ipnet::Ipv4Net;

use crate::machine_state::NAT_TABLE;

/// The number of TCP in an IP header (RFC 9293).
pub(crate) const TCP: u8 = 6;
/// The number of UDP (RFC 768).
pub(crate) const UDP: u8 = 17;

/// A port that is forwarded to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    /// [`TCP`] or [`UDP`].
    pub(crate) protocol: u8,
    /// The port outside.
    pub(crate) port: u16,
    /// The port on the device.
    pub(crate) to: u16,
}

/// What a lease has of the outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outlet {
    /// Its inner address.
    pub(crate) inner: Option<Ipv4Addr>,
    /// Its source ports.
    pub(crate) block: Option<Block>,
    /// Networks behind the device that leave by them too.
    pub(crate) sites: Vec<Ipv4Net>,
    /// What is let in.
    pub(crate) ways: Vec<Way>,
}

/// A key of one of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// Of `blocks`.
    Inner(Ipv4Addr),
    /// Of `sites`.
    Site(Ipv4Net),
    /// Of `forwards`: protocol, address and port.
    Forward(u8, Ipv4Addr, u16),
    /// Of `forwards_any`: protocol and port.
    ForwardAny(u8, u16),
}

impl Key {
    /// The key of a forward that has these bytes.
    pub(crate) fn forward(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [protocol, _, _, _, a, b, c, d, high, low, _, _] => {
                Some(Self::Forward(protocol, [a, b, c, d].into(), u16::from_be_bytes([high, low])))
            }
            [protocol, _, _, _, high, low, _, _] => {
                Some(Self::ForwardAny(protocol, u16::from_be_bytes([high, low])))
            }
            _ => None,
        }
    }

    pub(crate) fn set(self) -> &'static str {
        match self {
            Self::Inner(_) => BLOCKS,
            Self::Site(_) => SITES,
            Self::Forward(..) => FORWARDS,
            Self::ForwardAny(..) => FORWARDS_ANY,
        }
    }

    /// Each part fills whole registers of four bytes.
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Inner(address) => address.octets().to_vec(),
            Self::Site(net) => net.network().octets().to_vec(),
            Self::Forward(protocol, address, port) => {
                [&[protocol, 0, 0, 0][..], &address.octets(), &padded(port)].concat()
            }
            Self::ForwardAny(protocol, port) => [[protocol, 0, 0, 0], padded(port)].concat(),
        }
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The elements of an outlet; forwards lead in from `places`.
pub(crate) fn of(outlet: &Outlet, places: Option<&Forwards>) -> BTreeMap<Key, Vec<u8>> {
    let mut elements = BTreeMap::new();
    if let (Some(inner), Some(block)) = (outlet.inner, outlet.block) {
        let Block { address, from, to } = block;
        let data = [address.octets(), padded(from), address.octets(), padded(to)].concat();
        elements.extend(outlet.sites.iter().map(|net| (Key::Site(*net), data.clone())));
        elements.insert(Key::Inner(inner), data);
    }
    if let (Some(inner), Some(places)) = (outlet.inner, places) {
        for way in outlet.ways.iter().filter(|way| places.ports.contains(way.port)) {
            let data = [inner.octets(), padded(way.to)].concat();
            for key in keys(way, places) {
                elements.insert(key, data.clone());
            }
        }
    }
    elements
}

/// The keys of a forward.
pub(crate) fn keys(way: &Way, places: &Forwards) -> Vec<Key> {
    match places.addresses.as_slice() {
        [] => vec![Key::ForwardAny(way.protocol, way.port)],
        addresses => addresses.iter().map(|address| Key::Forward(way.protocol, *address, way.port)).collect(),
    }
}

/// What leads from one state of the maps to another.
pub(crate) fn difference(old: &BTreeMap<Key, Vec<u8>>, new: &BTreeMap<Key, Vec<u8>>) -> Vec<ElementChange> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|key| (*key, None));
    let other = new.iter().filter(|(key, data)| old.get(key) != Some(data));
    let change = |(key, data): (Key, Option<&Vec<u8>>)| {
        let change = match (key, data) {
            (Key::Site(net), data) => {
                // Nothing lies behind the last address there is.
                let end = u32::from(net.broadcast()).checked_add(1).map(|end| end.to_be_bytes().to_vec());
                let from = key.bytes();
                match data {
                    Some(data) => Change::AddInterval { from, end, data: data.clone() },
                    None => Change::RemoveInterval { from, end },
                }
            }
            (_, Some(data)) => Change::Add { key: key.bytes(), data: data.clone() },
            (_, None) => Change::Remove { key: key.bytes() },
        };
        ElementChange { table: NAT_TABLE.to_owned(), set: key.set().to_owned(), change }
    };
    gone.chain(other.map(|(key, data)| (*key, Some(data)))).map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlet() -> Outlet {
        Outlet {
            inner: Some("10.88.0.2".parse().unwrap()),
            block: Some(Block { address: "192.0.2.1".parse().unwrap(), from: 40_000, to: 40_063 }),
            sites: vec!["192.168.7.0/24".parse().unwrap()],
            ways: vec![Way { protocol: TCP, port: 30_022, to: 22 }, Way { protocol: UDP, port: 9, to: 9 }],
        }
    }

    fn places(addresses: &[&str]) -> Forwards {
        Forwards {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ports: "30000-39999".parse().unwrap(),
        }
    }

    #[test]
    fn keys_and_data_have_the_kernels_form() {
        let elements = of(&outlet(), Some(&places(&["192.0.2.1"])));
        let bytes: Vec<_> =
            elements.iter().map(|(key, data)| (key.set(), key.bytes(), data.as_slice())).collect();
        let block = [192, 0, 2, 1, 0x9c, 0x40, 0, 0, 192, 0, 2, 1, 0x9c, 0x7f, 0, 0];
        assert_eq!(
            bytes,
            [
                ("blocks", vec![10, 88, 0, 2], &block[..]),
                ("sites", vec![192, 168, 7, 0], &block[..]),
                (
                    "forwards",
                    vec![6, 0, 0, 0, 192, 0, 2, 1, 0x75, 0x46, 0, 0],
                    &[10, 88, 0, 2, 0, 22, 0, 0][..]
                )
            ],
            "a port outside the plan leads nowhere"
        );
        let any = of(&outlet(), Some(&places(&[])));
        let key = any.keys().last().unwrap();
        assert_eq!((key.set(), key.bytes()), ("forwards_any", vec![6, 0, 0, 0, 0x75, 0x46, 0, 0]));
    }

    #[test]
    fn only_what_is_different_is_changed() {
        let old = of(&outlet(), None);
        assert_eq!(difference(&old, &old), []);
        assert_eq!(difference(&BTreeMap::new(), &old).len(), 2);
        let moved = Block { address: "192.0.2.1".parse().unwrap(), from: 40_064, to: 40_127 };
        let new = of(&Outlet { block: Some(moved), sites: Vec::new(), ..outlet() }, None);
        let changes = difference(&old, &new);
        assert!(
            matches!(changes[0].change, Change::RemoveInterval { ref end, .. } if end.as_deref() == Some(&[192, 168, 8, 0]))
        );
        assert!(matches!(changes[1].change, Change::Add { .. }));
        assert_eq!(changes.len(), 2);
    }
}
