//! One deadline for each session.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use adit_engine::Handle;

/// Exactly one entry for each session, however often its deadline changes.
#[derive(Debug, Default)]
pub(super) struct Timers {
    order: BTreeSet<(Instant, Handle)>,
    current: HashMap<Handle, Instant>,
}

impl Timers {
    /// Sets the deadline of a session.
    pub(super) fn set(&mut self, handle: Handle, at: Instant) {
        match self.current.insert(handle, at) {
            Some(before) if before == at => return,
            Some(before) => self.order.remove(&(before, handle)),
            None => false,
        };
        self.order.insert((at, handle));
    }

    /// Forgets a session.
    pub(super) fn forget(&mut self, handle: Handle) {
        if let Some(at) = self.current.remove(&handle) {
            self.order.remove(&(at, handle));
        }
    }

    /// When the next deadline is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// A session whose deadline has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Handle> {
        let (_, handle) = *self.order.first().filter(|(at, _)| *at <= now)?;
        self.forget(handle);
        Some(handle)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn handles() -> (Handle, Handle) {
        (Handle::for_test(1), Handle::for_test(2))
    }

    #[test]
    fn the_latest_deadline_counts_whether_it_is_earlier_or_later() {
        let (a, b) = handles();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.set(a, at(10));
        timers.set(b, at(5));
        timers.set(a, at(2));
        timers.set(b, at(7));
        assert_eq!(timers.next(), Some(at(2)));
        assert_eq!((timers.pop(at(2)), timers.pop(at(2))), (Some(a), None));
        assert_eq!(timers.pop(at(6)), None);
        assert_eq!((timers.pop(at(7)), timers.pop(at(99))), (Some(b), None));
    }

    #[test]
    fn deadlines_that_come_and_go_leave_nothing_behind() {
        let (a, _) = handles();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        for round in 0..1000 {
            timers.set(a, at(round + 100));
            timers.set(a, at(round + 1));
            assert_eq!(timers.pop(at(round + 1)), Some(a));
            timers.set(a, at(round + 50));
        }
        assert_eq!((timers.order.len(), timers.current.len()), (1, 1));
        timers.forget(a);
        assert_eq!((timers.order.len(), timers.current.len()), (0, 0));
    }

    #[test]
    fn a_forgotten_session_never_comes_up() {
        let (a, _) = handles();
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.set(a, start);
        timers.forget(a);
        assert_eq!(timers.pop(start + Duration::from_secs(1)), None);
    }
}
