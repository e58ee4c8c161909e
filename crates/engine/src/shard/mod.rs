//! The loop of one shard.

mod inbound;
mod outbound;
mod streams;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};

use adit_host::clock;
use adit_host::poll::{Events, Interest, Poller, Waker};
use adit_host::tun::Tun;
use adit_host::udp::{RecvBatch, SendBatch, SendFault, SendSlot, Slots, UdpSocket};
use adit_openvpn::gate::Gate;
use adit_tunnel::{DropReason, Drops, HEADROOM, TAILROOM};
use rustc_hash::FxHashMap;

use crate::command::{Command, Parts, Shared};
use crate::stream::{Connection, Spare};
use crate::table::Table;
use crate::{Event, Foreign, Handle};

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
    sockets: Arc<[UdpSocket]>,
    /// What is to leave through each of them.
    outgoing: Vec<SendBatch>,
    gate: Option<Arc<Gate>>,
    foreign: Option<Arc<dyn Foreign>>,
    table: Table,
    connections: FxHashMap<Handle, Connection>,
    spare: Spare,
    /// Connections with something to write.
    dirty: Vec<Handle>,
    poller: Poller,
    waker: Arc<Waker>,
    news: Arc<AtomicBool>,
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
    /// It is time to end.
    stopping: bool,
}

impl Shard {
    pub(crate) fn new(parts: Parts, inbox: Receiver<Command>, shared: Shared) -> io::Result<Self> {
        let Shared { sockets, waker, news, handles, drops } = shared;
        let size = (usize::from(parts.mtu) + OVERHEAD).max(MIN_SLOT);
        let poller = Poller::new()?;
        poller.add(&parts.tun, TUN, Interest::READ)?;
        poller.add(waker.as_ref(), WAKER, Interest::READ)?;
        for (index, socket) in sockets.iter().enumerate() {
            poller.add(socket, SOCKETS + index as u64, Interest::READ)?;
        }
        let outgoing = Slots { size, headroom: HEADROOM, tailroom: TAILROOM };
        Ok(Self {
            tun: parts.tun,
            outgoing: sockets.iter().map(|_| SendBatch::new(BATCH, outgoing)).collect(),
            sockets,
            gate: parts.gate,
            foreign: parts.foreign,
            table: Table::default(),
            connections: FxHashMap::default(),
            spare: Spare::default(),
            dirty: Vec::new(),
            poller,
            waker,
            news,
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
            stopping: false,
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
                        // First this: who tells something from here on wakes the shard once more.
                        self.waker.drain();
                        self.obey();
                    }
                    TUN => self.read_tun(),
                    token if token >= SOCKETS => self.read_socket((token - SOCKETS) as usize, &mut received),
                    token => self.serve_stream(Handle::from_number(token), event.readable, event.writable),
                }
            }
            self.flush();
            if self.stopping {
                return;
            }
        }
    }

    /// Carries out the commands that have come; says whether there were any.
    ///
    /// Also done when something cannot be found: control packets leave from other threads, so the answer to one may be
    /// here before the command that it follows from was looked at, and a session's attachment wakes nobody.
    fn obey(&mut self) -> bool {
        if !self.news.load(Ordering::Relaxed) || !self.news.swap(false, Ordering::Acquire) {
            return false;
        }
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return true;
                }
                Ok(command) => self.carry_out(command),
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Write(connection, packet) => self.write_control(connection, &packet),
            Command::Attach(session) => self.table.attach(&session),
            Command::Watch(remote, handle) => self.table.watch(remote, handle),
            Command::Adopt { handle, stream, remote, local, leftover } => {
                self.adopt(handle, stream, (remote, local), &leftover);
            }
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

    /// Looks into the table, and once more if it was to be changed meanwhile.
    fn find<T>(&mut self, look: impl Fn(&Table) -> Option<T>) -> Option<T> {
        look(&self.table).or_else(|| if self.obey() { look(&self.table) } else { None })
    }

    /// Queues a datagram of ours for the end of the turn: `write` puts it into the slot it is given and says where.
    fn queue(
        &mut self,
        socket: usize,
        remote: SocketAddr,
        local: SocketAddr,
        write: impl FnOnce(&mut SendSlot<'_>) -> Result<Range<usize>, DropReason>,
    ) -> Result<(), DropReason> {
        let (through, batch) =
            self.sockets.get(socket).zip(self.outgoing.get_mut(socket)).ok_or(DropReason::SendError)?;
        if batch.len() == BATCH {
            flush(through, batch, &self.drops);
        }
        let mut slot = batch.reserve().ok_or(DropReason::OutputSaturation)?;
        let range = write(&mut slot)?;
        slot.commit(range, remote, Some(local));
        Ok(())
    }

    /// Queues a datagram that is complete.
    fn queue_copy(&mut self, socket: usize, remote: SocketAddr, local: SocketAddr, datagram: &[u8]) {
        let queued = self.queue(socket, remote, local, |slot| {
            let start = slot.headroom();
            let place = slot.payload().get_mut(..datagram.len()).ok_or(DropReason::TooBig)?;
            place.copy_from_slice(datagram);
            Ok(start..start + datagram.len())
        });
        if let Err(reason) = queued {
            self.drops.count(reason);
        }
    }

    /// Sends what has been queued in this turn.
    fn flush(&mut self) {
        for (socket, batch) in self.sockets.iter().zip(&mut self.outgoing) {
            flush(socket, batch, &self.drops);
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

fn flush(socket: &UdpSocket, batch: &mut SendBatch, drops: &Drops) {
    if batch.is_empty() {
        return;
    }
    let flushed = socket.flush(batch);
    if flushed.blocked {
        // Waiting would make a queue of it; a full link drops as well.
        drops.add(DropReason::OutputSaturation, batch.clear() as u64);
    }
    let saturated = flushed.dropped.of(SendFault::NoBuffers);
    drops.add(DropReason::OutputSaturation, saturated as u64);
    drops.add(DropReason::SendError, (flushed.dropped.total() - saturated) as u64);
}
