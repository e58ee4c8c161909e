//! Generates the journal of a year, with changes of the layout, and measures what it takes: octets per user and day,
//! traces, the verification, a purge. Traces are compared with what was noted when the leases were made. Ends with an
//! error when a figure misses its goal or a trace is wrong.
//!
//! `cargo run --release -p adit-store --example trace_year [DIRECTORY [USERS [DAYS [TRACES]]]]`
#![allow(clippy::print_stdout, reason = "an example that reports figures")]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adit_plan::nat::{Assign, Block, Layout, Size, Wanted};
use adit_plan::pool::Pools;
use adit_store::{
    Admission, Certificate, Change, DeviceId, Issuer, KeyHash, Lease, NewDevice, Replanned, Serial,
    SessionId, Store, Timestamp, TraceKind, TraceQuery, TrailCheck,
};

type Failure = Box<dyn std::error::Error>;

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
const BEGINNING: i64 = 1_700_000_000_000;
/// Logins decided together at most.
const TOGETHER: usize = 32;
/// What has to be reached.
const OCTETS_PER_USER_DAY: f64 = 2_048.0;
const SLOWEST: Duration = Duration::from_millis(10);
const RECORDS_PER_SECOND: f64 = 200_000.0;

fn main() -> Result<(), Failure> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let number =
        |place: usize, usual: usize| std::env::args().nth(place).map_or(Ok(usual), |text| text.parse());
    let (users, days, traces) = (number(2, 1_000)?, number(3, 30)?, number(4, 10_000)?);
    let directory = tempfile::tempdir_in(parent)?;
    let path = directory.path().join("adit.db");
    let mut year = Year::new(&path, users, traces, days)?;
    let before = std::fs::metadata(&path)?.len();
    let started = Instant::now();
    for day in 0..days {
        year.day(day as i64, days as i64)?;
    }
    let Year { store, truth, leases, layouts, .. } = year;
    println!(
        "{users} users, {days} days: {leases} leases, {layouts} layouts, in {:.0} s",
        started.elapsed().as_secs_f64()
    );
    let mut failed = Vec::new();

    drop(store);
    let octets = (std::fs::metadata(&path)?.len() - before) as f64 / (users * days) as f64;
    println!("file: {octets:.0} octets per user and day");
    if octets > OCTETS_PER_USER_DAY {
        failed.push("the size of the file");
    }
    let started = Instant::now();
    let store = Store::open(&path)?;
    println!("opening: {:.1} s", started.elapsed().as_secs_f64());

    let (wrong, mut took) = traced(&store, &truth)?;
    took.sort_unstable();
    let part = |percent: usize| {
        took.get((took.len() * percent / 100).min(took.len() - 1)).copied().unwrap_or_default()
    };
    println!("traces: {}, {wrong} wrong; p50 {:?}, p99 {:?}", took.len(), part(50), part(99));
    if wrong > 0 || took.is_empty() {
        failed.push("traces");
    }
    if part(99) > SLOWEST {
        failed.push("the time of a trace");
    }

    let started = Instant::now();
    let check = store.verify_trail(|_| ())?;
    let spent = started.elapsed().as_secs_f64();
    match &check {
        TrailCheck::Intact { records, .. } => {
            let rate = *records as f64 / spent;
            println!("verification: {records} records in {spent:.1} s, {rate:.0} per second");
            if rate < RECORDS_PER_SECOND && *records > 10_000 {
                failed.push("the speed of the verification");
            }
        }
        broken => {
            println!("verification: {broken:?}");
            failed.push("the chain");
        }
    }

    let cut = at(DAY * (days as i64 / 8).max(1));
    let started = Instant::now();
    let purged = store.purge(cut)?;
    let spent = started.elapsed().as_secs_f64();
    println!("purge: {purged:?} in {spent:.1} s");
    let later: Vec<_> = truth.iter().filter(|truth| truth.at >= cut).copied().collect();
    let (wrong, _) = traced(&store, &later)?;
    if wrong > 0
        || purged.leases == 0
        || !matches!(store.verify_trail(|_| ())?, TrailCheck::Intact { base: 1.., .. })
    {
        failed.push("the purge");
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("missed: {}", failed.join(", ")).into()) }
}

/// What was so when it was noted.
#[derive(Clone, Copy)]
struct Truth {
    at: Timestamp,
    address: Ipv4Addr,
    port: u16,
    device: DeviceId,
    session: SessionId,
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(BEGINNING + millis)
}

/// Traces all that was noted; gives how many answers were wrong, and how long each took.
fn traced(store: &Store, truth: &[Truth]) -> Result<(usize, Vec<Duration>), Failure> {
    let (mut wrong, mut took) = (0, Vec::with_capacity(truth.len()));
    for truth in truth {
        let query = TraceQuery {
            at: truth.at,
            address: truth.address.into(),
            port: Some(truth.port),
            protocol: None,
            tolerance_ms: 0,
        };
        let started = Instant::now();
        let found = store.trace(&query)?;
        took.push(started.elapsed());
        let right = match found.matches.as_slice() {
            [only] if only.kind == TraceKind::Nat => only
                .owner
                .as_ref()
                .is_some_and(|owner| owner.device == truth.device && owner.session == truth.session),
            _ => false,
        };
        wrong += usize::from(!right);
    }
    Ok((wrong, took))
}

struct Year {
    store: Store,
    devices: Vec<(DeviceId, Serial, KeyHash)>,
    open: HashMap<usize, Lease>,
    truth: Vec<Truth>,
    /// One of so many leases is noted.
    noted: u64,
    leases: u64,
    layouts: usize,
    /// When the layout changed last.
    laid: i64,
    random: u64,
    beat: i64,
}

impl Year {
    fn new(path: &Path, users: usize, traces: usize, days: usize) -> Result<Self, Failure> {
        let store = Store::create(path, at(0))?;
        store.set_pools(Pools::new(&["10.64.0.0/14".parse()?], &["fd88::/64".parse()?])?)?;
        let operator = Change { actor: "benchmark", now: at(0) };
        let mut devices = Vec::with_capacity(users);
        for number in 0..users as u64 {
            let user = store.add_user(&operator, &format!("user{number}"), "")?;
            let new = NewDevice { name: "laptop", ..Default::default() };
            let device = store.add_device(&operator, user.id, &new)?.id;
            let octets = number.to_be_bytes();
            // As long as the serial numbers that are issued.
            let serial = Serial::from_bytes(&[&[0x5a; 8], octets.as_slice()].concat())?;
            let mut key = [0; 32];
            for (octet, of) in key.iter_mut().zip(octets) {
                *octet = of;
            }
            let key = KeyHash::from_bytes(key);
            store.add_certificate(
                &operator,
                &Certificate {
                    issuer: Issuer::from_bytes(&[1])?,
                    serial: serial.clone(),
                    key,
                    device,
                    not_before: operator.now,
                    not_after: Timestamp::from_millis(i64::MAX),
                    der: vec![0x30],
                    revocation: None,
                },
            )?;
            devices.push((device, serial, key));
        }
        store.heartbeat(at(0))?;
        let noted = (users * days * 2 / traces.max(1)).max(1) as u64;
        let (open, truth) = (HashMap::new(), Vec::new());
        let mut year =
            Self { store, devices, open, truth, noted, leases: 0, layouts: 0, laid: 0, random: 88, beat: 0 };
        year.layout(0)?;
        Ok(year)
    }

    /// A xorshift generator: the same year each time.
    fn below(&mut self, bound: i64) -> i64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 1) as i64 % bound
    }

    /// The next layout, put in force.
    fn layout(&mut self, now: i64) -> Result<Replanned, Failure> {
        // One address goes and another comes; every other time the range is wider.
        let (first, last) = ([40_000, 39_936][self.layouts % 2], 64_511);
        let blocks = usize::from((last - first + 1) / 64_u16);
        let count = (self.devices.len() / blocks + 3) as u32;
        let lowest = 0xc633_6400 + self.layouts as u32;
        let layout = Layout::new(&Wanted {
            addresses: (lowest..lowest + count).map(Ipv4Addr::from).collect(),
            ports: first..=last,
            size: Size::Ports(64),
            assign: Assign::Lease,
            pools: vec!["10.64.0.0/14".parse()?],
            forward: None,
            host: 64_512..=65_535,
        })?;
        self.layouts += 1;
        self.laid = now + 1;
        let planned = self.store.plan_nat(&layout)?;
        let replanned = self.store.set_nat(Some(&layout), at(now))?;
        if planned != replanned {
            return Err("a plan was not what was done".into());
        }
        Ok(replanned)
    }

    /// Two sessions of several hours for everybody.
    fn day(&mut self, day: i64, days: i64) -> Result<(), Failure> {
        let mut events = Vec::with_capacity(self.devices.len() * 4);
        for user in 0..self.devices.len() {
            for morning in [6, 14] {
                let from = day * DAY + morning * HOUR + self.below(2 * HOUR);
                let to = from + 2 * HOUR + self.below(3 * HOUR);
                events.extend([(from, true, user), (to, false, user)]);
            }
        }
        events.sort_unstable();
        // Four changes of the layout, at noon.
        if days > 4 && day % (days / 5).max(1) == 1 {
            let noon = events.partition_point(|event| event.0 < day * DAY + 10 * HOUR);
            let rest = events.split_off(noon);
            self.live(&events)?;
            let now = day * DAY + 10 * HOUR;
            for moved in self.layout(now)?.moved {
                let old = moved.from.map(|block| (moved.owner.device, moved.owner.session, block));
                if let Some((device, session, block)) = old
                    && self.below(64) == 0
                {
                    // What it left is still its own.
                    self.note(now + 1, device, session, block);
                }
            }
            events = rest;
        }
        self.live(&events)?;
        self.store.roll(at((day + 1) * DAY))?;
        Ok(())
    }

    fn live(&mut self, events: &[(i64, bool, usize)]) -> Result<(), Failure> {
        let mut waiting: Vec<(i64, usize)> = Vec::new();
        for &(now, begins, user) in events {
            if begins {
                waiting.push((now, user));
            }
            let late = waiting.first().is_some_and(|(first, _)| now - first > SECOND);
            if !begins || late || waiting.len() == TOGETHER {
                self.admit(&waiting)?;
                waiting.clear();
            }
            if !begins {
                self.end(now, user)?;
            }
            if now - self.beat > HOUR {
                self.beat = now;
                self.store.heartbeat(at(now))?;
            }
        }
        self.admit(&waiting)
    }

    fn admit(&mut self, waiting: &[(i64, usize)]) -> Result<(), Failure> {
        let admissions: Vec<_> = waiting
            .iter()
            .filter_map(|&(now, user)| {
                let (_, serial, key) = self.devices.get(user)?;
                let (identity, now) = ("default", at(now));
                Some(Admission { serial, key, protocol: "openvpn", identity, transport: "udp", now })
            })
            .collect();
        let admitted = self.store.admit(&admissions)?;
        for (&(_, user), admitted) in waiting.iter().zip(admitted) {
            self.open.insert(user, admitted?.lease);
            self.leases += 1;
        }
        Ok(())
    }

    fn end(&mut self, now: i64, user: usize) -> Result<(), Failure> {
        let lease = self.open.remove(&user).ok_or("a session ends that is not open")?;
        let (device, session) = (lease.device(), lease.session());
        if self.below(self.noted as i64) == 0 {
            let block = lease.block().ok_or("a lease has no block")?;
            // It may have had another block before the last change.
            let earlier = now - 1 - self.below(HOUR / 60);
            self.note(earlier.max(self.laid), device, session, block);
        }
        lease.end(at(now))?;
        self.store.close_session(session, at(now), "client left")?;
        Ok(())
    }

    fn note(&mut self, now: i64, device: DeviceId, session: SessionId, block: Block) {
        let port = block.from + self.below(i64::from(block.to - block.from) + 1) as u16;
        self.truth.push(Truth { at: at(now), address: block.address, port, device, session });
    }
}
