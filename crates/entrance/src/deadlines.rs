//! Time limits of many things, where all that have the same limit stand in one queue: whoever was touched last stands
//! last, so only the first of each queue has to be looked at.

/// No place in a queue, and no end of one.
const NONE: u32 = u32::MAX;

/// Queues of small numbers. Entering, leaving and being touched take the same time however many there are.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    queues: Vec<Queue>,
    links: Vec<Link>,
}

/// Those who may wait for `limit` milliseconds.
#[derive(Debug)]
struct Queue {
    limit: u64,
    first: u32,
    last: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    queue: u32,
    before: u32,
    behind: u32,
    since: u64,
}

const OUTSIDE: Link = Link { queue: NONE, before: NONE, behind: NONE, since: 0 };

impl Deadlines {
    /// `who` may wait for `limit` milliseconds from now on. It leaves the queue it is in.
    pub(crate) fn enter(&mut self, who: u32, limit: u64, now: u64) {
        self.leave(who);
        if self.links.len() <= who as usize {
            self.links.resize(who as usize + 1, OUTSIDE);
        }
        let queue = self.queue(limit);
        self.append(who, queue, now);
    }

    /// Its time begins anew.
    pub(crate) fn touch(&mut self, who: u32, now: u64) {
        let Some(link) = self.links.get(who as usize) else { return };
        let Link { queue, since, .. } = *link;
        if queue != NONE && since != now {
            self.leave(who);
            self.append(who, queue, now);
        }
    }

    /// It waits for nothing any more.
    pub(crate) fn leave(&mut self, who: u32) {
        let Some(link) = self.links.get_mut(who as usize) else { return };
        let Link { queue, before, behind, .. } = std::mem::replace(link, OUTSIDE);
        let Some(queue) = self.queues.get_mut(queue as usize) else { return };
        match self.links.get_mut(before as usize) {
            Some(link) => link.behind = behind,
            None => queue.first = behind,
        }
        match self.links.get_mut(behind as usize) {
            Some(link) => link.before = before,
            None => queue.last = before,
        }
    }

    /// Someone whose time is up. It has left then.
    pub(crate) fn expired(&mut self, now: u64) -> Option<u32> {
        let due =
            |queue: &Queue| Some((self.links.get(queue.first as usize)?.since + queue.limit, queue.first));
        let (_, who) = self.queues.iter().filter_map(due).find(|(due, _)| *due <= now)?;
        self.leave(who);
        Some(who)
    }

    /// Who has not been touched for the longest time of those with this limit.
    pub(crate) fn oldest(&self, limit: u64) -> Option<u32> {
        self.queues
            .iter()
            .find(|queue| queue.limit == limit)
            .map(|queue| queue.first)
            .filter(|first| *first != NONE)
    }

    /// Milliseconds until someone's time is up; `None` when nobody waits.
    pub(crate) fn next(&self, now: u64) -> Option<u64> {
        let due = |queue: &Queue| Some(self.links.get(queue.first as usize)?.since + queue.limit);
        self.queues.iter().filter_map(due).min().map(|due| due.saturating_sub(now))
    }

    /// The queue for a limit. One that is empty is used again: limits come and go with the configuration.
    fn queue(&mut self, limit: u64) -> u32 {
        let same = self.queues.iter().position(|queue| queue.limit == limit);
        let at = same
            .or_else(|| self.queues.iter().position(|queue| queue.first == NONE))
            .unwrap_or(self.queues.len());
        match self.queues.get_mut(at) {
            Some(queue) => queue.limit = limit,
            None => self.queues.push(Queue { limit, first: NONE, last: NONE }),
        }
        at as u32
    }

    fn append(&mut self, who: u32, at: u32, now: u64) {
        let Some(queue) = self.queues.get_mut(at as usize) else { return };
        let before = std::mem::replace(&mut queue.last, who);
        match self.links.get_mut(before as usize) {
            Some(link) => link.behind = who,
            None => queue.first = who,
        }
        if let Some(link) = self.links.get_mut(who as usize) {
            *link = Link { queue: at, before, behind: NONE, since: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_expired(deadlines: &mut Deadlines, now: u64) -> Vec<u32> {
        std::iter::from_fn(|| deadlines.expired(now)).collect()
    }

    #[test]
    fn times_are_up_in_order_and_not_before() {
        let mut deadlines = Deadlines::default();
        deadlines.enter(0, 100, 0);
        deadlines.enter(1, 100, 10);
        deadlines.enter(2, 50, 20);
        deadlines.enter(3, 100, 30);
        assert_eq!(deadlines.next(20), Some(50));
        assert_eq!(all_expired(&mut deadlines, 69), [0; 0]);
        assert_eq!(all_expired(&mut deadlines, 70), [2]);

        deadlines.touch(0, 60);
        deadlines.leave(1);
        assert_eq!(deadlines.oldest(100), Some(3));
        assert_eq!((deadlines.next(70), deadlines.next(200)), (Some(60), Some(0)));
        assert_eq!(all_expired(&mut deadlines, 159), [3]);
        assert_eq!(all_expired(&mut deadlines, 160), [0]);
        assert_eq!(deadlines.next(160), None);
        deadlines.leave(7);
        deadlines.touch(7, 1);
    }

    #[test]
    fn a_new_limit_replaces_the_old_one_and_empty_queues_are_used_again() {
        let mut deadlines = Deadlines::default();
        for limit in 1..100 {
            deadlines.enter(5, limit, 0);
            assert_eq!(deadlines.next(0), Some(limit));
        }
        assert!(deadlines.queues.len() <= 2, "{deadlines:?}");
        assert_eq!(deadlines.oldest(99), Some(5));
        assert_eq!(deadlines.oldest(98), None);
    }

    #[test]
    fn queues_stay_whole_whoever_leaves() {
        for leaving in 0..3 {
            let mut deadlines = Deadlines::default();
            (0..3).for_each(|who| deadlines.enter(who, 10, 0));
            deadlines.leave(leaving);
            deadlines.enter(3, 10, 0);
            let expected: Vec<u32> = (0..4).filter(|who| *who != leaving).collect();
            assert_eq!(all_expired(&mut deadlines, 10), expected);
        }
    }
}
