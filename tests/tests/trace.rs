//! `adit trace`, `adit nat show` and `adit check` as people and scripts use them.
//!
//! ```text
//!  ann, bob ── access ── 192.0.2.1 gateway 198.51.100.1 ── router ── outside: a witness
//! ```
//!
//! What is asked is what the witness wrote down. Who it was is what the caller said to the witness.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_testbed::{Gateway, Network, OpenVpnClient, Outcome, Sighting, Witness, adit};
use adit_tests::calls::{block, forward, named, now, port, trace};
use serde_json::{Value, json};

const LATE: Duration = Duration::from_secs(60);

/// Keys of an answer and of what is in it, as they are documented.
const ANSWER: [&str; 3] = ["matches", "epoch", "clock_uncertainty_ms"];
const MATCH: [&str; 10] =
    ["kind", "gateway", "user", "device", "certificate_serial", "inner", "block", "session", "from", "to"];
const EPOCH: [&str; 4] = ["id", "digest", "from", "to"];

#[track_caller]
fn has_just<const N: usize>(value: &Value, keys: [&str; N]) {
    let found: BTreeSet<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(found, BTreeSet::from(keys), "{value}");
}

/// Milliseconds since 1970 as `--at` takes them.
fn moment(at: i64) -> String {
    format!("{}.{:03}", at / 1000, at % 1000)
}

/// What `date` prints.
fn date(arguments: &[&str]) -> String {
    let output = Command::new("date").env("LC_ALL", "C").args(arguments).output().expect("date runs");
    assert!(output.status.success(), "date {arguments:?}");
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
}

/// A time of an answer in milliseconds since 1970.
fn millis(time: &Value) -> i64 {
    date(&["-d", time.as_str().expect("a time"), "+%s%3N"]).parse().expect("a number")
}

fn join(network: &Network, gateway: &Gateway, client: usize, user: &str) -> OpenVpnClient {
    let client = OpenVpnClient::connect(network.client(client), &gateway.add_user(user, &[]));
    gateway.wait_for_session(user, LATE);
    client
}

/// Calls the witness once; what it wrote down.
#[track_caller]
fn sighting(witness: &Witness, from: &adit_testbed::Host, name: &str) -> Sighting {
    from.run_in(|| witness.call(name, true, 0)).expect("an answer of the witness");
    witness.seen().pop().expect("a sighting")
}

/// One question about a sighting, in other words than [`trace`]'s.
fn ask(gateway: &Gateway, seen: &Sighting, options: &[&str]) -> Outcome {
    let (address, port) = (seen.remote.ip().to_string(), seen.remote.port().to_string());
    gateway.cli(&[&["trace", "--json", "--address", &address, "--port", &port], options].concat())
}

fn one(gateway: &Gateway, seen: &Sighting) -> Value {
    let answer = trace(gateway, &moment(seen.at), seen.remote, seen.tcp);
    assert_eq!(named(&answer).len(), 1, "{answer:?}");
    serde_json::from_str(&answer.out).expect("JSON")
}

fn match_of(kind: &str, user: &str) -> [String; 3] {
    [kind, user, if user.is_empty() { "" } else { "laptop" }].map(str::to_owned)
}

#[test]
fn an_answer_has_everything_that_is_known_and_is_the_same_without_a_gateway() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.set("forward", "per_user", "5");
    gateway.up();
    let witness = Witness::start(&network.outside, network.outside_address(), 1);
    let client = join(&network, &gateway, 0, "ann");
    let seen = sighting(&witness, client.host(), "ann");
    let session = gateway.wait_for_session("ann", LATE);
    let (address, first, last) = block(&gateway, "ann");

    let answer = one(&gateway, &seen);
    has_just(&answer, ANSWER);
    has_just(&answer["epoch"], EPOCH);
    let found = &answer["matches"][0];
    has_just(found, MATCH);
    assert_eq!(found["block"], json!({ "from": first, "to": last }));
    assert_eq!((address, last - first), (seen.remote.ip(), 63));
    assert!((first..=last).contains(&seen.remote.port()));
    let device = &gateway.json(&["device", "list", "ann"])["devices"][0];
    for (key, value) in [
        ("kind", &json!("nat")),
        ("gateway", &session["gateway"]),
        ("user", &json!("ann")),
        ("device", &json!("laptop")),
        ("certificate_serial", &device["certificate_serial"]),
        ("inner", &json!(client.inner4().to_string())),
        ("session", &session["id"]),
        ("to", &Value::Null),
    ] {
        assert_eq!(&found[key], value, "{key}");
    }
    assert!(found["certificate_serial"].is_string(), "{found}");
    assert!(millis(&found["from"]) <= seen.at && millis(&answer["epoch"]["from"]) <= millis(&found["from"]));
    assert!(answer["epoch"]["digest"].as_str().is_some_and(|digest| digest.len() == 64), "{answer}");
    assert_eq!((&answer["epoch"]["to"], &answer["clock_uncertainty_ms"]), (&Value::Null, &json!(0)));

    // A block counts for identifiers of ICMP as well, and an address of IPv6 is the client's own.
    let (at, id) = (moment(seen.at), seen.remote.port().to_string());
    let exit = network.exit_address().to_string();
    let echo = gateway.cli(&["trace", "--json", "--at", &at, "--address", &exit, "--id", &id]);
    assert_eq!(named(&echo), [match_of("nat", "ann")]);
    let inner6 = client.inner6().to_string();
    let by_address = gateway.cli(&["trace", "--json", "--at", &at, "--address", &inner6]);
    assert_eq!(named(&by_address), [match_of("ipv6", "ann")]);
    let by_address: Value = serde_json::from_str(&by_address.out).unwrap();
    has_just(&by_address["matches"][0], MATCH);
    assert_eq!(by_address["matches"][0]["block"], Value::Null);
    assert_eq!(by_address["matches"][0]["inner"], inner6);

    // A forwarded port, and what the gateway's machine does itself.
    let forwarded = forward(&gateway, "ann", 22, &["--proto", "tcp"]);
    let remote = (network.exit_address(), port(&forwarded[0])).into();
    assert_eq!(named(&trace(&gateway, &now(), remote, true)), [match_of("forward", "ann")]);
    assert_eq!(named(&trace(&gateway, &now(), remote, false)), Vec::<[String; 3]>::new());
    let own = sighting(&witness, gateway.host(), "gateway");
    assert_eq!(own.remote.ip(), network.exit_address());
    let answer = one(&gateway, &own);
    let found = &answer["matches"][0];
    has_just(found, MATCH);
    assert_eq!((&found["kind"], &found["gateway"]), (&json!("host"), &session["gateway"]));
    for key in ["user", "device", "certificate_serial", "inner", "block", "session"] {
        assert_eq!(found[key], Value::Null, "{key}");
    }

    let people = ask(&gateway, &seen, &["--at", &at]);
    client.stop();
    gateway.stop();
    let answer = one(&gateway, &seen);
    for key in ["kind", "user", "device", "certificate_serial", "inner", "block", "session"] {
        assert_eq!(
            answer["matches"][0][key],
            serde_json::from_str::<Value>(&people.out).unwrap()["matches"][0][key]
        );
    }
    let (address, port) = (seen.remote.ip().to_string(), seen.remote.port().to_string());
    let text = gateway.ok(&["trace", "--at", &at, "--address", &address, "--port", &port]);
    let serial = device["certificate_serial"].as_str().unwrap();
    for word in ["BY ", "nat", "ann", "laptop", serial, "blocks as of"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_moment_may_be_written_in_many_ways_but_never_be_guessed() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let witness = Witness::start(&network.outside, network.outside_address(), 1);
    let client = join(&network, &gateway, 0, "ann");
    let seen = sighting(&witness, client.host(), "ann");

    // Behind UTC it is the same moment, while a zone that is lost would make it one before the lease.
    let utc = |form: &str| date(&["-u", "-d", &format!("@{}", seen.at / 1000), form]);
    let west = |form: &str| date(&["-u", "-d", &format!("@{}", seen.at / 1000 - 18_000), form]);
    for text in [
        moment(seen.at),
        (seen.at / 1000).to_string(),
        utc("+%FT%TZ"),
        utc("+%FT%T+00:00"),
        west("+%FT%T-05:00"),
        west("+%F %T -0500"),
        west("+%F %T America/Bogota"),
        west("+%d/%b/%Y:%T -0500"),
        west("+%a, %d %b %Y %T -0500"),
    ] {
        assert_eq!(named(&ask(&gateway, &seen, &["--at", &text])), [match_of("nat", "ann")], "{text}");
    }
    let local = west("+%F %T");
    for zone in ["America/Bogota", "-05:00"] {
        let found = ask(&gateway, &seen, &["--at", &local, "--zone", zone]);
        assert_eq!(named(&found), [match_of("nat", "ann")], "{zone}");
    }
    assert!(named(&ask(&gateway, &seen, &["--at", &local, "--zone", "UTC"])).is_empty(), "five hours off");
    for (wrong, words) in
        [(local.as_str(), "a different moment in each time zone: add one"), ("yesterday", "is no time")]
    {
        let refused = ask(&gateway, &seen, &["--at", wrong]);
        assert!(refused.refusal().contains(words), "{refused:?}");
    }
    for wrong in [&["--at", &local, "--zone", "Europe/Olso"][..], &["--at", "1", "--tolerance", "soon"], &[]]
    {
        assert_eq!(ask(&gateway, &seen, wrong).code, Some(2), "{wrong:?}");
    }
    let endless = ask(&gateway, &seen, &["--at", "1", "--tolerance", "8d"]);
    assert!(endless.refusal().contains("names everybody"), "{endless:?}");

    // Before the lease there was nobody; the reporter's clock may be two seconds off unless it is said.
    let began = millis(&one(&gateway, &seen)["matches"][0]["from"]);
    for (before, tolerance, found) in
        [(0, "0s", 1), (1, "0s", 0), (1500, "1s", 0), (1500, "2s", 1), (90_000, "2m", 1)]
    {
        let answer = ask(&gateway, &seen, &["--at", &moment(began - before), "--tolerance", tolerance]);
        assert_eq!(named(&answer).len(), found, "{before} ms before, {tolerance}: {answer:?}");
    }
    assert_eq!(named(&ask(&gateway, &seen, &["--at", &moment(began - 1999)])).len(), 1);
    assert_eq!(named(&ask(&gateway, &seen, &["--at", &moment(began - 2001)])).len(), 0);

    // What she has now she need not have then.
    let later = moment(seen.at + 3_600_000);
    assert_eq!(named(&ask(&gateway, &seen, &["--at", &later])).len(), 0);

    // Nobody is an empty list and an exit code of its own, with words for people.
    let at = moment(seen.at);
    let port = if seen.remote.port() > 40_100 { "40001" } else { "64000" };
    for (address, port) in [("198.51.100.1", port), ("203.0.113.77", "50000"), ("2001:db8::77", "50000")] {
        let answer = gateway.cli(&["trace", "--at", &at, "--address", address, "--port", port, "--json"]);
        assert_eq!(answer.code, Some(3), "{answer:?}");
        let body: Value = serde_json::from_str(&answer.out).unwrap();
        has_just(&body, ANSWER);
        assert_eq!(body["matches"], json!([]));
        assert!(answer.err.contains(&format!("nobody had {address} port {port} at ")), "{answer:?}");
    }
}

#[test]
fn at_a_boundary_both_candidates_are_named_and_beside_it_only_one() {
    let network = Network::with_clients(2);
    // One inner address and one block: who comes next has what the other had.
    let mut gateway = Gateway::with(&network, &["--pool4", "10.88.0.0/30", "--pool6", "2001:db8:88::/64"]);
    gateway.set("nat", "ports", "\"64448-64511\"");
    gateway.set("tunnel", "linger", "\"0s\"");
    gateway.up();
    let witness = Witness::start(&network.outside, network.outside_address(), 1);
    let ann = join(&network, &gateway, 0, "ann");
    let of_ann = sighting(&witness, ann.host(), "ann");
    ann.stop();
    gateway.wait_for_sessions(0, LATE);
    let bob = join(&network, &gateway, 1, "bob");
    let of_bob = sighting(&witness, bob.host(), "bob");

    let (first, second) = (one(&gateway, &of_ann), one(&gateway, &of_bob));
    let (first, second) = (&first["matches"][0], &second["matches"][0]);
    assert_eq!((&first["user"], &second["user"]), (&json!("ann"), &json!("bob")));
    assert_eq!((&first["inner"], &first["block"]), (&second["inner"], &second["block"]));
    let (until, since) = (millis(&first["to"]), millis(&second["from"]));
    assert!(until <= since, "{first} {second}");
    let (ann, bob) = (match_of("nat", "ann"), match_of("nat", "bob"));
    let at = |at: i64, tolerance: i64| {
        let tolerance = format!("{tolerance}ms");
        named(&ask(&gateway, &of_bob, &["--at", &moment(at), "--tolerance", &tolerance]))
    };
    assert_eq!(at(until - 1, 0), std::slice::from_ref(&ann));
    assert_eq!(at(since, since - until), [bob.clone(), ann.clone()], "the latest first");
    assert_eq!(at(until, since - until), [bob.clone(), ann]);
    assert_eq!(at(since + 1, 0), [bob]);
    if since - until > 2 {
        assert!(at(until + 1, 0).is_empty(), "nobody had it meanwhile");
    }
}

/// A batch over a file; its lines, apart.
fn batch(gateway: &Gateway, text: &str, options: &[&str]) -> (Outcome, Vec<String>) {
    let file = gateway.path("batch.csv");
    std::fs::write(&file, text).unwrap();
    let answer = gateway.cli(&[&["trace", "--batch", file.to_str().unwrap()], options].concat());
    let lines = answer.out.lines().map(str::to_owned).collect();
    (answer, lines)
}

#[test]
fn a_batch_is_answered_line_by_line_and_what_cannot_be_read_is_named() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let witness = Witness::start(&network.outside, network.outside_address(), 1);
    let client = join(&network, &gateway, 0, "ann");
    let seen = sighting(&witness, client.host(), "ann");
    let found = one(&gateway, &seen)["matches"][0].clone();
    let (at, port) = (moment(seen.at), seen.remote.port());

    // A report of abuse, with a comma in a remark and lines that are too short.
    let lines = [
        format!("4711,\"spam, again\",{at},198.51.100.1,{port},tcp"),
        format!("4712,,noon,198.51.100.1,{port},tcp"),
        format!("4713,,{at},203.0.113.9,{port},tcp"),
        format!("4714,,{at},198.51.100.1,{port}"),
        format!("4715,,{at},198.51.100.1,70000,tcp"),
    ];
    let heading = "Case,Remark,Timestamp,Source IP,Source Port,Protocol";
    let text = format!("{heading}\n{}\n", lines.join("\n"));
    let (answer, out) = batch(&gateway, &text, &[]);
    assert_eq!(out[0], format!("{heading},kind,user,device,certificate_serial,inner,from,to,problem"));
    let field = |key: &str| found[key].as_str().unwrap();
    let named =
        ["user", "device", "certificate_serial", "inner", "from"].map(|key| field(key).to_owned()).join(",");
    let expected = [
        format!("{},nat,{named},,", lines[0]),
        format!("{},,,,,,,,\"\"\"noon\"\" is no time:", lines[1]),
        format!("{},,,,,,,,nobody", lines[2]),
        format!("{},,nat,{named},,", lines[3]),
        format!("{},,,,,,,,\"\"\"70000\"\" is no port\"", lines[4]),
    ];
    assert_eq!(out.len(), 1 + expected.len(), "{answer:?}");
    for (line, expected) in out[1..].iter().zip(&expected) {
        assert!(line.starts_with(expected.as_str()), "{line} is not {expected}");
    }
    assert!(answer.refusal().contains("2 lines of") && answer.refusal().contains("batch.csv"), "{answer:?}");

    let (answer, _) = batch(&gateway, &text, &["--json"]);
    assert_eq!(answer.code, Some(1));
    let body: Value = serde_json::from_str(&answer.out).unwrap();
    has_just(&body, ["results", "found", "nobody", "unreadable"]);
    assert_eq!((&body["found"], &body["nobody"], &body["unreadable"]), (&json!(2), &json!(1), &json!(2)));
    let results = body["results"].as_array().unwrap();
    for (result, number) in results.iter().zip(2..) {
        has_just(result, ["line", "query", "matches", "epoch", "clock_uncertainty_ms", "problem"]);
        assert_eq!(result["line"], number);
    }
    assert_eq!((&results[0]["matches"][0], &results[1]["matches"]), (&found, &json!([])));
    assert!(results[1]["problem"].as_str().unwrap().contains("is no time"), "{body}");

    // Flows as nfdump exports them: no zone, ICMP's type and code for a port, a summary behind.
    let local = date(&["-u", "-d", &format!("@{}", seen.at / 1000), "+%F %T"]);
    let flow = |sa: &str, sp: &str, pr: &str| {
        format!("{local},{local},0.010,{sa},203.0.113.2,{sp},443,{pr},...AP.SF,0,0,5,320,0,0\n")
    };
    let port = port.to_string();
    let flows = "ts,te,td,sa,da,sp,dp,pr,flg,fwd,stos,ipkt,ibyt,opkt,obyt\n".to_owned()
        + &flow("198.51.100.1", &port, "TCP")
        + &flow("198.51.100.1", &port, "UDP")
        + &flow("198.51.100.1", "8.0", "ICMP")
        + &flow("203.0.113.9", &port, "TCP")
        + "Summary\nflows,bytes,packets,avg_bps,avg_pps,avg_bpp\n4,1280,20,1024000,2000,64\n";
    let (answer, out) = batch(&gateway, &flows, &["--zone", "UTC"]);
    assert_eq!((answer.code, out.len()), (Some(0), 5), "{answer:?}");
    for (line, words) in out[1..].iter().zip([",nat,ann,", ",nat,ann,", ",nat,ann,", ",nobody"]) {
        assert!(line.starts_with(&local) && line.contains(words), "{line}: {words}");
    }
    let (answer, _) = batch(&gateway, &flows, &[]);
    assert!(answer.refusal().contains("4 lines of"), "{answer:?}");
    assert!(answer.out.contains("a different moment in each time zone"), "{answer:?}");

    // More than go into one call, in their order.
    let mut many = "time,address,port\n".to_owned();
    for number in 0..1100 {
        let address = if number % 3 == 0 { "198.51.100.1" } else { "203.0.113.9" };
        writeln!(many, "{at},{address},{port}").unwrap();
    }
    let (answer, _) = batch(&gateway, &many, &["--json"]);
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    let body: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((&body["found"], &body["nobody"]), (&json!(367), &json!(733)));
    for (number, result) in body["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["matches"].as_array().unwrap().len(), usize::from(number % 3 == 0), "{number}");
    }

    let (answer, _) = batch(&gateway, &format!("time,address\n{at},203.0.113.9\n"), &[]);
    assert_eq!(answer.code, Some(3), "nobody at all: {answer:?}");
    let (answer, _) = batch(&gateway, "address,port\n198.51.100.1,1\n", &[]);
    assert!(answer.refusal().contains("no column for the time"), "{answer:?}");
    let answer = gateway.cli(&["trace", "--batch", "/nowhere.csv"]);
    assert!(answer.refusal().contains("cannot read /nowhere.csv"), "{answer:?}");
}

/// The document's tool, run in a directory with this table of its configuration.
fn generate(dir: &Path, natfw: &str) {
    std::fs::write(dir.join("adit.toml"), format!("[natfw]\naddress = \"192.0.2.1\"\n{natfw}\n")).unwrap();
    let mut tool = Command::new(dir.join("vpn-generate-natfw"));
    tool.env("ADIT_CONFIG", dir.join("adit.toml")).arg("-w").arg(dir.join("rules.v4")).args(["-c", "true"]);
    let output = tool.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn old_rule_files_of_the_documents_tool_answer_with_the_inner_address() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::os::unix::fs::symlink(adit(), path("vpn-generate-natfw")).unwrap();
    generate(dir.path(), "profiles = [{ range = \"10.8.0.0/29\" }]");
    let file = |path: &Path| std::fs::read_link(path.join("rules.v4")).unwrap();
    let first = dir.path().join(file(dir.path()));
    let since: i64 = first.extension().unwrap().to_str().unwrap().parse().unwrap();

    let ask = |archive: &Path, options: &[&str]| {
        let mut command = Command::new(adit());
        command.args(["-c", "/nowhere.toml", "trace", "--address", "192.0.2.1", "--archive"]).arg(archive);
        let output = command.args(options).output().unwrap();
        Outcome {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    };
    let json = |options: &[&str]| -> Value {
        let answer = ask(dir.path(), &[options, &["--json"]].concat());
        serde_json::from_str(&answer.out).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    };
    let at = |seconds: i64| (since + seconds).to_string();

    let answer = json(&["--at", &at(3), "--port", "65000", "--proto", "tcp"]);
    has_just(&answer, ANSWER);
    let found = &answer["matches"][0];
    has_just(found, MATCH);
    assert_eq!((&found["kind"], &found["inner"]), (&json!("nat"), &json!("10.8.0.2")));
    assert_eq!(found["block"], json!({ "from": 57_344, "to": 65_535 }));
    assert_eq!((millis(&found["from"]), &found["to"]), (since * 1000, &Value::Null));
    for key in ["gateway", "user", "device", "certificate_serial", "session"] {
        assert_eq!(found[key], Value::Null, "{key}");
    }
    let text = ask(dir.path(), &["--at", &at(3), "--port", "65000"]);
    assert!(text.code == Some(0) && text.out.contains("10.8.0.2"), "{text:?}");
    assert!(text.out.contains(first.to_str().unwrap()), "{text:?}");
    assert_eq!(
        ask(dir.path(), &["--at", &at(-60), "--port", "65000"]).code,
        Some(3),
        "before the first file"
    );
    assert_eq!(ask(dir.path(), &["--at", &at(3), "--port", "1"]).code, Some(3));

    // Two files: each counts in its time, and across the boundary both do.
    let later = dir.path().join(format!("rules.v4.{}", since + 1000));
    let moved = std::fs::read_to_string(&first).unwrap().replace("10.8.0.", "10.9.0.");
    std::fs::write(&later, &moved).unwrap();
    let inner = |answer: Value| -> Vec<String> {
        let matches = answer["matches"].as_array().unwrap();
        matches.iter().map(|found| found["inner"].as_str().unwrap().to_owned()).collect()
    };
    for (seconds, tolerance, expected) in
        [(999, "0s", &["10.8.0.2"][..]), (1001, "0s", &["10.9.0.2"]), (1001, "2s", &["10.8.0.2", "10.9.0.2"])]
    {
        let found = inner(json(&["--at", &at(seconds), "--port", "65000", "--tolerance", tolerance]));
        assert_eq!(found, expected, "{seconds} {tolerance}");
    }

    // What cannot be told is said, and a damaged file never makes an older one answer.
    std::fs::write(&later, &moved[..moved.len() / 2]).unwrap();
    let damaged = later.display().to_string();
    for (options, words) in [
        (&["--at", &at(2000), "--port", "65000"][..], damaged.as_str()),
        (&["--at", &at(3), "--id", "7"], "cannot tell whose ICMP"),
        (&["--at", &at(3), "--port", "65000", "--proto", "icmp"], "cannot tell whose ICMP"),
        (&["--at", &at(3)], "by the source port: give it"),
    ] {
        let refused = ask(dir.path(), options);
        assert!(refused.refusal().contains(words), "{options:?}: {refused:?}");
    }
    assert_eq!(inner(json(&["--at", &at(3), "--port", "65000"])), ["10.8.0.2"], "the other one is as it was");
    let empty = tempfile::tempdir().unwrap();
    let refused = ask(empty.path(), &["--at", &at(3), "--port", "65000"]);
    assert!(refused.refusal().contains("there is no file"), "{refused:?}");
    let refused = ask(&path("missing"), &["--at", &at(3), "--port", "65000"]);
    assert!(refused.refusal().contains("cannot read") && refused.err.contains("missing"), "{refused:?}");
}

#[test]
fn it_is_shown_who_has_which_ports_and_checked_that_they_are_enough() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    let report = gateway.json(&["check"]);
    let fits = "383 clients at once have a block; the pools have 65533 addresses";
    assert!(report["notes"].as_array().unwrap().contains(&json!(fits)), "{report}");

    // What does not fit is refused by the check and by the gateway, with the way out.
    let good = gateway.config_text();
    let (pools, ways) = ("the pools have 65533 addresses", "make the pools smaller, add NAT addresses");
    for (key, value, code, words, way) in [
        ("assign", "\"static\"", "nat-blocks", &["for 383 users", pools][..], ways),
        ("block", "\"auto\"", "nat-blocks", &["for 24512 users", pools], ways),
        (
            "addresses",
            "[\"198.51.100.77\"]",
            "nat-address",
            &["198.51.100.77 is on no interface of this machine"],
            "ip address add 198.51.100.77/32",
        ),
    ] {
        gateway.set("nat", key, value);
        let answer = gateway.cli(&["check", "--json"]);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        let report: Value = serde_json::from_str(&answer.out).unwrap();
        let problem = &report["problems"][0];
        assert_eq!(problem["code"], code, "{report}");
        let message = problem["message"].as_str().unwrap();
        assert!(words.iter().all(|word| message.contains(word)), "{problem}");
        assert!(problem["hint"].as_str().unwrap().contains(way), "{problem}");
        gateway.start();
        let last = gateway.wait_for_failure();
        assert!(last.contains(message), "{last}: {message}");
        std::fs::write(gateway.config(), &good).unwrap();
    }

    gateway.up();
    let shown = gateway.json(&["nat", "show"]);
    has_just(&shown, ["blocks", "block_size", "capacity", "in_use", "epoch", "next"]);
    has_just(&shown["epoch"], EPOCH);
    assert_eq!((&shown["blocks"], &shown["in_use"], &shown["next"]), (&json!([]), &json!(0), &Value::Null));
    assert_eq!((&shown["block_size"], &shown["capacity"]), (&json!(64), &json!(383)));
    let clients = [join(&network, &gateway, 0, "ann"), join(&network, &gateway, 1, "bob")];

    let shown = gateway.json(&["nat", "show"]);
    assert_eq!(shown["in_use"], 2);
    let blocks = shown["blocks"].as_array().unwrap();
    for (row, (user, client)) in blocks.iter().zip(["ann", "bob"].into_iter().zip(&clients)) {
        has_just(row, ["user", "device", "inner", "block", "session", "since", "leaving"]);
        has_just(&row["block"], ["address", "from", "to"]);
        let session = gateway.wait_for_session(user, LATE)["id"].clone();
        assert_eq!((&row["user"], &row["device"]), (&json!(user), &json!("laptop")), "the highest first");
        assert_eq!((&row["inner"], &row["leaving"]), (&json!(client.inner4().to_string()), &json!(false)));
        assert_eq!((&row["block"]["address"], &row["session"]), (&json!("198.51.100.1"), &session));
        assert_eq!(gateway.json(&["nat", "show", user])["blocks"], json!([row]));
    }
    assert_eq!(blocks.len(), 2);
    assert_eq!(blocks[0]["block"], json!({ "address": "198.51.100.1", "from": 64_448, "to": 64_511 }));
    assert_eq!(blocks[1]["block"], json!({ "address": "198.51.100.1", "from": 64_384, "to": 64_447 }));
    let text = gateway.ok(&["nat", "show"]);
    assert!(text.contains("ann") && text.contains("64448-64511") && text.contains("383"), "{text}");
    gateway.ok(&["user", "add", "carl"]);
    assert_eq!(gateway.json(&["nat", "show", "carl"])["blocks"], json!([]), "no device, no ports");
    let refused = gateway.cli(&["nat", "show", "nobody"]);
    assert!(refused.refusal().contains("there is no user named nobody"), "{refused:?}");

    gateway.stop();
    gateway.edit(|document| {
        document.remove("nat");
    });
    gateway.up();
    let refused = gateway.cli(&["nat", "show"]);
    assert!(refused.refusal().contains("there is no [nat] in force"), "{refused:?}");
}
