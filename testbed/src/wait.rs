//! Waiting for conditions.

use std::time::{Duration, Instant};

/// How often a condition is looked at that nobody announces.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until `seen` says true.
///
/// # Panics
/// When that takes longer than `limit`; `what` names it then.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut seen: impl FnMut() -> bool) {
    eventually_some(what, limit, || seen().then_some(()));
}

/// Waits until `seen` has an answer.
///
/// # Panics
/// When that takes longer than `limit`; `what` names it then.
#[track_caller]
pub fn eventually_some<T>(what: &str, limit: Duration, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = seen() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not seen within {limit:?}: {what}");
        std::thread::sleep(LOOK);
    }
}
