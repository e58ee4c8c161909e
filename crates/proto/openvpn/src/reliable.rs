//! The reliability layer: message ids, windows, acknowledgements and retransmission, one pair of windows per key
//! negotiation.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::packet::{Acks, Opcode};

/// Messages that may be under way.
pub const SEND_WINDOW: usize = 6;
/// How far ahead of the next expected id a message may be. OpenVPN's own figure.
pub const RECEIVE_WINDOW: u32 = 12;
/// Acknowledgements that ride on a message; receivers of old versions take no more.
const PIGGYBACK: usize = 4;
/// First retransmission without knowledge of the path, then doubling.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
const MIN_TIMEOUT: Duration = Duration::from_millis(300);
/// On a path that loses a third of everything, more patience than this would be given up for a dead peer.
const MAX_TIMEOUT: Duration = Duration::from_secs(8);
/// How long an acknowledgement may wait for a message to ride on.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// As many owed go at once: a sender's window may be as small as four.
const ACK_AT_ONCE: usize = 3;
/// Later messages acknowledged before a hole is taken for a loss.
const FAST_RETRANSMIT: u8 = 3;

/// A message under way.
#[derive(Debug)]
struct Pending {
    id: u32,
    opcode: Opcode,
    payload: Vec<u8>,
    first_sent: Option<Instant>,
    resent: bool,
    due: Option<Instant>,
    timeout: Duration,
    passed_over: u8,
}

/// A message that is to be sent now.
#[derive(Debug, PartialEq, Eq)]
pub struct Outgoing<'a> {
    /// Its id.
    pub id: u32,
    /// Its opcode, the same at each transmission.
    pub opcode: Opcode,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Messages sent and not yet acknowledged.
#[derive(Debug)]
pub struct SendWindow {
    next_id: u32,
    pending: VecDeque<Pending>,
    round_trip: Option<Duration>,
}

impl SendWindow {
    /// A window whose first message has id `first`.
    #[must_use]
    pub fn new(first: u32) -> Self {
        Self { next_id: first, pending: VecDeque::with_capacity(SEND_WINDOW), round_trip: None }
    }

    /// The id of the message queued next.
    #[must_use]
    pub fn next_id(&self) -> u32 {
        self.next_id
    }

    /// True when another message may be queued.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending.len() < SEND_WINDOW
    }

    /// True when everything sent has been acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Queues a message; call only with room.
    pub fn push(&mut self, opcode: Opcode, payload: Vec<u8>) {
        debug_assert!(self.has_room(), "the window is full");
        self.pending.push_back(Pending {
            id: self.next_id,
            opcode,
            payload,
            first_sent: None,
            resent: false,
            due: None,
            timeout: self.round_trip.map_or(FIRST_TIMEOUT, |rtt| (rtt * 3).clamp(MIN_TIMEOUT, FIRST_TIMEOUT)),
            passed_over: 0,
        });
        self.next_id = self.next_id.wrapping_add(1);
    }

    /// Takes acknowledgements. Ids that were never sent are ignored.
    pub fn acknowledge(&mut self, acks: &Acks, now: Instant) {
        for &id in acks.as_slice() {
            let Some(at) = self.pending.iter().position(|m| m.id == id && m.first_sent.is_some()) else {
                continue;
            };
            if let Some(message) = self.pending.remove(at) {
                // A retransmitted message says nothing about the round trip (Karn's rule).
                if let (Some(sent), false) = (message.first_sent, message.resent) {
                    self.round_trip = Some(now.saturating_duration_since(sent));
                }
            }
            for earlier in self.pending.iter_mut().take(at) {
                earlier.passed_over = earlier.passed_over.saturating_add(1);
            }
        }
    }

    /// The next message to send at `now`: one never sent, one whose time is up, or one taken for lost.
    pub fn poll(&mut self, now: Instant) -> Option<Outgoing<'_>> {
        let message = self
            .pending
            .iter_mut()
            .find(|m| m.due.is_none_or(|due| due <= now) || m.passed_over >= FAST_RETRANSMIT)?;
        if message.first_sent.is_none() {
            message.first_sent = Some(now);
        } else {
            message.resent = true;
            message.timeout = (message.timeout * 2).min(MAX_TIMEOUT);
        }
        message.passed_over = 0;
        message.due = Some(now + message.timeout);
        Some(Outgoing { id: message.id, opcode: message.opcode, payload: &message.payload })
    }

    /// When [`poll`](Self::poll) has something next.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.pending.iter().filter_map(|m| m.due).min()
    }
}

/// What became of a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Stored or handed on; acknowledge it.
    New,
    /// Seen before; acknowledge it again.
    Duplicate,
    /// Too far ahead: not stored, not acknowledged.
    Beyond,
}

/// Messages received: puts them in order and remembers what to acknowledge.
#[derive(Debug)]
pub struct ReceiveWindow {
    next: u32,
    early: [Option<Vec<u8>>; RECEIVE_WINDOW as usize],
    owed: VecDeque<u32>,
    recent: VecDeque<u32>,
    patience: Duration,
    /// When the first of those owed is due.
    due: Option<Instant>,
}

/// When a receiver acknowledges what nothing is sent in answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// Without waiting: a server goes on only when all it sent was acknowledged.
    AtOnce,
    /// After a moment, for the answer often follows.
    Lazily,
}

impl ReceiveWindow {
    /// A window that expects `first`.
    #[must_use]
    pub fn new(first: u32, acknowledge: Acknowledge) -> Self {
        Self {
            next: first,
            early: Default::default(),
            owed: VecDeque::new(),
            recent: VecDeque::new(),
            patience: if acknowledge == Acknowledge::Lazily { ACK_DELAY } else { Duration::ZERO },
            due: None,
        }
    }

    /// Takes a message. In-order content comes out of [`pop`](Self::pop).
    pub fn receive(&mut self, id: u32, payload: &[u8], now: Instant) -> Received {
        let ahead = id.wrapping_sub(self.next);
        if ahead < RECEIVE_WINDOW {
            let slot = &mut self.early[(id % RECEIVE_WINDOW) as usize];
            if slot.is_none() {
                *slot = Some(payload.to_vec());
                self.owe(id, now, self.patience);
                return Received::New;
            }
        }
        // Half of the number space lies behind, half ahead.
        if (RECEIVE_WINDOW..=u32::MAX / 2).contains(&ahead) {
            return Received::Beyond;
        }
        // The peer repeats itself: the first acknowledgement was lost.
        self.owe(id, now, Duration::ZERO);
        Received::Duplicate
    }

    /// The next message in order.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        let message = self.early[(self.next % RECEIVE_WINDOW) as usize].take()?;
        self.next = self.next.wrapping_add(1);
        Some(message)
    }

    /// True when the peer is owed acknowledgements.
    #[must_use]
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// When they are to be sent, if no message is.
    #[must_use]
    pub fn acknowledge_at(&self) -> Option<Instant> {
        self.due
    }

    /// Takes acknowledgements for a packet: owed ones first, then recent ones once more, because
    /// acknowledgements get lost too.
    pub fn take_acks(&mut self, on_a_message: bool) -> Acks {
        let limit = if on_a_message { PIGGYBACK } else { crate::packet::MAX_ACKS };
        let mut acks = Acks::default();
        while acks.as_slice().len() < limit {
            let Some(id) = self.owed.pop_front() else { break };
            acks.push(id);
            self.recent.retain(|&old| old != id);
            self.recent.push_front(id);
        }
        if self.owed.is_empty() {
            self.due = None;
        }
        self.recent.truncate(crate::packet::MAX_ACKS);
        let owed = acks.as_slice().len();
        for &id in self.recent.iter().skip(owed) {
            if acks.as_slice().len() == limit {
                break;
            }
            acks.push(id);
        }
        acks
    }

    fn owe(&mut self, id: u32, now: Instant, patience: Duration) {
        if !self.owed.contains(&id) {
            // A peer that floods duplicates is owed no more than the newest of them.
            if self.owed.len() >= 2 * RECEIVE_WINDOW as usize {
                self.owed.pop_front();
            }
            self.owed.push_back(id);
        }
        let due = if self.owed.len() < ACK_AT_ONCE { now + patience } else { now };
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the virtual clock has to start somewhere")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn control(window: &mut SendWindow, payload: &[u8]) {
        window.push(Opcode::ControlV1, payload.to_vec());
    }

    fn drain(window: &mut SendWindow, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| window.poll(now).map(|m| m.id)).collect()
    }

    #[test]
    fn messages_are_sent_once_then_again_after_a_growing_pause() {
        let start = Instant::now();
        let mut window = SendWindow::new(0);
        control(&mut window, b"hello");
        let mut sent_at = Vec::new();
        let mut now = start;
        for _ in 0..5 {
            assert_eq!(drain(&mut window, now), [0]);
            sent_at.push((now - start).as_secs());
            now = window.next_due().unwrap();
        }
        assert_eq!(sent_at, [0, 1, 3, 7, 15]);
    }

    #[test]
    fn an_acknowledged_message_is_gone() {
        let now = Instant::now();
        let mut window = SendWindow::new(5);
        control(&mut window, b"a");
        control(&mut window, b"b");
        assert_eq!(drain(&mut window, now), [5, 6]);
        window.acknowledge(&Acks::from_iter([5, 6]), now);
        assert!(window.is_empty());
        assert_eq!(window.next_due(), None);
    }

    #[test]
    fn acknowledging_what_was_never_sent_changes_nothing() {
        let now = Instant::now();
        let mut window = SendWindow::new(0);
        control(&mut window, b"a");
        window.acknowledge(&Acks::from_iter([0, 7]), now);
        assert_eq!(drain(&mut window, now), [0], "not even sent yet");
    }

    #[test]
    fn three_later_acknowledgements_make_a_message_lost() {
        let now = Instant::now();
        let mut window = SendWindow::new(0);
        for _ in 0..4 {
            control(&mut window, b"x");
        }
        assert_eq!(drain(&mut window, now), [0, 1, 2, 3]);
        window.acknowledge(&Acks::from_iter([1, 2]), now);
        assert!(drain(&mut window, now).is_empty());
        window.acknowledge(&Acks::from_iter([3]), now);
        assert_eq!(drain(&mut window, now), [0]);
    }

    #[test]
    fn messages_come_out_in_order_and_once() {
        let now = Instant::now();
        let mut window = ReceiveWindow::new(0, Acknowledge::Lazily);
        assert_eq!(window.receive(1, b"b", now), Received::New);
        assert_eq!(window.pop(), None);
        assert_eq!(window.receive(0, b"a", now), Received::New);
        assert_eq!(window.receive(0, b"a", now), Received::Duplicate);
        assert_eq!(window.pop().unwrap(), b"a");
        assert_eq!(window.pop().unwrap(), b"b");
        assert_eq!(window.receive(1, b"b", now), Received::Duplicate);
        assert_eq!(window.pop(), None);
    }

    #[test]
    fn what_is_beyond_the_window_is_neither_stored_nor_acknowledged() {
        let now = Instant::now();
        let mut window = ReceiveWindow::new(0, Acknowledge::Lazily);
        assert_eq!(window.receive(12, b"far", now), Received::Beyond);
        assert!(!window.owes());
        assert_eq!(window.receive(11, b"near", now), Received::New);
    }

    #[test]
    fn recent_acknowledgements_ride_along_again() {
        let now = Instant::now();
        let mut window = ReceiveWindow::new(0, Acknowledge::Lazily);
        for id in 0..3 {
            window.receive(id, b"", now);
        }
        assert_eq!(window.take_acks(false).as_slice(), [0, 1, 2]);
        window.receive(3, b"", now);
        assert_eq!(window.take_acks(true).as_slice(), [3, 2, 1, 0]);
        assert!(!window.owes());
    }

    #[test]
    fn an_acknowledgement_waits_a_moment_for_company() {
        let now = Instant::now();
        let soon = now + ACK_DELAY;
        let mut window = ReceiveWindow::new(0, Acknowledge::Lazily);
        assert_eq!(window.acknowledge_at(), None);
        window.receive(0, b"", now);
        window.receive(1, b"", soon);
        assert_eq!(window.acknowledge_at(), Some(soon), "the first of them counts");
        window.take_acks(true);
        assert_eq!(window.acknowledge_at(), None);

        window.receive(2, b"", soon);
        window.receive(0, b"", soon);
        assert_eq!(window.acknowledge_at(), Some(soon), "a repeated message asks for it");
        window.take_acks(false);

        for id in 3..6 {
            assert_ne!(window.acknowledge_at(), Some(now), "less than three of them wait");
            window.receive(id, b"", now);
        }
        assert_eq!(window.acknowledge_at(), Some(now));

        let mut window = ReceiveWindow::new(0, Acknowledge::AtOnce);
        window.receive(0, b"", now);
        assert_eq!(window.acknowledge_at(), Some(now));
    }

    #[test]
    fn a_flood_of_duplicates_does_not_grow_the_debt() {
        let now = Instant::now();
        let mut window = ReceiveWindow::new(1000, Acknowledge::Lazily);
        for id in 0..900 {
            window.receive(id, b"", now);
        }
        assert!(window.owed.len() <= 24);
    }

    proptest! {
        /// Whatever is lost, repeated or reordered, the receiver gets the sender's messages in order, once.
        #[test]
        fn a_lossy_link_delivers_everything_in_order(
            count in 1usize..60,
            luck in proptest::collection::vec(0u8..10, 600),
        ) {
            let mut now = Instant::now();
            let mut luck = luck.into_iter().cycle();
            let (mut sender, mut receiver) = (SendWindow::new(0), ReceiveWindow::new(0, Acknowledge::Lazily));
            let mut queued = 0u32;
            let mut delivered = Vec::new();
            let mut rounds = 0;
            while delivered.len() < count {
                rounds += 1;
                prop_assert!(rounds < 20_000, "stuck");
                while sender.has_room() && (queued as usize) < count {
                    sender.push(Opcode::ControlV1, queued.to_be_bytes().to_vec());
                    queued += 1;
                }
                let mut link = Vec::new();
                while let Some(m) = sender.poll(now) {
                    match luck.next().unwrap() {
                        0..3 => {}
                        3 => { link.insert(0, (m.id, m.payload.to_vec())); }
                        4 => { link.extend([(m.id, m.payload.to_vec()), (m.id, m.payload.to_vec())]); }
                        _ => link.push((m.id, m.payload.to_vec())),
                    }
                }
                for (id, payload) in link {
                    receiver.receive(id, &payload, now);
                    while let Some(m) = receiver.pop() {
                        delivered.push(u32::from_be_bytes(m.try_into().unwrap()));
                    }
                }
                while receiver.owes() {
                    let acks = receiver.take_acks(false);
                    if luck.next().unwrap() > 2 {
                        sender.acknowledge(&acks, now);
                    }
                }
                now = sender.next_due().unwrap_or(now + Duration::from_millis(10)).max(now);
            }
            prop_assert_eq!(delivered, (0..count as u32).collect::<Vec<_>>());
        }
    }
}
