//! The control thread: one attempt after the other, until told to stop or refused by the server.
//!
//! The interface and its routes stay between sessions, so that nothing leaves past the tunnel while it is being
//! connected again.

mod servers;

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use adit_engine::{Clocks, Command, Engine, Event as EngineEvent, Handle, OsEntropy, Sources};
use adit_openvpn::data::Channel;
use adit_openvpn::machine::{Agreement, Ended, Event, Farewell};
use adit_openvpn::profile::{Profile, ProfileWrap};
use adit_openvpn::push::PushReply;

use crate::attempt::{ANSWER, Attempt, Means};
use crate::backoff::Backoff;
use crate::client::{ClientFault, Options, PacketLoop};
use crate::network::Network;
use crate::remotes::{self, Answers, Candidate, Rotation};
use crate::status::{State, Status};
use crate::tunnel::Tunnel;
use crate::verdict::{self, Next, Wait};

/// How long the server has to take note of a farewell.
const FAREWELL: Duration = Duration::from_secs(2);
/// A session that lived this long did not fail, and is followed by another at once.
const LIVED: Duration = Duration::from_secs(10);

/// What comes to the control thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// The engine has something.
    Engine(EngineEvent),
    /// The resolver has answered.
    Resolved(Answers),
    /// A TCP connection was made, or not; the number says for which attempt.
    Dialled(u64, std::io::Result<TcpStream>),
    /// No packet can be carried any more.
    Failed(String),
    /// Leave.
    Stop,
}

/// What the thread is made of.
pub(crate) struct Parts {
    pub(crate) profile: Profile,
    pub(crate) options: Options,
    pub(crate) means: Means,
    pub(crate) network: Network,
    pub(crate) packets: PacketLoop,
    pub(crate) sender: SyncSender<Message>,
    pub(crate) inbox: Receiver<Message>,
}

/// What is being done.
#[derive(Debug)]
enum Phase {
    /// Nobody to try is known before the resolver answers.
    Resolving,
    /// Until then nobody is tried.
    Waiting(Instant),
    /// A TCP connection is being made.
    Dialling(u64, Candidate),
    /// A session is being made, or is there.
    Talking(Box<Attempt>),
    /// The server is being told that this client leaves.
    Leaving(Box<Attempt>, Instant),
    /// Nothing any more.
    Over,
}

/// See the module's text.
pub(crate) struct Control<'a> {
    parts: Parts,
    report: &'a mut dyn FnMut(&Status),
    clocks: Clocks,
    rotation: Rotation,
    backoff: Backoff,
    phase: Phase,
    /// The resolver is at work.
    resolving: bool,
    dials: u64,
    /// There was a session.
    was_up: bool,
    /// All attempts of this round failed for reasons that waiting does not mend.
    hopeless: bool,
    /// What went wrong last.
    why: Option<String>,
    /// What was reported last.
    told: Option<Status>,
}

impl<'a> Control<'a> {
    pub(crate) fn new(mut parts: Parts, report: &'a mut dyn FnMut(&Status)) -> Self {
        if parts.profile.remote_random {
            remotes::shuffle(&mut parts.profile.remotes, &mut OsEntropy);
        }
        Self {
            parts,
            report,
            clocks: Clocks::read(),
            rotation: Rotation::default(),
            backoff: Backoff::default(),
            phase: Phase::Resolving,
            resolving: false,
            dials: 0,
            was_up: false,
            hopeless: true,
            why: None,
            told: None,
        }
    }

    /// Runs until it is over, and puts everything back.
    pub(crate) fn run(mut self) -> Result<(), ClientFault> {
        let outcome = self.work();
        if let Phase::Talking(attempt) = &mut self.phase {
            // After a fault there is no time to wait whether the server has heard it.
            attempt.driver.close(&Farewell::Exit, Instant::now());
            attempt.driver.transmit(&self.parts.means.engine, &mut Vec::new(), Instant::now());
        }
        let outcome = match outcome {
            Ok(()) if !self.was_up => Err(ClientFault::NeverConnected(self.why.take())),
            Err(fault) if self.parts.options.kill_switch => self.hold(fault),
            outcome => outcome,
        };
        let undone = self.parts.network.undo();
        let why = outcome.as_ref().err().map(ToString::to_string);
        (self.report)(&Status { state: State::Disconnected, why, ..Status::default() });
        drop(self.parts.packets);
        match (outcome, undone) {
            (Ok(()), Err(fault)) => Err(ClientFault::Undo(fault)),
            (outcome, undone) => {
                if let Err(fault) = undone {
                    tracing::error!("{fault}");
                }
                outcome
            }
        }
    }

    /// Keeps the kill switch on until told to stop, though it is over.
    fn hold(&mut self, fault: ClientFault) -> Result<(), ClientFault> {
        match self.parts.network.shut(&self.parts.options.mode) {
            Ok(()) => {
                self.tell(Status {
                    state: State::Blocked,
                    why: Some(fault.to_string()),
                    ..Status::default()
                });
                while !matches!(self.parts.inbox.recv(), Ok(Message::Stop) | Err(_)) {}
            }
            Err(error) => tracing::error!("the kill switch cannot be held: {error}"),
        }
        Err(fault)
    }

    fn work(&mut self) -> Result<(), ClientFault> {
        self.tell(Status::default());
        self.resolve()?;
        while !matches!(self.phase, Phase::Over) {
            let message = match self.due() {
                Some(at) => self.parts.inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => self.parts.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let now = Instant::now();
            // The thread itself keeps the inbox open, so that the only other outcome is that time has passed.
            if let Ok(message) = message {
                self.handle(message, now)?;
            }
            if self.due().is_some_and(|at| now >= at) {
                self.timeout(now)?;
            }
        }
        Ok(())
    }

    fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.parts.means.engine)
    }

    /// Control packets have a key of their own.
    fn is_protected(&self) -> bool {
        self.parts.profile.wrap != ProfileWrap::None
    }

    fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting(until) => Some(*until),
            Phase::Talking(attempt) => attempt.due(),
            Phase::Leaving(attempt, deadline) => {
                Some(attempt.driver.next_timeout().map_or(*deadline, |at| at.min(*deadline)))
            }
            Phase::Resolving | Phase::Dialling(..) | Phase::Over => None,
        }
    }

    fn timeout(&mut self, now: Instant) -> Result<(), ClientFault> {
        let protected = self.is_protected();
        match &mut self.phase {
            Phase::Waiting(_) => return self.try_next(now),
            Phase::Talking(attempt) => {
                attempt.driver.timeout(&self.clocks, now);
                if attempt.is_unanswered(now) {
                    let doubt = attempt.doubt(protected);
                    attempt.give_up(format!("no answer for {ANSWER:?}{doubt}"), now);
                }
            }
            Phase::Leaving(_, deadline) if now >= *deadline => self.phase = Phase::Over,
            Phase::Leaving(attempt, _) => attempt.driver.timeout(&self.clocks, now),
            Phase::Resolving | Phase::Dialling(..) | Phase::Over => {}
        }
        self.drive(now)
    }

    fn handle(&mut self, message: Message, now: Instant) -> Result<(), ClientFault> {
        match message {
            Message::Engine(event) => self.engine_event(event, now),
            Message::Resolved(answers) => self.resolved(&answers, now),
            Message::Dialled(dial, outcome) => self.dialled(dial, outcome, now),
            Message::Failed(why) => {
                let interface = self.parts.network.interface().to_owned();
                Err(ClientFault::InterfaceGone { interface, why })
            }
            Message::Stop => self.stop(now),
        }
    }

    fn engine_event(&mut self, event: EngineEvent, now: Instant) -> Result<(), ClientFault> {
        let (engine, protected) = (self.engine(), self.is_protected());
        match event {
            EngineEvent::Control { handle, packet, .. } => {
                if let Some(attempt) = self.attempt(handle) {
                    attempt.driver.packet(&engine, &packet, now);
                }
            }
            EngineEvent::Moved { handle, path } => {
                if self.attempt(handle).is_some() {
                    tracing::info!(remote = %path.remote(), "the server is at another address now");
                }
            }
            EngineEvent::PeerLeft { handle } => {
                if let Some(attempt) = self.attempt(handle) {
                    attempt.driver.machine_mut().peer_left();
                }
            }
            EngineEvent::StreamClosed { handle, why } => {
                if let Some(attempt) = self.attempt(handle) {
                    let doubt = if attempt.up.is_some() { "" } else { attempt.doubt(protected) };
                    attempt.give_up(format!("the TCP connection broke: {why}{doubt}"), now);
                }
            }
            // Without a gate nobody is admitted.
            EngineEvent::Admitted { .. } => {}
        }
        self.drive(now)
    }

    fn attempt(&mut self, handle: Handle) -> Option<&mut Attempt> {
        self.current().filter(|attempt| attempt.driver.handle() == handle)
    }

    fn current(&mut self) -> Option<&mut Attempt> {
        match &mut self.phase {
            Phase::Talking(attempt) | Phase::Leaving(attempt, _) => Some(attempt),
            Phase::Resolving | Phase::Waiting(_) | Phase::Dialling(..) | Phase::Over => None,
        }
    }

    /// Acts on what the machine has to say, and sends what it has to send.
    fn drive(&mut self, now: Instant) -> Result<(), ClientFault> {
        while let Some(event) = self.current().and_then(|attempt| attempt.driver.next_event()) {
            match event {
                Event::Pushed(reply) => self.pushed(&reply, now),
                Event::Established(channel, agreement) => self.established(channel, agreement, now)?,
                Event::Renegotiated => tracing::debug!("new keys"),
                Event::Notice(words) => tracing::info!("the server says: {words}"),
                Event::Ended(ended) => self.ended(&ended, now)?,
                // Only servers are asked.
                Event::Authenticate(_) => {}
            }
        }
        let engine = self.engine();
        if let Some(attempt) = self.current() {
            attempt.driver.transmit(&engine, &mut Vec::new(), now);
        }
        Ok(())
    }

    fn pushed(&mut self, reply: &PushReply, now: Instant) {
        for option in &reply.malformed {
            tracing::warn!("the server pushes \"{option}\", which makes no sense and has no effect");
        }
        let tunnel = Tunnel::new(&self.parts.profile, reply, &self.parts.options.mode);
        let Some(attempt) = self.current() else { return };
        match tunnel {
            Ok(tunnel) => attempt.tunnel = Some(tunnel),
            Err(fault) => attempt.give_up(fault.to_string(), now),
        }
    }

    /// Data packets may pass from now on.
    fn established(
        &mut self,
        channel: Arc<Channel>,
        agreement: Agreement,
        now: Instant,
    ) -> Result<(), ClientFault> {
        let engine = self.engine();
        let Some(attempt) = self.current() else { return Ok(()) };
        let Some(tunnel) = attempt.tunnel.take() else { return Ok(()) };
        attempt.driver.attach(&engine, channel, &agreement, Sources::new(tunnel.carries()));
        attempt.up = Some(now);
        let status = Status {
            inner4: tunnel.inner4.map(|net| net.addr()),
            inner6: tunnel.inner6.map(|net| net.addr()),
            cipher: Some(agreement.cipher.name()),
            resolvers: tunnel.resolvers.clone(),
            domains: tunnel.domains.clone(),
            ..attempt.status(State::Connected)
        };
        let server = attempt.driver.path().remote().ip();
        tracing::info!(%tunnel, "connected");
        tell_resolvers(&tunnel);
        self.parts.network.set_up(tunnel, server)?;
        self.was_up = true;
        self.why = None;
        self.tell(status);
        Ok(())
    }

    fn ended(&mut self, ended: &Ended, now: Instant) -> Result<(), ClientFault> {
        let engine = self.engine();
        let (mut attempt, leaving) = match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Talking(attempt) => (attempt, false),
            Phase::Leaving(attempt, _) => (attempt, true),
            other => {
                self.phase = other;
                return Ok(());
            }
        };
        attempt.driver.transmit(&engine, &mut Vec::new(), now);
        engine.tell(Command::Forget(attempt.driver.handle(), None));
        if leaving {
            return Ok(());
        }
        let own = attempt.gave_up.take().filter(|_| *ended == Ended::Local);
        let why = own.unwrap_or_else(|| verdict::reason(ended));
        self.why = Some(why.clone());
        if attempt.up.is_some() {
            tracing::warn!(server = %attempt.candidate, "connection lost: {why}");
            self.tell(Status { why: Some(why), ..attempt.status(State::Reconnecting) });
        } else {
            tracing::warn!(server = %attempt.candidate, "not connected: {why}");
        }
        match verdict::after(ended, attempt.up.is_some()) {
            Next::GiveUp(words) => Err(ClientFault::Refused(words)),
            Next::GoOn => {
                self.hopeless &= verdict::is_lasting(ended);
                self.try_next(now)
            }
            Next::Again(start, wait) => {
                self.rotation.restart(start);
                self.hopeless = false;
                let lived = attempt.up.is_some_and(|since| now >= since + LIVED);
                if lived {
                    self.backoff.reset();
                }
                let time = match wait {
                    Wait::Not if lived => Duration::ZERO,
                    Wait::Not | Wait::Pause => self.pause(),
                    Wait::For(time) => time,
                };
                self.wait(time, now);
                Ok(())
            }
        }
    }

    fn stop(&mut self, now: Instant) -> Result<(), ClientFault> {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Talking(mut attempt) if attempt.up.is_some() => {
                attempt.driver.close(&Farewell::Exit, now);
                Phase::Leaving(attempt, now + FAREWELL)
            }
            Phase::Leaving(attempt, deadline) => Phase::Leaving(attempt, deadline),
            _ => Phase::Over,
        };
        self.drive(now)
    }

    fn tell(&mut self, status: Status) {
        let status = Status { interface: Some(self.parts.network.interface().to_owned()), ..status };
        if self.told.as_ref() != Some(&status) {
            (self.report)(&status);
            self.told = Some(status);
        }
    }
}

fn tell_resolvers(tunnel: &Tunnel) {
    if !tunnel.resolvers.is_empty() || !tunnel.domains.is_empty() {
        tracing::info!(
            resolvers = ?tunnel.resolvers,
            domains = ?tunnel.domains,
            "the server names these resolvers; they are not applied: this machine asks its own as before"
        );
    }
}
