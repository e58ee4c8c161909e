//! Ports that only listen: where packets and connections end.

use std::collections::HashSet;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use adit_testbed::{Host, eventually_some};

/// Sockets on all addresses of a machine.
#[derive(Debug)]
pub struct Ends {
    udp: Vec<(u16, UdpSocket)>,
    tcp: Vec<(u16, TcpListener)>,
    streams: Vec<(u16, TcpStream)>,
    seen: HashSet<Vec<u8>>,
}

impl Ends {
    /// Listens.
    ///
    /// # Panics
    /// When a port is taken.
    #[must_use]
    pub fn listen(host: &Host, udp: &[u16], tcp: &[u16]) -> Self {
        let any = Ipv4Addr::UNSPECIFIED;
        host.run_in(|| {
            let udp = udp.iter().map(|port| {
                let socket = UdpSocket::bind((any, *port)).expect("a free UDP port");
                socket.set_nonblocking(true).expect("nonblocking");
                (*port, socket)
            });
            let tcp = tcp.iter().map(|port| {
                let socket = TcpListener::bind((any, *port)).expect("a free TCP port");
                socket.set_nonblocking(true).expect("nonblocking");
                (*port, socket)
            });
            Self { udp: udp.collect(), tcp: tcp.collect(), streams: Vec::new(), seen: HashSet::new() }
        })
    }

    /// Waits for bytes that were not seen before; the port where they end, and the bytes.
    ///
    /// # Panics
    /// When none come.
    pub fn wait(&mut self) -> (u16, Vec<u8>) {
        eventually_some("bytes that end somewhere", Duration::from_secs(20), || self.look())
    }

    fn look(&mut self) -> Option<(u16, Vec<u8>)> {
        let mut buffer = [0; 2048];
        for (port, socket) in &self.udp {
            while let Ok(length) = socket.recv(&mut buffer) {
                if self.seen.insert(buffer[..length].to_vec()) {
                    return Some((*port, buffer[..length].to_vec()));
                }
            }
        }
        for (port, listener) in &self.tcp {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).expect("nonblocking");
                self.streams.push((*port, stream));
            }
        }
        for (port, stream) in &mut self.streams {
            if let Ok(length @ 1..) = stream.read(&mut buffer)
                && self.seen.insert(buffer[..length].to_vec())
            {
                return Some((*port, buffer[..length].to_vec()));
            }
        }
        None
    }
}
