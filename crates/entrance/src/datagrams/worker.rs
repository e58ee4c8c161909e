//! The thread that moves datagrams.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use adit_host::clock::monotonic_ms;
use adit_host::poll::{self, Interest, Poller};
use adit_host::udp::{Flushed, PathMtu, RecvBatch, SendFault, Slots, UdpOptions, UdpSocket};
use adit_wire::proxy;

use super::{First, Shared};
use crate::backend::millis;
use crate::budget::{Budget, Network};
use crate::deadlines::Deadlines;
use crate::reception::Event;
use crate::{Backend, ProxyMode};

/// Datagrams that one call moves.
const BATCH: usize = 32;
/// The longest datagram there is.
const LONGEST: usize = 65_535;
const WAKER: u64 = u64::MAX;

/// A flow. Its address of the client's side is what the client dialled.
struct Flow {
    remote: SocketAddr,
    dialled: SocketAddr,
    near: UdpSocket,
    far: UdpSocket,
    backend: Arc<Backend>,
    /// What stands before each datagram for the back end.
    header: Box<[u8]>,
    answered: bool,
}

#[derive(Default)]
struct Place {
    generation: u32,
    flow: Option<Box<Flow>>,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    poller: Poller,
    batch: RecvBatch,
    places: Vec<Place>,
    free: Vec<u32>,
    flows: HashMap<(SocketAddr, SocketAddr), u32>,
    networks: Budget,
    deadlines: Deadlines,
    now: u64,
}

/// Why a flow ends.
#[derive(Clone, Copy)]
enum End {
    Expired,
    Replaced,
    Closed,
}

/// Tells when its thread ends by a panic.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0.events)(Event::Ended);
        }
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&shared.waker, WAKER, Interest::READ)?;
        let slots = Slots { size: LONGEST, headroom: proxy::MAX_BUILT, tailroom: 0 };
        let options = &shared.options;
        Ok(Self {
            poller,
            batch: RecvBatch::new(BATCH, slots),
            places: Vec::new(),
            free: Vec::new(),
            flows: HashMap::new(),
            networks: Budget::new(options.max_flows.max(1), options.max_flows_per_network),
            deadlines: Deadlines::default(),
            now: monotonic_ms(),
            shared,
        })
    }

    pub(super) fn run(mut self) {
        let _alarm = Alarm(Arc::clone(&self.shared));
        let mut events = poll::Events::with_capacity(256);
        while !self.shared.stop.load(Ordering::Acquire) {
            let patience = self.deadlines.next(self.now).map(Duration::from_millis);
            if self.poller.wait(&mut events, patience).is_err() {
                // Never for a poller of its own; but no flow would go on any more.
                return (self.shared.events)(Event::Ended);
            }
            self.now = monotonic_ms();
            for event in events.iter() {
                match event.token {
                    WAKER => {
                        self.shared.waker.drain();
                        let waiting = {
                            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
                            std::mem::take(&mut *queue)
                        };
                        waiting.into_iter().for_each(|first| self.first(&first));
                    }
                    token => self.ready(token),
                }
            }
            while let Some(number) = self.deadlines.expired(self.now) {
                self.end(number, End::Expired);
            }
        }
    }

    /// The first datagram of a flow, or one that came before the kernel knew the flow.
    fn first(&mut self, first: &First) {
        let number = match self.flows.get(&(first.remote, first.dialled)) {
            Some(number) => *number,
            None => match self.open(first) {
                Some(number) => number,
                None => return,
            },
        };
        let Some(flow) = self.places.get(number as usize).and_then(|place| place.flow.as_ref()) else {
            return;
        };
        let sent = match flow.header.is_empty() {
            true => flow.far.send(&first.bytes),
            false => flow.far.send(&[&flow.header, &*first.bytes].concat()),
        };
        match sent {
            Ok(()) => {
                self.shared.counters.datagrams_in.raise();
                flow.backend.counters.bytes_in.add(first.bytes.len() as u64);
            }
            Err(error) => {
                self.shared.counters.dropped.raise();
                if SendFault::of(&error) == SendFault::Refused {
                    self.refused(number, &error);
                }
            }
        }
    }

    fn open(&mut self, first: &First) -> Option<u32> {
        if !first.backend.admit(self.now) {
            first.backend.counters.refused.raise();
            return None;
        }
        if self.flows.len() >= self.shared.options.max_flows.max(1) {
            let options = &self.shared.options;
            let oldest = [options.answer_limit, options.idle_limit]
                .into_iter()
                .find_map(|limit| self.deadlines.oldest(millis(limit)))?;
            self.end(oldest, End::Replaced);
        }
        let network = Network::of(first.remote.ip());
        if self.networks.take(Some(network)).is_err() {
            self.shared.counters.refused_network.raise();
            return None;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        });
        let place = self.places.get_mut(number as usize)?;
        let token = u64::from(place.generation) << 32 | u64::from(number) << 1;
        match Flow::open(first, &self.poller, token) {
            Ok(flow) => place.flow = Some(Box::new(flow)),
            Err(error) => {
                self.free.push(number);
                self.networks.give(Some(network));
                self.shared.counters.failed.raise();
                (self.shared.events)(Event::NoFlow(error.to_string()));
                return None;
            }
        }
        self.flows.insert((first.remote, first.dialled), number);
        self.deadlines.enter(number, millis(self.shared.options.answer_limit), self.now);
        self.shared.counters.open.raise();
        self.shared.counters.opened.raise();
        first.backend.counters.open.raise();
        Some(number)
    }

    /// Datagrams wait at one side of a flow.
    fn ready(&mut self, token: u64) {
        let (number, from_back_end) = ((token as u32) >> 1, token & 1 == 1);
        let Some(place) = self.places.get_mut(number as usize) else { return };
        let Some(flow) = place.flow.as_mut().filter(|_| u64::from(place.generation) == token >> 32) else {
            return;
        };
        let (from, to, peer, header) = match from_back_end {
            true => (&flow.far, &flow.near, flow.backend.options().address, &[][..]),
            false => (&flow.near, &flow.far, flow.remote, &*flow.header),
        };
        let received = match from.recv_batch(&mut self.batch) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if from_back_end => return self.refused(number, &error),
            Err(_) => return self.end(number, End::Closed),
        };
        let flushed = to.forward(&mut self.batch, peer, header);
        let bytes: usize = self.batch.iter_mut().map(|datagram| datagram.bytes().len()).sum();
        let counters = &self.shared.counters;
        counters.dropped.add((received - flushed.sent.min(received)) as u64);
        if from_back_end {
            counters.datagrams_out.add(flushed.sent as u64);
            flow.backend.counters.bytes_out.add(bytes as u64);
            if !std::mem::replace(&mut flow.answered, true) {
                flow.backend.counters.connected.raise();
                if flow.backend.answered() {
                    (self.shared.events)(Event::Up(Arc::clone(&flow.backend)));
                }
                self.deadlines.enter(number, millis(self.shared.options.idle_limit), self.now);
            }
        } else {
            counters.datagrams_in.add(flushed.sent as u64);
            flow.backend.counters.bytes_in.add(bytes as u64);
        }
        if flow.answered {
            self.deadlines.touch(number, self.now);
        }
        self.after(number, flushed, from_back_end);
    }

    /// The kernel says at the next send that nobody has listened to the last.
    fn after(&mut self, number: u32, flushed: Flushed, from_back_end: bool) {
        if flushed.dropped.of(SendFault::Refused) == 0 {
            return;
        }
        if from_back_end {
            self.end(number, End::Closed);
        } else {
            self.refused(number, &io::ErrorKind::ConnectionRefused.into());
        }
    }

    /// The back end's machine says that nobody listens.
    fn refused(&mut self, number: u32, error: &io::Error) {
        let flow = self.places.get(number as usize).and_then(|place| place.flow.as_ref());
        if let Some(backend) = flow.map(|flow| Arc::clone(&flow.backend))
            && backend.failed(self.now, error)
        {
            (self.shared.events)(Event::Down { backend, error: error.to_string() });
        }
        self.end(number, End::Closed);
    }

    fn end(&mut self, number: u32, why: End) {
        self.deadlines.leave(number);
        let Some(place) = self.places.get_mut(number as usize) else { return };
        let Some(flow) = place.flow.take() else { return };
        place.generation = (place.generation + 1) & (u32::MAX >> 1);
        self.free.push(number);
        self.flows.remove(&(flow.remote, flow.dialled));
        self.networks.give(Some(Network::of(flow.remote.ip())));
        flow.backend.counters.open.lower();
        let counters = &self.shared.counters;
        counters.open.lower();
        match why {
            End::Expired => counters.expired.raise(),
            End::Replaced => counters.replaced.raise(),
            End::Closed => counters.closed.raise(),
        }
    }
}

impl Flow {
    fn open(first: &First, poller: &Poller, token: u64) -> io::Result<Self> {
        let backend = first.backend.options();
        let options = UdpOptions { path_mtu: PathMtu::Fragment, ..UdpOptions::default() };
        let shared = UdpOptions { reuse_address: true, transparent: true, ..options };
        let near = UdpSocket::bind(first.dialled, &shared).map_err(io::Error::other)?;
        near.connect(first.remote)?;
        let transparent = backend.proxy == ProxyMode::Transparent;
        let source = match (transparent, backend.address) {
            (true, _) => SocketAddr::new(first.remote.ip(), 0),
            (false, SocketAddr::V4(_)) => SocketAddr::from(([0; 4], 0)),
            (false, SocketAddr::V6(_)) => SocketAddr::from(([0; 8], 0)),
        };
        let far =
            UdpSocket::bind(source, &UdpOptions { transparent, ..options }).map_err(io::Error::other)?;
        far.connect(backend.address)?;
        poller.add(&near, token, Interest::READ)?;
        poller.add(&far, token | 1, Interest::READ)?;
        let mut header = [0; proxy::MAX_BUILT];
        let length = match backend.proxy {
            ProxyMode::V2 => proxy::build(&mut header, first.remote, first.dialled, proxy::Kind::Datagram),
            _ => None,
        };
        Ok(Self {
            remote: first.remote,
            dialled: first.dialled,
            near,
            far,
            backend: Arc::clone(&first.backend),
            header: header.get(..length.unwrap_or_default()).unwrap_or_default().into(),
            answered: false,
        })
    }
}
