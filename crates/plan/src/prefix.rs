//! Networks behind a device: what a site-to-site device may announce.
//!
//! A prefix belongs to the device for as long as the device exists, not to a lease. Two devices never share an
//! address through their prefixes, and no prefix reaches into the pools, so that the owner of an inner source
//! address is always one device.

use ipnet::IpNet;

use crate::pool::Pools;
use crate::special::{overlap, special};

/// Why a prefix cannot stand behind a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixFault {
    /// The prefix is all of IPv4 or IPv6.
    #[error("{prefix} is the default route, which no device may own; name the networks behind the device")]
    DefaultRoute {
        /// The prefix as given.
        prefix: IpNet,
    },
    /// Address bits are set beyond the prefix length.
    #[error("{prefix} has address bits beyond its length; write {canonical}")]
    HostBits {
        /// The prefix as given.
        prefix: IpNet,
        /// The same network in canonical form.
        canonical: IpNet,
    },
    /// The prefix reaches into a range with a meaning of its own.
    #[error("{prefix} includes {range}, which cannot be behind a device")]
    Special {
        /// The prefix as given.
        prefix: IpNet,
        /// The range it touches, by name.
        range: &'static str,
    },
    /// The prefix shares addresses with a pool of this gateway.
    #[error("{prefix} overlaps the address pool {pool}; choose a network outside the pools")]
    OverlapsPool {
        /// The prefix as given.
        prefix: IpNet,
        /// The pool.
        pool: IpNet,
    },
    /// The prefix shares addresses with a prefix of another device.
    #[error("{prefix} overlaps {other}, which is behind {owner}")]
    OverlapsDevice {
        /// The prefix as given.
        prefix: IpNet,
        /// The other device's prefix.
        other: IpNet,
        /// The other device, as the caller named it.
        owner: String,
    },
}

/// Checks the prefixes wanted for one device and gives them sorted, each once.
///
/// `pools` are the gateway's address pools, as far as they are known. `others` are the prefixes of all *other* devices, each with a name for the message. Prefixes of one device may
/// lie within each other: they lead to the same place.
pub fn check<'a>(
    wanted: &[IpNet],
    pools: Option<&Pools>,
    others: impl IntoIterator<Item = (&'a str, IpNet)>,
) -> Result<Vec<IpNet>, PrefixFault> {
    for &prefix in wanted {
        if prefix.prefix_len() == 0 {
            return Err(PrefixFault::DefaultRoute { prefix });
        }
        if prefix.trunc() != prefix {
            return Err(PrefixFault::HostBits { prefix, canonical: prefix.trunc() });
        }
        if let Some(range) = special(&prefix) {
            return Err(PrefixFault::Special { prefix, range });
        }
        if let Some(pool) = pools.and_then(|pools| pools.overlapping(&prefix)) {
            return Err(PrefixFault::OverlapsPool { prefix, pool });
        }
    }
    for (owner, other) in others {
        if let Some(&prefix) = wanted.iter().find(|prefix| overlap(prefix, &other)) {
            return Err(PrefixFault::OverlapsDevice { prefix, other, owner: owner.to_owned() });
        }
    }
    let mut prefixes = wanted.to_vec();
    prefixes.sort_unstable();
    prefixes.dedup();
    Ok(prefixes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn pools() -> Pools {
        Pools::new(&["10.88.0.0/16".parse().unwrap()], &["fd88::/64".parse().unwrap()]).unwrap()
    }

    fn fault(prefix: &str) -> PrefixFault {
        check(&[net(prefix)], Some(&pools()), []).unwrap_err()
    }

    #[test]
    fn good_prefixes_come_back_sorted_and_once() {
        let wanted = [net("192.168.7.0/24"), net("2001:db8:7::/48"), net("10.1.0.0/16"), net("10.1.0.0/16")];

        let given = check(&wanted, Some(&pools()), [("ann/site", net("192.168.8.0/24"))]).unwrap();

        assert_eq!(given, [net("10.1.0.0/16"), net("192.168.7.0/24"), net("2001:db8:7::/48")]);
    }

    #[test]
    fn a_single_host_is_a_prefix() {
        let host = [net("192.168.7.9/32"), net("2001:db8::9/128")];

        assert_eq!(check(&host, Some(&pools()), []).unwrap(), host);
    }

    #[test]
    fn the_default_route_is_refused_in_both_families() {
        assert_eq!(fault("0.0.0.0/0"), PrefixFault::DefaultRoute { prefix: net("0.0.0.0/0") });
        assert_eq!(fault("::/0"), PrefixFault::DefaultRoute { prefix: net("::/0") });
    }

    #[test]
    fn half_of_the_default_route_is_refused_too() {
        assert!(matches!(fault("0.0.0.0/1"), PrefixFault::Special { .. }));
        assert!(matches!(fault("128.0.0.0/1"), PrefixFault::Special { .. }));
        assert!(matches!(fault("::/1"), PrefixFault::Special { .. }));
        assert!(matches!(fault("8000::/1"), PrefixFault::Special { .. }));
    }

    #[test]
    fn host_bits_are_refused_with_the_right_form() {
        let expected =
            PrefixFault::HostBits { prefix: net("192.168.7.9/24"), canonical: net("192.168.7.0/24") };

        assert_eq!(fault("192.168.7.9/24"), expected);
        assert!(expected.to_string().contains("write 192.168.7.0/24"));
    }

    #[test]
    fn special_ranges_are_refused() {
        for prefix in
            ["127.0.0.0/8", "224.0.0.0/24", "169.254.1.0/24", "255.255.255.255/32", "fe80::/64", "ff02::/16"]
        {
            assert!(matches!(fault(prefix), PrefixFault::Special { .. }), "{prefix}");
        }
    }

    #[test]
    fn a_prefix_within_or_around_a_pool_is_refused() {
        for prefix in ["10.88.3.0/24", "10.0.0.0/8", "fd88::/80", "fd00::/8"] {
            assert!(matches!(fault(prefix), PrefixFault::OverlapsPool { .. }), "{prefix}");
        }
    }

    #[test]
    fn a_prefix_of_another_device_is_refused_by_name() {
        let others = [("ann/site", net("192.168.0.0/16"))];

        let fault = check(&[net("192.168.7.0/24")], Some(&pools()), others).unwrap_err();

        assert_eq!(fault.to_string(), "192.168.7.0/24 overlaps 192.168.0.0/16, which is behind ann/site");
    }

    #[test]
    fn prefixes_of_one_device_may_nest() {
        let wanted = [net("10.1.0.0/16"), net("10.1.2.0/24")];

        assert_eq!(check(&wanted, Some(&pools()), []).unwrap(), wanted);
    }
}
