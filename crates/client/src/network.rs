//! This machine's side of the tunnel: the interface, and the machine as the tunnel wants it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use adit_host::lock::LockFile;
use adit_host::netlink::{Netlink, NetlinkFault, RouteTo};
use adit_host::plumbing::{HostState, InProcess, Plumbing, PlumbingFault, Recovery};
use adit_host::sysctl::{self, RpFilter, SysctlFault, rp_filter_effective};
use adit_host::tcp::{Origin, set_interface};
use adit_host::tun::{Tun, TunOptions};
use adit_host::udp::{PathMtu, UdpOptions, UdpSocket};

use crate::client::{Bind, Options};
use crate::host_state::{self, MARK, Surroundings};
use crate::place::{Place, PlaceFault};
use crate::tunnel::{Mode, Tunnel};

/// The interface's name, unless the profile has one; the kernel fills in the first number that is free.
const INTERFACE: &str = "adit%d";
/// Bytes of datagrams that may wait to be received: 10 ms at 3 Gb/s.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Why this machine cannot have its side.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFault {
    /// Where to remember what is to be undone.
    #[error(transparent)]
    Place(#[from] PlaceFault),
    /// The machine does not do what it is asked to.
    #[error(transparent)]
    Plumbing(#[from] PlumbingFault),
    /// The interface to leave by.
    #[error("cannot connect by interface {interface}: {source}")]
    Interface {
        /// Its name.
        interface: String,
        /// What the system says.
        source: io::Error,
    },
    /// Routes cannot be asked for.
    #[error(transparent)]
    Netlink(#[from] NetlinkFault),
}

/// See the module's text. What was changed is put back by [`undo`](Self::undo), at the latest when this is dropped.
pub(crate) struct Network {
    plumbing: Box<dyn Plumbing>,
    interface: String,
    index: u32,
    tunnel: Option<Tunnel>,
    applied: HostState,
    strict: BTreeSet<String>,
    server: Option<IpAddr>,
    uplink: Option<RouteTo>,
    no_sysctls: bool,
    kill_switch: bool,
    bind: Option<Bind>,
    _lock: LockFile,
}

impl Network {
    /// Cleans up after clients that crashed and opens the interface, `name` if given. Nothing else is changed yet.
    pub(crate) fn open(
        place: &Place,
        name: Option<&str>,
        options: &Options,
    ) -> Result<(Self, Tun), NetworkFault> {
        place.clean_up();
        let tun = Tun::open(&TunOptions::new(name.unwrap_or(INTERFACE))).map_err(PlumbingFault::from)?;
        let interface = tun.name().to_owned();
        let lock = place.lock(&interface)?;
        let (plumbing, recovery) = InProcess::start(&place.record(&interface))?;
        if recovery != Recovery::Clean {
            tracing::warn!(interface, "{recovery}");
        }
        let network = Self {
            plumbing: Box::new(plumbing),
            interface,
            index: tun.index(),
            tunnel: None,
            applied: HostState::default(),
            strict: BTreeSet::new(),
            server: None,
            uplink: None,
            no_sysctls: false,
            kill_switch: options.kill_switch,
            bind: options.bind.clone(),
            _lock: lock,
        };
        Ok((network, tun))
    }

    /// The interface's name.
    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    /// A UDP socket for each IP version this machine has, IPv4 first. What they send stays outside the tunnel.
    pub(crate) fn sockets(&mut self) -> Result<Vec<UdpSocket>, NetworkFault> {
        let options = UdpOptions {
            recv_buffer: Some(RECEIVE_BUFFER),
            path_mtu: PathMtu::Fragment,
            mark: Some(MARK),
            ..UdpOptions::default()
        };
        let mut own: Vec<IpAddr> = vec![Ipv4Addr::UNSPECIFIED.into()];
        if has_ipv6() {
            own.push(Ipv6Addr::UNSPECIFIED.into());
        }
        if let Some(Bind::Address(address)) = self.bind {
            own.iter_mut().filter(|own| own.is_ipv4() == address.is_ipv4()).for_each(|own| *own = address);
        }
        let mut sockets = Vec::new();
        for address in own {
            let socket = self.plumbing.bind_udp(SocketAddr::new(address, 0), &options)?;
            if let Some(Bind::Interface(interface)) = &self.bind {
                set_interface(&socket, interface).map_err(|source| bad_interface(interface, source))?;
            }
            sockets.push(socket);
        }
        Ok(sockets)
    }

    /// Where TCP connections leave from.
    pub(crate) fn origin(&self) -> Origin {
        let mut origin = Origin { mark: Some(MARK), ..Origin::default() };
        match self.bind.clone() {
            Some(Bind::Address(address)) => origin.address = Some(address),
            Some(Bind::Interface(interface)) => origin.interface = Some(interface),
            None => {}
        }
        origin
    }

    /// How packets to the server leave; `None` when they do not.
    fn way_to(&self, server: IpAddr) -> Result<Option<RouteTo>, NetworkFault> {
        let mut netlink = Netlink::open()?;
        let interface = match &self.bind {
            Some(Bind::Address(address)) if address.is_ipv4() != server.is_ipv4() => return Ok(None),
            Some(Bind::Interface(interface)) => match netlink.link_index(interface) {
                Ok(index) => Some(index),
                // It may come back.
                Err(fault) if fault.is_missing() => return Ok(None),
                Err(fault) => return Err(fault.into()),
            },
            _ => None,
        };
        Ok(netlink.route_by(server, MARK, interface)?)
    }

    /// Sees to it that `server` is reached outside the tunnel and its answers arrive; false when no route leads
    /// there.
    pub(crate) fn reach(&mut self, server: IpAddr) -> Result<bool, NetworkFault> {
        if server.is_ipv6() && !has_ipv6() {
            return Ok(false);
        }
        let Some(uplink) = self.way_to(server)? else { return Ok(false) };
        let before = (self.server, self.uplink.clone());
        self.server = Some(server);
        if server.is_ipv4() {
            self.uplink = Some(uplink);
        }
        if before != (self.server, self.uplink.clone()) {
            // What stays outside may leave by another way now.
            self.apply()?;
        }
        self.let_answers_in(server)?;
        Ok(true)
    }

    /// Makes the machine fit the tunnel. Called again with another one, it changes what is different.
    pub(crate) fn set_up(&mut self, tunnel: Tunnel, server: IpAddr) -> Result<(), NetworkFault> {
        self.tunnel = Some(tunnel);
        self.apply()?;
        self.let_answers_in(server)
    }

    /// With a kill switch: lets nothing pass that may belong into the tunnel, which is not there.
    pub(crate) fn shut(&mut self, mode: &Mode) -> Result<(), NetworkFault> {
        if self.kill_switch {
            self.tunnel = Some(Tunnel::shut(mode));
            self.apply()?;
        }
        Ok(())
    }

    /// Puts everything back.
    pub(crate) fn undo(&mut self) -> Result<(), PlumbingFault> {
        self.tunnel = None;
        self.plumbing.undo()
    }

    /// A strict reverse path filter asks where an answer to the server would go, finds that to be the tunnel, and
    /// silently drops what the server sends. On the interface that leads to the server it has to be loose then; the
    /// kernel takes the larger of that value and the one for all interfaces. The same goes for the tunnel's own
    /// interface, for programs that choose it by themselves, and for an interface that this client is bound to.
    fn let_answers_in(&mut self, server: IpAddr) -> Result<(), NetworkFault> {
        let mut concerned = vec![self.interface.clone()];
        if server.is_ipv4() {
            let (there, back) = (self.way_to(server)?, Netlink::open()?.route_to(server, 0)?);
            let differs = there.as_ref().map(|to| to.interface_index) != back.map(|to| to.interface_index);
            concerned.extend(there.filter(|_| differs).map(|to| to.interface));
        }
        let before = self.strict.len();
        let strict = |interface: &String| matches!(rp_filter_effective(interface), Ok(RpFilter::Strict));
        self.strict.extend(concerned.into_iter().filter(strict));
        if self.strict.len() > before { self.apply() } else { Ok(()) }
    }

    fn apply(&mut self) -> Result<(), NetworkFault> {
        // Interfaces come and go.
        self.strict.retain(|interface| rp_filter_effective(interface).is_ok());
        let mut wanted = host_state::wanted(
            self.tunnel.as_ref(),
            &Surroundings {
                interface: &self.interface,
                index: self.index,
                ipv6: has_ipv6(),
                server: self.server,
                uplink: self.uplink.as_ref(),
                strict: &self.strict,
                kill_switch: self.kill_switch,
            },
        );
        if self.no_sysctls {
            wanted.sysctls.clear();
        }
        if let Err(PlumbingFault::Sysctl(fault)) = self.change(&wanted) {
            self.explain(&fault);
            self.no_sysctls = true;
            wanted.sysctls.clear();
            self.change(&wanted)?;
        }
        Ok(())
    }

    fn change(&mut self, wanted: &HostState) -> Result<(), PlumbingFault> {
        if self.applied.addresses != wanted.addresses && !self.applied.addresses.is_empty() {
            // With its last address an interface loses its routes, and packets would leave past the tunnel for a
            // moment: so the new addresses come before the old ones go.
            let mut both = wanted.clone();
            both.addresses.extend(self.applied.addresses.iter().cloned());
            self.plumbing.apply(&both)?;
        }
        self.plumbing.apply(wanted)?;
        self.applied = wanted.clone();
        Ok(())
    }

    /// Parameters that cannot be set, as in many containers, are for the operator to set.
    fn explain(&self, fault: &SysctlFault) {
        for interface in &self.strict {
            let name = sysctl::of_interface(4, interface, "rp_filter");
            tracing::warn!(
                "{name} is strict, so that the kernel drops what the server sends; set it to 2 (the larger of this and \
                 net.ipv4.conf.all.rp_filter counts)"
            );
        }
        tracing::warn!("going on without kernel parameters: {fault}");
    }
}

fn bad_interface(interface: &str, source: io::Error) -> NetworkFault {
    NetworkFault::Interface { interface: interface.to_owned(), source }
}

/// Whether this machine speaks IPv6 at all.
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}
