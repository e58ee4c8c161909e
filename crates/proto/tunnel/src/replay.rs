//! The replay window of one key and direction: which packet numbers have been seen.
//!
//! A number is accepted once. Numbers may arrive out of order by up to `size`, and only while their
//! neighbours are fresh: what is older than `seconds` to `2 * seconds` is refused although it would still fit
//! (openvpn(8), `--replay-window n t`). The algorithm is the sliding bitmap of RFC 6479.
//!
//! Call [`ReplayWindow::accept`] only after the packet has been authenticated; otherwise a stranger could move
//! the window.

use crate::DropReason;

/// Largest window, in packets.
pub const MAX_SIZE: u32 = 65_536;

/// What an accepted packet number tells of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The number is higher than all before it.
    pub newest: bool,
    /// How far behind the highest number it came (0 when newest).
    pub backtrack: u64,
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    size: u64,
    seconds: u32,
    highest: u64,
    /// Numbers at or below are too old whatever their bit says.
    floor: u64,
    /// When `mark_highest` was the highest number, in seconds of the caller's clock.
    mark_at: u32,
    mark_highest: u64,
    words: Box<[u64]>,
}

impl ReplayWindow {
    /// A window of `size` packets (at most [`MAX_SIZE`]) and `seconds` of tolerance (0: no limit in time).
    /// `size` 0 accepts strictly ascending numbers without gaps.
    #[must_use]
    pub fn new(size: u32, seconds: u32) -> Self {
        let size = size.min(MAX_SIZE);
        // One word more than the window needs, so that clearing ahead never touches a live bit.
        let words = (size as usize).div_ceil(64).next_power_of_two().max(1) * 2;
        Self {
            size: u64::from(size),
            seconds,
            highest: 0,
            floor: 0,
            mark_at: 0,
            mark_highest: 0,
            words: vec![0; words].into_boxed_slice(),
        }
    }

    /// Records packet number `id`, received at `now` (seconds of any steady clock).
    ///
    /// # Errors
    /// [`DropReason::Replay`] for a number seen before or 0, [`DropReason::ReplayTooOld`] for one that fell out
    /// of the window.
    pub fn accept(&mut self, id: u64, now: u32) -> Result<Order, DropReason> {
        if id == 0 {
            return Err(DropReason::Replay);
        }
        if self.size == 0 {
            return self.accept_sequential(id);
        }
        self.expire(now);
        if id > self.highest {
            self.advance(id);
            self.set(id);
            return Ok(Order { newest: true, backtrack: 0 });
        }
        let backtrack = self.highest - id;
        if backtrack >= self.size || id <= self.floor {
            return Err(DropReason::ReplayTooOld);
        }
        if self.is_set(id) {
            return Err(DropReason::Replay);
        }
        self.set(id);
        Ok(Order { newest: false, backtrack })
    }

    /// The highest number accepted so far.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.highest
    }

    fn accept_sequential(&mut self, id: u64) -> Result<Order, DropReason> {
        match id {
            id if id == self.highest + 1 => {
                self.highest = id;
                Ok(Order { newest: true, backtrack: 0 })
            }
            id if id <= self.highest => Err(DropReason::Replay),
            _ => Err(DropReason::ReplayTooOld),
        }
    }

    /// Two generations of "highest at that time" suffice: between one and two tolerances after a number was the
    /// highest, all below it are refused.
    fn expire(&mut self, now: u32) {
        if self.seconds == 0 {
            return;
        }
        if self.highest == 0 || now < self.mark_at {
            self.mark_at = now;
        } else if now - self.mark_at >= self.seconds {
            self.floor =
                if now - self.mark_at >= 2 * self.seconds { self.highest } else { self.mark_highest };
            self.mark_highest = self.highest;
            self.mark_at = now;
        }
    }

    fn advance(&mut self, id: u64) {
        let count = self.words.len() as u64;
        let steps = (id / 64 - self.highest / 64).min(count);
        for step in 1..=steps {
            let word = ((self.highest / 64 + step) % count) as usize;
            if let Some(word) = self.words.get_mut(word) {
                *word = 0;
            }
        }
        self.highest = id;
    }

    fn slot(&self, id: u64) -> (usize, u64) {
        (((id / 64) % self.words.len() as u64) as usize, 1 << (id % 64))
    }

    fn set(&mut self, id: u64) {
        let (word, bit) = self.slot(id);
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
    }

    fn is_set(&self, id: u64) -> bool {
        let (word, bit) = self.slot(id);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_accepted_once() {
        let mut window = ReplayWindow::new(64, 15);
        assert_eq!(window.accept(1, 0), Ok(Order { newest: true, backtrack: 0 }));
        assert_eq!(window.accept(1, 0), Err(DropReason::Replay));
        assert_eq!(window.accept(0, 0), Err(DropReason::Replay));
    }

    #[test]
    fn the_window_reaches_back_exactly_its_size() {
        let mut window = ReplayWindow::new(64, 0);
        window.accept(100, 0).unwrap();
        assert_eq!(window.accept(37, 0), Ok(Order { newest: false, backtrack: 63 }));
        assert_eq!(window.accept(36, 0), Err(DropReason::ReplayTooOld));
    }

    #[test]
    fn late_packets_are_refused_once_their_neighbours_are_stale() {
        let mut window = ReplayWindow::new(64, 15);
        window.accept(10, 0).unwrap();
        assert!(window.accept(9, 14).is_ok());
        window.accept(20, 16).unwrap();
        assert!(window.accept(19, 29).is_ok());
        assert_eq!(window.accept(8, 31), Err(DropReason::ReplayTooOld));
        assert_eq!(window.accept(18, 70), Err(DropReason::ReplayTooOld));
    }

    #[test]
    fn a_pause_longer_than_the_tolerance_costs_no_new_packet() {
        let mut window = ReplayWindow::new(64, 15);
        window.accept(1, 0).unwrap();
        assert!(window.accept(2, 1000).is_ok());
        assert!(window.accept(3, 1000).is_ok());
    }

    #[test]
    fn size_zero_accepts_only_the_next_number() {
        let mut window = ReplayWindow::new(0, 15);
        assert!(window.accept(1, 0).is_ok());
        assert_eq!(window.accept(3, 0), Err(DropReason::ReplayTooOld));
        assert!(window.accept(2, 0).is_ok());
        assert_eq!(window.accept(2, 0), Err(DropReason::Replay));
    }

    #[test]
    fn a_jump_over_the_whole_window_forgets_nothing_live() {
        let mut window = ReplayWindow::new(128, 0);
        window.accept(1, 0).unwrap();
        window.accept(1 << 40, 0).unwrap();
        assert!(window.accept((1 << 40) - 1, 0).is_ok());
        assert_eq!(window.accept(1 << 40, 0), Err(DropReason::Replay));
    }

    proptest! {
        /// The model remembers everything ever accepted.
        #[test]
        fn agrees_with_a_set_that_remembers_everything(
            size in 1u32..300,
            steps in proptest::collection::vec(1u64..2000, 1..400),
        ) {
            let mut window = ReplayWindow::new(size, 0);
            let mut seen = BTreeSet::new();
            for id in steps {
                let highest = seen.last().copied().unwrap_or(0);
                let expected = if seen.contains(&id) && id + u64::from(size) > highest {
                    Err(DropReason::Replay)
                } else if id + u64::from(size) <= highest {
                    Err(DropReason::ReplayTooOld)
                } else {
                    Ok(Order { newest: id > highest, backtrack: highest.saturating_sub(id) })
                };
                prop_assert_eq!(window.accept(id, 0), expected);
                if expected.is_ok() {
                    seen.insert(id);
                }
            }
        }
    }
}
