//! Connections of foreign back ends.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use adit_host::poll::Poller;
use adit_host::tcp;

use super::{Held, Worker, token};
use crate::backend::millis;
use crate::reception::Event;
use crate::relay::{Broken, Client, Next, Relay, Side};
use crate::tools::Tools;
use crate::{Backend, Classify, Flow};

impl<C: Classify> Worker<C> {
    /// Begins to relay a connection in its place, or gives it up.
    pub(super) fn begin(
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

    pub(super) fn connected(&self, backend: &Arc<Backend>) {
        backend.counters.connected.raise();
        if backend.answered() {
            (self.shared.events)(Event::Up(Arc::clone(backend)));
        }
    }

    pub(super) fn not_connected(&self, backend: &Arc<Backend>, error: &io::Error) {
        if tcp::is_exhaustion(error) {
            // That says nothing about the back end.
            self.shared.common.counters.exhausted.raise();
        } else if backend.failed(self.now, error) {
            (self.shared.events)(Event::Down { backend: Arc::clone(backend), error: error.to_string() });
        }
    }

    /// Lets a relay do something, and does what follows from it.
    pub(super) fn relay(
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
}
