//! Connections of a foreign back end, through adit's entrance or HAProxy: a short exchange on each, and bulk on one.
//!
//! ```text
//!  clients ── loopback ── adit's entrance, or haproxy ── loopback ── back end
//! ```
//!
//! Both look at the first bytes before they choose the back end, with one thread each, and take turns within a run.
//! Clients and back end are this process: what counts is the processor time of the one in the middle. Most of it is the
//! kernel's, for the packets of both connections, which are the same whoever is there.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adit_entrance::{Backend, BackendOptions, Classify, Flow, Judgement, Options, Reception};
use serde_json::json;

use crate::report::{Report, Table};
use crate::usage;

const HAPROXY: &str = "HAProxy";
const ADIT: &str = "adit";

/// What a client says first, before the number of bytes that it wants, and how long that is altogether.
const WORD: &[u8; 8] = b"foreign ";
const REQUEST: usize = 64;
/// Connections that are open at a time.
const CLIENTS: usize = 8;
/// Bytes of the answer on each of many connections.
const ANSWER: u64 = 64;
/// Transfers on one connection: a long one, and shorter ones, one after the other, that make a gigabyte.
const BULK_GB: u64 = 4;
const SHORT_BULK_MB: u64 = 10;

/// Measures and adds a table.
pub(crate) fn run(report: &mut Report, rounds: u32, seconds: u32) {
    let peers = [HAPROXY, ADIT];
    let mut figures = peers.map(|_| Vec::new());
    for round in 1..=rounds {
        for (peer, figures) in peers.iter().zip(&mut figures) {
            let figure = measure(peer, seconds);
            report.raw(&format!("{peer} demux {round}"), &json!(figure));
            figures.push(figure);
        }
    }
    let columns = [
        "connections/s",
        "us/connection",
        "p50 us",
        "p99 us",
        "Mbit/s",
        "s/GB",
        "short Mbit/s",
        "short s/GB",
    ];
    let mut table = Table::new(
        format!(
            "Connections of a foreign back end over loopback, {CLIENTS} at a time, then {BULK_GB} GB and {SHORT_BULK_MB} MB on one"
        ),
        &columns,
        "median (smallest-largest), then the ratio to the first row; processor time of the process in the middle alone; p50, p99: from connecting to the first byte of the answer",
    );
    for (peer, figures) in peers.iter().zip(&figures) {
        table.row(peer, figures);
    }
    report.table(table);
}

/// One turn of one peer: connections for so many seconds, then bulk.
fn measure(peer: &str, seconds: u32) -> Vec<f64> {
    let back_end = BackEnd::start();
    let middle =
        if peer == ADIT { Middle::adit(back_end.address) } else { Middle::haproxy(back_end.address) };
    exchange(middle.address, ANSWER);

    let (cpu, start) = (middle.cpu(), Instant::now());
    let client = || {
        let mut answers = Vec::new();
        while start.elapsed() < Duration::from_secs(u64::from(seconds)) {
            answers.push(exchange(middle.address, ANSWER));
        }
        answers
    };
    let mut answers: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    let (took, used) = (start.elapsed(), middle.cpu() - cpu);
    answers.sort_unstable();
    let count = answers.len() as f64;
    let mut figures = vec![count / took.as_secs_f64(), used.as_secs_f64() * 1e6 / count];
    figures.extend([50, 99].map(|percent| answers[answers.len() * percent / 100].as_secs_f64() * 1e6));

    for bytes in [BULK_GB * 1_000_000_000, SHORT_BULK_MB * 1_000_000] {
        let (cpu, start) = (middle.cpu(), Instant::now());
        let times = 1_000_000_000_u64.div_ceil(bytes);
        for _ in 0..times {
            exchange(middle.address, bytes);
        }
        let (took, used, bytes) = (start.elapsed(), middle.cpu() - cpu, (times * bytes) as f64);
        figures.push(bytes * 8e-6 / took.as_secs_f64());
        figures.push(used.as_secs_f64() * 1e9 / bytes);
    }
    figures
}

/// Asks for so many bytes, at least one, and reads them all. Gives the time from connecting to the first of them.
fn exchange(address: SocketAddr, bytes: u64) -> Duration {
    let mut request = [b'.'; REQUEST];
    request[..WORD.len()].copy_from_slice(WORD);
    request[WORD.len()..][..8].copy_from_slice(&bytes.to_be_bytes());
    let start = Instant::now();
    let mut stream = TcpStream::connect(address).expect("the one in the middle accepts");
    stream.write_all(&request).expect("it reads");
    let mut block = vec![0; bytes.min(1 << 20) as usize];
    let (mut left, mut first) = (bytes, None);
    while left > 0 {
        let count = stream.read(&mut block).expect("the back end answers");
        first.get_or_insert_with(|| start.elapsed());
        assert!(count > 0, "{left} of {bytes} bytes are missing");
        left -= count as u64;
    }
    first.unwrap_or_default()
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
        for _ in 0..CLIENTS {
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
        for _ in 0..CLIENTS {
            let _ = TcpStream::connect(self.address);
        }
    }
}

fn serve(mut stream: TcpStream, block: &[u8]) -> std::io::Result<()> {
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

/// The process that is measured.
struct Middle {
    child: Child,
    address: SocketAddr,
    directory: Option<PathBuf>,
}

impl Middle {
    fn adit(back_end: SocketAddr) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["relay", &back_end.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("its address");
        Self { child, address: line.trim().parse().expect("an address"), directory: None }
    }

    fn haproxy(back_end: SocketAddr) -> Self {
        // Nobody else takes it: the machine's own connections have other ports by then.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a port");
        let directory = std::env::temp_dir().join(format!("adit-bench-haproxy-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("haproxy.cfg");
        let config = format!(
            "global\n maxconn 4000\n nbthread 1\n\
             defaults\n mode tcp\n timeout connect 3s\n timeout client 1h\n timeout server 1h\n option splice-auto\n\
             frontend in\n bind {address}\n tcp-request inspect-delay 2s\n\
             acl known req.payload(0,8) -m str \"foreign \"\n\
             tcp-request content accept if known\n tcp-request content reject if {{ req.len ge 8 }} !known\n\
             use_backend back if known\n\
             backend back\n server back {back_end}\n"
        );
        std::fs::write(&file, config).expect("a file");
        let child = Command::new("haproxy").arg("-f").arg(&file).arg("-db").spawn();
        let middle =
            Self { child: child.expect("haproxy is installed"), address, directory: Some(directory) };
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "haproxy does not listen");
            std::thread::yield_now();
        }
        middle
    }

    fn cpu(&self) -> Duration {
        usage::cpu_of_threads_of(self.child.id())
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(directory) = &self.directory {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// Gives every connection that begins with the right word to one back end.
struct Foreign(Arc<Backend>);

impl Classify for Foreign {
    type Native = std::convert::Infallible;

    fn judge(&self, seen: &[u8], _: &Flow, _: bool) -> Judgement<Self::Native> {
        match seen.first_chunk() {
            None => Judgement::More,
            Some(WORD) => Judgement::Relay(Arc::clone(&self.0)),
            Some(_) => Judgement::Unknown,
        }
    }

    fn take(&self, native: Self::Native, _: TcpStream, _: Vec<u8>, _: Flow) {
        match native {}
    }
}

/// Is the one in the middle: says where it listens, and relays until its input ends.
pub(crate) fn relay(back_end: SocketAddr) {
    let backend = Backend::new(BackendOptions::new("back", back_end));
    let options = Options { max_undecided_per_network: 4096, ..Options::default() };
    let reception = Reception::start(options, Foreign(backend), Arc::new(|_| {})).expect("a thread");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("a listener");
    reception.listen(listener, 0, Duration::from_secs(2)).expect("a listener");
    let mut output = std::io::stdout();
    writeln!(output, "{address}").and_then(|()| output.flush()).expect("someone who listens");
    let _ = std::io::stdin().read(&mut [0]);
}
