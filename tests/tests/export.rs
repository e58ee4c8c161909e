//! What `adit export` writes, in force: real first packets end at the server of the right identity.
//!
//! ```text
//!  client 0 ─── access ─── gateway 192.0.2.1 (no adit; the exported rules, HAProxy, and ports that listen)
//!           (may rewrite the type of service)
//! ```

use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use adit_testbed::{Network, Process, adit, require};
use adit_tests::{Ends, Starter};

const LONG: Duration = Duration::from_secs(20);
/// What the dialled ports are taken from: 5050-5100 is the entrance.
const DIALLED: [u16; 6] = [5050, 5060, 5061, 5062, 5063, 5100];

const IDENTITIES: &str = r#"
[tunnel]
pool4 = ["10.88.0.0/16"]
[[identity]]
name = "rsa"
key = "RSA-2048"
wrap = "tls-auth"
auth = "SHA512"
[[identity]]
name = "ecc"
key = "secp521r1"
wrap = "tls-crypt"
port = 5060
[[identity]]
name = "ed25519"
key = "Ed25519"
wrap = "tls-crypt"
port = 5061
[[identity]]
name = "ed448"
key = "Ed448"
wrap = "tls-crypt"
port = 5062
[[entrance]]
address = "192.0.2.1"
udp = "5050-5100"
tcp = "5050-5100"
"#;

/// A host without adit, and a client.
struct Bench {
    network: Network,
    dir: tempfile::TempDir,
    ends: Ends,
    haproxy: Option<Process>,
}

impl Bench {
    fn new(udp: &[u16], tcp: &[u16]) -> Self {
        let network = Network::with_clients(1);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("adit.toml"), IDENTITIES).unwrap();
        let ends = Ends::listen(&network.gateway, udp, tcp);
        Self { network, dir, ends, haproxy: None }
    }

    fn address(&self) -> IpAddr {
        self.network.gateway_address()
    }

    /// What a command writes, as a file.
    fn export(&self, arguments: &[&str]) -> PathBuf {
        let mut command = Command::new(adit());
        command.arg("-c").arg(self.dir.path().join("adit.toml")).arg("export").args(arguments);
        let text = self.network.gateway.run(&mut command);
        let path = self.dir.path().join("rules");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Puts rules in force with the program they are for.
    fn load(&self, program: &[&str], arguments: &[&str]) {
        let (program, options) = program.split_first().unwrap();
        require(program);
        let path = self.export(arguments);
        self.network.gateway.run(Command::new(program).args(options).arg(path));
    }

    /// Runs HAProxy with the exported configuration.
    fn run_haproxy(&mut self, arguments: &[&str]) {
        require("haproxy");
        let path = self.export(&[&["haproxy"], arguments].concat());
        let kept = self.dir.path().join("haproxy.cfg");
        std::fs::rename(path, &kept).unwrap();
        self.network.gateway.run(Command::new("haproxy").args(["-c", "-f"]).arg(&kept));
        let mut command = Command::new("haproxy");
        let process = self.network.gateway.spawn("HAProxy", command.args(["-db", "-f"]).arg(&kept));
        let address = (self.address(), 443);
        adit_testbed::eventually("HAProxy listens", LONG, || {
            self.network.client(0).run_in(|| TcpStream::connect(address)).is_ok()
        });
        self.haproxy = Some(process);
    }

    /// Where the first packet of a new client ends.
    fn landing(&mut self, kind: &Starter, port: u16, tcp: bool) -> u16 {
        let client = kind.start(self.network.client(0), self.network.gateway_address(), port, tcp);
        let (end, bytes) = self.ends.wait();
        client.kill();
        let opcode = bytes.get(if tcp { 2 } else { 0 });
        assert_eq!(opcode, Some(&0x38), "{bytes:02x?}");
        end
    }

    /// Where bytes over TCP end.
    fn landing_of(&mut self, port: u16, bytes: &[u8]) -> u16 {
        let address = (self.network.gateway_address(), port);
        let mut stream = self.network.client(0).run_in(|| TcpStream::connect(address)).unwrap();
        stream.write_all(bytes).unwrap();
        let (end, found) = self.ends.wait();
        assert_eq!(found, bytes);
        end
    }
}

struct Kinds {
    rsa: Starter,
    ecc: Starter,
}

fn kinds() -> Kinds {
    Kinds { rsa: Starter::new("tls-auth SHA512"), ecc: Starter::new("tls-crypt") }
}

/// UDP by the first packet: tls-auth wherever it dials; tls-crypt where no other with it has its port.
fn udp_is_led_by_packet(bench: &mut Bench, kinds: &Kinds) {
    for port in DIALLED {
        assert_eq!(bench.landing(&kinds.rsa, port, false), 443, "tls-auth to {port}");
        let expected = if [5061, 5062].contains(&port) { port } else { 5060 };
        assert_eq!(bench.landing(&kinds.ecc, port, false), expected, "tls-crypt to {port}");
    }
}

#[test]
fn by_port_each_stage_leads_to_the_servers_of_its_ports() {
    let kinds = kinds();
    for (stage, apart) in [("2", &[][..]), ("6", &[5060]), ("10", &[5060, 5061, 5062])] {
        let mut bench = Bench::new(&[443, 5060, 5061, 5062], &[443, 5060, 5061, 5062]);
        bench.load(&["iptables-restore", "--noflush"], &["iptables-v1", "--stage", stage]);
        for (tcp, port) in [false, true].into_iter().flat_map(|tcp| DIALLED.map(|port| (tcp, port))) {
            let expected = if apart.contains(&port) { port } else { 443 };
            let kind = if port % 2 == 0 { &kinds.rsa } else { &kinds.ecc };
            assert_eq!(bench.landing(kind, port, tcp), expected, "stage {stage}, tcp {tcp}, {port}");
        }
    }
}

#[test]
fn by_packet_udp_is_led_whatever_the_type_of_service() {
    let kinds = kinds();
    let loaders: [(&[&str], &str); 3] = [
        (&["iptables-restore", "--noflush"], "iptables-v2"),
        (&["iptables-legacy-restore", "--noflush"], "iptables-v2"),
        (&["nft", "-f"], "nft"),
    ];
    for (number, (program, format)) in loaders.into_iter().enumerate() {
        let mut bench = Bench::new(&[443, 5060, 5061, 5062], &[]);
        if number != 1 {
            bench.network.access.nft(
                "table ip tos { chain forward { type filter hook forward priority mangle; ip dscp set 0x12; }; }",
            );
        }
        bench.load(program, &[format]);
        udp_is_led_by_packet(&mut bench, &kinds);
    }
}

#[test]
fn by_packet_tcp_is_led_through_haproxy() {
    let kinds = kinds();
    let cases: [(&[&str], &str, &[&str]); 2] =
        [(&["nft", "-f"], "nft", &["--measure"]), (&["iptables-restore", "--noflush"], "iptables-v2", &[])];
    for (program, format, options) in cases {
        let mut bench = Bench::new(&[], &[22, 1194, 5060, 5061, 5062, 8443]);
        bench.load(program, &[format]);
        bench.run_haproxy(options);
        for port in DIALLED {
            let direct = [5061, 5062].contains(&port).then_some(port);
            assert_eq!(bench.landing(&kinds.rsa, port, true), direct.unwrap_or(1194), "tls-auth to {port}");
            assert_eq!(bench.landing(&kinds.ecc, port, true), direct.unwrap_or(5060), "tls-crypt to {port}");
        }
        assert_eq!(bench.landing_of(5050, b"SSH-2.0-a client\r\n"), 22);
        let mut tls = Command::new("openssl");
        tls.args(["s_client", "-connect", &format!("{}:5100", bench.address())]);
        let tls = bench.network.client(0).spawn("the TLS client", &mut tls);
        let (end, hello) = bench.ends.wait();
        assert_eq!((end, &hello[..2]), (8443, &[0x16, 3][..]));
        drop(tls);
        if options.is_empty() {
            continue;
        }
        let haproxy = bench.haproxy.as_ref().unwrap();
        haproxy.wait_for("req.len=88 openvpn_rsa", LONG);
        haproxy.wait_for("req.len=56 openvpn_ecc", LONG);
    }
}

#[test]
fn options_that_do_not_belong_together_and_useless_plans_are_refused() {
    let bench = Bench::new(&[], &[]);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(adit());
        command.arg("-c").arg(bench.dir.path().join("adit.toml")).arg("export").args(arguments);
        let output = bench.network.gateway.output(&mut command);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(&["nft", "--stage", "2"]).0, Some(2));
    assert_eq!(run(&["iptables-v1", "--measure"]).0, Some(2));
    assert_eq!(run(&["iptables-v1", "--stage", "4"]).0, Some(2));
    let text = IDENTITIES.replace("port = 5062", "port = 5061");
    std::fs::write(bench.dir.path().join("adit.toml"), text).unwrap();
    let (code, why) = run(&["nft"]);
    assert!(code == Some(1) && why.contains("ed25519 and ed448 both have port 5061"), "{why}");
}
