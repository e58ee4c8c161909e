//! What the tests of this crate have in common: a small world with a store in it.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use adit_plan::nat::{Assign, Forwards, Layout, Size, Wanted};
use adit_plan::pool::Pools;
use tempfile::TempDir;

use crate::{
    Certificate, Change, Device, DeviceId, Issuer, KeyHash, Lease, LeaseRequest, NewDevice, Serial, Session,
    SessionStart, Store, Timestamp, User,
};

/// A store in a directory of its own, and a clock.
pub(crate) struct World {
    directory: TempDir,
    pub(crate) store: Store,
    clock: i64,
}

impl World {
    /// A new store without pools.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(&file(&directory), Timestamp::from_millis(1_000)).unwrap();
        Self { directory, store, clock: 1_000 }
    }

    /// A new store with pools.
    pub(crate) fn with_pools(v4: &[&str], v6: &[&str]) -> Self {
        let world = Self::new();
        world.store.set_pools(pools(v4, v6)).unwrap();
        world
    }

    pub(crate) fn path(&self) -> PathBuf {
        file(&self.directory)
    }

    /// The time, one second later than the last time.
    pub(crate) fn tick(&mut self) -> Timestamp {
        self.shift(1_000)
    }

    /// The time after this many milliseconds, which may be negative.
    pub(crate) fn shift(&mut self, millis: i64) -> Timestamp {
        self.clock += millis;
        Timestamp::from_millis(self.clock)
    }

    pub(crate) fn change(&mut self) -> Change<'static> {
        Change { actor: "tester", now: self.tick() }
    }

    /// What is left when the process is killed: a second world with the files as they are at this instant. The first
    /// goes on undisturbed.
    pub(crate) fn after_a_kill(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        copy_files(&self.path(), &file(&directory));
        let store = Store::open(&file(&directory)).unwrap();
        Self { directory, store, clock: self.clock }
    }

    pub(crate) fn user(&mut self, name: &str) -> User {
        let change = self.change();
        self.store.add_user(&change, name, "").unwrap()
    }

    /// A device of a user who is added when there is none of the name.
    pub(crate) fn device(&mut self, user: &str, name: &str) -> Device {
        let owner = self.store.user_by_name(user).unwrap().unwrap_or_else(|| self.user(user));
        let change = self.change();
        self.store.add_device(&change, owner.id, &NewDevice { name, ..Default::default() }).unwrap()
    }

    /// A certificate for the device, valid for an hour, with a serial number and key made of `number`.
    pub(crate) fn certificate(&mut self, device: &Device, number: u8) -> Certificate {
        let change = self.change();
        let certificate = Certificate {
            issuer: issuer(),
            serial: serial(number),
            key: key(number),
            device: device.id,
            not_before: change.now,
            not_after: Timestamp::from_millis(change.now.as_millis() + 3_600_000),
            der: vec![0x30, number],
            revocation: None,
        };
        self.store.add_certificate(&change, &certificate).unwrap();
        certificate
    }

    pub(crate) fn session(&mut self, device: DeviceId) -> Session {
        let now = self.tick();
        self.store.open_session(&start(device, now)).unwrap()
    }

    /// A session and a lease for the device.
    pub(crate) fn lease(&mut self, device: DeviceId) -> Lease {
        let session = self.session(device).id;
        let now = self.tick();
        self.store.lease(&LeaseRequest { device, session, now }).unwrap()
    }

    /// How many audit rows there are.
    pub(crate) fn audits(&self) -> i64 {
        self.number("SELECT count(*) FROM audits")
    }

    /// One number from the database.
    pub(crate) fn number(&self, sql: &str) -> i64 {
        self.store.state().db.raw().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Does to the database what the store itself never does.
    pub(crate) fn meddle(&self, sql: &str) -> Result<(), String> {
        self.store.state().db.raw().execute_batch(sql).map_err(|error| error.to_string())
    }
}

impl World {
    /// How the database finds the steps of a statement's result.
    pub(crate) fn plan(&self, sql: &str) -> Vec<String> {
        let state = self.store.state();
        let mut statement = state.db.raw().prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let mut steps = Vec::new();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().unwrap() {
            steps.push(row.get(3).unwrap());
        }
        steps
    }
}

/// Copies a database with its log, as they are.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
    if log(from).exists() {
        std::fs::copy(log(from), log(to)).unwrap();
    }
}

/// The log beside a database.
pub(crate) fn log(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("adit.db")
}

pub(crate) fn pools(v4: &[&str], v6: &[&str]) -> Pools {
    let v4: Vec<_> = v4.iter().map(|net| net.parse().unwrap()).collect();
    let v6: Vec<_> = v6.iter().map(|net| net.parse().unwrap()).collect();
    Pools::new(&v4, &v6).unwrap()
}

/// Blocks of 64 ports for leases from 10.88.0.0/24; every forwarded port leads to any address of the host.
pub(crate) fn layout(addresses: &[&str], ports: RangeInclusive<u16>) -> Layout {
    layout_of(addresses, ports, Assign::Lease)
}

pub(crate) fn layout_of(addresses: &[&str], ports: RangeInclusive<u16>, assign: Assign) -> Layout {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let pools = vec!["10.88.0.0/24".parse().unwrap()];
    let forward = Forwards { addresses: Vec::new(), ports: "30000-39999".parse().unwrap() };
    let (size, forward, host) = (Size::Ports(64), Some(forward), 64_512..=65_535);
    Layout::new(&Wanted { addresses, ports, size, assign, pools, forward, host }).unwrap()
}

pub(crate) fn issuer() -> Issuer {
    Issuer::from_bytes(&[0xca]).unwrap()
}

pub(crate) fn serial(number: u8) -> Serial {
    Serial::from_bytes(&[number]).unwrap()
}

pub(crate) fn key(number: u8) -> KeyHash {
    KeyHash::from_bytes([number; 32])
}

/// A session without a certificate.
pub(crate) fn start(device: DeviceId, now: Timestamp) -> SessionStart<'static> {
    SessionStart { device, certificate: None, protocol: "test", identity: "default", transport: "udp", now }
}

/// Fails unless the journal is sound: leases end no earlier than they begin, those of one address do not overlap, and
/// no device has two open ones.
pub(crate) fn assert_sound(store: &Store) {
    let state = store.state();
    let sql = "SELECT inner4, inner6, started, ended, device_id FROM leases ORDER BY started, seq";
    let mut statement = state.db.raw().prepare(sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut last_end: HashMap<String, Option<i64>> = HashMap::new();
    let mut open: HashMap<String, u32> = HashMap::new();
    while let Some(row) = rows.next().unwrap() {
        let (started, ended): (i64, Option<i64>) = (row.get(2).unwrap(), row.get(3).unwrap());
        assert!(ended.is_none_or(|ended| ended >= started), "a lease ends before it begins");
        for column in [0, 1] {
            let Some(address) = row.get::<_, Option<String>>(column).unwrap() else { continue };
            match last_end.insert(address.clone(), ended) {
                Some(None) => panic!("{address} was leased while its lease was open"),
                Some(Some(before)) => assert!(started >= before, "two leases of {address} overlap"),
                None => {}
            }
        }
        if ended.is_none() {
            let device: String = row.get(4).unwrap();
            let count = open.entry(device).or_default();
            *count += 1;
            assert_eq!(*count, 1, "a device has two open leases");
        }
    }
}
