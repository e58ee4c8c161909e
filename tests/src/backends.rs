//! Programs behind the gateway's ports: openvpn, sshd, nginx, stunnel and haproxy as Debian has them, each with files of its own.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_testbed::{
    Gateway, Host, OpenVpnServer, Process, ServerSpec, ServerWrap, TestPki, eventually, eventually_some,
    require,
};
use tempfile::TempDir;

const START: Duration = Duration::from_secs(20);

/// A program and the directory of its files.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    dir: TempDir,
}

impl Daemon {
    /// The process with its log.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// A file of it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Kills it.
    ///
    /// # Panics
    /// When it has ended.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        write(&dir.path().join(name), text);
    }
    dir
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file can be written");
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).expect("a mode can be set");
}

/// `sshd` that lets nobody in but who has the key `user` beside its files.
///
/// # Panics
/// When it does not start.
#[must_use]
#[track_caller]
pub fn sshd(host: &Host, listen: SocketAddr) -> Daemon {
    require("sshd");
    let dir = directory(&[]);
    let path = dir.path().display();
    for key in ["host", "user"] {
        let mut keygen = Command::new("ssh-keygen");
        host.run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.path().join(key)));
    }
    // Where it drops its rights to; it wants the directory to be there.
    std::fs::create_dir_all("/run/sshd").expect("a directory");
    let text = format!(
        "ListenAddress {listen}\nHostKey {path}/host\nAuthorizedKeysFile {path}/user.pub\nPidFile none\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nAllowTcpForwarding yes\n\
         LogLevel VERBOSE\n"
    );
    write(&dir.path().join("config"), &text);
    let mut command = Command::new("/usr/sbin/sshd");
    let process = host.spawn("sshd", command.args(["-D", "-e", "-f"]).arg(dir.path().join("config")));
    assert!(process.err.wait_since(0, "Server listening", START).is_some(), "{}", process.err.tail());
    Daemon { process, dir }
}

/// A client of [`sshd`] with its key, which dials `server`.
#[must_use]
pub fn ssh(sshd: &Daemon, server: SocketAddr) -> Command {
    let mut command = Command::new("ssh");
    command.arg("-i").arg(sshd.path("user")).args(["-p", &server.port().to_string(), "-F", "none"]);
    for option in
        ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=10"]
    {
        command.args(["-o", option]);
    }
    command.arg(format!("root@{}", server.ip()));
    command
}

/// `nginx` that answers each request over TLS with `name`, and logs "`name` client CLIENT SNI ALPN". With `proxied` it
/// wants a PROXY header and the client is whom that names.
///
/// # Panics
/// When it does not start.
#[must_use]
#[track_caller]
pub fn nginx(host: &Host, name: &str, listen: SocketAddr, proxied: bool) -> Daemon {
    require("nginx");
    let (cert, key) = TestPki::new("P-256").issue(name, "serverAuth", "P-256");
    let dir = directory(&[("cert.pem", &cert), ("key.pem", &key)]);
    let (header, client) =
        if proxied { (" proxy_protocol", "proxy_protocol_addr") } else { ("", "remote_addr") };
    let text = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr notice;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
         client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
         log_format seen '{name} client ${client} $ssl_server_name $ssl_alpn_protocol';\n\
         access_log access.log seen;\n\
         server {{ listen {listen} ssl http2{header};\n\
         ssl_certificate cert.pem; ssl_certificate_key key.pem;\n\
         location / {{ return 200 \"{name}\\n\"; }} }} }}\n"
    );
    write(&dir.path().join("nginx.conf"), &text);
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir.path()).args(["-c", "nginx.conf", "-e", "stderr"]);
    let process = host.spawn("nginx", &mut command);
    wait_until_listening(host, listen);
    Daemon { process, dir }
}

/// `stunnel`, as a server that ends TLS for `connect`, or as a client that brings what `accept` gets into TLS.
///
/// # Panics
/// When it does not start.
#[must_use]
#[track_caller]
pub fn stunnel(host: &Host, client: Option<&str>, accept: SocketAddr, connect: SocketAddr) -> Daemon {
    require("stunnel4");
    let (cert, key) = TestPki::new("P-256").issue("stunnel", "serverAuth", "P-256");
    let dir = directory(&[("cert.pem", &cert), ("key.pem", &key)]);
    let path = dir.path().display();
    let side = match client {
        Some(sni) => format!("client = yes\nsni = {sni}"),
        None => format!("cert = {path}/cert.pem\nkey = {path}/key.pem"),
    };
    let text = format!(
        "foreground = yes\npid =\nsyslog = no\n[openvpn]\n{side}\naccept = {accept}\nconnect = {connect}\n"
    );
    write(&dir.path().join("config"), &text);
    let mut command = Command::new("stunnel4");
    let process = host.spawn("stunnel", command.arg(dir.path().join("config")));
    wait_until_listening(host, accept);
    Daemon { process, dir }
}

/// What a web server says over TLS to a client that asks for `name`; `None` when there is no answer.
///
/// # Panics
/// When curl is not there.
#[must_use]
pub fn curl(from: &Host, server: SocketAddr, name: &str, options: &[&str]) -> Option<String> {
    require("curl");
    let port = server.port();
    let resolve = format!("{name}:{port}:{}", server.ip());
    let mut command = Command::new("curl");
    command.args(["-sk", "--max-time", "10", "--resolve", &resolve]).args(options);
    let output = from.output(command.arg(format!("https://{name}:{port}/")));
    output.status.success().then(|| String::from_utf8(output.stdout).expect("text").trim().to_owned())
}

/// HAProxy at 192.0.2.254, before `server`, with these options of the server's line; its process and files.
///
/// # Panics
/// When it does not start.
#[must_use]
#[track_caller]
pub fn haproxy(host: &Host, port: u16, server: SocketAddr, header: &str) -> (Process, TempDir) {
    require("haproxy");
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("haproxy.cfg");
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen vpn\n bind 192.0.2.254:{port}\n server adit {server} {header}\n"
    );
    write(&config, &text);
    let process = host.spawn("haproxy", Command::new("haproxy").args(["-db", "-f"]).arg(&config));
    wait_until_listening(host, SocketAddr::from(([192, 0, 2, 254], port)));
    (process, dir)
}

/// Waits until something listens there.
///
/// # Panics
/// When nothing does in time.
#[track_caller]
pub fn wait_until_listening(host: &Host, listen: SocketAddr) {
    let text = listen.to_string();
    eventually(&format!("somebody who listens at {listen}"), START, || {
        host.run(Command::new("ss").args(["-Hltn"])).split_whitespace().any(|word| word == text)
    });
}

/// Replaces the gateway's `[[service]]` and `[[entrance]]`, as far as `toml` has them.
///
/// # Panics
/// When it is no TOML.
#[track_caller]
pub fn configure(gateway: &Gateway, toml: &str) {
    let new: toml_edit::DocumentMut = toml.parse().unwrap_or_else(|error| panic!("{error}: {toml}"));
    gateway.edit(|document| {
        for (key, item) in new.iter() {
            document.remove(key);
            document.insert(key, item.clone());
        }
    });
}

/// What a client gets that says this first, until the end, and how long that took. A reset is an end.
///
/// # Panics
/// When the end does not come, or there is no connection.
#[must_use]
#[track_caller]
pub fn ask(from: &Host, server: SocketAddr, first: &[u8]) -> (Vec<u8>, Duration) {
    let started = Instant::now();
    let mut stream = from.run_in(|| TcpStream::connect(server)).expect("a connection");
    stream.set_read_timeout(Some(START)).expect("a socket");
    stream.write_all(first).expect("the other end takes it");
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    (answer, started.elapsed())
}

/// A listener on the loopback that is there and accepts nobody by itself.
///
/// # Panics
/// When the port is taken.
#[must_use]
#[track_caller]
pub fn listen(host: &Host, port: u16) -> TcpListener {
    let listener = host.run_in(|| TcpListener::bind(local(port))).expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

/// The next connection of a listener.
///
/// # Panics
/// When none comes.
#[must_use]
#[track_caller]
pub fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = eventually_some("a connection", START, || listener.accept().ok());
    stream.set_nonblocking(false).expect("a socket");
    stream.set_read_timeout(Some(START)).expect("a socket");
    stream
}

/// A port of the machine itself.
#[must_use]
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Debian's daemons as the operator of a striped server has them.
#[derive(Debug)]
pub struct Daemons {
    rsa: OpenVpnServer,
    ecc: OpenVpnServer,
    ed25519: OpenVpnServer,
    ed448: OpenVpnServer,
    _dh: TempDir,
}

impl Daemons {
    /// Starts them.
    ///
    /// # Panics
    /// When one does not start.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Arc<Host>) -> Self {
        let dh = tempfile::tempdir().expect("a path");
        let params = dh.path().join("dh.pem");
        let mut openssl = Command::new("openssl");
        openssl.args(["genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048", "-out"]);
        host.run(openssl.arg(&params));
        // What adit's own identities refuse: no forward secrecy by curves, and no TLS 1.3.
        let old = ["--tls-version-max", "1.2", "--tls-cipher", "TLS-DHE-RSA-WITH-AES-256-GCM-SHA384", "--dh"];
        let old = [&old[..], &[params.to_str().expect("a path")]].concat();
        let start = |name, key, net, tcp, wrap, options: &[&str]| {
            let listen = local(11_000 + u16::from(net));
            OpenVpnServer::start_as(host, &ServerSpec { name, key, net, listen, tcp, wrap, options })
        };
        Self {
            rsa: start("rsa", "RSA-2048", 71, false, ServerWrap::TlsAuth("SHA512"), &old),
            ecc: start("ecc", "secp521r1", 72, true, ServerWrap::TlsCrypt, &[]),
            ed25519: start("ed25519", "Ed25519", 73, true, ServerWrap::TlsAuth("SHA256"), &[]),
            ed448: start("ed448", "Ed448", 74, false, ServerWrap::TlsAuth("SHA1"), &[]),
            _dh: dh,
        }
    }

    /// The services: by key, by form, by length, and by what was dialled.
    #[must_use]
    pub fn services(&self) -> String {
        format!(
            "[[service]]\nname = \"rsa\"\nkey = \"{}\"\nto = \"127.0.0.1:11071\"\n\
             [[service]]\nname = \"ecc\"\nmatch = \"openvpn tls-crypt\"\nto = \"127.0.0.1:11072\"\n\
             [[service]]\nname = \"ed25519\"\nmatch = {{ tcp-length = 56, first = 0x38 }}\nto = \"127.0.0.1:11073\"\n\
             [[service]]\nname = \"ed448\"\nmatch = \"openvpn\"\nport = \"5061\"\nto = \"127.0.0.1:11074\"\n",
            self.rsa.wrap_key().display(),
        )
    }

    /// The server of this name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn named(&self, name: &str) -> &OpenVpnServer {
        match name {
            "rsa" => &self.rsa,
            "ecc" => &self.ecc,
            "ed25519" => &self.ed25519,
            "ed448" => &self.ed448,
            _ => panic!("there is no {name}"),
        }
    }
}
