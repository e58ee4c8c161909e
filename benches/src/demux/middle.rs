//! The processes that stand between clients and back end, one at a time.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_entrance::{Backend, BackendOptions, Classify, Flow, Judgement, Options, Reception};

use super::{ANSWER, WORD, exchange};
use crate::usage::Group;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    HaProxy,
    Adit,
    /// One process for all connections.
    SslhSelect,
    /// A process for each connection.
    SslhFork,
}

impl Peer {
    pub(super) const ALL: [Self; 4] = [Self::HaProxy, Self::Adit, Self::SslhSelect, Self::SslhFork];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HaProxy => "HAProxy",
            Self::Adit => "adit",
            Self::SslhSelect => "sslh-select",
            Self::SslhFork => "sslh (fork)",
        }
    }
}

/// The processes of one peer, as long as it lives.
pub(super) struct Middle {
    child: Child,
    pub(super) address: SocketAddr,
    directory: PathBuf,
    group: Option<Group>,
}

impl Middle {
    /// Starts `peer` before `back_end`, and waits until it relays.
    pub(super) fn start(peer: Peer, back_end: SocketAddr) -> Self {
        let directory = std::env::temp_dir().join(format!("adit-bench-demux-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("config");
        // Nobody else takes it: the machine's own connections have other ports by then.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a port");
        let group = Group::new();
        let mut command = match peer {
            Peer::HaProxy => haproxy(&group, &file, address, back_end),
            Peer::Adit => {
                let program = std::env::current_exe().expect("this program");
                let mut command = group.command(&program);
                command.arg("relay").args([address, back_end].map(|address| address.to_string()));
                command
            }
            Peer::SslhSelect => sslh(&group, "sslh-select", &file, address, back_end),
            Peer::SslhFork => sslh(&group, "sslh", &file, address, back_end),
        };
        // The relay ends with its input; the others do not look at theirs.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a shell");
        let mut middle = Self { child, address, directory, group: Some(group) };
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(error) = exchange(address, ANSWER, Instant::now()) {
            let ended = middle.child.try_wait().expect("a child");
            assert!(ended.is_none(), "{}: {}; is it installed?", peer.name(), ended.unwrap_or_default());
            assert!(Instant::now() < end, "{} does not relay: {error}", peer.name());
            std::thread::yield_now();
        }
        middle
    }

    /// Processor time of all its processes so far.
    pub(super) fn cpu(&self) -> Duration {
        self.group.as_ref().map_or(Duration::ZERO, Group::cpu)
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        drop(self.group.take());
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn haproxy(group: &Group, file: &Path, address: SocketAddr, back_end: SocketAddr) -> Command {
    let config = format!(
        "global\n maxconn 4000\n nbthread 1\n\
         defaults\n mode tcp\n timeout connect 3s\n timeout client 1h\n timeout server 1h\n option splice-auto\n\
         frontend in\n bind {address}\n tcp-request inspect-delay 2s\n\
         acl known req.payload(0,8) -m str \"foreign \"\n\
         tcp-request content accept if known\n tcp-request content reject if {{ req.len ge 8 }} !known\n\
         use_backend back if known\n\
         backend back\n server back {back_end}\n"
    );
    std::fs::write(file, config).expect("a file");
    let mut command = group.command(Path::new("haproxy"));
    command.arg("-f").arg(file).arg("-db");
    command
}

/// `program` is one of the two that Debian's package has. Neither writes a line for each connection, as nobody else does.
fn sslh(group: &Group, program: &str, file: &Path, address: SocketAddr, back_end: SocketAddr) -> Command {
    let at = |address: SocketAddr| format!("host: \"{}\"; port: \"{}\";", address.ip(), address.port());
    let config = format!(
        "foreground: true;\nnumeric: true;\ntimeout: 2;\nlisten: ( {{ {} }} );\n\
         protocols: ( {{ name: \"regex\"; {} regex_patterns: [ \"^foreign \" ]; log_level: 0; }} );\n",
        at(address),
        at(back_end)
    );
    std::fs::write(file, config).expect("a file");
    let mut command = group.command(Path::new(program));
    command.arg("-F".to_owned() + &file.to_string_lossy()).stderr(Stdio::null());
    command
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

/// Is the one in the middle: listens at `address`, and relays until its input ends.
pub(crate) fn relay(address: SocketAddr, back_end: SocketAddr) {
    let backend = Backend::new(BackendOptions::new("back", back_end));
    let options = Options { max_undecided_per_network: 4096, ..Options::default() };
    let reception = Reception::start(options, Foreign(backend), Arc::new(|_| {})).expect("a thread");
    let listener = TcpListener::bind(address).expect("its port");
    reception.listen(listener, 0, Duration::from_secs(2)).expect("a listener");
    let _ = std::io::stdin().read(&mut [0]);
}
