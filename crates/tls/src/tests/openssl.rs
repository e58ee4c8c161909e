//! Against the real `openssl s_client` and `s_server` over the loopback interface.

use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use data_encoding::HEXUPPER;
use tempfile::TempDir;

/// Runs `openssl`, which must succeed; gives its standard output.
pub(super) fn command(dir: &Path, arguments: &[&str]) -> String {
    let output =
        Command::new("openssl").args(arguments).current_dir(dir).output().expect("openssl is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An `openssl` that runs until it is dropped.
struct Running {
    child: Child,
    _dir: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `openssl` with the authority in `ca.pem` and the holder in `cert.pem` and `key.pem`.
fn spawn(authority: &Authority, holder: &Holder, arguments: &[&str]) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("ca.pem", &authority.certificate().to_pem());
    write("cert.pem", &holder.certificate.to_pem());
    write("key.pem", &holder.key.to_pkcs8_pem().unwrap());
    spawn_in(dir, arguments)
}

/// Starts `openssl` with the three files in `dir`.
fn spawn_in(dir: TempDir, arguments: &[&str]) -> Running {
    let at = NOW.as_secs().to_string();
    let child = Command::new("openssl")
        .args(arguments)
        .args(["-CAfile", "ca.pem", "-cert", "cert.pem", "-key", "key.pem", "-attime", &at])
        .args(["-keymatexport", LABEL, "-keymatexportlen", "256"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed");
    Running { child, _dir: dir }
}

/// Drives `tls` over the socket until `done` or a fault. The peer's answers must come within ten seconds.
fn drive(
    tls: &mut dyn ControlTls,
    socket: &mut TcpStream,
    mut done: impl FnMut(&mut dyn ControlTls) -> bool,
) -> Result<(), TlsFault> {
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    loop {
        let mut out = Vec::new();
        while tls.drain(&mut out, 1000) > 0 {}
        // A peer that has refused us may be gone already; what it said is still to be read.
        let _ = socket.write_all(&out);
        if done(tls) {
            return Ok(());
        }
        let mut bytes = [0; 2000];
        let length = socket.read(&mut bytes).expect("openssl answers in time");
        if length == 0 {
            return Err(TlsFault::Peer("end of stream".into()));
        }
        let fed = tls.feed(&bytes[..length]);
        if fed.is_err() {
            let mut out = Vec::new();
            while tls.drain(&mut out, 1000) > 0 {}
            let _ = socket.write_all(&out);
        }
        fed?;
    }
}

/// Waits for the line of `openssl` that begins with `prefix`; gives what follows it.
fn line(output: &mut impl BufRead, prefix: &str) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "no line {prefix:?} in:\n{seen}");
        if let Some(rest) = line.trim().strip_prefix(prefix) {
            return rest.trim().to_owned();
        }
        seen.push_str(&line);
    }
}

/// Our server, their client: gives the fault, or what was agreed on.
fn serve(
    settings: ServerSettings,
    authority: &Authority,
    client: &Holder,
    options: &[&str],
) -> Result<String, TlsFault> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let arguments = ["s_client", "-connect", &address, "-verify_return_error"];
    let mut running = spawn(authority, client, &[&arguments, options].concat());
    let mut tls = ServerTls::new(settings).unwrap().start().unwrap();
    let (mut socket, _) = listener.accept().unwrap();

    drive(tls.as_mut(), &mut socket, |tls| tls.established())?;

    let mut output = BufReader::new(running.child.stdout.take().unwrap());
    assert_eq!(line(&mut output, "Keying material:"), HEXUPPER.encode(&exported(tls.as_ref())));
    // OpenSSL may send the root along.
    assert!(tls.peer().chain[0] == client.certificate.der());
    let input = running.child.stdin.as_mut().unwrap();
    input.write_all(b"hello\n").unwrap();
    let mut text = Vec::new();
    drive(tls.as_mut(), &mut socket, |tls| {
        while tls.read(&mut text).unwrap() > 0 {}
        text == b"hello\n"
    })?;
    Ok(tls.describe())
}

/// Our client, their server.
fn connect(
    settings: ClientSettings,
    authority: &Authority,
    server: &Holder,
    options: &[&str],
) -> Result<String, TlsFault> {
    let arguments =
        ["s_server", "-accept", "127.0.0.1:0", "-Verify", "3", "-verify_return_error", "-naccept", "1"];
    let mut running = spawn(authority, server, &[&arguments, options].concat());
    let mut output = BufReader::new(running.child.stdout.take().unwrap());
    let address = line(&mut output, "ACCEPT ");
    let mut socket = TcpStream::connect(&address).unwrap();
    let mut tls = ClientTls::new(settings).unwrap().start().unwrap();

    drive(tls.as_mut(), &mut socket, |tls| tls.established())?;

    tls.write(b"hello\n").unwrap();
    drive(tls.as_mut(), &mut socket, |_| true)?;
    assert_eq!(line(&mut output, "Keying material:"), HEXUPPER.encode(&exported(tls.as_ref())));
    line(&mut output, "hello");
    assert!(tls.peer().chain[0] == server.certificate.der());
    Ok(tls.describe())
}

const KINDS: [KeyKind; 6] =
    [KeyKind::Rsa(2048), KeyKind::Rsa(8192), KeyKind::P256, KeyKind::P521, KeyKind::Ed25519, KeyKind::Ed448];

#[test]
fn openssl_clients_of_every_kind_connect_to_our_server() {
    for (index, kind) in KINDS.into_iter().enumerate() {
        let authority = authority(KINDS[(index + 3) % KINDS.len()]);
        let server = Holder::new(&authority, kind, server_profile());
        let client = Holder::new(&authority, kind, Profile::Client);
        for (option, version) in [("-tls1_2", "TLSv1.2 "), ("-tls1_3", "TLSv1.3 ")] {
            let agreed = serve(server_settings(&authority, &[&server]), &authority, &client, &[option]);

            let agreed = agreed.unwrap_or_else(|fault| panic!("{kind} {option}: {fault}"));
            assert!(agreed.starts_with(version), "{kind}: {agreed}");
        }
    }
}

#[test]
fn our_client_connects_to_openssl_servers_of_every_kind() {
    for (index, kind) in KINDS.into_iter().enumerate() {
        let authority = authority(KINDS[(index + 3) % KINDS.len()]);
        let server = Holder::new(&authority, kind, server_profile());
        let client = Holder::new(&authority, kind, Profile::Client);
        for (option, version) in [("-tls1_2", "TLSv1.2 "), ("-tls1_3", "TLSv1.3 ")] {
            let agreed = connect(client_settings(&authority, Some(&client)), &authority, &server, &[option]);

            let agreed = agreed.unwrap_or_else(|fault| panic!("{kind} {option}: {fault}"));
            assert!(agreed.starts_with(version), "{kind}: {agreed}");
        }
    }
}

#[test]
fn every_group_of_openssl_clients_is_served() {
    let world = World::new();
    for group in ["X25519", "P-256", "P-384", "P-521"] {
        for option in ["-tls1_2", "-tls1_3"] {
            // In TLS 1.2 the curve of the certificate must be among the groups as well.
            let groups = if group == "P-256" { group.to_owned() } else { format!("{group}:P-256") };
            let options = [option, "-groups", &groups];

            let agreed = serve(world.server_settings(), &world.authority, &world.client, &options).unwrap();

            let name = group.to_lowercase().replace("p-", "secp");
            assert!(agreed.to_lowercase().contains(&name), "{options:?}: {agreed}");
        }
    }
}

fn refused_client(options: &[&str]) -> String {
    let world = World::new();
    match serve(world.server_settings(), &world.authority, &world.client, options) {
        Err(TlsFault::Peer(text)) => text,
        other => panic!("{options:?}: {other:?}"),
    }
}

#[test]
fn a_client_that_is_too_old_is_told_apart_by_version() {
    for (option, version) in [("-tls1", "TLS 1.0"), ("-tls1_1", "TLS 1.1")] {
        let text = refused_client(&[option, "-cipher", "ALL:@SECLEVEL=0"]);

        assert_eq!(
            text,
            format!(
                "no common TLS version: the peer offers at most {version}; adit needs 1.2; use a newer client, or \
                 a foreign back end for it"
            )
        );
    }
}

#[test]
fn a_client_with_old_cipher_suites_only_is_told_what_is_missing() {
    for cipher in ["AES256-GCM-SHA384", "DHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-SHA384"] {
        let text = refused_client(&["-tls1_2", "-cipher", cipher]);

        assert!(
            text.contains("no common cipher suite or group") && text.contains("only DHE or RSA key exchange"),
            "{text}"
        );
    }
}

#[test]
fn a_client_that_knows_sha1_signatures_only_is_told_so() {
    let text = refused_client(&["-tls1_2", "-sigalgs", "ECDSA+SHA1", "-cipher", "ALL:@SECLEVEL=0"]);

    assert!(text.starts_with("no common signature algorithm: the peer offers only SHA-1"), "{text}");
}

#[test]
fn a_server_that_is_too_old_is_refused() {
    let world = World::new();
    for (option, version) in [("-tls1", "TLS 1.0"), ("-tls1_1", "TLS 1.1")] {
        let options = [option, "-cipher", "ALL:@SECLEVEL=0"];

        let fault = connect(world.client_settings(), &world.authority, &world.server, &options).unwrap_err();

        // OpenSSL answers with an alert instead of offering its own version.
        assert!(fault.to_string().starts_with("no common TLS version"), "{version}: {fault}");
    }
}

#[test]
fn openssl_refuses_a_client_of_a_stranger_and_we_say_why() {
    let world = World::new();
    let other = Authority::create("another CA", Box::new(key(KeyKind::P256)), NOW, 3650 * DAY).unwrap();
    let stranger = Holder::new(&other, KeyKind::P256, Profile::Client);

    let settings = client_settings(&world.authority, Some(&stranger));
    let fault = connect(settings, &world.authority, &world.server, &["-tls1_2"]).unwrap_err();

    assert!(
        fault.to_string().starts_with("the peer refused the client's certificate: its issuer"),
        "{fault}"
    );
}

#[test]
fn the_first_key_type_an_openssl_client_prefers_is_served() {
    let authority = authority(KeyKind::P256);
    let holders =
        [KeyKind::Rsa(2048), KeyKind::Ed448].map(|kind| Holder::new(&authority, kind, server_profile()));
    let client = Holder::new(&authority, KeyKind::P256, Profile::Client);
    for (algorithms, kind) in
        [("RSA-PSS+SHA256:ed448:ECDSA+SHA256", "rsa"), ("ed448:RSA-PSS+SHA256:ECDSA+SHA256", "ed448")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let arguments = ["s_client", "-connect", &address, "-tls1_3", "-sigalgs", algorithms];
        let mut running = spawn(&authority, &client, &arguments);
        let server = ServerTls::new(server_settings(&authority, &holders.each_ref())).unwrap();
        let mut tls = server.start().unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        drive(tls.as_mut(), &mut socket, |tls| tls.established()).unwrap();

        let mut output = BufReader::new(running.child.stdout.take().unwrap());

        let shown = line(&mut output, "Peer signature type:").to_lowercase();
        assert!(shown.starts_with(kind), "{algorithms}: {shown}");
    }
}

#[test]
fn a_client_whose_rsa_key_is_too_short_is_told_so() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let ca_pem = key(KeyKind::P256).to_pkcs8_pem().unwrap();
    let authority =
        Authority::create("CA", Box::new(PrivateKey::from_pem(&ca_pem).unwrap()), NOW, 36500 * DAY).unwrap();
    write("ca.key", &ca_pem);
    write("ca.pem", &authority.certificate().to_pem());
    write("ext", "keyUsage=digitalSignature\nextendedKeyUsage=clientAuth\n");
    let request =
        ["req", "-new", "-newkey", "rsa:1024", "-nodes", "-keyout", "key.pem", "-subj", "/CN=x", "-out", "r"];
    command(dir.path(), &request);
    let sign = [
        "x509", "-req", "-in", "r", "-CA", "ca.pem", "-CAkey", "ca.key", "-extfile", "ext", "-out",
        "cert.pem",
    ];
    command(dir.path(), &[sign.as_slice(), &["-days", "3000"]].concat());
    let certificate = std::fs::read_to_string(dir.path().join("cert.pem")).unwrap();
    // OpenSSL dates by the system's clock.
    let now = Certificate::from_pem(&certificate).unwrap().not_before();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let _running = spawn_in(dir, &["s_client", "-connect", &address, "-cipher", "ALL:@SECLEVEL=0"]);
    let settings = ServerSettings { clock: at(now), ..server_settings(&authority, &[&world.server]) };
    let mut tls = ServerTls::new(settings).unwrap().start().unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let fault = drive(tls.as_mut(), &mut socket, |tls| tls.established()).unwrap_err();

    assert!(fault.to_string().contains("of a kind or size that is not supported"), "{fault}");
}

#[test]
fn no_session_can_be_resumed() {
    let world = World::new();
    for option in ["-tls1_2", "-tls1_3"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut running =
            spawn(&world.authority, &world.client, &["s_client", "-connect", &address, "-ign_eof", option]);
        let mut tls = ServerTls::new(world.server_settings()).unwrap().start().unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        drive(tls.as_mut(), &mut socket, |tls| tls.established()).unwrap();
        tls.write(b"last words\n").unwrap();
        drive(tls.as_mut(), &mut socket, |_| true).unwrap();
        drop(socket);

        let mut shown = String::new();
        running.child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();

        // The session identifier of TLS 1.2 is empty, and in neither version is there a ticket.
        assert!(shown.contains("last words"), "{shown}");
        assert!(!shown.contains("ticket:"), "{shown}");
        assert!(option == "-tls1_3" || shown.contains("Session-ID: \n"), "{shown}");
    }
}
