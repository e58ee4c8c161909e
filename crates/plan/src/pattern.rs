//! What the first packets of a kind of clients have in common, in the languages that can tell them by it.

use std::fmt::Write;

/// A byte that is always the same, or some of its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FixedByte {
    /// Where it is, from the start of the payload.
    pub offset: usize,
    /// The bits that count.
    pub mask: u8,
    /// Their value; no other bits are set.
    pub value: u8,
}

impl FixedByte {
    /// True when `payload` has it.
    #[must_use]
    pub fn is_in(&self, payload: &[u8]) -> bool {
        payload.get(self.offset).is_some_and(|byte| byte & self.mask == self.value)
    }
}

/// A first packet's length and bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Pattern {
    /// Bytes of payload; `None` when any will do.
    pub length: Option<usize>,
    /// Bytes in it.
    pub bytes: Vec<FixedByte>,
}

/// An IPv4 header without options.
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

impl Pattern {
    /// True for a first packet with this payload. For TCP it is the first segment's, of which `length` bytes were
    /// sent, though more or fewer may be known.
    #[must_use]
    pub fn matches(&self, payload: &[u8], length: usize) -> bool {
        self.length.is_none_or(|wanted| wanted == length) && self.bytes.iter().all(|byte| byte.is_in(payload))
    }

    /// How many bits of content it asks for.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.bytes.iter().map(|byte| byte.mask.count_ones()).sum()
    }

    /// As a `match` of adit's configuration: `{ udp-length = 86, first = 0x38 }`.
    #[must_use]
    pub fn toml(&self, udp: bool) -> String {
        let mut parts = Vec::new();
        if let Some(length) = self.length {
            parts.push(format!("{}-length = {length}", if udp { "udp" } else { "tcp" }));
        }
        let is_first = |byte: &FixedByte| udp && byte.offset == 0 && byte.mask == 0xff;
        parts.extend(
            self.bytes
                .iter()
                .filter(|byte| is_first(byte))
                .map(|byte| format!("first = {:#04x}", byte.value)),
        );
        let others: Vec<_> = self.bytes.iter().filter(|byte| !is_first(byte)).copied().collect();
        let runs: Vec<String> = runs(&others)
            .iter()
            .map(|run| {
                let mask = if run.iter().any(|byte| byte.mask != 0xff) {
                    format!("mask = \"{}\", ", hex(run.iter().map(|byte| byte.mask)))
                } else {
                    String::new()
                };
                let offset = run.first().map_or(0, |byte| byte.offset);
                format!(
                    "{{ offset = {offset}, {mask}value = \"{}\" }}",
                    hex(run.iter().map(|byte| byte.value))
                )
            })
            .collect();
        if !runs.is_empty() {
            parts.push(format!("bytes = [{}]", runs.join(", ")));
        }
        format!("{{ {} }}", parts.join(", "))
    }

    /// For UDP over IPv4, as the argument of iptables' `-m u32 --u32`: from the start of the packet, so it is right
    /// only for IP headers without options. The total length is compared in its low byte alone where that is all
    /// there is of it, which also fits packets that are longer by multiples of 256.
    #[must_use]
    pub fn u32(&self) -> String {
        let length = self.length.map(|length| length + IP_HEADER + UDP_HEADER).map(|total| {
            let mask = if total <= 0xff { "0xFF" } else { "0xFFFF" };
            format!("0&{mask}={total:#X}")
        });
        let start = IP_HEADER + UDP_HEADER - 3;
        let bytes = self
            .bytes
            .iter()
            .map(|byte| format!("{}&0x{:02X}=0x{:02X}", start + byte.offset, byte.mask, byte.value));
        length.into_iter().chain(bytes).collect::<Vec<_>>().join(" && ").replace("0X", "0x")
    }

    /// The same from the end of the IP header, however long that is, and with the whole length, as UDP has it.
    #[must_use]
    pub fn u32_any_header(&self) -> String {
        // u32 reads four bytes: the header length in words stands in bits 24 to 27, so shifted by 22 it is in bytes.
        const BEHIND_HEADER: &str = "0>>22&0x3C@";
        let length = self.length.map(|length| format!("{BEHIND_HEADER}4>>16=0x{:X}", length + UDP_HEADER));
        let bytes = self.bytes.iter().map(|byte| {
            let at = UDP_HEADER - 3 + byte.offset;
            format!("{BEHIND_HEADER}{at}&0x{:02X}=0x{:02X}", byte.mask, byte.value)
        });
        length.into_iter().chain(bytes).collect::<Vec<_>>().join(" && ")
    }

    /// For UDP, as expressions of nft.
    #[must_use]
    pub fn nft(&self) -> String {
        let length = self.length.map(|length| format!("udp length {}", length + UDP_HEADER));
        let bytes = self.bytes.iter().map(|byte| {
            let bit = (UDP_HEADER + byte.offset) * 8;
            match byte.mask {
                0xff => format!("@th,{bit},8 0x{:02x}", byte.value),
                mask => format!("@th,{bit},8 & 0x{mask:02x} == 0x{:02x}", byte.value),
            }
        });
        length.into_iter().chain(bytes).collect::<Vec<_>>().join(" ")
    }

    /// For TCP, as a condition of HAProxy.
    #[must_use]
    pub fn haproxy(&self) -> String {
        let length = self.length.map(|length| format!("{{ req.len {length} }}"));
        let bytes = self.bytes.iter().map(|byte| {
            let values = (0..=0xff_u8).filter(|value| value & byte.mask == byte.value);
            let values: Vec<String> = values.map(|value| format!("{value:02x}")).collect();
            format!("{{ req.payload({},1) -m bin {} }}", byte.offset, values.join(" "))
        });
        length.into_iter().chain(bytes).collect::<Vec<_>>().join(" ")
    }
}

/// Bytes that follow each other.
fn runs(bytes: &[FixedByte]) -> Vec<Vec<FixedByte>> {
    let mut sorted = bytes.to_vec();
    sorted.sort_by_key(|byte| byte.offset);
    let mut runs: Vec<Vec<FixedByte>> = Vec::new();
    for byte in sorted {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|last| last.offset + 1 == byte.offset) => run.push(byte),
            _ => runs.push(vec![byte]),
        }
    }
    runs
}

fn hex(bytes: impl Iterator<Item = u8>) -> String {
    bytes.fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(offset: usize, mask: u8, value: u8) -> FixedByte {
        FixedByte { offset, mask, value }
    }

    /// The published rules for tls-auth and tls-crypt, which are the measure of ours.
    #[test]
    fn openvpns_first_packets_are_written_as_published() {
        let udp = |length| Pattern { length: Some(length), bytes: vec![byte(0, 0xff, 0x38)] };
        assert_eq!(udp(86).u32(), "0&0xFF=0x72 && 25&0xFF=0x38");
        assert_eq!(udp(54).u32(), "0&0xFF=0x52 && 25&0xFF=0x38");
        assert_eq!(udp(86).toml(true), "{ udp-length = 86, first = 0x38 }");
        assert_eq!(udp(54).u32_any_header(), "0>>22&0x3C@4>>16=0x3E && 0>>22&0x3C@5&0xFF=0x38");
        assert_eq!(udp(54).nft(), "udp length 62 @th,64,8 0x38");
        let tcp = Pattern { length: Some(88), bytes: vec![] };
        assert_eq!((tcp.haproxy(), tcp.toml(false)), ("{ req.len 88 }".into(), "{ tcp-length = 88 }".into()));
    }

    #[test]
    fn long_packets_masks_and_other_places_are_written_as_well() {
        let pattern = Pattern {
            length: Some(300),
            bytes: vec![byte(0, 0xf8, 0x50), byte(10, 0xff, 0), byte(9, 0xff, 1)],
        };
        assert_eq!(pattern.u32(), "0&0xFFFF=0x148 && 25&0xF8=0x50 && 35&0xFF=0x00 && 34&0xFF=0x01");
        assert_eq!(
            pattern.toml(true),
            "{ udp-length = 300, bytes = [{ offset = 0, mask = \"f8\", value = \"50\" }, \
             { offset = 9, value = \"0100\" }] }"
        );
        assert_eq!(pattern.nft(), "udp length 308 @th,64,8 & 0xf8 == 0x50 @th,144,8 0x00 @th,136,8 0x01");
        assert!(pattern.haproxy().contains("{ req.payload(0,1) -m bin 50 51 52 53 54 55 56 57 }"));
        assert_eq!(pattern.bits(), 21);
    }

    #[test]
    fn a_packet_matches_by_length_and_bytes() {
        let pattern = Pattern { length: Some(3), bytes: vec![byte(1, 0xf0, 0x20)] };
        assert!(pattern.matches(&[1, 0x2f, 3], 3));
        assert!(!pattern.matches(&[1, 0x2f, 3], 4));
        assert!(!pattern.matches(&[1, 0x3f, 3], 3));
        assert!(!pattern.matches(&[1], 3));
        assert!(Pattern::default().matches(&[], 0));
    }
}
