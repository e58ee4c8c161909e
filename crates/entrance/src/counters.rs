//! What became of connections.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$outer:meta])* $counters:ident, $counts:ident { $($(#[$doc:meta])* $name:ident,)+ }) => {
        /// Counters that any thread may raise.
        #[derive(Debug, Default)]
        pub(crate) struct $counters {
            $(pub(crate) $name: $crate::counters::Counter,)+
        }

        impl $counters {
            /// The figures as they are.
            pub(crate) fn snapshot(&self) -> $counts {
                $counts { $($name: self.$name.get(),)+ }
            }
        }

        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $counts {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl $counts {
            /// Each figure with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}
pub(crate) use counters;

/// A number that goes up, and for what is open at the moment down again.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn raise(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn lower(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

counters! {
    /// What became of the connections of a reception.
    Counters, Counts {
        /// Accepted.
        accepted,
        /// Being looked at now.
        undecided,
        /// Handed over within this process.
        native,
        /// Given to a back end, whatever became of them there.
        relayed,
        /// Nobody's.
        unknown,
        /// Not decided in time.
        timed_out,
        /// Ended by the client before they were decided.
        gone,
        /// Decided before their time was up, because there was no place for somebody new.
        cut_short,
        /// Closed at once: too many are undecided.
        refused_full,
        /// Closed at once: too many of one network are undecided.
        refused_network,
        /// Given up because the process or the machine has no descriptor, memory or port left.
        exhausted,
        /// Times that accepting paused for the same reason.
        paused,
    }
}
