//! The stock `openvpn` program, as client and as server.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::{Host, Process, TestPki, eventually, require};

/// What it says when it is connected.
const UP: &str = "Initialization Sequence Completed";
/// How long a connection may take, on a busy machine and with large keys.
const CONNECT: Duration = Duration::from_secs(40);

/// The program: `ADIT_OPENVPN` names another version of it.
fn program() -> PathBuf {
    match std::env::var_os("ADIT_OPENVPN") {
        Some(path) => path.into(),
        None => {
            require("openvpn");
            "openvpn".into()
        }
    }
}

/// A stock client.
#[derive(Debug)]
pub struct OpenVpnClient {
    host: Arc<Host>,
    process: Process,
    /// Holds the profile.
    _dir: TempDir,
}

impl OpenVpnClient {
    /// Starts a client with a profile and nothing else.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Arc<Host>, profile: &str) -> Self {
        Self::start_with(host, profile, &[])
    }

    /// Starts a client with options besides the profile's; they come later and so overrule it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn start_with(host: &Arc<Host>, profile: &str, options: &[&str]) -> Self {
        Self::launch(host, profile, options, None)
    }

    /// Starts a client whose TLS library offers only these signature algorithms, in OpenSSL's words. The system's
    /// configuration of OpenSSL decides that; there is no option of the client for it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn start_offering(host: &Arc<Host>, profile: &str, signatures: &str) -> Self {
        Self::launch(host, profile, &[], Some(&format!("SignatureAlgorithms = {signatures}")))
    }

    #[track_caller]
    fn launch(host: &Arc<Host>, profile: &str, options: &[&str], openssl: Option<&str>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("a file can be written");
            path
        };
        let mut command = Command::new(program());
        command.arg("--config").arg(write("profile.ovpn", profile)).args(options);
        if let Some(line) = openssl {
            let text = format!(
                "openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = default\n[default]\n{line}\n"
            );
            command.env("OPENSSL_CONF", write("openssl.cnf", &text));
        }
        let process = host.spawn(&format!("the client at {}", host.role()), &mut command);
        Self { host: Arc::clone(host), process, _dir: dir }
    }

    /// Starts a client and waits until it is connected.
    ///
    /// # Panics
    /// When it does not connect.
    #[must_use]
    #[track_caller]
    pub fn connect(host: &Arc<Host>, profile: &str) -> Self {
        Self::connect_with(host, profile, &[])
    }

    /// The same with options besides the profile's.
    ///
    /// # Panics
    /// When it does not connect.
    #[must_use]
    #[track_caller]
    pub fn connect_with(host: &Arc<Host>, profile: &str, options: &[&str]) -> Self {
        let client = Self::start_with(host, profile, options);
        client.wait_until_connected();
        client
    }

    /// Waits until it says for the first time that it is connected.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn wait_until_connected(&self) {
        self.process.wait_for(UP, CONNECT);
        self.wait_for_usable_addresses();
    }

    /// The kernel takes an IPv6 address into use a moment after it was set; before, packets leave with another.
    #[track_caller]
    fn wait_for_usable_addresses(&self) {
        eventually("an IPv6 address that is no longer tentative", CONNECT, || {
            let mut command = Command::new("ip");
            self.host.run(command.args(["-6", "-o", "address", "show", "tentative"])).is_empty()
        });
    }

    /// How often it has been connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.process.out.count(UP)
    }

    /// Waits until it is connected once more than at the mark.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    #[track_caller]
    pub fn wait_until_connected_since(&self, mark: usize, limit: Duration) {
        self.wait_for_since(mark, UP, limit);
        self.wait_for_usable_addresses();
    }

    /// A place in its log.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.process.out.mark()
    }

    /// Waits for a line with `text` in its log; the line.
    ///
    /// # Panics
    /// When it does not come within `limit`.
    #[track_caller]
    pub fn wait_for(&self, text: &str, limit: Duration) -> String {
        self.process.wait_for(text, limit)
    }

    /// The same for lines after a mark.
    ///
    /// # Panics
    /// When it does not come within `limit`.
    #[track_caller]
    pub fn wait_for_since(&self, mark: usize, text: &str, limit: Duration) -> String {
        self.process.wait_for_since(mark, text, limit)
    }

    /// The process with its log.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The process, to signal or wait for.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The machine it is on.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The options the server pushed last.
    ///
    /// # Panics
    /// When it pushed none.
    #[must_use]
    #[track_caller]
    pub fn pushed(&self) -> Vec<String> {
        let lines = self.process.out.lines();
        let reply = lines.iter().rev().find_map(|line| {
            let (_, reply) = line.split_once("'PUSH_REPLY,")?;
            reply.strip_suffix('\'')
        });
        let reply = reply.unwrap_or_else(|| panic!("{} got no PUSH_REPLY", self.process.name()));
        reply.split(',').map(str::to_owned).collect()
    }

    /// The inner IPv4 address that was pushed.
    ///
    /// # Panics
    /// When none was pushed.
    #[must_use]
    #[track_caller]
    pub fn inner4(&self) -> IpAddr {
        self.pushed_address("ifconfig ")
    }

    /// The inner IPv6 address that was pushed.
    ///
    /// # Panics
    /// When none was pushed.
    #[must_use]
    #[track_caller]
    pub fn inner6(&self) -> IpAddr {
        self.pushed_address("ifconfig-ipv6 ")
    }

    #[track_caller]
    fn pushed_address(&self, option: &str) -> IpAddr {
        let pushed = self.pushed();
        let found =
            pushed.iter().find_map(|text| text.strip_prefix(option)?.split([' ', '/']).next()?.parse().ok());
        found.unwrap_or_else(|| panic!("no {option}was pushed: {pushed:?}"))
    }

    /// Ends it in order: it says goodbye to the server.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop(mut self) {
        self.process.terminate();
        self.process.wait_for_end(Duration::from_secs(15));
    }

    /// Kills it: it says nothing to anybody.
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn kill(mut self) {
        self.process.kill();
    }
}

/// What protects the control packets of an [`OpenVpnServer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerWrap {
    /// Nothing.
    None,
    /// tls-auth, with this digest.
    TlsAuth(&'static str),
    /// tls-crypt.
    TlsCrypt,
    /// tls-crypt-v2.
    TlsCryptV2,
}

/// What an [`OpenVpnServer`] is like.
#[derive(Debug, Clone, Copy)]
pub struct ServerSpec<'a> {
    /// The name in its certificate.
    pub name: &'a str,
    /// Kind of its key.
    pub key: &'a str,
    /// Its networks inside: 10.`net`.0.0/24 and fd`net`::/64; from 10 to 99.
    pub net: u8,
    /// Where it listens.
    pub listen: SocketAddr,
    /// TCP, or UDP.
    pub tcp: bool,
    /// What protects its control packets.
    pub wrap: ServerWrap,
    /// Options of the program; they come last and so overrule others.
    pub options: &'a [&'a str],
}

/// A stock server, with a CA of its own.
#[derive(Debug)]
pub struct OpenVpnServer {
    host: Arc<Host>,
    process: Process,
    arguments: Vec<String>,
    dir: TempDir,
    pki: TestPki,
    wrap: ServerWrap,
    listen: SocketAddr,
    tcp: bool,
}

impl OpenVpnServer {
    /// The port it listens on.
    pub const PORT: u16 = 1194;
    /// Its own address inside.
    pub const INNER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1));
    /// Its own IPv6 address inside.
    pub const INNER6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));

    /// Starts a server that listens on an address of `host` and waits until it does.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Arc<Host>, address: IpAddr, tcp: bool, wrap: ServerWrap, options: &[&str]) -> Self {
        let listen = SocketAddr::new(address, Self::PORT);
        Self::start_as(
            host,
            &ServerSpec { name: "foreign", key: "P-256", net: 77, listen, tcp, wrap, options },
        )
    }

    /// Starts a server and waits until it listens.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn start_as(host: &Arc<Host>, spec: &ServerSpec<'_>) -> Self {
        let &ServerSpec { name, key, net, listen, tcp, wrap, options } = spec;
        let dir = tempfile::tempdir().expect("a directory");
        let pki = TestPki::new("P-256");
        let (cert, key) = pki.issue(name, "serverAuth", key);
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).expect("a file can be written");
        };
        write("ca.pem", &pki.ca());
        write("server.pem", &cert);
        write("server.key", &key);
        let proto = match (tcp, listen.is_ipv6()) {
            (false, false) => "udp4",
            (false, true) => "udp6",
            (true, false) => "tcp4-server",
            (true, true) => "tcp6-server",
        };
        let (address_text, port) = (listen.ip().to_string(), listen.port().to_string());
        let (inner, inner6) = (format!("10.{net}.0.0"), format!("fd{net}::/64"));
        let mut arguments = vec!["--verb", "3", "--dev", "tun", "--proto", proto, "--local", &address_text];
        arguments.extend(["--port", &port, "--topology", "subnet"]);
        arguments.extend(["--server", &inner, "255.255.255.0", "--server-ipv6", &inner6]);
        arguments.extend(["--ca", "ca.pem", "--cert", "server.pem", "--key", "server.key", "--dh", "none"]);
        arguments.extend(["--keepalive", "1", "4", "--remote-cert-tls", "client", "--tls-server"]);
        match wrap {
            ServerWrap::None => {}
            ServerWrap::TlsAuth(digest) => {
                make_key(&dir, &["--genkey", "secret", "wrap.key"]);
                arguments.extend(["--tls-auth", "wrap.key", "0", "--auth", digest]);
            }
            ServerWrap::TlsCrypt => {
                make_key(&dir, &["--genkey", "secret", "wrap.key"]);
                arguments.extend(["--tls-crypt", "wrap.key"]);
            }
            ServerWrap::TlsCryptV2 => {
                make_key(&dir, &["--genkey", "tls-crypt-v2-server", "wrap.key"]);
                let client = ["--tls-crypt-v2", "wrap.key", "--genkey", "tls-crypt-v2-client", "client.key"];
                make_key(&dir, &client);
                arguments.extend(["--tls-crypt-v2", "wrap.key"]);
            }
        }
        if !tcp {
            arguments.extend(["--explicit-exit-notify", "1"]);
        }
        arguments.extend(options);
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let process = Self::launch(host, &dir, &arguments);
        Self { host: Arc::clone(host), process, arguments, dir, pki, wrap, listen, tcp }
    }

    #[track_caller]
    fn launch(host: &Arc<Host>, dir: &TempDir, arguments: &[String]) -> Process {
        let mut command = Command::new(program());
        let process = host.spawn("the foreign server", command.current_dir(dir.path()).args(arguments));
        process.wait_for(UP, CONNECT);
        process
    }

    /// Kills it, so that nobody is told, and starts it again.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.process.kill();
        self.process = Self::launch(&self.host, &self.dir, &self.arguments);
    }

    /// A profile for a client of it, with a certificate in this name.
    ///
    /// # Panics
    /// When OpenSSL makes no certificate.
    #[must_use]
    pub fn profile(&self, name: &str) -> String {
        let (cert, key) = self.pki.issue(name, "clientAuth", "P-256");
        self.profile_with(&cert, &key)
    }

    /// A profile with this certificate and key.
    ///
    /// # Panics
    /// When a file cannot be read.
    #[must_use]
    pub fn profile_with(&self, cert: &str, key: &str) -> String {
        let proto = if self.tcp { "tcp-client" } else { "udp" };
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).expect("a key file");
        let wrap = match self.wrap {
            ServerWrap::None => String::new(),
            ServerWrap::TlsAuth(digest) => {
                format!("auth {digest}\nkey-direction 1\n<tls-auth>\n{}</tls-auth>\n", read("wrap.key"))
            }
            ServerWrap::TlsCrypt => format!("<tls-crypt>\n{}</tls-crypt>\n", read("wrap.key")),
            ServerWrap::TlsCryptV2 => format!("<tls-crypt-v2>\n{}</tls-crypt-v2>\n", read("client.key")),
        };
        format!(
            "client\ndev tun\nnobind\nremote {} {} {proto}\nremote-cert-tls server\nverb 3\n{wrap}\
             <ca>\n{}</ca>\n<cert>\n{cert}</cert>\n<key>\n{key}</key>\n",
            self.listen.ip(),
            self.listen.port(),
            self.pki.ca(),
        )
    }

    /// A profile for a client that dials `remote` instead.
    ///
    /// # Panics
    /// When OpenSSL makes no certificate.
    #[must_use]
    pub fn profile_to(&self, name: &str, remote: SocketAddr) -> String {
        let own = format!("remote {} {}", self.listen.ip(), self.listen.port());
        self.profile(name).replace(&own, &format!("remote {} {}", remote.ip(), remote.port()))
    }

    /// The file with the key of its wrap.
    #[must_use]
    pub fn wrap_key(&self) -> PathBuf {
        self.dir.path().join("wrap.key")
    }

    /// The CA behind it.
    #[must_use]
    pub fn pki(&self) -> &TestPki {
        &self.pki
    }

    /// The process with its log.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The process, to signal or wait for.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn make_key(dir: &TempDir, arguments: &[&str]) {
    let output = Command::new(program()).current_dir(dir.path()).args(arguments).output();
    let output = output.expect("openvpn runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
