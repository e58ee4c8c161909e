//! Connections in memory, and against the real OpenSSL.

mod buffers;
mod openssl;
mod pairs;
mod proven;
mod refusals;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use adit_openvpn::tls::{ControlTls, TlsFault, TlsSource};
use adit_pki::{Authority, Certificate, KeyKind, Leaf, PrivateKey, Profile, Signer, UnixTime};

use crate::{ClientSettings, ClientTls, Clock, Identity, ServerSettings, ServerTls, Trust, Versions};

/// Some moment in 2026.
const NOW: UnixTime = UnixTime::from_secs(1_772_366_400);
const DAY: Duration = Duration::from_secs(24 * 3600);
const LABEL: &str = "EXPORTER-OpenVPN-datakeys";

#[derive(Debug)]
struct Stopped(UnixTime);

impl Clock for Stopped {
    fn now(&self) -> UnixTime {
        self.0
    }
}

fn at(now: UnixTime) -> Arc<dyn Clock> {
    Arc::new(Stopped(now))
}

/// A key of `kind`; large RSA keys are always the same ones, because making them takes seconds.
fn key(kind: KeyKind) -> PrivateKey {
    static SMALL: OnceLock<String> = OnceLock::new();
    static MIDDLE: OnceLock<String> = OnceLock::new();
    let fresh = || PrivateKey::generate(kind).unwrap().to_pkcs8_pem().unwrap().to_string();
    let pem = match kind {
        KeyKind::Rsa(2048) => SMALL.get_or_init(fresh),
        KeyKind::Rsa(3072) => MIDDLE.get_or_init(fresh),
        KeyKind::Rsa(4096) => include_str!("../../../../testbed/keys/rsa-4096.test.pem"),
        KeyKind::Rsa(8192) => include_str!("../../../../testbed/keys/rsa-8192.test.pem"),
        _ => return PrivateKey::generate(kind).unwrap(),
    };
    PrivateKey::from_pem(pem).unwrap()
}

fn authority(kind: KeyKind) -> Authority {
    Authority::create("test CA", Box::new(key(kind)), NOW, 3650 * DAY).unwrap()
}

fn server_profile() -> Profile {
    Profile::Server { names: Vec::new() }
}

/// A certificate with its key, both still readable.
struct Holder {
    certificate: Certificate,
    key: PrivateKey,
}

impl Holder {
    fn new(authority: &Authority, kind: KeyKind, profile: Profile) -> Self {
        Self::valid_from(authority, kind, profile, NOW)
    }

    fn valid_from(authority: &Authority, kind: KeyKind, profile: Profile, now: UnixTime) -> Self {
        let key = key(kind);
        let leaf = Leaf {
            public_key: key.public_key(),
            common_name: &format!("{kind} holder"),
            profile,
            now,
            lifetime: 365 * DAY,
        };
        Self { certificate: authority.issue(&leaf).unwrap(), key }
    }

    fn identity(&self) -> Identity {
        Identity::new(std::slice::from_ref(&self.certificate), &self.key).unwrap()
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

fn server_settings(trusted: &Authority, holders: &[&Holder]) -> ServerSettings {
    ServerSettings {
        identities: holders.iter().map(|holder| holder.identity()).collect(),
        client_authorities: Arc::new(Trust::new(vec![trusted.certificate().clone()]).unwrap()),
        clock: at(NOW),
        ..ServerSettings::default()
    }
}

fn client_settings(trusted: &Authority, holder: Option<&Holder>) -> ClientSettings {
    ClientSettings {
        authorities: vec![trusted.certificate().clone()],
        identity: holder.map(Holder::identity),
        clock: at(NOW),
        ..ClientSettings::default()
    }
}

/// One authority, a server and a client certificate of it, all P-256: what refusals are made from.
struct World {
    authority: Authority,
    server: Holder,
    client: Holder,
}

impl World {
    fn new() -> Self {
        let authority = authority(KeyKind::P256);
        let server = Holder::new(&authority, KeyKind::P256, server_profile());
        let client = Holder::new(&authority, KeyKind::P256, Profile::Client);
        Self { authority, server, client }
    }

    fn server_settings(&self) -> ServerSettings {
        server_settings(&self.authority, &[&self.server])
    }

    fn client_settings(&self) -> ClientSettings {
        client_settings(&self.authority, Some(&self.client))
    }
}

/// Two ends in memory.
struct Pair {
    server: Box<dyn ControlTls>,
    client: Box<dyn ControlTls>,
    server_fault: Option<TlsFault>,
    client_fault: Option<TlsFault>,
}

impl Pair {
    fn new(server: ServerSettings, client: ClientSettings) -> Self {
        Self {
            server: ServerTls::new(server).unwrap().start().unwrap(),
            client: ClientTls::new(client).unwrap().start().unwrap(),
            server_fault: None,
            client_fault: None,
        }
    }

    /// As [`Pair::new`], and run until nothing moves.
    fn run(server: ServerSettings, client: ClientSettings) -> Self {
        let mut pair = Self::new(server, client);
        pair.settle();
        pair
    }

    /// Carries packets of the size the control channel has, until both ends are silent.
    fn settle(&mut self) {
        loop {
            let mut moved = carry(self.client.as_mut(), self.server.as_mut(), &mut self.server_fault);
            moved += carry(self.server.as_mut(), self.client.as_mut(), &mut self.client_fault);
            if moved == 0 {
                break;
            }
        }
    }

    fn assert_established(&self, what: &str) {
        assert_eq!((&self.server_fault, &self.client_fault), (&None, &None), "{what}");
        assert!(self.server.established() && self.client.established(), "{what}");
    }

    fn server_refusal(&self) -> String {
        refusal(self.server_fault.as_ref())
    }

    fn client_refusal(&self) -> String {
        refusal(self.client_fault.as_ref())
    }
}

fn refusal(fault: Option<&TlsFault>) -> String {
    match fault {
        Some(TlsFault::Peer(text)) => text.clone(),
        other => panic!("a fault of the peer was expected, not {other:?}"),
    }
}

fn carry(from: &mut dyn ControlTls, to: &mut dyn ControlTls, fault: &mut Option<TlsFault>) -> usize {
    let mut moved = 0;
    loop {
        let mut packet = Vec::new();
        let length = from.drain(&mut packet, 1200);
        assert_eq!(length, packet.len());
        if length == 0 {
            return moved;
        }
        moved += length;
        if fault.is_none() {
            *fault = to.feed(&packet).err();
        }
    }
}

fn exported(tls: &dyn ControlTls) -> Vec<u8> {
    let mut keys = vec![0; 256];
    tls.export(LABEL, &mut keys).unwrap();
    keys
}

fn read_all(tls: &mut dyn ControlTls) -> Vec<u8> {
    let mut out = Vec::new();
    while tls.read(&mut out).unwrap() > 0 {}
    out
}
