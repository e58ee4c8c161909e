//! `iperf3`.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::{Host, Process, eventually_some, require};

/// A server that takes one test after the other.
#[derive(Debug)]
pub struct IperfServer {
    _process: Process,
}

impl IperfServer {
    /// Starts it in `host` and waits until it listens.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Host) -> Self {
        require("iperf3");
        let process = host.spawn("iperf3 -s", Command::new("iperf3").args(["-s", "--forceflush"]));
        process.wait_for("Server listening", Duration::from_secs(10));
        Self { _process: process }
    }
}

/// A test from `host` against a server; the program's JSON.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn iperf3(host: &Host, server: IpAddr, options: &[&str]) -> Value {
    require("iperf3");
    let mut command = Command::new("iperf3");
    command.args(["-c", &server.to_string(), "--json"]).args(options);
    // A server takes one test at a time, and is a moment longer in the one before than its client.
    eventually_some("an idle iperf3 server", Duration::from_secs(10), || {
        let text = String::from_utf8_lossy(&host.output(&mut command).stdout).into_owned();
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let error = report["error"].as_str();
        let between_tests = ["busy", "unable to send cookie", "Connection reset by peer"];
        if error.is_some_and(|error| between_tests.iter().any(|words| error.contains(words))) {
            return None;
        }
        assert!(error.is_none(), "iperf3: {error:?}");
        Some(report)
    })
}
