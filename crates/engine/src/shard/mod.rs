//! The loop of one shard.

mod inbound;
mod outbound;
mod streams;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, TryRecvError};

use adit_host::clock;
use adit_host::poll::{Events, Interest, Poller, Waker};
use adit_host::tun::Tun;
use adit_host::udp::{RecvBatch, SendBatch, SendFault, Slots, UdpSocket};
use adit_openvpn::gate::Gate;
use adit_tunnel::{DropReason, Drops, HEADROOM, TAILROOM};
use rustc_hash::FxHashMap;

use crate::command::{Command, Parts};
use crate::stream::{Connection, Spare};
use crate::table::Table;
use crate::{Event, Handle, Path};

/// Datagrams per system call.
const BATCH: usize = 64;
/// Batches taken from one source before the others have their turn.
const TURNS: usize = 4;
/// Bytes a datagram may be longer than the inner packet in it.
const OVERHEAD: usize = 256;
/// Smallest slot: room for every control packet.
const MIN_SLOT: usize = 2048;

const TUN: u64 = u64::MAX;
const WAKER: u64 = u64::MAX - 1;
/// Tokens of UDP sockets; those of connections are their handles, which start at 1 and never get here.
const SOCKETS: u64 = u64::MAX - 1_000_000;

/// See the module's text.
pub(crate) struct Shard {
    tun: Tun,
    sockets: Vec<Socket>,
    gate: Option<Arc<Gate>>,
    table: Table,
    connections: FxHashMap<Handle, Connection>,
    spare: Spare,
    /// Connections with something to write.
    dirty: Vec<Handle>,
    poller: Poller,
    waker: Arc<Waker>,
    inbox: Receiver<Command>,
    handles: Arc<AtomicU64>,
    drops: Arc<Drops>,
    events: Box<dyn Fn(Event) -> bool + Send>,
    max_half_open: usize,
    slot_size: usize,
    /// One inner packet, or one packet of a stream, with room around it.
    scratch: Vec<u8>,
    /// What one read from a connection may bring.
    bulk: Vec<u8>,
    /// Milliseconds, read once a turn.
    now: u64,
    /// Taken once it was told.
    failed: Option<Box<dyn FnOnce(String) + Send>>,
}

/// A UDP socket with what is to leave through it.
struct Socket {
    socket: UdpSocket,
    batch: SendBatch,
}

impl Shard {
    pub(crate) fn new(
        parts: Parts,
        inbox: Receiver<Command>,
        waker: Arc<Waker>,
        handles: Arc<AtomicU64>,
        drops: Arc<Drops>,
    ) -> io::Result<Self> {
        let size = (usize::from(parts.mtu) + OVERHEAD).max(MIN_SLOT);
        let poller = Poller::new()?;
        poller.add(&parts.tun, TUN, Interest::READ)?;
        poller.add(waker.as_ref(), WAKER, Interest::READ)?;
        for (index, socket) in parts.sockets.iter().enumerate() {
            poller.add(socket, SOCKETS + index as u64, Interest::READ)?;
        }
        let outgoing = Slots { size, headroom: HEADROOM, tailroom: TAILROOM };
        Ok(Self {
            tun: parts.tun,
            sockets: parts
                .sockets
                .into_iter()
                .map(|socket| Socket { socket, batch: SendBatch::new(BATCH, outgoing) })
                .collect(),
            gate: parts.gate,
            table: Table::default(),
            connections: FxHashMap::default(),
            spare: Spare::default(),
            dirty: Vec::new(),
            poller,
            waker,
            inbox,
            handles,
            drops,
            events: parts.events,
            max_half_open: parts.max_half_open,
            slot_size: size,
            scratch: vec![0; HEADROOM + size.max(crate::stream::MAX_PACKET) + TAILROOM],
            bulk: vec![0; 64 * 1024],
            now: clock::monotonic_ms(),
            failed: Some(parts.failed),
        })
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let incoming = Slots { size: self.slot_size, headroom: 0, tailroom: TAILROOM };
        let mut received = RecvBatch::new(BATCH, incoming);
        loop {
            if let Err(error) = self.poller.wait(&mut events, None) {
                return self.fail(format!("the packet loop cannot wait for packets: {error}"));
            }
            self.now = clock::monotonic_ms();
            for event in events.iter() {
                match event.token {
                    WAKER => {
                        if !self.obey() {
                            return;
                        }
                    }
                    TUN => self.read_tun(),
                    token if token >= SOCKETS => self.read_socket((token - SOCKETS) as usize, &mut received),
                    token => self.serve_stream(Handle::from_number(token), event.readable, event.writable),
                }
            }
            self.flush();
        }
    }

    /// Carries out commands; false when it is time to stop.
    fn obey(&mut self) -> bool {
        self.waker.drain();
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.flush();
                    return false;
                }
                Ok(command) => self.carry_out(command),
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Transmit(path, packet) => self.transmit(path, &packet),
            Command::Attach(session) => self.table.attach(&session),
            Command::Watch(remote, handle) => self.table.watch(remote, handle),
            Command::Adopt { handle, stream, leftover } => self.adopt(handle, stream, leftover),
            Command::Gate(gate) => self.gate = gate,
            Command::Forget(handle, done) => {
                // What is under way to the peer goes first: it may be the farewell.
                self.flush();
                self.table.forget(handle);
                self.drop_connection(handle);
                if let Some(done) = done {
                    // Nobody waits any more: fine.
                    let _ = done.try_send(());
                }
            }
            Command::Stop => {}
        }
    }

    /// Sends a control packet or a sealed data packet.
    fn transmit(&mut self, path: Path, packet: &[u8]) {
        match path {
            Path::Udp { socket, remote, local } => {
                let Some(socket) = self.sockets.get_mut(socket) else { return };
                if socket.batch.len() == BATCH {
                    socket.flush(&self.drops);
                }
                let Some(mut slot) = socket.batch.reserve() else {
                    self.drops.count(DropReason::OutputSaturation);
                    return;
                };
                let start = slot.headroom();
                match slot.payload().get_mut(..packet.len()) {
                    Some(place) => place.copy_from_slice(packet),
                    None => return self.drops.count(DropReason::TooBig),
                }
                slot.commit(start..start + packet.len(), remote, Some(local.ip()));
            }
            Path::Stream { connection, .. } => self.write_control(connection, packet),
        }
    }

    /// Sends what has been queued in this turn.
    fn flush(&mut self) {
        for socket in &mut self.sockets {
            socket.flush(&self.drops);
        }
        self.flush_streams();
    }

    fn tell(&self, event: Event) -> bool {
        let taken = (self.events)(event);
        if !taken {
            self.drops.count(DropReason::ControlQueueFull);
        }
        taken
    }

    fn fail(&mut self, why: String) {
        if let Some(failed) = self.failed.take() {
            failed(why);
        }
    }

    /// Seconds, as data channels want them.
    fn seconds(&self) -> u32 {
        (self.now / 1000) as u32
    }
}

impl Socket {
    fn flush(&mut self, drops: &Drops) {
        if self.batch.is_empty() {
            return;
        }
        let flushed = self.socket.flush(&mut self.batch);
        if flushed.blocked {
            // Waiting would make a queue of it; a full link drops as well.
            drops.add(DropReason::OutputSaturation, self.batch.clear() as u64);
        }
        let saturated = flushed.dropped.of(SendFault::NoBuffers);
        drops.add(DropReason::OutputSaturation, saturated as u64);
        drops.add(DropReason::SendError, (flushed.dropped.total() - saturated) as u64);
    }
}
