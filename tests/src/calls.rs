//! Calls to ports of the gateway, and to the devices behind them.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use adit_testbed::{Call, Gateway, Host, Outcome, Witness, eventually, eventually_some};
use serde_json::Value;

/// How long anything may take on a busy machine.
const LATE: Duration = Duration::from_secs(60);

/// A service of a device, TCP and UDP on one port: it writes down who calls.
///
/// # Panics
/// When there is no free port.
#[must_use]
#[track_caller]
pub fn service(device: &Host) -> Witness {
    Witness::start(device, Ipv4Addr::UNSPECIFIED.into(), 1)
}

/// Who called themselves this, as the service saw it; the last one.
///
/// # Panics
/// When nobody did.
#[must_use]
#[track_caller]
pub fn caller(service: &Witness, name: &str) -> SocketAddr {
    let seen = service.seen();
    let found = seen.iter().rev().find(|sighting| sighting.name == name);
    found.unwrap_or_else(|| panic!("{name} has not called: {seen:?}")).remote
}

/// Calls until somebody answers.
///
/// # Panics
/// When nobody does.
#[track_caller]
pub fn must_reach(from: &Host, to: SocketAddr, tcp: bool, name: &str) -> Call {
    let what = format!("an answer of {to}, tcp {tcp}, for {name}");
    eventually_some(&what, LATE, || from.run_in(|| Call::dial(to, tcp, name)).ok())
}

/// The first call is refused. It is made again only when its refusal is lost.
///
/// # Panics
/// When somebody answers.
#[track_caller]
pub fn must_be_refused(from: &Host, to: SocketAddr, tcp: bool) {
    let what = format!("a refusal of {to}, tcp {tcp}");
    eventually(&what, LATE, || match from.run_in(|| Call::dial(to, tcp, "nobody")) {
        Ok(_) => panic!("{to}, tcp {tcp}: somebody answers"),
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    });
}

/// A call that was held is over, and the caller is told at the next word.
///
/// # Panics
/// When it goes on.
#[track_caller]
pub fn must_be_over(call: &mut Call) {
    let error = call.say("are you there?").expect_err("the call is over");
    let told = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::BrokenPipe];
    assert!(told.contains(&error.kind()), "{error:?}");
}

/// Forwards a port to a user's laptop, with options of `adit forward add`; the forwards.
///
/// # Panics
/// When the command fails.
#[must_use]
#[track_caller]
pub fn forward(gateway: &Gateway, user: &str, to: u16, options: &[&str]) -> Vec<Value> {
    let to = to.to_string();
    let command = [&["forward", "add", user, "laptop", "--to", &to], options].concat();
    gateway.json(&command)["forwards"].as_array().expect("forwards").clone()
}

/// The port of a forward.
///
/// # Panics
/// When it has none.
#[must_use]
#[track_caller]
pub fn port(forward: &Value) -> u16 {
    forward["port"].as_u64().and_then(|port| port.try_into().ok()).expect("a port")
}

/// A forward as it is listed now.
///
/// # Panics
/// When it is not.
#[must_use]
#[track_caller]
pub fn listed(gateway: &Gateway, forward: &Value) -> Value {
    let list = gateway.json(&["forward", "list"])["forwards"].as_array().expect("forwards").clone();
    let found = list.into_iter().find(|row| row["id"] == forward["id"]);
    found.unwrap_or_else(|| panic!("{forward} is not listed"))
}

/// The source ports of a user: address, first and last.
///
/// # Panics
/// When there are none.
#[must_use]
#[track_caller]
pub fn block(gateway: &Gateway, user: &str) -> (IpAddr, u16, u16) {
    let shown = gateway.json(&["nat", "show", user]);
    let block = &shown["blocks"][0]["block"];
    let number = |name: &str| block[name].as_u64().and_then(|port| port.try_into().ok());
    let address = block["address"].as_str().and_then(|address| address.parse().ok());
    match (address, number("from"), number("to")) {
        (Some(address), Some(from), Some(to)) => (address, from, to),
        _ => panic!("{user} has no block: {shown}"),
    }
}

/// Seconds since 1970 with three places behind the point, as `adit trace --at` takes them.
///
/// # Panics
/// When the clock stands before 1970.
#[must_use]
pub fn now() -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is set");
    format!("{}.{:03}", since.as_secs(), since.subsec_millis())
}

/// Asks who had a port at a moment, without tolerance.
///
/// # Panics
/// When the command does not end.
#[must_use]
#[track_caller]
pub fn trace(gateway: &Gateway, at: &str, remote: SocketAddr, tcp: bool) -> Outcome {
    let (address, port) = (remote.ip().to_string(), remote.port().to_string());
    let proto = if tcp { "tcp" } else { "udp" };
    let question = ["trace", "--at", at, "--address", &address, "--port", &port, "--proto", proto];
    gateway.cli(&[&question[..], &["--tolerance", "0s", "--json"]].concat())
}

/// Who an answer names: kind, user and device of each.
///
/// # Panics
/// When it is no answer.
#[must_use]
#[track_caller]
pub fn named(answer: &Outcome) -> Vec<[String; 3]> {
    let value: Value =
        serde_json::from_str(&answer.out).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    let matches = value["matches"].as_array().expect("matches");
    let text = |found: &Value, field: &str| found[field].as_str().unwrap_or_default().to_owned();
    let named: Vec<_> =
        matches.iter().map(|found| ["kind", "user", "device"].map(|field| text(found, field))).collect();
    assert_eq!(answer.code, Some(if named.is_empty() { 3 } else { 0 }), "{answer:?}");
    named
}
