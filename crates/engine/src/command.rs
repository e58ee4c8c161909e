//! What goes between the control plane and a shard.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use adit_host::poll::Waker;
use adit_host::tun::Tun;
use adit_host::udp::{SendFault, UdpSocket};
use adit_openvpn::gate::{Admission, Gate};
use adit_openvpn::packet::SessionId;
use adit_tunnel::{DropReason, Drops};

use crate::Session;
use crate::shard::Shard;

/// Names a session, from its first packet on, between shard and control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(u64);

/// A way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// Datagrams between these two addresses through socket number `socket`.
    Udp {
        /// Index into [`Parts::sockets`].
        socket: usize,
        /// The peer's address.
        remote: SocketAddr,
        /// Our address that the peer dialled: answers leave from it. A client leaves it unspecified, so that
        /// routing chooses, and chooses again when this machine's addresses change.
        local: SocketAddr,
    },
    /// The TCP connection that was adopted under this handle.
    Stream {
        /// The connection.
        connection: Handle,
        /// The peer's address.
        remote: SocketAddr,
        /// Our address that the peer dialled.
        local: SocketAddr,
    },
}

impl Path {
    /// The peer's address.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        match self {
            Self::Udp { remote, .. } | Self::Stream { remote, .. } => *remote,
        }
    }

    /// Our address that the peer dialled.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        match self {
            Self::Udp { local, .. } | Self::Stream { local, .. } => *local,
        }
    }

    /// This path after a packet came by `new`: an address of ours that was left open stays open.
    pub(crate) fn moved_to(self, new: Self) -> Self {
        match (self, new) {
            (Self::Udp { local, .. }, Self::Udp { socket, remote, .. }) if local.ip().is_unspecified() => {
                Self::Udp { socket, remote, local }
            }
            _ => new,
        }
    }

    /// True over TCP.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Stream { .. })
    }
}

/// What a shard tells the control plane.
#[derive(Debug)]
pub enum Event {
    /// The gate let a client in. Its control packets come as [`Event::Control`] from now on; answer with
    /// [`Command::Forget`] if it is not wanted after all.
    Admitted {
        /// The new session's name.
        handle: Handle,
        /// What the gate found out.
        admission: Box<Admission>,
        /// Where the packet came from.
        path: Path,
        /// The packet that was admitted.
        packet: Vec<u8>,
    },
    /// A control packet. It is not authenticated.
    Control {
        /// The session it claims to be for.
        handle: Handle,
        /// Where it came from.
        path: Path,
        /// The packet.
        packet: Vec<u8>,
    },
    /// An authenticated, newer data packet came from another address: the session is there now.
    Moved {
        /// The session.
        handle: Handle,
        /// Where it is.
        path: Path,
    },
    /// The peer said on the data channel that it leaves.
    PeerLeft {
        /// The session.
        handle: Handle,
    },
    /// A TCP connection is gone.
    StreamClosed {
        /// The connection's handle.
        handle: Handle,
        /// Why, for the log.
        why: String,
    },
}

/// What the control plane tells a shard.
#[derive(Debug)]
pub enum Command {
    /// Send a control packet or a sealed data packet over this connection.
    Write(Handle, Vec<u8>),
    /// Carry this session's data packets from now on.
    Attach(Arc<Session>),
    /// Forget a session and everything that leads to it. The sender is told when it is done.
    Forget(Handle, Option<SyncSender<()>>),
    /// Send control packets from this address up under this handle (a client watches its server).
    Watch(SocketAddr, Handle),
    /// Take over a TCP connection; `leftover` was read from it already.
    Adopt {
        /// Names the connection, and the session on it.
        handle: Handle,
        /// The connection; nonblocking.
        stream: TcpStream,
        /// Who is at the other end; with a proxy between, not the stream's own.
        remote: SocketAddr,
        /// What that one has dialled.
        local: SocketAddr,
        /// Bytes that were read beyond what has been handled.
        leftover: Vec<u8>,
    },
    /// Judge first packets by this from now on; with `None`, let nobody in.
    Gate(Option<Arc<Gate>>),
    /// End the thread.
    Stop,
}

/// What a shard is made of.
pub struct Parts {
    /// Inner packets come from and go to here.
    pub tun: Tun,
    /// UDP sockets; [`Path::Udp`] refers to them by index.
    pub sockets: Vec<UdpSocket>,
    /// Judges first packets; without it they are dropped.
    pub gate: Option<Arc<Gate>>,
    /// Takes what is no client's of this process; without it such datagrams are dropped.
    pub foreign: Option<Arc<dyn Foreign>>,
    /// MTU of the tun interface.
    pub mtu: u16,
    /// Handshakes under way at most; more first packets are dropped.
    pub max_half_open: usize,
    /// Takes an event, or says that there is no room.
    pub events: Box<dyn Fn(Event) -> bool + Send>,
    /// Told once, and never waited for, when no packet can be carried any more: the tun interface is gone, or the
    /// system no longer says what can be read. Not an event: those may find no room.
    pub failed: Box<dyn FnOnce(String) + Send>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("tun", &self.tun)
            .field("sockets", &self.sockets)
            .finish_non_exhaustive()
    }
}

/// The shard could not be started.
#[derive(Debug)]
pub struct StartFault(io::Error);

impl std::fmt::Display for StartFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the packet loop cannot start: {}", self.0)
    }
}

impl std::error::Error for StartFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl From<io::Error> for StartFault {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

/// Whoever gets datagrams that belong to nobody here.
pub trait Foreign: std::fmt::Debug + Send + Sync {
    /// Takes a datagram that `remote` has sent to `dialled`; false when nobody wants it. Must not wait.
    ///
    /// # Errors
    /// Why nobody is asked, or why the one who wants it does not get it.
    fn take(&self, datagram: &[u8], remote: SocketAddr, dialled: SocketAddr) -> Result<bool, DropReason>;
}

/// Commands that may wait; a shard takes them between batches, so they rarely do.
const COMMANDS: usize = 16 * 1024;

/// The handle to a running shard. Dropping it does not end the shard; [`Engine::stop`] does.
#[derive(Debug)]
pub struct Engine {
    commands: SyncSender<Command>,
    waker: Arc<Waker>,
    /// There are commands that were not looked at.
    news: Arc<AtomicBool>,
    sockets: Arc<[UdpSocket]>,
    handles: Arc<AtomicU64>,
    drops: Arc<Drops>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts a shard on a thread of its own.
///
/// # Errors
/// When the process is out of descriptors or threads.
pub fn start(mut parts: Parts) -> Result<Engine, StartFault> {
    let sockets: Arc<[UdpSocket]> = std::mem::take(&mut parts.sockets).into();
    let (commands, inbox): (_, Receiver<Command>) = sync_channel(COMMANDS);
    let waker = Arc::new(Waker::new()?);
    let handles = Arc::new(AtomicU64::new(1));
    let drops = Arc::new(Drops::default());
    let news = Arc::new(AtomicBool::new(false));
    let shared = Shared {
        sockets: Arc::clone(&sockets),
        waker: Arc::clone(&waker),
        news: Arc::clone(&news),
        handles: Arc::clone(&handles),
        drops: Arc::clone(&drops),
    };
    let shard = Shard::new(parts, inbox, shared)?;
    let thread = std::thread::Builder::new().name("shard-0".into()).spawn(move || shard.run())?;
    Ok(Engine { commands, waker, news, sockets, handles, drops, thread: Mutex::new(Some(thread)) })
}

impl Engine {
    /// Hands a command to the shard. It is lost when the shard has ended.
    pub fn tell(&self, command: Command) {
        // A session matters with its first packet, and that wakes the shard itself.
        let urgent = !matches!(command, Command::Attach(_));
        if self.commands.send(command).is_ok() {
            self.news.store(true, Ordering::Release);
            if urgent {
                self.waker.wake();
            }
        }
    }

    /// Sends a control packet or a sealed data packet on this path. A datagram leaves at once and from this thread,
    /// without waiting: handing it to the shard would cost more than sending it. What commands told before is known
    /// to the shard when the answer arrives.
    pub fn transmit(&self, path: Path, packet: &[u8]) {
        match path {
            Path::Udp { socket, remote, local } => {
                let Some(socket) = self.sockets.get(socket) else { return };
                if let Err(error) = socket.send_to(packet, remote, Some(local)) {
                    self.drops.count(send_drop(&error));
                }
            }
            Path::Stream { connection, .. } => self.tell(Command::Write(connection, packet.to_vec())),
        }
    }

    /// A handle nobody else has.
    #[must_use]
    pub fn new_handle(&self) -> Handle {
        next_handle(&self.handles)
    }

    /// Packets dropped so far, by reason.
    #[must_use]
    pub fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }

    /// Forgets a session and returns when no packet of it can pass any more.
    pub fn forget_and_wait(&self, handle: Handle) {
        let (done, wait) = sync_channel(1);
        self.tell(Command::Forget(handle, Some(done)));
        // An error means that the shard is gone, and the session with it.
        let _ = wait.recv();
    }

    /// Returns when every packet that is under way now is through or dropped.
    pub fn wait_for_packets(&self) {
        // Nothing is forgotten, in its turn: commands are looked at between batches.
        self.forget_and_wait(self.new_handle());
    }

    /// Ends the shard and waits for it.
    pub fn stop(&self) {
        self.tell(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// What a datagram that could not be sent is counted as.
pub(crate) fn send_drop(error: &io::Error) -> DropReason {
    if error.kind() == io::ErrorKind::WouldBlock || SendFault::of(error) == SendFault::NoBuffers {
        DropReason::OutputSaturation
    } else {
        DropReason::SendError
    }
}

/// What a shard shares with the handle to it.
pub(crate) struct Shared {
    pub(crate) sockets: Arc<[UdpSocket]>,
    pub(crate) waker: Arc<Waker>,
    pub(crate) news: Arc<AtomicBool>,
    pub(crate) handles: Arc<AtomicU64>,
    pub(crate) drops: Arc<Drops>,
}

pub(crate) fn next_handle(handles: &AtomicU64) -> Handle {
    Handle(handles.fetch_add(1, Ordering::Relaxed))
}

impl Handle {
    /// A handle for tests, which never reaches a shard.
    #[must_use]
    pub fn for_test(number: u64) -> Self {
        Self(number)
    }

    /// As a number, for poll tokens.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// From a poll token.
    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// A session's control packets are found by the address they come from and the id they carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ControlKey {
    pub(crate) remote: SocketAddr,
    pub(crate) session: SessionId,
}
