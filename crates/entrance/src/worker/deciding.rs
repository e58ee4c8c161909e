//! Connections that have not shown whose they are.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use adit_host::poll::Interest;
use adit_host::tcp;
use adit_wire::proxy::{self, Preamble};

use super::{Held, Worker, token};
use crate::budget::{Full, Network};
use crate::reception::{Options, Shared, Unknown};
use crate::relay::{Side, retry};
use crate::{Backend, Classify, Flow, Judgement};

/// A connection that has not shown yet whose it is, or that is nobody's and gets no answer.
pub(super) struct Undecided {
    pub(super) stream: TcpStream,
    pub(super) flow: Flow,
    pub(super) seen: Vec<u8>,
    /// A PROXY header may stand before what the client sent.
    pub(super) preamble: bool,
    pub(super) unknown: bool,
    pub(super) network: Option<Network>,
}

/// What is done with a connection next.
pub(super) enum Decision<N> {
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

impl<C: Classify> Worker<C> {
    /// Looks at a new connection at once: most clients have sent something by now, and need no more than that.
    pub(super) fn receive(&mut self, stream: TcpStream, remote: SocketAddr, listener: usize, inspect: u64) {
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
    pub(super) fn make_room(&mut self, network: Option<Network>, inspect: u64) -> Result<(), Full> {
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

    pub(super) fn first_bytes(&self) -> usize {
        self.shared.options.first_bytes.clamp(1, Options::MOST_FIRST_BYTES)
    }

    /// Something has come from a connection that is not decided.
    pub(super) fn undecided(&mut self, number: u32, closed: bool) {
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
    pub(super) fn settle(
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
pub(super) fn judge<C: Classify>(
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
