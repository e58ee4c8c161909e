//! How long to wait before all servers are tried once more.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Doubles from one second to a minute, each time a quarter more or less by chance: clients that lost the same server
/// do not come back all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// How long to wait this time; `chance` is a random number.
    pub(crate) fn wait(&mut self, chance: u8) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(LONGEST);
        // From 3/4 to almost 5/4.
        base * (384 + u32::from(chance)) / 512
    }

    /// All is well again.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..8).map(|_| backoff.wait(128).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.wait(128), FIRST);
    }

    #[test]
    fn chance_spreads_them_by_a_quarter() {
        let wait = |chance| Backoff::default().wait(chance).as_millis();
        assert_eq!(wait(0), 750);
        assert!((1240..1250).contains(&wait(255)));
    }
}
