//! What a machine's network looks like, to compare before and after.

use std::collections::BTreeSet;
use std::process::Command;

use crate::Host;

/// Links, addresses, routes, rules, filters and kernel parameters of a machine, as the system's own tools tell them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// How it is now.
    ///
    /// # Panics
    /// When a tool fails.
    #[must_use]
    #[track_caller]
    pub fn take(host: &Host) -> Self {
        crate::require("nft");
        let mut lines = BTreeSet::new();
        let tools: &[&[&str]] = &[
            &["ip", "-o", "address"],
            &["ip", "-4", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["ip", "-4", "rule"],
            &["ip", "-6", "rule"],
            &["nft", "list", "ruleset"],
        ];
        for tool in tools {
            let text = host.run(Command::new(tool[0]).args(&tool[1..]));
            let name = tool.join(" ");
            // What the kernel makes and removes by itself, some time after an interface has come up.
            let passing = |line: &str| line.contains("fe80:") || line.contains("ff00::/8");
            lines.extend(
                text.lines().filter(|line| !passing(line)).map(|line| format!("{name}: {}", settled(line))),
            );
        }
        lines.extend(host.run_in(sysctls));
        Self(lines)
    }

    /// What is different in `later`: lines that are new and lines that are gone.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let new = later.0.difference(&self.0).map(|line| format!("new: {line}"));
        new.chain(self.0.difference(&later.0).map(|line| format!("gone: {line}"))).collect()
    }
}

/// A line without what changes by itself.
fn settled(line: &str) -> String {
    // `ip -o` numbers interfaces and ends lines with lifetimes behind a backslash.
    line.split('\\').next().unwrap_or(line).trim().to_owned()
}

/// The parameters that a gateway may touch, and all of each interface.
fn sysctls() -> Vec<String> {
    let mut found = Vec::new();
    let mut files: Vec<_> = ["net/ipv4/ip_forward", "net/ipv4/ip_local_port_range"]
        .into_iter()
        .chain(["net/ipv4/ip_local_reserved_ports"])
        .map(|name| std::path::Path::new("/proc/sys").join(name))
        .collect();
    for family in ["ipv4", "ipv6"] {
        let conf = format!("/proc/sys/net/{family}/conf");
        for interface in std::fs::read_dir(conf).into_iter().flatten().map_while(Result::ok) {
            let parameters = std::fs::read_dir(interface.path());
            files.extend(parameters.into_iter().flatten().map_while(Result::ok).map(|entry| entry.path()));
        }
    }
    for file in files {
        // A secret that nobody has set yet cannot be read.
        if let Ok(value) = std::fs::read_to_string(&file) {
            found.push(format!("sysctl: {} = {}", file.display(), value.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_seen() {
        let host = Host::new("snapshot");
        let before = Snapshot::take(&host);
        assert_eq!(before.difference(&Snapshot::take(&host)), Vec::<String>::new());
        host.ip("address add 10.1.1.1/32 dev lo\nroute add blackhole 10.2.0.0/16\nrule add fwmark 7 table 9");
        host.nft("table inet mine { }");
        host.sysctl("net.ipv4.ip_forward", "1");
        let difference = before.difference(&Snapshot::take(&host)).join("\n");
        for expected in
            ["10.1.1.1", "blackhole 10.2.0.0/16", "fwmark 0x7", "table inet mine", "ip_forward = 1"]
        {
            assert!(difference.contains(expected), "{expected}: {difference}");
        }
    }
}
