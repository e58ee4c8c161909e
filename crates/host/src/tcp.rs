//! TCP listeners, and what a tunnel wants of its streams.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, acceptfrom_with, sockopt};
use serde::{Deserialize, Serialize};

use crate::errno::uninterrupted;
pub use crate::socket::{BindFault, BufferSizes, buffer_sizes, set_interface, set_mark};
use crate::socket::{open, set_int};

/// How to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// Several sockets may share the address; the kernel spreads connections over them.
    pub reuse_port: bool,
    /// An IPv6 socket takes no IPv4 connections. Meaningless for an IPv4 address.
    pub v6_only: bool,
    /// The address need not belong to this machine (yet).
    pub free_bind: bool,
    /// Connections to other machines' addresses that are routed or diverted here are answered from there
    /// (`IP_TRANSPARENT`).
    pub transparent: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 4096, reuse_port: false, v6_only: true, free_bind: false, transparent: false }
    }
}

/// A nonblocking listener on `address`. A port that only waits out old connections counts as free.
///
/// # Errors
/// [`BindFault`], worded for the operator.
pub fn listen(address: SocketAddr, options: &ListenOptions) -> Result<TcpListener, BindFault> {
    let attempt = || {
        let socket = open(address.ip(), SocketType::STREAM)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if options.reuse_port {
            sockopt::set_socket_reuseport(&socket, true)?;
        }
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, options.v6_only)?;
        }
        if options.free_bind {
            // For IPv6 sockets too: the kernel keeps one flag for both.
            sockopt::set_ip_freebind(&socket, true)?;
        }
        if options.transparent {
            // Likewise.
            set_int(&socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1)?;
        }
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        Ok(TcpListener::from(socket))
    };
    attempt().map_err(|errno| BindFault::new(address, "tcp", errno))
}

/// Accepts one connection as a nonblocking stream.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when none waits. Connections that were gone before they could be accepted
/// are passed over.
pub fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match uninterrupted(|| acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)) {
            Ok((socket, Some(peer))) => return Ok((socket.into(), SocketAddr::try_from(peer)?)),
            Ok((_, None)) | Err(Errno::CONNABORTED | Errno::PROTO) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Where a connection leaves from; the system chooses what is not given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// Own address.
    pub address: Option<IpAddr>,
    /// Interface, see [`set_interface`].
    pub interface: Option<String>,
    /// Mark of its packets from the first one on, see [`set_mark`].
    pub mark: Option<u32>,
}

impl Origin {
    fn apply(&self, socket: &OwnedFd) -> io::Result<()> {
        if let Some(mark) = self.mark {
            set_mark(socket, mark)?;
        }
        if let Some(interface) = &self.interface {
            set_interface(socket, interface)?;
        }
        if let Some(address) = self.address {
            rustix::net::bind(socket, &SocketAddr::new(address, 0))?;
        }
        Ok(())
    }
}

/// Connects to `remote`, waiting at most `patience`. The stream is nonblocking.
///
/// # Errors
/// What the system says; [`io::ErrorKind::TimedOut`] when there was no answer in time.
pub fn connect(remote: SocketAddr, origin: &Origin, patience: Duration) -> io::Result<TcpStream> {
    let socket = open(remote.ip(), SocketType::STREAM)?;
    origin.apply(&socket)?;
    if begin(&socket, remote)? {
        return Ok(socket.into());
    }
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&limit)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    match sockopt::socket_error(&socket)? {
        Ok(()) => Ok(socket.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Begins to connect to `remote` and waits for nothing: the stream takes bytes as soon as it is connected, and becomes
/// writable, or reports its error, once that is decided. Small writes on it go out at once ([`set_no_delay`]).
///
/// With `source` the connection comes from that address, which need not be this machine's (`IP_TRANSPARENT`): what
/// comes back has to be routed here.
///
/// # Errors
/// What the system says at once; foreign sources need `CAP_NET_ADMIN`.
pub fn start_connect(remote: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = open(remote.ip(), SocketType::STREAM)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(source) = source {
        // One flag for both versions. The port is chosen when the other end is known: so it need be free for that only.
        set_int(&socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1)?;
        set_int(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    }
    begin(&socket, remote)?;
    Ok(socket.into())
}

/// Whether it is connected already.
fn begin(socket: &OwnedFd, remote: SocketAddr) -> rustix::io::Result<bool> {
    match rustix::net::connect(socket, &remote) {
        Ok(()) => Ok(true),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Ends a connection by a reset instead of an orderly end; what was not yet sent is lost.
pub fn abort(stream: TcpStream) {
    // Where this fails the connection is gone already.
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    drop(stream);
}

/// An error of which the machine or the process is the reason, and no peer: no descriptor, memory or port is left.
#[must_use]
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        crate::errno::of(error),
        Some(
            Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::ADDRNOTAVAIL
                | Errno::ADDRINUSE
        )
    )
}

/// Sends small writes at once instead of gathering them (`TCP_NODELAY`).
///
/// # Errors
/// Not for a TCP socket.
pub fn set_no_delay(stream: impl AsFd, on: bool) -> io::Result<()> {
    Ok(sockopt::set_tcp_nodelay(stream, on)?)
}

/// Reports room to write only while fewer than `bytes` wait unsent in the kernel (`TCP_NOTSENT_LOWAT`), so
/// that a tunnel in a stream does not become a queue.
///
/// # Errors
/// Not for a TCP socket.
pub fn set_not_sent_low_water(stream: impl AsFd, bytes: u32) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    Ok(set_int(stream, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)?)
}

/// When to ask a silent peer whether it is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first question; whole seconds, at least one.
    pub idle: Duration,
    /// Time between questions; whole seconds, at least one.
    pub interval: Duration,
    /// Unanswered questions after which the connection is dead.
    pub probes: u32,
}

/// Turns keep-alive probes on, or off with `None`.
///
/// # Errors
/// Not for a TCP socket, or values the kernel does not take (seconds up to 32767, probes up to 127).
pub fn set_keepalive(stream: impl AsFd, keepalive: Option<Keepalive>) -> io::Result<()> {
    if let Some(Keepalive { idle, interval, probes }) = keepalive {
        sockopt::set_tcp_keepidle(&stream, idle)?;
        sockopt::set_tcp_keepintvl(&stream, interval)?;
        sockopt::set_tcp_keepcnt(&stream, probes)?;
    }
    Ok(sockopt::set_socket_keepalive(&stream, keepalive.is_some())?)
}

/// Gives the connection up when sent data stays unacknowledged this long (`TCP_USER_TIMEOUT`); zero returns
/// to the system's way.
///
/// # Errors
/// Not for a TCP socket.
pub fn set_user_timeout(stream: impl AsFd, timeout: Duration) -> io::Result<()> {
    let millis = u32::try_from(timeout.as_millis()).unwrap_or(i32::MAX.unsigned_abs());
    Ok(sockopt::set_tcp_user_timeout(stream, millis)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{IfExists, Mark, Netlink, Route, RouteKind, Rule};
    use crate::netns::TemporaryNetns;

    fn any_port(address: &str) -> SocketAddr {
        format!("{address}:0").parse().unwrap()
    }

    #[test]
    fn an_address_in_use_is_named() {
        let first = listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap();
        let address = first.local_addr().unwrap();

        let fault = listen(address, &ListenOptions::default()).unwrap_err();

        assert!(matches!(fault, BindFault::InUse { .. }));
        assert_eq!(
            fault.to_string(),
            format!("{address}/tcp is in use by another program: stop it or leave the port out")
        );
    }

    #[test]
    fn an_address_of_another_machine_is_refused_unless_free_bind_is_asked_for() {
        let options = ListenOptions::default();
        let fault = listen(any_port("192.0.2.1"), &options).unwrap_err();
        assert!(fault.to_string().contains("192.0.2.1 is not an address of this machine"), "{fault}");

        listen(any_port("192.0.2.1"), &ListenOptions { free_bind: true, ..options }).unwrap();
        listen(any_port("[2001:db8::1]"), &ListenOptions { free_bind: true, ..options }).unwrap();
    }

    #[test]
    fn sockets_that_reuse_a_port_share_it() {
        let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
        let first = listen(any_port("127.0.0.1"), &options).unwrap();

        listen(first.local_addr().unwrap(), &options).unwrap();
    }

    #[test]
    fn a_dual_stack_listener_takes_both_versions() {
        let options = ListenOptions { v6_only: false, ..ListenOptions::default() };
        let listener = listen(any_port("[::]"), &options).unwrap();
        let port = listener.local_addr().unwrap().port();

        for address in ["127.0.0.1", "[::1]"] {
            TcpStream::connect(format!("{address}:{port}")).unwrap();
        }
    }

    #[test]
    fn accepting_does_not_block_and_neither_does_the_stream() {
        let listener = listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap();
        assert_eq!(accept(&listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = accept(&listener).unwrap();

        assert_eq!(peer, client.local_addr().unwrap());
        let read = io::Read::read(&mut &stream, &mut [0]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn connecting_ends_with_a_stream_a_refusal_or_in_time() {
        // In a network of its own: elsewhere another program could take the port that is to refuse.
        TemporaryNetns::create("adit-tcp").unwrap().run_in(connections);
    }

    fn connections() {
        let patience = Duration::from_secs(5);
        let listener = listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap();
        let address = listener.local_addr().unwrap();
        let origin =
            Origin { address: Some([127, 0, 0, 7].into()), interface: Some("lo".into()), mark: Some(0xad17) };
        let stream = connect(address, &origin, patience).expect("these tests need root");
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 7]));
        let nowhere = Origin { interface: Some("none".into()), ..Origin::default() };
        assert!(connect(address, &nowhere, patience).is_err());
        let read = io::Read::read(&mut &stream, &mut [0]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);

        drop(listener);
        let refused = connect(address, &Origin::default(), patience).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

        // Nobody accepts, and the kernel answers nothing once the backlog is full.
        let full = listen(any_port("127.0.0.1"), &ListenOptions { backlog: 0, ..ListenOptions::default() });
        let full = full.unwrap();
        let address = full.local_addr().unwrap();
        let _waiting = connect(address, &Origin::default(), patience).unwrap();
        let late = connect(address, &Origin::default(), Duration::from_millis(10)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_connection_that_was_begun_takes_bytes_and_ends_by_a_reset_when_told_to() {
        let listener = listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap();
        let stream = start_connect(listener.local_addr().unwrap(), None).unwrap();
        // Loopback has connected it by now, and elsewhere a write would say that it has to wait.
        io::Write::write_all(&mut &stream, b"hello").unwrap();
        let (mut near, _) = accept(&listener).unwrap();
        near.set_nonblocking(false).unwrap();
        let mut got = [0; 5];
        io::Read::read_exact(&mut near, &mut got).unwrap();
        assert_eq!(&got, b"hello");

        abort(stream);

        assert_eq!(io::Read::read(&mut near, &mut got).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_connection_can_come_from_an_address_of_another_machine() {
        TemporaryNetns::create("adit-tcp").unwrap().run_in(|| {
            let mut netlink = Netlink::open().unwrap();
            let local = Route {
                interface: Some("lo".into()),
                ..Route::new("192.0.2.0/24".parse().unwrap(), RouteKind::Local)
            };
            netlink.add_route(&local, IfExists::Fail).unwrap();
            let listener = listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap();

            let stream = start_connect(listener.local_addr().unwrap(), Some([192, 0, 2, 9].into())).unwrap();

            let (_, peer) = accept(&listener).unwrap();
            assert_eq!((peer.ip(), peer), (IpAddr::from([192, 0, 2, 9]), stream.local_addr().unwrap()));
        });
    }

    #[test]
    fn the_first_packet_carries_the_mark_already() {
        let netns = TemporaryNetns::create("adit-tcp").unwrap();
        netns.run_in(|| {
            let mut netlink = Netlink::open().unwrap();
            let rule = Rule { mark: Some(Mark::exactly(5)), ..Rule::new(false, 1, 77) };
            netlink.add_rule(&rule, IfExists::Fail).unwrap();
            let drop = Route { table: 77, ..Route::new("0.0.0.0/0".parse().unwrap(), RouteKind::Blackhole) };
            netlink.add_route(&drop, IfExists::Fail).unwrap();
            let fault = |mark| {
                let origin = Origin { mark, ..Origin::default() };
                connect(([192, 0, 2, 2], 1).into(), &origin, Duration::ZERO).unwrap_err().kind()
            };

            assert_eq!(fault(None), io::ErrorKind::NetworkUnreachable);
            assert_eq!(fault(Some(5)), io::ErrorKind::InvalidInput);
        });
    }

    #[test]
    fn stream_options_reach_the_kernel() {
        let listener = listen(any_port("127.0.0.1"), &ListenOptions::default()).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let seconds = Duration::from_secs;

        set_no_delay(&stream, true).unwrap();
        set_not_sent_low_water(&stream, 16384).unwrap();
        set_mark(&stream, 0xad17).expect("these tests need root");
        set_keepalive(&stream, Some(Keepalive { idle: seconds(30), interval: seconds(5), probes: 3 }))
            .unwrap();
        set_user_timeout(&stream, seconds(20)).unwrap();

        assert!(sockopt::tcp_nodelay(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), seconds(30));
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), seconds(5));
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), 3);
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 20_000);
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        set_keepalive(&stream, None).unwrap();
        assert!(!sockopt::socket_keepalive(&stream).unwrap());
    }
}
