use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::testing::{World, assert_sound, copy_files, issuer, log, pools, serial};
use crate::{AuditCheck, Page, Store, TrailCheck, TrailFault};

/// A database of schema version 1 with a little of everything, as version 1 wrote it.
const FIXTURE: &str = include_str!("v1-fixture.sql");

const NOW: Timestamp = Timestamp::from_millis(1_000);

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adit.db");
    (directory, path)
}

fn made_of(sql: &str) -> (TempDir, PathBuf) {
    let (directory, path) = place();
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    (directory, path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn fault_of(path: &Path) -> OpenFault {
    match Store::open(path) {
        Ok(_) => panic!("it opened"),
        Err(fault) => fault,
    }
}

#[test]
fn a_new_database_is_its_owners_alone() {
    let (directory, _) = place();
    let path = directory.path().join("state/deep/adit.db");

    let store = Store::create(&path, NOW).unwrap();
    store.heartbeat(NOW).unwrap();

    assert_eq!((mode(&path), mode(&log(&path))), (0o600, 0o600));
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(path.parent().unwrap().parent().unwrap()), 0o700);
}

#[test]
fn creating_leaves_nothing_but_the_database() {
    let (directory, path) = place();

    drop(Store::create(&path, NOW).unwrap());

    assert_eq!(names(&directory), ["adit.db"]);
}

#[test]
fn nothing_is_overwritten() {
    let (directory, path) = place();
    fs::write(&path, "precious").unwrap();

    assert!(matches!(Store::create(&path, NOW), Err(OpenFault::Exists { .. })));

    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(names(&directory), ["adit.db"]);
}

#[test]
fn the_gateways_id_stays() {
    let (_directory, path) = place();
    let gateway = Store::create(&path, NOW).unwrap().gateway();

    assert_eq!(Store::open(&path).unwrap().gateway(), gateway);
    let (_other, path) = place();
    assert_ne!(Store::create(&path, NOW).unwrap().gateway(), gateway);
}

#[test]
fn a_database_open_to_others_is_closed_to_them() {
    let (_directory, path) = place();
    drop(Store::create(&path, NOW).unwrap());
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();

    let _store = Store::open(&path).unwrap();

    assert_eq!(mode(&path), 0o600);
}

#[test]
fn a_missing_database_is_not_made_up() {
    let (directory, path) = place();

    let fault = fault_of(&path);

    assert!(matches!(fault, OpenFault::Missing { .. }));
    assert!(fault.to_string().contains("adit init"), "{fault}");
    assert_eq!(names(&directory), [""; 0]);
}

#[test]
fn an_empty_file_is_damage_and_not_a_new_database() {
    let (_directory, path) = place();
    fs::write(&path, "").unwrap();

    assert!(matches!(fault_of(&path), OpenFault::Store(StoreFault::Damaged { .. })));

    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn a_file_that_is_no_database_is_damage() {
    let (_directory, path) = place();
    let content = b"[ca]\nkey = \"P-384\"\n".repeat(100);
    fs::write(&path, &content).unwrap();

    let fault = fault_of(&path);

    assert!(matches!(fault, OpenFault::Store(StoreFault::Damaged { .. })), "{fault}");
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn another_programs_database_is_left_alone() {
    let (_directory, path) = made_of("CREATE TABLE bookmarks (url TEXT)");
    let content = fs::read(&path).unwrap();

    assert!(matches!(fault_of(&path), OpenFault::Foreign { .. }));

    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn damage_inside_is_found_at_the_start_and_nothing_is_deleted() {
    let mut world = World::new();
    for number in 0..200 {
        world.user(&format!("user{number}"));
    }
    let (directory, path) = place();
    world.store.backup(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(length / 2)).unwrap();
    file.write_all(&[0xa5; 8_192]).unwrap();

    let fault = fault_of(&path);

    assert!(matches!(fault, OpenFault::Store(StoreFault::Damaged { .. })), "{fault}");
    let text = fault.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("restore a backup"), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().len(), length);
    assert!(names(&directory).contains(&"adit.db".to_owned()));
}

#[test]
fn a_file_cut_short_is_damage() {
    let mut world = World::new();
    for number in 0..200 {
        world.user(&format!("user{number}"));
    }
    let (_directory, path) = place();
    world.store.backup(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();

    assert!(matches!(fault_of(&path), OpenFault::Store(StoreFault::Damaged { .. })));
}

#[test]
fn of_a_large_file_the_tables_that_decide_who_comes_in_are_checked() {
    let mut world = World::new();
    for number in 0..200 {
        world.user(&format!("user{number}"));
    }
    let (_directory, path) = place();
    world.store.backup(&path).unwrap();
    let copy = connect(&path).unwrap();
    check(&copy, &path, CHECKED_WHOLE + 1).unwrap();
    let sql = "SELECT pageno FROM dbstat WHERE name = 'users' AND pagetype = 'leaf' LIMIT 1";
    let page: u32 = copy.query_row(sql, [], |row| row.get(0)).unwrap();
    drop(copy);

    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(u64::from((page - 1) * PAGE))).unwrap();
    file.write_all(&[0xa5; 64]).unwrap();

    let found = check(&connect(&path).unwrap(), &path, CHECKED_WHOLE + 1);
    assert!(matches!(found, Err(OpenFault::Store(StoreFault::Damaged { .. }))));
}

#[test]
fn a_database_in_use_is_not_opened_again() {
    let world = World::new();

    let fault = open_with(&world.path(), Duration::ZERO, MIGRATIONS).err().unwrap();

    assert!(matches!(fault, OpenFault::Store(StoreFault::Locked { .. })), "{fault}");
    assert!(fault.to_string().contains("is adit running already?"));
    assert!(world.store.heartbeat(NOW).is_ok(), "the first goes on");
}

#[test]
fn a_newer_database_is_refused_unchanged() {
    let (_directory, path) = place();
    drop(Store::create(&path, NOW).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let content = fs::read(&path).unwrap();

    let fault = fault_of(&path);

    assert!(matches!(fault, OpenFault::Newer { found: 99, known: 2, .. }));
    assert!(fault.to_string().contains("written by a newer adit"), "{fault}");
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn version_1_is_still_what_it_was() {
    let schema = |connection: &Connection| {
        let sql = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect::<Vec<(String, String)>>()
    };
    let fixture = Connection::open_in_memory().unwrap();
    fixture.execute_batch(FIXTURE).unwrap();
    let fresh = Connection::open_in_memory().unwrap();
    fresh.execute_batch(MIGRATIONS[0]).unwrap();

    assert_eq!(schema(&fresh), schema(&fixture), "a migration that was released is never edited");
}

#[test]
fn a_version_1_database_is_read_in_full() {
    let (_directory, path) = made_of(FIXTURE);

    let store = Store::open(&path).unwrap();

    let users = store.users(true, &Page::default()).unwrap().items;
    let told: Vec<_> = users.iter().map(|row| (row.user.name.as_str(), row.devices)).collect();
    assert_eq!(told, [("ann", 1), ("bob", 0)]);
    let holder = store.certificate(&issuer(), &serial(1)).unwrap().unwrap();
    assert_eq!(holder.device.name.as_str(), "laptop");
    assert!(store.authorize(&serial(1), &holder.certificate.key, NOW).is_ok());
    assert!(holder.certificate.revocation.is_none());
    assert_eq!(store.revocations(&issuer(), &Page::default()).unwrap().items.len(), 1);
    assert_eq!(store.leases(holder.device.id, &Page::default()).unwrap().items.len(), 2);
    assert!(matches!(store.verify_audit().unwrap(), AuditCheck::Intact { rows: 9, .. }));
    store.check().unwrap();
    let recovered = store.recover(Timestamp::from_millis(20_000), 0).unwrap();
    assert_eq!((recovered.leases, recovered.sessions), (1, 1));
}

#[test]
fn leases_of_version_1_precede_the_trail_and_end_in_it() {
    let (_directory, path) = made_of(FIXTURE);
    let store = Store::open(&path).unwrap();
    let intact = |records, base| {
        let check = store.verify_trail(|_| ()).unwrap();
        assert!(
            matches!(check, TrailCheck::Intact { records: r, base: b, .. } if (r, b) == (records, base)),
            "{check:?}"
        );
    };
    intact(0, 13);

    store.recover(Timestamp::from_millis(20_000), 0).unwrap();
    intact(1, 13);

    store.state().db.raw().execute_batch("PRAGMA ignore_check_constraints = 1").unwrap();
    let meddle = |sql: &str| store.state().db.raw().execute_batch(sql).unwrap();
    meddle("DROP TRIGGER leases_end_once; UPDATE leases SET ended = ended + 1 WHERE seq = 13");
    let check = store.verify_trail(|_| ()).unwrap();
    assert!(matches!(check, TrailCheck::Broken { seq: 13, what: TrailFault::LookUp, .. }), "{check:?}");
    meddle("UPDATE leases SET ended = ended - 1 WHERE seq = 13");

    let purged = store.purge(Timestamp::from_millis(30_000)).unwrap();
    assert_eq!((purged.leases, purged.sessions), (2, 2));
    intact(0, 14);
}

/// Two steps that a later version might take.
const LATER: [&str; 2] = [
    "CREATE TABLE quotas (seq INTEGER PRIMARY KEY, device_id TEXT NOT NULL REFERENCES devices (id)) STRICT;",
    "ALTER TABLE users ADD COLUMN quota INTEGER;",
];

#[test]
fn existing_data_is_copied_and_then_migrated() {
    let (directory, path) = made_of(FIXTURE);
    let steps = [MIGRATIONS[0], MIGRATIONS[1], LATER[0], LATER[1]];

    let db = open_with(&path, PATIENCE, &steps).unwrap();

    let version: u32 = db.raw().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 4);
    db.raw().execute_batch("SELECT quota FROM users; SELECT device_id FROM quotas").unwrap();
    drop(db);
    assert_eq!(names(&directory), ["adit.db", "adit.db.before-v4.1"]);
    let copy = directory.path().join("adit.db.before-v4.1");
    assert_eq!(mode(&copy), 0o600);
    let store = Store::open(&copy).unwrap();
    assert_eq!(store.users(true, &Page::default()).unwrap().items.len(), 2);
}

#[test]
fn a_migration_that_fails_changes_nothing_and_keeps_every_copy() {
    let (directory, path) = made_of(FIXTURE);
    let steps = [MIGRATIONS[0], "CREATE TABLE half (done INTEGER); CREATE TABLE users (twice INTEGER);"];

    for _ in 0..2 {
        let fault = open_with(&path, PATIENCE, &steps).err().unwrap();
        assert!(matches!(fault, OpenFault::Migration { from: 1, to: 2, .. }), "{fault}");
    }

    assert_eq!(names(&directory), ["adit.db", "adit.db.before-v2.1", "adit.db.before-v2.2"]);
    let store = Store::open(&path).unwrap();
    let half = "SELECT count(*) FROM sqlite_schema WHERE name = 'half'";
    let half: u32 = store.state().db.raw().query_row(half, [], |row| row.get(0)).unwrap();
    assert_eq!(half, 0);
}

#[test]
fn a_migration_that_leaves_dangling_rows_is_undone() {
    let (_directory, path) = made_of(FIXTURE);
    let steps = [MIGRATIONS[0], "DELETE FROM users"];

    let fault = open_with(&path, PATIENCE, &steps).err().unwrap();

    assert!(fault.to_string().contains("rows of devices that refer to nothing"), "{fault}");
    assert_eq!(Store::open(&path).unwrap().users(true, &Page::default()).unwrap().items.len(), 2);
}

#[test]
fn references_to_nothing_are_refused() {
    let mut world = World::new();
    world.device("ann", "laptop");

    assert!(world.meddle("UPDATE devices SET user_id = 'nobody'").unwrap_err().contains("FOREIGN KEY"));
    assert!(world.meddle("DELETE FROM users").unwrap_err().contains("FOREIGN KEY"));
}

#[test]
fn a_new_database_goes_through_all_migrations_without_a_copy() {
    let (directory, path) = place();
    private_file(&path).unwrap();
    let mut connection = connect(&path).unwrap();

    migrate(&mut connection, &path, &[MIGRATIONS[0], LATER[0], LATER[1]]).unwrap();

    connection.execute_batch("SELECT quota FROM users; SELECT device_id FROM quotas").unwrap();
    drop(connection);
    assert_eq!(names(&directory), ["adit.db"]);
}

#[test]
fn a_backup_is_whole_private_and_new() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop");
    let _lease = world.lease(device.id);
    let (_directory, path) = place();

    world.store.backup(&path).unwrap();

    assert_eq!(mode(&path), 0o600);
    assert!(matches!(world.store.backup(&path), Err(OpenFault::Exists { .. })));
    let copy = Store::open(&path).unwrap();
    assert_eq!(copy.gateway(), world.store.gateway());
    assert_eq!(copy.leases(device.id, &Page::default()).unwrap().items.len(), 1);
    assert!(matches!(copy.verify_audit().unwrap(), AuditCheck::Intact { rows: 2, .. }));
}

#[test]
fn places_in_the_journal_are_never_given_twice() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop");
    let lease = world.lease(device.id);
    let session = world.store.session(lease.session()).unwrap().unwrap();
    let last = world.store.leases(device.id, &Page::default()).unwrap().items[0].seq;
    assert!(session.seq < last);
    let now = world.tick();
    lease.end(now).unwrap();
    world.store.close_session(session.id, now, "done").unwrap();
    world.store.heartbeat(now).unwrap();
    let cut = world.tick();
    assert_eq!(world.store.purge(cut).unwrap().leases, 1);

    let mut world = world.after_a_kill();

    assert!(world.session(device.id).seq > last, "although the row is gone");
}

#[test]
fn a_killed_gateway_loses_nothing() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop");
    let lease = world.lease(device.id);

    let killed = world.after_a_kill();

    let records = killed.store.leases(device.id, &Page::default()).unwrap().items;
    assert_eq!((records[0].id, records[0].ended), (lease.id(), None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A power cut may keep any first part of the log.
    #[test]
    fn a_log_cut_off_anywhere_leaves_a_sound_journal(part in 0.0..1.0_f64) {
        let mut world = World::with_pools(&["10.88.0.0/29"], &["fd88::/64"]);
        let devices: Vec<_> = ["laptop", "phone", "tablet"].map(|name| world.device("ann", name).id).into();
        let mut held = Vec::new();
        for round in 0..12 {
            held.push(world.lease(devices[round % 3]));
            if round % 4 == 3 {
                drop(held.remove(0));
            }
        }
        let (_directory, path) = place();
        copy_files(&world.path(), &path);
        let length = fs::metadata(log(&path)).unwrap().len();
        let file = OpenOptions::new().write(true).open(log(&path)).unwrap();
        file.set_len((length as f64 * part) as u64).unwrap();

        let store = Store::open(&path).unwrap();
        store.check().unwrap();
        store.recover(world.tick(), 0).unwrap();
        store.set_pools(pools(&["10.88.0.0/29"], &["fd88::/64"])).unwrap();

        assert_sound(&store);
        let audit = store.verify_audit().unwrap();
        prop_assert!(matches!(audit, AuditCheck::Intact { .. }), "{audit:?}");
    }
}
