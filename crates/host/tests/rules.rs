//! The gateway's tables in the kernel: what is rendered is taken, and does what it says.
//!
//! ```text
//!  client: 10.88.0.2, .3, .4 ── adit0 ─ gateway: 192.0.2.1 ─ eth0 ── server: 192.0.2.100
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use adit_host::netns::{Netns, TemporaryNetns, veth};
use adit_host::nft;
use adit_plan::rules::{At, Entrance, Gateway, Nat, render, render_nat};
use rustix::net::{AddressFamily, SendFlags, SocketType};

/// Ports of the block of 10.88.0.2.
const BLOCK: std::ops::RangeInclusive<u16> = 40_000..=40_003;
const LIMIT: Duration = Duration::from_secs(10);

fn gateway() -> Gateway {
    Gateway {
        table: "adit".into(),
        interface: "adit0".into(),
        pools: vec!["10.88.0.0/16".parse().unwrap(), "fd88::/64".parse().unwrap()],
        prefixes: vec!["192.168.7.0/24".parse().unwrap()],
        client_to_client: false,
        entrances: vec![],
        nat: Some(Nat { forwards: true }),
    }
}

fn run(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

#[test]
fn nft_takes_every_text() {
    let entrance =
        Entrance { at: At::Everywhere, udp: "1-52,54-29999".parse().unwrap(), tcp: "443".parse().unwrap() };
    let some = [
        gateway(),
        Gateway { nat: Some(Nat { forwards: false }), client_to_client: true, ..gateway() },
        Gateway { nat: None, entrances: vec![entrance], ..gateway() },
        Gateway { pools: vec![], prefixes: vec![], ..gateway() },
        Gateway { pools: vec![], prefixes: vec![], nat: None, ..gateway() },
    ];
    TemporaryNetns::create("adit-rules").unwrap().run_in(|| {
        for gateway in some {
            nft::apply(&render(&gateway)).unwrap();
            nft::delete_table(nft::Family::Inet, "adit").unwrap();
        }
        nft::apply(&render_nat("adit_nat", "adit0")).unwrap();
    });
}

/// Client, gateway and server, with the tables and these elements in force.
struct Net {
    client: TemporaryNetns,
    gateway: TemporaryNetns,
    server: TemporaryNetns,
}

impl Net {
    fn new() -> Self {
        let [client, gateway, server] = ["client", "gateway", "server"]
            .map(|name| TemporaryNetns::create(&format!("adit-{name}")).unwrap());
        veth("c0", &client, "adit0", &gateway).unwrap();
        veth("s0", &server, "eth0", &gateway).unwrap();
        client.run_in(|| {
            run(
                "for i in 2 3 4; do ip addr add 10.88.0.$i/32 dev c0; done; ip addr add 192.168.7.5/32 dev c0
                 ip link set c0 up; ip route add 10.88.0.1 dev c0
                 ip route add default via 10.88.0.1 dev c0 src 10.88.0.2",
            );
        });
        server.run_in(|| run("ip addr add 192.0.2.100/24 dev s0; ip link set s0 up"));
        gateway.run_in(|| {
            run("ip addr add 10.88.0.1/16 dev adit0; ip link set adit0 up; ip route add 192.168.7.0/24 dev adit0
                 ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up
                 sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 \
                   net.ipv4.conf.adit0.send_redirects=0");
            nft::apply(&render(&self::gateway())).unwrap();
            nft::apply(&render_nat("adit_nat", "adit0")).unwrap();
            nft::apply(
                "add element inet adit_nat blocks { 10.88.0.2 : 192.0.2.1 . 40000-40003 }
                 add element inet adit_nat blocks { 10.88.0.3 : 192.0.2.1 . 40064-40127 }
                 add element inet adit_nat sites { 192.168.7.0/24 : 192.0.2.1 . 40064-40127 }
                 add element inet adit_nat forwards { tcp . 192.0.2.1 . 30000 : 10.88.0.3 . 8080 }
                 add element inet adit_nat forwards_any { udp . 30001 : 10.88.0.3 . 8080 }",
            )
            .unwrap();
        });
        Self { client, gateway, server }
    }

    /// Packets that a counter of one of the gateway's tables has seen.
    fn counted(&self, table: &str, counter: &str) -> u64 {
        counted(&self.gateway, table, counter)
    }

    fn udp(&self, source: [u8; 4]) -> UdpSocket {
        self.client.run_in(|| bound(source, 0))
    }
}

fn counted(netns: &Netns, table: &str, counter: &str) -> u64 {
    let table = netns.run_in(|| nft::list_table(nft::Family::Inet, table)).unwrap().unwrap();
    let (_, after) = table.split_once(&format!("counter {counter} {{")).unwrap();
    let mut words = after.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

fn bound(address: [u8; 4], port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::from(address), port)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn to(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

const SERVER: [u8; 4] = [192, 0, 2, 100];

/// Whom the server hears when `socket` speaks to it; the answer comes back.
fn heard(server: &UdpSocket, socket: &UdpSocket) -> SocketAddrV4 {
    let mut buffer = [0; 16];
    socket.send_to(b"question", server.local_addr().unwrap()).unwrap();
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"answer", from).unwrap();
    assert_eq!(socket.recv(&mut buffer).unwrap(), 6);
    let SocketAddr::V4(from) = from else { panic!("{from}") };
    from
}

#[test]
fn who_speaks_outside_does_so_from_its_block_and_a_full_one_is_refused() {
    let net = Net::new();
    let server = net.server.run_in(|| bound(SERVER, 9000));
    let other = net.server.run_in(|| bound(SERVER, 9001));
    let sockets: Vec<UdpSocket> = BLOCK.map(|_| net.udp([10, 88, 0, 2])).collect();

    let mut ports: Vec<u16> = sockets.iter().map(|socket| heard(&server, socket).port()).collect();
    ports.sort();
    assert_eq!(ports, BLOCK.collect::<Vec<_>>());
    assert!(BLOCK.contains(&heard(&other, &sockets[0]).port()), "full is full towards one destination only");
    assert!((40_064..=40_127).contains(&heard(&server, &net.udp([10, 88, 0, 3])).port()));
    assert!((40_064..=40_127).contains(&heard(&server, &net.udp([192, 168, 7, 5])).port()), "its device's");
    assert_eq!(net.counted("adit_nat", "full"), 0);

    let more = net.udp([10, 88, 0, 2]);
    more.connect(server.local_addr().unwrap()).unwrap();
    more.send(b"question").unwrap();
    assert_eq!(net.counted("adit_nat", "full"), 1);
    more.send(b"question").unwrap();
    let refused = more.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HostUnreachable);
    assert!(net.counted("adit_nat", "full") >= 2);
    assert!(BLOCK.contains(&heard(&server, &sockets[1]).port()), "those that are there stay");
}

#[test]
fn a_tcp_connection_that_finds_no_port_is_reset() {
    let net = Net::new();
    let listener = net.server.run_in(|| TcpListener::bind((Ipv4Addr::from(SERVER), 9000))).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || net.client.run_in(|| TcpStream::connect_timeout(&address, LIMIT));
    let _open: Vec<TcpStream> = BLOCK.map(|_| connect().unwrap()).collect();

    assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(net.counted("adit_nat", "full") >= 2);
}

#[test]
fn nothing_leaves_with_a_private_address() {
    let net = Net::new();
    let watch = "table inet watch {
        counter arrived { }
        chain all_of_them { type filter hook prerouting priority raw; meta l4proto { tcp, udp } counter name arrived; }
    }";
    let server = net.server.run_in(|| {
        nft::apply(watch).unwrap();
        bound(SERVER, 9000)
    });
    net.udp([10, 88, 0, 4]).send_to(b"no block", server.local_addr().unwrap()).unwrap();
    assert_eq!(net.counted("adit_nat", "untranslated"), 1);

    // A reset that belongs to no connection is nothing to connection tracking, and not translated.
    net.client.run_in(|| {
        let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::TCP))
            .unwrap();
        let ports = [0, 1, 0x23, 0x28];
        let reset = [ports.as_slice(), &[0; 8], &[0x50, 4], &[0; 6]].concat();
        rustix::net::sendto(&raw, &reset, SendFlags::empty(), &to("192.0.2.100:0")).unwrap();
    });
    assert_eq!(net.counted("adit", "untranslated"), 1);

    let hide = "table ip own {
        chain hide { type nat hook postrouting priority srcnat; oifname \"eth0\" masquerade; }
    }";
    net.gateway.run_in(|| nft::apply(hide)).unwrap();
    net.udp([10, 88, 0, 4]).send_to(b"no block", server.local_addr().unwrap()).unwrap();
    assert_eq!(net.counted("adit_nat", "untranslated"), 2, "whatever others would do");
    assert_eq!(counted(&net.server, "watch", "arrived"), 0);
}

#[test]
fn forwarded_ports_lead_to_their_device_from_outside_and_from_inside() {
    let net = Net::new();
    let device = net.client.run_in(|| TcpListener::bind("10.88.0.3:8080")).unwrap();
    let connect = |address| TcpStream::connect_timeout(&to(address), LIMIT);
    let asks = |mut stream: TcpStream, inside: bool| {
        let (mut accepted, from) = device.accept().unwrap();
        accepted.write_all(b"hello").unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).unwrap();
        let SocketAddr::V4(from) = from else { panic!("{from}") };
        assert_eq!(*from.ip(), if inside { Ipv4Addr::new(192, 0, 2, 1) } else { SERVER.into() });
        from.port()
    };
    asks(net.server.run_in(|| connect("192.0.2.1:30000")).unwrap(), false);
    let port = asks(net.client.run_in(|| connect("192.0.2.1:30000")).unwrap(), true);
    assert!(BLOCK.contains(&port), "who comes from inside is known by its block: {port}");

    let device = net.client.run_in(|| bound([10, 88, 0, 3], 8080));
    let outside = net.server.run_in(|| bound(SERVER, 0));
    outside.send_to(b"x", "192.0.2.1:30001").unwrap();
    let (_, from) = device.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from, outside.local_addr().unwrap());

    assert!(net.server.run_in(|| connect("192.0.2.1:30001")).is_err(), "UDP only");
    let inner = net.server.run_in(|| {
        run("ip route add 10.88.0.0/16 via 192.0.2.1");
        TcpStream::connect_timeout(&to("10.88.0.3:8080"), Duration::from_millis(300))
    });
    assert!(inner.is_err(), "the inner address itself is not reached");
}
