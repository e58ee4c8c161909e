//! What tells the first packets of kinds of clients apart.
//!
//! Only what a client says counts: how long its first packet is, and which bytes of it are always the same.
//! Addresses, ports, type of service, identification, time to live and checksums are accidents of the network and
//! are never looked at; bytes that tell the time are left out, since they are constant only as long as a capture
//! lasts.
//!
//! A byte that is the same in all samples may be so by chance. With random bytes and `n` samples, one place is so
//! with probability 256^-(n-1); bytes count when less than one in a hundred such captures would have one anywhere.
//! That takes at least [`MIN_SAMPLES`]; for single bits of a byte it takes more.

mod facts;
#[cfg(test)]
mod tests;

use adit_plan::pattern::{FixedByte, Pattern};

use crate::flows::{Flow, Transport};
use facts::Facts;

/// Fewer samples of a kind than this teach nothing.
pub const MIN_SAMPLES: usize = 3;
/// Bits that must agree before a kind is taken for told apart from one that has other bytes there each time.
const ENOUGH_BITS: u32 = 16;

/// A capture of clients of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// Its name in what is found.
    pub name: &'a str,
    /// Its flows. Those to the server address that most of them go to are the samples.
    pub flows: &'a [Flow],
}

/// How many first packets of something else the pattern takes for its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FalsePositives {
    /// Computed, with all bytes equally likely: one in 2^`bits` of the packets of that length (of all packets, when
    /// the pattern has no length). Nothing is assumed about how many have that length.
    Computed {
        /// Bits of content that the pattern asks for.
        bits: u32,
    },
    /// Counted in the background capture.
    Counted {
        /// Flows that matched.
        matched: usize,
        /// All flows of this transport.
        of: usize,
        /// The largest share that is consistent with that, at 95 % (Clopper-Pearson for none matched, otherwise
        /// Wilson).
        at_most: f64,
    },
}

/// How a kind is recognised.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The kind's place among those given.
    pub kind: usize,
    /// First packets it was found in; all of them have it.
    pub samples: usize,
    /// Length and bytes.
    pub pattern: Pattern,
    /// The same as adit's `match`, which sees for itself that a TCP record has the length it says: the bytes that
    /// are there against strangers only are left out then.
    pub own: Pattern,
    /// The largest share of clients of this kind that may not have it, at 95 %: `1 - 0.05^(1/samples)`.
    pub missed_at_most: f64,
    /// What else may have it.
    pub false_positives: FalsePositives,
}

/// Why nothing was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// A kind has too few samples.
    #[error(
        "{name} has {samples} first packets of {transport}: at least {MIN_SAMPLES} are needed, since bytes of fewer \
         may agree by chance; capture more connections"
    )]
    TooFew {
        /// The kind.
        name: String,
        /// What it has.
        samples: usize,
        /// What carries them.
        transport: Transport,
    },
    /// Two kinds look the same.
    #[error("{one} and {other} look the same: {why}")]
    Alike {
        /// A kind.
        one: String,
        /// Another one.
        other: String,
        /// What they share.
        why: String,
    },
}

/// What was found for a transport.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    /// What carries the flows.
    pub transport: Transport,
    /// Samples of each kind.
    pub samples: Vec<usize>,
    /// Flows of each kind to other servers, which are no samples.
    pub left_out: Vec<usize>,
    /// How the kinds are recognised. One of them may be missing: it is what has none of the others' patterns.
    pub findings: Result<Vec<Finding>, Obstacle>,
}

/// Learns from captures of two or more kinds, for each transport that at least two of them have.
#[must_use]
pub fn learn(kinds: &[Kind<'_>], background: Option<&[Flow]>) -> Vec<Lesson> {
    [Transport::Udp, Transport::Tcp]
        .into_iter()
        .filter_map(|transport| {
            let facts: Vec<Facts<'_>> =
                kinds.iter().map(|kind| Facts::gather(kind.flows, transport)).collect();
            if facts.iter().filter(|facts| !facts.samples.is_empty()).count() < 2 {
                return None;
            }
            Some(Lesson {
                transport,
                samples: facts.iter().map(|facts| facts.samples.len()).collect(),
                left_out: facts.iter().map(|facts| facts.left_out).collect(),
                findings: tell_apart(kinds, &facts, transport, background),
            })
        })
        .collect()
}

fn tell_apart(
    kinds: &[Kind<'_>],
    facts: &[Facts<'_>],
    transport: Transport,
    background: Option<&[Flow]>,
) -> Result<Vec<Finding>, Obstacle> {
    let mut pairs = kinds.iter().zip(facts);
    if let Some((kind, facts)) = pairs.find(|(_, facts)| (1..MIN_SAMPLES).contains(&facts.samples.len())) {
        let (name, samples) = (kind.name.to_owned(), facts.samples.len());
        return Err(Obstacle::TooFew { name, samples, transport });
    }
    let mut findings = Vec::new();
    let mut obstacles = Vec::new();
    // Kinds that this transport does not carry have nothing to be told from.
    let present = || facts.iter().enumerate().filter(|(_, facts)| !facts.samples.is_empty());
    for (index, own) in present() {
        let others = || present().filter(|(other, _)| *other != index);
        let others_facts: Vec<_> = others().map(|(_, facts)| facts).collect();
        match deciding(own, &others_facts) {
            Ok(pattern) => findings.push(finding(index, own, &pattern, transport, background)),
            Err(at) => {
                let other = others().nth(at).map_or(index, |(other, _)| other);
                obstacles.push((index, other));
            }
        }
    }
    // One kind may be what is left when all others are recognised.
    let [.., (one, other)] = obstacles.as_slice() else { return Ok(findings) };
    if obstacles.len() == 1 {
        return Ok(findings);
    }
    let name = |index: usize| kinds.get(index).map(|kind| kind.name.to_owned()).unwrap_or_default();
    let why = facts.get(*one).map(Facts::describe).unwrap_or_default();
    Err(Obstacle::Alike { one: name(*other), other: name(*one), why })
}

/// The simplest pattern that all samples of a kind have and none of the others'; otherwise the place of the first
/// of the others that cannot be told from it.
fn deciding(own: &Facts<'_>, others: &[&Facts<'_>]) -> Result<Pattern, usize> {
    let mut pattern = Pattern::default();
    for (index, other) in others.iter().enumerate() {
        if separates(&pattern, other) {
            continue;
        }
        // What the others have otherwise each time decides for good: the length before bytes.
        if own.length.is_some() && other.length.is_some() && own.length != other.length {
            pattern.length = own.length;
            continue;
        }
        if let Some(byte) = own.fixed.iter().find(|byte| other.contradicts(byte)) {
            pattern.bytes.push(*byte);
            continue;
        }
        // Otherwise what they have only now and then: first of all the length, then bytes in their order until they
        // are no accident.
        let mut weak = Pattern { length: own.length, bytes: Vec::new() };
        let mut varying: Vec<_> = own.fixed.iter().filter(|byte| !other.has(byte)).copied().collect();
        varying.sort_by_key(|byte| byte.offset);
        let mut varying = varying.into_iter();
        while weak.bits() < ENOUGH_BITS {
            let Some(byte) = varying.next() else { break };
            weak.bytes.push(byte);
        }
        let lengths_vary = own.length.is_some() && other.length.is_none();
        if !separates(&weak, other) || (weak.bits() < ENOUGH_BITS && !lengths_vary) {
            return Err(index);
        }
        if !lengths_vary {
            weak.length = None;
        }
        pattern.length = pattern.length.or(weak.length);
        let new: Vec<FixedByte> =
            weak.bytes.into_iter().filter(|byte| !pattern.bytes.contains(byte)).collect();
        pattern.bytes.extend(new);
    }
    match others.iter().position(|other| !separates(&pattern, other)) {
        Some(index) => Err(index),
        None => Ok(pattern),
    }
}

/// No sample of the other kind has the pattern.
fn separates(pattern: &Pattern, other: &Facts<'_>) -> bool {
    !other.samples.iter().any(|flow| pattern.matches(&flow.first, flow.first_length))
}

/// Adds what keeps strangers out, and says how sure it is.
fn finding(
    kind: usize,
    own: &Facts<'_>,
    deciding: &Pattern,
    transport: Transport,
    background: Option<&[Flow]>,
) -> Finding {
    let mut pattern = deciding.clone();
    pattern.length = pattern.length.or(own.length);
    let wanted = if pattern.length.is_some() { 1 } else { 2 };
    for byte in &own.fixed {
        if pattern.bytes.len() < wanted && !pattern.bytes.contains(byte) {
            pattern.bytes.push(*byte);
        }
    }
    pattern.bytes.sort();
    let mut own_pattern = pattern.clone();
    if own.framed && own_pattern.length.is_some() {
        own_pattern.bytes.retain(|byte| deciding.bytes.contains(byte));
    }
    let false_positives = match background {
        None => FalsePositives::Computed { bits: pattern.bits() },
        Some(flows) => {
            let all = || facts::with_beginning(flows, transport);
            let matched = all().filter(|flow| pattern.matches(&flow.first, flow.first_length)).count();
            let of = all().count();
            FalsePositives::Counted { matched, of, at_most: at_most(matched, of) }
        }
    };
    let samples = own.samples.len();
    Finding { kind, samples, pattern, own: own_pattern, missed_at_most: at_most(0, samples), false_positives }
}

/// The largest share of which `seen` in `of` is consistent, at 95 % (one-sided).
fn at_most(seen: usize, of: usize) -> f64 {
    if of == 0 {
        return 1.0;
    }
    let n = of as f64;
    if seen == 0 {
        return 1.0 - 0.05_f64.powf(1.0 / n);
    }
    // Wilson's bound; 1.645 standard deviations leave 5 % above.
    let (z, p) = (1.645, seen as f64 / n);
    let middle = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((middle + spread) / (1.0 + z * z / n)).min(1.0)
}
