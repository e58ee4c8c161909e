//! The beginning of a TCP stream, put together from its segments.

use std::collections::BTreeMap;

use super::MAX_FIRST;

/// Segments that may wait for one before them.
const MAX_WAITING: usize = 64;

/// The client's first bytes as far as they are known.
#[derive(Debug)]
pub(super) struct Stream<'a> {
    /// Sequence number of the first byte; `None` when the handshake was not captured.
    start: Option<u32>,
    bytes: Vec<u8>,
    begun: bool,
    /// Segments behind a gap, by their place in the stream.
    waiting: BTreeMap<usize, &'a [u8]>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(start: Option<u32>) -> Self {
        Self { start, bytes: Vec::new(), begun: false, waiting: BTreeMap::new() }
    }

    pub(super) fn start(&self) -> Option<u32> {
        self.start
    }

    /// Takes a segment's payload; true when it is the one that begins the stream, for the first time. Bytes that
    /// are there already stay as they are.
    pub(super) fn add(&mut self, sequence: u32, payload: &'a [u8]) -> bool {
        let Some(start) = self.start.filter(|_| !payload.is_empty()) else { return false };
        // Modulo 2^32; a keepalive probe has the number before the start.
        let place = sequence.wrapping_sub(start).cast_signed();
        let begins = place == 0 && !self.begun;
        self.begun |= begins;
        let (place, payload) = match usize::try_from(place) {
            Ok(place) => (place, payload),
            Err(_) => (0, payload.get(place.unsigned_abs() as usize..).unwrap_or_default()),
        };
        if place < MAX_FIRST && self.bytes.len() < MAX_FIRST {
            let known = self.waiting.get(&place).is_some_and(|known| known.len() >= payload.len());
            if !known && (place <= self.bytes.len() || self.waiting.len() < MAX_WAITING) {
                self.waiting.insert(place, payload);
            }
            self.join();
        }
        begins
    }

    /// Appends what no longer has a gap before it.
    fn join(&mut self) {
        while let Some(entry) = self.waiting.first_entry().filter(|entry| *entry.key() <= self.bytes.len()) {
            let (place, payload) = entry.remove_entry();
            let new = payload.get(self.bytes.len() - place..).unwrap_or_default();
            let room = MAX_FIRST - self.bytes.len();
            self.bytes.extend_from_slice(new.get(..room).unwrap_or(new));
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
