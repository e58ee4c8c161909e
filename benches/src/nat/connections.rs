//! New connections through the gateway, of clients at the beginning and at the end of its rules.
//!
//! One thread is client and server: the kernel takes a packet through all three namespaces before the call that sent it
//! returns, so that nobody is woken and waited for, and the time is that of the packets alone. All gateways are there
//! at once and take turns that are short, so that whatever else the machine does happens to all of them.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use adit_host::nft;
use adit_host::tcp::{self, ListenOptions};
use adit_plan::rules::Nat;
use serde_json::json;

use super::{
    BLOCK, CLIENTS, DESTINATIONS, Iptables, Net, OUTSIDE, PORT, SERVER, document, filter, inner, left_out,
    load, netfilter,
};
use crate::report::{Report, Table, middle};

/// Turns of a round.
const TURNS: usize = 4;
/// Connections of a turn, which is cut short where they take long.
const CONNECTIONS: u32 = 1024;
const LONG: Duration = Duration::from_millis(250);
/// Clients that connect.
const SOURCES: u32 = 16;
/// Before a packet is lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the gateway has.
#[derive(Debug, Clone, Copy)]
enum Rules {
    Masquerade,
    MasqueradeIptables,
    Document(Iptables),
    /// adit's table that translates, with so many clients.
    Adit(u32),
    /// Both tables, as a gateway has them.
    AditWhole,
    /// The filter table as it is without traceable NAT.
    AditMasquerade,
}

impl Rules {
    /// The first is what others are compared with.
    const ALL: [Self; 9] = [
        Self::Masquerade,
        Self::MasqueradeIptables,
        Self::Document(Iptables::Legacy),
        Self::Document(Iptables::Nft),
        Self::Adit(1),
        Self::Adit(1000),
        Self::Adit(CLIENTS),
        Self::AditMasquerade,
        Self::AditWhole,
    ];

    fn name(self) -> String {
        match self {
            Self::Masquerade => "masquerade, nft".to_owned(),
            Self::MasqueradeIptables => format!("masquerade, {}", Iptables::Legacy.name()),
            Self::Document(iptables) => format!("two rules for each of {CLIENTS}, {}", iptables.name()),
            Self::Adit(clients) => format!("adit's map of {clients}"),
            Self::AditWhole => format!("adit's map of {CLIENTS} and filter"),
            Self::AditMasquerade => "adit's filter, no [nat]".to_owned(),
        }
    }

    /// Puts them in force.
    fn load(self, net: &Net) -> Result<(), String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let file = directory.path().join("rules.v4");
        let restore = |iptables: Iptables, text: &str| {
            std::fs::write(&file, text).map_err(|error| error.to_string())?;
            iptables.restore(&file)
        };
        net.gateway.run_in(|| {
            match self {
                Self::Masquerade => {
                    let hide = format!(
                        "table ip hide {{\nchain postrouting {{\ntype nat hook postrouting priority srcnat;\n\
                         oifname {OUTSIDE} masquerade\n}}\n}}\n"
                    );
                    nft::apply(&hide).expect("nft takes the rule");
                }
                Self::MasqueradeIptables => {
                    let hide = format!("*nat\n-A POSTROUTING -o {OUTSIDE} -j MASQUERADE\nCOMMIT\n");
                    restore(Iptables::Legacy, &hide)?;
                }
                Self::Document(iptables) => restore(iptables, &document(CLIENTS))?,
                Self::Adit(clients) => load(clients),
                Self::AditWhole => {
                    filter(Some(Nat { forwards: true }));
                    load(CLIENTS);
                }
                Self::AditMasquerade => filter(None),
            }
            Ok(())
        })
    }

    /// Who connects: those whose rules come first, and those whose come last.
    fn clients(self) -> Vec<(&'static str, Vec<Ipv4Addr>)> {
        let some = |clients: std::ops::Range<u32>| clients.map(inner).collect();
        match self {
            Self::Masquerade | Self::MasqueradeIptables | Self::AditMasquerade => {
                vec![("", some(0..SOURCES))]
            }
            Self::Adit(clients) if clients < SOURCES => vec![("", some(0..clients))],
            Self::Adit(clients) => {
                vec![(", first", some(0..SOURCES)), (", last", some(clients - SOURCES..clients))]
            }
            Self::Document(_) | Self::AditWhole => {
                vec![(", first", some(0..SOURCES)), (", last", some(CLIENTS - SOURCES..CLIENTS))]
            }
        }
    }
}

/// Clients behind one gateway, and what their connections took, round by round.
struct Row {
    name: String,
    net: usize,
    clients: Vec<Ipv4Addr>,
    figures: Vec<Vec<f64>>,
}

/// Measures and adds a table.
pub(super) fn run(report: &mut Report, rounds: u32) {
    let (mut nets, mut rows) = (Vec::new(), Vec::new());
    for rules in Rules::ALL {
        let net = Net::new();
        if let Err(reason) = rules.load(&net) {
            left_out(report, &rules.name(), &reason);
            continue;
        }
        for (end, clients) in rules.clients() {
            let name = rules.name() + end;
            rows.push(Row { name, net: nets.len(), clients, figures: Vec::new() });
        }
        nets.push((Servers::start(&net), net));
    }
    for round in 1..=rounds {
        // By row, turn and protocol.
        let mut times = vec![Vec::new(); rows.len()];
        for _ in 0..TURNS {
            for (row, times) in rows.iter().zip(&mut times) {
                let (servers, net) = &nets[row.net];
                times.push(turn(net, servers, &row.clients));
            }
        }
        for (row, own) in rows.iter_mut().zip(&times) {
            let median = |of: &dyn Fn(&[f64; 2], &[f64; 2]) -> f64| {
                let mut values: Vec<f64> =
                    own.iter().zip(&times[0]).map(|(own, first)| of(own, first)).collect();
                values.sort_by(f64::total_cmp);
                middle(&values)
            };
            let figure: Vec<f64> = (0..2)
                .flat_map(|at| [median(&|own, _| own[at]), median(&|own, first| own[at] - first[at])])
                .collect();
            report.raw(&format!("{}, {round}", row.name), &json!(figure));
            row.figures.push(figure);
        }
    }
    let mut table = Table::new(
        format!("New connections through network address translation, {BLOCK} ports for each client"),
        &["UDP us", "UDP more us", "TCP us", "TCP more us"],
        "median (smallest-largest), then the ratio to the first row; each round's is the median of its turns' medians\n  \
         UDP: question and answer; TCP: socket, handshake and accepting; through three network namespaces on one processor\n  \
         more: than the first row in the same turn; first, last: clients whose rules or elements come first or last",
    );
    for row in &rows {
        table.row(&row.name, &row.figures);
    }
    report.table(table);
}

/// What answers.
struct Servers {
    /// By destination.
    udp: Vec<UdpSocket>,
    tcp: TcpListener,
}

impl Servers {
    fn start(net: &Net) -> Self {
        net.server.run_in(|| Self {
            udp: (0..DESTINATIONS).map(|at| bound(destination(at))).collect(),
            tcp: tcp::listen((Ipv4Addr::UNSPECIFIED, PORT).into(), &ListenOptions::default())
                .expect("a port"),
        })
    }
}

fn destination(at: u32) -> SocketAddr {
    (Ipv4Addr::from(u32::from(SERVER) + at), PORT).into()
}

fn bound(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("an address");
    socket.set_nonblocking(true).expect("a socket");
    socket
}

/// Median microseconds of a new connection of UDP, and of TCP.
fn turn(net: &Net, servers: &Servers, clients: &[Ipv4Addr]) -> [f64; 2] {
    let medians = net.client.run_in(|| [datagrams(&servers.udp, clients), streams(&servers.tcp, clients)]);
    let addresses: Vec<IpAddr> = clients.iter().map(|&client| client.into()).collect();
    net.gateway.run_in(|| netfilter().forget_connections(&addresses)).expect("connections are tracked");
    medians
}

/// Times one connection after the other; gives the median in microseconds.
fn median_of(mut connection: impl FnMut(u32) -> Duration) -> f64 {
    let start = Instant::now();
    let times = (0..CONNECTIONS).take_while(|_| start.elapsed() < LONG).map(&mut connection);
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e6).collect();
    times.sort_by(f64::total_cmp);
    middle(&times)
}

fn datagrams(servers: &[UdpSocket], clients: &[Ipv4Addr]) -> f64 {
    let senders = CONNECTIONS.div_ceil(DESTINATIONS).max(clients.len() as u32) as usize;
    let senders: Vec<UdpSocket> =
        clients.iter().cycle().take(senders).map(|&client| bound((client, 0).into())).collect();
    median_of(|at| {
        let sender = &senders[at as usize % senders.len()];
        let to = at / senders.len() as u32;
        let (server, mut buffer) = (&servers[to as usize], [0; 64]);
        let start = Instant::now();
        sender.send_to(&[7; 32], destination(to)).expect("a way");
        let (length, from) = once(|| server.recv_from(&mut buffer));
        server.send_to(&buffer[..length], from).expect("a way back");
        once(|| sender.recv(&mut buffer));
        start.elapsed()
    })
}

fn streams(listener: &TcpListener, clients: &[Ipv4Addr]) -> f64 {
    median_of(|at| {
        let client = clients[at as usize % clients.len()];
        let to = destination(at / clients.len() as u32 % DESTINATIONS);
        let start = Instant::now();
        let stream = tcp::start_connect(to, Some(client.into())).expect("a way");
        let accepted = once(|| tcp::accept(listener));
        let took = start.elapsed();
        // No port waits.
        tcp::abort(stream);
        drop(accepted);
        took
    })
}

/// What is there at once, unless something interrupted the kernel.
fn once<T>(mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                std::thread::yield_now();
            }
            result => return result.expect("packets arrive"),
        }
    }
}
