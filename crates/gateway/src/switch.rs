//! Whose a flow is, and the way there: identities of this gateway, foreign back ends, nobody.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use adit_classify::{OpenVpnForm, OpenVpnKey, Probe, Rule, Table, Transport, Verdict};
use adit_engine::Foreign;
use adit_entrance::{
    Backend, BackendOptions, Classify, DatagramRelays, Flow, Judgement, ProxyMode, Status, TransparentRoute,
};
use adit_host::clock;
use adit_host::plumbing::HostState;
use adit_host::services::Transport as Bound;
use adit_openvpn::gate::{Admission, IdentityWrap, Verdict as GateVerdict};
use adit_tunnel::{DropReason, Drops};

use crate::config::{Config, ProxyConfig, ServiceConfig, UnknownAnswer};
use crate::control::{Control, Message};
use crate::entrances::has_socket;
use crate::identities::SharedGate;

/// Where a rule leads.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// To an identity: this one, unless several have no key. The gate says the same.
    Identity(Option<String>),
    /// To a back end.
    Service(Arc<Backend>),
}

/// All rules in force.
#[derive(Debug)]
pub(crate) struct Rules {
    table: Table<Target>,
    /// Who gets connections of nobody.
    decoy: Option<Arc<Backend>>,
    backends: Vec<Arc<Backend>>,
}

/// The rules of a configuration; `base` is where relative paths begin. Back ends of `old` that are to be as they were
/// keep their state.
///
/// # Errors
/// What is wrong with a service, in words.
pub(crate) fn rules(
    config: &Config,
    base: &Path,
    identities: &[(String, IdentityWrap)],
    old: &[Arc<Backend>],
) -> Result<Rules, String> {
    let mut rules = native(identities);
    let mut backends: Vec<Arc<Backend>> = Vec::new();
    for service in &config.service {
        let options = backend_options(service);
        let backend = match old.iter().find(|backend| *backend.options() == options) {
            Some(backend) => Arc::clone(backend),
            None => Backend::new(options),
        };
        let probe = service.probe(base)?;
        let only_ours = |transport| match transport {
            Transport::Udp => has_socket(config, Bound::Udp, service.to),
            Transport::Tcp => has_socket(config, Bound::Tcp, service.to),
        };
        if probe.transport().map_or_else(|| Transport::BOTH.into_iter().all(only_ours), only_ours) {
            return Err(format!(
                "service {}: to = \"{}\" is a port of an [[entrance]], so no other program can listen there; give it \
                 another port",
                service.name, service.to
            ));
        }
        let target = Target::Service(Arc::clone(&backend));
        let mut rule = Rule::new(format!("service {}", service.name), probe, target);
        rule.ports.clone_from(&service.port);
        rules.push(rule);
        backends.push(backend);
    }
    let decoy = match &config.unknown.answer {
        UnknownAnswer::Service(name) => {
            backends.iter().find(|backend| backend.options().name == *name).cloned()
        }
        UnknownAnswer::Silence | UnknownAnswer::Close => None,
    };
    let table = Table::new(rules).map_err(|fault| fault.to_string())?;
    Ok(Rules { table, decoy, backends })
}

fn native(identities: &[(String, IdentityWrap)]) -> Vec<Rule<Target>> {
    let mut rules = Vec::new();
    let mut plain = Vec::new();
    for (name, wrap) in identities {
        match OpenVpnKey::of_identity(wrap) {
            Some(key) => rules.push(Rule::new(
                format!("identity {name}"),
                Probe::OpenVpnKey(key),
                Target::Identity(Some(name.clone())),
            )),
            None => plain.push(name),
        }
    }
    if let [first, others @ ..] = plain.as_slice() {
        // Several without a key are told apart later, by TLS.
        let target = Target::Identity(others.is_empty().then(|| (*first).clone()));
        rules.push(Rule::new(format!("identity {first}"), Probe::OpenVpn(OpenVpnForm::Plain), target));
    }
    rules
}

fn backend_options(service: &ServiceConfig) -> BackendOptions {
    let proxy = match service.proxy {
        ProxyConfig::None => ProxyMode::None,
        ProxyConfig::V2 => ProxyMode::V2,
        ProxyConfig::Transparent => ProxyMode::Transparent,
    };
    BackendOptions { proxy, ..BackendOptions::new(&service.name, service.to) }
}

/// What the machine needs for back ends that see their clients' addresses.
pub(crate) fn host_state(config: &Config) -> HostState {
    let route = TransparentRoute { mark: 0xad17, table: 44_311, priority: 4431, name: "adit-back".into() };
    let options: Vec<BackendOptions> = config.service.iter().map(backend_options).collect();
    adit_entrance::host_state(&options, &route)
}

/// See the module's text. Shared by all who receive.
#[derive(Debug)]
pub(crate) struct Switch {
    rules: RwLock<Arc<Rules>>,
    gate: SharedGate,
    control: Control,
    relays: DatagramRelays,
    drops: Mutex<Option<Arc<Drops>>>,
}

impl Switch {
    pub(crate) fn new(rules: Rules, gate: SharedGate, control: Control, relays: DatagramRelays) -> Arc<Self> {
        let rules = RwLock::new(Arc::new(rules));
        Arc::new(Self { rules, gate, control, relays, drops: Mutex::default() })
    }

    /// From now on what is dropped is counted there.
    pub(crate) fn count_in(&self, drops: &Arc<Drops>) {
        *self.drops.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(drops));
    }

    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What became of UDP flows of back ends, by name.
    pub(crate) fn flows(&self) -> BTreeMap<String, u64> {
        self.relays.counts().named().map(|(name, count)| (name.to_owned(), count)).collect()
    }

    /// Puts other rules in force.
    pub(crate) fn set(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    fn count(&self, reason: DropReason) {
        if let Some(drops) = &*self.drops.lock().unwrap_or_else(PoisonError::into_inner) {
            drops.count(reason);
        }
    }

    fn admit(&self, seen: &[u8]) -> Option<Native> {
        let (length, rest) = seen.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes(*length));
        match self.gate.get().record(rest.get(..length)?, crate::keyring::random()) {
            GateVerdict::Admit(admission) => Some(Native { admission, length }),
            GateVerdict::Reply(_) | GateVerdict::Drop(_) => None,
        }
    }

    fn nobody(&self, rules: &Rules) -> Judgement<Native> {
        match &rules.decoy {
            Some(backend) => Judgement::Relay(Arc::clone(backend)),
            None => {
                self.count(DropReason::NoKeyVerified);
                Judgement::Unknown
            }
        }
    }
}

impl Rules {
    /// The rule that takes a flow.
    pub(crate) fn judge(
        &self,
        transport: Transport,
        seen: &[u8],
        port: u16,
        last: bool,
    ) -> Verdict<'_, Target> {
        self.table.judge(transport, seen, port, last)
    }

    /// Who gets connections of nobody.
    pub(crate) fn decoy(&self) -> Option<&Backend> {
        self.decoy.as_deref()
    }

    /// The back ends, in the configuration's order.
    pub(crate) fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// How often each rule took a flow or connection, and how many were nobody's, since the rules are in force.
    pub(crate) fn classified(&self) -> BTreeMap<String, u64> {
        let counts = self.table.counts();
        let rules = self.table.rules().iter().map(|rule| rule.name.clone());
        rules.zip(counts.matched).chain([("unknown".to_owned(), counts.unknown)]).collect()
    }

    /// How each of them is.
    pub(crate) fn status(&self) -> Vec<adit_api::ServiceStatus> {
        let status = |backend: &Arc<Backend>| {
            let (options, counts) = (backend.options(), backend.counts());
            let error = match backend.status() {
                Status::Up => None,
                Status::Down { error, .. } => Some(error),
            };
            adit_api::ServiceStatus {
                name: options.name.clone(),
                to: options.address.to_string(),
                up: error.is_none(),
                error,
                open: counts.open,
                connected: counts.connected,
                failed: counts.failed,
                refused: counts.refused,
                bytes_in: counts.bytes_in,
                bytes_out: counts.bytes_out,
            }
        };
        self.backends.iter().map(status).collect()
    }
}

/// A client of an identity, and the length of its first packet.
pub(crate) struct Native {
    admission: Box<Admission>,
    length: usize,
}

/// The switch as the reception knows it.
#[derive(Debug, Clone)]
pub(crate) struct Connections(pub(crate) Arc<Switch>);

impl Classify for Connections {
    type Native = Native;

    fn judge(&self, seen: &[u8], flow: &Flow, last: bool) -> Judgement<Native> {
        let rules = self.0.rules();
        match rules.judge(Transport::Tcp, seen, flow.dialled.port(), last) {
            Verdict::Undecided if !last => Judgement::More,
            Verdict::Matched(found) => match &found.rule.target {
                // A port of this gateway as its own back end: each connection would lead to another.
                Target::Service(backend) if backend.options().address == flow.dialled => Judgement::Unknown,
                Target::Service(backend) => Judgement::Relay(Arc::clone(backend)),
                Target::Identity(_) => match self.0.admit(seen) {
                    Some(native) => Judgement::Native(native),
                    None => self.0.nobody(&rules),
                },
            },
            Verdict::Undecided | Verdict::Unknown => self.0.nobody(&rules),
        }
    }

    fn take(&self, native: Native, stream: TcpStream, mut seen: Vec<u8>, flow: Flow) {
        let leftover = seen.split_off((2 + native.length).min(seen.len()));
        let packet = seen.split_off(2.min(seen.len()));
        let Flow { remote, dialled: local, .. } = flow;
        let message =
            Message::Stream { admission: native.admission, stream, remote, local, packet, leftover };
        if !self.0.control.offer(message) {
            self.0.count(DropReason::ControlQueueFull);
        }
    }
}

impl Foreign for Switch {
    fn take(&self, datagram: &[u8], remote: SocketAddr, dialled: SocketAddr) -> Result<bool, DropReason> {
        let rules = self.rules();
        if rules.backends.is_empty() {
            return Ok(false);
        }
        if !self.gate.get().may_ask_others(remote.ip(), clock::monotonic_ms() / 1000) {
            return Err(DropReason::SourceBudget);
        }
        match rules.judge(Transport::Udp, datagram, dialled.port(), true) {
            Verdict::Matched(found) => match &found.rule.target {
                Target::Service(backend) if backend.options().address == dialled => Ok(false),
                Target::Service(backend) if self.relays.relay(datagram, remote, dialled, backend) => Ok(true),
                Target::Service(_) => Err(DropReason::RelayQueueFull),
                // The gate has seen it, and had its reasons.
                Target::Identity(_) => Ok(false),
            },
            Verdict::Undecided | Verdict::Unknown => Ok(false),
        }
    }
}
