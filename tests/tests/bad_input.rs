//! What an operator or a machine can do wrong: a clear message, nothing half-configured left behind, and a good start
//! once the fault is gone.
//!
//! ```text
//!  client 0 ──┐ 198.18.0.2
//!  client 1 ──┴─ access ─── gateway ─── router ─── outside
//!              192.0.2.1:1194          203.0.113.2
//! ```

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_testbed::{Gateway, Network, OpenVpnClient, Outcome, Pinger, Snapshot, ping, require};

/// How long a start that fails may take.
const REFUSAL: &str = "60";

/// `adit up` behind another program that takes something away from it.
fn up_behind(gateway: &Gateway, prefix: &[&str]) -> Outcome {
    let up = gateway.command(&["up"]);
    let mut command = Command::new("timeout");
    command.arg(REFUSAL).args(prefix).arg(up.get_program()).args(up.get_args());
    command.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = gateway.host().output(&mut command);
    Outcome {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `adit up`, which must refuse with one line that has all of `words`, and leave nothing behind.
#[track_caller]
fn must_refuse(gateway: &Gateway, words: &[&str]) {
    must_refuse_behind(gateway, &[], words);
}

#[track_caller]
fn must_refuse_behind(gateway: &Gateway, prefix: &[&str], words: &[&str]) {
    let before = Snapshot::take(gateway.host());
    let outcome = up_behind(gateway, prefix);
    says(&outcome, words);
    assert_eq!(outcome.out, "", "it must not say that it is ready");
    let left = before.difference(&Snapshot::take(gateway.host()));
    assert!(left.is_empty(), "left behind: {left:#?}");
    assert!(!gateway.path("adit.sock").exists(), "the API's socket is left behind");
    assert!(!gateway.path("state/machine.json").exists(), "a record of changes is left behind");
}

/// A refusal is exit code 1 and one line for people, behind whatever was logged.
#[track_caller]
fn says(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let lines: Vec<_> = outcome.err.lines().filter(|line| line.starts_with("adit: ")).collect();
    assert_eq!(lines.len(), 1, "one line that says what is wrong: {outcome:?}");
    assert_eq!(outcome.err.lines().last(), Some(lines[0]), "it is the last one: {outcome:?}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is missing: {}", lines[0]);
    }
    assert!(!outcome.err.contains("panicked"), "{}", outcome.err);
}

/// The fault is gone: the same gateway starts and a client gets through.
#[track_caller]
fn must_work(network: &Network, gateway: &mut Gateway, profile: &str) {
    gateway.up();
    let client = OpenVpnClient::connect(network.client(0), profile);
    ping(client.host(), network.outside_address()).must_all_return();
    client.stop();
    gateway.stop();
}

#[test]
fn a_machine_that_lacks_something_is_told_what_and_left_as_it_was() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let profile = gateway.add_user("ann", &["--transport", "udp"]);
    let config = gateway.config().display().to_string();
    let host = std::sync::Arc::clone(gateway.host());

    // Another user may read everything here, so that it is the missing right alone that decides.
    require("setpriv");
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let readable = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"];
    let words = ["user 65534 may not change the network", "as root or with CAP_NET_ADMIN"];
    must_refuse_behind(&gateway, &[&nobody[..], &readable].concat(), &words);
    let bare = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    must_refuse_behind(&gateway, &bare, &["root without CAP_NET_ADMIN may not", "--cap-add NET_ADMIN"]);

    require("unshare");
    let hide = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let words = ["/dev/net/tun does not exist", "load the tun module"];
    must_refuse_behind(&gateway, &["unshare", "--mount", "sh", "-c", hide, "sh"], &words);

    let taken = host.run_in(|| UdpSocket::bind("0.0.0.0:1194")).unwrap();
    must_refuse(&gateway, &["0.0.0.0:1194/udp is in use by another program", "leave the port out"]);
    drop(taken);
    let taken = host.run_in(|| TcpListener::bind("192.0.2.1:1194")).unwrap();
    must_refuse(&gateway, &["0.0.0.0:1194/tcp is in use by another program", "leave the port out"]);
    drop(taken);
    let taken = host.run_in(|| TcpListener::bind("[::]:1194")).unwrap();
    must_refuse(&gateway, &[":1194/tcp is in use by another program"]);
    drop(taken);

    host.ip("route add 10.88.4.0/24 via 198.51.100.2");
    let words = ["pool 10.88.0.0/16 overlaps 10.88.4.0/24 on back", "choose another pool"];
    must_refuse(&gateway, &words);
    let report = gateway.cli(&["check", "--json"]);
    assert_eq!(report.code, Some(1), "{report:?}");
    assert!(report.out.contains("\"pool\"") && report.out.contains(words[0]), "{report:?}");
    host.ip("route del 10.88.4.0/24");
    host.ip("link add adit0 type veth peer name other");
    must_refuse(&gateway, &["interface name adit0 is in use", "choose another name"]);
    host.ip("link del adit0");

    std::fs::rename(gateway.config(), gateway.path("elsewhere")).unwrap();
    must_refuse(&gateway, &[&config, "No such file", "`adit init --dir DIR` makes one"]);
    std::fs::create_dir(gateway.config()).unwrap();
    must_refuse(&gateway, &[&config, "directory"]);
    std::fs::remove_dir(gateway.config()).unwrap();
    std::fs::write(gateway.config(), b"name = \"\xff\xfe\"\n").unwrap();
    must_refuse(&gateway, &[&config, "UTF-8"]);
    std::fs::rename(gateway.path("elsewhere"), gateway.config()).unwrap();

    must_work(&network, &mut gateway, &profile);
    // Two gateways on one state would write over each other.
    gateway.up();
    let second = up_behind(&gateway, &[]);
    says(&second, &["is held by", "adit is already running with this directory"]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    ping(client.host(), network.outside_address()).must_all_return();
}

#[test]
fn a_mistake_in_the_configuration_is_named_with_line_and_remedy() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let profile = gateway.add_user("ann", &["--transport", "udp"]);
    let good = gateway.config_text();
    let path = gateway.config().display().to_string();
    let line_of = |text: &str, what: &str| {
        let number = text.lines().position(|line| line.starts_with(what)).expect("the line is there");
        format!("{path}:{}: ", number + 1)
    };
    for (right, wrong, message) in [
        ("mtu = 1500", "mtuu = 1500", "unknown key `mtuu`; did you mean `mtu`?"),
        ("[tunnel]", "[tunel]", "unknown key `tunel`; did you mean `tunnel`?"),
        ("udp = \"1194\"", "udpp = \"1194\"", "unknown key `udpp`; did you mean `udp`?"),
        (
            "wrap = \"tls-crypt-v2\"",
            "wrap = \"tls-cript-v2\"",
            "unknown value `tls-cript-v2`; did you mean `tls-crypt-v2`?",
        ),
        ("key = \"P-256\"", "key = \"P-257\"", "P-257"),
        ("mtu = 1500", "mtu = \"big\"", "invalid type: string \"big\""),
        ("pool4 = [\"10.88.0.0/16\"]", "pool4 = [\"10.88.0.0/33\"]", "10.88.0.0/33"),
        ("udp = \"1194\"", "udp = \"0-70000\"", "0-70000"),
        ("client_to_client = false", "client_to_client = maybe", ""),
        ("[tunnel]", "[tunnel", ""),
    ] {
        assert!(good.contains(right), "{right}");
        let bad = good.replacen(right, wrong, 1);
        std::fs::write(gateway.config(), &bad).unwrap();
        must_refuse(&gateway, &[&line_of(&bad, wrong), message]);
        let check = gateway.cli(&["check", "--json"]);
        assert_eq!(check.code, Some(1), "{check:?}");
        let report: serde_json::Value = serde_json::from_str(&check.out).unwrap();
        assert_eq!((&report["ok"], &report["problems"][0]["code"]), (&false.into(), &"config".into()));
        assert!(report["problems"][0]["message"].as_str().unwrap().contains(message), "{report}");
    }
    // What only makes sense, or none, together with other lines.
    for (right, wrong, words) in [
        ("mtu = 1500", "mtu = 900", &["[tunnel] mtu = 900", "between 1280 and 9000"][..]),
        ("pool4 = [\"10.88.0.0/16\"]", "pool4 = [\"10.88.0.0/32\"]", &["10.88.0.0/32", "too small"]),
        ("pool4 = [\"10.88.0.0/16\"]", "pool4 = [\"10.88.0.0/16\", \"10.88.1.0/24\"]", &["overlap"]),
        ("name = \"compat\"", "name = \"default\"", &["two identities named default"]),
        ("url = \"sqlite\"", "url = \"postgres://db\"", &["[store] url", "knows only \"sqlite\""]),
        ("addresses = [\"198.51.100.1\"]", "addresses = []", &["[nat] has no addresses"]),
    ] {
        assert!(good.contains(right), "{right}");
        std::fs::write(gateway.config(), good.replacen(right, wrong, 1)).unwrap();
        must_refuse(&gateway, &[&[&*format!("{path}: ")][..], words].concat());
    }
    // What this machine has not.
    let elsewhere = good.replace("addresses = [\"198.51.100.1\"]", "addresses = [\"198.51.100.77\"]");
    std::fs::write(gateway.config(), elsewhere).unwrap();
    must_refuse(&gateway, &["198.51.100.77 is on no interface of this machine", "ip address add"]);
    let nobody =
        good.split("[[identity]]").next().unwrap().to_owned() + "[tunnel]\npool4 = [\"10.88.0.0/16\"]\n";
    std::fs::write(gateway.config(), nobody).unwrap();
    must_refuse(&gateway, &["no [[identity]]", "nobody could connect"]);

    std::fs::write(gateway.config(), good).unwrap();
    must_work(&network, &mut gateway, &profile);
}

#[test]
fn damaged_state_is_named_and_never_replaced() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let profile = gateway.add_user("ann", &["--transport", "udp"]);
    let database = gateway.path("state/adit.db");
    let name = database.display().to_string();
    let good = std::fs::read(&database).unwrap();
    assert!(!gateway.path("state/adit.db-wal").exists(), "an ended process leaves a whole file");

    let mut garbled = good.clone();
    garbled[4096..8192].fill(0x5a);
    let mut headless = good.clone();
    headless[..100].fill(0xaa);
    let remedy = ["is damaged", "restore a backup", "Nothing was changed or deleted"];
    for bad in [good[..good.len() / 2].to_vec(), garbled, headless, Vec::new()] {
        std::fs::write(&database, &bad).unwrap();
        must_refuse(&gateway, &[&[&*name][..], &remedy].concat());
        says(&gateway.cli(&["user", "list"]), &[&name, "is damaged"]);
        assert!(std::fs::read(&database).unwrap() == bad, "the damaged file is as it was, for examination");
    }
    std::fs::remove_file(&database).unwrap();
    must_refuse(&gateway, &["there is no database", &name, "restore a backup"]);
    assert!(!database.exists(), "no new database pretends to be the old one");
    std::fs::write(&database, &good).unwrap();

    for (file, words) in [
        ("state/ca/ca.key", &["put back the right file from a backup"][..]),
        ("state/ca/ca.pem", &["put back the right file from a backup"]),
        ("state/identities/default/wrap.key", &["put back the right file from a backup"]),
        ("state/identities/compat/key.pem", &["put back the right file from a backup"]),
    ] {
        let path = gateway.path(file);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        must_refuse(&gateway, &[&[&*path.display().to_string()][..], words].concat());
        std::fs::write(&path, good).unwrap();
    }
    // A secret that others can read is none.
    let key = gateway.path("state/ca/ca.key");
    set_mode(&key, 0o644);
    must_refuse(&gateway, &[&key.display().to_string(), "open to others (mode 0644)", "chmod 600"]);
    set_mode(&key, 0o600);

    must_work(&network, &mut gateway, &profile);
}

#[test]
fn a_gateway_whose_interface_is_taken_away_says_so_and_ends() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let profile = gateway.add_user("ann", &[]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    ping(client.host(), network.outside_address()).must_all_return();

    network.gateway.ip("link delete adit0");

    let last = gateway.wait_for_failure();
    assert!(last.contains("nobody could be served any more: the tun interface is gone"), "{last}");
    let mark = client.mark();
    gateway.up();
    client.wait_until_connected_since(mark, Duration::from_secs(10));
    ping(client.host(), network.outside_address()).must_all_return();
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn when_the_pool_is_full_the_next_client_is_told_and_gets_in_once_there_is_room() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::with(&network, &["--pool4", "10.88.0.0/30"]);
    gateway.up();
    let ann = gateway.add_user("ann", &["--transport", "udp"]);
    let bob = gateway.add_user("bob", &["--transport", "udp"]);
    let first = OpenVpnClient::connect(network.client(0), &ann);

    let second = OpenVpnClient::start(network.client(1), &bob);

    let told = second.wait_for("AUTH_FAILED", Duration::from_secs(30));
    assert!(told.contains("no free addresses"), "{told}");
    let line = gateway.wait_for_log("bob/laptop gets no address", Duration::from_secs(5));
    assert!(line.contains("login refused") && line.contains("10.88.0.0/30"), "{line}");
    assert_eq!(gateway.logged("bob/laptop").len(), 1, "one line for one attempt");
    assert_eq!(gateway.status("/logins_refused"), 1);
    assert_eq!(gateway.sessions().len(), 1);
    ping(first.host(), network.outside_address()).must_all_return();

    // It comes again by itself, and the address is free by then.
    first.stop();
    second.wait_until_connected();
    ping(second.host(), network.outside_address()).must_all_return();
    assert_eq!(second.inner4().to_string(), "10.88.0.2");
}

#[test]
fn a_clock_that_jumps_cuts_no_session_and_keeps_nobody_out() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    let library = fake_time_library();
    let clock = gateway.path("clock");
    std::fs::write(&clock, "+0").unwrap();
    gateway.env("LD_PRELOAD", &library);
    gateway.env("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string());
    gateway.env("FAKETIME_NO_CACHE", "1");
    // Clocks that only count do not jump.
    gateway.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let jump = |to: &str| std::fs::write(&clock, to).unwrap();
    gateway.up();
    let ann = gateway.add_user("ann", &["--transport", "udp"]);
    let bob = gateway.add_user("bob", &["--transport", "udp"]);
    let client = OpenVpnClient::connect(network.client(0), &ann);
    let session = gateway.wait_for_session("ann", Duration::from_secs(5))["id"].clone();
    let pinger = Pinger::start(client.host(), network.outside_address());
    pinger.wait_for_answers(2, Duration::from_secs(10));

    for (number, to) in ["+400d", "+0", "-3d", "+0", "+20m"].into_iter().enumerate() {
        jump(to);
        let user = format!("user{number}");
        if to == "-3d" {
            // Before the CA's own time nothing can be issued, and nobody's certificate is good yet.
            let outcome = gateway.cli(&["user", "add", &user, "--device", "laptop"]);
            says(&outcome, &["is valid from", "check the clock"]);
            let other = OpenVpnClient::start(network.client(1), &bob);
            let line = gateway.wait_for_log("is not valid yet", Duration::from_secs(30));
            assert!(line.contains("check the clocks"), "{line}");
            other.stop();
        } else {
            let profile = gateway.add_user(&user, &["--transport", "tcp"]);
            // What the gateway writes down is dated by its clock: it has really jumped.
            let users = gateway.json(&["user", "list"])["users"].as_array().expect("users").clone();
            let created = users.iter().find(|row| row["name"] == user.as_str()).expect("the user");
            let created = created["created"].as_str().expect("a time").to_owned();
            assert_eq!(created.starts_with(&day_in(400)), to == "+400d", "{created} after {to}");
            // To the client's own clock, a certificate of the future is not valid yet; one of today is good.
            let profile = if to == "+400d" { &bob } else { &profile };
            let other = OpenVpnClient::connect(network.client(1), profile);
            ping(other.host(), network.outside_address()).must_all_return();
            other.stop();
            gateway.wait_for_sessions(1, Duration::from_secs(5));
        }
        pinger.wait_for_answers(3, Duration::from_secs(10));
        assert_eq!(gateway.wait_for_session("ann", Duration::ZERO)["id"], session, "after {to}");
    }

    jump("+0");
    assert_eq!(client.connections(), 1, "ann was never cut");
    drop(pinger);
    client.stop();
}

/// A day this far from now, as times begin with it.
fn day_in(offset: i64) -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT", "-d", &format!("{offset} days")]).output();
    String::from_utf8_lossy(&output.expect("date runs").stdout).trim().to_owned()
}

/// Where faketime has its library.
fn fake_time_library() -> String {
    require("faketime");
    let output = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output();
    String::from_utf8_lossy(&output.expect("faketime runs").stdout).trim().to_owned()
}
