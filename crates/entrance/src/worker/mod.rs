//! A thread that accepts connections, looks at them and moves their bytes.

mod deciding;
mod relaying;

use std::io;
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use adit_host::clock::monotonic_ms;
use adit_host::poll::{self, Interest, Poller};
use adit_host::tcp;

use self::deciding::{Decision, Undecided, judge};
use crate::Classify;
use crate::deadlines::Deadlines;
use crate::reception::{Event, Inbox, Order, Shared};
use crate::relay::{Relay, Side};
use crate::tools::Tools;

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
                // Never for a poller of its own; but nobody would be accepted any more.
                return (self.shared.events)(Event::Ended);
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
