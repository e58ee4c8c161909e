//! `adit classify`, and the decision behind it, with first packets of stock clients and of adit's own.
//!
//! ```text
//!  client 0 ─── access ─── gateway 192.0.2.1: ports 2000-2009, which only listen, and tcpdump;
//!                          a configuration with an identity for each port, and no adit running
//! ```

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use adit_classify::Transport;
use adit_gateway::classify::Judge;
use adit_testbed::{Gateway, Host, LightClient, Network, OpenVpnClient, Scale, adit, in_parallel, require};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(600);
const FIRST_PORT: u16 = 2000;
/// Name, wrap, evidence. Of each wrap that matters two that differ in nothing but their keys.
const IDENTITIES: [(&str, &str, &str); 10] = [
    ("auth256", "tls-auth SHA256", "tls-auth key verified"),
    ("auth256-twin", "tls-auth SHA256", "tls-auth key verified"),
    ("auth512", "tls-auth SHA512", "tls-auth key verified"),
    ("auth512-twin", "tls-auth SHA512", "tls-auth key verified"),
    ("crypt", "tls-crypt", "tls-crypt key verified"),
    ("crypt-twin", "tls-crypt", "tls-crypt key verified"),
    ("v2", "tls-crypt-v2", "tls-crypt-v2 key verified"),
    ("v2-twin", "tls-crypt-v2", "tls-crypt-v2 key verified"),
    ("auth1", "tls-auth SHA1", "tls-auth key verified"),
    ("plain", "none", "form of openvpn"),
];

fn port(identity: usize) -> u16 {
    FIRST_PORT + identity as u16
}

/// A gateway that does not run, and for each identity a profile with its port.
fn ten_identities(network: &Network) -> (Gateway, Vec<String>) {
    let gateway = Gateway::new(network);
    gateway.clear_identities();
    for (name, wrap, _) in IDENTITIES {
        gateway.add_identity(name, "P-256", wrap);
    }
    gateway.edit(|document| {
        let ports = format!("{}-{}", port(0), port(IDENTITIES.len() - 1));
        document["entrance"][0]["udp"] = toml_edit::value(ports.clone());
        document["entrance"][0]["tcp"] = toml_edit::value(ports);
    });
    let profile = |identity: usize| {
        let (name, ..) = IDENTITIES[identity];
        gateway.ok(&["user", "add", name, "--device", "d"]);
        let options = ["--identity", name, "--transport", "udp", "--port", &port(identity).to_string()];
        gateway.profile(name, "d", &options)
    };
    let profiles = (0..IDENTITIES.len()).map(profile).collect();
    (gateway, profiles)
}

/// Ports that take a first packet, say nothing, and hang up.
struct Swallow {
    _udp: Vec<UdpSocket>,
    tcp: Vec<(SocketAddr, JoinHandle<()>)>,
    ended: Arc<AtomicBool>,
    host: Arc<Host>,
}

impl Swallow {
    fn new(host: &Arc<Host>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let ports = || (0..IDENTITIES.len()).map(|identity| (Ipv4Addr::UNSPECIFIED, port(identity)));
        let udp = host.run_in(|| ports().map(|at| UdpSocket::bind(at).unwrap()).collect());
        let listen = |at| {
            let listener = TcpListener::bind(at).unwrap();
            let (address, ended) = (listener.local_addr().unwrap(), Arc::clone(&ended));
            (address, std::thread::spawn(move || swallow(&listener, &ended)))
        };
        let tcp = host.run_in(|| ports().map(listen).collect());
        Self { _udp: udp, tcp, ended, host: Arc::clone(host) }
    }
}

fn swallow(listener: &TcpListener, ended: &AtomicBool) {
    for mut stream in listener.incoming().map(Result::unwrap) {
        if ended.load(Ordering::Relaxed) {
            return;
        }
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_ok() {
            let _ = stream.read_exact(&mut vec![0; usize::from(u16::from_be_bytes(length))]);
        }
    }
}

impl Drop for Swallow {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for (address, thread) in self.tcp.drain(..) {
            let _ = self.host.run_in(|| TcpStream::connect(address));
            let _ = thread.join();
        }
    }
}

/// Captures the first packets of `processes` stock clients for each profile and transport, each of which makes
/// `attempts` attempts: with every one it is a new client to whoever listens.
fn capture(network: &Network, profiles: &[String], processes: usize, attempts: usize, path: &Path) {
    require("tcpdump");
    let mut command = Command::new("tcpdump");
    let ports = format!("dst portrange {}-{}", port(0), port(profiles.len() - 1));
    command.args(["-i", "front", "-U", "-B", "65536", "-Z", "root", &ports, "-w"]).arg(path);
    let mut tcpdump = network.gateway.spawn("tcpdump", &mut command);
    assert!(tcpdump.err.wait_since(0, "listening on", LONG).is_some(), "tcpdump does not listen");
    let _swallow = Swallow::new(&network.gateway);
    let attempts = attempts.to_string();
    let mut clients = Vec::new();
    for profile in profiles {
        for n in 0..2 * processes {
            let (proto, options) = match n % 2 {
                0 => ("udp", ["--hand-window", "1"]),
                _ => ("tcp-client", ["--connect-timeout", "5"]),
            };
            let profile = profile.replace(" udp\n", &format!(" {proto}\n"));
            let common = ["--dev", "null", "--connect-retry", "1", "1", "--connect-retry-max", &attempts];
            clients.push(OpenVpnClient::start_with(
                network.client(0),
                &profile,
                &[&common[..], &options].concat(),
            ));
        }
    }
    for client in &mut clients {
        client.process_mut().wait_for_end(LONG);
    }
    tcpdump.terminate();
    tcpdump.wait_for_end(LONG);
    let dropped = tcpdump.err.find("dropped by kernel").unwrap_or_default();
    assert!(dropped.starts_with("0 "), "tcpdump: {dropped}");
}

fn flows(answer: &Value) -> &Vec<Value> {
    answer["flows"].as_array().unwrap()
}

#[test]
fn every_first_packet_of_stock_clients_is_judged_to_be_its_identitys() {
    let network = Network::with_clients(1);
    let (gateway, profiles) = ten_identities(&network);
    let (processes, attempts) = Scale::get().pick((2, 3), (10, 54));
    let path = gateway.path("clients.pcap");
    capture(&network, &profiles, processes, attempts, &path);

    let answer = gateway.json(&["classify", path.to_str().unwrap()]);

    let mut right = BTreeMap::<(String, &str), usize>::new();
    for flow in flows(&answer) {
        let text = flow["flow"].as_str().unwrap();
        let (_, dialled) = text.rsplit_once(':').unwrap();
        let identity = usize::from(dialled.parse::<u16>().unwrap() - FIRST_PORT);
        let (name, _, evidence) = IDENTITIES[identity];
        let said = ["protocol", "verdict", "identity", "evidence"].map(|key| flow[key].as_str());
        assert_eq!(said, [Some("openvpn"), Some("identity"), Some(name), Some(evidence)], "{flow}");
        assert!(flow["service"].is_null() && flow["bytes"].as_u64() >= Some(14), "{flow}");
        *right.entry((text[..3].to_owned(), name)).or_default() += 1;
    }
    // A socket of a former attempt may have been drawn again: then both are one flow.
    let expected = (processes * attempts * 19).div_ceil(20);
    for (name, ..) in IDENTITIES {
        for transport in ["udp", "tcp"] {
            let count = right.get(&(transport.to_owned(), name)).copied().unwrap_or(0);
            assert!(count >= expected, "{count} flows of {name} over {transport}, {expected} expected");
        }
    }
    eprintln!("{} first packets of stock clients, each its identity's", flows(&answer).len());

    // Nobody's keys: the form is all that is known.
    let text = |arguments: &[&str]| {
        let output = Command::new(adit()).args(arguments).arg("classify").arg(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let by_form: Value = serde_json::from_str(&text(&["-c", "/nowhere/adit.toml", "--json"])).unwrap();
    assert_eq!(flows(&by_form).len(), flows(&answer).len());
    for flow in flows(&by_form) {
        assert_eq!(flow["protocol"], "openvpn", "{flow}");
        assert!(flow["verdict"].is_null() && flow["identity"].is_null(), "{flow}");
    }
    assert!(by_form["notes"][0].as_str().unwrap().contains("by form only"), "{}", by_form["notes"]);
    let table = text(&["-c", gateway.config().to_str().unwrap()]);
    assert!(table.starts_with("FLOW") && table.contains("tls-crypt-v2 key verified"), "{table}");
}

#[test]
fn no_first_packet_of_our_own_clients_is_taken_for_another_identitys() {
    let network = Network::with_clients(0);
    let (gateway, profiles) = ten_identities(&network);
    let clients: Vec<_> = profiles.iter().map(|profile| LightClient::new(profile)).collect();
    let judge = Judge::of(&gateway.config());
    assert!(judge.has_rules() && judge.notes().is_empty(), "{:?}", judge.notes());
    let server = SocketAddr::new(network.gateway_address(), 443);
    let count = Scale::get().pick(20_000, 1_000_000);
    let chunk = 1000;
    let wrong = in_parallel(&network.access, count / chunk, |number| {
        let mut wrong = Vec::new();
        for n in number * chunk..(number + 1) * chunk {
            let (identity, tcp) = (n % IDENTITIES.len(), n / IDENTITIES.len() % 2 == 1);
            let mut packet = clients[identity].first_packet(server, tcp);
            let transport = if tcp {
                let length = (packet.len() as u16).to_be_bytes();
                packet.splice(0..0, length);
                Transport::Tcp
            } else {
                Transport::Udp
            };
            let judged = judge.judge(transport, &packet, 443, false);
            if judged.identity.as_deref() != Some(IDENTITIES[identity].0) {
                wrong.push((IDENTITIES[identity].0, judged));
            }
        }
        wrong
    });
    let wrong: Vec<_> = wrong.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} of {count}, such as {:?}", wrong.len(), wrong.first());
}

#[test]
fn captures_of_both_formats_are_read_and_unusable_ones_named() {
    let classify = |file: &Path| {
        let mut command = Command::new(adit());
        let output =
            command.args(["-c", "/nowhere/adit.toml", "--json", "classify"]).arg(file).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), answer, String::from_utf8(output.stderr).unwrap())
    };
    let seeds = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds"));
    for (name, transport) in
        [("capture-udp-tls-auth", "udp"), ("capture-tcp-tls-crypt", "tcp"), ("capture-pcapng", "")]
    {
        let (code, answer, err) = classify(&seeds.join(name));
        assert!(code == Some(0) && err.is_empty() && !flows(&answer).is_empty(), "{name}: {answer} {err}");
        for flow in flows(&answer) {
            assert!(flow["flow"].as_str().unwrap().starts_with(transport), "{name}: {flow}");
            assert_eq!(flow["protocol"], "openvpn", "{name}: {flow}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("damaged.pcap");
    std::fs::write(&damaged, b"no capture at all").unwrap();
    for (path, why) in [(damaged, "this is no capture"), (dir.path().join("missing"), "No such file")] {
        let (code, _, err) = classify(&path);
        assert!(code == Some(1) && err.contains("cannot read") && err.contains(why), "{err}");
    }
}
