//! The command line as scripts and people use it: texts, JSON, exit codes, with a running gateway and without.
//!
//! ```text
//!  client 0 ──┐ 198.18.0.2
//!  client 1 ──┴─ access ─── gateway ─── router ─── outside
//!              192.0.2.1:1194          203.0.113.2
//! ```

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adit_testbed::{
    Gateway, Network, OpenVpnClient, Outcome, Pinger, TestPki, adit, eventually, ping, require,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

/// The keys of an object.
#[track_caller]
fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("an object: {value}")).keys().map(String::as_str).collect()
}

/// All of these keys are there; there may be more.
#[track_caller]
fn has_keys(value: &Value, wanted: &[&str]) {
    let missing: Vec<_> = wanted.iter().filter(|key| !keys(value).contains(*key)).collect();
    assert!(missing.is_empty(), "{missing:?} missing in {value}");
}

/// A time as RFC 3339 in UTC.
#[track_caller]
fn is_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("a time: {value}"));
    let form = text.len() >= 20 && text.as_bytes()[10] == b'T' && text.ends_with('Z');
    assert!(form && text.starts_with("20"), "{text}");
}

/// A refusal, in words on standard error, and with `--json` as an object on standard output as well.
#[track_caller]
fn refuses(gateway: &Gateway, command: &[&str], status: u64, words: &str) {
    let text = gateway.cli(command);
    assert!(text.refusal().starts_with("adit: ") && text.err.contains(words), "{command:?}: {text:?}");
    assert_eq!(text.out, "");
    let json = gateway.cli(&[command, &["--json"]].concat());
    assert_eq!(json.refusal(), text.refusal());
    let problem: Value = serde_json::from_str(&json.out).unwrap_or_else(|error| panic!("{error}: {json:?}"));
    assert_eq!(keys(&problem), BTreeSet::from(["type", "status", "title", "detail"]));
    assert_eq!(problem["status"], status, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// The same commands do the same, whoever carries them out: the running gateway, or nobody but the command itself.
fn everyday_commands(gateway: &Gateway) {
    assert!(gateway.ok(&["user", "list"]).contains("no users yet"));
    assert_eq!(gateway.json(&["user", "list"]), json!({ "users": [], "next": null }));
    assert!(gateway.ok(&["device", "list"]).contains("no devices yet"));

    let ann = gateway.json(&["user", "add", "ann", "--device", "laptop"]);
    has_keys(&ann, &["id", "name", "state", "devices", "created"]);
    assert_eq!((&ann["name"], &ann["state"], &ann["devices"]), (&json!("ann"), &json!("active"), &json!(1)));
    assert!(ann["id"].is_string());
    is_time(&ann["created"]);
    let text = gateway.ok(&["user", "add", "bob"]);
    assert!(text.contains("user bob added") && text.contains("adit device add bob"), "{text}");
    let users = gateway.json(&["user", "list"]);
    assert_eq!(keys(&users), BTreeSet::from(["users", "next"]));
    assert_eq!(users["users"][0], ann);
    assert_eq!((&users["users"][1]["name"], &users["users"][1]["devices"]), (&json!("bob"), &json!(0)));
    let text = gateway.ok(&["user", "list"]);
    assert!(text.starts_with("USER") && text.contains("ann") && text.contains("bob"), "{text}");

    let phone = gateway.json(&["device", "add", "bob", "phone", "--prefix", "192.168.7.0/24"]);
    has_keys(&phone, &["id", "user", "device", "prefixes", "certificate", "certificate_serial", "revoked"]);
    assert_eq!((&phone["user"], &phone["device"]), (&json!("bob"), &json!("phone")));
    assert_eq!((&phone["prefixes"], &phone["certificate"]), (&json!(["192.168.7.0/24"]), &json!("valid")));
    is_time(&phone["certificate_expires"]);
    assert_eq!(phone["revoked"], Value::Null, "what is absent is null, and there");
    let devices = gateway.json(&["device", "list"]);
    assert_eq!(devices["devices"].as_array().unwrap().len(), 2);
    assert_eq!(gateway.json(&["device", "list", "bob"])["devices"], json!([phone]));
    assert!(gateway.ok(&["device", "list", "bob"]).contains("192.168.7.0/24"));

    let profile = gateway.ok(&["profile", "ann", "laptop", "--transport", "udp", "--port", "1194"]);
    assert_eq!(profile.lines().filter(|line| line.starts_with("remote ")).count(), 1, "{profile}");
    assert!(profile.contains("\nremote 192.0.2.1 1194 udp\n"), "{profile}");
    let both = gateway.json(&["profile", "ann", "laptop"]);
    assert_eq!(keys(&both), BTreeSet::from(["user", "device", "profile"]));
    let both = both["profile"].as_str().unwrap();
    assert!(both.contains("\nremote 192.0.2.1 1194 udp\n") && both.contains("\nremote 192.0.2.1 1194 tcp"));

    let identities = gateway.json(&["identity", "list"]);
    assert_eq!(keys(&identities), BTreeSet::from(["identities", "next"]));
    let names: Vec<_> = identities["identities"].as_array().unwrap().iter().map(|i| &i["name"]).collect();
    assert_eq!(names, ["default", "compat"]);
    has_keys(&identities["identities"][0], &["name", "key", "wrap", "auth", "port", "certificate_serial"]);
    is_time(&identities["identities"][0]["certificate_expires"]);
    assert!(gateway.ok(&["identity", "list"]).contains("tls-crypt-v2"));
    let ed = ["identity", "add", "ed", "--key", "Ed25519", "--wrap", "tls-auth", "--auth", "SHA512"];
    let ed = gateway.json(&ed);
    assert_eq!(
        (&ed["key"], &ed["wrap"], &ed["auth"]),
        (&json!("Ed25519"), &json!("tls-auth"), &json!("SHA512"))
    );
    let rotated = gateway.json(&["identity", "rotate", "ed"]);
    assert_ne!(rotated["certificate_serial"], ed["certificate_serial"]);
    assert!(gateway.config_text().contains("# The gateway's configuration."), "comments stay");
    gateway.ok(&["identity", "remove", "ed"]);
    assert!(!gateway.config_text().contains("Ed25519\""));
    assert_eq!(gateway.json(&["identity", "list"]), identities);

    let before = gateway.json(&["ca", "status"]);
    has_keys(&before, &["subject", "key", "serial", "expires", "revoked", "crl_updated", "crl_expires"]);
    assert_eq!(before["key"], "P-384");
    let revoked_before = before["revoked"].as_u64().expect("a figure");
    ["expires", "crl_updated", "crl_expires"].iter().for_each(|key| is_time(&before[key]));
    let revoked = gateway.json(&["device", "revoke", "bob", "phone"]);
    has_keys(&revoked, &["user", "device", "sessions_closed", "millis"]);
    assert_eq!(gateway.json(&["ca", "status"])["revoked"], revoked_before + 1);
    assert!(gateway.ok(&["ca", "status"]).contains(&format!("CRL: {} revoked", revoked_before + 1)));

    let cut = gateway.json(&["user", "suspend", "ann"]);
    assert_eq!(keys(&cut), BTreeSet::from(["user", "sessions_closed", "millis"]));
    assert_eq!((&cut["user"], &cut["sessions_closed"]), (&json!("ann"), &json!(0)));
    assert_eq!(gateway.json(&["user", "list"])["users"][0]["state"], "suspended");
    assert_eq!(gateway.json(&["user", "resume", "ann"])["state"], "active");
    let cut = gateway.json(&["user", "remove", "bob"]);
    assert_eq!(keys(&cut), BTreeSet::from(["user", "sessions_closed", "millis"]));
    assert!(gateway.ok(&["user", "remove", "ann"]).contains("user ann removed, 0 sessions cut"));
    assert_eq!(gateway.json(&["user", "list"])["users"], json!([]));
    assert_eq!(
        files(&gateway.path("state/devices")),
        Vec::<PathBuf>::new(),
        "keys that are of no use any more"
    );
}

fn errors_are_clear(gateway: &Gateway) {
    gateway.ok(&["user", "add", "kim", "--device", "laptop"]);
    refuses(gateway, &["user", "remove", "nobody"], 404, "there is no user named nobody");
    refuses(gateway, &["user", "suspend", "nobody"], 404, "there is no user named nobody");
    refuses(gateway, &["user", "resume", "nobody"], 404, "there is no user named nobody");
    refuses(gateway, &["profile", "nobody", "laptop"], 404, "there is no user named nobody");
    refuses(gateway, &["device", "add", "nobody", "phone"], 404, "there is no user named nobody");
    refuses(gateway, &["device", "list", "nobody"], 404, "there is no user named nobody");
    refuses(gateway, &["device", "revoke", "kim", "phone"], 404, "there is no device of kim named phone");
    refuses(gateway, &["profile", "kim", "phone"], 404, "there is no device of kim named phone");
    refuses(gateway, &["user", "add", "kim"], 409, "there is a user named kim already");
    refuses(gateway, &["user", "add", "KIM"], 409, "already");
    refuses(gateway, &["device", "add", "kim", "laptop"], 409, "there is a device named laptop already");
    refuses(gateway, &["user", "add", "k m"], 422, "a name consists of letters");
    refuses(gateway, &["user", "add", "../etc"], 422, "a name consists of letters");
    refuses(gateway, &["user", "add", &"k".repeat(65)], 422, "a name has at most 64 characters");
    refuses(gateway, &["user", "add", ""], 422, "a name cannot be empty");
    refuses(gateway, &["user", "add", "lee", "--device", "a b"], 422, "a name consists of letters");
    refuses(gateway, &["device", "list", "lee"], 404, "there is no user named lee");
    refuses(gateway, &["profile", "kim", "laptop", "--identity", "x"], 404, "there is no identity named x");
    refuses(gateway, &["profile", "kim", "laptop", "--port", "x"], 422, "neither a port nor \"random\"");
    refuses(gateway, &["profile", "kim", "laptop", "--remote", "a b"], 422, "neither a name nor an address");
    refuses(gateway, &["identity", "remove", "x"], 404, "there is no identity named x");
    refuses(gateway, &["identity", "rotate", "x"], 404, "there is no identity named x");
    let add = ["identity", "add", "x", "--key", "DSA", "--wrap", "tls-crypt"];
    refuses(gateway, &add, 422, "Ed448");
    let add = ["identity", "add", "x", "--key", "P-256", "--wrap", "tls-cript"];
    refuses(gateway, &add, 422, "none, tls-auth, tls-crypt, tls-crypt-v2");
    let add = ["identity", "add", "default", "--key", "P-256", "--wrap", "tls-crypt"];
    refuses(gateway, &add, 409, "there is an identity named default already");
    let prefix = ["device", "add", "kim", "site", "--prefix", "10.88.3.0/24"];
    refuses(gateway, &prefix, 422, "10.88.");
    let csr = gateway.path("bad.csr");
    std::fs::write(&csr, "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n").unwrap();
    let csr = csr.display().to_string();
    let outcome = gateway.cli(&["device", "add", "kim", "phone", "--csr", &csr]);
    assert!(outcome.refusal().contains("the PEM text is damaged: line 1"), "{outcome:?}");
    refuses(
        gateway,
        &["device", "add", "kim", "phone", "--csr", "/nowhere.csr"],
        500,
        "cannot read /nowhere.csr",
    );
    assert_eq!(gateway.json(&["device", "list", "kim"])["devices"].as_array().unwrap().len(), 1);

    for wrong in [&["usr"][..], &["user", "add"], &["profile", "kim", "laptop", "--transport", "ipx"], &[]] {
        let outcome = gateway.cli(wrong);
        assert_eq!(outcome.code, Some(2), "wrong usage: {wrong:?}: {outcome:?}");
        assert!(outcome.err.contains("Usage: adit") || outcome.err.contains("try '--help'"), "{outcome:?}");
    }
    gateway.ok(&["user", "remove", "kim"]);
}

#[test]
fn every_command_works_without_a_gateway_and_with_one_and_says_the_same() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    everyday_commands(&gateway);
    errors_are_clear(&gateway);
    let not_running = "the gateway is not running; `adit up` starts it";
    for command in [&["status"][..], &["session", "list"], &["session", "close", "0"]] {
        refuses(&gateway, command, 503, not_running);
    }

    gateway.up();
    everyday_commands(&gateway);
    errors_are_clear(&gateway);
    assert_eq!(gateway.json(&["session", "list"]), json!({ "sessions": [], "next": null }));
    assert!(gateway.ok(&["session", "list"]).contains("nobody is connected"));
    refuses(&gateway, &["session", "close", "0"], 404, "there is no session named 0");
    assert!(gateway.ok(&["check"]).ends_with("ok\n"));

    let profile = gateway.add_user("ann", &["--transport", "udp"]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    ping(client.host(), network.outside_address()).must_all_return();
    let session = gateway.wait_for_session("ann", SOON);
    has_keys(
        &session,
        &[
            "id",
            "gateway",
            "user",
            "device",
            "protocol",
            "identity",
            "transport",
            "remote_address",
            "remote_port",
            "local_address",
            "local_port",
            "inner4",
            "inner6",
            "cipher",
            "since",
            "last_seen",
            "rx_bytes",
            "tx_bytes",
        ],
    );
    for text in ["id", "gateway", "remote_address", "local_address", "inner4", "inner6", "cipher"] {
        assert!(session[text].is_string(), "{text}: {session}");
    }
    for number in ["remote_port", "local_port", "rx_bytes", "tx_bytes"] {
        assert!(session[number].is_u64(), "{number}: {session}");
    }
    ["since", "last_seen"].iter().for_each(|key| is_time(&session[key]));
    assert_eq!((&session["protocol"], &session["transport"]), (&json!("openvpn"), &json!("udp")));
    assert_eq!(session["remote_address"], network.client_address(0).to_string());
    let id = session["id"].as_str().unwrap();
    assert!(gateway.ok(&["session", "list"]).contains(id));

    let status = gateway.json(&["status"]);
    has_keys(
        &status,
        &[
            "gateway",
            "name",
            "version",
            "since",
            "sessions",
            "drops",
            "rx_bytes",
            "rx_rate",
            "connections",
            "flows",
            "classified",
            "services",
        ],
    );
    assert_eq!((&status["name"], &status["sessions"]), (&json!("north"), &json!({ "openvpn": 1 })));
    assert_eq!(status["gateway"], session["gateway"]);
    let text = gateway.ok(&["status"]);
    assert!(text.contains("\"north\", running since") && text.contains("sessions  1 openvpn"), "{text}");

    let mark = client.mark();
    let closed = gateway.json(&["session", "close", id]);
    assert_eq!(keys(&closed), BTreeSet::from(["id", "millis"]));
    client.wait_until_connected_since(mark, Duration::from_secs(30));
    assert_ne!(gateway.wait_for_session("ann", SOON)["id"], id, "another session of the same client");
    // Out at once and for good.
    let cut = gateway.json(&["user", "remove", "ann"]);
    assert_eq!((&cut["user"], &cut["sessions_closed"]), (&json!("ann"), &json!(1)));
    assert!(gateway.sessions().is_empty(), "no session is left when the command has returned");
    client.wait_for("AUTH_FAILED,the user was removed", SOON);

    // Others may not use the socket, and are told so.
    require("setpriv");
    let command = gateway.command(&["status"]);
    let mut other = Command::new("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    other.args(["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]);
    let output = gateway.host().output(other.arg(command.get_program()).args(command.get_args()));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("no permission for") && error.contains("socket's group"), "{error}");
}

#[test]
fn init_makes_everything_once_and_changes_nothing_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(adit()).args(arguments).arg("--dir").arg(dir.path().join("new")).output();
        let output = output.unwrap();
        Outcome {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    };
    let outcome = run(&["init", "--public", "vpn.example.org,192.0.2.1", "--name", "south", "--json"]);
    let made: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(made["public"], json!(["vpn.example.org", "192.0.2.1"]), "{outcome:?}");
    let config = made["config"].as_str().unwrap().to_owned();
    let contents =
        || files(&dir.path().join("new")).iter().map(|f| std::fs::read(f).unwrap()).collect::<Vec<_>>();
    let before = contents();

    let again = run(&["init"]);
    assert!(again.refusal().contains("exists already; nothing has been changed"), "{again:?}");
    assert!(contents() == before);

    let check = Command::new(adit()).args(["-c", &config, "check", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(keys(&report), BTreeSet::from(["ok", "problems", "plan", "notes"]));
    assert_eq!((&report["ok"], &report["problems"]), (&json!(true), &json!([])), "{report}");
    let entry =
        json!({ "address": "0.0.0.0", "protocol": "udp", "from": 1194, "to": 1194, "use": "entrance" });
    assert!(report["plan"].as_array().unwrap().contains(&entry), "{report}");
    let text = std::fs::read_to_string(&config).unwrap();
    let overlap =
        text.replace("[tunnel]", "[[entrance]]\naddress = \"192.0.2.1\"\nudp = \"1190-1199\"\n[tunnel]");
    std::fs::write(&config, overlap).unwrap();
    let check = Command::new(adit()).args(["-c", &config, "check", "--json"]).output().unwrap();
    assert_eq!(check.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(keys(&report["problems"][0]), BTreeSet::from(["code", "message", "hint"]));
    assert_eq!(report["problems"][0]["code"], "overlap");
    // The file is found by the environment, too.
    let list = Command::new(adit()).env("ADIT_CONFIG", &config).args(["user", "list"]).output().unwrap();
    assert!(String::from_utf8_lossy(&list.stdout).contains("no users yet"));
    // What cannot be completed leaves nothing.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let blocked = dir.path().join("file/below");
    let output = Command::new(adit()).args(["init", "--dir"]).arg(&blocked).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot make"));
}

/// Every command of the help, with those below it.
fn commands(below: &[String]) -> Vec<Vec<String>> {
    let output = Command::new(adit()).args(below).arg("--help").output().unwrap();
    assert!(output.status.success(), "{below:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        help.contains("\nExample:\n  adit ") || help.contains("\nExample:\n  adit"),
        "no example: {below:?}"
    );
    let mut all = vec![below.to_vec()];
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    for line in list.lines().take_while(|line| !line.is_empty()) {
        let name = line.split_whitespace().next().unwrap();
        if name != "help" && line.starts_with("  ") && !line.starts_with("   ") {
            all.extend(commands(&[below, &[name.to_owned()]].concat()));
        }
    }
    all
}

#[test]
fn every_command_explains_itself_with_an_example_a_manual_page_and_completion() {
    let all: Vec<String> = commands(&[]).iter().map(|words| words.join(" ")).collect();
    for command in [
        "init",
        "check",
        "up",
        "reload",
        "demo",
        "status",
        "user add",
        "user list",
        "user remove",
        "user suspend",
        "user resume",
        "device add",
        "device list",
        "device revoke",
        "profile",
        "session list",
        "session close",
        "identity list",
        "identity add",
        "identity remove",
        "identity rotate",
        "ca status",
        "connect",
        "nat export",
        "nat show",
        "trace",
        "trace verify",
        "forward add",
        "forward list",
        "forward remove",
        "completion",
        "man",
    ] {
        assert!(all.iter().any(|known| known == command), "{command}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(adit()).args(["completion", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && script.contains("identity") && script.contains("suspend"),
            "{shell}"
        );
    }
    let script = Command::new(adit()).args(["completion", "bash"]).output().unwrap().stdout;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("adit.bash"), script).unwrap();
    let valid = Command::new("bash").arg("-n").arg(dir.path().join("adit.bash")).status().unwrap();
    assert!(valid.success());
    let man = dir.path().join("man");
    assert!(Command::new(adit()).arg("man").arg(&man).status().unwrap().success());
    for command in &all {
        let page = man.join(format!("{}.1", ["adit", command].join(" ").trim().replace(' ', "-")));
        let text =
            std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.starts_with(".ie") && text.contains("Example"), "{}", page.display());
    }
}

#[test]
fn reload_applies_a_change_without_touching_sessions_and_refuses_a_bad_file() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.expect_error("not reloaded");
    gateway.up();
    let profile = gateway.add_user("ann", &["--transport", "udp"]);
    let other = gateway.add_user("bob", &["--transport", "udp", "--identity", "compat"]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    let bob = OpenVpnClient::connect(network.client(1), &other);
    let session = gateway.wait_for_session("ann", SOON)["id"].clone();
    let pinger = Pinger::start(client.host(), network.outside_address());
    assert_eq!(gateway.ok(&["reload"]), "nothing has changed\n");

    gateway.set("tunnel", "dns", "[\"10.88.0.53\"]");
    let plan = gateway.json(&["reload", "--dry-run"]);
    assert_eq!(keys(&plan), BTreeSet::from(["applied", "changes", "sessions_touched", "needs_restart"]));
    assert_eq!((&plan["applied"], &plan["sessions_touched"]), (&json!(false), &json!([])));
    assert_eq!(plan["changes"], json!(["[tunnel]: for new sessions"]));
    let done = gateway.json(&["reload"]);
    assert_eq!((&done["applied"], &done["changes"]), (&json!(true), &plan["changes"]));

    let good = gateway.config_text();
    for (number, (right, wrong, words)) in [
        ("mtu = 1500", "mtuu = 1500", "did you mean `mtu`?"),
        ("mtu = 1500", "mtu = 900", "between 1280 and 9000"),
        ("[tunnel]", "[tunnel", "adit.toml:"),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(gateway.config(), good.replacen(right, wrong, 1)).unwrap();
        let outcome = gateway.cli(&["reload"]);
        assert!(outcome.refusal().contains(words), "{outcome:?}");
        gateway.process().signal(rustix::process::Signal::HUP);
        eventually("a line in the log", SOON, || gateway.logged("not reloaded: ").len() > number);
        assert!(gateway.logged("not reloaded: ")[number].contains(words));
    }
    std::fs::write(gateway.config(), good.replacen("mtu = 1500", "mtu = 1400", 1)).unwrap();
    let outcome = gateway.cli(&["reload", "--json"]);
    assert!(outcome.refusal().contains("need a new start"), "nothing is done by halves: {outcome:?}");
    let report: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(report["needs_restart"], json!(["[tunnel] mtu has changed"]));
    std::fs::write(gateway.config(), &good).unwrap();

    // The running configuration is still the one that was applied.
    bob.stop();
    let bob = OpenVpnClient::connect(network.client(1), &other);
    assert!(bob.pushed().contains(&"dhcp-option DNS 10.88.0.53".to_owned()), "{:?}", bob.pushed());
    assert!(!client.pushed().iter().any(|option| option.contains("10.88.0.53")));

    // Only sessions of what is gone end.
    let gone = gateway.wait_for_session("bob", SOON)["id"].clone();
    gateway.edit(|document| {
        let identities = document["identity"].as_array_of_tables_mut().unwrap();
        identities.retain(|table| table["name"].as_str() != Some("compat"));
    });
    assert_eq!(gateway.json(&["reload", "--dry-run"])["sessions_touched"], json!([gone]));
    assert_eq!(gateway.sessions().len(), 2, "a dry run does nothing");
    gateway.process().signal(rustix::process::Signal::HUP);
    gateway.wait_for_sessions(1, SOON);
    gateway.wait_for_log("reloaded changes", SOON);
    pinger.wait_for_answers(5, SOON);
    assert_eq!(gateway.wait_for_session("ann", SOON)["id"], session);
    assert_eq!(client.connections(), 1);
    bob.kill();
}

/// Keys of a profile or key file: long lines of base64 or hexadecimal digits in blocks that are secret.
fn secrets_of(text: &str) -> Vec<String> {
    let mut secrets = Vec::new();
    let mut secret = false;
    for line in text.lines() {
        if line.starts_with("-----") {
            secret = line.contains("BEGIN") && (line.contains("PRIVATE KEY") || line.contains("OpenVPN"));
        } else if secret && line.len() >= 16 {
            secrets.push(line.to_owned());
        }
    }
    secrets
}

#[test]
fn secrets_are_in_files_for_root_alone_and_in_no_log() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.add_identity("static", "P-256", "tls-auth SHA256");
    gateway.env("ADIT_LOG", "trace");
    gateway.up();
    let mut said = String::new();
    let mut secrets = Vec::new();
    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    for identity in ["default", "compat", "static"] {
        let profile = gateway.profile("ann", "laptop", &["--identity", identity, "--transport", "udp"]);
        secrets.extend(secrets_of(&profile));
        let client = OpenVpnClient::connect(network.client(0), &profile);
        ping(client.host(), network.outside_address()).must_all_return();
        client.stop();
        gateway.wait_for_sessions(0, SOON);
    }
    for command in [&["identity", "rotate", "compat"][..], &["reload"], &["device", "add", "ann", "phone"]] {
        let outcome = gateway.cli(command);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        said += &(outcome.out + &outcome.err);
    }
    // A key that never leaves its device: adit has only the certificate.
    let pki = TestPki::new("P-256");
    let (_, key) = pki.issue("own", "clientAuth", "P-256");
    let csr = request(&gateway, &key);
    let certificate = gateway.ok(&["device", "add", "ann", "own", "--csr", &csr]);
    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"), "{certificate}");
    let profile = gateway.profile("ann", "own", &["--transport", "udp"]);
    assert!(!profile.contains("\n<key>\n") && profile.contains("add it as a <key> block"), "{profile}");
    let client = OpenVpnClient::connect(network.client(0), &format!("{profile}\n<key>\n{key}</key>\n"));
    ping(client.host(), network.outside_address()).must_all_return();
    client.stop();

    for path in files(&gateway.path("state")) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        let found = secrets_of(&text);
        assert!(found.is_empty() || mode == 0o600, "{} has mode {mode:o}", path.display());
        assert_eq!(mode & 0o022, 0, "{} has mode {mode:o}", path.display());
        if path.extension().is_some_and(|ending| ending == "db") {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
        secrets.extend(found);
    }
    let state = std::fs::metadata(gateway.path("state")).unwrap().permissions().mode() & 0o777;
    assert_eq!(state, 0o700, "the directory of secrets");
    let socket = std::fs::metadata(gateway.path("adit.sock")).unwrap().permissions().mode() & 0o777;
    assert_eq!(socket, 0o660, "the socket is for root and its group");

    gateway.stop();
    let log = gateway.logged("").join("\n") + &said;
    assert!(log.contains("DEBUG") && log.contains("client authenticated"), "the log is a full one");
    secrets.sort();
    secrets.dedup();
    // CA, identities, devices; static keys of sixteen lines.
    assert!(secrets.len() > 40, "{} secrets", secrets.len());
    for secret in &secrets {
        assert!(!log.contains(secret.as_str()), "a secret was logged");
    }
}

/// A certificate request for a key.
fn request(gateway: &Gateway, key: &str) -> String {
    let (key_file, csr) = (gateway.path("own.key"), gateway.path("own.csr"));
    std::fs::write(&key_file, key).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-new", "-subj", "/CN=anything", "-key"]).arg(key_file).arg("-out").arg(&csr);
    gateway.host().run(&mut openssl);
    csr.display().to_string()
}
