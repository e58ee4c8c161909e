//! `ping`.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Host, Process, require};

/// What became of echo requests.
#[derive(Debug, Clone)]
pub struct PingResult {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// What the program wrote.
    pub text: String,
}

impl PingResult {
    /// All were answered.
    ///
    /// # Panics
    /// When one was not.
    #[track_caller]
    pub fn must_all_return(&self) {
        assert!(self.sent > 0 && self.sent == self.received, "pings were lost: {}", self.text);
    }

    /// None was answered.
    ///
    /// # Panics
    /// When one was.
    #[track_caller]
    pub fn must_not_return(&self) {
        assert!(self.sent > 0 && self.received == 0, "pings were answered: {}", self.text);
    }
}

/// Two pings, each with five seconds for its answer.
///
/// # Panics
/// When the program does not run.
#[track_caller]
pub fn ping(from: &Host, to: IpAddr) -> PingResult {
    // Once it has an answer, the program does not wait that long for another.
    let [first, second] = [(); 2].map(|()| ping_with(from, to, &["-c", "1", "-W", "5"]));
    PingResult {
        sent: first.sent + second.sent,
        received: first.received + second.received,
        text: first.text + &second.text,
    }
}

/// Pings with options; `-n` and an interval are always set. For answers after the first, the program waits as long
/// as the interval, whatever the options say.
///
/// # Panics
/// When the program does not run.
#[track_caller]
pub fn ping_with(from: &Host, to: IpAddr, options: &[&str]) -> PingResult {
    require("ping");
    let mut command = Command::new("ping");
    command.args(["-n", "-i", "0.2"]).args(options).arg(to.to_string());
    let output = from.output(&mut command);
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    let figure = |before: &str| {
        let line = text.lines().find(|line| line.contains("packets transmitted"))?;
        let words = line.split(", ").find(|part| part.contains(before))?;
        words.split(' ').next()?.parse().ok()
    };
    match (figure("transmitted"), figure("received")) {
        (Some(sent), Some(received)) => PingResult { sent, received, text },
        _ => panic!("{}: ping {to}: {text}", from.role()),
    }
}

/// Pings all the time.
#[derive(Debug)]
pub struct Pinger {
    process: Process,
}

impl Pinger {
    /// Fifty a second.
    ///
    /// # Panics
    /// When the program does not run.
    #[must_use]
    #[track_caller]
    pub fn start(from: &Host, to: IpAddr) -> Self {
        require("ping");
        let mut command = Command::new("ping");
        command.args(["-n", "-i", "0.02", &to.to_string()]);
        Self { process: from.spawn(&format!("ping from {} to {to}", from.role()), &mut command) }
    }

    /// Answers so far.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.process.out.count("bytes from")
    }

    /// Waits for this many more answers.
    ///
    /// # Panics
    /// When they do not come within `limit`.
    #[track_caller]
    pub fn wait_for_answers(&self, more: usize, limit: Duration) {
        let goal = self.answers() + more;
        crate::eventually(&format!("{goal} answers to {}", self.process.name()), limit, || {
            self.answers() >= goal
        });
    }

    /// Waits until no answer has come for `quiet`.
    ///
    /// # Panics
    /// When answers still come after `limit`.
    #[track_caller]
    pub fn wait_for_silence(&self, quiet: Duration, limit: Duration) {
        let mut last = (self.answers(), Instant::now());
        crate::eventually(&format!("silence of {}", self.process.name()), limit, || {
            let answers = self.answers();
            if answers != last.0 {
                last = (answers, Instant::now());
            }
            last.1.elapsed() >= quiet
        });
    }
}
