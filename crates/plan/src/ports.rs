//! Sets of ports, written `443`, `1-29999` or `53,443,5000-5100`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A set of ports: ranges in ascending order that neither touch nor overlap. Port 0 is in none. Serialised it is
/// its text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortSet {
    ranges: Vec<RangeInclusive<u16>>,
}

/// A text that is no set of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a set of ports; write for instance \"443\", \"1-29999\" or \"53,443,5000-5100\"")]
pub struct PortSetFault(String);

impl PortSet {
    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.ranges
    }

    /// How many ports there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ranges.iter().map(|range| usize::from(range.end() - range.start()) + 1).sum()
    }

    /// True without ports.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// True when `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.ranges.iter().any(|range| range.contains(&port))
    }

    /// The ports, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges.iter().cloned().flatten()
    }

    /// Those of these ports that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.both(&other.others())
    }

    /// The ports that are in this set and in `other`.
    #[must_use]
    pub fn both(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        let mut ranges = Vec::new();
        while let (Some(a), Some(b)) = (mine.peek(), theirs.peek()) {
            let shared = *a.start().max(b.start())..=*a.end().min(b.end());
            if !shared.is_empty() {
                ranges.push(shared);
            }
            if a.end() < b.end() {
                mine.next()
            } else {
                theirs.next()
            };
        }
        Self { ranges }
    }

    /// The ports that are in this set or in `other`.
    #[must_use]
    pub fn either(&self, other: &Self) -> Self {
        self.ranges.iter().chain(&other.ranges).cloned().collect()
    }

    /// All ports that are not in this set.
    #[must_use]
    pub fn others(&self) -> Self {
        let ends = self.ranges.iter().map(|range| range.start() - 1).chain([u16::MAX]);
        let starts =
            std::iter::once(Some(1)).chain(self.ranges.iter().map(|range| range.end().checked_add(1)));
        starts.zip(ends).filter_map(|(start, end)| Some(start?..=end)).collect()
    }

    /// The first range that both have ports of, as each has it.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<(RangeInclusive<u16>, RangeInclusive<u16>)> {
        self.ranges.iter().find_map(|mine| {
            let theirs = other.ranges.iter().find(|r| r.start() <= mine.end() && mine.start() <= r.end())?;
            Some((mine.clone(), theirs.clone()))
        })
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<T: IntoIterator<Item = u16>>(ports: T) -> Self {
        ports.into_iter().filter(|&port| port != 0).map(|port| port..=port).collect()
    }
}

impl FromIterator<RangeInclusive<u16>> for PortSet {
    fn from_iter<T: IntoIterator<Item = RangeInclusive<u16>>>(ranges: T) -> Self {
        let without_zero = |range: RangeInclusive<u16>| 1.max(*range.start())..=*range.end();
        let mut sorted: Vec<_> =
            ranges.into_iter().map(without_zero).filter(|range| !range.is_empty()).collect();
        sorted.sort_by_key(|range| *range.start());
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for range in sorted {
            match ranges.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => ranges.push(range),
            }
        }
        Self { ranges }
    }
}

impl FromStr for PortSet {
    type Err = PortSetFault;

    fn from_str(text: &str) -> Result<Self, PortSetFault> {
        let fault = || PortSetFault(text.to_owned());
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port > 0);
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let ranges = parts.map(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let range = port(from)?..=port(to)?;
            (!range.is_empty()).then_some(range)
        });
        ranges.collect::<Option<Self>>().ok_or_else(fault)
    }
}

impl TryFrom<String> for PortSet {
    type Error = PortSetFault;

    fn try_from(text: String) -> Result<Self, PortSetFault> {
        text.parse()
    }
}

impl From<PortSet> for String {
    fn from(ports: PortSet) -> Self {
        ports.to_string()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn sets_are_read_sorted_and_joined() {
        assert_eq!(set("443, 53,100-200,150-300,301").to_string(), "53,100-301,443");
        assert_eq!(set("1-65535").count(), 65_535);
        assert!(set("").is_empty());
        for text in ["0", "70000", "9-3", "a", "1-2-3", "-"] {
            assert!(text.parse::<PortSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_set_of_all_ports_has_an_empty_rest() {
        assert_eq!(set("1-65535").others(), PortSet::default());
        assert_eq!(PortSet::default().others(), set("1-65535"));
    }

    #[test]
    fn overlaps_name_both_ranges() {
        assert_eq!(set("1-29999").overlap(&set("1280-65535")), Some((1..=29_999, 1280..=65_535)));
        assert_eq!(set("1-99,200").overlap(&set("100-199")), None);
        assert_eq!(set("1-10").without(&set("3-4,10")).to_string(), "1-2,5-9");
    }

    proptest! {
        #[test]
        fn a_set_has_the_ports_it_was_made_of(ports in proptest::collection::btree_set(1u16.., 0..60)) {
            let set: PortSet = ports.iter().copied().collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), ports.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count(), ports.len());
            prop_assert_eq!(set.to_string().parse::<PortSet>().unwrap(), set);
        }

        #[test]
        fn sets_are_combined_port_by_port(
            a in proptest::collection::vec((0u16.., 0u16..), 0..6),
            b in proptest::collection::vec((0u16.., 0u16..), 0..6),
            edge in prop_oneof![Just(1u16), Just(u16::MAX)],
        ) {
            let set = |ranges: Vec<(u16, u16)>| ranges.into_iter().map(|(a, b)| a..=b).collect::<PortSet>();
            let (a, b) = (set(a), set(b).either(&[edge].into_iter().collect()));
            let (both, either, rest) = (a.both(&b), a.either(&b), a.without(&b));
            // Between two edges nothing changes.
            let edges = [&a, &b].into_iter().flat_map(|set| set.ranges());
            let edges = edges.flat_map(|range| [*range.start() - 1, *range.start(), *range.end(), range.end().saturating_add(1)]);
            for port in edges.chain([1, u16::MAX]).filter(|port| *port > 0) {
                let (in_a, in_b) = (a.contains(port), b.contains(port));
                prop_assert_eq!(both.contains(port), in_a && in_b);
                prop_assert_eq!(either.contains(port), in_a || in_b);
                prop_assert_eq!(rest.contains(port), in_a && !in_b);
                prop_assert_eq!(a.others().contains(port), !in_a);
            }
            prop_assert_eq!(both.overlap(&both).is_some(), !both.is_empty());
        }
    }
}
