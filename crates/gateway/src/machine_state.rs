//! What the gateway needs of the machine: interface, addresses, routes, filter table, forwarding.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use adit_host::capture::diversion::Diversion;
use adit_host::conntrack::{Tracked, Usage};
use adit_host::netlink::{InterfaceAddress, Route};
use adit_host::nft::{Counter, Element, ElementChange, Family};
use adit_host::plumbing::{HostState, LinkSettings, NftTable, Plumbing, PlumbingFault, Sysctl};
use adit_plan::nat::Layout;
use adit_plan::pool::Pools;
use adit_plan::rules;
use ipnet::IpNet;

use crate::config::Config;
use crate::entrances::{self, Others};
use crate::port_plan::Present;

/// The name of adit's own filter table.
pub(crate) const TABLE: &str = "adit";
/// The name of its table of source ports and forwards.
pub(crate) const NAT_TABLE: &str = "adit_nat";

/// The machine as wanted for this configuration and these networks behind devices.
pub(crate) fn wanted(config: &Config, arranged: &Arranged, pools: &Pools, prefixes: &[IpNet]) -> HostState {
    let tunnel = &config.tunnel;
    let interface = tunnel.interface.as_str();
    let mut state = HostState { sysctls: arranged.sysctls.clone(), ..HostState::default() };
    let nets: Vec<IpNet> = pools.iter().map(|pool| pool.net()).collect();
    let all = nets.iter().chain(prefixes);
    if all.clone().any(|net| matches!(net, IpNet::V4(_))) {
        state.sysctls.push(Sysctl::new("net.ipv4.ip_forward", "1"));
        // Clients that reach for each other come in and go out by one interface. The kernel would tell them of a
        // shorter way, which there is not, and then owe them the refusal: both draw on one rate limit. It takes
        // either parameter for a yes; other interfaces keep their own.
        for interface in ["all", interface] {
            state.sysctls.push(Sysctl::new(&format!("net.ipv4.conf.{interface}.send_redirects"), "0"));
        }
    }
    if all.clone().any(|net| matches!(net, IpNet::V6(_))) {
        state.sysctls.push(Sysctl::new("net.ipv6.conf.all.forwarding", "1"));
        // Without a link-local address the kernel does not chatter into the tunnel.
        state.sysctls.push(Sysctl::new(&format!("net.ipv6.conf.{interface}.addr_gen_mode"), "1"));
    }
    state.links.push(LinkSettings {
        mtu: Some(tunnel.mtu.into()),
        tx_queue_len: Some(1000),
        up: Some(true),
        ..LinkSettings::of(interface)
    });
    for pool in pools.iter() {
        if let Ok(address) = IpNet::new(pool.gateway(), pool.net().prefix_len()) {
            state.addresses.push(InterfaceAddress { interface: interface.to_owned(), address });
        }
    }
    // Always there: while a device is away, packets for its networks end here and do not leave.
    state.routes.extend(prefixes.iter().map(|prefix| Route::by_interface(*prefix, interface)));
    let diverted = arranged.diversion.host_state(&entrances::capture_plan(config, &arranged.others));
    for more in [crate::switch::host_state(config), diverted] {
        state.routes.extend(more.routes);
        state.rules.extend(more.rules);
        state.tables.extend(more.tables);
    }
    state.tables.push(NftTable {
        family: Family::Inet,
        name: TABLE.to_owned(),
        ruleset: rules::render(&rules::Gateway {
            table: TABLE.to_owned(),
            interface: interface.to_owned(),
            pools: nets,
            prefixes: prefixes.to_vec(),
            client_to_client: tunnel.client_to_client,
            entrances: entrances::for_rules(config, &arranged.others),
            nat: arranged.layout.as_ref().map(|layout| rules::Nat { forwards: layout.forward().is_some() }),
        }),
    });
    if arranged.layout.is_some() {
        state.tables.push(NftTable {
            family: Family::Inet,
            name: NAT_TABLE.to_owned(),
            ruleset: rules::render_nat(NAT_TABLE, interface),
        });
    }
    state
}

/// The machine, changed by one at a time.
pub(crate) struct Machine(Mutex<Changing>);

struct Changing {
    plumbing: Box<dyn Plumbing>,
    arranged: Arranged,
}

/// What was decided when the gateway started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arranged {
    /// What is not captured although the configuration says so.
    pub(crate) others: Others,
    /// Parameters for ports and connections.
    pub(crate) sysctls: Vec<Sysctl>,
    /// By what captured ports come where no program captures them.
    pub(crate) diversion: Diversion,
    /// The machine before anything was changed.
    pub(crate) present: Option<Present>,
    /// The blocks of source ports in force.
    pub(crate) layout: Option<Layout>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Machine")
    }
}

impl Machine {
    pub(crate) fn new(plumbing: Box<dyn Plumbing>, arranged: Arranged) -> Self {
        Self(Mutex::new(Changing { plumbing, arranged }))
    }

    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a captured port back to the machine's own programs. False if it is not captured.
    pub(crate) fn release(&self, config: &Config, prefixes: &[IpNet], port: u16) -> Result<bool, ApplyFault> {
        let changing = &mut *self.changing();
        if !entrances::is_captured(config, &changing.arranged.others, port) {
            return Ok(false);
        }
        changing.arranged.others.released.insert(port);
        let result = changing.apply(config, prefixes);
        if result.is_err() {
            changing.arranged.others.released.remove(&port);
        }
        result.map(|()| true)
    }

    /// The machine before anything was changed.
    pub(crate) fn present(&self) -> Option<Present> {
        self.changing().arranged.present.clone()
    }

    /// Makes the machine look as wanted for this configuration, with this layout of source ports.
    pub(crate) fn apply_with(
        &self,
        config: &Config,
        prefixes: &[IpNet],
        layout: Option<Layout>,
    ) -> Result<(), ApplyFault> {
        let changing = &mut *self.changing();
        let before = std::mem::replace(&mut changing.arranged.layout, layout);
        let result = changing.apply(config, prefixes);
        if result.is_err() {
            changing.arranged.layout = before;
        }
        result
    }

    /// Changes elements of maps: all or none.
    pub(crate) fn change_elements(&self, changes: &[ElementChange]) -> Result<(), ApplyFault> {
        Ok(self.changing().plumbing.change_elements(changes)?)
    }

    /// All elements of a map of the table for source ports.
    pub(crate) fn elements(&self, map: &str) -> Result<Vec<Element>, ApplyFault> {
        Ok(self.changing().plumbing.elements(NAT_TABLE, map)?)
    }

    /// What is counted of source ports, in both tables.
    pub(crate) fn counters(&self) -> Result<Vec<Counter>, ApplyFault> {
        let plumbing = &mut self.changing().plumbing;
        let mut counters = plumbing.counters(NAT_TABLE)?;
        counters.extend(plumbing.counters(TABLE)?);
        Ok(counters)
    }

    /// All tracked connections.
    pub(crate) fn connections(&self) -> Result<Vec<Tracked>, ApplyFault> {
        Ok(self.changing().plumbing.connections()?)
    }

    /// How many connections are tracked, and how many may be.
    pub(crate) fn connection_usage(&self) -> Result<Usage, ApplyFault> {
        Ok(self.changing().plumbing.connection_usage()?)
    }

    /// Forgets connections of these addresses.
    pub(crate) fn forget_connections(&self, addresses: &[IpAddr]) -> Result<(), ApplyFault> {
        Ok(self.changing().plumbing.forget_connections(addresses)?)
    }

    /// Keeps the translated ends of connections from being used for others for so many seconds.
    pub(crate) fn occupy(&self, connections: &[Tracked], seconds: u32) -> Result<(), ApplyFault> {
        Ok(self.changing().plumbing.occupy(connections, seconds)?)
    }

    /// Forgets those connections that are meant.
    pub(crate) fn forget_those(&self, meant: impl Fn(&Tracked) -> bool) -> Result<(), ApplyFault> {
        let plumbing = &mut self.changing().plumbing;
        let mut connections = plumbing.connections()?;
        connections.retain(meant);
        Ok(plumbing.forget(&connections)?)
    }

    /// What is not captured although the configuration says so.
    pub(crate) fn others(&self) -> Others {
        self.changing().arranged.others.clone()
    }

    /// Puts everything back.
    pub(crate) fn undo(&self) -> Result<(), PlumbingFault> {
        self.changing().plumbing.undo()
    }
}

impl Changing {
    fn apply(&mut self, config: &Config, prefixes: &[IpNet]) -> Result<(), ApplyFault> {
        let pools = config.tunnel.pools().map_err(ApplyFault::Pools)?;
        self.plumbing.recapture(&entrances::capture_plan(config, &self.arranged.others))?;
        Ok(self.plumbing.apply(&wanted(config, &self.arranged, &pools, prefixes))?)
    }
}

/// Why the machine is not as wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyFault {
    #[error("{0}")]
    Pools(String),
    #[error(transparent)]
    Plumbing(#[from] PlumbingFault),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{InitOptions, parse, render};

    #[test]
    fn each_pool_has_its_gateway_address_and_each_network_behind_a_device_a_route() {
        let text = render(&InitOptions::default());
        let config = parse(&text, std::path::Path::new("adit.toml")).unwrap();
        let pools = Pools::new(&["10.88.0.0/16".parse().unwrap()], &["fd88::/64".parse().unwrap()]).unwrap();
        let site = "192.168.7.0/24".parse().unwrap();
        let source_ports = vec![Sysctl::new("net.ipv4.ip_local_port_range", "64512 65535")];
        let arranged = Arranged { sysctls: source_ports.clone(), ..Arranged::default() };
        let state = wanted(&config, &arranged, &pools, &[site]);
        let addresses: Vec<_> = state.addresses.iter().map(|a| a.address.to_string()).collect();
        assert_eq!(addresses, ["10.88.0.1/16", "fd88::1/64"]);
        assert_eq!(state.routes, [Route::by_interface(site, "adit0")]);
        assert!(state.tables[0].ruleset.contains("192.168.7.0/24"));
        assert_eq!(state.sysctls.len(), 6);
        assert!(state.sysctls.contains(&source_ports[0]));
    }
}
