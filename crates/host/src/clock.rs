//! Cheap time for the packet path, and steps of the wall clock.

use rustix::time::{ClockId, clock_getres, clock_gettime};

/// Milliseconds since some point in the past (in practice the start of the machine, without time spent
/// suspended). Never goes backwards.
///
/// The kernel updates this clock once per timer tick, `CONFIG_HZ` times a second: it is up to 10 ms old (HZ
/// 100), usually 4 ms or 1 ms, see [`resolution_ms`]. Reading it takes a few nanoseconds and no system call.
/// Good for time-outs and ages; not for measuring durations below a few ticks, and not for comparing with
/// `Instant`, which may be one tick ahead.
#[must_use]
pub fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    // Both parts are never negative on this clock.
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// How far apart two different answers of [`monotonic_ms`] are, rounded up.
#[must_use]
pub fn resolution_ms() -> u64 {
    clock_getres(ClockId::MonotonicCoarse).tv_nsec.unsigned_abs().div_ceil(1_000_000)
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The time of day in microseconds since 1970 (UTC), which somebody may set.
    pub wall_us: i64,
    /// Microseconds since the machine started, those it was suspended included, which nobody can.
    pub steady_us: i64,
}

impl Reading {
    /// Reads both clocks, without a system call.
    #[must_use]
    pub fn now() -> Self {
        Self::closest(|id| {
            let now = clock_gettime(id);
            now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000)
        })
    }

    /// Of a few attempts the one in which least time passed between the clocks: the thread may lose its
    /// processor in the middle of one, and that would look like a step.
    fn closest(read: impl Fn(ClockId) -> i64) -> Self {
        let mut best = (i64::MAX, Self { wall_us: 0, steady_us: 0 });
        for _ in 0..4 {
            let before = read(ClockId::Boottime);
            let wall_us = read(ClockId::Realtime);
            let apart = read(ClockId::Boottime).saturating_sub(before);
            if apart < best.0 {
                best = (apart, Self { wall_us, steady_us: before.saturating_add(apart / 2) });
            }
            if apart < 100 {
                break;
            }
        }
        best.1
    }

    /// How far the wall clock is ahead of the other one.
    fn lead_us(self) -> i64 {
        self.wall_us.saturating_sub(self.steady_us)
    }
}

/// Notices when the wall clock is set.
///
/// A clock that is made to run faster or slower, as time daemons do to correct it, is no step: both clocks
/// change pace together. The time the machine was suspended is none either.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    lead_us: i64,
    least_us: i64,
}

impl WallClock {
    /// Begins with a reading. Steps of less than `least_ms` milliseconds are not told until they add up to as
    /// much; a reading itself is at times off by some tenths of one.
    #[must_use]
    pub fn new(first: Reading, least_ms: u32) -> Self {
        Self { lead_us: first.lead_us(), least_us: i64::from(least_ms) * 1000 }
    }

    /// By how many milliseconds the wall clock was set forward, or with a minus back, between the last step
    /// that was told (or the first reading) and this reading; 0 when it was not.
    pub fn step_ms(&mut self, now: Reading) -> i64 {
        let step = now.lead_us().saturating_sub(self.lead_us);
        if step.saturating_abs() < self.least_us.max(1) {
            return 0;
        }
        self.lead_us = now.lead_us();
        // To the nearest one.
        step.saturating_add(500 * step.signum()) / 1000
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_follows_the_precise_clock_within_its_resolution() {
        let precise = Instant::now();
        let start = monotonic_ms();
        let mut last = start;
        // Six ticks pass while this loop runs, however long one is.
        while last - start < 6 * resolution_ms() {
            let now = monotonic_ms();
            assert!(now >= last);
            last = now;
        }

        // The first reading may have been a tick old; the last one was not from the future.
        let passed = u64::try_from(precise.elapsed().as_millis()).unwrap();
        assert!(last - start <= passed + 1 + resolution_ms(), "{} of {passed} ms", last - start);
        assert!((1..=10).contains(&resolution_ms()));
    }

    fn at(wall_ms: i64, steady_ms: i64) -> Reading {
        Reading { wall_us: wall_ms * 1000, steady_us: steady_ms * 1000 }
    }

    #[test]
    fn a_step_is_told_once_and_with_its_direction() {
        let mut clock = WallClock::new(at(1_000_000, 500), 100);

        assert_eq!(clock.step_ms(at(1_010_000, 10_500)), 0);
        assert_eq!(clock.step_ms(at(4_620_000, 20_500)), 3_600_000);
        assert_eq!(clock.step_ms(at(4_630_000, 30_500)), 0);
        assert_eq!(clock.step_ms(at(4_639_900, 40_500)), -100);
        assert_eq!(clock.step_ms(at(4_649_900, 50_500)), 0);
    }

    #[test]
    fn small_steps_are_told_when_they_add_up() {
        let mut clock = WallClock::new(at(0, 0), 100);

        assert_eq!(clock.step_ms(at(1040, 1000)), 0);
        assert_eq!(clock.step_ms(at(2099, 2000)), 0);
        assert_eq!(clock.step_ms(at(3100, 3000)), 100);
        assert_eq!(clock.step_ms(at(4060, 4000)), 0);
    }

    #[test]
    fn a_reading_that_was_interrupted_is_taken_again() {
        // The thread is away for 50 ms in the first attempt, and for nothing in the second.
        let (steady, reads) = (Cell::new(1_000_000), Cell::new(0));
        let reading = Reading::closest(|id| {
            let wall = steady.get() + 7_000_000;
            reads.set(reads.get() + 1);
            steady.set(steady.get() + if reads.get() == 1 { 50_000 } else { 1 });
            if id == ClockId::Realtime { wall } else { wall - 7_000_000 }
        });

        let off = reading.lead_us() - 7_000_000;
        assert!(off.abs() <= 2, "{off}");
        assert_eq!(reads.get(), 6);
    }

    #[test]
    fn the_machines_clocks_go_together() {
        let mut clock = WallClock::new(Reading::now(), 100);
        let start = monotonic_ms();
        while monotonic_ms() - start < 3 * resolution_ms() {
            assert_eq!(clock.step_ms(Reading::now()), 0);
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let apart = i64::try_from(now.as_millis()).unwrap() - Reading::now().wall_us / 1000;
        assert!(apart.abs() < 10_000, "{apart}");
    }

    proptest! {
        #[test]
        fn what_is_told_adds_up_to_how_far_the_clock_was_set(
            steps in prop::collection::vec((-5000i64..5000, 0i64..100_000), 0..50),
            least in 0u32..1000,
        ) {
            let mut clock = WallClock::new(at(0, 0), least);
            let (mut set, mut steady, mut told) = (0, 0, 0);
            for (step, passed) in steps {
                set += step;
                steady += passed;
                told += clock.step_ms(at(steady + set, steady));
                prop_assert!((set - told).abs() < i64::from(least.max(1)));
            }
        }

        #[test]
        fn no_readings_make_it_panic(all in prop::collection::vec(any::<(i64, i64)>(), 1..9), least: u32) {
            let mut readings = all.into_iter().map(|(wall_us, steady_us)| Reading { wall_us, steady_us });
            let mut clock = WallClock::new(readings.next().unwrap(), least);
            for reading in readings {
                clock.step_ms(reading);
            }
        }
    }
}
