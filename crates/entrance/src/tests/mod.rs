//! Everything with real sockets.

mod datagrams;
mod deciding;
mod proxies;
mod relaying;
mod transparent;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::*;

/// Long enough for anything that is to happen at all.
const PATIENCE: Duration = Duration::from_secs(20);
/// A time for inspection that nobody waits for.
const LONG: Duration = Duration::from_secs(600);

/// What a connection was taken over with.
struct Taken {
    stream: TcpStream,
    seen: Vec<u8>,
    flow: Flow,
}

/// Ten bytes decide: `native` and one more byte are this process's, `relay` goes to the back end, `silent` alone is
/// waited for in vain, and nothing at all goes where `silent` says.
struct Rules {
    backend: Option<Arc<Backend>>,
    /// Where those go that say nothing.
    silent: Option<Arc<Backend>>,
    taken: Mutex<Sender<Taken>>,
}

impl Classify for Rules {
    type Native = ();

    fn judge(&self, seen: &[u8], _: &Flow, last: bool) -> Judgement<()> {
        if seen.is_empty() && last {
            return self.silent.clone().map_or(Judgement::More, Judgement::Relay);
        }
        for (word, decision) in [
            (&b"native"[..], Some(Judgement::Native(()))),
            (b"relay", self.backend.clone().map(Judgement::Relay)),
            (b"more", Some(Judgement::More)),
        ] {
            let common = seen.len().min(word.len());
            if seen[..common] == word[..common] {
                return if seen.len() < word.len() {
                    Judgement::More
                } else {
                    decision.unwrap_or(Judgement::Unknown)
                };
            }
        }
        Judgement::Unknown
    }

    fn take(&self, (): (), stream: TcpStream, seen: Vec<u8>, flow: Flow) {
        self.taken.lock().unwrap().send(Taken { stream, seen, flow }).unwrap();
    }
}

/// A reception on a port of its own.
struct Stage {
    reception: Reception,
    address: SocketAddr,
    taken: Receiver<Taken>,
    events: Receiver<Event>,
}

impl Stage {
    fn new(options: Options, inspect: Duration, backend: Option<&Arc<Backend>>) -> Self {
        Self::with_silent(options, inspect, backend, None)
    }

    fn with_silent(
        options: Options,
        inspect: Duration,
        backend: Option<&Arc<Backend>>,
        silent: Option<&Arc<Backend>>,
    ) -> Self {
        let (taken, taken_receiver) = channel();
        let (events, events_receiver) = channel();
        let rules = Rules { backend: backend.cloned(), silent: silent.cloned(), taken: Mutex::new(taken) };
        let events = Mutex::new(events);
        let tell = Arc::new(move |event| {
            // Nobody listens when the test is over.
            let _ = events.lock().unwrap().send(event);
        });
        let reception = Reception::start(options, rules, tell).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        reception.listen(listener, 7, inspect).unwrap();
        Self { reception, address, taken: taken_receiver, events: events_receiver }
    }

    fn client(&self) -> TcpStream {
        connect(self.address)
    }

    fn taken(&self) -> Taken {
        self.taken.recv_timeout(PATIENCE).unwrap()
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).unwrap()
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn send(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

/// Reads exactly so many bytes.
fn receive(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads what comes until the end; a reset is an error.
fn rest(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

fn is_reset(result: std::io::Result<Vec<u8>>) -> bool {
    result.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// It has taken so long, as far as the coarse clock of limits can tell.
#[track_caller]
fn assert_lasted(start: Instant, limit: Duration) {
    let took = start.elapsed() + 2 * Duration::from_millis(adit_host::clock::resolution_ms());
    assert!(took >= limit, "{took:?} of {limit:?}");
}

/// Waits for what no descriptor tells of, and fails with what `now` says at last.
#[track_caller]
fn eventually<T: std::fmt::Debug>(now: impl Fn() -> T, good: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let value = now();
        if good(&value) {
            return value;
        }
        assert!(Instant::now() < end, "still {value:?}");
        std::thread::yield_now();
    }
}

/// A listener, and a back end that is it.
fn back_end(change: impl FnOnce(&mut BackendOptions)) -> (TcpListener, Arc<Backend>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = BackendOptions::new("back", listener.local_addr().unwrap());
    change(&mut options);
    (listener, Backend::new(options))
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}
