//! Forwarded ports: those of the gateway that lead to a device.

use std::fmt;
use std::str::FromStr;

use adit_plan::ports::PortSet;
use serde_json::json;

use crate::audit::Entry;
use crate::devices::{full_name, usable};
use crate::fault::{ChangeFault, StoreFault};
use crate::id::{self, DeviceId, ForwardId, UserId};
use crate::model::Change;
use crate::name::Name;
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::{Durability, Sql};
use crate::store::Store;
use crate::time::Timestamp;
use crate::trail::TrailTable;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl ForwardProtocol {
    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for ForwardProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is neither `tcp` nor `udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a protocol with ports; write tcp or udp")]
pub struct ForwardProtocolFault;

impl FromStr for ForwardProtocol {
    type Err = ForwardProtocolFault;

    fn from_str(text: &str) -> Result<Self, ForwardProtocolFault> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(ForwardProtocolFault),
        }
    }
}

/// What [`Store::add_forward`] adds.
#[derive(Debug, Clone, Copy)]
pub struct NewForward<'a> {
    /// Whose port it will be.
    pub device: DeviceId,
    /// The protocols, which get one and the same port.
    pub protocols: &'a [ForwardProtocol],
    /// The port of the gateway; `None` for any of `ports` that is free in all protocols.
    pub port: Option<u16>,
    /// The device's own port.
    pub to_port: u16,
    /// When it ends by itself.
    pub expires: Option<Timestamp>,
    /// The ports that may be forwarded.
    pub ports: &'a PortSet,
    /// How many ports a user may have, over all devices.
    pub per_user: u32,
}

/// A port that leads to a device, or led there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The id, which stays the same until it ends.
    pub id: ForwardId,
    /// Its place in the gateway's journal.
    pub seq: i64,
    /// Whose port.
    pub device: DeviceId,
    /// The protocol.
    pub protocol: ForwardProtocol,
    /// The port of the gateway.
    pub port: u16,
    /// The device's own port.
    pub to_port: u16,
    /// The first moment of this record.
    pub started: Timestamp,
    /// When it ends by itself.
    pub expires: Option<Timestamp>,
    /// The first moment after it; `None` while it is open.
    pub ended: Option<Timestamp>,
}

/// A row of the list of forwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardRow {
    /// The forward.
    pub forward: Forward,
    /// The name of the device's user.
    pub user: Name,
    /// The device's name.
    pub device: Name,
}

/// Why a port is not forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardFault {
    /// The port is another's.
    #[error(
        "{protocol} port {port} is forwarded to {owner} already; choose another, or none for any free one"
    )]
    Taken {
        /// The protocol.
        protocol: ForwardProtocol,
        /// The port.
        port: u16,
        /// The device, as `user/device`.
        owner: String,
    },
    /// The port is none that may be forwarded.
    #[error("port {port} cannot be forwarded; choose one of {ports}")]
    NotOffered {
        /// The port.
        port: u16,
        /// Those that may be.
        ports: PortSet,
    },
    /// All ports are taken.
    #[error("all ports of {ports} are forwarded; widen [forward] ports, or remove forwards")]
    Full {
        /// The ports.
        ports: PortSet,
    },
    /// The user has as many as a user may have.
    #[error(
        "{user} has {limit} forwarded ports, as many as a user may have; remove one, or raise [forward] per_user"
    )]
    TooMany {
        /// The user.
        user: Name,
        /// How many a user may have.
        limit: u32,
    },
    /// It would end before it begins.
    #[error("the forward would end before it begins; choose a later time")]
    Expired,
    /// Port 0 is none.
    #[error("port 0 of the device cannot be reached; choose 1-65535")]
    NoPort,
    /// The device does not exist, or the database fails.
    #[error(transparent)]
    Change(#[from] ChangeFault),
}

impl From<StoreFault> for ForwardFault {
    fn from(fault: StoreFault) -> Self {
        Self::Change(fault.into())
    }
}

impl Store {
    /// Forwards a port to a device that is not revoked: a forward for each protocol, or none at all.
    pub fn add_forward(
        &self,
        change: &Change<'_>,
        new: &NewForward<'_>,
    ) -> Result<Vec<Forward>, ForwardFault> {
        let NewForward { device, protocols, to_port, expires, ports, per_user, .. } = *new;
        if to_port == 0 {
            return Err(ForwardFault::NoPort);
        }
        if expires.is_some_and(|expires| expires <= change.now) {
            return Err(ForwardFault::Expired);
        }
        self.write(Durability::Now, |sql| {
            let device = usable(sql, device)?;
            let port = match new.port {
                Some(port) => offered(sql, protocols, port, ports)?,
                None => any_free(sql, protocols, ports)?,
            };
            if sql.forwarded_ports_of_user(device.user, port)? >= u64::from(per_user) {
                let user = crate::users::present(sql, device.user)?.name;
                return Err(ForwardFault::TooMany { user, limit: per_user });
            }
            let add = |protocol: &ForwardProtocol| {
                let protocol = *protocol;
                // Not before the port's last owner has gone, whatever the clock says.
                let last = sql.last_forward(protocol, port)?.and_then(|last| last.ended);
                let started = last.map_or(change.now, |last| last.max(change.now));
                let (id, seq, device_id) = (ForwardId::random()?, sql.next_seq(), device.id);
                let forward = Forward {
                    id,
                    seq,
                    device: device_id,
                    protocol,
                    port,
                    to_port,
                    started,
                    expires,
                    ended: None,
                };
                sql.insert_forward(&forward)?;
                let detail = json!({
                    "id": id, "protocol": protocol, "port": port, "to_port": to_port,
                    "expires_ms": expires.map(Timestamp::as_millis),
                });
                crate::audit::append(
                    sql,
                    change,
                    &Entry::new("forward.add", full_name(sql, &device)?, detail),
                )?;
                Ok(forward)
            };
            protocols.iter().map(add).collect()
        })
    }

    /// The open forward with this id.
    pub fn forward(&self, id: ForwardId) -> Result<Option<Forward>, StoreFault> {
        self.read(|sql| sql.forward(id))
    }

    /// The open forward with this id, with the names of its user and device.
    pub fn forward_row(&self, id: ForwardId) -> Result<Option<ForwardRow>, StoreFault> {
        self.read(|sql| sql.forward_row(id))
    }

    /// The open forwards of a user, or of all, by protocol and port.
    pub fn forwards(&self, user: Option<UserId>, page: &Page) -> Result<Listed<ForwardRow>, StoreFault> {
        let ([protocol, port], limit) = (page.text_keys()?, page.limit());
        let port = if port.is_empty() { 0 } else { port.parse().map_err(|_| StoreFault::Cursor)? };
        let rows = self.read(|sql| sql.forwards_after(user, protocol, port, limit + 1))?;
        Ok(Listed::new(rows, limit, |row: &ForwardRow| {
            Cursor::at(&[row.forward.protocol.as_str(), &row.forward.port.to_string()])
        }))
    }

    /// A device's open forwards.
    pub fn forwards_of(&self, device: DeviceId) -> Result<Vec<Forward>, StoreFault> {
        self.read(|sql| sql.open_forwards_of(device))
    }

    /// Ends a forward; gives it as it was. Revoking its device, or removing its user, does so too.
    pub fn end_forward(&self, change: &Change<'_>, id: ForwardId) -> Result<Forward, ChangeFault> {
        self.change(change, |sql| {
            let forward = sql.forward(id)?.ok_or(ChangeFault::NotFound("forward"))?;
            let entry = end(sql, &forward, change.now, "forward.remove")?;
            Ok((forward, Some(entry)))
        })
    }

    /// The open forwards whose time is over.
    pub fn due_forwards(&self, now: Timestamp) -> Result<Vec<Forward>, StoreFault> {
        self.read(|sql| sql.expired_forwards(now))
    }

    /// Ends the forwards whose time is over, now: until now they were open. Gives them.
    pub fn expire_forwards(&self, change: &Change<'_>) -> Result<Vec<Forward>, StoreFault> {
        self.write(Durability::Now, |sql| {
            let expired = sql.expired_forwards(change.now)?;
            for forward in &expired {
                let entry = end(sql, forward, change.now, "forward.expire")?;
                crate::audit::append(sql, change, &entry)?;
            }
            Ok(expired)
        })
    }
}

/// Ends all forwards of a device, within the transaction of a larger change; gives how many.
pub(crate) fn end_all_of(sql: &Sql<'_>, device: DeviceId, at: Timestamp) -> Result<u64, StoreFault> {
    let open = sql.open_forwards_of(device)?;
    for forward in &open {
        sql.end_record(TrailTable::Forwards, forward.seq, at.max(forward.started))?;
    }
    Ok(open.len() as u64)
}

/// Writes forwards that are still open anew; gives how many.
pub(crate) fn renew(sql: &Sql<'_>, forwards: &[Forward], now: Timestamp) -> Result<u64, StoreFault> {
    let mut done = 0;
    for forward in forwards {
        let at = now.max(forward.started);
        if sql.end_record(TrailTable::Forwards, forward.seq, at)? {
            sql.insert_forward(&Forward { seq: sql.next_seq(), started: at, ..*forward })?;
            done += 1;
        }
    }
    Ok(done)
}

fn end(sql: &Sql<'_>, forward: &Forward, at: Timestamp, action: &'static str) -> Result<Entry, StoreFault> {
    sql.end_record(TrailTable::Forwards, forward.seq, at.max(forward.started))?;
    let subject = match sql.device(forward.device)? {
        Some(device) => full_name(sql, &device)?,
        None => forward.device.to_string(),
    };
    let detail = json!({ "id": forward.id, "protocol": forward.protocol, "port": forward.port });
    Ok(Entry::new(action, subject, detail))
}

/// The port, if it may be forwarded and is in none of the protocols.
fn offered(
    sql: &Sql<'_>,
    protocols: &[ForwardProtocol],
    port: u16,
    ports: &PortSet,
) -> Result<u16, ForwardFault> {
    if !ports.contains(port) {
        return Err(ForwardFault::NotOffered { port, ports: ports.clone() });
    }
    for protocol in protocols {
        let last = sql.last_forward(*protocol, port)?;
        let Some(forward) = last.filter(|last| last.ended.is_none()) else { continue };
        let owner = sql.device(forward.device)?.map(|device| full_name(sql, &device)).transpose()?;
        let owner = owner.unwrap_or_else(|| forward.device.to_string());
        return Err(ForwardFault::Taken { protocol: *protocol, port, owner });
    }
    Ok(port)
}

/// A port that is free in all protocols and that nobody can guess.
fn any_free(sql: &Sql<'_>, protocols: &[ForwardProtocol], ports: &PortSet) -> Result<u16, ForwardFault> {
    let mut taken = PortSet::default();
    for protocol in protocols {
        taken = taken.either(&sql.forwarded_ports(*protocol)?.into_iter().collect());
    }
    let free = ports.without(&taken);
    // The remainder favours none by more than one part in 2^47.
    let place = u64::from_be_bytes(id::random_octets()?).checked_rem(free.count() as u64);
    let port = place.and_then(|place| free.iter().nth(place as usize));
    port.ok_or_else(|| ForwardFault::Full { ports: ports.clone() })
}

#[cfg(test)]
mod tests;
