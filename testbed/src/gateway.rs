//! The gateway under test: the real program with a configuration of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};

use crate::{Host, Network, Process, Snapshot, adit, eventually, eventually_some};

/// How long a gateway may take to be ready, or to end. RSA keys may have to be made first.
const START: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(20);

/// What a command of the command line did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Outcome {
    /// The one line on standard error of a command that failed with code 1.
    ///
    /// # Panics
    /// When it did not fail like that.
    #[track_caller]
    pub fn refusal(&self) -> &str {
        assert_eq!(self.code, Some(1), "exit code of a refusal: {self:?}");
        let mut lines = self.err.lines().filter(|line| !line.is_empty());
        match (lines.next(), lines.next()) {
            (Some(line), None) => line,
            _ => panic!("a refusal is one line on standard error: {self:?}"),
        }
    }
}

/// A gateway in a directory of its own. It is made by `adit init` and started by [`up`](Self::up).
///
/// When it is dropped, and the test has not failed, it must end in order: no line of level ERROR that was not
/// [expected](Self::expect_error), no panic, exit code 0, and the machine as it was before the first start.
#[derive(Debug)]
pub struct Gateway {
    host: Arc<Host>,
    dir: TempDir,
    public: String,
    process: Option<Process>,
    before: Option<Snapshot>,
    environment: Vec<(String, String)>,
    open_files: Option<u32>,
    expected_errors: Vec<String>,
    /// Logs of gateways that were here before.
    past: Vec<String>,
}

impl Gateway {
    /// Makes a gateway in the network's gateway machine, with pools that the router knows: 10.88.0.0/16 and
    /// 2001:db8:88::/64.
    ///
    /// # Panics
    /// When `adit init` fails.
    #[must_use]
    #[track_caller]
    pub fn new(network: &Network) -> Self {
        Self::with(network, &["--pool4", "10.88.0.0/16", "--pool6", "2001:db8:88::/64"])
    }

    /// Makes a gateway with other options of `adit init`.
    ///
    /// # Panics
    /// When `adit init` fails.
    #[must_use]
    #[track_caller]
    pub fn with(network: &Network, options: &[&str]) -> Self {
        let gateway = Self {
            host: Arc::clone(&network.gateway),
            dir: tempfile::tempdir().expect("a directory"),
            public: network.gateway_address().to_string(),
            process: None,
            before: None,
            environment: vec![("ADIT_LOG".into(), "info".into())],
            open_files: None,
            expected_errors: Vec::new(),
            past: Vec::new(),
        };
        let dir = gateway.dir.path().join("gw");
        let mut command = Command::new(adit());
        command.args(["init", "--name", "north", "--public", &gateway.public]).args(options);
        gateway.host.run(command.arg("--dir").arg(dir));
        gateway
    }

    /// The machine it is on.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Its directory, with `adit.toml` and `state`.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("gw")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir().join("adit.toml")
    }

    /// The text of its configuration.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn config_text(&self) -> String {
        std::fs::read_to_string(self.config()).expect("the configuration can be read")
    }

    /// Changes the configuration.
    ///
    /// # Panics
    /// When it is not TOML.
    #[track_caller]
    pub fn edit(&self, change: impl FnOnce(&mut DocumentMut)) {
        let mut document: DocumentMut = self.config_text().parse().expect("TOML");
        change(&mut document);
        std::fs::write(self.config(), document.to_string()).expect("the configuration can be written");
    }

    /// Sets a value of a table, `toml` being as in the file: `set("tunnel", "mtu", "1400")`.
    ///
    /// # Panics
    /// When `toml` is not a value.
    #[track_caller]
    pub fn set(&self, table: &str, key: &str, toml: &str) {
        let value: toml_edit::Value = toml.parse().unwrap_or_else(|error| panic!("{toml}: {error}"));
        self.edit(|document| {
            let table = document.entry(table).or_insert(Item::Table(Table::new()));
            table[key] = Item::Value(value);
        });
    }

    /// Takes all identities out of the configuration.
    pub fn clear_identities(&self) {
        self.edit(|document| {
            document.remove("identity");
        });
    }

    /// Adds an identity to the configuration. Wraps are as in the file; `tls-auth SHA512` names the digest too.
    pub fn add_identity(&self, name: &str, key: &str, wrap: &str) {
        let (wrap, auth) = wrap.split_once(' ').map_or((wrap, None), |(wrap, auth)| (wrap, Some(auth)));
        self.edit(|document| {
            let mut table = Table::new();
            let fields = [("name", Some(name)), ("key", Some(key)), ("wrap", Some(wrap)), ("auth", auth)];
            for (field, value) in fields {
                if let Some(value) = value {
                    table.insert(field, toml_edit::value(value));
                }
            }
            let identities = document.entry("identity").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
            identities.as_array_of_tables_mut().expect("[[identity]]").push(table);
        });
        crate::pki::provide_slow_key(&self.dir().join("state/identities").join(name), key);
    }

    /// Gives it a CA with another kind of key, as an operator would who has one already.
    ///
    /// # Panics
    /// When OpenSSL does not make it.
    pub fn replace_ca(&self, key: &str) {
        let ca = self.dir().join("state/ca");
        crate::pki::make_ca(&ca, key);
        // The revocation list was the former CA's.
        let _ = std::fs::remove_file(ca.join("crl.pem"));
    }

    /// Sets a variable of its environment.
    pub fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// It is started with no more than so many descriptors.
    pub fn limit_open_files(&mut self, count: u32) {
        self.open_files = Some(count);
    }

    /// Lines of level ERROR with `text` in them are part of the test.
    pub fn expect_error(&mut self, text: &str) {
        self.expected_errors.push(text.to_owned());
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn up(&mut self) {
        self.start();
        self.process().wait_for("ready", START);
    }

    /// Starts it without waiting.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "the gateway is running already");
        if self.before.is_none() {
            self.before = Some(Snapshot::take(&self.host));
        }
        let mut command = self.command(&["up"]);
        if let Some(count) = self.open_files {
            let adit = std::mem::replace(&mut command, Command::new("prlimit"));
            command.arg(format!("--nofile={count}:{count}")).arg(adit.get_program()).args(adit.get_args());
            command.envs(adit.get_envs().filter_map(|(name, value)| Some((name, value?))));
        }
        self.process = Some(self.host.spawn("the gateway", &mut command));
    }

    /// `adit` with this configuration and environment.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(adit());
        command.arg("-c").arg(self.config()).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The running process.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    #[track_caller]
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the gateway is running")
    }

    /// Ends it in order (SIGTERM), checks how it ended, and that the machine is as it was.
    ///
    /// # Panics
    /// When something is not as it should be.
    #[track_caller]
    pub fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        process.terminate();
        let status = process.wait_for_end(END);
        self.check_log(&process);
        assert!(status.success(), "the gateway ended with {status}: {}", process.err.tail());
        self.past.extend(process.err.lines());
        let left = self.left_behind();
        assert!(left.is_empty(), "the gateway's machine is not as it was: {left:#?}");
    }

    /// Waits for it to end by itself, with a fault and with its machine as it was; the last line of its errors.
    ///
    /// # Panics
    /// When it does not, or ends as if all were well.
    #[track_caller]
    pub fn wait_for_failure(&mut self) -> String {
        let mut process = self.process.take().expect("the gateway is running");
        let status = process.wait_for_end(END);
        self.check_log(&process);
        assert!(!status.success(), "the gateway ended with {status}: {}", process.err.tail());
        self.past.extend(process.err.lines());
        let left = self.left_behind();
        assert!(left.is_empty(), "the gateway's machine is not as it was: {left:#?}");
        process.err.lines().pop().unwrap_or_default()
    }

    /// Kills it: no time to tell anybody or to put anything back.
    ///
    /// # Panics
    /// When it is not running.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the gateway is running");
        process.kill();
        self.check_log(&process);
        self.past.extend(process.err.lines());
    }

    /// What is different on its machine from the time before its first start.
    #[must_use]
    #[track_caller]
    pub fn left_behind(&self) -> Vec<String> {
        match &self.before {
            Some(before) => before.difference(&Snapshot::take(&self.host)),
            None => Vec::new(),
        }
    }

    #[track_caller]
    fn check_log(&self, process: &Process) {
        for line in process.err.lines() {
            let expected = self.expected_errors.iter().any(|text| line.contains(text));
            let bad = line.contains("ERROR") || line.contains("panicked");
            assert!(expected || !bad, "the gateway's log has: {line}");
        }
    }

    /// Lines of its log with `text` in them, of former runs too.
    #[must_use]
    pub fn logged(&self, text: &str) -> Vec<String> {
        let now = self.process.iter().flat_map(|process| process.err.lines());
        self.past.iter().cloned().chain(now).filter(|line| line.contains(text)).collect()
    }

    /// Waits for a line with `text` in its log; the line.
    ///
    /// # Panics
    /// When it does not come within `limit`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> String {
        match self.process().err.wait_since(0, text, limit) {
            Some((_, line)) => line,
            None => panic!("the gateway has not logged {text:?} within {limit:?}"),
        }
    }

    /// Runs a command of the command line.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Outcome {
        let output = self.host.output(&mut self.command(arguments));
        Outcome {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed; its output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let outcome = self.cli(arguments);
        assert_eq!(outcome.code, Some(0), "adit {}: {outcome:?}", arguments.join(" "));
        outcome.out
    }

    /// Runs a command with `--json` that must succeed; its answer.
    ///
    /// # Panics
    /// When it fails, or prints something else than one object.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(value.is_object(), "one object is expected: {text}");
        value
    }

    /// Adds a user with a device named `laptop`; its profile, with these options of `adit profile`.
    ///
    /// # Panics
    /// When a command fails.
    #[track_caller]
    pub fn add_user(&self, user: &str, options: &[&str]) -> String {
        self.ok(&["user", "add", user, "--device", "laptop"]);
        self.profile(user, "laptop", options)
    }

    /// A device's profile.
    ///
    /// # Panics
    /// When the command fails.
    #[track_caller]
    pub fn profile(&self, user: &str, device: &str, options: &[&str]) -> String {
        self.ok(&[&["profile", user, device], options].concat())
    }

    /// The live sessions.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    #[track_caller]
    pub fn sessions(&self) -> Vec<Value> {
        self.json(&["session", "list"])["sessions"].as_array().expect("sessions").clone()
    }

    /// The session of a user.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    #[track_caller]
    pub fn session_of(&self, user: &str) -> Option<Value> {
        self.sessions().into_iter().find(|session| session["user"] == user)
    }

    /// Waits until a user has a session; the session.
    ///
    /// # Panics
    /// When there is none within `limit`.
    #[track_caller]
    pub fn wait_for_session(&self, user: &str, limit: Duration) -> Value {
        eventually_some(&format!("a session of {user}"), limit, || self.session_of(user))
    }

    /// Waits until there are this many sessions.
    ///
    /// # Panics
    /// When there are not within `limit`.
    #[track_caller]
    pub fn wait_for_sessions(&self, count: usize, limit: Duration) {
        eventually(&format!("{count} sessions"), limit, || self.sessions().len() == count);
    }

    /// A figure of `adit status`, by its path.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    #[track_caller]
    pub fn status(&self, pointer: &str) -> u64 {
        self.json(&["status"]).pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    /// How many packets were dropped for this reason.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    #[track_caller]
    pub fn drops(&self, reason: &str) -> u64 {
        self.status(&format!("/drops/{reason}"))
    }

    /// A file below its directory.
    #[must_use]
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir().join(relative)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// Waits for the end of a process; what it said.
#[track_caller]
pub(crate) fn outcome(process: &mut Process) -> Outcome {
    let status = process.wait_for_end(START);
    let text = |log: &crate::Log| log.lines().iter().map(|line| format!("{line}\n")).collect();
    Outcome { code: status.code(), out: text(&process.out), err: text(&process.err) }
}
