//! `adit check`: what is wrong with a configuration, before anything starts.

use std::path::Path;

use adit_api::{CheckReport, PlanEntry, PlanProblem, PlanUse, Protocol};
use adit_host::plumbing::find_conflicts;
use adit_plan::port_plan::{self, PortPlan, Use};
use ipnet::IpNet;

use crate::config::{Config, Loaded};
use crate::port_plan::{Present, decide};
use crate::switch;

/// Checks a configuration file against itself and this machine. Changes nothing.
#[must_use]
pub fn check(path: &Path) -> CheckReport {
    let loaded = match Loaded::read(path) {
        Ok(loaded) => loaded,
        Err(fault) => {
            let hint = "correct the file; `adit init --dir DIR` writes a commented example";
            let problems = vec![problem("config", fault.to_string(), hint)];
            return CheckReport { ok: false, problems, plan: Vec::new(), notes: Vec::new() };
        }
    };
    let config = &loaded.config;
    let mut problems = Vec::new();
    let (mut plan, mut notes) = (Vec::new(), Vec::new());
    match Present::read(&loaded.lock()) {
        Ok(present) => {
            let decision = decide(config, &present);
            problems.extend(decision.problems);
            plan = entries(&decision.plan);
            notes = decision.notes;
        }
        Err(fault) => problems.push(problem("machine", fault, "run `adit check` as root")),
    }
    if let Err(fault) = config.tunnel.pools() {
        problems.push(problem("tunnel", fault, "set pool4 or pool6 of [tunnel]"));
    }
    if let Err(message) = switch::rules(config, &loaded.directory(), &[], &[]) {
        problems.push(problem("service", message, "see docs/services.md"));
    }
    problems.extend(local_conflicts(config));
    if config.identity.is_empty() {
        let hint = "add an [[identity]], or `adit identity add default --key P-256 --wrap tls-crypt-v2`";
        problems.push(problem("identity", "there is no [[identity]]: nobody could connect".into(), hint));
    }
    if config.entrance.iter().all(|entrance| entrance.udp.is_empty() && entrance.tcp.is_empty()) {
        let hint = "add an [[entrance]] with udp = \"1194\"";
        problems.push(problem("entrance", "no [[entrance]] has a port: nobody could connect".into(), hint));
    }
    CheckReport { ok: problems.is_empty(), problems, plan, notes }
}

fn problem(code: &str, message: String, hint: &str) -> PlanProblem {
    PlanProblem { code: code.to_owned(), message, hint: hint.to_owned() }
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

fn entries(plan: &PortPlan) -> Vec<PlanEntry> {
    let entry = |range: &port_plan::Range| PlanEntry {
        address: range.address.to_string(),
        protocol: match range.protocol {
            port_plan::Protocol::Tcp => Protocol::Tcp,
            port_plan::Protocol::Udp => Protocol::Udp,
        },
        from: *range.ports.start(),
        to: *range.ports.end(),
        usage: match range.usage {
            Use::Entrance => PlanUse::Entrance,
            Use::Forward => PlanUse::Forward,
            Use::Nat => PlanUse::Nat,
            Use::Host => PlanUse::Host,
            Use::Free => PlanUse::Free,
        },
    };
    plan.ranges().iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine that has nothing else.
    fn report(text: &str) -> CheckReport {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adit.toml");
        std::fs::write(&path, text).unwrap();
        adit_host::netns::TemporaryNetns::create("adit-check").unwrap().run_in(|| check(&path))
    }

    const BASE: &str = "[tunnel]\npool4 = [\"10.231.0.0/16\"]\n[[identity]]\nname = \"a\"\nkey = \"P-256\"\nwrap = \"tls-crypt\"\n";

    #[test]
    fn a_good_plan_is_shown_and_a_bad_file_named() {
        let text = format!("{BASE}[[entrance]]\naddress = \"192.0.2.1\"\nudp = \"1194-1196\"\ntcp = 443\n");
        let good = report(&text);
        assert!(good.ok, "{:?}", good.problems);
        let of = |usage| good.plan.iter().filter(move |entry| entry.usage == usage);
        let entrances: Vec<_> = of(PlanUse::Entrance).map(|e| (e.protocol, e.from, e.to)).collect();
        assert_eq!(entrances, [(Protocol::Tcp, 443, 443), (Protocol::Udp, 1194, 1196)]);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ranges = good.plan.iter().filter(|entry| entry.protocol == protocol);
            let covered: u32 = ranges.map(|entry| u32::from(entry.to - entry.from) + 1).sum();
            assert_eq!(covered, 65_535, "{:?}", good.plan);
            assert!(of(PlanUse::Host).any(|entry| entry.protocol == protocol), "the host's source ports");
        }
        let bad = report("[tunel]\n");
        assert!(!bad.ok && bad.problems[0].message.contains("did you mean `tunnel`"), "{:?}", bad.problems);
    }

    #[test]
    fn a_file_for_rule_files_alone_is_none_for_a_gateway() {
        let text = BASE.replace(
            "[tunnel]\npool4 = [\"10.231.0.0/16\"]",
            "[natfw]\nprofiles = [{ range = \"10.231.0.0/16\" }]",
        );
        let report = report(&format!("{text}[[entrance]]\nudp = 1194\n"));
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert!(report.problems[0].message.contains("no address pool"), "{:?}", report.problems);
    }

    #[test]
    fn a_back_end_on_a_port_of_the_gateways_own_is_refused() {
        let service = "[[service]]\nname = \"a\"\nmatch = \"ssh\"\nto = \"127.0.0.1:443\"\n";
        let own = report(&format!("{BASE}[[entrance]]\ntcp = 443\n{service}"));
        assert!(own.problems[0].message.contains("no other program can listen there"), "{:?}", own.problems);
        for elsewhere in ["udp = 443", "address = \"192.0.2.1\"\ntcp = 443", "tcp = \"1-29999\""] {
            let report = report(&format!("{BASE}[[entrance]]\n{elsewhere}\n{service}"));
            assert!(report.ok, "{elsewhere}: {:?}", report.problems);
        }
    }

    #[test]
    fn entrances_on_one_port_are_refused_with_both_ranges_named() {
        let text = format!(
            "{BASE}[[entrance]]\nudp = \"1190-1199\"\n[[entrance]]\naddress = \"192.0.2.1\"\nudp = 1194\n"
        );
        let report = report(&text);
        assert_eq!(report.problems.len(), 1);
        assert_eq!(report.problems[0].message, "entrance 1190-1199 overlaps entrance 1194 on 192.0.2.1 udp");
        assert!(!report.plan.is_empty(), "who would have which port");
    }

    #[test]
    fn nat_needs_an_address_of_this_machine_and_ports_of_its_own() {
        let codes =
            |report: &CheckReport| -> Vec<_> { report.problems.iter().map(|p| p.code.clone()).collect() };
        let nat = |address: &str, more: &str| {
            let entrance = format!("[[entrance]]\naddress = \"{address}\"\ntcp = \"1-29999\"\n");
            report(&format!("{BASE}{entrance}[nat]\naddresses = [\"{address}\"]\n{more}"))
        };
        // The loopback is no exit, but the one address that a new namespace has.
        let strange = nat("192.0.2.1", "ports = \"1280-65535\"\n");
        assert_eq!(codes(&strange), ["overlap", "host-ports", "nat-address"], "{strange:?}");
        assert_eq!(strange.problems[0].message, "nat 1280-65535 overlaps entrance 1-29999 on 192.0.2.1 tcp");
        assert!(strange.problems[2].hint.contains("ip address add"), "{strange:?}");
        let small = nat("192.0.2.1", "assign = \"static\"\n");
        assert_eq!(codes(&small), ["nat-address", "nat-blocks"], "{small:?}");
        assert!(small.problems[1].message.contains("383 users"), "{small:?}");
        assert!(small.problems[1].hint.contains("assign = \"lease\""), "{small:?}");
    }

    #[test]
    fn forwards_need_nat() {
        let text = format!("{BASE}[[entrance]]\ntcp = 443\n[forward]\n");
        assert_eq!(report(&text).problems[0].code, "nat");
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
