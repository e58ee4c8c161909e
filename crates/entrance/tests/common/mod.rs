//! A reception that relays what begins with `r` and waits for everything else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_entrance::{Backend, BackendOptions, Classify, Flow, Judgement, Options, Reception};

/// Long enough for anything that is to happen at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

struct Rules(Arc<Backend>);

impl Classify for Rules {
    type Native = ();

    fn judge(&self, seen: &[u8], _: &Flow, _: bool) -> Judgement<()> {
        if seen.first() == Some(&b'r') { Judgement::Relay(Arc::clone(&self.0)) } else { Judgement::More }
    }

    fn take(&self, (): (), _: TcpStream, _: Vec<u8>, _: Flow) {}
}

pub(crate) struct Stage {
    pub(crate) reception: Reception,
    pub(crate) address: SocketAddr,
    pub(crate) backend: Arc<Backend>,
    pub(crate) server: TcpListener,
}

impl Stage {
    pub(crate) fn new(options: Options, inspect: Duration) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = Backend::new(BackendOptions::new("back", server.local_addr().unwrap()));
        let reception = Reception::start(options, Rules(Arc::clone(&backend)), Arc::new(|_| {})).unwrap();
        let listen = adit_host::tcp::listen("127.0.0.1:0".parse().unwrap(), &Default::default());
        let listener = listen.unwrap();
        let address = listener.local_addr().unwrap();
        reception.listen(listener, 0, inspect).unwrap();
        Self { reception, address, backend, server }
    }

    /// A whole connection: a byte there, a byte back, and its end.
    pub(crate) fn visit(&self) {
        let mut client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"r").unwrap();
        let (mut server, _) = self.server.accept().unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        server.write_all(&byte).unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"r");
    }
}

/// Waits for what no descriptor tells of, and fails with what `now` says at last.
#[track_caller]
pub(crate) fn eventually<T: std::fmt::Debug>(now: impl Fn() -> T, good: impl Fn(&T) -> bool) -> T {
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
