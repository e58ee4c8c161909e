//! The desk: decides who comes in, hands out leases, keeps the journal. A thread of its own, so that the control
//! thread never waits for the disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use adit_engine::Handle;
use adit_openvpn::push::PushOption;
use adit_pki::Certificate;
use adit_plan::pool::Inner;
use adit_store::{
    AccessFault, Admission, AdmissionFault, Admitted, DeviceId, KeyHash, Lease, LeaseFault, Serial,
    SessionId, Store, UserId,
};
use ipnet::IpNet;

use crate::alarm::Alarm;
use crate::clock;
use crate::config::TunnelConfig;
use crate::control::{Control, Message};
use crate::sites::Sites;

const HEARTBEAT: Duration = Duration::from_secs(5);
/// Logins decided together at most: those behind them wait for all of them.
const TOGETHER: usize = 32;
const TRY_LATER: &str = "temporary failure at the gateway; try again later";

/// A question to the desk.
#[derive(Debug)]
pub(crate) enum Ask {
    /// May this client come in?
    Login(Login),
    /// May this client stay? (At a renegotiation.)
    Stay { handle: Handle, leaf: Vec<u8> },
    /// This session is over.
    End { handle: Handle, reason: String },
    /// Hands this on to the control thread, behind all decisions made so far: a client that was let in an instant
    /// before its user was removed is then found and closed.
    Forward(Box<Message>),
    /// From now on these settings count.
    Settings(Arc<TunnelConfig>),
    /// No more questions will come; end every lease.
    Close,
}

/// A client that has proven who it is.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) handle: Handle,
    /// The client's own certificate, DER.
    pub(crate) leaf: Vec<u8>,
    pub(crate) protocol: &'static str,
    pub(crate) identity: String,
    pub(crate) tcp: bool,
}

/// What a client gets.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    pub(crate) session: SessionId,
    pub(crate) user: UserId,
    pub(crate) user_name: String,
    pub(crate) device: DeviceId,
    pub(crate) device_name: String,
    pub(crate) inner: Inner,
    pub(crate) prefixes: Vec<IpNet>,
    pub(crate) options: Vec<PushOption>,
    /// The device's session that this one takes the place of.
    pub(crate) replaces: Option<Handle>,
}

/// An answer of the desk.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Come in.
    Granted(Box<Granted>),
    /// Stay.
    Stays,
    /// Go away.
    Refused(Refused),
}

/// Why a client may not come in.
#[derive(Debug)]
pub(crate) struct Refused {
    /// For the client.
    tell: String,
    /// For the log.
    log: String,
    /// It is the gateway's trouble; the client may try again.
    temporary: bool,
}

impl Refused {
    fn for_good(tell: impl Into<String>, log: impl Into<String>) -> Self {
        Self { tell: tell.into(), log: log.into(), temporary: false }
    }

    fn for_a_while(tell: impl Into<String>, log: impl Into<String>) -> Self {
        Self { tell: tell.into(), log: log.into(), temporary: true }
    }

    pub(crate) fn tell(&self) -> &str {
        &self.tell
    }

    pub(crate) fn log(&self) -> &str {
        &self.log
    }

    pub(crate) fn is_temporary(&self) -> bool {
        self.temporary
    }
}

/// The handle to the desk's thread.
///
/// Its queue has no bound of its own: a session has at most one question open and one end, and the number of sessions
/// and handshakes is bounded. So the control thread never waits for the desk, while the desk may wait for it.
#[derive(Debug)]
pub(crate) struct Desk {
    questions: Sender<Ask>,
    thread: Option<JoinHandle<()>>,
}

impl Desk {
    /// Starts the desk; its decisions go to `control`. The alarm rings when it ends.
    pub(crate) fn start(
        store: Store,
        settings: Arc<TunnelConfig>,
        sites: Sites,
        control: Control,
        alarm: Alarm,
    ) -> std::io::Result<Self> {
        let (questions, inbox) = channel();
        let clerk =
            Clerk { store, settings, sites, held: HashMap::new(), by_device: HashMap::new(), control };
        let thread = std::thread::Builder::new().name("desk".into()).spawn(move || {
            let _alarm = alarm;
            clerk.run(&inbox);
        })?;
        Ok(Self { questions, thread: Some(thread) })
    }

    /// A way to ask.
    pub(crate) fn questions(&self) -> Sender<Ask> {
        self.questions.clone()
    }

    /// Ends every lease and session in the journal, and the thread.
    pub(crate) fn close(&mut self) {
        let _ = self.questions.send(Ask::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a live session has taken.
struct Held {
    session: SessionId,
    device: DeviceId,
    lease: Lease,
}

struct Clerk {
    store: Store,
    settings: Arc<TunnelConfig>,
    sites: Sites,
    held: HashMap<Handle, Held>,
    by_device: HashMap<DeviceId, Handle>,
    control: Control,
}

impl Clerk {
    fn run(mut self, inbox: &Receiver<Ask>) {
        let mut beat = Instant::now() + HEARTBEAT;
        loop {
            // Looked at before every question, so that a busy inbox does not put the heartbeat off.
            let left = beat.saturating_duration_since(Instant::now());
            if left.is_zero() {
                beat = Instant::now() + HEARTBEAT;
                if let Err(error) = self.store.heartbeat(clock::now()) {
                    tracing::error!(%error, "the journal's heartbeat could not be written");
                }
                continue;
            }
            let mut next = match inbox.recv_timeout(left) {
                Ok(ask) => Some(ask),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Some(Ask::Login(_)) = next {
                next = self.logins(next, inbox);
            }
            match next {
                Some(Ask::Stay { handle, leaf }) => self.stay(handle, &leaf),
                Some(Ask::End { handle, reason }) => self.end(handle, &reason),
                Some(Ask::Forward(message)) => self.control.tell(*message),
                Some(Ask::Settings(settings)) => self.settings = settings,
                Some(Ask::Close) => break,
                Some(Ask::Login(_)) | None => {}
            }
        }
        let handles: Vec<_> = self.held.keys().copied().collect();
        for handle in handles {
            self.end(handle, "gateway stopped");
        }
        if let Err(error) = self.store.heartbeat(clock::now()) {
            tracing::error!(%error, "the journal could not be closed");
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
        let admissions: Vec<_> = known
            .iter()
            .map(|(login, (serial, key))| Admission {
                serial,
                key,
                protocol: login.protocol,
                identity: &login.identity,
                transport: if login.tcp { "tcp" } else { "udp" },
                now,
            })
            .collect();
        match self.store.admit(&admissions) {
            Ok(outcomes) => {
                for ((login, _), outcome) in known.iter().zip(outcomes) {
                    let decision = match outcome {
                        Ok(admitted) => Decision::Granted(Box::new(self.grant(login, admitted))),
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

    /// Notes what the client has, and what it is to be told.
    fn grant(&mut self, login: &Login, admitted: Admitted) -> Granted {
        let Admitted { who, session, lease } = admitted;
        let inner = lease.inner();
        let replaces = self.by_device.insert(who.device.id, login.handle);
        if let Some(old) = replaces.and_then(|old| self.held.remove(&old)) {
            // The lease has gone over to the new session; only the old session's end is missing.
            self.close_session(old.session, "replaced by a newer session");
        }
        self.held.insert(login.handle, Held { session: session.id, device: who.device.id, lease });
        let sites = self.sites.others(who.device.id);
        let options = match self.store.pools() {
            Some(pools) => crate::push::options(&self.settings, &pools, inner, &sites, login.tcp),
            None => Vec::new(),
        };
        Granted {
            session: session.id,
            user: who.user.id,
            user_name: who.user.name.to_string(),
            device: who.device.id,
            device_name: who.device.name.to_string(),
            inner,
            prefixes: who.prefixes,
            options,
            replaces,
        }
    }

    fn end(&mut self, handle: Handle, reason: &str) {
        let Some(held) = self.held.remove(&handle) else { return };
        if self.by_device.get(&held.device) == Some(&handle) {
            self.by_device.remove(&held.device);
        }
        if let Err(error) = held.lease.end(clock::now()) {
            tracing::error!(%error, "the end of a lease could not be written; its addresses stay taken");
        }
        self.close_session(held.session, reason);
    }

    fn close_session(&self, session: SessionId, reason: &str) {
        if let Err(error) = self.store.close_session(session, clock::now(), reason) {
            tracing::error!(%error, "the end of a session could not be written");
        }
    }
}

/// Why a client that has proven who it is may not come in.
fn no_admission(fault: AdmissionFault) -> Refused {
    match fault {
        AdmissionFault::Refused(refusal) => Refused::for_good(refusal.to_string(), refusal.to_string()),
        AdmissionFault::NoLease { fault: LeaseFault::Full(_), .. } => {
            Refused::for_a_while("no free addresses", fault.to_string())
        }
        other => Refused::for_a_while(TRY_LATER, other.to_string()),
    }
}

/// Serial and key hash of a certificate that TLS has verified.
fn identify(leaf: &[u8]) -> Result<(Serial, KeyHash), Refused> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Refused::for_good(
            "the certificate cannot be read",
            format!("a verified certificate cannot be read: {error}"),
        )
    };
    let (serial, key) = Certificate::serial_and_key_hash(leaf).map_err(|error| unreadable(&error))?;
    let serial = serial.to_string().parse().map_err(|error| unreadable(&error))?;
    Ok((serial, KeyHash::from_bytes(key)))
}

/// A client that is refused is told why; if the database fails, only that it fails.
fn refusal(fault: &AccessFault) -> Refused {
    match fault {
        AccessFault::Refused(refusal) => Refused::for_good(refusal.to_string(), refusal.to_string()),
        AccessFault::Store(fault) => Refused::for_a_while(TRY_LATER, fault.to_string()),
    }
}
