//! What adit's own client cannot do: it says so in one line, and leaves nothing behind.
//!
//! ```text
//!  client 0 ──┐ 198.18.0.2
//!  client 1 ──┼─ access ─── gateway: Debian's `openvpn` as a server
//!      …      ┘           192.0.2.1:1194
//! ```

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use adit_testbed::{AditClient, Host, Network, OpenVpnServer, ServerWrap, Snapshot, TestPki, adit, ping};

const SOON: Duration = Duration::from_secs(10);

/// The content of a block of a profile.
fn block(profile: &str, name: &str) -> String {
    let (_, rest) = profile.split_once(&format!("<{name}>\n")).expect("the block");
    rest.split_once(&format!("</{name}>")).expect("its end").0.to_owned()
}

/// Ends a client that was never connected; what it said last.
#[track_caller]
fn give_up(mut client: AditClient) -> String {
    client.process().terminate();
    assert_eq!(client.process_mut().wait_for_end(SOON).code(), Some(1));
    client.process().err.lines().pop().unwrap_or_default()
}

#[test]
fn whoever_does_not_fit_is_told_why_and_leaves_nothing_behind() {
    let network = Network::with_clients(4);
    let before: Vec<Snapshot> = (0..4).map(|client| Snapshot::take(network.client(client))).collect();
    let address = network.gateway_address();
    let start = |host, wrap| OpenVpnServer::start(host, address, false, wrap, &[]);
    let server = start(&network.gateway, ServerWrap::TlsCrypt);
    let profile = server.profile("ann");
    let stranger = TestPki::new("P-256");

    // A server that does not know the key does not answer, so that this takes a while.
    let other_key = {
        let elsewhere = Arc::new(Host::new("elsewhere"));
        elsewhere.ip("link set lo up\naddress add 192.0.2.1/32 dev lo");
        block(&start(&elsewhere, ServerWrap::TlsCrypt).profile("ann"), "tls-crypt")
    };
    let mut wrong_key = profile.replace(&block(&profile, "tls-crypt"), &other_key);
    let silent = AditClient::start(network.client(1), &wrong_key);
    wrong_key = wrong_key.replace("1194 udp", "1194 tcp-client");
    let (cert, key) = stranger.issue("ann", "clientAuth", "P-256");
    let unknown = AditClient::start(network.client(3), &server.profile_with(&cert, &key));
    let closed = AditClient::start(network.client(2), &wrong_key);

    let host = network.client(0);
    let wrong_ca = profile.replace(server.pki().ca().trim(), stranger.ca().trim());
    let wrong_name = format!("{profile}verify-x509-name friend name\n");
    for (profile, expected) in [
        (wrong_ca, "certificate not issued by the CA of this profile"),
        (wrong_name, "does not have the name that verify-x509-name asks for"),
    ] {
        let outcome = AditClient::run_to_end(host, &profile, &[]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let last = outcome.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("adit: no server is as the profile says: TLS: "), "{last}");
        assert!(last.contains(expected), "{last}");
        assert!(outcome.out.lines().last().is_some_and(|line| line.contains(expected)), "{outcome:?}");
    }
    let nowhere = AditClient::start(host, &profile.replace("192.0.2.1 1194", "no..where 1194"));
    nowhere.wait_for_log("no..where is not known: ", SOON);
    assert!(give_up(nowhere).contains("stopped before it was connected; at last: no..where is not known"));

    silent.wait_for_log("no answer for 10s", Duration::from_secs(20));
    let said = give_up(silent);
    assert!(said.contains("one that has not the profile's tls-auth or tls-crypt key"), "{said}");
    unknown.wait_for_log("the server may not accept the profile's certificate", Duration::from_secs(20));
    assert!(give_up(unknown).contains("no answer for 10s in the middle of the handshake"));
    closed.wait_for_log("Connection refused", SOON);
    give_up(closed);
    for (client, before) in before.iter().enumerate() {
        assert_eq!(*before, Snapshot::take(network.client(client)));
    }
    // And who fits gets in.
    AditClient::connect(host, &profile).stop();
}

#[test]
fn what_cannot_work_is_said_in_one_line_before_anything_is_changed() {
    let host = Arc::new(Host::new("refused"));
    let before = Snapshot::take(&host);
    let directory = tempfile::tempdir().expect("a directory");
    let pki = TestPki::new("P-256");
    let (cert, key) = pki.issue("ann", "clientAuth", "P-256");
    let (_, other_key) = pki.issue("bob", "clientAuth", "P-256");
    let profile = |key: &str, more: &str| {
        let ca = pki.ca();
        format!(
            "client\nremote 192.0.2.1 1194\n{more}<ca>\n{ca}</ca>\n<cert>\n{cert}</cert>\n<key>\n{key}</key>\n"
        )
    };
    let file = directory.path().join("ann.ovpn");
    let refusal = |prefix: &[&str], options: &[&str]| {
        let words = [prefix, &[adit().to_str().expect("UTF-8"), "connect"], options].concat();
        let output = host.output(Command::new(words[0]).args(&words[1..]).arg(&file));
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{err}");
        // Notes about the profile may stand before it.
        let said: Vec<&str> = err.lines().filter(|line| line.starts_with("adit: ")).collect();
        assert!(said.len() == 1 && err.trim_end().ends_with(said[0]), "one line says it: {err}");
        said[0].to_owned()
    };
    let path = file.display().to_string();
    let missing = refusal(&[], &[]);
    assert!(missing.contains(&format!("{path}: No such file")), "{missing}");

    let good = profile(&key, "");
    for (text, expected) in [
        (String::new(), "no \"remote\" line".to_owned()),
        (profile(&key, "dev tap0\n"), "line 3: dev: only tun interfaces are supported, not tap".into()),
        (
            profile(&key, "http-proxy 192.0.2.9 8080\n"),
            "line 3: http-proxy: proxies are not supported".into(),
        ),
        (profile(&key, "frobnicate\n"), "line 3: frobnicate: unknown directive; remove it".into()),
        (profile(&key, "tls-auth ta.key 1\n"), "line 3: tls-auth: ".into()),
        (profile(&other_key, ""), "the profile's certificates: ".into()),
        (profile("nonsense\n", ""), "<key> of the profile: ".into()),
        (good.replace(&cert, "nonsense\n"), "<cert> of the profile holds no certificate".into()),
        (good.replace(&pki.ca(), "nonsense\n"), "<ca> of the profile holds no certificate".into()),
        (profile(&key, "auth-user-pass\n"), "there is no terminal to ask at".into()),
        (good.replace("<ca>", "<ca"), "line 3: ".into()),
    ] {
        std::fs::write(&file, text).expect("a file");
        let said = refusal(&["setsid", "-w"], &[]);
        assert!(said.contains(&path) && said.contains(&expected), "{expected}: {said}");
    }

    std::fs::write(&file, &good).expect("a file");
    let said = refusal(&[], &["--transport", "tcp"]);
    assert!(said.contains("no remote of the profile is reached by tcp"), "{said}");
    let said = refusal(&[], &["--bind", "192.0.2.77"]);
    assert!(said.contains("192.0.2.77 is not an address of this machine"), "{said}");
    let said = refusal(&[], &["--bind", "eth77"]);
    assert!(said.contains("cannot connect by interface eth77: "), "{said}");
    let said = refusal(&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], &[]);
    assert!(said.contains("run adit as root or with CAP_NET_ADMIN"), "{said}");
    let hidden = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let said = refusal(&["unshare", "-m", "sh", "-c", hidden, "sh"], &[]);
    assert!(said.contains("/dev/net/tun does not exist"), "{said}");
    assert_eq!(before, Snapshot::take(&host));
}

#[test]
fn a_client_whose_interface_is_taken_away_says_so_and_ends() {
    let network = Network::with_clients(1);
    let host = network.client(0);
    let before = Snapshot::take(host);
    let address = network.gateway_address();
    let server = OpenVpnServer::start(&network.gateway, address, false, ServerWrap::TlsCrypt, &[]);
    let mut client = AditClient::connect(host, &server.profile("ann"));
    ping(host, OpenVpnServer::INNER).must_all_return();
    let interface = client.connected()["interface"].as_str().expect("a name").to_owned();

    host.ip(&format!("link delete {interface}"));

    assert_eq!(client.process_mut().wait_for_end(SOON).code(), Some(1));
    let last = client.process().err.lines().pop().unwrap_or_default();
    assert!(
        last.contains(&format!("no packet can pass {interface} any more: the tun interface is gone")),
        "{last}"
    );
    let left = before.difference(&Snapshot::take(host));
    assert!(left.is_empty(), "{left:#?}");
}
