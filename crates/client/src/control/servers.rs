//! Which server is tried when.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use adit_engine::OsEntropy;
use adit_tunnel::Entropy;

use super::{Control, Message, Phase};
use crate::attempt::{ANSWER, Attempt};
use crate::client::ClientFault;
use crate::remotes::{self, Answers, Candidate, Start};
use crate::resolve::resolve;
use crate::status::{State, Status};

impl Control<'_> {
    pub(super) fn pause(&mut self) -> Duration {
        let mut chance = [0];
        OsEntropy.fill(&mut chance);
        self.backoff.wait(chance[0])
    }

    pub(super) fn wait(&mut self, time: Duration, now: Instant) {
        if !time.is_zero() {
            tracing::info!("trying again in {:.1} s", time.as_secs_f32());
        }
        self.phase = Phase::Waiting(now + time);
    }

    /// Tries the next candidate that a route leads to.
    pub(super) fn try_next(&mut self, now: Instant) -> Result<(), ClientFault> {
        while let Some(candidate) = self.rotation.next() {
            if self.begin(candidate, now)? {
                return Ok(());
            }
        }
        match &self.why {
            Some(why) if self.hopeless && !self.was_up && !self.rotation.is_empty() => {
                return Err(ClientFault::Unacceptable(why.clone()));
            }
            _ => self.hopeless = true,
        }
        // What the names lead to may have changed.
        self.resolve()?;
        if self.rotation.is_empty() && self.resolving {
            self.phase = Phase::Resolving;
            return Ok(());
        }
        self.rotation.restart(Start::NextAddress);
        let pause = self.pause();
        self.wait(pause, now);
        Ok(())
    }

    /// Begins an attempt; false when there is no way to this server.
    fn begin(&mut self, candidate: Candidate, now: Instant) -> Result<bool, ClientFault> {
        let address = candidate.address;
        let state = if self.was_up { State::Reconnecting } else { State::Connecting };
        let status = Status { why: self.why.clone(), ..Status::at(state, address, candidate.transport) };
        self.tell(status);
        if !self.parts.network.reach(address.ip())? {
            tracing::warn!(server = %candidate, "not connected: no route leads there");
            self.why = Some(format!("no route leads to {}", address.ip()));
            self.hopeless = false;
            return Ok(false);
        }
        if candidate.is_tcp() {
            self.dial(candidate)?;
        } else {
            self.phase = Phase::Talking(Box::new(Attempt::over_udp(&self.parts.means, candidate, now)));
            self.drive(now)?;
        }
        Ok(true)
    }

    fn dial(&mut self, candidate: Candidate) -> Result<(), ClientFault> {
        self.dials += 1;
        let (dial, done) = (self.dials, self.parts.sender.clone());
        let origin = self.parts.network.origin();
        let connect = move || {
            let outcome = adit_host::tcp::connect(candidate.address, &origin, ANSWER);
            // A client that has ended meanwhile does not need the connection any more.
            let _ = done.send(Message::Dialled(dial, outcome));
        };
        std::thread::Builder::new().name("dial".into()).spawn(connect)?;
        self.phase = Phase::Dialling(dial, candidate);
        Ok(())
    }

    pub(super) fn dialled(
        &mut self,
        dial: u64,
        outcome: std::io::Result<TcpStream>,
        now: Instant,
    ) -> Result<(), ClientFault> {
        let Phase::Dialling(awaited, candidate) = self.phase else { return Ok(()) };
        if dial != awaited {
            return Ok(());
        }
        let means = &self.parts.means;
        match outcome.and_then(|stream| Attempt::over_tcp(means, candidate, stream, now)) {
            Ok(attempt) => {
                self.phase = Phase::Talking(Box::new(attempt));
                self.drive(now)
            }
            Err(error) => {
                tracing::warn!(server = %candidate, "not connected: {error}");
                self.why = Some(error.to_string());
                self.hopeless = false;
                self.try_next(now)
            }
        }
    }

    /// Asks the resolver, unless it is at work. While the tunnel is up but dead its answer may never come; what was
    /// known before is used meanwhile.
    pub(super) fn resolve(&mut self) -> Result<(), ClientFault> {
        if !std::mem::replace(&mut self.resolving, true) {
            let hosts = self.parts.profile.remotes.iter().map(|remote| remote.host.clone()).collect();
            let done = self.parts.sender.clone();
            resolve(hosts, move |answers| {
                // A client that has ended needs no answer.
                let _ = done.send(Message::Resolved(answers));
            })?;
        }
        Ok(())
    }

    pub(super) fn resolved(&mut self, answers: &Answers, now: Instant) -> Result<(), ClientFault> {
        self.resolving = false;
        for (host, answer) in answers {
            if let Err(why) = answer {
                tracing::warn!("{host} is not known: {why}");
                self.why = Some(format!("{host} is not known: {why}"));
                self.hopeless = false;
            }
        }
        let candidates = remotes::candidates(&self.parts.profile.remotes, answers);
        if candidates.is_empty() && !self.rotation.is_empty() {
            return Ok(());
        }
        if self.rotation.is_empty() && !candidates.is_empty() && !self.was_up {
            // Not before: the names of the servers had to be asked for.
            self.parts.network.shut(&self.parts.options.mode)?;
        }
        self.rotation.replace(candidates);
        if !matches!(self.phase, Phase::Resolving) {
            return Ok(());
        }
        if self.rotation.is_empty() {
            let pause = self.pause();
            self.wait(pause, now);
            return Ok(());
        }
        self.try_next(now)
    }
}
