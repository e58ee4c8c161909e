//! Cheap time for the packet path.

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

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
}
