//! The desk: decides who comes in, hands out leases with their source ports, keeps the journal. A thread of its own, so
//! that the control thread never waits for the disk.

mod clerk;
mod leases;
mod replan;

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use adit_engine::Handle;
use adit_openvpn::push::PushOption;
use adit_pki::Certificate;
use adit_plan::pool::Inner;
use adit_store::{
    AccessFault, AdmissionFault, DeviceId, KeyHash, LeaseFault, Serial, SessionId, Store, UserId,
};
use ipnet::IpNet;
use tokio::sync::oneshot;

use self::clerk::Clerk;
pub(crate) use self::leases::forward_ways;
pub(crate) use self::replan::{Done, Replan, described};
use crate::alarm::Alarm;
use crate::config::TunnelConfig;
use crate::control::{Control, Message, Which};
use crate::exit::{Exits, Way};
use crate::sites::Sites;

const TRY_LATER: &str = "temporary failure at the gateway; try again later";

/// A question to the desk.
#[derive(Debug)]
pub(crate) enum Ask {
    /// May this client come in?
    Login(Login),
    /// May this client stay? (At a renegotiation.)
    Stay { handle: Handle, leaf: Vec<u8> },
    /// This session is over. With `linger` its device may be back in a moment.
    End { handle: Handle, reason: String, linger: bool },
    /// Ends what devices that are away still have; answers when nothing of these is left.
    Settle { which: Which, done: oneshot::Sender<()> },
    /// The ports that are forwarded to this device have changed; those to be `cut` are closed, with what came in by them.
    /// Answers when the kernel knows.
    Forwards { device: DeviceId, cut: Vec<Way>, done: oneshot::Sender<Result<(), String>> },
    /// Hands this on to the control thread, behind all decisions made so far: a client that was let in an instant
    /// before its user was removed is then found and closed.
    Forward(Box<Message>),
    /// Other pools and another layout of source ports are in force when this answers, or nothing has changed.
    Replan(Box<Replan>, Sender<Result<Done, String>>),
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

/// What a desk needs.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) settings: Arc<TunnelConfig>,
    pub(crate) sites: Sites,
    pub(crate) exits: Exits,
    /// Where decisions go.
    pub(crate) control: Control,
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
    /// Starts the desk. The alarm rings when it ends.
    pub(crate) fn start(parts: Parts, alarm: Alarm) -> std::io::Result<Self> {
        let (questions, inbox) = channel();
        let clerk = Clerk::new(parts);
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
