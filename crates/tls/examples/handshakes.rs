//! What a mutually authenticated handshake costs a gateway, and what an idle connection holds.
//!
//! `cargo run --release -p adit-tls --example handshakes [COUNT]`

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_openvpn::tls::{ControlTls, TlsFault, TlsSource};
use adit_pki::{Authority, KeyKind, Leaf, PrivateKey, Profile, Signer};
use adit_tls::{
    ClientSettings, ClientTls, Clock, Identity, ServerSettings, ServerTls, SystemClock, Trust, Versions,
};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args().nth(1).map_or(Ok(1000), |count| count.parse())?;
    // All are kept to the end: memory that was freed would be used again and not be seen.
    let mut idle = Vec::new();
    for kind in
        [KeyKind::P256, KeyKind::Ed25519, KeyKind::P384, KeyKind::P521, KeyKind::Rsa(2048), KeyKind::Ed448]
    {
        for versions in [Versions::Only13, Versions::Only12] {
            measure(kind, versions, count, &mut idle)?;
        }
    }
    Ok(())
}

/// Everything, the authority included, has keys of one kind.
fn measure(
    kind: KeyKind,
    versions: Versions,
    count: u32,
    idle: &mut Vec<Box<dyn ControlTls>>,
) -> Result<(), Box<dyn Error>> {
    let authority = Authority::create("CA", Box::new(PrivateKey::generate(kind)?), SystemClock.now(), YEAR)?;
    let server = ServerTls::new(ServerSettings {
        identities: vec![identity(&authority, kind, Profile::Server { names: Vec::new() })?],
        client_authorities: Arc::new(Trust::new(vec![authority.certificate().clone()])?),
        ..ServerSettings::default()
    })?;
    let client = ClientTls::new(ClientSettings {
        authorities: vec![authority.certificate().clone()],
        identity: Some(identity(&authority, kind, Profile::Client)?),
        versions,
        ..ClientSettings::default()
    })?;
    idle.reserve(count as usize);
    let mut spent = Duration::ZERO;
    let before = resident()?;
    for _ in 0..count {
        let mut connection = server.start()?;
        spent += handshake(connection.as_mut(), client.start()?.as_mut())?;
        idle.push(connection);
    }
    let held = resident()?.saturating_sub(before) / u64::from(count);
    let each = spent.as_secs_f64() * 1e6 / f64::from(count);
    let what = idle.last().map(|connection| connection.describe()).unwrap_or_default();
    println!("{kind:<10} {each:6.0} µs of the server's CPU, {held:6} bytes held when idle   {what}");
    Ok(())
}

fn identity(authority: &Authority, kind: KeyKind, profile: Profile) -> Result<Identity, Box<dyn Error>> {
    let key = PrivateKey::generate(kind)?;
    let certificate = authority.issue(&Leaf {
        public_key: key.public_key(),
        common_name: "benchmark",
        profile,
        now: SystemClock.now(),
        lifetime: YEAR,
    })?;
    Ok(Identity::new(&[certificate], &key)?)
}

/// The time spent in the server's calls.
fn handshake(server: &mut dyn ControlTls, client: &mut dyn ControlTls) -> Result<Duration, TlsFault> {
    let mut spent = Duration::ZERO;
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    loop {
        client.drain(&mut to_server, usize::MAX);
        let start = Instant::now();
        server.feed(&to_server)?;
        server.drain(&mut to_client, usize::MAX);
        spent += start.elapsed();
        client.feed(&to_client)?;
        if to_server.is_empty() && to_client.is_empty() {
            return Ok(spent);
        }
        to_server.clear();
        to_client.clear();
    }
}

/// Bytes of memory this process has in use.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
