//! What the first packets of a capture have in common.

use std::collections::HashMap;
use std::net::IpAddr;

use adit_plan::pattern::FixedByte;

use crate::flows::{Flow, Transport};

/// Bytes of a first packet that are looked at.
const LOOKED_AT: usize = 256;
/// Fewer bits of a byte than this are no mark of anything.
const MIN_BITS: u32 = 3;
/// The share of captures with random bytes that may show a constant one.
const ACCIDENTS: f64 = 0.01;
/// Clocks of clients differ by less than this many seconds from the capture's.
const CLOCKS: u64 = 2 * 86_400;

/// Samples, and what all of them share.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) samples: Vec<&'a Flow>,
    /// Flows to other servers.
    pub(super) left_out: usize,
    /// Their length, if it is the same.
    pub(super) length: Option<usize>,
    /// Their constant bytes, the most telling first.
    pub(super) fixed: Vec<FixedByte>,
    /// Each begins with the number of bytes that follow, as messages in a TCP stream do.
    pub(super) framed: bool,
}

/// The flows of a transport whose first bytes are known.
pub(super) fn with_beginning(flows: &[Flow], transport: Transport) -> impl Iterator<Item = &Flow> {
    flows.iter().filter(move |flow| flow.transport == transport && flow.from_start && flow.first_length > 0)
}

impl<'a> Facts<'a> {
    pub(super) fn gather(flows: &'a [Flow], transport: Transport) -> Self {
        let mut servers: HashMap<IpAddr, usize> = HashMap::new();
        let all: Vec<&Flow> = with_beginning(flows, transport).collect();
        all.iter().for_each(|flow| *servers.entry(flow.server.ip()).or_default() += 1);
        // The address breaks a tie, so that the answer is the same each time.
        let server = servers.into_iter().max_by_key(|(address, count)| (*count, *address));
        let samples: Vec<&Flow> =
            all.iter().copied().filter(|flow| server.is_some_and(|(ip, _)| flow.server.ip() == ip)).collect();
        let left_out = all.len() - samples.len();
        let length = samples.first().map(|flow| flow.first_length);
        let length = length.filter(|length| samples.iter().all(|flow| flow.first_length == *length));
        let framed = transport == Transport::Tcp && samples.iter().all(|flow| is_framed(flow));
        let fixed = fixed(&samples, framed);
        Self { samples, left_out, length, fixed, framed }
    }

    /// All samples have something else in this place.
    pub(super) fn contradicts(&self, byte: &FixedByte) -> bool {
        self.fixed.iter().any(|own| {
            let both = own.mask & byte.mask;
            own.offset == byte.offset && own.value & both != byte.value & both
        })
    }

    /// All samples have this byte.
    pub(super) fn has(&self, byte: &FixedByte) -> bool {
        self.samples.iter().all(|flow| byte.is_in(&flow.first))
    }

    /// In words.
    pub(super) fn describe(&self) -> String {
        let length = match self.length {
            Some(length) => format!("first packets of {length} bytes"),
            None => "first packets of several lengths".to_owned(),
        };
        if self.fixed.is_empty() {
            return format!("{length}, and no byte that is always the same");
        }
        let bytes: Vec<String> = self
            .fixed
            .iter()
            .take(4)
            .map(|byte| match byte.mask {
                0xff => format!("0x{:02x} at {}", byte.value, byte.offset),
                mask => format!("0x{:02x}/0x{mask:02x} at {}", byte.value, byte.offset),
            })
            .collect();
        format!("{length}, with {}", bytes.join(", "))
    }
}

/// The first two bytes say how many follow (OpenVPN and DNS over TCP have it so).
fn is_framed(flow: &Flow) -> bool {
    let said = flow.first.first_chunk().map(|field| usize::from(u16::from_be_bytes(*field)));
    said.is_some_and(|said| said + 2 == flow.first_length)
}

/// Bytes and bits that are the same in all samples and not by accident, the most telling first: whole bytes before
/// bits, values that say something before 0 and 255, earlier before later.
fn fixed(samples: &[&Flow], framed: bool) -> Vec<FixedByte> {
    let shortest = samples.iter().map(|flow| flow.first.len().min(flow.first_length)).min().unwrap_or(0);
    let places = shortest.min(LOOKED_AT);
    let needed = bits_needed(places, samples.len());
    // The length says the same already.
    let first = if framed { 2 } else { 0 };
    let times = times(samples, places);
    let mut found: Vec<FixedByte> = (first..places)
        .filter(|offset| !times.get(*offset).copied().unwrap_or_default())
        .filter_map(|offset| {
            let bytes = || samples.iter().filter_map(|flow| flow.first.get(offset).copied());
            let (all, any) = (bytes().fold(0xff, |a, b| a & b), bytes().fold(0, |a, b| a | b));
            let mask = !(all ^ any);
            let enough = needed.is_some_and(|needed| mask.count_ones() >= needed);
            enough.then_some(FixedByte { offset, mask, value: all & mask })
        })
        .collect();
    found.sort_by_key(|byte| (byte.mask != 0xff, matches!(byte.value, 0 | 0xff), byte.offset));
    found
}

/// How many bits of a byte must be constant to be no accident; `None` when not even all eight say anything.
fn bits_needed(places: usize, samples: usize) -> Option<u32> {
    // Ways to choose so many of eight bits.
    const CHOICES: [u32; 9] = [1, 8, 28, 56, 70, 56, 28, 8, 1];
    (MIN_BITS..=8).find(|bits| {
        let choices = CHOICES.get(*bits as usize).copied().unwrap_or(1);
        let agree = 0.5_f64.powf(f64::from(*bits) * (samples as f64 - 1.0));
        places as f64 * f64::from(choices) * agree < ACCIDENTS
    })
}

/// Places that tell the time: four bytes that are, in every sample, the time of its capture in seconds.
fn times(samples: &[&Flow], places: usize) -> Vec<bool> {
    let mut found = vec![false; places];
    for offset in 0..places.saturating_sub(3) {
        let is_time = |decode: fn([u8; 4]) -> u32| {
            samples.iter().all(|flow| {
                let field = flow.first.get(offset..).and_then(|rest| rest.first_chunk::<4>());
                field.is_some_and(|field| u64::from(decode(*field)).abs_diff(flow.time.as_secs()) < CLOCKS)
            })
        };
        if is_time(u32::from_be_bytes) || is_time(u32::from_le_bytes) {
            found.iter_mut().skip(offset).take(4).for_each(|place| *place = true);
        }
    }
    found
}
