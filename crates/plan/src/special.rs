//! Address ranges that can be neither leased nor routed to a device.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The ranges of RFC 6890 and RFC 4291 that mean something to every host, with the name they have there.
const SPECIAL: [(IpNet, &str); 10] = [
    (v4([0, 0, 0, 0], 8), "addresses of \"this network\""),
    (v4([127, 0, 0, 0], 8), "loopback addresses"),
    (v4([169, 254, 0, 0], 16), "link-local addresses"),
    (v4([224, 0, 0, 0], 4), "multicast addresses"),
    (v4([240, 0, 0, 0], 4), "reserved and broadcast addresses"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "the unspecified address"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "the loopback address"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4-mapped addresses"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local addresses"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast addresses"),
];

/// The first special range that `net` touches, by name.
pub(crate) fn special(net: &IpNet) -> Option<&'static str> {
    SPECIAL.iter().find(|(range, _)| overlap(range, net)).map(|(_, name)| *name)
}

/// Networks whose addresses mean nothing outside, as a set in nft's language: those of [`is_private4`].
pub(crate) const PRIVATE4: &str =
    "{ 10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16 }";

/// Networks whose addresses mean nothing outside: RFC 1918, RFC 6598, RFC 3927.
pub fn is_private4(net: &Ipv4Net) -> bool {
    let address = net.network();
    let shared = Ipv4Net::new_assert([100, 64, 0, 0].into(), 10);
    address.is_private() || address.is_link_local() || shared.contains(&address)
}

/// Whether the two networks share an address.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

const fn v4(octets: [u8; 4], prefix: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(segments: [u16; 8], prefix: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = segments;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix))
}
