//! The port plan of this machine: what the configuration wants of it, and what is there already.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use adit_api::PlanProblem;
use adit_host::netlink::Netlink;
use adit_host::plumbing::Sysctl;
use adit_host::services::{self, Bound, Owner, Transport};
use adit_host::{lock, sysctl};
use adit_plan::nat::{Forwards, Layout, Wanted};
use adit_plan::port_plan::{
    self, Demands, EPHEMERAL, Entrance, Forward, Nat, PortPlan, Protocol, Service, Use,
};
use adit_plan::ports::PortSet;

use crate::config::Config;

const RANGE: &str = "net.ipv4.ip_local_port_range";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
const UNPRIVILEGED: &str = "net.ipv4.ip_unprivileged_port_start";

/// Fewer source ports than this are not left to a machine by cutting into the range it has: it gets another range.
const FEWEST: usize = 1024;
/// One part in so many of the range is much to be taken out of it.
const MUCH: usize = 8;

/// The machine as it is.
#[derive(Debug, Clone)]
pub(crate) struct Present {
    /// Where the kernel chooses source ports from.
    pub(crate) range: RangeInclusive<u16>,
    /// Those it does not choose.
    pub(crate) reserved: PortSet,
    /// The first port that it lets that range begin with.
    pub(crate) unprivileged: u16,
    /// What programs other than the gateway have bound; `None` when the gateway's own cannot be told from them.
    pub(crate) services: Option<Vec<Bound>>,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Present {
    /// Looks at the calling thread's network. What the gateway has bound that holds `lock` does not count.
    ///
    /// # Errors
    /// What could not be read, in words.
    pub(crate) fn read(lock: &Path) -> Result<Self, String> {
        let unreadable = |name: &str| format!("sysctl {name} has an unknown form");
        let range = sysctl::get(RANGE).map_err(words)?;
        let ends: Vec<u16> = range.split_whitespace().filter_map(|end| end.parse().ok()).collect();
        let &[from, to] = ends.as_slice() else { return Err(unreadable(RANGE)) };
        Ok(Self {
            range: from..=to,
            reserved: sysctl::get(RESERVED).map_err(words)?.parse().map_err(|_| unreadable(RESERVED))?,
            unprivileged: sysctl::get(UNPRIVILEGED).ok().and_then(|port| port.parse().ok()).unwrap_or(1024),
            services: others(lock).map_err(|error| format!("cannot list what is bound: {error}"))?,
            addresses: addresses()?,
        })
    }

    /// The machine as it was, with the addresses that it has now: what else of it the gateway has changed since does
    /// not count.
    ///
    /// # Errors
    /// What could not be read, in words.
    pub(crate) fn with_addresses_of_now(&self) -> Result<Self, String> {
        Ok(Self { addresses: addresses()?, ..self.clone() })
    }
}

fn addresses() -> Result<Vec<IpAddr>, String> {
    let listed = Netlink::open().and_then(|mut netlink| netlink.addresses()).map_err(words)?;
    Ok(listed.into_iter().map(|listed| listed.address.addr()).collect())
}

fn words(fault: impl Display) -> String {
    fault.to_string()
}

/// What is bound by others than the gateway that holds `lock`.
fn others(lock: &Path) -> std::io::Result<Option<Vec<Bound>>> {
    let mut bound = services::bound()?;
    let own = lock::locked_by(lock).and_then(|gateway| match gateway {
        Some(process) => services::of_process(process),
        None => Ok(BTreeSet::default()),
    });
    let Ok(own) = own else { return Ok(None) };
    bound.retain(|socket| !own.contains(&socket.inode));
    Ok(Some(bound))
}

/// What was decided.
#[derive(Debug)]
pub(crate) struct Decision {
    /// Who gets which port; with problems, what it amounts to.
    pub(crate) plan: PortPlan,
    /// The blocks of source ports, with [nat].
    pub(crate) layout: Option<Layout>,
    /// Kernel parameters that have to be other than they are.
    pub(crate) sysctls: Vec<Sysctl>,
    /// Why it cannot be.
    pub(crate) problems: Vec<PlanProblem>,
    /// What is good to know.
    pub(crate) notes: Vec<String>,
}

/// Decides who gets which port of this machine.
pub(crate) fn decide(config: &Config, present: &Present) -> Decision {
    let mut demands = demands(config, present);
    let wanted = ephemeral(config, &demands, present);
    let of_present = demands.protected().without(&present.reserved);
    demands.ephemeral = wanted;
    let mut decision = Decision {
        plan: PortPlan::preview(&demands),
        layout: None,
        sysctls: sysctls(&demands, present),
        problems: Vec::new(),
        notes: Vec::new(),
    };
    if let Err(problems) = PortPlan::solve(&demands) {
        decision.problems.extend(problems.into_iter().map(|found| PlanProblem {
            code: found.code.to_owned(),
            message: found.message,
            hint: found.hint,
        }));
    }
    decision.look_at_nat(config, &demands, present);
    decision.look_at_sysctls(config, &demands, present, &of_present);
    decision.look_at_services(&demands, present);
    decision
}

/// Where forwarded ports are, in the words of the layout: without addresses, wherever the machine is reached.
fn forwards(demands: &Demands) -> Option<Forwards> {
    let Forward { addresses, ports } = demands.forward.as_ref()?;
    let mut addresses: Vec<Ipv4Addr> = addresses
        .iter()
        .filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
        .collect();
    if addresses.iter().any(Ipv4Addr::is_unspecified) {
        addresses.clear();
    }
    Some(Forwards { addresses, ports: ports.clone() })
}

fn demands(config: &Config, present: &Present) -> Demands {
    let entrances: Vec<Entrance> = config
        .entrance
        .iter()
        .map(|entrance| Entrance {
            addresses: entrance.addresses(),
            tcp: entrance.tcp.without(&entrance.except),
            udp: entrance.udp.without(&entrance.except),
        })
        .collect();
    let general = |addresses: &[Ipv4Addr]| addresses.iter().copied().map(IpAddr::V4).collect::<Vec<_>>();
    let forward = config.forward.as_ref().map(|forward| {
        let mut addresses = general(&forward.addresses);
        if addresses.is_empty() {
            let entrances = entrances.iter().flat_map(|entrance| &entrance.addresses).copied();
            addresses = entrances.filter(IpAddr::is_ipv4).collect();
            addresses.sort();
            addresses.dedup();
        }
        if addresses.is_empty() {
            addresses.push(Ipv4Addr::UNSPECIFIED.into());
        }
        Forward { addresses, ports: forward.ports.clone() }
    });
    let nat = config.nat.as_ref().map(|nat| Nat {
        addresses: general(&nat.addresses),
        ports: nat.ports.clone(),
        block: nat.block.least(),
    });
    Demands {
        entrances,
        forward,
        nat,
        services: present.services.iter().flatten().map(service).collect(),
        ephemeral: present.range.clone(),
        reserved: present.reserved.clone(),
    }
}

fn service(bound: &Bound) -> Service {
    let protocol = match bound.transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    };
    Service { addresses: bound.addresses(), protocol, port: bound.port }
}

/// Where the host's source ports are to come from, when `demands` has where they come from now: from there as long
/// as that does, unless the configuration says otherwise.
fn ephemeral(config: &Config, demands: &Demands, present: &Present) -> RangeInclusive<u16> {
    let undisturbed = demands.protected().without(&present.reserved).is_empty();
    match &config.host.ephemeral {
        Some(range) if config.host.manage_sysctl || !undisturbed => range.clone(),
        None if !undisturbed && demands.source_ports().count() < FEWEST => EPHEMERAL,
        None if !undisturbed => unbroken(demands, present),
        _ => present.range.clone(),
    }
}

/// The present range, or if others have much of it, what is left in one piece: the kernel begins anywhere and goes up
/// to the next port that it may choose, so behind a long piece that it may not choose one port would come up all the time.
fn unbroken(demands: &Demands, present: &Present) -> RangeInclusive<u16> {
    let taken = demands.protected().without(&present.reserved).count();
    let left = demands.source_ports();
    let longest = left.ranges().iter().max_by_key(|range| range.len()).cloned();
    let worthwhile = taken > present.range.len() / MUCH;
    longest.filter(|range| worthwhile && range.len() >= FEWEST).unwrap_or_else(|| present.range.clone())
}

fn sysctls(demands: &Demands, present: &Present) -> Vec<Sysctl> {
    let mut wanted = Vec::new();
    if demands.ephemeral != present.range {
        let (from, to) = demands.ephemeral.clone().into_inner();
        wanted.push(Sysctl::new(RANGE, &format!("{from} {to}")));
    }
    let protected = demands.protected();
    if !protected.without(&present.reserved).is_empty() {
        wanted.push(Sysctl::new(RESERVED, &protected.either(&present.reserved).to_string()));
    }
    wanted
}

impl Decision {
    /// Takes out of the entrances what the plan leaves to programs that have it.
    pub(crate) fn leave_to_others(&self, config: &mut Config) {
        for entrance in &mut config.entrance {
            let addresses = entrance.addresses();
            for (protocol, ports) in [(Protocol::Tcp, &mut entrance.tcp), (Protocol::Udp, &mut entrance.udp)]
            {
                for address in &addresses {
                    *ports = ports.both(&self.plan.ports(*address, protocol, Use::Entrance));
                }
            }
        }
    }

    fn look_at_nat(&mut self, config: &Config, demands: &Demands, present: &Present) {
        let Some(nat) = &config.nat else {
            if config.forward.is_some() {
                self.problem(
                    "nat",
                    "[forward] needs [nat]".into(),
                    "what a forwarded port lets in is answered from there: add [nat] with an address".into(),
                );
            }
            return;
        };
        let own = nat.addresses.iter().map(|address| ("[nat]", *address));
        let forward = config.forward.iter().flat_map(|forward| &forward.addresses);
        for (table, address) in own.chain(forward.map(|address| ("[forward]", *address))) {
            if !present.addresses.contains(&IpAddr::V4(address)) {
                self.problem(
                    "nat-address",
                    format!("{table} addresses: {address} is on no interface of this machine"),
                    format!("`ip address add {address}/32 dev INTERFACE`, or name an address that it has"),
                );
            }
        }
        let wanted = Wanted {
            addresses: nat.addresses.clone(),
            ports: nat.ports.ranges().first().cloned().unwrap_or(port_plan::NAT),
            size: nat.block.into(),
            assign: nat.assign,
            pools: config.tunnel.pool4.clone(),
            forward: forwards(demands),
            host: demands.ephemeral.clone(),
        };
        match Layout::new(&wanted) {
            Ok(layout) => {
                self.notes.extend(layout.notes());
                self.layout = Some(layout);
            }
            Err(fault) => {
                let text = fault.to_string();
                let (message, hint) = text.split_once("; ").unwrap_or((&text, "see docs/nat.md"));
                self.problem("nat-blocks", message.to_owned(), hint.to_owned());
            }
        }
    }

    fn problem(&mut self, code: &str, message: String, hint: String) {
        self.problems.push(PlanProblem { code: code.to_owned(), message, hint });
    }

    /// `of_present` is what the plan needs of the present range.
    fn look_at_sysctls(
        &mut self,
        config: &Config,
        demands: &Demands,
        present: &Present,
        of_present: &PortSet,
    ) {
        let (from, to) = demands.ephemeral.clone().into_inner();
        let (now_from, now_to) = present.range.clone().into_inner();
        if self.sysctls.is_empty() {
            return;
        }
        if demands.ephemeral != present.range && from < present.unprivileged {
            let first = present.unprivileged;
            let message = format!(
                "[host] ephemeral = \"{from}-{to}\": the kernel takes no range that begins below {first}"
            );
            self.problem("sysctl", message, format!("let it begin at {first} ({UNPRIVILEGED}) or above"));
        }
        if !config.host.manage_sysctl {
            let message = format!(
                "the kernel chooses source ports of the host's own connections from {now_from}-{now_to}, where \
                 {of_present} is for others, and [host] manage_sysctl = false"
            );
            let settings = self.sysctls.iter().map(|sysctl| format!("{}=\"{}\"", sysctl.name, sysctl.value));
            let settings = settings.collect::<Vec<_>>().join(" ");
            self.problem("sysctl", message, format!("`sysctl -w {settings}`, or manage_sysctl = true"));
            return;
        }
        // With another plan they would be others.
        if !self.problems.is_empty() {
            return;
        }
        for sysctl in &self.sysctls {
            let note = format!("while the gateway runs, {sysctl}; it is put back when it ends");
            self.notes.push(note);
        }
        if demands.ephemeral != present.range && (to - from) % 2 == 0 {
            self.notes.push(format!(
                "ephemeral = \"{from}-{to}\": the kernel likes it better when one end is even and the other odd"
            ));
        }
    }

    fn look_at_services(&mut self, demands: &Demands, present: &Present) {
        let Some(bound) = &present.services else {
            let note = "as root this would say which ports other programs have";
            self.notes.push(note.into());
            return;
        };
        let inside: Vec<&Bound> =
            bound.iter().filter(|bound| demands.is_inside_entrance(&service(bound))).collect();
        // Who it is, is good to know and nothing more.
        let sockets: Vec<Bound> = inside.iter().copied().cloned().collect();
        let owners = services::owners(&sockets).unwrap_or_default();
        for (address, protocol, ports) in self.shut(demands) {
            let taker = inside.iter().find(|bound| {
                let service = service(bound);
                service.protocol == protocol && ports.contains(service.port)
            });
            let Some(taker) = taker else { continue };
            let (port, name) = (taker.port, owner(taker, &owners));
            self.problem(
                "entrance",
                format!("{} is in use by another program ({name})", name_of(address, port, protocol)),
                "stop the other program, or leave the port out".into(),
            );
        }
        let mut lines: Vec<String> = inside
            .iter()
            .map(|bound| {
                let (port, service) = (bound.port, service(bound));
                let at = if bound.address.is_unspecified() {
                    String::new()
                } else {
                    format!(" of {}", bound.address)
                };
                let whose = owner(bound, &owners);
                format!(
                    "port {port} {}{at} is {whose}'s, inside an entrance: it stays the host's",
                    service.protocol
                )
            })
            .collect();
        lines.dedup();
        self.notes.extend(lines);
        if demands.entrances.iter().any(|entrance| entrance.tcp.count() > 1 || entrance.udp.count() > 1) {
            self.notes.push(
                "a service that starts later on a port of an entrance is not reached: put the port into `except`, \
                 or `adit entrance release PORT`"
                    .into(),
            );
        }
    }

    /// Entrances of which others have every port.
    fn shut(&self, demands: &Demands) -> Vec<(IpAddr, Protocol, PortSet)> {
        let mut found = Vec::new();
        for entrance in &demands.entrances {
            for (protocol, ports) in [(Protocol::Tcp, &entrance.tcp), (Protocol::Udp, &entrance.udp)] {
                let open = |address| self.plan.ports(address, protocol, Use::Entrance).both(ports);
                let shut = entrance.addresses.iter().copied().find(|address| open(*address).is_empty());
                if let Some(address) = shut.filter(|_| !ports.is_empty()) {
                    found.push((address, protocol, ports.clone()));
                }
            }
        }
        found
    }
}

fn name_of(address: IpAddr, port: u16, protocol: Protocol) -> String {
    format!("{}/{protocol}", SocketAddr::new(address, port))
}

fn owner(bound: &Bound, owners: &BTreeMap<u64, Owner>) -> String {
    match owners.get(&bound.inode) {
        Some(owner) => owner.name.clone(),
        None if bound.inode == 0 => "the kernel".into(),
        None => "another program".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[tunnel]\npool4 = [\"10.231.0.0/16\"]\n";
    const NAT: &str = "[nat]\naddresses = [\"192.0.2.1\"]\n";

    fn decided(text: &str, present: &Present) -> Decision {
        let config = crate::config::parse(&format!("{BASE}{text}"), Path::new("adit.toml")).unwrap();
        decide(&config, present)
    }

    fn linux() -> Present {
        let reserved = PortSet::default();
        let addresses = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap()).to_vec();
        Present {
            range: 32_768..=60_999,
            reserved,
            unprivileged: 1024,
            services: Some(Vec::new()),
            addresses,
        }
    }

    fn set(decision: &Decision) -> Vec<String> {
        assert_eq!(decision.problems, []);
        decision.sysctls.iter().map(ToString::to_string).collect()
    }

    fn codes(decision: &Decision) -> Vec<&str> {
        decision.problems.iter().map(|problem| problem.code.as_str()).collect()
    }

    fn entrance(ports: &str) -> String {
        format!("[[entrance]]\naddress = \"192.0.2.1\"\ntcp = \"{ports}\"\nudp = \"{ports}\"\n")
    }

    #[test]
    fn source_ports_that_are_in_nobodys_way_stay_as_they_are() {
        assert_eq!(set(&decided(&entrance("1-29999"), &linux())), Vec::<String>::new());
        let narrow = Present { range: 60_000..=60_009, ..linux() };
        assert_eq!(set(&decided(&entrance("1-29999"), &narrow)), Vec::<String>::new());
        let protected = Present { reserved: "51820".parse().unwrap(), ..linux() };
        assert_eq!(set(&decided(&entrance("51820"), &protected)), Vec::<String>::new());
    }

    #[test]
    fn what_is_claimed_of_them_is_protected_and_what_was_protected_stays_so() {
        let present = Present { reserved: "8080,40000".parse().unwrap(), ..linux() };
        let decision = decided(&entrance("1194,51820"), &present);
        assert_eq!(set(&decision), ["sysctl net.ipv4.ip_local_reserved_ports = 8080,40000,51820"]);
        assert!(
            decision.notes[0].contains("ip_local_reserved_ports") && decision.notes[0].contains("put back")
        );
    }

    #[test]
    fn of_a_range_of_which_much_is_taken_what_is_left_in_one_piece_is_used() {
        let decision = decided(&format!("{}{NAT}", entrance("1194")), &linux());
        assert_eq!(set(&decision), ["sysctl net.ipv4.ip_local_port_range = 32768 39999"]);
    }

    #[test]
    fn a_plan_that_leaves_too_few_gets_the_default_range() {
        let decision = decided(&format!("{}{NAT}[forward]\n", entrance("1-29999")), &linux());
        assert_eq!(set(&decision), ["sysctl net.ipv4.ip_local_port_range = 64512 65535"]);
    }

    #[test]
    fn a_range_that_is_asked_for_is_set_and_the_claims_in_it_protected() {
        let host = "[host]\nephemeral = \"20000-40001\"\n";
        let decision = decided(&format!("{host}{}", entrance("443,30000-65535")), &linux());
        assert_eq!(
            set(&decision),
            [
                "sysctl net.ipv4.ip_local_port_range = 20000 40001",
                "sysctl net.ipv4.ip_local_reserved_ports = 30000-40001"
            ]
        );
        let even = decided("[host]\nephemeral = \"20000-40000\"\n", &linux());
        assert!(even.notes.iter().any(|note| note.contains("even")), "{:?}", even.notes);
        assert_eq!(set(&decided("[host]\nephemeral = \"32768-60999\"\n", &linux())), Vec::<String>::new());
        let low = decided("[host]\nephemeral = \"1000-2001\"\n", &linux());
        assert_eq!(codes(&low), ["sysctl"]);
        assert!(low.problems[0].message.contains("below 1024"));
    }

    #[test]
    fn without_leave_to_set_parameters_a_plan_that_needs_others_is_refused_with_them() {
        let host = "[host]\nmanage_sysctl = false\n";
        let decision = decided(&format!("{host}{}{NAT}[forward]\n", entrance("1-29999")), &linux());
        assert_eq!(codes(&decision), ["sysctl"]);
        let problem = &decision.problems[0];
        assert!(problem.message.contains("32768-60999, where 32768-60999 is for others"), "{problem:?}");
        assert!(
            problem.hint.contains("`sysctl -w net.ipv4.ip_local_port_range=\"64512 65535\"`"),
            "{problem:?}"
        );
        let there = Present { range: 64_512..=65_535, ..linux() };
        assert_eq!(
            set(&decided(&format!("{host}{}{NAT}", entrance("1-29999")), &there)),
            Vec::<String>::new()
        );
        // A range that is asked for is not insisted on.
        let other = "[host]\nmanage_sysctl = false\nephemeral = \"50000-60001\"\n";
        assert_eq!(set(&decided(&format!("{other}{}", entrance("1-29999")), &linux())), Vec::<String>::new());
    }

    fn bound(transport: Transport, address: &str, port: u16) -> Bound {
        Bound { transport, address: address.parse().unwrap(), port, inode: 0 }
    }

    #[test]
    fn services_inside_an_entrance_are_named_and_an_entrance_without_a_port_is_refused() {
        let services = vec![
            bound(Transport::Tcp, "::", 22),
            bound(Transport::Tcp, "0.0.0.0", 22),
            bound(Transport::Udp, "127.0.0.53", 53),
            bound(Transport::Udp, "0.0.0.0", 51_820),
        ];
        let present = Present { services: Some(services), ..linux() };
        let decision = decided("[[entrance]]\ntcp = \"1-29999\"\nudp = \"1-29999\"\n", &present);
        assert_eq!(decision.problems, []);
        assert_eq!(
            decision.notes[..2],
            [
                "port 22 tcp is the kernel's, inside an entrance: it stays the host's",
                "port 53 udp of 127.0.0.53 is the kernel's, inside an entrance: it stays the host's"
            ]
        );
        assert!(decision.notes[2].contains("`adit entrance release PORT`"), "{:?}", decision.notes);
        assert_eq!(decision.notes.len(), 3);
        let text = format!("{BASE}[[entrance]]\ntcp = \"1-29999\"\nudp = \"1-29999\"\n");
        let mut config = crate::config::parse(&text, Path::new("adit.toml")).unwrap();
        decision.leave_to_others(&mut config);
        assert_eq!(config.entrance[0].tcp.to_string(), "1-21,23-29999");
        assert_eq!(config.entrance[0].udp.to_string(), "1-29999");

        let decision = decided("[[entrance]]\nudp = 51820\ntcp = 443\n", &present);
        assert_eq!(codes(&decision), ["entrance"]);
        let message = "0.0.0.0:51820/udp is in use by another program (the kernel)";
        assert_eq!(decision.problems[0].message, message);
        let excepted = "[[entrance]]\nudp = \"443,51820\"\nexcept = \"51820\"\n";
        assert_eq!(decided(excepted, &present).notes, Vec::<String>::new());
    }

    #[test]
    fn forwards_are_ports_of_the_entrances_unless_they_have_addresses_of_their_own() {
        let wide = "[forward]\nports = \"30000-65535\"\n";
        let nat = "[nat]\naddresses = [\"192.0.2.2\"]\n";
        assert_eq!(
            codes(&decided(&format!("{}{wide}{nat}", entrance("1-29999")), &linux())),
            Vec::<&str>::new()
        );
        let own = "[forward]\naddresses = [\"192.0.2.2\"]\nports = \"30000-65535\"\n";
        let decision = decided(&format!("{}{own}{nat}", entrance("1-29999")), &linux());
        assert_eq!(codes(&decision), ["overlap", "overlap"]);
        assert!(
            decision.problems[0]
                .message
                .starts_with("nat 40000-64511 overlaps forward 30000-65535 on 192.0.2.2")
        );
    }

    #[test]
    fn the_machine_is_read_and_the_gateways_own_sockets_do_not_count() {
        let netns = adit_host::netns::TemporaryNetns::create("adit-present").unwrap();
        netns.run_in(|| {
            sysctl::set(RANGE, "50000 60001").unwrap();
            sysctl::set(RESERVED, "50007,50010-50012").unwrap();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let dir = tempfile::tempdir().unwrap();
            let present = Present::read(&dir.path().join("lock")).unwrap();
            assert_eq!(
                (present.range, present.reserved.to_string().as_str()),
                (50_000..=60_001, "50007,50010-50012")
            );
            let ports: Vec<u16> = present.services.iter().flatten().map(|bound| bound.port).collect();
            assert_eq!(ports, [socket.local_addr().unwrap().port()]);

            let _lock = lock::LockFile::acquire(&dir.path().join("lock")).unwrap();
            let present = Present::read(&dir.path().join("lock")).unwrap();
            assert_eq!(present.services.as_deref(), Some(&[][..]), "this process is the gateway now");
        });
    }
}
