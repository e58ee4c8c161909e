//! Who plays: the gateway, stock clients, an outside web server, pings.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_api::Time;
use adit_host::netns::TemporaryNetns;

use super::stage::{GATEWAY, OUTSIDE, PAGE_PORT, Stage};

/// How often conditions are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Lines a child has written, collected as they come.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn collect(&self, source: impl Read + Send + 'static) {
        let lines = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                lines.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
    }

    fn count(&self, text: &str) -> usize {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.contains(text)).count()
    }

    fn last(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = lines.len().saturating_sub(5);
        lines.get(from..).unwrap_or_default().join(" | ")
    }
}

/// A child that ends with its handle.
struct Running {
    name: String,
    child: Child,
    lines: Lines,
}

impl Running {
    fn start(namespace: &TemporaryNetns, name: &str, command: &mut Command) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = namespace.run_in(|| command.spawn()).map_err(|error| {
            let program = command.get_program().to_string_lossy();
            format!("cannot run {program}: {error}; install it, for instance: apt-get install openvpn iputils-ping")
        })?;
        let lines = Lines::default();
        if let Some(out) = child.stdout.take() {
            lines.collect(out);
        }
        if let Some(err) = child.stderr.take() {
            lines.collect(err);
        }
        Ok(Self { name: name.to_owned(), child, lines })
    }

    fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        while !done(self) {
            if Instant::now() >= deadline {
                return Err(format!("{}: {what} was not seen; it says: {}", self.name, self.lines.last()));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn terminate(&mut self, limit: Duration) -> Result<(), String> {
        adit_host::process::terminate(&self.child).map_err(|error| format!("{}: {error}", self.name))?;
        self.wait_until("its end", limit, Self::has_ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The gateway: this very program.
pub(super) struct Gateway {
    running: Running,
    program: PathBuf,
    config: PathBuf,
}

impl Gateway {
    pub(super) fn start(stage: &Stage) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let dir = stage.dir().join("gateway");
        let config = dir.join("adit.toml");
        let mut init = Command::new(&program);
        init.args(["init", "--name", "demo", "--public", GATEWAY, "--dir"]).arg(&dir);
        // There, because its default route says which address clients leave by.
        let init = stage.gateway.run_in(|| init.output()).map_err(|error| error.to_string())?;
        if !init.status.success() {
            return Err(format!("adit init: {}", String::from_utf8_lossy(&init.stderr)));
        }
        OpenOptions::new()
            .append(true)
            .open(&config)
            .and_then(|mut file| file.write_all(b"\n[forward]\nports = \"30000-39999\"\n"))
            .map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        let mut up = Command::new(&program);
        up.arg("-c").arg(&config).arg("up").env("ADIT_LOG", "info");
        let mut running = Running::start(&stage.gateway, "the gateway", &mut up)?;
        running.wait_until("ready", Duration::from_secs(10), |r| r.lines.count("ready") > 0)?;
        Ok(Self { running, program, config })
    }

    fn call(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.program).arg("-c").arg(&self.config).args(args).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(format!("adit {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }

    fn call_json(&self, args: &[&str]) -> Result<serde_json::Value, String> {
        let text = self.call(&[args, &["--json"]].concat())?;
        serde_json::from_str(&text).map_err(|error| format!("adit {}: {error}", args.join(" ")))
    }

    /// Adds a user with a device and writes the profile; its path.
    pub(super) fn add(&self, user: &str, device: &str) -> Result<PathBuf, String> {
        self.call(&["user", "add", user, "--device", device])?;
        let profile = self.call(&["profile", user, device])?;
        let path = self.config.with_file_name(format!("{user}.ovpn"));
        std::fs::write(&path, profile)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(path)
    }

    /// Live sessions as `user/device`.
    pub(super) fn sessions(&self) -> Result<Vec<String>, String> {
        Ok(names(&self.call_json(&["session", "list"])?["sessions"]))
    }

    /// Whose visit it was, as `user/device`, by what the server's log has of it.
    pub(super) fn trace(&self, visit: &Visit) -> Result<Vec<String>, String> {
        let (address, port) = (visit.from.ip().to_string(), visit.from.port().to_string());
        let seen = ["--at", &visit.at.to_string(), "--address", &address, "--port", &port, "--proto", "tcp"];
        Ok(names(&self.call_json(&[&["trace", "--reason", "the demo"], &seen[..]].concat())?["matches"]))
    }

    /// Forwards a port to a device; which one.
    pub(super) fn forward(&self, user: &str, device: &str, to: u16) -> Result<u16, String> {
        let to = to.to_string();
        let made = self.call_json(&["forward", "add", user, device, "--proto", "tcp", "--to", &to])?;
        made["forwards"][0]["port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .ok_or_else(|| format!("adit forward add names no port: {made}"))
    }

    /// Removes a user; how many milliseconds that took.
    pub(super) fn remove(&self, user: &str) -> Result<u64, String> {
        let cut = self.call_json(&["user", "remove", user])?;
        match cut["sessions_closed"].as_u64() {
            Some(1) => Ok(cut["millis"].as_u64().unwrap_or(0)),
            other => Err(format!("removing {user} was to cut one session, not {other:?}")),
        }
    }

    pub(super) fn stop(&mut self) -> Result<(), String> {
        self.running.terminate(Duration::from_secs(10))
    }
}

/// `user/device` of each.
fn names(list: &serde_json::Value) -> Vec<String> {
    let name = |of: &serde_json::Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let list = list.as_array().into_iter().flatten();
    list.map(|of| format!("{}/{}", name(of, "user"), name(of, "device"))).collect()
}

/// The `openvpn` program.
pub(super) struct StockClient(Running);

impl StockClient {
    /// What it says when it is connected.
    pub(super) const UP: &str = "Initialization Sequence Completed";

    pub(super) fn connect(namespace: &TemporaryNetns, name: &str, profile: &Path) -> Result<Self, String> {
        let mut command = Command::new("openvpn");
        command.arg("--config").arg(profile);
        let mut running = Running::start(namespace, &format!("{name}'s client"), &mut command)?;
        running.wait_until(Self::UP, Duration::from_secs(15), |r| r.lines.count(Self::UP) > 0)?;
        Ok(Self(running))
    }

    pub(super) fn wait_for(&mut self, text: &str, limit: Duration) -> Result<(), String> {
        self.0.wait_until(text, limit, |r| r.lines.count(text) > 0)
    }

    pub(super) fn wait_for_exit(&mut self, limit: Duration) -> Result<(), String> {
        self.0.wait_until("its end", limit, Running::has_ended)
    }

    pub(super) fn stop(&mut self) -> Result<(), String> {
        self.0.terminate(Duration::from_secs(10))
    }
}

/// Pings the outside server ten times a second.
pub(super) struct Pinger(Mutex<Running>);

impl Pinger {
    pub(super) fn start(namespace: &TemporaryNetns) -> Result<Self, String> {
        let mut command = Command::new("ping");
        command.args(["-n", "-i", "0.1", "-w", "60", OUTSIDE]);
        Running::start(namespace, "ping", &mut command).map(|running| Self(Mutex::new(running)))
    }

    fn answers(running: &Running) -> usize {
        running.lines.count("bytes from")
    }

    /// Waits for this many more answers.
    pub(super) fn wait_for_answers(&self, more: usize) -> Result<(), String> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goal = Self::answers(&running) + more;
        running.wait_until("an answer", Duration::from_secs(10), |r| Self::answers(r) >= goal)
    }

    /// Waits until no answer has come for a second; how many came before.
    pub(super) fn wait_for_silence(&self, limit: Duration) -> Result<usize, String> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = (Self::answers(&running), Instant::now());
        running.wait_until("silence", limit, |r| {
            let answers = Self::answers(r);
            if answers != last.0 {
                last = (answers, Instant::now());
            }
            last.1.elapsed() > Duration::from_secs(1)
        })?;
        Ok(last.0)
    }
}

/// A line of the web server's log.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    /// The page that was asked for.
    pub(super) page: String,
    /// Where the visitor came from.
    pub(super) from: SocketAddr,
    /// When.
    pub(super) at: Time,
}

/// A web server that remembers who came.
pub(super) struct Page(Arc<Mutex<Vec<Visit>>>);

impl Page {
    pub(super) fn serve(namespace: &TemporaryNetns) -> Result<Self, String> {
        let listener = namespace
            .run_in(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PAGE_PORT)))
            .map_err(|error| format!("a web server does not start: {error}"))?;
        let visits = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&visits);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 512];
                let read = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(request.get(..read).unwrap_or_default()).into_owned();
                let Some(page) = request.split(' ').nth(1) else { continue };
                if let Ok(from) = stream.peer_addr() {
                    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    let at = Time::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
                    let visit = Visit { page: page.trim_start_matches('/').to_owned(), from, at };
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(visit);
                }
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
            }
        });
        Ok(Self(visits))
    }

    /// All visits, in order.
    pub(super) fn visits(&self) -> Vec<Visit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
