//! adit's own client under test: `adit connect`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::gateway::outcome;
use crate::{Host, Outcome, Process, adit, eventually_some};

/// How long a connection may take, on a busy machine.
const CONNECT: Duration = Duration::from_secs(40);

/// `adit connect` in a machine of the test, with its changes of state as JSON.
#[derive(Debug)]
pub struct AditClient {
    host: Arc<Host>,
    process: Process,
    dir: TempDir,
}

impl AditClient {
    /// Starts a client with a profile and nothing else.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Arc<Host>, profile: &str) -> Self {
        Self::start_with(host, profile, &[])
    }

    /// Starts a client with options of `adit connect`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn start_with(host: &Arc<Host>, profile: &str, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("profile.ovpn");
        std::fs::write(&file, profile).expect("a file can be written");
        let mut command = Command::new(adit());
        command.args(["connect", "--status-json"]).args(options).arg(file);
        let process = host.spawn(&format!("adit connect at {}", host.role()), &mut command);
        Self { host: Arc::clone(host), process, dir }
    }

    /// Starts a client and waits until it is connected.
    ///
    /// # Panics
    /// When it does not connect.
    #[must_use]
    #[track_caller]
    pub fn connect(host: &Arc<Host>, profile: &str) -> Self {
        Self::connect_with(host, profile, &[])
    }

    /// The same with options of `adit connect`.
    ///
    /// # Panics
    /// When it does not connect.
    #[must_use]
    #[track_caller]
    pub fn connect_with(host: &Arc<Host>, profile: &str, options: &[&str]) -> Self {
        let client = Self::start_with(host, profile, options);
        client.wait_until_connected_since(0, CONNECT);
        client
    }

    /// Runs a client that is expected to end by itself; what it said.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn run_to_end(host: &Arc<Host>, profile: &str, options: &[&str]) -> Outcome {
        outcome(&mut Self::start_with(host, profile, options).process)
    }

    /// A place in what it says of its state.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.process.out.mark()
    }

    /// Its states since a mark, in order.
    ///
    /// # Panics
    /// When a line is not an object.
    #[must_use]
    #[track_caller]
    pub fn states_since(&self, mark: usize) -> Vec<Value> {
        let parse = |line: &String| match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => value,
            other => panic!("not an object on a line: {line}: {other:?}"),
        };
        self.process.out.since(mark).iter().map(parse).collect()
    }

    /// Waits for a state after a mark: `connecting`, `connected`, `reconnecting` or `disconnected`; all that it
    /// says then.
    ///
    /// # Panics
    /// When it does not come within `limit`.
    #[track_caller]
    pub fn wait_for_state_since(&self, mark: usize, state: &str, limit: Duration) -> Value {
        eventually_some(&format!("{state} of {}", self.process.name()), limit, || {
            self.states_since(mark).into_iter().find(|value| value["state"] == state)
        })
    }

    /// Waits until it is connected, after a mark; what it says then.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    #[track_caller]
    pub fn wait_until_connected_since(&self, mark: usize, limit: Duration) -> Value {
        self.wait_for_state_since(mark, "connected", limit)
    }

    /// What it said when it was last connected.
    ///
    /// # Panics
    /// When it never was.
    #[must_use]
    #[track_caller]
    pub fn connected(&self) -> Value {
        let states = self.states_since(0);
        states.into_iter().rfind(|value| value["state"] == "connected").expect("it was connected")
    }

    /// Its address inside, IPv4.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    #[track_caller]
    pub fn inner4(&self) -> IpAddr {
        self.inner("inner4")
    }

    /// Its address inside, IPv6.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    #[track_caller]
    pub fn inner6(&self) -> IpAddr {
        self.inner("inner6")
    }

    #[track_caller]
    fn inner(&self, key: &str) -> IpAddr {
        let connected = self.connected();
        let address = connected[key].as_str().and_then(|text| text.parse().ok());
        address.unwrap_or_else(|| panic!("no {key}: {connected}"))
    }

    /// Waits for a line with `text` in it in its log.
    ///
    /// # Panics
    /// When it does not come within `limit`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> String {
        match self.process.err.wait_since(0, text, limit) {
            Some((_, line)) => line,
            None => panic!("{} has not logged {text:?} within {limit:?}", self.process.name()),
        }
    }

    /// The machine it is on.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The process with its log.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The process, to signal or wait for.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The profile it reads.
    #[must_use]
    pub fn profile(&self) -> PathBuf {
        self.dir.path().join("profile.ovpn")
    }

    /// Ends it in order: it says goodbye to the server, puts everything back and complains about nothing.
    ///
    /// # Panics
    /// When it does not end like that.
    #[track_caller]
    pub fn stop(mut self) {
        self.process.terminate();
        let outcome = outcome(&mut self.process);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let bad = outcome.err.lines().find(|line| line.contains("ERROR") || line.contains("panicked"));
        assert_eq!(bad, None, "{outcome:?}");
    }

    /// Kills it: it puts nothing back and tells nobody.
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn kill(mut self) {
        self.process.kill();
    }
}
