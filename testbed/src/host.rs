//! A machine of the test: a network namespace and what is run in it.

use std::io::Write;
use std::ops::Deref;
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use adit_host::netns::{Netns, TemporaryNetns};

use crate::Process;

/// Namespaces of tests begin with this; the process id of the test follows somewhere behind.
const PREFIX: &str = "adit-test";

/// A network namespace that is deleted with its last handle. Functions of [`Netns`] work on it as well.
#[derive(Debug)]
pub struct Host {
    role: String,
    netns: TemporaryNetns,
}

impl Deref for Host {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Host {
    /// A machine without any network but its loopback interface.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    #[track_caller]
    pub fn new(role: &str) -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        crate::require("ip");
        let netns = TemporaryNetns::create(&format!("{PREFIX}-{role}"));
        let netns = netns.unwrap_or_else(|fault| panic!("{role}: {fault}"));
        let host = Self { role: role.to_owned(), netns };
        // Before they have a link-local address, routers do not ask for their neighbours: no waiting for it.
        host.sysctl("net.ipv6.conf.default.accept_dad", "0");
        host.sysctl("net.ipv6.conf.default.dad_transmits", "0");
        host
    }

    /// What it is in the topology.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Starts a process in it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn spawn(&self, name: &str, command: &mut Command) -> Process {
        self.run_in(|| Process::spawn(name, command))
    }

    /// Runs a command in it to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn output(&self, command: &mut Command) -> Output {
        command.stdin(Stdio::null());
        let output = self.run_in(|| command.output());
        output.unwrap_or_else(|error| panic!("{}: cannot run {command:?}: {error}", self.role))
    }

    /// Runs a command in it that must succeed; its standard output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn run(&self, command: &mut Command) -> String {
        let output = self.output(command);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {command:?}: {out}{err}", self.role);
        out.into_owned()
    }

    /// Commands of `ip`, one on a line.
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn ip(&self, commands: &str) {
        let mut command = Command::new("ip");
        command.args(["-n", self.name(), "-batch", "-"]);
        self.feed(&mut command, commands);
    }

    /// A ruleset of nftables.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn nft(&self, ruleset: &str) {
        crate::require("nft");
        self.feed(Command::new("nft").args(["-f", "-"]), ruleset);
    }

    /// Sets a kernel parameter.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        self.run_in(|| adit_host::sysctl::set(name, value))
            .unwrap_or_else(|fault| panic!("{}: {fault}", self.role));
    }

    #[track_caller]
    fn feed(&self, command: &mut Command, input: &str) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.run_in(|| {
            let mut child = command.spawn()?;
            child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()))?;
            child.wait_with_output()
        });
        let output = output.unwrap_or_else(|error| panic!("{}: cannot run {command:?}: {error}", self.role));
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {command:?}: {err}for: {input}", self.role);
    }
}

/// Removes what runs that were killed have left: namespaces named after a process that is no more, and the
/// processes in them.
fn sweep() {
    for name in Netns::list(PREFIX).unwrap_or_default() {
        let owner = name.rsplit('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
        let Some(owner) = owner.filter(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) else {
            continue;
        };
        let pids = Command::new("ip").args(["netns", "pids", &name]).output();
        for pid in pids.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default().lines() {
            let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
            let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
        // Another test process may be sweeping as well.
        let _ = Netns::delete(&name);
        eprintln!("removed the namespace {name}, left by process {owner}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_run_inside() {
        let host = Host::new("inside");
        host.ip("link set lo mtu 1234");
        assert!(host.run(Command::new("ip").args(["link", "show", "lo"])).contains("mtu 1234"));
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let child = Command::new("true").spawn().and_then(|mut child| {
            let pid = child.id();
            child.wait().map(|_| pid)
        });
        let name = format!("{PREFIX}-stale-{}-0", child.unwrap());
        Netns::create(&name).unwrap();
        let kept = Host::new("kept");

        sweep();

        assert!(Netns::list(&name).unwrap().is_empty());
        assert!(!Netns::list(kept.name()).unwrap().is_empty());
    }
}
