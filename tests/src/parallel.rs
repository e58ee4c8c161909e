//! Several cases at a time.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

/// Hands `items` to `workers` threads; each makes a state of its own first, from its number.
///
/// # Panics
/// When one of them does; the item is named on standard error.
pub fn in_parallel<T: Send + Debug, S>(
    workers: usize,
    items: Vec<T>,
    prepare: impl Fn(usize) -> S + Sync,
    work: impl Fn(&mut S, &T) + Sync,
) {
    let queue = Mutex::new(VecDeque::from(items));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|number| {
                let (next, prepare, work) = (&next, &prepare, &work);
                scope.spawn(move || {
                    let mut state = prepare(number);
                    while let Some(item) = next() {
                        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&mut state, &item))) {
                            eprintln!("failed: {item:?}");
                            // The others need not go on.
                            while next().is_some() {}
                            resume_unwind(panic);
                        }
                    }
                })
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        if let Some(Err(panic)) = results.into_iter().find(Result::is_err) {
            resume_unwind(panic);
        }
    });
}
