//! Who was it? From an address and a port seen outside at some time to the device and its user.

use std::net::{IpAddr, Ipv4Addr};

use adit_plan::nat::{Block, Layout};

use crate::credential::Serial;
use crate::epochs::Epoch;
use crate::fault::StoreFault;
use crate::forwards::ForwardProtocol;
use crate::id::{DeviceId, GatewayId, LeaseId, SessionId, UserId};
use crate::model::LeaseRecord;
use crate::name::Name;
use crate::sqlite::{Durability, Sql};
use crate::store::Store;
use crate::time::Timestamp;

/// How long before and after a step the clock is taken to have been wrong, in milliseconds: ten minutes.
const NEAR: i64 = 10 * 60 * 1_000;
/// The widest search because of one step of the clock, in milliseconds: a day. A clock that was further off had never
/// been set, and would put everybody under suspicion.
const WIDEST: i64 = 24 * 60 * 60 * 1_000;

/// What a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo, whose identifier stands for the port.
    Icmp,
}

/// What was seen outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceQuery {
    /// When.
    pub at: Timestamp,
    /// The address, this gateway's or an IPv6 client's own.
    pub address: IpAddr,
    /// The port. Without it, all who had ports of the address then are found.
    pub port: Option<u16>,
    /// The protocol, if it is known.
    pub protocol: Option<TraceProtocol>,
    /// How far `at` may be from the truth, either way.
    pub tolerance_ms: u64,
}

/// What a trace found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// Who it may have been, the latest first. At the instant at which one ended and the next began, both are given.
    pub matches: Vec<TraceMatch>,
    /// The epoch at that time.
    pub epoch: Option<Epoch>,
    /// By how much the gateway's own clock may have been wrong then. The search was wider by as much, up to a day for
    /// each step of the clock.
    pub clock_uncertainty_ms: u64,
}

/// How a match was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceKind {
    /// The port is one of the client's block.
    Nat,
    /// The port was forwarded to the client.
    Forward,
    /// The address is the client's own, or one of a network behind it, in IPv6.
    Ipv6,
    /// The address is the client's own, and was not translated, in IPv4.
    Ipv4,
    /// The port is one of the gateway's own connections.
    Host,
}

/// Whom a trace found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceOwner {
    /// The user.
    pub user: UserId,
    /// The user's name.
    pub user_name: Name,
    /// The device.
    pub device: DeviceId,
    /// The device's name.
    pub device_name: Name,
    /// The serial number of the certificate that the session was opened with.
    pub certificate: Option<Serial>,
    /// The inner address.
    pub inner: IpAddr,
    /// The session.
    pub session: SessionId,
    /// The lease.
    pub lease: LeaseId,
}

/// One who may have been it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceMatch {
    /// How it was found.
    pub kind: TraceKind,
    /// The gateway.
    pub gateway: GatewayId,
    /// Who; `None` for the gateway itself.
    pub owner: Option<TraceOwner>,
    /// The block of ports.
    pub block: Option<Block>,
    /// From when on it would have been this one.
    pub from: Timestamp,
    /// Until just before when; `None`: still.
    pub to: Option<Timestamp>,
}

/// A time, both ends included.
#[derive(Clone, Copy)]
struct Window {
    from: Timestamp,
    to: Timestamp,
}

impl Window {
    fn within(self, from: Timestamp, to: Option<Timestamp>) -> Self {
        Self { from: self.from.max(from), to: to.map_or(self.to, |to| self.to.min(to)) }
    }
}

impl Store {
    /// Who had an address and port at a time. A time, address or port that nobody had gives no match.
    pub fn trace(&self, query: &TraceQuery) -> Result<Trace, StoreFault> {
        let state = self.state();
        let sql = state.db.sql();
        let (reach, uncertainty) = clock(&sql, query)?;
        let at = query.at.as_millis();
        let window = Window {
            from: Timestamp::from_millis(at.saturating_sub(reach)),
            to: Timestamp::from_millis(at.saturating_add(reach)),
        };
        let mut search = Search { sql, query: *query, window, found: Vec::new() };
        match query.address {
            IpAddr::V4(address) => {
                for epoch in state.epochs.iter().filter(|epoch| epoch.from <= window.to) {
                    if let Some(layout) = &epoch.layout {
                        search.epoch(epoch, layout, address)?;
                    }
                }
                search.untranslated(address)?;
            }
            IpAddr::V6(_) => search.ipv6()?,
        }
        let matches = joined(search.found);
        Ok(Trace { matches, epoch: state.epochs.at(query.at).cloned(), clock_uncertainty_ms: uncertainty })
    }

    /// Writes to the trail that the clock was set by so many milliseconds, forwards or back, and was `at` afterwards. A
    /// trace near that time searches wider.
    pub fn clock_stepped(&self, at: Timestamp, step_ms: i64) -> Result<(), StoreFault> {
        self.write(Durability::Now, |sql| sql.insert_clock_step(at, step_ms))
    }

    /// All epochs that are known, the latest first.
    pub fn epochs(&self) -> Vec<Epoch> {
        self.state().epochs.iter().rev().cloned().collect()
    }
}

/// How far around its time a query has to look, and how much of that is because of the gateway's clock.
fn clock(sql: &Sql<'_>, query: &TraceQuery) -> Result<(i64, u64), StoreFault> {
    let tolerance = i64::try_from(query.tolerance_ms).unwrap_or(i64::MAX);
    let (at, far) = (query.at.as_millis(), tolerance.saturating_add(WIDEST + NEAR));
    let from = Timestamp::from_millis(at.saturating_sub(far));
    let steps = sql.clock_steps(from, Timestamp::from_millis(at.saturating_add(far)))?;
    let (mut reach, mut uncertainty) = (tolerance, 0_u64);
    for (stepped, by) in steps {
        let size = by.unsigned_abs();
        let wider = i64::try_from(size).unwrap_or(WIDEST).min(WIDEST);
        let near = tolerance.saturating_add(wider).saturating_add(NEAR);
        if stepped.as_millis().abs_diff(at) <= near.unsigned_abs() {
            reach = reach.saturating_add(wider);
            uncertainty = uncertainty.saturating_add(size);
        }
    }
    Ok((reach, uncertainty))
}

struct Search<'s> {
    sql: Sql<'s>,
    query: TraceQuery,
    window: Window,
    found: Vec<TraceMatch>,
}

impl Search<'_> {
    /// Blocks of an epoch last longer than the epoch itself: a layout that comes after leaves them where it can, and
    /// ranges in quarantine stay their owners'.
    fn epoch(&mut self, epoch: &Epoch, layout: &Layout, address: Ipv4Addr) -> Result<(), StoreFault> {
        let Window { from, to } = self.window;
        let numbers: Vec<u32> = match self.query.port {
            Some(port) => layout.number_at(address, port).into_iter().collect(),
            None => {
                let of_address =
                    |number: &u32| layout.block(*number).is_some_and(|block| block.address == address);
                (0..layout.capacity()).filter(of_address).collect()
            }
        };
        for number in numbers {
            for (row, lease) in self.sql.blocks_at(epoch.seq, number, from, to)? {
                let block = layout.block(number);
                let inner = lease.inner.v4.map(IpAddr::V4);
                self.add(TraceKind::Nat, &lease, inner, block, row.started, row.ended.or(lease.ended))?;
            }
        }
        let Some(port) = self.query.port.filter(|_| epoch.to.is_none_or(|to| to >= from)) else {
            return Ok(());
        };
        let forward = layout.forward();
        let forwards = forward
            .is_some_and(|forward| forward.addresses.is_empty() || forward.addresses.contains(&address));
        if forwards {
            self.forwarded(port, self.window.within(epoch.from, epoch.to))?;
        }
        let translates = layout.addresses().contains(&address);
        let ours = translates || forward.is_some_and(|forward| forward.addresses.contains(&address));
        // The kernel chooses none of the ports that are for others, wherever its own range is.
        let reserved = translates && layout.ports().contains(&port)
            || forwards && forward.is_some_and(|forward| forward.ports.contains(port));
        let host = ours && !reserved && layout.host_ports().contains(&port);
        if host && self.query.protocol != Some(TraceProtocol::Icmp) {
            let (from, to, gateway) = (epoch.from, epoch.to, self.sql.gateway());
            let host = TraceMatch { kind: TraceKind::Host, gateway, owner: None, block: None, from, to };
            self.found.push(host);
        }
        Ok(())
    }

    fn forwarded(&mut self, port: u16, window: Window) -> Result<(), StoreFault> {
        let protocols: &[ForwardProtocol] = match self.query.protocol {
            None => &[ForwardProtocol::Tcp, ForwardProtocol::Udp],
            Some(TraceProtocol::Tcp) => &[ForwardProtocol::Tcp],
            Some(TraceProtocol::Udp) => &[ForwardProtocol::Udp],
            Some(TraceProtocol::Icmp) => &[],
        };
        for &protocol in protocols {
            for forward in self.sql.forwards_at(protocol, port, window.from, window.to)? {
                let window = window.within(forward.started, forward.ended);
                for lease in self.sql.leases_during(forward.device, window.from, window.to)? {
                    let inner = lease.inner.v4.map(IpAddr::V4);
                    let from = lease.started.max(forward.started);
                    let to = [lease.ended, forward.ended].into_iter().flatten().min();
                    self.add(TraceKind::Forward, &lease, inner, None, from, to)?;
                }
            }
        }
        Ok(())
    }

    /// A lease of the address itself that has no block.
    fn untranslated(&mut self, address: Ipv4Addr) -> Result<(), StoreFault> {
        for lease in self.sql.leases_at(address.into(), self.window.from, self.window.to)? {
            if self.sql.blocks_of(lease.seq)?.is_empty() {
                self.add(TraceKind::Ipv4, &lease, Some(address.into()), None, lease.started, lease.ended)?;
            }
        }
        Ok(())
    }

    fn ipv6(&mut self) -> Result<(), StoreFault> {
        let (address, Window { from, to }) = (self.query.address, self.window);
        let mut leases = self.sql.leases_at(address, from, to)?;
        // Which networks are behind a device is known as it is now.
        for (device, _, prefix) in self.sql.all_prefixes()? {
            if prefix.contains(&address) {
                leases.extend(self.sql.leases_during(device, from, to)?);
            }
        }
        for lease in leases {
            self.add(TraceKind::Ipv6, &lease, Some(address), None, lease.started, lease.ended)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        kind: TraceKind,
        lease: &LeaseRecord,
        inner: Option<IpAddr>,
        block: Option<Block>,
        from: Timestamp,
        to: Option<Timestamp>,
    ) -> Result<(), StoreFault> {
        let missing = |what| self.sql.damaged(format!("the {what} of the lease {} is missing", lease.id));
        let device = self.sql.device(lease.device)?.ok_or_else(|| missing("device"))?;
        let user = self.sql.user(device.user)?.ok_or_else(|| missing("user"))?;
        let session = self.sql.session(lease.session)?;
        let inner = inner.ok_or_else(|| missing("address"))?;
        let owner = TraceOwner {
            user: user.id,
            user_name: user.name,
            device: device.id,
            device_name: device.name,
            certificate: session.and_then(|session| session.certificate),
            inner,
            session: lease.session,
            lease: lease.id,
        };
        self.found.push(TraceMatch { kind, gateway: lease.gateway, owner: Some(owner), block, from, to });
        Ok(())
    }
}

/// The latest first. What was written anew while it lasted is one match; so is an owner whose new block reaches into the
/// ports of the block it left.
fn joined(mut found: Vec<TraceMatch>) -> Vec<TraceMatch> {
    found.sort_by_key(|found| (found.from, found.to.is_none(), found.to));
    let mut joined: Vec<TraceMatch> = Vec::new();
    for next in found {
        let same = joined.iter_mut().find(|last| {
            let blocks = match (last.block, next.block) {
                (Some(last), Some(next)) => last.overlaps(&next),
                (last, next) => last == next,
            };
            (last.kind, &last.owner) == (next.kind, &next.owner)
                && blocks
                && last.to.is_none_or(|to| to >= next.from)
        });
        match same {
            Some(last) => {
                last.block = next.block;
                last.to = last.to.zip(next.to).map(|(last, next)| last.max(next));
            }
            None => joined.push(next),
        }
    }
    joined.reverse();
    joined
}

#[cfg(test)]
mod tests;
