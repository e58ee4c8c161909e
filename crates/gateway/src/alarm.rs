//! Who tells that a part without which the gateway is of no use has ended.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Makes alarms, one for each part, and is where they ring. Each rings at most twice.
pub(crate) struct Alarms {
    sender: UnboundedSender<String>,
    receiver: UnboundedReceiver<String>,
}

impl Alarms {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = unbounded_channel();
        Self { sender, receiver }
    }

    /// An alarm to keep within the part of this name.
    pub(crate) fn alarm(&self, part: &'static str) -> Alarm {
        Alarm { sender: self.sender.clone(), part }
    }

    /// Waits for the first; what has happened.
    pub(crate) async fn ring(&mut self) -> String {
        // A sender is kept here, so that there is always one.
        self.receiver.recv().await.unwrap_or_default()
    }
}

/// Rings when its part says why, and when the part ends: by a panic as well.
pub(crate) struct Alarm {
    sender: UnboundedSender<String>,
    part: &'static str,
}

impl Alarm {
    pub(crate) fn ring(&self, why: String) {
        // Nobody listens while the gateway ends anyway.
        let _ = self.sender.send(why);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.ring(format!("{} has ended", self.part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_told_and_one_that_knows_why_says_so() {
        let mut alarms = Alarms::new();
        let alarm = alarms.alarm("the desk");
        let part = std::thread::spawn(move || {
            let _alarm = alarm;
            std::panic::resume_unwind(Box::new("a fault"));
        });
        assert!(part.join().is_err());
        assert_eq!(alarms.ring().await, "the desk has ended");
        alarms.alarm("the packet loop").ring("no interface".into());
        assert_eq!(alarms.ring().await, "no interface");
    }
}
