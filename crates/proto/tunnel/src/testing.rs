//! Two machines, a virtual clock and a bad link.
//!
//! Loss, repetition, disorder, delay and MTU are figures; a seed makes a run repeatable. Time jumps from one
//! deadline to the next, so hours pass in milliseconds.

use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use crate::{Entropy, Machine, PeerFault};

/// A small deterministic generator (SplitMix64). Not for keys of anything but tests.
#[derive(Debug, Clone)]
pub struct TestRng(u64);

impl TestRng {
    /// A generator that always gives the same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64 <= p && p > 0.0
    }
}

impl Entropy for TestRng {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// Properties of a link, the same both ways.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that a datagram arrives twice.
    pub duplicate: f64,
    /// One-way delay.
    pub delay: Duration,
    /// Each datagram may take up to this much longer, so that they overtake each other.
    pub jitter: Duration,
    /// Longer datagrams are lost.
    pub mtu: usize,
}

impl Default for Link {
    /// Perfect, but for 10 ms of delay.
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            mtu: 65_535,
        }
    }
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The first machine of the pair.
    A,
    /// The second.
    B,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    /// Negated by the order of the heap: the earliest comes out first.
    at: std::cmp::Reverse<Instant>,
    sequence: std::cmp::Reverse<u64>,
    to: Side,
    bytes: Vec<u8>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Pair<A: Machine, B: Machine> {
    /// The first machine.
    pub a: A,
    /// The second machine.
    pub b: B,
    /// Events of the first machine, oldest first.
    pub a_events: Vec<A::Event>,
    /// Events of the second machine, oldest first.
    pub b_events: Vec<B::Event>,
    /// Input that the machines refused.
    pub faults: Vec<(Side, PeerFault)>,
    /// Everything put on the link, lost or not.
    pub wire: Vec<(Side, Vec<u8>)>,
    /// The present time.
    pub now: Instant,
    /// The link; may be changed while running.
    pub link: Link,
    rng: TestRng,
    in_flight: BinaryHeap<InFlight>,
    sequence: u64,
}

impl<A: Machine, B: Machine> Pair<A, B> {
    /// Joins two machines that were made at `now`.
    #[must_use]
    pub fn new(a: A, b: B, now: Instant, link: Link, seed: u64) -> Self {
        Self {
            a,
            b,
            a_events: Vec::new(),
            b_events: Vec::new(),
            faults: Vec::new(),
            wire: Vec::new(),
            now,
            link,
            rng: TestRng::new(seed),
            in_flight: BinaryHeap::new(),
            sequence: 0,
        }
    }

    /// Collects what the machines have to say now.
    pub fn drain(&mut self) {
        while let Some(event) = self.a.poll_event() {
            self.a_events.push(event);
        }
        while let Some(event) = self.b.poll_event() {
            self.b_events.push(event);
        }
        let mut buf = Vec::new();
        while self.a.poll_transmit(&mut buf, self.now).is_some() {
            self.send(Side::B, &buf);
        }
        while self.b.poll_transmit(&mut buf, self.now).is_some() {
            self.send(Side::A, &buf);
        }
    }

    /// Puts a datagram on the link towards `to`.
    pub fn send(&mut self, to: Side, bytes: &[u8]) {
        let from = if to == Side::A { Side::B } else { Side::A };
        self.wire.push((from, bytes.to_vec()));
        if bytes.len() > self.link.mtu || self.rng.chance(self.link.loss) {
            return;
        }
        let copies = if self.rng.chance(self.link.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = self.link.jitter.mul_f64((self.rng.next_u64() % 1000) as f64 / 1000.0);
            let at = self.now + self.link.delay + jitter;
            self.sequence += 1;
            self.in_flight.push(InFlight {
                at: std::cmp::Reverse(at),
                sequence: std::cmp::Reverse(self.sequence),
                to,
                bytes: bytes.to_vec(),
            });
        }
    }

    /// Goes to the next thing that happens and lets it happen; false when nothing ever will.
    pub fn step(&mut self) -> bool {
        self.step_before(None)
    }

    /// Like [`step`](Self::step), but when nothing happens before `end`, only the time becomes that.
    fn step_before(&mut self, end: Option<Instant>) -> bool {
        self.drain();
        let arrival = self.in_flight.peek().map(|f| f.at.0);
        let timers = [self.a.poll_timeout(), self.b.poll_timeout()];
        let timer = timers.into_iter().flatten().map(|(at, _)| at).min();
        let Some(next) = [arrival, timer].into_iter().flatten().min() else {
            return false;
        };
        if let Some(end) = end.filter(|&end| next > end) {
            self.now = self.now.max(end);
            return false;
        }
        self.now = self.now.max(next);
        if arrival.is_some_and(|at| at <= self.now) {
            if let Some(InFlight { to, bytes, .. }) = self.in_flight.pop() {
                let result = match to {
                    Side::A => self.a.handle_datagram(&bytes, self.now),
                    Side::B => self.b.handle_datagram(&bytes, self.now),
                };
                if let Err(fault) = result {
                    self.faults.push((to, fault));
                }
            }
        } else {
            self.a.handle_timeout(self.now);
            self.b.handle_timeout(self.now);
        }
        self.drain();
        true
    }

    /// Steps until `done`, at most for `limit` of virtual time; whether it was done.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        // A machine that never lets time pass is a bug, not a reason to hang.
        for _ in 0..1_000_000 {
            self.drain();
            if done(self) {
                return true;
            }
            if !self.step_before(Some(end)) {
                return false;
            }
        }
        false
    }

    /// Lets `time` pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(time, |_| false);
        self.now = self.now.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends its number once a second and remembers what it got.
    struct Metronome {
        next: Instant,
        sent: u8,
        due: bool,
        got: Vec<u8>,
    }

    impl Machine for Metronome {
        type Event = ();

        fn handle_datagram(&mut self, datagram: &[u8], _: Instant) -> Result<(), PeerFault> {
            self.got.extend_from_slice(datagram);
            Ok(())
        }

        fn handle_timeout(&mut self, now: Instant) {
            if now >= self.next {
                self.next = now + Duration::from_secs(1);
                self.due = true;
            }
        }

        fn poll_transmit(&mut self, out: &mut Vec<u8>, _: Instant) -> Option<()> {
            out.clear();
            out.push(self.sent);
            std::mem::take(&mut self.due).then(|| self.sent += 1)
        }

        fn poll_event(&mut self) -> Option<()> {
            None
        }

        fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
            Some((self.next, "tick"))
        }
    }

    fn run(link: Link, seed: u64) -> (Vec<u8>, usize) {
        #[expect(clippy::disallowed_methods, reason = "the virtual clock has to start somewhere")]
        let now = Instant::now();
        let machine = || Metronome { next: now, sent: 0, due: false, got: Vec::new() };
        let mut pair = Pair::new(machine(), machine(), now, link, seed);
        pair.run_for(Duration::from_secs(99));
        (pair.b.got, pair.wire.len())
    }

    #[test]
    fn a_good_link_delivers_everything_in_order() {
        let (got, sent) = run(Link::default(), 1);
        assert_eq!(got, (0..100).collect::<Vec<u8>>()[..got.len()]);
        assert!(got.len() >= 98 && sent >= 198);
    }

    #[test]
    fn a_bad_link_loses_repeats_and_reorders_the_same_way_each_time() {
        let link = Link { loss: 0.2, duplicate: 0.2, jitter: Duration::from_secs(3), ..Link::default() };
        let (got, _) = run(link, 7);
        assert_eq!(got, run(link, 7).0);
        assert_ne!(got, run(link, 8).0);
        assert!(!got.is_sorted());
        let mut unique = got.clone();
        unique.sort_unstable();
        unique.dedup();
        assert!(unique.len() < got.len() && (60..97).contains(&unique.len()), "{}", unique.len());
    }
}
