//! Packet numbers for sending: shared by threads, never repeated, never wrapped.

use std::sync::atomic::{AtomicU64, Ordering};

/// Hands out packet numbers 1, 2, 3… up to a limit.
#[derive(Debug)]
pub struct SendCounter {
    next: AtomicU64,
    limit: u64,
}

impl SendCounter {
    /// Numbers from 1 to `limit` inclusive.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { next: AtomicU64::new(1), limit }
    }

    /// The next number, or `None` once the limit has been handed out: the key must not be used any more.
    #[must_use]
    pub fn take(&self) -> Option<u64> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        (id <= self.limit).then_some(id)
    }

    /// How many numbers have been handed out.
    #[must_use]
    pub fn used(&self) -> u64 {
        (self.next.load(Ordering::Relaxed) - 1).min(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_start_at_one_and_end_at_the_limit() {
        let counter = SendCounter::new(3);
        let taken: Vec<_> = (0..5).map(|_| counter.take()).collect();
        assert_eq!(taken, [Some(1), Some(2), Some(3), None, None]);
        assert_eq!(counter.used(), 3);
    }
}
