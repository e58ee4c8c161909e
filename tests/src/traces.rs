//! What `adit trace` says about what the witness has seen.

use std::fmt::Write;
use std::io::{self, ErrorKind};
use std::time::Duration;

use adit_testbed::{Call, Gateway, Network, OpenVpnClient, Sighting, Witness};
use serde_json::Value;

/// How long anything may take on a busy machine.
pub(crate) const LATE: Duration = Duration::from_secs(60);

/// Ports of the witness.
pub(crate) const PORTS: usize = 32;

/// The user that a caller named: what stands before the slash. What is said later in a call is the user's name alone:
/// of a flow over UDP the witness notes that as well.
pub(crate) fn said(seen: &Sighting) -> &str {
    seen.name.split('/').next().unwrap_or_default()
}

/// A time as `--at` takes it.
fn moment(at: i64) -> String {
    format!("{}.{:03}", at / 1000, at % 1000)
}

fn protocol(seen: &Sighting) -> &'static str {
    if seen.tcp { "tcp" } else { "udp" }
}

/// Each user once, however many leases match.
fn users(trace: &Value) -> Vec<String> {
    let matches = trace["matches"].as_array().expect("matches");
    let mut users: Vec<_> =
        matches.iter().map(|found| found["user"].as_str().unwrap_or("nobody").to_owned()).collect();
    users.sort_unstable();
    users.dedup();
    users
}

/// Who a single question names, in the order of names.
#[track_caller]
pub(crate) fn traced(gateway: &Gateway, seen: &Sighting, tolerance: &str) -> Vec<String> {
    let (at, address, port) = (moment(seen.at), seen.remote.ip().to_string(), seen.remote.port().to_string());
    let question = ["trace", "--at", &at, "--address", &address, "--port", &port];
    users(&gateway.json(&[&question[..], &["--proto", protocol(seen), "--tolerance", tolerance]].concat()))
}

/// All sightings in one CSV file: each names its user and nobody else.
#[track_caller]
pub(crate) fn must_all_be_traced(gateway: &Gateway, seen: &[Sighting], tolerance: &str) {
    let mut csv = "time,address,port,proto\n".to_owned();
    for sighting in seen {
        let (at, remote) = (moment(sighting.at), sighting.remote);
        let _ = writeln!(csv, "{at},{},{},{}", remote.ip(), remote.port(), protocol(sighting));
    }
    let file = gateway.path("seen.csv");
    std::fs::write(&file, csv).expect("a file can be written");
    let file = file.to_str().expect("a path of ASCII");
    let answer = gateway.json(&["trace", "--batch", file, "--tolerance", tolerance]);
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), seen.len());
    let right = |(sighting, result): &(&Sighting, &Value)| users(result) == [said(sighting)];
    let wrong: Vec<_> = seen.iter().zip(results).filter(|pair| !right(pair)).collect();
    assert!(wrong.is_empty(), "{} of {} are traced wrongly: {:#?}", wrong.len(), seen.len(), wrong.first());
}

/// `user0` and so on, each with a stock client, UDP and TCP in turn; all are connected.
#[track_caller]
pub(crate) fn connect(network: &Network, gateway: &Gateway, count: usize) -> Vec<OpenVpnClient> {
    let start = |number: usize| {
        let transport = ["udp", "tcp"][number % 2];
        let profile = gateway.add_user(&format!("user{number}"), &["--transport", transport]);
        OpenVpnClient::start(network.client(number), &profile)
    };
    let clients: Vec<_> = (0..count).map(start).collect();
    clients.iter().for_each(OpenVpnClient::wait_until_connected);
    clients
}

/// Calls all ports of the witness in turn, over TCP and then over UDP, `at_once` of the calls held and alive at a
/// time. Each names its user and a number.
#[track_caller]
pub(crate) fn call_often(
    client: &OpenVpnClient,
    witness: &Witness,
    user: &str,
    count: usize,
    at_once: usize,
) {
    let call = |number: usize| {
        let tcp = (number / PORTS).is_multiple_of(2);
        let call = witness.call(&format!("{user}/{number}"), tcp, number);
        call.unwrap_or_else(|error| panic!("{user}: call {number}: {error}"))
    };
    client.host().run_in(|| {
        let numbers: Vec<_> = (0..count).collect();
        for numbers in numbers.chunks(at_once) {
            let mut held: Vec<_> = numbers.iter().map(|number| call(*number)).collect();
            for call in &mut held {
                say(call, user).unwrap_or_else(|error| panic!("{user}: a held call: {error}"));
            }
        }
    });
}

/// One call over TCP and one over UDP, to the port of this number.
#[track_caller]
pub(crate) fn both(client: &OpenVpnClient, witness: &Witness, name: &str, number: usize) -> [Call; 2] {
    [true, false].map(|tcp| {
        let call = client.host().run_in(|| witness.call(name, tcp, number));
        call.unwrap_or_else(|error| panic!("{name}, tcp {tcp}: {error}"))
    })
}

/// Says it again when a signal came before the answer, as it may with a time limit. Both answers are the same.
fn say(call: &mut Call, word: &str) -> io::Result<()> {
    loop {
        match call.say(word) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// The users' held calls go on, each answered.
#[track_caller]
pub(crate) fn must_go_on(held: &mut [(String, Call)], when: &str) {
    for (user, call) in held {
        say(call, user).unwrap_or_else(|error| panic!("{when}: a call of {user}: {error}: {call:?}"));
    }
}

/// Calls of all these clients, by their users.
#[track_caller]
pub(crate) fn hold(clients: &[OpenVpnClient], witness: &Witness, number: usize) -> Vec<(String, Call)> {
    let call = |(user, client): (usize, &OpenVpnClient)| {
        let user = format!("user{user}");
        both(client, witness, &format!("{user}/held{number}"), number).map(|call| (user.clone(), call))
    };
    clients.iter().enumerate().flat_map(call).collect()
}
