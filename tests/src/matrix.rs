//! One case of the matrix: a stock client in one combination of everything that can be combined.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use adit_testbed::{Gateway, Host, Network, OpenVpnClient, eventually, ping_with};

/// All data ciphers, as the configuration lists them.
pub const CIPHERS: [&str; 7] = [
    "AES-256-GCM",
    "AES-192-GCM",
    "AES-128-GCM",
    "CHACHA20-POLY1305",
    "AES-256-CBC",
    "AES-192-CBC",
    "AES-128-CBC",
];

/// Bytes of a ping that fits, one that just fits into an outer packet or just not, and one that does not fit the
/// tunnel's MTU.
const SIZES: [&str; 3] = ["56", "1400", "3000"];

/// How a client is set up.
#[derive(Debug, Clone)]
pub struct Case {
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// IPv6 outside.
    pub ipv6: bool,
    /// The identity to connect to.
    pub identity: String,
    /// Kind of the identity's key.
    pub key: &'static str,
    /// The only data cipher of the client.
    pub cipher: &'static str,
    /// `1.2` or `1.3`.
    pub tls: &'static str,
    /// Further options.
    pub options: Vec<String>,
}

/// What a worker needs for its cases: machines to put clients on, and a user.
#[derive(Debug)]
pub struct Run<'a> {
    network: &'a Network,
    gateway: &'a Gateway,
    user: String,
    hosts: VecDeque<Arc<Host>>,
    /// Clients that are saying goodbye.
    leaving: Vec<OpenVpnClient>,
}

impl<'a> Run<'a> {
    /// Takes the clients' machines `hosts` and adds a user with a device.
    #[must_use]
    pub fn new(
        network: &'a Network,
        gateway: &'a Gateway,
        user: &str,
        hosts: std::ops::Range<usize>,
    ) -> Self {
        gateway.ok(&["user", "add", user, "--device", "laptop"]);
        let hosts = hosts.map(|number| Arc::clone(network.client(number))).collect();
        Self { network, gateway, user: user.to_owned(), hosts, leaving: Vec::new() }
    }
}

/// Runs a case: it connects, everything passes, the gateway shows it as it is, and sees it go.
///
/// # Panics
/// When something is not as it should be.
pub fn run(run: &mut Run<'_>, case: &Case) {
    let (network, gateway) = (run.network, run.gateway);
    let host = run.hosts.pop_front().expect("a machine");
    run.hosts.push_back(Arc::clone(&host));
    while let Some(at) = run.leaving.iter().position(|client| Arc::ptr_eq(client.host(), &host)) {
        run.leaving.swap_remove(at).process_mut().wait_for_end(Duration::from_secs(15));
    }
    let remote = if case.ipv6 { network.gateway_address6() } else { network.gateway_address() }.to_string();
    let options = ["--identity", &case.identity, "--transport", case.transport, "--remote", &remote];
    let profile = gateway.profile(&run.user, "laptop", &options);
    let mut options = vec!["--data-ciphers", case.cipher];
    if case.tls == "1.2" {
        options.extend(["--tls-version-max", "1.2"]);
    }
    options.extend(case.options.iter().map(String::as_str));

    let client = OpenVpnClient::connect_with(&host, &profile, &options);

    let inside6 = client.inner6().to_string();
    for to in ["10.88.0.1", "2001:db8:88::1", "203.0.113.2", "2001:db8:113::2"] {
        for size in SIZES {
            let to = to.parse().expect("an address");
            ping_with(&host, to, &["-c", "1", "-W", "10", "-s", size]).must_all_return();
        }
    }
    let session = gateway.wait_for_session(&run.user, Duration::from_secs(10));
    assert_eq!(session["device"], "laptop");
    assert_eq!(session["protocol"], "openvpn");
    assert_eq!(session["identity"], case.identity.as_str());
    assert_eq!(session["transport"], case.transport);
    assert_eq!(session["cipher"], case.cipher);
    assert_eq!(session["local_address"], remote.as_str());
    assert_eq!(session["local_port"], 1194);
    assert_eq!(session["inner4"], client.inner4().to_string().as_str());
    assert_eq!(session["inner6"], inside6.as_str());
    let tls = session["tls"].as_str().expect("the TLS version");
    assert!(tls.starts_with(&format!("TLSv{}", case.tls)), "{tls}");
    // Four destinations, three sizes, both ways.
    for counter in ["rx_bytes", "tx_bytes"] {
        assert!(session[counter].as_u64().is_some_and(|bytes| bytes > 4 * 4456), "{session}");
    }
    let control = client.wait_for("Control Channel: TLSv", Duration::ZERO);
    assert!(control.contains(&format!("Control Channel: TLSv{}", case.tls)), "{control}");
    // OpenVPN 2.5 and older do not describe certificates.
    if client.process().out.find(" OpenVPN 2.6").is_some() {
        assert!(control.contains(certificate_line(case.key)), "{control}");
    }

    client.process().terminate();
    eventually("the end of the session", Duration::from_secs(5), || gateway.session_of(&run.user).is_none());
    run.leaving.push(client);
}

/// How a stock client describes a certificate with such a key.
///
/// # Panics
/// When there is no such kind.
#[must_use]
pub fn certificate_line(key: &str) -> &'static str {
    match key {
        "RSA-2048" => "peer certificate: 2048 bits RSA",
        "RSA-4096" => "peer certificate: 4096 bits RSA",
        "RSA-8192" => "peer certificate: 8192 bits RSA",
        "P-256" => "peer certificate: 256 bits ECprime256v1",
        "P-384" => "peer certificate: 384 bits ECsecp384r1",
        "secp521r1" => "peer certificate: 521 bits ECsecp521r1",
        "Ed25519" => "peer certificate: 256 bits ED25519",
        "Ed448" => "peer certificate: 456 bits ED448",
        other => panic!("{other} is no kind of key"),
    }
}
