//! Token buckets in constant memory.

use std::net::IpAddr;

use aws_lc_rs::hmac;

/// Networks remembered; others share their places.
const PLACES: usize = 4096;

/// A token bucket with whole tokens, refilled by whole seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: u32,
    at: u64,
}

impl Bucket {
    pub(crate) fn full(size: u32) -> Self {
        Self { tokens: size, at: 0 }
    }

    /// Takes a token at `now` from a bucket that holds `size` and fills up within `seconds`.
    pub(crate) fn take(&mut self, now: u64, size: u32, seconds: u64) -> bool {
        let elapsed = now.saturating_sub(self.at).min(seconds);
        if elapsed > 0 {
            let refill = u64::from(size) * elapsed / seconds.max(1);
            self.tokens = u64::from(self.tokens).saturating_add(refill).min(u64::from(size)) as u32;
            self.at = now;
        }
        match self.tokens.checked_sub(1) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }

    pub(crate) fn give_back(&mut self) {
        self.tokens = self.tokens.saturating_add(1);
    }
}

/// A bucket for each source network (IPv4 /24, IPv6 /56), in a table of fixed size. Networks that fall on one
/// place share its bucket; where they fall is secret, so nobody can aim at another's.
#[derive(Debug)]
pub(crate) struct PrefixBudget {
    places: Box<[Bucket]>,
    key: hmac::Key,
    per_second: u32,
}

const BURST_SECONDS: u32 = 10;

impl PrefixBudget {
    pub(crate) fn new(per_second: u32, secret: &[u8; 32]) -> Self {
        let size = per_second.saturating_mul(BURST_SECONDS);
        Self {
            places: vec![Bucket::full(size); PLACES].into_boxed_slice(),
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            per_second,
        }
    }

    pub(crate) fn take(&mut self, source: IpAddr, now: u64) -> bool {
        let network: [u8; 8] = match source.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                [4, a, b, c, 0, 0, 0, 0]
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, ..] = ip.octets();
                [a, b, c, d, e, f, g, 0]
            }
        };
        let tag = hmac::sign(&self.key, &network);
        let place = tag.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let size = self.per_second.saturating_mul(BURST_SECONDS);
        self.places
            .get_mut((place % PLACES as u64) as usize)
            .is_some_and(|bucket| bucket.take(now, size, u64::from(BURST_SECONDS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_a_burst_and_a_rate_and_no_more() {
        let mut budget = PrefixBudget::new(2, &[1; 32]);
        let taken = |budget: &mut PrefixBudget, ip: &str, now| {
            (0..100).filter(|_| budget.take(ip.parse().unwrap(), now)).count()
        };
        assert_eq!(taken(&mut budget, "192.0.2.1", 100), 20);
        assert_eq!(taken(&mut budget, "192.0.2.77", 100), 0, "the same network");
        assert_eq!(taken(&mut budget, "198.51.100.1", 100), 20, "another network");
        assert_eq!(taken(&mut budget, "192.0.2.1", 101), 2);
        assert_eq!(taken(&mut budget, "2001:db8:0:1::1", 101), 20);
        assert_eq!(taken(&mut budget, "2001:db8:0:ff::2", 101), 0, "the same /56");
    }

    #[test]
    fn a_bucket_never_holds_more_than_its_size() {
        let mut bucket = Bucket::full(3);
        assert!(bucket.take(1_000_000, 3, 10));
        assert_eq!((0..9).filter(|_| bucket.take(2_000_000, 3, 10)).count(), 3);
    }
}
