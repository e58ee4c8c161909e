//! The client as the program sees it: made, run, told to stop.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use adit_engine::{Engine, StartFault};
use adit_host::plumbing::PlumbingFault;
use adit_host::privilege::{self, PrivilegeFault};
use adit_openvpn::profile::Profile;

use crate::attempt::Means;
use crate::control::{Control, Message, Parts};
use crate::network::{Network, NetworkFault};
use crate::place::{Place, PlaceFault};
use crate::settings::{self, SettingsFault};
use crate::status::Status;
use crate::tunnel::{MAX_MTU, Mode};

/// What the user wants besides the profile.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What goes through the tunnel.
    pub mode: Mode,
    /// Nothing that belongs into the tunnel leaves past it: from the time when the servers' addresses are known until
    /// the client is stopped, even when the server refuses it; and after a crash until the next client.
    pub kill_switch: bool,
    /// Where packets to the server leave from.
    pub bind: Option<Bind>,
}

/// Where packets to the server leave from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// An address of this machine; servers of the other IP version are not reached.
    Address(IpAddr),
    /// An interface.
    Interface(String),
}

/// Messages that may wait for the control thread.
const INBOX: usize = 1024;

/// Why the client ends, other than being told to.
#[derive(Debug, thiserror::Error)]
pub enum ClientFault {
    /// Not enough rights.
    #[error(transparent)]
    Privilege(#[from] PrivilegeFault),
    /// The profile.
    #[error(transparent)]
    Settings(#[from] SettingsFault),
    /// This machine's side of the tunnel.
    #[error(transparent)]
    Network(#[from] NetworkFault),
    /// The packet loop.
    #[error(transparent)]
    Engine(#[from] StartFault),
    /// The server does not want this client.
    #[error("{0}")]
    Refused(String),
    /// No server was reached that accepts this client and that this client accepts; trying again would not help.
    #[error("no server is as the profile says: {0}")]
    Unacceptable(String),
    /// It was stopped before it was ever connected.
    #[error("stopped before it was connected{}", .0.as_ref().map(|why| format!("; at last: {why}")).unwrap_or_default())]
    NeverConnected(Option<String>),
    /// Most likely somebody has removed the tun interface.
    #[error("no packet can pass {interface} any more: {why}")]
    InterfaceGone {
        /// Its name.
        interface: String,
        /// What the system says.
        why: String,
    },
    /// It is over, and not everything could be put back.
    #[error("the connection is closed, but the machine is not as it was: {0}")]
    Undo(#[source] PlumbingFault),
    /// Threads and the like.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

impl From<PlaceFault> for ClientFault {
    fn from(fault: PlaceFault) -> Self {
        Self::Network(fault.into())
    }
}

/// The packet loop, which ends with this value.
#[derive(Debug)]
pub(crate) struct PacketLoop(Arc<Engine>);

impl Drop for PacketLoop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A client, ready to connect. Dropping it puts everything back.
pub struct Client {
    parts: Parts,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("interface", &self.interface()).finish_non_exhaustive()
    }
}

/// Ends a running client, from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(SyncSender<Message>);

impl Stopper {
    /// Tells the client to say farewell to the server and put everything back. May be called again.
    pub fn stop(&self) {
        // A client that is gone has stopped.
        let _ = self.0.send(Message::Stop);
    }
}

impl Client {
    /// Opens the interface and starts the packet loop, in the calling thread's network namespace. What a client that
    /// crashed has left is put back first.
    ///
    /// # Errors
    /// [`ClientFault`], worded for the user; nothing is left changed then.
    pub fn new(profile: Profile, options: Options) -> Result<Self, ClientFault> {
        let (settings, wrap) = settings::read(&profile)?;
        privilege::check()?;
        let (mut network, tun) = Network::open(&Place::find()?, profile.dev.as_deref(), &options)?;
        let (sender, inbox) = sync_channel(INBOX);
        let (events, failed) = (sender.clone(), sender.clone());
        let engine = Arc::new(adit_engine::start(adit_engine::Parts {
            tun,
            sockets: network.sockets()?,
            gate: None,
            foreign: None,
            mtu: MAX_MTU,
            max_half_open: 0,
            events: Box::new(move |event| events.try_send(Message::Engine(event)).is_ok()),
            failed: Box::new(move |why| {
                // The inbox may be full, and the packet loop waits for nobody.
                std::thread::spawn(move || failed.send(Message::Failed(why)));
            }),
        })?);
        let means = Means { engine: Arc::clone(&engine), settings: Arc::new(settings), wrap };
        let packets = PacketLoop(engine);
        Ok(Self { parts: Parts { profile, options, means, network, packets, sender, inbox } })
    }

    /// Name of the tun interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        self.parts.network.interface()
    }

    /// What ends it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.parts.sender.clone())
    }

    /// Connects, and stays connected until told to stop or refused by the server. Each change of state is reported.
    ///
    /// # Errors
    /// [`ClientFault`], worded for the user.
    pub fn run(self, report: &mut dyn FnMut(&Status)) -> Result<(), ClientFault> {
        Control::new(self.parts, report).run()
    }
}
