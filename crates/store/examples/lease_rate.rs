//! Measures what the journal costs a connection: the beginning and end of a session and of its lease.
//!
//! `cargo run --release -p adit-store --example lease_rate [DIRECTORY [ROUNDS]]`
#![allow(clippy::print_stdout, reason = "an example that reports figures")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use adit_plan::pool::Pools;
use adit_store::{
    Certificate, Change, Issuer, KeyHash, LeaseRequest, NewDevice, Serial, SessionStart, Store, Timestamp,
};

const DEVICES: u8 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(parent)?;
    let rounds: u32 = std::env::args().nth(2).map_or(Ok(300), |rounds| rounds.parse())?;
    let mut now = 1_700_000_000_000;
    let mut tick = || {
        now += 1;
        Timestamp::from_millis(now)
    };
    let store = Store::create(&directory.path().join("adit.db"), tick())?;
    store.set_pools(Pools::new(&["10.88.0.0/16".parse()?], &["fd88::/64".parse()?])?)?;

    let operator = Change { actor: "benchmark", now: tick() };
    let user = store.add_user(&operator, "ann", "")?;
    let mut devices = Vec::new();
    for number in 0..DEVICES {
        let name = format!("device{number}");
        let device =
            store.add_device(&operator, user.id, &NewDevice { name: &name, ..Default::default() })?;
        let (serial, key) = (Serial::from_bytes(&[1, number])?, KeyHash::from_bytes([number; 32]));
        store.add_certificate(
            &operator,
            &Certificate {
                issuer: Issuer::from_bytes(&[1])?,
                serial: serial.clone(),
                key,
                device: device.id,
                not_before: operator.now,
                not_after: Timestamp::from_millis(i64::MAX),
                der: vec![0; 1_000],
                revocation: None,
            },
        )?;
        devices.push((device.id, serial, key));
    }

    let names = ["authorize", "open_session", "lease", "lease end", "close_session"];
    let mut spent = [Duration::ZERO; 5];
    let cpu = cpu_time();
    for round in 0..rounds {
        for (device, serial, key) in &devices {
            let mut step = 0;
            let mut last = Instant::now();
            let mut measured = |spent: &mut [Duration; 5]| {
                spent[step] += last.elapsed();
                step += 1;
                last = Instant::now();
            };
            store.authorize(serial, key, tick())?;
            measured(&mut spent);
            let session = store.open_session(&SessionStart {
                device: *device,
                certificate: Some((serial, key)),
                protocol: "example",
                identity: "default",
                transport: "udp",
                now: tick(),
            })?;
            measured(&mut spent);
            let lease = store.lease(&LeaseRequest { device: *device, session: session.id, now: tick() })?;
            measured(&mut spent);
            lease.end(tick())?;
            measured(&mut spent);
            store.close_session(session.id, tick(), "client left")?;
            measured(&mut spent);
        }
        if round % 10 == 0 {
            store.heartbeat(tick())?;
        }
    }
    let cpu = cpu_time() - cpu;

    let sessions = u32::from(DEVICES) * rounds;
    println!("{sessions} sessions, with heartbeats; microseconds of wall clock each");
    for (name, spent) in names.iter().zip(spent) {
        println!("{name:>14} {:8.1}", spent.as_secs_f64() * 1e6 / f64::from(sessions));
    }
    let total: Duration = spent.iter().sum();
    println!("{:>14} {:8.1}", "all five", total.as_secs_f64() * 1e6 / f64::from(sessions));
    println!(
        "{:>14} {:8.1}  (processor time, heartbeats included)",
        "all five",
        cpu.as_secs_f64() * 1e6 / f64::from(sessions)
    );

    let path = directory.path().join("adit.db");
    let pools = store.pools().ok_or("pools were set")?;
    let timed =
        |what: &str, started: Instant| println!("{what}: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let started = Instant::now();
    drop(store);
    timed("closing", started);
    println!("database: {} KiB", std::fs::metadata(&path)?.len() / 1024);
    let started = Instant::now();
    let store = Store::open(&path)?;
    timed("opening", started);
    let started = Instant::now();
    store.recover(tick(), 0)?;
    store.set_pools(pools)?;
    timed("recovering and reading the history of addresses", started);
    let started = Instant::now();
    store.check()?;
    timed("checking everything", started);
    Ok(())
}

/// The processor time this process has used, to the hundredth of a second.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
