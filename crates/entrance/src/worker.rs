//! A thread that accepts connections, looks at them and moves their bytes.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use adit_host::clock::monotonic_ms;
use adit_host::poll::{self, Interest, Poller};
use adit_host::tcp;
use adit_wire::proxy::{self, Preamble};

use crate::backend::millis;
use crate::budget::{Full, Network};
use crate::deadlines::Deadlines;
use crate::reception::{Event, Inbox, Options, Order, Shared, Unknown};
use crate::relay::{Broken, Client, Next, Relay, Side, retry};
use crate::tools::Tools;
use crate::{Backend, Classify, Flow, Judgement};

/// Events that one wait reports.
const EVENTS: usize = 256;
/// Connections accepted in a row before others have their turn.
const ACCEPTS: usize = 32;
/// How long accepting pauses when no descriptor is left.
const PAUSE: u64 = 100;

/// Tokens: the number of a place with its generation and its side; the number of a listener; or the waker.
const LISTENER: u64 = 1 << 63;
const WAKER: u64 = u64::MAX;

fn token(number: u32, generation: u32, side: Side) -> u64 {
    u64::from(generation) << 32 | u64::from(number) << 1 | u64::from(side == Side::Server)
}

/// A listener of this thread.
struct Listening {
    listener: Arc<TcpListener>,
    number: usize,
    inspect: u64,
}

/// Room for one connection. What the poller still tells of an earlier one has another generation.
#[derive(Default)]
struct Place {
    generation: u32,
    held: Held,
}

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Undecided(Box<Undecided>),
    Relay(Box<Relay>),
}

/// A connection that has not shown yet whose it is, or that is nobody's and gets no answer.
struct Undecided {
    stream: TcpStream,
    flow: Flow,
    seen: Vec<u8>,
    /// A PROXY header may stand before what the client sent.
    preamble: bool,
    unknown: bool,
    network: Option<Network>,
}

/// What is done with a connection next.
enum Decision<N> {
    Wait,
    /// Without the first so many bytes.
    Native(N, usize),
    Relay(Arc<Backend>, usize),
    Unknown,
}

impl<N> Decision<N> {
    /// Where no more bytes are kept, there is nothing to wait for.
    fn known(self, full: bool) -> Self {
        if full && matches!(self, Self::Wait) { Self::Unknown } else { self }
    }
}

pub(crate) struct Worker<C: Classify> {
    shared: Arc<Shared<C>>,
    inbox: Arc<Inbox>,
    poller: Poller,
    tools: Tools,
    listeners: Vec<Listening>,
    /// When accepting is to go on.
    paused: Option<u64>,
    /// Nothing has been accepted since the first pause in a row, which was told.
    exhausted: bool,
    places: Vec<Place>,
    free: Vec<u32>,
    deadlines: Deadlines,
    /// Relays that could go on and let others have their turn.
    again: Vec<u32>,
    now: u64,
}

/// Tells when its thread ends by a panic.
struct Alarm<C>(Arc<Shared<C>>);

impl<C> Drop for Alarm<C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0.events)(Event::Ended);
        }
    }
}

impl<C: Classify> Worker<C> {
    pub(crate) fn new(shared: Arc<Shared<C>>, inbox: Arc<Inbox>) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&inbox.waker, WAKER, Interest::READ)?;
        let tools = Tools::new(shared.options.pipes.div_ceil(shared.options.threads.max(1)));
        Ok(Self {
            shared,
            inbox,
            poller,
            tools,
            listeners: Vec::new(),
            paused: None,
            exhausted: false,
            places: Vec::new(),
            free: Vec::new(),
            deadlines: Deadlines::default(),
            again: Vec::new(),
            now: monotonic_ms(),
        })
    }

    pub(crate) fn run(mut self) {
        let _alarm = Alarm(Arc::clone(&self.shared));
        let mut events = poll::Events::with_capacity(EVENTS);
        while !self.shared.common.stop.load(Ordering::Acquire) {
            if self.poller.wait(&mut events, self.patience()).is_err() {
                return;
            }
            self.now = monotonic_ms();
            for event in events.iter() {
                match event.token {
                    WAKER => self.obey(),
                    token if token & LISTENER != 0 => self.accept((token & !LISTENER) as usize),
                    _ => self.connection(event),
                }
            }
            for number in std::mem::take(&mut self.again) {
                self.relay(number, |relay, poller, tools| relay.go_on(poller, tools));
            }
            while let Some(number) = self.deadlines.expired(self.now) {
                self.expire(number);
            }
            if self.paused.is_some_and(|until| until <= self.now) {
                self.paused = None;
                (0..self.listeners.len()).for_each(|at| self.watch(at));
            }
        }
        for number in 0..self.places.len() {
            self.drop_held(number as u32);
        }
    }

    /// How long nothing has to be done.
    fn patience(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let resume = self.paused.map(|until| until.saturating_sub(self.now));
        self.deadlines.next(self.now).into_iter().chain(resume).min().map(Duration::from_millis)
    }

    fn obey(&mut self) {
        self.inbox.waker.drain();
        let orders = std::mem::take(&mut *self.inbox.orders.lock().unwrap_or_else(PoisonError::into_inner));
        for order in orders {
            match order {
                Order::Listen { listener, number, inspect } => {
                    self.listeners.push(Listening { listener, number, inspect });
                    if self.paused.is_none() {
                        self.watch(self.listeners.len() - 1);
                    }
                }
                // Closing is all the poller needs to forget them, once no thread has them any more; until then this one
                // is not to hear of them.
                Order::Close => self.listeners.drain(..).for_each(|listening| {
                    let _ = self.poller.remove(&*listening.listener);
                }),
            }
        }
    }

    fn watch(&mut self, at: usize) {
        let Some(listening) = self.listeners.get(at) else { return };
        let token = LISTENER | at as u64;
        if self.poller.add(&*listening.listener, token, Interest::READ.exclusive()).is_err() {
            // The kernel has no memory for it now.
            self.paused = Some(self.now + PAUSE);
        }
    }

    fn accept(&mut self, at: usize) {
        for _ in 0..ACCEPTS {
            let Some(listening) = self.listeners.get(at) else { return };
            let (number, inspect) = (listening.number, listening.inspect);
            match tcp::accept(&listening.listener) {
                Ok((stream, remote)) => {
                    self.exhausted = false;
                    self.receive(stream, remote, number, inspect);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.pause(&error),
            }
        }
    }

    /// Whoever waits to be accepted would be reported again and again.
    fn pause(&mut self, error: &io::Error) {
        for listening in &self.listeners {
            let _ = self.poller.remove(&*listening.listener);
        }
        self.paused = Some(self.now + PAUSE);
        self.shared.common.counters.paused.raise();
        if !std::mem::replace(&mut self.exhausted, true) {
            (self.shared.events)(Event::Exhausted(error.to_string()));
        }
    }

    /// Looks at a new connection at once: most clients have sent something by now, and need no more than that.
    fn receive(&mut self, stream: TcpStream, remote: SocketAddr, listener: usize, inspect: u64) {
        let counters = &self.shared.common.counters;
        counters.accepted.raise();
        let Ok(dialled) = stream.local_addr() else { return counters.gone.raise() };
        let mut flow = Flow { remote: canonical(remote), dialled: canonical(dialled), listener };
        let mut preamble = self.shared.trusts(flow.remote.ip());
        let network = (!preamble).then(|| Network::of(flow.remote.ip()));
        let limit = self.first_bytes();
        let count = match retry(|| (&stream).read(self.tools.scratch.get_mut(..limit).unwrap_or_default())) {
            Ok(0) => return counters.gone.raise(),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return counters.gone.raise(),
        };
        let seen = self.tools.scratch.get(..count).unwrap_or_default();
        let decision =
            judge(&self.shared, &mut preamble, seen, &mut flow, count == limit).known(count == limit);
        match decision {
            Decision::Native(native, skip) => {
                counters.native.raise();
                let seen = seen.get(skip..).unwrap_or_default().to_vec();
                return self.shared.classify.take(native, stream, seen, flow);
            }
            Decision::Relay(backend, skip) => {
                let mut first = self.tools.buffer();
                first.extend_from_slice(self.tools.scratch.get(skip..count).unwrap_or_default());
                let number = self.place();
                self.begin(number, stream, false, &first, &flow, &backend);
                return self.tools.give_buffer(first);
            }
            Decision::Unknown => {
                counters.unknown.raise();
                if self.shared.options.unknown == Unknown::Close {
                    return;
                }
            }
            Decision::Wait => {}
        }
        let unknown = matches!(decision, Decision::Unknown);
        let seen = if unknown { Vec::new() } else { seen.to_vec() };
        let room = self.make_room(network, inspect);
        let counters = &self.shared.common.counters;
        match room {
            Ok(()) => counters.undecided.raise(),
            Err(full) => {
                match full {
                    Full::Altogether => counters.refused_full.raise(),
                    Full::Network => counters.refused_network.raise(),
                }
                return tcp::abort(stream);
            }
        }
        let undecided = Undecided { stream, flow, seen, preamble, unknown, network };
        let number = self.place();
        let Some(place) = self.places.get_mut(number as usize) else { return };
        let told = self.poller.add(
            &undecided.stream,
            token(number, place.generation, Side::Client),
            Interest::READ.edge(),
        );
        place.held = Held::Undecided(Box::new(undecided));
        if told.is_err() {
            self.shared.common.counters.exhausted.raise();
            return self.drop_held(number);
        }
        self.deadlines.enter(number, inspect, self.now);
    }

    /// Takes a place among the undecided. When all are taken, whoever of this thread has had one for the longest time is
    /// decided by what it has shown: strangers that say nothing would keep out clients, which need theirs for a moment.
    fn make_room(&mut self, network: Option<Network>, inspect: u64) -> Result<(), Full> {
        let common = Arc::clone(&self.shared.common);
        let full = match common.undecided.take(network) {
            Err(Full::Altogether) => Full::Altogether,
            result => return result,
        };
        let oldest = self.deadlines.oldest(inspect).ok_or(full)?;
        let place = self.places.get(oldest as usize);
        if !place.is_some_and(|place| matches!(place.held, Held::Undecided(_))) {
            return Err(full);
        }
        self.deadlines.leave(oldest);
        common.counters.cut_short.raise();
        self.expire(oldest);
        common.undecided.take(network)
    }

    fn first_bytes(&self) -> usize {
        self.shared.options.first_bytes.clamp(1, Options::MOST_FIRST_BYTES)
    }

    /// A free place.
    fn place(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        })
    }

    /// Takes what is in a place out of it, with the place's generation.
    fn take(&mut self, number: u32) -> (u32, Held) {
        match self.places.get_mut(number as usize) {
            Some(place) => (place.generation, std::mem::take(&mut place.held)),
            None => (0, Held::Nothing),
        }
    }

    fn put(&mut self, number: u32, held: Held) {
        if let Some(place) = self.places.get_mut(number as usize) {
            place.held = held;
        }
    }

    /// Makes a place that holds nothing any more free for others.
    fn vacate(&mut self, number: u32) {
        self.deadlines.leave(number);
        if let Some(place) = self.places.get_mut(number as usize) {
            // The topmost bit is that of listeners.
            place.generation = (place.generation + 1) & (u32::MAX >> 1);
            self.free.push(number);
        }
    }

    fn connection(&mut self, event: poll::Event) {
        let number = (event.token as u32) >> 1;
        let side = if event.token & 1 == 0 { Side::Client } else { Side::Server };
        let current = self.places.get(number as usize);
        let Some(place) = current.filter(|place| token(number, place.generation, side) == event.token) else {
            return;
        };
        match &place.held {
            Held::Nothing => {}
            Held::Undecided(_) => self.undecided(number, event.closed),
            Held::Relay(_) => {
                self.relay(number, |relay, poller, tools| relay.event(side, event, poller, tools));
            }
        }
    }

    /// Something has come from a connection that is not decided.
    fn undecided(&mut self, number: u32, closed: bool) {
        let (_, Held::Undecided(mut undecided)) = self.take(number) else { return };
        if undecided.unknown {
            // What it sends is of no interest; a peer that leaves frees its place.
            self.put(number, Held::Undecided(undecided));
            if closed {
                self.drop_held(number);
            }
            return;
        }
        loop {
            let limit = self.first_bytes();
            let room = limit.saturating_sub(undecided.seen.len()).min(self.tools.scratch.len());
            let result =
                retry(|| (&undecided.stream).read(self.tools.scratch.get_mut(..room).unwrap_or_default()));
            let count = match result {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.shared.common.counters.gone.raise();
                    self.put(number, Held::Undecided(undecided));
                    return self.drop_held(number);
                }
            };
            let bytes = self.tools.scratch.get(..count).unwrap_or_default();
            append(&mut undecided.seen, bytes, limit);
            let (ended, full) = (count == 0, undecided.seen.len() == limit);
            let Undecided { seen, preamble, flow, .. } = &mut *undecided;
            let decision = judge(&self.shared, preamble, seen, flow, ended || full).known(full);
            if !matches!(decision, Decision::Wait) {
                return self.settle(number, undecided, decision, count == room, closed || ended);
            }
            if ended {
                self.shared.common.counters.gone.raise();
                self.put(number, Held::Undecided(undecided));
                return self.drop_held(number);
            }
            if count < room && !closed {
                break;
            }
        }
        self.put(number, Held::Undecided(undecided));
    }

    /// An undecided connection is decided. There may be `more` of it to read; with `ended` all there will be.
    fn settle(
        &mut self,
        number: u32,
        mut undecided: Box<Undecided>,
        decision: Decision<C::Native>,
        more: bool,
        ended: bool,
    ) {
        let counters = &self.shared.common.counters;
        if matches!(decision, Decision::Unknown) {
            counters.unknown.raise();
            undecided.unknown = true;
            undecided.seen = Vec::new();
            let silence = self.shared.options.unknown == Unknown::Silence && !ended;
            self.put(number, Held::Undecided(undecided));
            if !silence {
                self.drop_held(number);
            }
            return;
        }
        self.shared.common.undecided.give(undecided.network);
        counters.undecided.lower();
        let Undecided { stream, flow, mut seen, .. } = *undecided;
        match decision {
            Decision::Relay(backend, skip) => {
                let first = seen.get(skip..).unwrap_or_default();
                self.begin(number, stream, true, first, &flow, &backend);
                if more || ended {
                    self.relay(number, |relay, poller, tools| {
                        relay.client_has_more(ended);
                        relay.go_on(poller, tools)
                    });
                }
            }
            Decision::Native(native, skip) => {
                counters.native.raise();
                let _ = self.poller.remove(&stream);
                seen.drain(..skip);
                self.vacate(number);
                self.shared.classify.take(native, stream, seen, flow);
            }
            Decision::Wait | Decision::Unknown => self.vacate(number),
        }
    }

    /// Begins to relay a connection in its place, or gives it up.
    fn begin(
        &mut self,
        number: u32,
        stream: TcpStream,
        told: bool,
        seen: &[u8],
        flow: &Flow,
        backend: &Arc<Backend>,
    ) {
        let counters = &self.shared.common.counters;
        counters.relayed.raise();
        if !backend.admit(self.now) {
            backend.counters.refused.raise();
            tcp::abort(stream);
            return self.vacate(number);
        }
        let generation = self.places.get(number as usize).map_or(0, |place| place.generation);
        let tokens = [Side::Client, Side::Server].map(|side| token(number, generation, side));
        let client = Client { stream, told, seen, flow };
        match Relay::start(client, Arc::clone(backend), tokens, &self.poller, &mut self.tools) {
            Ok(relay) => {
                let options = backend.options();
                let limit = if relay.connecting() { options.connect_limit } else { options.idle_limit };
                let connected = !relay.connecting();
                self.put(number, Held::Relay(Box::new(relay)));
                self.deadlines.enter(number, millis(limit), self.now);
                if connected {
                    self.connected(backend);
                }
            }
            Err((stream, error)) => {
                self.not_connected(backend, &error);
                tcp::abort(stream);
                self.vacate(number);
            }
        }
    }

    fn connected(&self, backend: &Arc<Backend>) {
        backend.counters.connected.raise();
        if backend.answered() {
            (self.shared.events)(Event::Up(Arc::clone(backend)));
        }
    }

    fn not_connected(&self, backend: &Arc<Backend>, error: &io::Error) {
        if tcp::is_exhaustion(error) {
            // That says nothing about the back end.
            self.shared.common.counters.exhausted.raise();
        } else if backend.failed(self.now, error) {
            (self.shared.events)(Event::Down { backend: Arc::clone(backend), error: error.to_string() });
        }
    }

    /// Lets a relay do something, and does what follows from it.
    fn relay(
        &mut self,
        number: u32,
        act: impl FnOnce(&mut Relay, &Poller, &mut Tools) -> Result<Next, Broken>,
    ) {
        let mut relay = match self.take(number) {
            (_, Held::Relay(relay)) => relay,
            (_, other) => return self.put(number, other),
        };
        let (connecting, whole) = (relay.connecting(), !relay.half_closed());
        let next = act(&mut relay, &self.poller, &mut self.tools);
        let reached = connecting && !relay.connecting();
        if reached {
            self.connected(relay.backend());
        }
        match next {
            Ok(Next::Over) => {
                relay.end(&mut self.tools, false);
                self.vacate(number);
            }
            Ok(next) => {
                let options = relay.backend().options();
                if relay.half_closed() && !relay.connecting() && (whole || reached) {
                    let limit = options.half_closed_limit.min(options.idle_limit);
                    self.deadlines.enter(number, millis(limit), self.now);
                } else if reached {
                    self.deadlines.enter(number, millis(options.idle_limit), self.now);
                } else if !relay.connecting() {
                    self.deadlines.touch(number, self.now);
                }
                self.put(number, Held::Relay(relay));
                if next == Next::Again {
                    self.again.push(number);
                }
            }
            Err(broken) => {
                if let Broken::NotConnected(error) = &broken {
                    self.not_connected(relay.backend(), error);
                }
                relay.end(&mut self.tools, true);
                self.vacate(number);
            }
        }
    }

    /// The time of a connection is up.
    fn expire(&mut self, number: u32) {
        match self.take(number) {
            (_, Held::Undecided(mut undecided)) => {
                let decision = if undecided.unknown {
                    Decision::Wait
                } else {
                    let Undecided { seen, preamble, flow, .. } = &mut *undecided;
                    judge(&self.shared, preamble, seen, flow, true)
                };
                match decision {
                    Decision::Native(..) | Decision::Relay(..) => {
                        self.settle(number, undecided, decision, false, false);
                    }
                    Decision::Wait | Decision::Unknown => {
                        if !undecided.unknown {
                            self.shared.common.counters.timed_out.raise();
                        }
                        self.put(number, Held::Undecided(undecided));
                        self.drop_held(number);
                    }
                }
            }
            (_, Held::Relay(relay)) => {
                if relay.connecting() {
                    self.not_connected(relay.backend(), &io::ErrorKind::TimedOut.into());
                } else {
                    relay.backend().counters.idle.raise();
                }
                relay.end(&mut self.tools, true);
                self.vacate(number);
            }
            (_, Held::Nothing) => {}
        }
    }

    /// Closes what is in a place.
    fn drop_held(&mut self, number: u32) {
        match self.take(number) {
            (_, Held::Undecided(undecided)) => {
                self.shared.common.undecided.give(undecided.network);
                self.shared.common.counters.undecided.lower();
                self.vacate(number);
            }
            (_, Held::Relay(relay)) => {
                relay.end(&mut self.tools, true);
                self.vacate(number);
            }
            (_, Held::Nothing) => {}
        }
    }
}

/// Appends to what has been seen; in few steps, and without room for more than there can be.
fn append(seen: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    let length = seen.len() + bytes.len();
    if length > seen.capacity() {
        seen.reserve_exact(length.max(seen.capacity() * 2).min(limit.max(length)) - seen.len());
    }
    seen.extend_from_slice(bytes);
}

/// Reads a trusted proxy's header, if there is one to come, and asks whose the connection is.
fn judge<C: Classify>(
    shared: &Shared<C>,
    preamble: &mut bool,
    seen: &[u8],
    flow: &mut Flow,
    last: bool,
) -> Decision<C::Native> {
    let mut skip = 0;
    if *preamble {
        match proxy::parse(seen) {
            Preamble::More if !last => return Decision::Wait,
            Preamble::More | Preamble::None => *preamble = false,
            Preamble::Header { length, addresses } => {
                // It stays before the bytes and is read again with each that comes.
                skip = length;
                if let Some(addresses) = addresses {
                    (flow.remote, flow.dialled) = (addresses.source, addresses.destination);
                }
            }
        }
    }
    match shared.classify.judge(seen.get(skip..).unwrap_or_default(), flow, last) {
        Judgement::More => Decision::Wait,
        Judgement::Native(native) => Decision::Native(native, skip),
        Judgement::Relay(backend) => Decision::Relay(backend, skip),
        Judgement::Unknown => Decision::Unknown,
    }
}

/// IPv4 never stands in its IPv6 form.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
