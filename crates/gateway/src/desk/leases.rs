//! What devices have, from login until it is given back.

use std::net::IpAddr;
use std::time::Instant;

use adit_engine::Handle;
use adit_store::{Admitted, DeviceId, Lease, SessionId, Store, Timestamp, UserId};
use ipnet::{IpNet, Ipv4Net};

use super::clerk::Clerk;
use super::{Decision, Granted, Login, Refused, TRY_LATER};
use crate::clock;
use crate::control::Which;
use crate::exit::{Outlet, TCP, UDP, Way};

/// How far back a connection may be from that the kernel still knows: what it gives TCP by itself, and a day.
const TRACKED_FOR: i64 = 6 * 86_400_000;

/// What a device has.
pub(super) struct Held {
    user: UserId,
    pub(super) lease: Lease,
    /// What the kernel knows of it.
    pub(super) outlet: Outlet,
    /// Its live session; without one it is away.
    live: Option<(Handle, SessionId)>,
    /// Until when it may be away.
    until: Option<Instant>,
}

impl Held {
    /// Its live session.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.live.map(|(_, session)| session)
    }
}

impl Clerk {
    /// Notes what the client has, and what it is to be told.
    pub(super) fn grant(&mut self, login: &Login, admitted: Admitted) -> Decision {
        let Admitted { who, session, lease } = admitted;
        let (device, inner) = (who.device.id, lease.inner());
        let old = self.held.remove(&device);
        let mut replaces = None;
        if let Some((handle, session)) = old.as_ref().and_then(|old| old.live) {
            // The lease has gone over to the new session; only the old session's end is missing.
            self.live.remove(&handle);
            self.close_session(session, "replaced by a newer session");
            replaces = Some(handle);
        }
        let outlet = self.outlet(device, &lease, &who.prefixes);
        let opened = match &old {
            Some(old) if old.lease.inner() == inner => self.exits.change(&old.outlet, &outlet),
            old => {
                if let Some(old) = old {
                    self.exits.close([(old.lease.inner(), &old.outlet)]);
                }
                let store = &self.store;
                self.exits.open(inner, &outlet, || was_last(store, device, &lease))
            }
        };
        if let Err(fault) = opened {
            tracing::error!(user = %who.user.name, %fault, "no source ports");
            self.exits.close([(inner, old.as_ref().map_or(&outlet, |old| &old.outlet))]);
            self.end_lease(lease);
            self.close_session(session.id, "no source ports");
            return Decision::Refused(Refused::for_a_while(TRY_LATER, fault.to_string()));
        }
        self.live.insert(login.handle, device);
        let live = Some((login.handle, session.id));
        self.held.insert(device, Held { user: who.user.id, lease, outlet, live, until: None });
        let sites = self.sites.others(device);
        let options = match self.store.pools() {
            Some(pools) => crate::push::options(&self.settings, &pools, inner, &sites, login.tcp),
            None => Vec::new(),
        };
        Decision::Granted(Box::new(Granted {
            session: session.id,
            user: who.user.id,
            user_name: who.user.name.to_string(),
            device,
            device_name: who.device.name.to_string(),
            inner,
            prefixes: who.prefixes,
            options,
            replaces,
        }))
    }

    pub(super) fn outlet(&self, device: DeviceId, lease: &Lease, prefixes: &[IpNet]) -> Outlet {
        Outlet {
            inner: lease.inner().v4,
            block: lease.block(),
            sites: prefixes.iter().filter_map(private4).collect(),
            ways: self.ways(device),
        }
    }

    fn ways(&self, device: DeviceId) -> Vec<Way> {
        match self.store.forwards_of(device) {
            Ok(forwards) => forwards.iter().flat_map(forward_ways).collect(),
            Err(error) => {
                tracing::error!(%error, "forwarded ports could not be read; none are open");
                Vec::new()
            }
        }
    }

    /// A session is over.
    pub(super) fn end(&mut self, handle: Handle, reason: &str, linger: bool) {
        let Some(device) = self.live.remove(&handle) else { return };
        let Some(held) =
            self.held.get_mut(&device).filter(|held| held.live.is_some_and(|(live, _)| live == handle))
        else {
            return;
        };
        let session = held.live.take().map(|(_, session)| session);
        let linger = if linger { self.settings.linger } else { std::time::Duration::ZERO };
        held.until = Some(Instant::now() + linger);
        // Nobody is there to answer.
        let closed = Outlet { ways: Vec::new(), ..held.outlet.clone() };
        match self.exits.change(&held.outlet, &closed) {
            Ok(()) => held.outlet = closed,
            Err(fault) => {
                tracing::error!(%fault, "forwarded ports of a device that is away could not be closed");
            }
        }
        if let Some(session) = session {
            self.close_session(session, reason);
        }
    }

    /// Takes from devices that are away what they may not keep any longer.
    pub(super) fn let_go(&mut self, now: Instant) {
        let over: Vec<_> = self.away().filter(|(_, until)| *until <= now).map(|(device, _)| device).collect();
        self.give_back(&over);
    }

    /// Takes from the device that is away for longest what it has. False if none is.
    pub(super) fn reclaim(&mut self) -> bool {
        let longest = self.away().min_by_key(|(_, until)| *until).map(|(device, _)| device);
        self.give_back(longest.as_slice());
        longest.is_some()
    }

    fn away(&self) -> impl Iterator<Item = (DeviceId, Instant)> {
        self.held.iter().filter_map(|(device, held)| Some((*device, held.until?)))
    }

    /// Ends what these have that are away.
    pub(super) fn settle(&mut self, which: &Which) {
        let meant = |device: &DeviceId, held: &Held| match which {
            Which::User(user) => held.user == *user,
            Which::Device(one) => device == one,
            Which::Session(_) => false,
        };
        let away = self.held.iter().filter(|(_, held)| held.until.is_some());
        let meant: Vec<_> =
            away.filter(|(device, held)| meant(device, held)).map(|(device, _)| *device).collect();
        self.give_back(&meant);
    }

    /// In this order: nothing new passes, what was under way is forgotten, the journal says so. The kernel looks at
    /// every connection there is for that, so the more devices at once the better.
    pub(super) fn give_back(&mut self, devices: &[DeviceId]) {
        let over: Vec<Held> = devices.iter().filter_map(|device| self.held.remove(device)).collect();
        self.exits.close(over.iter().map(|held| (held.lease.inner(), &held.outlet)));
        for held in over {
            self.end_lease(held.lease);
        }
    }

    fn end_lease(&self, lease: Lease) {
        if let Err(error) = lease.end(clock::now()) {
            tracing::error!(%error, "the end of a lease could not be written; its addresses stay taken");
        }
    }

    fn close_session(&self, session: SessionId, reason: &str) {
        if let Err(error) = self.store.close_session(session, clock::now(), reason) {
            tracing::error!(%error, "the end of a session could not be written");
        }
    }

    /// Brings the kernel in line with the ports that are forwarded to a device, but for those that are to be `cut`: these
    /// are closed, and what came in by them ends.
    pub(super) fn follow_forwards(&mut self, device: DeviceId, cut: &[Way]) -> Result<(), String> {
        let mut ways = self.ways(device);
        ways.retain(|way| !cut.contains(way));
        let Some(held) = self.held.get_mut(&device).filter(|held| held.until.is_none()) else {
            return Ok(());
        };
        let outlet = Outlet { ways, ..held.outlet.clone() };
        self.exits.change(&held.outlet, &outlet).map_err(|fault| fault.to_string())?;
        held.outlet = outlet;
        let inner = held.lease.inner();
        self.exits.cut(inner, cut).map_err(|fault| fault.to_string())
    }

    /// Gives everything back, at the end. Connections stay: their owners are back in a moment, and nobody else gets
    /// their addresses before the next start has looked at them.
    pub(super) fn close(&mut self) {
        self.exits.suspend(self.held.values().map(|held| &held.outlet));
        for (_, held) in std::mem::take(&mut self.held) {
            self.end_lease(held.lease);
            if let Some((_, session)) = held.live {
                self.close_session(session, "gateway stopped");
            }
        }
        if let Err(error) = self.store.heartbeat(clock::now()) {
            tracing::error!(%error, "the journal could not be closed");
        }
    }
}

/// Whether an address was this device's the time before as well.
fn was_last(store: &Store, device: DeviceId, lease: &Lease) -> bool {
    let Some(address) = lease.inner().v4.map(IpAddr::V4).or(lease.inner().v6.map(IpAddr::V6)) else {
        return false;
    };
    let to = lease.started();
    let from = Timestamp::from_millis(to.as_millis() - TRACKED_FOR);
    match store.leases_of_address(address, from, to) {
        Ok(leases) => leases.iter().all(|before| before.device == device),
        Err(error) => {
            tracing::error!(%error, "the journal could not be read");
            false
        }
    }
}

/// Networks behind devices that are translated, as addresses of pools are.
fn private4(net: &IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) if adit_plan::nat::is_private4(net) => Some(*net),
        _ => None,
    }
}

/// A forward as the kernel has it.
pub(crate) fn forward_ways(forward: &adit_store::Forward) -> Vec<Way> {
    let way = |protocol| Way { protocol, port: forward.port, to: forward.to_port };
    match forward.protocol {
        adit_store::ForwardProtocol::Tcp => vec![way(TCP)],
        adit_store::ForwardProtocol::Udp => vec![way(UDP)],
    }
}
