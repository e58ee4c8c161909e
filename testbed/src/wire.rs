//! What passes a machine, whatever the programs on it say.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};

use crate::Host;

/// All protocols (`ETH_P_ALL`), as the kernel wants it.
const ALL: u32 = (3_u16).to_be() as u32;
/// Bytes that may wait, so that none is missed.
const BUFFER: usize = 16 << 20;

/// An IP packet that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it comes from.
    pub from: IpAddr,
    /// Where it goes.
    pub to: IpAddr,
    /// 6 for TCP, 17 for UDP, 1 and 58 for ICMP.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP; 0 for others, and for all fragments but the first.
    pub ports: (u16, u16),
    /// What follows the IP header.
    pub payload: Vec<u8>,
}

/// Watches all interfaces of a machine until it is dropped. A packet that is forwarded is seen twice: coming and
/// going.
#[derive(Debug)]
pub struct Wire {
    seen: Arc<Mutex<Vec<Seen>>>,
    watching: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Starts to watch and remembers the packets that `keep` wants.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    #[track_caller]
    pub fn watch(host: &Host, keep: impl Fn(&Seen) -> bool + Send + 'static) -> Self {
        let socket = host.run_in(open).expect("a packet socket");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let watching = Arc::new(AtomicBool::new(true));
        let (store, on) = (Arc::clone(&seen), Arc::clone(&watching));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while on.load(Ordering::Relaxed) {
                // Times out, to look whether this is the end.
                let Ok((len, _)) = rustix::net::recv(&socket, &mut *buffer, RecvFlags::empty()) else {
                    continue;
                };
                if let Some(packet) = parse(&buffer[..len]).filter(&keep) {
                    store.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
                }
            }
        });
        Self { seen, watching, thread: Some(thread) }
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.watching.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open() -> io::Result<rustix::fd::OwnedFd> {
    let protocol = NonZeroU32::new(ALL).map(Protocol::from_raw);
    // A packet socket for datagrams leaves the link header out.
    let socket =
        rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// An IP packet; `None` for anything else.
fn parse(bytes: &[u8]) -> Option<Seen> {
    let u16_at = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let (from, to, mut protocol, mut at, first): (IpAddr, IpAddr, u8, usize, bool) = match bytes.first()? >> 4
    {
        4 => {
            let address = |at: usize| {
                let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            };
            let first = u16_at(6)? & 0x1fff == 0;
            (address(12)?, address(16)?, *bytes.get(9)?, usize::from(bytes[0] & 15) * 4, first)
        }
        6 => {
            let address = |at: usize| {
                let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            (address(8)?, address(24)?, *bytes.get(6)?, 40, true)
        }
        _ => return None,
    };
    let mut first = first;
    // A fragment header (RFC 8200 section 4.5) is the only extension these tests meet.
    if from.is_ipv6() && protocol == 44 {
        protocol = *bytes.get(at)?;
        first = u16_at(at + 2)? & 0xfff8 == 0;
        at += 8;
    }
    let ports = match protocol {
        6 | 17 if first => (u16_at(at)?, u16_at(at + 2)?),
        _ => (0, 0),
    };
    Some(Seen { from, to, protocol, ports, payload: bytes.get(at..)?.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{eventually, ping};

    #[test]
    fn what_passes_is_seen() {
        let host = Host::new("wire");
        let wire = Wire::watch(&host, |_| true);
        let (a, b) =
            host.run_in(|| (UdpSocket::bind("[::1]:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap()));
        a.send_to(b"word", b.local_addr().unwrap()).unwrap();
        ping(&host, [127, 0, 0, 1].into()).must_all_return();
        let ports = (a.local_addr().unwrap().port(), b.local_addr().unwrap().port());
        eventually("both kinds", Duration::from_secs(10), || {
            let seen = wire.seen();
            seen.iter().any(|p| p.protocol == 17 && p.ports == ports && p.payload.ends_with(b"word"))
                && seen.iter().any(|p| p.protocol == 1 && p.to == IpAddr::from([127, 0, 0, 1]))
        });
    }
}
