//! Many ports that come to one socket: by a program (sk_lookup), diverted (TPROXY), or redirected by NAT, beside a socket
//! on the one port that is dialled.
//!
//! ```text
//!  client ── veth ── server: ports 1-29999
//! ```
//!
//! One thread sends or connects and one receives or accepts. The kernel takes in what arrives where it was sent, so that
//! the sender's pace, and better its processor time where others run, is what a packet costs.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adit_host::capture::{Capture, CaptureOptions, CapturePlan, Means, Ports, Target};
use adit_host::poll::{Events, Interest, Poller};
use adit_host::tcp::{self, ListenOptions};
use adit_host::udp::{RecvBatch, Slots, UdpOptions, UdpSocket};
use adit_testbed::Host;
use serde_json::json;

use crate::report::{Report, Table};
use crate::usage;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORTS: std::ops::RangeInclusive<u16> = 1..=29_999;
/// Sources, and ports that each of them dials in turn: so many flows.
const SOURCES: usize = 16;
const DIALLED: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Bound,
    Program,
    Tproxy,
    Redirect,
}

impl Way {
    const ALL: [Self; 4] = [Self::Bound, Self::Program, Self::Tproxy, Self::Redirect];

    fn name(self) -> &'static str {
        match self {
            Self::Bound => "one port, bound",
            Self::Program => "sk_lookup",
            Self::Tproxy => "TPROXY",
            Self::Redirect => "REDIRECT",
        }
    }
}

/// Measures and adds a table.
pub(crate) fn run(report: &mut Report, rounds: u32, seconds: u32) {
    let mut figures = Way::ALL.map(|_| Vec::new());
    for round in 1..=rounds {
        for (way, figures) in Way::ALL.into_iter().zip(&mut figures) {
            let figure = measure(way, Duration::from_secs(seconds.into()));
            report.raw(&format!("{} {round}", way.name()), &json!(figure));
            figures.push(figure);
        }
    }
    let mut table = Table::new(
        format!("Ports that come to one socket: {} flows of datagrams, then connections", SOURCES * DIALLED),
        &["datagrams/s", "us/datagram", "accepts/s", "us/connect"],
        "median (smallest-largest), then the ratio to the first row; processor time of the sending thread, which takes in too",
    );
    for (way, figures) in Way::ALL.into_iter().zip(&figures) {
        table.row(way.name(), figures);
    }
    report.table(table);
}

/// What receives in the server's namespace, as long as it lives.
struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    _capture: Option<Capture>,
}

fn measure(way: Way, length: Duration) -> Vec<f64> {
    let (client, server) = (Host::new("client"), Host::new("server"));
    client.ip(&format!(
        "link add eth type veth peer name eth netns {}\nlink set eth up\naddress add 192.0.2.2/24 dev eth\n",
        server.name()
    ));
    server.ip(&format!("link set eth up\naddress add {SERVER}/24 dev eth\n"));
    let receiving = server.run_in(|| Server::start(way, &server));
    let port = |n: usize| match way {
        Way::Bound => (receiving.udp.local_addr().port(), receiving.tcp.local_addr().expect("bound").port()),
        _ => [1 + (n * 467 % usize::from(*PORTS.end())) as u16; 2].into(),
    };
    let dialled: Vec<(u16, u16)> = (0..DIALLED).map(port).collect();
    [
        datagrams(&client, &receiving.udp, &dialled, length),
        connections(&client, &receiving.tcp, &dialled, length),
    ]
    .concat()
}

impl Server {
    fn start(way: Way, host: &Host) -> Self {
        let udp = UdpOptions { recv_buffer: Some(8 << 20), ..UdpOptions::default() };
        let listen = ListenOptions::default();
        let means = match way {
            Way::Program => Means::SkLookup,
            Way::Tproxy => Means::Tproxy,
            Way::Bound | Way::Redirect => {
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
                let udp = UdpSocket::bind(any, &udp).expect("a port");
                let tcp = tcp::listen(any, &listen).expect("a port");
                if way == Way::Redirect {
                    let (from, to) = PORTS.into_inner();
                    let (udp, tcp) = (udp.local_addr().port(), tcp.local_addr().expect("bound").port());
                    host.nft(&format!(
                        "table ip bench {{\nchain prerouting {{\ntype nat hook prerouting priority dstnat;\n\
                         udp dport {from}-{to} redirect to :{udp}\ntcp dport {from}-{to} redirect to :{tcp}\n}}\n}}\n"
                    ));
                }
                return Self { udp, tcp, _capture: None };
            }
        };
        let ports = Ports { target: Target::Everything, means, udp: vec![PORTS], tcp: vec![PORTS] };
        let plan = CapturePlan { entrances: vec![ports], spared: Vec::new() };
        let options = CaptureOptions { udp, tcp: listen, shards: 1, answering: 1 };
        let (capture, captured) = Capture::start(&plan, &options).expect("root");
        for table in captured.diversion.host_state(&plan).tables {
            host.nft(&table.ruleset);
        }
        // IPv4 comes first.
        let (udp, tcp) = (captured.udp.into_iter().next(), captured.tcp.into_iter().next());
        Self { udp: udp.expect("IPv4"), tcp: tcp.expect("IPv4"), _capture: Some(capture) }
    }
}

/// Datagrams that arrive in a second, and microseconds that one took the sender.
fn datagrams(client: &Host, socket: &UdpSocket, dialled: &[(u16, u16)], length: Duration) -> Vec<f64> {
    let sources: Vec<std::net::UdpSocket> = client
        .run_in(|| (0..SOURCES).map(|_| std::net::UdpSocket::bind("192.0.2.2:0").expect("a port")).collect());
    let (poller, mut events) = (poller(socket), Events::with_capacity(4));
    let mut batch = RecvBatch::new(64, Slots { size: 2048, headroom: 0, tailroom: 0 });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (end, mut sent) = (Instant::now() + length, 0);
            let before = usage::cpu_of_this_thread();
            while Instant::now() < end {
                for (port, _) in dialled {
                    for source in &sources {
                        source.send_to(&[7; 100], (SERVER, *port)).expect("a way");
                        sent += 1;
                    }
                }
            }
            over.store(true, Ordering::Release);
            micros(usage::cpu_of_this_thread() - before, sent)
        });
        let (start, mut count) = (Instant::now(), 0);
        while !over.load(Ordering::Acquire) {
            poller.wait(&mut events, Some(Duration::from_millis(10))).expect("a poller");
            while let Ok(received) = socket.recv_batch(&mut batch) {
                count += received;
            }
        }
        let rate = count as f64 / start.elapsed().as_secs_f64();
        vec![rate, sender.join().expect("the sender")]
    })
}

/// Connections that are accepted in a second, and microseconds that one took the client: the client ends each by a reset, so that no port waits.
fn connections(client: &Host, listener: &TcpListener, dialled: &[(u16, u16)], length: Duration) -> Vec<f64> {
    let (poller, mut events) = (poller(listener), Events::with_capacity(4));
    let (over, mut accepted) = (AtomicBool::new(false), 0_u64);
    let start = Instant::now();
    let each = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let each = client.run_in(|| {
                let (before, mut made) = (usage::cpu_of_this_thread(), 0);
                for (_, port) in dialled.iter().cycle() {
                    if start.elapsed() > length {
                        break;
                    }
                    tcp::abort(TcpStream::connect((SERVER, *port)).expect("it is accepted"));
                    made += 1;
                }
                micros(usage::cpu_of_this_thread() - before, made)
            });
            over.store(true, Ordering::Release);
            each
        });
        while !over.load(Ordering::Acquire) {
            poller.wait(&mut events, Some(Duration::from_millis(10))).expect("a poller");
            while tcp::accept(listener).is_ok() {
                accepted += 1;
            }
        }
        client.join().expect("the client")
    });
    vec![accepted as f64 / start.elapsed().as_secs_f64(), each]
}

fn micros(all: Duration, of: u64) -> f64 {
    all.as_secs_f64() * 1e6 / of as f64
}

fn poller(socket: impl std::os::fd::AsFd) -> Poller {
    let poller = Poller::new().expect("a poller");
    poller.add(socket, 0, Interest::READ).expect("a socket");
    poller
}
