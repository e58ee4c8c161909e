use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::testing::{World, layout};
use crate::{ForwardProtocol, LeaseRequest, NewForward, SessionStart, Store, Timestamp};

/// A world with several records of each kind, open ones and ended ones.
fn everything() -> World {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let devices = ["laptop", "phone", "tablet"].map(|name| world.device("ann", name));
    let ports = "30000-30009".parse().unwrap();
    let mut held = Vec::new();
    for round in 0..3_u8 {
        let now = world.tick();
        world
            .store
            .set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_999 + u16::from(round) * 10)), now)
            .unwrap();
        for (number, device) in (1..).zip(&devices) {
            let certificate = world.certificate(device, round * 3 + number);
            let now = world.tick();
            let start = SessionStart {
                certificate: Some((&certificate.serial, &certificate.key)),
                ..crate::testing::start(device.id, now)
            };
            let session = world.store.open_session(&start).unwrap().id;
            held.push(world.store.lease(&LeaseRequest { device: device.id, session, now }).unwrap());
            let (port, expires) = (None, Some(Timestamp::from_millis(now.as_millis() + 3_600_000)));
            let (device, protocol) = (device.id, ForwardProtocol::Tcp);
            let new = NewForward {
                device,
                protocols: &[protocol],
                port,
                to_port: 22,
                expires,
                ports: &ports,
                per_user: 9,
            };
            let change = world.change();
            let forward = world.store.add_forward(&change, &new).unwrap().remove(0);
            if round == 1 {
                world.store.end_forward(&change, forward.id).unwrap();
            }
        }
        let (now, lease) = (world.tick(), held.remove(0));
        lease.end(now).unwrap();
        world.store.clock_stepped(now, -1_500).unwrap();
    }
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_989)), now).unwrap();
    for left in world.store.quarantined().unwrap().into_iter().step_by(2) {
        assert!(world.store.release_block(left.block, left.owner.inner, now).unwrap());
    }
    let now = world.tick();
    world.store.heartbeat(now).unwrap();
    held.remove(0).end(now).unwrap();
    // The rest stays open, as after a crash.
    held.into_iter().for_each(std::mem::forget);
    world
}

fn check(world: &World) -> TrailCheck {
    world.store.verify_trail(|_| ()).unwrap()
}

/// Lets a test change what the database refuses to change.
fn unlock(world: &World) {
    world.meddle("PRAGMA ignore_check_constraints = 1; PRAGMA foreign_keys = 0").unwrap();
    let state = world.store.state();
    let mut statement =
        state.db.raw().prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'").unwrap();
    let names: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for name in names {
        state.db.raw().execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
    }
}

#[test]
fn an_untouched_trail_is_intact() {
    let world = everything();
    let TrailCheck::Intact { records, head, base: 0, .. } = check(&world) else { panic!() };
    let tables = "(SELECT count(*) FROM leases) + (SELECT count(*) FROM blocks) + (SELECT count(*) FROM epochs) \
                  + (SELECT count(*) FROM forwards) + (SELECT count(*) FROM clock_steps) + (SELECT count(*) FROM ends)";
    assert_eq!(records as i64, world.number(&format!("SELECT {tables}")));
    for table in ["leases", "blocks", "epochs", "forwards", "clock_steps", "ends"] {
        assert!(world.number(&format!("SELECT count(*) FROM {table}")) > 2, "{table}");
    }
    assert!(world.number("SELECT count(*) FROM blocks WHERE ended IS NOT NULL") > 0);

    let again = world.after_a_kill();
    assert!(matches!(check(&again), TrailCheck::Intact { head: h, .. } if h == head));
}

#[test]
fn a_changed_octet_is_found_in_every_table_and_column() {
    let world = everything();
    unlock(&world);
    let raw = |sql: &str| world.meddle(sql).unwrap_or_else(|fault| panic!("{sql}: {fault}"));
    let mut columns = Vec::new();
    for table in ["leases", "blocks", "epochs", "forwards", "clock_steps", "ends"] {
        let state = world.store.state();
        let mut statement = state.db.raw().prepare(&format!("PRAGMA table_info({table})")).unwrap();
        let read = statement.query_map([], |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
        columns.extend(read.map(|column: Result<(String, String), _>| (table, column.unwrap())));
    }
    columns.push(("gateways", ("trail_seq".to_owned(), "INTEGER".to_owned())));
    columns.push(("gateways", ("trail_hash".to_owned(), "BLOB".to_owned())));
    columns.push(("gateways", ("base_seq".to_owned(), "INTEGER".to_owned())));
    columns.push(("gateways", ("base_hash".to_owned(), "BLOB".to_owned())));
    columns.push(("sessions", ("certificate_serial".to_owned(), "TEXT".to_owned())));
    assert_eq!(columns.len(), 10 + 8 + 7 + 11 + 5 + 4 + 5);

    for (table, (column, kind)) in columns {
        // Sessions are no part of the trail, but the certificate they were opened with is.
        let key = if table == "gateways" { "number" } else { "seq" };
        let rows: Vec<i64> = {
            let state = world.store.state();
            let sql = format!("SELECT {key} FROM {table}");
            let mut statement = state.db.raw().prepare(&sql).unwrap();
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        for row in rows {
            let changed: &[&str] = match kind.as_str() {
                // A place that is another's would be refused.
                "INTEGER" if column == "seq" => &["seq + 1000000"],
                "INTEGER" if column == "base_seq" => &["(SELECT min(seq) FROM epochs)"],
                "INTEGER" => &["coalesce({c}, 70000000) + 100"],
                "TEXT" => &["coalesce({c}, '') || '0'", "'0' || substr({c}, 2) || ' '"],
                _ => &[
                    "CAST(iif(substr({c}, 1, 1) = X'01', X'02', X'01') || substr({c}, 2) AS BLOB)",
                    "CAST(substr({c}, 1, length({c}) - 1) || iif(substr({c}, -1) = X'01', X'02', X'01') AS BLOB)",
                ],
            };
            for value in changed {
                let value = value.replace("{c}", &column);
                raw("SAVEPOINT before");
                raw(&format!("UPDATE {table} SET {column} = {value} WHERE {key} = {row}"));
                let found = world.store.verify_trail(|_| ());
                raw("ROLLBACK TO before; RELEASE before");
                assert!(
                    !matches!(found, Ok(TrailCheck::Intact { .. })),
                    "{table}.{column} = {value} in row {row} went unnoticed"
                );
            }
        }
    }
    assert!(matches!(check(&world), TrailCheck::Intact { .. }));
}

#[test]
fn what_is_wrong_is_named_where_it_begins() {
    let world = everything();
    unlock(&world);
    let number = |sql: &str| world.number(sql);
    let lease = number("SELECT min(seq) FROM leases");
    let ended = number("SELECT min(seq) FROM leases WHERE ended IS NOT NULL");
    let next = number(&format!(
        "SELECT min(seq) FROM (SELECT seq FROM blocks UNION SELECT seq FROM leases UNION SELECT seq FROM ends \
         UNION SELECT seq FROM forwards) WHERE seq > {lease}"
    ));
    let promised = number("SELECT trail_seq FROM gateways");
    use TrailFault::{Content, End, LookUp, Order};
    for (sql, seq, table, what) in [
        (
            format!("UPDATE leases SET inner4 = '10.88.0.99' WHERE seq = {lease}"),
            lease,
            TrailTable::Leases,
            Content,
        ),
        (format!("DELETE FROM leases WHERE seq = {lease}"), next, TrailTable::Blocks, Order),
        (
            format!("UPDATE leases SET ended = ended + 1 WHERE seq = {ended}"),
            ended,
            TrailTable::Leases,
            LookUp,
        ),
        (format!("UPDATE leases SET ended = NULL WHERE seq = {ended}"), ended, TrailTable::Leases, LookUp),
        (
            "UPDATE leases SET ended = 9999999 WHERE seq = (SELECT max(seq) FROM leases WHERE ended IS NULL)"
                .to_owned(),
            number("SELECT max(seq) FROM leases WHERE ended IS NULL"),
            TrailTable::Leases,
            LookUp,
        ),
        (
            ["leases", "blocks", "epochs", "forwards", "clock_steps", "ends"]
                .map(|table| format!("DELETE FROM {table} WHERE seq >= {promised};"))
                .concat(),
            promised,
            TrailTable::Gateways,
            End,
        ),
    ] {
        world.meddle("SAVEPOINT before").unwrap();
        world.meddle(&sql).unwrap();
        let found = check(&world);
        world.meddle("ROLLBACK TO before; RELEASE before").unwrap();
        assert_eq!(found, TrailCheck::Broken { seq, table, what }, "{sql}");
    }
}

#[test]
fn the_database_itself_refuses_to_change_the_trail() {
    let world = everything();
    for sql in [
        "UPDATE ends SET at = at + 1",
        "UPDATE epochs SET started = 0",
        "UPDATE clock_steps SET step_ms = 0",
        "UPDATE blocks SET number = number + 1",
        "UPDATE blocks SET ended = NULL",
        "UPDATE forwards SET port = port + 1",
        "UPDATE leases SET hash = zeroblob(36)",
        "DELETE FROM ends",
        "DELETE FROM epochs",
        "DELETE FROM clock_steps",
        "DELETE FROM blocks",
        "DELETE FROM forwards",
        "DELETE FROM leases",
        "INSERT INTO ends (seq, of, at, hash) SELECT 1, of, at, hash FROM ends",
        "INSERT INTO blocks SELECT seq + 1000, gateway_id, lease, epoch, number, started, NULL, hash FROM blocks \
         WHERE ended IS NULL",
        "INSERT INTO forwards SELECT seq + 1000, gateway_id, 'x', device_id, protocol, port, to_port, started, expires, \
         NULL, hash FROM forwards WHERE ended IS NULL",
        "INSERT INTO epochs SELECT seq + 1000, gateway_id, started - 1, layout, digest, prev_hash, hash FROM epochs",
    ] {
        assert!(world.meddle(sql).is_err(), "{sql}");
    }
    assert!(matches!(check(&world), TrailCheck::Intact { .. }));
}

#[test]
fn a_transaction_that_fails_leaves_the_chain_as_it_was() {
    let mut world = everything();
    let device = world.device("bob", "laptop").id;
    let session = world.session(device).id;
    world
        .meddle("CREATE TRIGGER stuck BEFORE INSERT ON blocks BEGIN SELECT RAISE(ABORT, 'stuck'); END")
        .unwrap();
    let now = world.tick();
    let request = LeaseRequest { device, session, now };
    assert!(world.store.lease(&request).is_err());
    world.meddle("DROP TRIGGER stuck").unwrap();

    let lease = world.store.lease(&request).unwrap();

    assert!(lease.block().is_some());
    world.store.heartbeat(now).unwrap();
    assert!(matches!(check(&world), TrailCheck::Intact { .. }));
}

#[test]
fn the_trail_is_verified_while_it_grows_and_is_purged() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_999)), now).unwrap();
    let device = world.device("ann", "laptop").id;
    let store: Store = world.store.clone();
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        let verifying = scope.spawn(|| {
            let mut checks = Vec::new();
            while !done.load(Ordering::Relaxed) || checks.len() < 3 {
                checks.push(store.verify_trail(|_| ()).unwrap());
            }
            checks
        });
        for round in 0..1_500 {
            drop(world.lease(device));
            if round % 500 == 499 {
                let now = world.tick();
                world.store.heartbeat(now).unwrap();
                let cut = world.tick();
                assert!(world.store.purge(cut).unwrap().leases > 400);
            }
        }
        done.store(true, Ordering::Relaxed);
        for check in verifying.join().unwrap() {
            assert!(matches!(check, TrailCheck::Intact { .. }), "{check:?}");
        }
    });
}

#[test]
fn the_encoding_is_as_documented() {
    let mut world = World::new();
    let now = world.tick();
    world.store.clock_stepped(now, -2).unwrap();
    let state = world.store.state();
    let sql = "SELECT seq, hash FROM clock_steps";
    let (seq, hash): (i64, Vec<u8>) =
        state.db.raw().query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let gateway = state.db.sql().gateway().to_string();
    let mut octets = Vec::new();
    let fields: [&[u8]; 8] = [
        b"adit-trail-1",
        gateway.as_bytes(),
        b"clock_steps",
        &seq.to_be_bytes(),
        &1_i64.to_be_bytes(),
        &now.as_millis().to_be_bytes(),
        &(-2_i64).to_be_bytes(),
        &[0; 32],
    ];
    for field in fields {
        octets.extend_from_slice(&(field.len() as u64).to_be_bytes());
        octets.extend_from_slice(field);
    }
    assert_eq!(hash, [[0; 4].as_slice(), &sha256(&octets)].concat());
}
