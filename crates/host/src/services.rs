//! Which ports programs of this machine have bound: TCP listeners, and UDP sockets that are open to everybody.
//!
//! The kernel's tables in `/proc` are read: they are there in every kernel and need no privilege.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A socket that takes what anybody sends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    /// TCP or UDP.
    pub transport: Transport,
    /// The address it is bound to; an IPv4 address in IPv6 clothes is given as the IPv4 address that it is.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Names the socket in its process; 0 for one of the kernel's own.
    pub inode: u64,
}

impl Bound {
    /// The addresses that it may get packets for. A socket of all IPv6 addresses is taken for one of both families,
    /// which it is unless it was told otherwise; then most programs have a second one for IPv4.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        if self.address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            return vec![Ipv4Addr::UNSPECIFIED.into(), self.address];
        }
        vec![self.address]
    }
}

/// A program that has a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its process.
    pub process: u32,
    /// What the process calls itself.
    pub name: String,
}

/// The tables. That of the calling thread, which may be in a network namespace of its own.
const TABLES: [(&str, Transport); 4] =
    [("tcp", Transport::Tcp), ("tcp6", Transport::Tcp), ("udp", Transport::Udp), ("udp6", Transport::Udp)];
const DIRECTORY: &str = "/proc/thread-self/net";

/// TCP's state of a listener, and UDP's of a socket without a peer.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

/// All sockets that are bound in the calling thread's network namespace and open to everybody, sorted. Connections
/// are not among them.
///
/// # Errors
/// When a table cannot be read. A kernel without IPv6 has none for it.
pub fn bound() -> io::Result<Vec<Bound>> {
    let mut found = Vec::new();
    for (table, transport) in TABLES {
        let file = match File::open(Path::new(DIRECTORY).join(table)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
            file => file?,
        };
        for line in BufReader::new(file).lines() {
            found.extend(parse(&line?, transport));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a line of a table; `None` for headings, connections and what is no such line.
#[must_use]
pub fn parse(line: &str, transport: Transport) -> Option<Bound> {
    let mut words = line.split_ascii_whitespace();
    let local = socket_address(words.nth(1)?)?;
    let _peer = socket_address(words.next()?)?;
    let open = match transport {
        Transport::Tcp => LISTEN,
        Transport::Udp => UNCONNECTED,
    };
    if words.next()? != open || local.port() == 0 {
        return None;
    }
    // Queues, timer, retransmissions, user, timeout.
    let inode = words.nth(5)?.parse().ok()?;
    Some(Bound { transport, address: local.ip().to_canonical(), port: local.port(), inode })
}

/// An address as the tables have it: words of four bytes in the machine's order, then the port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    if port.len() != 4 {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let word = address.get(index * 8..(index + 1) * 8)?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    };
    let ip: IpAddr = match address.len() {
        8 => word(0)?.into(),
        32 => {
            let mut bytes = [0; 16];
            for (index, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(index)?);
            }
            bytes.into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The inodes of all sockets that a process has.
///
/// # Errors
/// When there is no such process, or when it may not be looked into.
pub fn of_process(process: u32) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for descriptor in fs::read_dir(format!("/proc/{process}/fd"))? {
        let target = fs::read_link(descriptor?.path()).unwrap_or_default();
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        found.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(found)
}

/// Which programs have these sockets, by inode. Of processes that may not be looked into nothing is known.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn owners(sockets: &[Bound]) -> io::Result<BTreeMap<u64, Owner>> {
    let wanted: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        // Processes come and go meanwhile.
        let Ok(entry) = entry else { continue };
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(inodes) = of_process(process) else { continue };
        for inode in inodes.intersection(&wanted) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.entry(*inode).or_insert_with(|| Owner { process, name: name.trim_end().to_owned() });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};

    use super::*;
    use crate::netns::TemporaryNetns;

    fn found(transport: Transport, port: u16) -> Vec<Bound> {
        bound().unwrap().into_iter().filter(|b| (b.transport, b.port) == (transport, port)).collect()
    }

    #[test]
    fn listeners_and_open_sockets_of_the_namespace_are_found_and_nothing_else() {
        let netns = TemporaryNetns::create("adit-bound").unwrap();
        netns.run_in(|| {
            assert_eq!(bound().unwrap(), []);
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = tcp.local_addr().unwrap();
            let _connection = TcpStream::connect(address).unwrap();
            let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
            let peer = UdpSocket::bind("[::1]:0").unwrap();
            let connected = UdpSocket::bind("[::1]:0").unwrap();
            connected.connect(peer.local_addr().unwrap()).unwrap();

            let all = bound().unwrap();
            let shown: Vec<_> = all.iter().map(|b| (b.transport, b.address, b.port)).collect();
            let mut expected = vec![
                (Transport::Tcp, address.ip(), address.port()),
                (Transport::Udp, Ipv4Addr::UNSPECIFIED.into(), udp.local_addr().unwrap().port()),
                (Transport::Udp, Ipv6Addr::LOCALHOST.into(), peer.local_addr().unwrap().port()),
            ];
            expected.sort();
            assert_eq!(shown, expected);
            let owners = owners(&all).unwrap();
            assert_eq!(owners.len(), 3);
            assert!(owners.values().all(|owner| owner.process == std::process::id()), "{owners:?}");
        });
        assert!(bound().is_ok(), "the other namespace is there as before");
    }

    #[test]
    fn a_socket_of_both_families_has_the_port_of_both() {
        let netns = TemporaryNetns::create("adit-bound").unwrap();
        netns.run_in(|| {
            let any = (Ipv6Addr::UNSPECIFIED, 0);
            let dual = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
            sockopt::set_ipv6_v6only(&dual, false).unwrap();
            bind(&dual, &SocketAddr::from(any)).unwrap();
            listen(&dual, 1).unwrap();
            let dual = TcpListener::from(dual);
            let port = dual.local_addr().unwrap().port();
            assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), "it takes IPv4 too");
            let sockets = found(Transport::Tcp, port);
            assert_eq!(sockets.len(), 1);
            let both: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            assert_eq!(sockets[0].addresses(), both);

            let udp = UdpSocket::bind(any).unwrap();
            let sockets = found(Transport::Udp, udp.local_addr().unwrap().port());
            assert_eq!(sockets[0].addresses(), both);
            let mapped = UdpSocket::bind((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0)).unwrap();
            let sockets = found(Transport::Udp, mapped.local_addr().unwrap().port());
            assert_eq!(sockets[0].addresses(), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        });
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn lines_of_the_tables_are_read() {
        let tcp = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100";
        let one = parse(tcp, Transport::Tcp).unwrap();
        assert_eq!((one.address, one.port, one.inode), (Ipv4Addr::LOCALHOST.into(), 8080, 4711));
        let udp = "  99: 000080FE00000000FF005450000A0AFE:14E9 00000000000000000000000000000000:0000 07 \
                   00000000:00000000 00:00000000 00000000     0        0 12 2 0 0";
        let one = parse(udp, Transport::Udp).unwrap();
        assert_eq!((one.address, one.port), ("fe80::5054:ff:fe0a:a00".parse().unwrap(), 5353));
        assert_eq!(parse(&tcp.replace(" 0A ", " 01 "), Transport::Tcp), None, "a connection");
        assert_eq!(parse(&tcp.replace("1F90", "0000"), Transport::Tcp), None, "no port yet");
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue", Transport::Tcp), None);
    }

    proptest! {
        #[test]
        fn any_line_is_a_socket_or_none(
            line in prop_oneof![
                "\\PC{0,200}",
                "[ ]{0,4}[0-9]{1,3}: [0-9A-F]{6,34}:[0-9A-F]{3,5} [0-9A-F]{8}:0000 0[7A]( [0-9A-F:]{1,17}){0,7}",
            ],
            tcp in any::<bool>(),
        ) {
            let transport = if tcp { Transport::Tcp } else { Transport::Udp };
            if let Some(one) = parse(&line, transport) {
                prop_assert!(one.port != 0 && !one.addresses().is_empty());
            }
        }

        #[test]
        fn what_the_kernel_writes_is_read_back(ip in any::<IpAddr>(), port in 1u16.., inode: u64) {
            let hex = |bytes: &[u8]| -> String {
                let words = bytes.chunks(4).map(|four| u32::from_ne_bytes(four.try_into().unwrap()));
                words.map(|word| format!("{word:08X}")).collect()
            };
            let address = match ip {
                IpAddr::V4(ip) => hex(&ip.octets()),
                IpAddr::V6(ip) => hex(&ip.octets()),
            };
            let line = format!("0: {address}:{port:04X} {address}:0000 0A 0:0 00:0 0 0 0 {inode} 1");
            let one = parse(&line, Transport::Tcp).unwrap();
            prop_assert_eq!((one.address, one.port, one.inode), (ip.to_canonical(), port, inode));
        }
    }
}
