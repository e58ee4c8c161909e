//! How many strangers there may be, of each network and altogether.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// An IPv4 /24 or an IPv6 /56: about what one stranger has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Network(u64);

impl Network {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => u64::from(v4.to_bits() >> 8),
            IpAddr::V6(v6) => (v6.to_bits() >> 72) as u64 | 1 << 63,
        })
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Altogether,
    Network,
}

/// Places that all threads share. Whoever gets one gives it back.
#[derive(Debug)]
pub(crate) struct Budget {
    total: usize,
    each: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    networks: HashMap<Network, u32>,
}

impl Budget {
    pub(crate) fn new(total: usize, each: u32) -> Self {
        Self { total, each, taken: Mutex::default() }
    }

    /// Takes a place for `network`; without one it counts in the total only.
    pub(crate) fn take(&self, network: Option<Network>) -> Result<(), Full> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = network {
            // Asked first: a network that has all it may have is not to cost others their places.
            if taken.networks.get(&network).copied().unwrap_or(0) >= self.each {
                return Err(Full::Network);
            }
        }
        if taken.total >= self.total {
            return Err(Full::Altogether);
        }
        if let Some(network) = network {
            *taken.networks.entry(network).or_default() += 1;
        }
        taken.total += 1;
        Ok(())
    }

    /// Gives back what [`take`](Self::take) gave for `network`.
    pub(crate) fn give(&self, network: Option<Network>) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total = taken.total.saturating_sub(1);
        let Some(network) = network else { return };
        if let Some(count) = taken.networks.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                taken.networks.remove(&network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> Option<Network> {
        Some(Network::of(address.parse().unwrap()))
    }

    #[test]
    fn a_network_is_what_one_stranger_has() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.255", true),
            ("192.0.2.1", "192.0.3.1", false),
            ("192.0.2.1", "::ffff:192.0.2.9", true),
            ("2001:db8::1", "2001:db8:0:ff::", true),
            ("2001:db8::1", "2001:db8:0:100::", false),
            ("0.192.0.2", "::c000:200", false),
        ] {
            assert_eq!(network(one) == network(other), same, "{one} {other}");
        }
    }

    #[test]
    fn places_are_bounded_by_network_and_altogether_and_come_back() {
        let budget = Budget::new(3, 2);
        let (ann, bob) = (network("192.0.2.1"), network("198.51.100.1"));
        assert_eq!([ann, ann, ann].map(|who| budget.take(who)), [Ok(()), Ok(()), Err(Full::Network)]);
        assert_eq!(
            [bob, bob, None].map(|who| budget.take(who)),
            [Ok(()), Err(Full::Altogether), Err(Full::Altogether)]
        );

        assert_eq!(budget.take(ann), Err(Full::Network), "whatever others have");
        budget.give(ann);
        assert_eq!(budget.take(None), Ok(()));
        budget.give(None);
        budget.give(ann);
        budget.give(bob);

        let taken = budget.taken.lock().unwrap();
        assert_eq!((taken.total, taken.networks.len()), (0, 0));
    }
}
