//! Accepting connections until told otherwise.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Host;

/// How long the end may have to wait to be noticed.
const LOOK: Duration = Duration::from_millis(20);

/// A thread that accepts connections; it ends with this value.
#[derive(Debug)]
pub(crate) struct Listening {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Listens on `address` of `host` and hands each connection to `serve`.
    #[track_caller]
    pub(crate) fn start(
        host: &Host,
        address: SocketAddr,
        serve: impl Fn(TcpStream) + Send + 'static,
    ) -> Self {
        let bound = host.run_in(|| TcpListener::bind(address));
        let listener = bound.unwrap_or_else(|error| panic!("{}: listen on {address}: {error}", host.role()));
        let address = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("nonblocking");
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
                let _ = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&timeout));
                if let Ok((stream, _)) = listener.accept() {
                    let _ = stream.set_nonblocking(false);
                    serve(stream);
                }
            }
        });
        Self { address, ended, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
