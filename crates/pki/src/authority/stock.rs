//! Our certificates between two stock OpenVPN processes that check each other with `remote-cert-tls`.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::SystemTime;

use super::*;
use crate::key::PrivateKey;
use crate::testing::{DAY, key, server};

struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
    log: String,
}

impl Running {
    /// The log until `text` occurs in it, or until the process has ended.
    fn log_until(&mut self, text: &str) -> &str {
        while !self.log.contains(text) && self.output.read_line(&mut self.log).unwrap() > 0 {}
        &self.log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts one end, which gives up ten seconds after its first packet at the latest.
fn openvpn(dir: &Path, own: &str, options: &[&str]) -> Running {
    let (certificate, key) = (format!("{own}.crt"), format!("{own}.key"));
    let mut child = Command::new("openvpn")
        .args(["--dev", "null", "--proto", "udp4", "--verb", "3", "--hand-window", "10", "--tls-exit"])
        .args(["--ca", "ca.pem", "--cert", &certificate, "--key", &key, "--dh", "none"])
        .args(options)
        .current_dir(dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("openvpn is installed");
    let output = BufReader::new(child.stdout.take().unwrap());
    Running { child, output, log: String::new() }
}

fn write_holder(dir: &Path, name: &str, certificate: &Certificate, key: &PrivateKey) {
    std::fs::write(dir.join(format!("{name}.crt")), certificate.to_pem()).unwrap();
    crate::files::write_secret(&dir.join(format!("{name}.key")), key.to_pkcs8_pem().unwrap().as_bytes())
        .unwrap();
}

/// Starts a server and a client with certificates of these profiles.
fn connect(authority: KeyKind, leaf: KeyKind, server: Profile, client: Profile) -> (Running, Running) {
    let dir = tempfile::tempdir().unwrap();
    let now = UnixTime::from_secs(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs());
    let authority = Authority::create("test CA", Box::new(key(authority)), now, 10 * DAY).unwrap();
    std::fs::write(dir.path().join("ca.pem"), authority.certificate().to_pem()).unwrap();
    for (name, profile) in [("server", server), ("client", client)] {
        let key = key(leaf);
        let request = Leaf { public_key: key.public_key(), common_name: name, profile, now, lifetime: DAY };
        write_holder(dir.path(), name, &authority.issue(&request).unwrap(), &key);
    }
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let options = ["--tls-server", "--local", "127.0.0.1", "--lport", &port, "--remote-cert-tls", "client"];
    let mut server = openvpn(dir.path(), "server", &options);
    server.log_until("link local");
    let options = ["--tls-client", "--remote", "127.0.0.1", &port, "--nobind", "--remote-cert-tls", "server"];
    let client = openvpn(dir.path(), "client", &options);
    // After this line both have read their files, which go with the directory.
    let mut ends = (server, client);
    ends.1.log_until("link local");
    ends
}

#[test]
fn stock_openvpn_accepts_our_certificates_on_both_sides() {
    for (authority, leaf) in [
        (KeyKind::P384, KeyKind::P256),
        (KeyKind::Ed448, KeyKind::Ed448),
        (KeyKind::Rsa(4096), KeyKind::P521),
    ] {
        let (mut server, mut client) = connect(authority, leaf, server(), Profile::Client);

        for end in [&mut server, &mut client] {
            let log = end.log_until("Initialization Sequence Completed");
            assert!(log.contains("VERIFY EKU OK"), "{authority}, {leaf}: {log}");
            assert!(log.contains("Sequence Completed"), "{authority}, {leaf}: {log}");
        }
    }
}

#[test]
fn stock_openvpn_refuses_our_certificates_for_the_wrong_use() {
    const REFUSED: &str = "error=unsuitable certificate purpose";

    let (mut refusing, _client) = connect(KeyKind::P256, KeyKind::P256, server(), server());
    let log = refusing.log_until(REFUSED);
    assert!(log.contains(REFUSED), "{log}");

    let (_server, mut refusing) = connect(KeyKind::P256, KeyKind::P256, Profile::Client, Profile::Client);
    let log = refusing.log_until(REFUSED);
    assert!(log.contains(REFUSED), "{log}");
}
