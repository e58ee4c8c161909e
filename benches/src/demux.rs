//! Connections of a foreign back end, through adit's entrance, HAProxy or sslh: a short exchange on each, and bulk on one.
//!
//! ```text
//!  clients ── loopback ── adit's entrance, haproxy, or sslh ── loopback ── back end
//! ```
//!
//! All look at the first bytes before they choose the back end, with one thread each but for the sslh that forks, and take
//! turns within a run. Clients and back end are this process: what counts is the processor time of the one in the middle.
//! Most of it is the kernel's, for the packets of both connections, which are the same whoever is there.
//!
//! sslh-select 1.20 loses connections where several are open at a time: it goes on reading by descriptors that `select`
//! reported ready after it has closed some of them and the kernel has given their numbers to new connections, whose empty
//! queue it takes for their end. That is a figure here.

mod middle;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

pub(crate) use self::middle::relay;
use self::middle::{Middle, Peer};
use crate::report::{Report, Table};
use crate::usage;

/// What a client says first, before the number of bytes that it wants, and how long that is altogether.
const WORD: &[u8; 8] = b"foreign ";
const REQUEST: usize = 64;
/// Connections that are open at a time.
const CLIENTS: usize = 8;
/// Threads of the back end: one that still waits for the end of a connection delays no other.
const BACK_END: usize = 2 * CLIENTS;
/// Bytes of the answer on each of many connections.
const ANSWER: u64 = 64;
/// How long a client waits for a connection, and for each part of the answer, before it has failed.
const PATIENCE: Duration = Duration::from_secs(3);
/// Transfers on one connection: a long one, and shorter ones, one after the other, that make a gigabyte.
const BULK_GB: u64 = 4;
const SHORT_BULK_MB: u64 = 10;

/// When connections begin.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// So many clients begin the next one when they have had the answer.
    Saturation(usize),
    /// So many in a second, whatever becomes of those before, as long as a client is free.
    Offered(u32),
}

impl Load {
    /// A process for each connection is too slow for the higher rate, and what it shows there is its queue.
    const ALL: [Self; 4] =
        [Self::Saturation(CLIENTS), Self::Saturation(1), Self::Offered(1000), Self::Offered(3000)];

    fn title(self) -> String {
        match self {
            Self::Saturation(clients) => format!("saturation by {clients} at a time"),
            Self::Offered(rate) => format!("{rate} offered in a second"),
        }
    }
}

/// Measures and adds tables.
pub(crate) fn run(report: &mut Report, rounds: u32, seconds: u32) {
    let mut loads = Load::ALL.map(|_| Peer::ALL.map(|_| Vec::new()));
    let mut bulks = Peer::ALL.map(|_| Vec::new());
    for round in 1..=rounds {
        for (at, peer) in Peer::ALL.into_iter().enumerate() {
            let back_end = BackEnd::start();
            let middle = Middle::start(peer, back_end.address);
            for (load, figures) in Load::ALL.into_iter().zip(&mut loads) {
                let figure = connections(&middle, load, Duration::from_secs(seconds.into()));
                report.raw(&format!("{} demux, {}, {round}", peer.name(), load.title()), &json!(figure));
                figures[at].push(figure);
            }
            let figure = bulk(&middle);
            report.raw(&format!("{} demux, bulk, {round}", peer.name()), &json!(figure));
            bulks[at].push(figure);
        }
    }
    let mut add = |mut table: Table, figures: [Vec<Vec<f64>>; Peer::ALL.len()]| {
        for (peer, figures) in Peer::ALL.into_iter().zip(&figures) {
            table.row(peer.name(), figures);
        }
        report.table(table);
    };
    for (load, figures) in Load::ALL.into_iter().zip(loads) {
        let table = Table::new(
            format!("Connections of a foreign back end over loopback, {}", load.title()),
            &["connections/s", "us/connection", "machine busy %", "p50 us", "p99 us", "failed %"],
            "median (smallest-largest), then the ratio to the first row; us: processor time of the one in the middle alone\n  \
             machine: with clients, back end and whatever else runs; p50, p99: to the first byte of the answer, from\n  \
             connecting, or from when that was due if no client was free",
        );
        add(table, figures);
    }
    let table = Table::new(
        format!(
            "Bulk of a foreign back end over loopback, {BULK_GB} GB and {SHORT_BULK_MB} MB on a connection"
        ),
        &[
            "Mbit/s",
            "s/GB",
            "machine busy %",
            "short Mbit/s",
            "short s/GB",
            "short machine busy %",
            "short failed %",
        ],
        "as above",
    );
    add(table, bulks);
}

/// What has been used since a moment.
struct Meter<'a> {
    middle: &'a Middle,
    start: Instant,
    cpu: Duration,
    busy: Duration,
}

impl<'a> Meter<'a> {
    fn start(middle: &'a Middle) -> Self {
        Self { middle, start: Instant::now(), cpu: middle.cpu(), busy: usage::busy() }
    }

    /// Seconds, processor seconds of the one in the middle, and percent of all processors' time that was not idle.
    fn read(&self) -> [f64; 3] {
        let took = self.start.elapsed().as_secs_f64();
        let busy = (usage::busy() - self.busy).as_secs_f64() / usage::processors() as f64;
        [took, (self.middle.cpu() - self.cpu).as_secs_f64(), 100.0 * busy / took]
    }
}

/// Connections of a second, processor microseconds of each, percent of the machine, median and 99th percentile of the
/// time to the first byte, and percent that failed. A rate that is more than the one in the middle can do is given up
/// after twice the time.
fn connections(middle: &Middle, load: Load, length: Duration) -> Vec<f64> {
    let meter = Meter::start(middle);
    let start = meter.start;
    let clients = match load {
        Load::Saturation(clients) => clients,
        Load::Offered(_) => CLIENTS,
    };
    let client = |first| {
        let mut answers = Vec::new();
        for at in (first..).step_by(clients) {
            let now = Instant::now();
            let due = match load {
                Load::Saturation(_) => now,
                Load::Offered(rate) => start + Duration::from_secs_f64(at as f64 / f64::from(rate)),
            };
            if due >= start + length || now >= start + 2 * length {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(now));
            // How late the timer is says nothing about the one in the middle.
            let begin = if due > now { Instant::now() } else { due };
            answers.push(exchange(middle.address, ANSWER, begin));
        }
        answers
    };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|first| scope.spawn(move || client(first))).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    let [took, cpu, busy] = meter.read();
    let tried = answers.len() as f64;
    let mut times: Vec<Duration> = answers.into_iter().flatten().collect();
    times.sort_unstable();
    let count = times.len() as f64;
    let [p50, p99] = [50, 99].map(|percent| {
        times.get(times.len() * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    });
    vec![count / took, cpu * 1e6 / count, busy, p50, p99, 100.0 * (tried - count) / tried]
}

/// Mbit/s, processor seconds for a gigabyte and percent of the machine, on a long connection and on short ones, and
/// percent of the latter that failed.
fn bulk(middle: &Middle) -> Vec<f64> {
    let mut figures = Vec::new();
    let mut failed = 0.0;
    for bytes in [BULK_GB * 1_000_000_000, SHORT_BULK_MB * 1_000_000] {
        let times = 1_000_000_000_u64.div_ceil(bytes);
        let meter = Meter::start(middle);
        let done = (0..times).filter(|_| exchange(middle.address, bytes, Instant::now()).is_ok()).count();
        let [took, cpu, busy] = meter.read();
        let transferred = done as f64 * bytes as f64;
        figures.extend([transferred * 8e-6 / took, cpu * 1e9 / transferred, busy]);
        failed = 100.0 * (1.0 - done as f64 / times as f64);
    }
    figures.push(failed);
    figures
}

/// Asks for so many bytes, at least one, and reads them all. Gives the time from `begin` to the first of them.
fn exchange(address: SocketAddr, bytes: u64, begin: Instant) -> std::io::Result<Duration> {
    let mut request = [b'.'; REQUEST];
    request[..WORD.len()].copy_from_slice(WORD);
    request[WORD.len()..][..8].copy_from_slice(&bytes.to_be_bytes());
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&request)?;
    let mut block = vec![0; bytes.min(1 << 20) as usize];
    let (mut left, mut first) = (bytes, None);
    while left > 0 {
        let count = stream.read(&mut block)?;
        first.get_or_insert_with(|| begin.elapsed());
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        left -= count as u64;
    }
    Ok(first.unwrap_or_default())
}

/// Answers with as many bytes as it is asked for.
struct BackEnd {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl BackEnd {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("a listener");
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..BACK_END {
            let (listener, stop) = (listener.try_clone().expect("a descriptor"), Arc::clone(&stop));
            std::thread::spawn(move || {
                let block = vec![7; 1 << 20];
                while let Ok((stream, _)) = listener.accept() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Whoever looks whether it is there says nothing.
                    let _ = serve(stream, &block);
                }
            });
        }
        Self { address, stop }
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for _ in 0..BACK_END {
            let _ = TcpStream::connect(self.address);
        }
    }
}

fn serve(mut stream: TcpStream, block: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; REQUEST];
    stream.read_exact(&mut request)?;
    let mut left = request[WORD.len()..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    while left > 0 {
        let count = left.min(block.len() as u64) as usize;
        stream.write_all(&block[..count])?;
        left -= count as u64;
    }
    // The client closes first, as most do.
    stream.read(&mut request).map(|_| ())
}
