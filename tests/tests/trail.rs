//! What is kept of who had what: a record that cannot be changed unseen, whose every reading is written down.
//!
//! Whoever changes it here is root with SQLite, and knows of the triggers.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use adit_testbed::{Gateway, Network, OpenVpnClient, Outcome, Witness, eventually, require};
use adit_tests::calls::{forward, named, now, trace};
use rusqlite::Connection;
use serde_json::{Value, json};

const LATE: Duration = Duration::from_secs(60);

/// The gateway's database.
struct Database {
    file: PathBuf,
    /// As it was written.
    pristine: Vec<u8>,
}

impl Database {
    /// The database of a gateway that does not run.
    fn of(gateway: &Gateway) -> Self {
        let file = gateway.path("state/adit.db");
        // What is still in the log goes into the file.
        Connection::open(&file)
            .unwrap()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        let pristine = std::fs::read(&file).unwrap();
        Self { file, pristine }
    }

    fn open(&self) -> Connection {
        Connection::open(&self.file).unwrap()
    }

    /// Puts everything back as it was written.
    fn restore(&self) {
        for log in ["-wal", "-shm"] {
            let mut log_file = self.file.clone().into_os_string();
            log_file.push(log);
            let _ = std::fs::remove_file(log_file);
        }
        std::fs::write(&self.file, &self.pristine).unwrap();
    }

    /// Changes what is there behind the triggers' back; they are there again afterwards.
    fn tamper(&self, change: &str) {
        let sql = self.open();
        let triggers: Vec<(String, String)> = sql
            .prepare("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert!(sql.execute(change, []).is_err(), "by itself it is refused: {change}");
        for (name, _) in &triggers {
            sql.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
        }
        assert!(sql.execute(change, []).unwrap() > 0, "nothing to change: {change}");
        for (_, again) in &triggers {
            sql.execute_batch(again).unwrap();
        }
    }
}

/// What `trace verify` says of a trail that is whole: how many records, and the last one's hash.
#[track_caller]
fn intact(gateway: &Gateway) -> (u64, String) {
    let report = gateway.json(&["trace", "verify"]);
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["broken_at", "head", "ok", "problem", "records"]);
    assert_eq!((&report["ok"], &report["broken_at"]), (&json!(true), &Value::Null), "{report}");
    (report["records"].as_u64().unwrap(), report["head"].as_str().unwrap().to_owned())
}

#[test]
fn a_changed_byte_of_the_record_is_found_and_its_place_is_named() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.set("forward", "per_user", "5");
    gateway.set("tunnel", "linger", "\"0s\"");
    gateway.up();
    let mut profiles = Vec::new();
    for user in ["ann", "bob"] {
        profiles.push(gateway.add_user(user, &[]));
    }
    let _ = forward(&gateway, "ann", 22, &["--proto", "tcp"]);
    for _ in 0..2 {
        let clients: Vec<_> =
            (0..2).map(|n| OpenVpnClient::connect(network.client(n), &profiles[n])).collect();
        gateway.wait_for_sessions(2, LATE);
        clients.into_iter().for_each(OpenVpnClient::stop);
        gateway.wait_for_sessions(0, LATE);
    }
    // An epoch, a forward, and for each session a lease, its block and its end, which may take a few seconds.
    eventually("all records", LATE, || intact(&gateway).0 >= 1 + 1 + 4 * 3);
    gateway.stop();
    let (at_rest, head) = intact(&gateway);
    assert!(at_rest >= 1 + 1 + 4 * 3);
    let text = gateway.ok(&["trace", "verify"]);
    assert!(text.contains(&format!("{at_rest} records, all as they were written")), "{text}");
    assert!(text.contains(&head), "{text}");

    let database = Database::of(&gateway);
    let place = |query: &str| -> i64 { database.open().query_row(query, [], |row| row.get(0)).unwrap() };
    let lease = place("SELECT min(seq) FROM leases");
    let block = place("SELECT max(seq) FROM blocks");
    let epoch = place("SELECT min(seq) FROM epochs");
    let forwarded = place("SELECT min(seq) FROM forwards");
    let (end, ended) =
        (place("SELECT min(seq) FROM ends"), place("SELECT of FROM ends ORDER BY seq LIMIT 1"));
    let last_end = place("SELECT max(seq) FROM ends");
    let address: String =
        database.open().query_row("SELECT inner4 FROM leases WHERE seq = ?1", [lease], |r| r.get(0)).unwrap();
    // Another digit at the end.
    let digit = if address.ends_with('2') { '3' } else { '2' };
    let other = format!("{}{digit}", &address[..address.len() - 1]);
    let content = "the content is not what was written";
    for (change, found_at, words) in [
        (format!("UPDATE leases SET inner4 = '{other}' WHERE seq = {lease}"), Some(lease), content),
        (format!("UPDATE leases SET started = started + 1 WHERE seq = {lease}"), Some(lease), content),
        (
            format!(
                "UPDATE leases SET device_id = (SELECT id FROM devices WHERE id <> device_id) WHERE seq = {lease}"
            ),
            Some(lease),
            content,
        ),
        (format!("UPDATE leases SET ended = ended - 1 WHERE seq = {ended}"), Some(ended), "`ended`"),
        (format!("UPDATE blocks SET number = number + 1 WHERE seq = {block}"), Some(block), content),
        (format!("UPDATE forwards SET port = port + 1 WHERE seq = {forwarded}"), Some(forwarded), content),
        (format!("UPDATE epochs SET layout = layout || ' ' WHERE seq = {epoch}"), Some(epoch), content),
        (format!("UPDATE ends SET at = at + 1 WHERE seq = {end}"), Some(end), content),
        (format!("DELETE FROM ends WHERE seq = {last_end}"), None, "records"),
        (format!("DELETE FROM blocks WHERE seq = {block}"), None, "records were left out or put in"),
        (
            format!(
                "UPDATE sessions SET certificate_serial = '01' WHERE id = (SELECT session_id FROM leases WHERE seq = {lease})"
            ),
            Some(lease),
            content,
        ),
    ] {
        database.tamper(&change);
        let outcome = gateway.cli(&["trace", "verify", "--json"]);
        let line = outcome.refusal();
        assert!(
            line.contains("the record is not as it was written") && line.contains(words),
            "{change}: {line}"
        );
        let report: Value = serde_json::from_str(&outcome.out).unwrap();
        assert_eq!((&report["ok"], &report["head"]), (&json!(false), &Value::Null), "{report}");
        assert!(line.contains(&format!("at place {}", report["broken_at"])), "{line}: {report}");
        if let Some(place) = found_at {
            assert_eq!(report["broken_at"], place, "{change}: {report}");
        }
        database.restore();
    }
    assert_eq!(intact(&gateway), (at_rest, head), "put back, it is whole again");
}

/// Every question of the audit trail: whose address, and the particulars.
fn questions(database: &Database) -> Vec<(String, Value)> {
    let sql = database.open();
    let mut rows =
        sql.prepare("SELECT subject, detail FROM audits WHERE action = 'trace.query' ORDER BY seq").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).unwrap();
    rows.map(Result::unwrap)
        .map(|(subject, detail)| (subject, serde_json::from_str(&detail).unwrap()))
        .collect()
}

#[test]
fn nobody_is_named_without_a_reason_where_one_is_required_and_each_question_is_written_down() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.set("trace", "require_reason", "true");
    gateway.up();
    let witness = Witness::start(&network.outside, network.outside_address(), 1);
    let client = OpenVpnClient::connect(network.client(0), &gateway.add_user("ann", &[]));
    client.host().run_in(|| witness.call("ann", true, 0)).unwrap();
    let seen = witness.seen().pop().unwrap();
    let (at, port) = (format!("{}.{:03}", seen.at / 1000, seen.at % 1000), seen.remote.port().to_string());
    let ask = |gateway: &Gateway, options: &[&str]| -> Outcome {
        let question = ["trace", "--json", "--at", &at, "--address", "198.51.100.1", "--port", &port];
        gateway.cli(&[&question[..], options].concat())
    };
    let file = gateway.path("batch.csv");
    std::fs::write(&file, format!("time,address,port\n{at},198.51.100.1,{port}\n{at},2001:db8::7,\n"))
        .unwrap();
    let batch = ["trace", "--json", "--batch", file.to_str().unwrap()];

    for (refused, how) in [
        (ask(&gateway, &[]), "none"),
        (ask(&gateway, &["--reason", "  "]), "blank"),
        (gateway.cli(&batch), "a batch"),
    ] {
        assert!(refused.refusal().contains("nobody is named without a reason"), "{how}: {refused:?}");
        assert!(!refused.out.contains("ann") && !refused.out.contains("matches"), "{how}: {refused:?}");
    }
    let ann = ["nat", "ann", "laptop"].map(str::to_owned);
    let found = ask(&gateway, &["--reason", "case 4711", "--proto", "tcp", "--tolerance", "500ms"]);
    assert_eq!(named(&found), std::slice::from_ref(&ann));
    let answers = gateway.cli(&[&batch[..], &["--reason", "case 4712"]].concat());
    let answers: Value = serde_json::from_str(&answers.out).unwrap();
    assert_eq!((&answers["found"], &answers["nobody"]), (&json!(1), &json!(1)));
    // It makes no difference that nobody is found, or that no gateway runs.
    let at_no_time = ["trace", "--at", "1000", "--address", "198.51.100.1", "--reason", "case 4713"];
    assert_eq!(gateway.cli(&at_no_time).code, Some(3));
    client.stop();
    gateway.stop();
    assert!(ask(&gateway, &[]).refusal().contains("nobody is named without a reason"));
    assert_eq!(named(&ask(&gateway, &["--reason", "case 4714"])), [ann]);

    let asked = questions(&Database::of(&gateway));
    let reasons: Vec<_> = asked.iter().map(|(_, detail)| detail["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["case 4711", "case 4712", "case 4712", "case 4713", "case 4714"], "{asked:?}");
    let addresses: Vec<_> = asked.iter().map(|(address, _)| address.as_str()).collect();
    let exit = "198.51.100.1";
    assert_eq!(addresses, [exit, exit, "2001:db8::7", exit, exit]);
    let first = &asked[0].1;
    assert_eq!((&first["port"], &first["protocol"]), (&json!(seen.remote.port()), &json!("tcp")));
    assert_eq!(first["tolerance_ms"], 500);
    assert!(first["at"].as_str().unwrap().starts_with("20"), "{first}");
    assert_eq!(asked[3].1["port"], Value::Null);
}

#[test]
fn a_clock_that_is_set_back_ends_no_connection_and_breaks_no_record() {
    require("faketime");
    let network = Network::with_clients(3);
    // Two blocks.
    let mut gateway = Gateway::with(&network, &["--pool4", "10.88.0.0/29", "--pool6", "2001:db8:88::/64"]);
    gateway.set("nat", "ports", "\"64384-64511\"");
    gateway.set("tunnel", "linger", "\"0s\"");
    let clock = gateway.path("clock");
    let set_clock = |offset: &str| {
        // At once, for it is read all the time.
        std::fs::write(clock.with_extension("new"), offset).unwrap();
        std::fs::rename(clock.with_extension("new"), &clock).unwrap();
    };
    set_clock("+0s\n");
    let library =
        Command::new("faketime").args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"]).output().unwrap();
    gateway.env("LD_PRELOAD", String::from_utf8(library.stdout).unwrap().trim());
    gateway.env("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap());
    gateway.env("FAKETIME_NO_CACHE", "1");
    gateway.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    gateway.up();
    let witness = Witness::start(&network.outside, network.outside_address(), 2);
    let join = |gateway: &Gateway, n: usize, user: &str| {
        OpenVpnClient::connect(network.client(n), &gateway.add_user(user, &[]))
    };
    let (ann, bob) = (join(&gateway, 0, "ann"), join(&gateway, 1, "bob"));
    let mut calls: Vec<_> =
        [true, false].map(|tcp| ann.host().run_in(|| witness.call("ann", tcp, 0)).unwrap()).into();
    let shown = gateway.json(&["nat", "show", "ann"]);
    let remote = calls[0].local();
    assert_eq!(remote.ip(), ann.inner4());
    let before = gateway.json(&["nat", "show", "bob"])["blocks"][0].clone();
    assert_eq!(named(&trace(&gateway, &now(), witness.seen()[0].remote, true)).len(), 1);

    // Certificates count from five minutes before they are made.
    set_clock("-120s\n");
    // The mapping and the connections by it are as they were.
    for call in &mut calls {
        call.say("still here").unwrap();
    }
    assert_eq!(gateway.json(&["nat", "show", "ann"])["blocks"], shown["blocks"]);
    // Who comes now gets what somebody had until a time that is yet to come.
    bob.stop();
    gateway.wait_for_sessions(1, LATE);
    let carl = join(&gateway, 2, "carl");
    carl.host().run_in(|| witness.call("carl", true, 1)).unwrap();
    let seen = witness.seen().pop().unwrap();
    let block = gateway.json(&["nat", "show", "carl"])["blocks"][0].clone();
    assert_eq!((&block["block"], seen.name.as_str()), (&before["block"], "carl"));
    let answer = trace(&gateway, &now(), seen.remote, true);
    assert_eq!(named(&answer), [["nat", "carl", "laptop"].map(str::to_owned)], "{answer:?}");
    // A change of the layout, too, is no earlier than what was before it.
    gateway.set("nat", "block", "32");
    gateway.ok(&["reload"]);
    for call in &mut calls {
        call.say("still here").unwrap();
    }
    let (records, _) = intact(&gateway);

    carl.stop();
    ann.stop();
    gateway.stop();
    gateway.up();
    assert!(intact(&gateway).0 > records);
}
