//! Forwarded ports: those of the gateway that lead to a device.

use std::fmt;
use std::str::FromStr;

use adit_plan::ports::PortSet;
use serde_json::json;

use crate::audit::Entry;
use crate::devices::{full_name, usable};
use crate::fault::{ChangeFault, StoreFault};
use crate::id::{self, DeviceId, ForwardId};
use crate::model::Change;
use crate::name::Name;
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::Sql;
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
    /// The protocol.
    pub protocol: ForwardProtocol,
    /// The port of the gateway; `None` for any free one of `ports`.
    pub port: Option<u16>,
    /// The device's own port.
    pub to_port: u16,
    /// When it ends by itself.
    pub expires: Option<Timestamp>,
    /// The ports that may be forwarded.
    pub ports: &'a PortSet,
    /// How many a user may have, over all devices.
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
    #[error("all {protocol} ports of {ports} are forwarded; widen [forward] ports, or remove forwards")]
    Full {
        /// The protocol.
        protocol: ForwardProtocol,
        /// The ports.
        ports: PortSet,
    },
    /// The user has as many as a user may have.
    #[error(
        "{user} has {limit} forwards, as many as a user may have; remove one, or raise [forward] per_user"
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
    /// Forwards a port to a device that is not revoked.
    pub fn add_forward(&self, change: &Change<'_>, new: &NewForward<'_>) -> Result<Forward, ForwardFault> {
        let NewForward { device, protocol, to_port, expires, ports, per_user, .. } = *new;
        if to_port == 0 {
            return Err(ForwardFault::NoPort);
        }
        if expires.is_some_and(|expires| expires <= change.now) {
            return Err(ForwardFault::Expired);
        }
        self.change(change, |sql| {
            let device = usable(sql, device)?;
            if sql.open_forwards_of_user(device.user)? >= u64::from(per_user) {
                let user = crate::users::present(sql, device.user)?.name;
                return Err(ForwardFault::TooMany { user, limit: per_user });
            }
            let port = match new.port {
                Some(port) => offered(sql, protocol, port, ports)?,
                None => any_free(sql, protocol, ports)?,
            };
            // Not before the port's last owner has gone, whatever the clock says.
            let last = sql.last_forward(protocol, port)?.and_then(|last| last.ended);
            let started = last.map_or(change.now, |last| last.max(change.now));
            let (id, seq) = (ForwardId::random()?, sql.next_seq());
            let device_id = device.id;
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
            Ok((forward, Some(Entry::new("forward.add", full_name(sql, &device)?, detail))))
        })
    }

    /// The open forward with this id.
    pub fn forward(&self, id: ForwardId) -> Result<Option<Forward>, StoreFault> {
        self.read(|sql| sql.forward(id))
    }

    /// The open forwards by protocol and port.
    pub fn forwards(&self, page: &Page) -> Result<Listed<ForwardRow>, StoreFault> {
        let ([protocol, port], limit) = (page.text_keys()?, page.limit());
        let port = if port.is_empty() { 0 } else { port.parse().map_err(|_| StoreFault::Cursor)? };
        let rows = self.read(|sql| sql.forwards_after(protocol, port, limit + 1))?;
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

    /// Ends the forwards whose time is over, each at that time; gives them.
    pub fn expire_forwards(&self, change: &Change<'_>) -> Result<Vec<Forward>, StoreFault> {
        self.write(crate::sqlite::Durability::Now, |sql| {
            let expired = sql.expired_forwards(change.now)?;
            for forward in &expired {
                let at = forward.expires.unwrap_or(change.now);
                let entry = end(sql, forward, at, "forward.expire")?;
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

fn offered(
    sql: &Sql<'_>,
    protocol: ForwardProtocol,
    port: u16,
    ports: &PortSet,
) -> Result<u16, ForwardFault> {
    if !ports.contains(port) {
        return Err(ForwardFault::NotOffered { port, ports: ports.clone() });
    }
    match sql.last_forward(protocol, port)?.filter(|last| last.ended.is_none()) {
        None => Ok(port),
        Some(forward) => {
            let owner = sql.device(forward.device)?.map(|device| full_name(sql, &device)).transpose()?;
            let owner = owner.unwrap_or_else(|| forward.device.to_string());
            Err(ForwardFault::Taken { protocol, port, owner })
        }
    }
}

/// A free port that nobody can guess.
fn any_free(sql: &Sql<'_>, protocol: ForwardProtocol, ports: &PortSet) -> Result<u16, ForwardFault> {
    let taken: PortSet = sql.forwarded_ports(protocol)?.into_iter().collect();
    let free = ports.without(&taken);
    // The remainder favours none by more than one part in 2^47.
    let place = u64::from_be_bytes(id::random_octets()?).checked_rem(free.count() as u64);
    let port = place.and_then(|place| free.iter().nth(place as usize));
    port.ok_or_else(|| ForwardFault::Full { protocol, ports: ports.clone() })
}

#[cfg(test)]
mod tests;
