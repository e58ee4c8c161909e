//! `adit learn` with captures of stock clients, as tcpdump makes them.
//!
//! ```text
//!  client 0 ─── access ─── gateway 192.0.2.1 (no adit; tcpdump, and ports that listen)
//!           (may rewrite the type of service)
//! ```

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adit_capture::flows::{Transport, flows};
use adit_testbed::{Network, adit, eventually, require};
use adit_tests::{Ends, Starter};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(20);
/// Clients of a kind, for each transport.
const COUNT: usize = 5;
const PORT: u16 = 443;

struct Bench {
    network: Network,
    ends: Ends,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let network = Network::with_clients(1);
        let ends = Ends::listen(&network.gateway, &[PORT], &[PORT]);
        Self { network, ends, dir: tempfile::tempdir().unwrap() }
    }

    /// Captures what passes until so many flows have said something.
    fn capture(&mut self, name: &str, wanted: usize, act: impl FnOnce(&mut Self)) -> PathBuf {
        require("tcpdump");
        let path = self.dir.path().join(name);
        let mut command = Command::new("tcpdump");
        command.args(["-i", "front", "-U", "--immediate-mode", "-Z", "root", "udp or tcp", "-w"]).arg(&path);
        let mut tcpdump = self.network.gateway.spawn("tcpdump", &mut command);
        assert!(tcpdump.err.wait_since(0, "listening on", LONG).is_some(), "tcpdump does not listen");
        act(self);
        eventually(&format!("{wanted} flows in {name}"), LONG, || {
            let found = std::fs::read(&path).ok().and_then(|bytes| flows(&bytes).ok());
            found.is_some_and(|found| found.flows.iter().filter(|f| f.first_length > 0).count() >= wanted)
        });
        tcpdump.terminate();
        tcpdump.wait_for_end(LONG);
        path
    }

    fn clients(&mut self, kind: &Starter) {
        for number in 0..2 * COUNT {
            let to = self.network.gateway_address();
            let client = kind.start(self.network.client(0), to, PORT, number % 2 == 0);
            self.ends.wait();
            client.kill();
        }
    }

    fn capture_clients(&mut self, name: &str, kind: &Starter) -> PathBuf {
        self.capture(name, 2 * COUNT, |bench| bench.clients(kind))
    }
}

fn learn(arguments: &[&Path], options: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(adit()).arg("learn").args(arguments).args(options).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// What the kinds have under this name, for a transport.
fn column(answer: &Value, transport: &str, name: &str) -> Vec<String> {
    let lesson = answer["lessons"].as_array().unwrap().iter().find(|lesson| lesson["transport"] == transport);
    let kinds = lesson.unwrap()["kinds"].as_array().unwrap();
    kinds.iter().map(|kind| kind[name].as_str().unwrap_or("null").to_owned()).collect()
}

#[test]
fn the_published_patterns_are_found_whatever_the_type_of_service() {
    let mut bench = Bench::new();
    let (rsa, ecc) = (Starter::new("tls-auth SHA512"), Starter::new("tls-crypt"));
    let a = bench.capture_clients("rsa.pcap", &rsa);
    let b = bench.capture_clients("ecc.pcap", &ecc);
    bench.network.access.nft(
        "table ip tos { chain forward { type filter hook forward priority mangle; ip dscp set 0x12; }; }",
    );
    let b_tos = bench.capture_clients("ecc-tos.pcap", &ecc);
    let of = |path: &Path, tos: u8| {
        flows(&std::fs::read(path).unwrap()).unwrap().flows.iter().all(|f| f.tos == tos)
    };
    assert!(of(&b, 0) && of(&b_tos, 0x48));

    for b in [&b, &b_tos] {
        let (code, out, err) = learn(&[&a, b], &["--json"]);
        assert_eq!((code, err.as_str()), (Some(0), ""));
        let answer: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            column(&answer, "udp", "match"),
            ["{ udp-length = 86, first = 0x38 }", "{ udp-length = 54, first = 0x38 }"]
        );
        assert_eq!(
            column(&answer, "udp", "u32"),
            ["0&0xFF=0x72 && 25&0xFF=0x38", "0&0xFF=0x52 && 25&0xFF=0x38"]
        );
        assert_eq!(column(&answer, "tcp", "match"), ["{ tcp-length = 88 }", "{ tcp-length = 56 }"]);
        let haproxy = column(&answer, "tcp", "haproxy");
        assert!(haproxy[0].starts_with("{ req.len 88 }") && haproxy[1].starts_with("{ req.len 56 }"));
    }
    let (code, _, err) = learn(&[&b, &b_tos], &[]);
    assert_eq!(code, Some(3));
    assert!(
        err.starts_with("adit: nothing tells the captures apart") && err.contains("look the same"),
        "{err}"
    );
}

#[test]
fn a_background_is_counted_and_unusable_captures_are_named() {
    let mut bench = Bench::new();
    let a = bench.capture_clients("rsa.pcap", &Starter::new("tls-auth SHA512"));
    let b = bench.capture_clients("ecc.pcap", &Starter::new("tls-crypt"));
    let to = (bench.network.gateway_address(), 4444);
    let background = bench.capture("background.pcap", 60, |bench| {
        for length in 30..90 {
            let socket = bench.network.client(0).run_in(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
            socket.send_to(&vec![0x38; length], to).unwrap();
        }
    });
    let (code, out, _) = learn(&[&a, &b], &["--background", background.to_str().unwrap(), "--json"]);
    assert_eq!(code, Some(0));
    let answer: Value = serde_json::from_str(&out).unwrap();
    let udp = &answer["lessons"][0]["kinds"][0]["false_positives"];
    assert_eq!((&udp["basis"], &udp["matched"]), (&"counted".into(), &1.into()), "{udp}");
    let found = flows(&std::fs::read(&background).unwrap()).unwrap();
    let all = found.flows.iter().filter(|flow| flow.transport == Transport::Udp).count();
    assert_eq!(udp["of"], all);
    let (code, out, _) = learn(&[&a, &b], &[]);
    assert!(code == Some(0) && out.contains("{ udp-length = 86, first = 0x38 }"), "{out}");

    let damaged = bench.dir.path().join("damaged.pcap");
    std::fs::write(&damaged, b"no capture at all").unwrap();
    let (code, _, err) = learn(&[&a, &damaged], &[]);
    assert!(code == Some(1) && err.contains("damaged.pcap: this is no capture"), "{err}");
    assert_eq!(learn(&[&a, &bench.dir.path().join("missing")], &[]).0, Some(1));
    assert_eq!(learn(&[&a], &[]).0, Some(2));
}
