//! One deadline for each session.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Instant;

use adit_engine::Handle;

/// A deadline that is replaced stays in the heap until it comes up, and is then passed over.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Handle)>>,
    current: HashMap<Handle, Instant>,
}

impl Timers {
    /// Sets the deadline of a session.
    pub(super) fn set(&mut self, handle: Handle, at: Instant) {
        let before = self.current.insert(handle, at);
        // An entry that comes up no later will find the new deadline by itself.
        if before.is_none_or(|before| at < before) {
            self.heap.push(Reverse((at, handle)));
        }
    }

    /// Forgets a session.
    pub(super) fn forget(&mut self, handle: Handle) {
        self.current.remove(&handle);
    }

    /// When something may be due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// A session whose deadline has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Handle> {
        loop {
            let Reverse((at, handle)) = *self.heap.peek()?;
            if at > now {
                return None;
            }
            self.heap.pop();
            match self.current.get(&handle) {
                Some(&due) if due <= now => {
                    self.current.remove(&handle);
                    return Some(handle);
                }
                Some(&due) => self.heap.push(Reverse((due, handle))),
                None => {}
            }
        }
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
    fn a_forgotten_session_never_comes_up() {
        let (a, _) = handles();
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.set(a, start);
        timers.forget(a);
        assert_eq!(timers.pop(start + Duration::from_secs(1)), None);
    }
}
