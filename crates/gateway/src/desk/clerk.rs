//! The desk's thread.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use adit_engine::Handle;
use adit_host::clock::{Reading, WallClock};
use adit_plan::nat::{Block, NoBlock};
use adit_store::{Admission, AdmissionFault, Admitted, DeviceId, KeyHash, LeaseFault, Serial, Store};

use super::leases::{Held, forward_ways};
use super::{Ask, Decision, Login, Parts, Refused, TRY_LATER, identify, no_admission, refusal};
use crate::clock;
use crate::config::TunnelConfig;
use crate::control::{Control, Message};
use crate::exit::{Exits, Way};
use crate::sites::Sites;

const HEARTBEAT: Duration = Duration::from_secs(5);
/// A clock that is off by fewer milliseconds is as good as any.
const LEAST_STEP: u32 = 100;
/// Logins decided together at most: those behind them wait for all of them.
const TOGETHER: usize = 32;

/// See the module's text.
pub(super) struct Clerk {
    pub(super) store: Store,
    pub(super) settings: Arc<TunnelConfig>,
    pub(super) sites: Sites,
    pub(super) exits: Exits,
    pub(super) control: Control,
    /// What devices have: those that are connected, and those that were a moment ago.
    pub(super) held: HashMap<DeviceId, Held>,
    /// The devices of live sessions.
    pub(super) live: HashMap<Handle, DeviceId>,
    watch: WallClock,
}

impl Clerk {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { store, settings, sites, exits, control } = parts;
        Self {
            store,
            settings,
            sites,
            exits,
            control,
            held: HashMap::new(),
            live: HashMap::new(),
            watch: WallClock::new(Reading::now(), LEAST_STEP),
        }
    }

    pub(super) fn run(mut self, inbox: &Receiver<Ask>) {
        let mut beat = Instant::now() + HEARTBEAT;
        loop {
            // Looked at before every question, so that a busy inbox does not put the heartbeat off.
            let now = Instant::now();
            if beat <= now {
                beat = now + HEARTBEAT;
                self.beat();
                continue;
            }
            let mut next = match inbox.recv_timeout(beat.saturating_duration_since(now)) {
                Ok(ask) => Some(ask),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Some(Ask::Login(_)) = next {
                next = self.logins(next, inbox);
            }
            match next {
                Some(Ask::Stay { handle, leaf }) => self.stay(handle, &leaf),
                Some(Ask::End { handle, reason, linger }) => self.end(handle, &reason, linger),
                Some(Ask::Settle { which, done }) => {
                    self.settle(&which);
                    let _ = done.send(());
                }
                Some(Ask::Forwards { device, cut, done }) => {
                    let _ = done.send(self.follow_forwards(device, &cut));
                }
                Some(Ask::Replan(replan, done)) => {
                    let _ = done.send(self.replan(&replan));
                }
                Some(Ask::Forward(message)) => self.control.tell(*message),
                Some(Ask::Settings(settings)) => self.settings = settings,
                Some(Ask::Close) => break,
                Some(Ask::Login(_)) | None => {}
            }
        }
        self.close();
    }

    /// What is done every few seconds.
    fn beat(&mut self) {
        if let Err(error) = self.store.heartbeat(clock::now()) {
            tracing::error!(%error, "the journal's heartbeat could not be written");
        }
        self.watch_clock();
        self.let_go(Instant::now());
        self.exits.watch();
        self.clear_quarantine();
        self.expire_forwards();
    }

    /// Times of the journal are worth as much as the clock: when that is set, it is written down.
    fn watch_clock(&mut self) {
        let step = self.watch.step_ms(Reading::now());
        if step == 0 {
            return;
        }
        tracing::warn!(by_ms = step, "the clock was set; traces about this time say how far they may be off");
        if let Err(error) = self.store.clock_stepped(clock::now(), step) {
            tracing::error!(%error, "a step of the clock could not be written down");
        }
    }

    /// Forwards whose time is over: first the kernel lets nothing in by them, then the journal says so.
    fn expire_forwards(&mut self) {
        let now = clock::now();
        let due = self.store.due_forwards(now).unwrap_or_else(|error| {
            tracing::error!(%error, "forwards could not be read");
            Vec::new()
        });
        if due.is_empty() {
            return;
        }
        let mut cut: HashMap<DeviceId, Vec<Way>> = HashMap::new();
        for forward in &due {
            cut.entry(forward.device).or_default().extend(forward_ways(forward));
        }
        for (device, ways) in cut {
            if let Err(fault) = self.follow_forwards(device, &ways) {
                tracing::error!(?ways, fault, "forwarded ports could not be closed");
            }
        }
        let change = adit_store::Change { actor: "gateway", now };
        if let Err(error) = self.store.expire_forwards(&change) {
            tracing::error!(%error, "forwards whose time is over could not be ended");
        }
    }

    /// Decides about the first login and all that wait right behind it. Gives back what comes after them.
    fn logins(&mut self, first: Option<Ask>, inbox: &Receiver<Ask>) -> Option<Ask> {
        let mut logins = Vec::new();
        let mut next = first;
        while let Some(Ask::Login(login)) = next {
            logins.push(login);
            next = if logins.len() < TOGETHER { inbox.try_recv().ok() } else { None };
        }
        self.decide(logins);
        next
    }

    fn decide(&mut self, logins: Vec<Login>) {
        let mut known = Vec::with_capacity(logins.len());
        for login in logins {
            match identify(&login.leaf) {
                Ok(credential) => known.push((login, credential)),
                Err(refused) => self.answer(login.handle, Decision::Refused(refused)),
            }
        }
        let now = clock::now();
        let admissions: Vec<_> = known.iter().map(|(login, of)| admission(login, of, now)).collect();
        match self.store.admit(&admissions) {
            Ok(outcomes) => {
                for (admission, ((login, _), outcome)) in admissions.iter().zip(known.iter().zip(outcomes)) {
                    let outcome = self.make_room(admission, outcome);
                    let decision = match outcome {
                        Ok(admitted) => self.grant(login, admitted),
                        Err(fault) => Decision::Refused(no_admission(fault)),
                    };
                    self.answer(login.handle, decision);
                }
            }
            Err(fault) => {
                for (login, _) in &known {
                    let refused = Refused::for_a_while(TRY_LATER, fault.to_string());
                    self.answer(login.handle, Decision::Refused(refused));
                }
            }
        }
    }

    /// Where a client is refused for want of addresses or ports, a device that is away gives up its own.
    fn make_room(
        &mut self,
        admission: &Admission<'_>,
        mut outcome: Result<Admitted, AdmissionFault>,
    ) -> Result<Admitted, AdmissionFault> {
        while let Err(AdmissionFault::NoLease { fault, .. }) = &outcome {
            let made = match fault {
                LeaseFault::NoBlock(NoBlock::Busy { others, .. }) if !others.is_empty() => {
                    self.take_over(others)
                }
                LeaseFault::Full(_) | LeaseFault::NoBlock(_) => self.reclaim(),
                _ => false,
            };
            if !made {
                break;
            }
            outcome = match self.store.admit(std::slice::from_ref(admission)) {
                Ok(mut outcomes) => outcomes.pop().unwrap_or(Err(AdmissionFault::NoPools)),
                Err(fault) => Err(AdmissionFault::Store(fault)),
            };
        }
        outcome
    }

    /// Ends the connections by ports that others have left and that are a client's own now. False if that is not possible.
    fn take_over(&self, left: &[(Block, Ipv4Addr)]) -> bool {
        left.iter().all(|(block, owner)| {
            if let Err(fault) = self.exits.clear(*owner, *block) {
                tracing::error!(%fault, "tracked connections could not be deleted");
                return false;
            }
            self.store.release_block(*block, *owner, clock::now()).unwrap_or_else(|error| {
                tracing::error!(%error, "the end of a block could not be written");
                false
            })
        })
    }

    fn answer(&self, handle: Handle, decision: Decision) {
        self.control.tell(Message::Decided(handle, decision));
    }

    fn stay(&mut self, handle: Handle, leaf: &[u8]) {
        let result = identify(leaf).and_then(|(serial, key)| {
            self.store.authorize(&serial, &key, clock::now()).map_err(|fault| refusal(&fault))
        });
        let decision = match result {
            Ok(_) => Decision::Stays,
            Err(refused) => Decision::Refused(refused),
        };
        self.answer(handle, decision);
    }
}

fn admission<'a>(
    login: &'a Login,
    (serial, key): &'a (Serial, KeyHash),
    now: adit_store::Timestamp,
) -> Admission<'a> {
    Admission {
        serial,
        key,
        protocol: login.protocol,
        identity: &login.identity,
        transport: if login.tcp { "tcp" } else { "udp" },
        now,
    }
}
