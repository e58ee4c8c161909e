//! `adit check`: what is wrong with a configuration, before anything starts.

use std::path::Path;

use adit_api::{CheckReport, PlanEntry, PlanProblem, PlanUse, Protocol};
use adit_host::plumbing::find_conflicts;
use adit_plan::ports::PortSet;
use ipnet::IpNet;

use crate::config::{Config, Loaded};

/// Checks a configuration file against itself and this machine. Changes nothing.
#[must_use]
pub fn check(path: &Path) -> CheckReport {
    let loaded = match Loaded::read(path) {
        Ok(loaded) => loaded,
        Err(fault) => {
            let hint = "correct the file; `adit init --dir DIR` writes a commented example";
            let problems = vec![problem("config", fault.to_string(), hint)];
            return CheckReport { ok: false, problems, plan: Vec::new() };
        }
    };
    let config = &loaded.config;
    let mut problems = overlaps(config);
    problems.extend(local_conflicts(config));
    if config.identity.is_empty() {
        let hint = "add an [[identity]], or `adit identity add default --key P-256 --wrap tls-crypt-v2`";
        problems.push(problem("identity", "there is no [[identity]]: nobody could connect".into(), hint));
    }
    if config.entrance.iter().all(|entrance| entrance.udp.is_empty() && entrance.tcp.is_empty()) {
        let hint = "add an [[entrance]] with udp = \"1194\"";
        problems.push(problem("entrance", "no [[entrance]] has a port: nobody could connect".into(), hint));
    }
    CheckReport { ok: problems.is_empty(), problems, plan: plan(config) }
}

fn problem(code: &str, message: String, hint: &str) -> PlanProblem {
    PlanProblem { code: code.to_owned(), message, hint: hint.to_owned() }
}

/// Two entrances on one port.
fn overlaps(config: &Config) -> Vec<PlanProblem> {
    let mut found = Vec::new();
    for (index, one) in config.entrance.iter().enumerate() {
        for other in config.entrance.iter().skip(index + 1) {
            let shared = one.addresses().into_iter().find(|address| {
                other.addresses().iter().any(|a| {
                    a == address
                        || a.is_ipv4() == address.is_ipv4()
                            && (a.is_unspecified() || address.is_unspecified())
                })
            });
            let Some(address) = shared else { continue };
            let pairs = [("udp", &one.udp, &other.udp), ("tcp", &one.tcp, &other.tcp)];
            for (protocol, mine, theirs) in pairs {
                let (mine, theirs) = (mine.without(&one.except), theirs.without(&other.except));
                if let Some((a, b)) = mine.overlap(&theirs) {
                    let message = format!(
                        "entrance {}-{} overlaps entrance {}-{} on {address} {protocol}",
                        a.start(),
                        a.end(),
                        b.start(),
                        b.end()
                    );
                    found.push(problem("overlap", message, "take the ports out of one of the two entrances"));
                }
            }
        }
    }
    found
}

/// Pools that this machine uses for something else.
fn local_conflicts(config: &Config) -> Vec<PlanProblem> {
    let pools: Vec<IpNet> = config
        .tunnel
        .pool4
        .iter()
        .map(|net| IpNet::V4(*net))
        .chain(config.tunnel.pool6.iter().map(|net| IpNet::V6(*net)))
        .collect();
    match find_conflicts(&pools, Some(&config.tunnel.interface)) {
        Ok(conflicts) => conflicts
            .iter()
            .map(|conflict| {
                problem("pool", conflict.to_string(), "choose another pool4 or pool6, such as 10.88.0.0/16")
            })
            .collect(),
        Err(fault) => vec![problem("machine", fault.to_string(), "run `adit check` as root")],
    }
}

fn plan(config: &Config) -> Vec<PlanEntry> {
    let mut entries = Vec::new();
    for entrance in &config.entrance {
        for address in entrance.addresses() {
            for (protocol, ports) in [(Protocol::Udp, &entrance.udp), (Protocol::Tcp, &entrance.tcp)] {
                let open: PortSet = ports.without(&entrance.except);
                entries.extend(open.ranges().iter().map(|range| PlanEntry {
                    address: address.to_string(),
                    protocol,
                    from: *range.start(),
                    to: *range.end(),
                    usage: PlanUse::Entrance,
                }));
            }
        }
    }
    entries.sort_by(|a, b| (&a.address, a.protocol, a.from).cmp(&(&b.address, b.protocol, b.from)));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> CheckReport {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adit.toml");
        std::fs::write(&path, text).unwrap();
        check(&path)
    }

    const BASE: &str = "[tunnel]\npool4 = [\"10.231.0.0/16\"]\n[[identity]]\nname = \"a\"\nkey = \"P-256\"\nwrap = \"tls-crypt\"\n";

    #[test]
    fn a_good_plan_is_shown_and_a_bad_file_named() {
        let good =
            report(&format!("{BASE}[[entrance]]\naddress = \"192.0.2.1\"\nudp = \"1194-1196\"\ntcp = 443\n"));
        assert!(good.ok, "{:?}", good.problems);
        let ranges: Vec<_> = good.plan.iter().map(|e| (e.protocol, e.from, e.to)).collect();
        assert_eq!(ranges, [(Protocol::Udp, 1194, 1196), (Protocol::Tcp, 443, 443)]);
        let bad = report("[tunel]\n");
        assert!(!bad.ok && bad.problems[0].message.contains("did you mean `tunnel`"), "{:?}", bad.problems);
    }

    #[test]
    fn entrances_on_one_port_are_refused_with_both_ranges_named() {
        let text = format!(
            "{BASE}[[entrance]]\nudp = \"1190-1199\"\n[[entrance]]\naddress = \"192.0.2.1\"\nudp = 1194\n"
        );
        let report = report(&text);
        assert_eq!(report.problems.len(), 1);
        assert_eq!(
            report.problems[0].message,
            "entrance 1190-1199 overlaps entrance 1194-1194 on 0.0.0.0 udp"
        );
    }

    #[test]
    fn a_gateway_that_nobody_could_reach_is_a_problem() {
        let report = report("[tunnel]\npool4 = [\"10.231.0.0/16\"]\n");
        let codes: Vec<_> = report.problems.iter().map(|p| p.code.as_str()).collect();
        assert_eq!(codes, ["identity", "entrance"]);
    }

    #[test]
    fn a_pool_that_the_machine_uses_itself_is_a_problem() {
        let report = report(&BASE.replace("10.231.0.0/16", "127.0.0.0/8"));
        assert!(!report.ok);
    }
}
