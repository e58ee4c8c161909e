//! Forwarded ports.

use rusqlite::{Row, params};

use super::row::{parsed, time, time_option};
use super::{Sql, rows};
use crate::fault::StoreFault;
use crate::forwards::{Forward, ForwardProtocol, ForwardRow};
use crate::id::{DeviceId, ForwardId, UserId};
use crate::time::Timestamp;

/// The columns of a forward `f`, as [`forward`] reads them.
macro_rules! forward_columns {
    () => {
        "f.id, f.seq, f.device_id, f.protocol, f.port, f.to_port, f.started, f.expires, f.ended"
    };
}
/// How many columns a forward takes.
const FORWARD_WIDTH: usize = 9;

fn forward(row: &Row<'_>) -> rusqlite::Result<Forward> {
    Ok(Forward {
        id: parsed(row, 0)?,
        seq: row.get(1)?,
        device: parsed(row, 2)?,
        protocol: parsed(row, 3)?,
        port: row.get(4)?,
        to_port: row.get(5)?,
        started: time(row, 6)?,
        expires: time_option(row, 7)?,
        ended: time_option(row, 8)?,
    })
}

/// A row with the names of user and device behind it.
fn named(row: &Row<'_>) -> rusqlite::Result<ForwardRow> {
    let (user, device) = (parsed(row, FORWARD_WIDTH)?, parsed(row, FORWARD_WIDTH + 1)?);
    Ok(ForwardRow { forward: forward(row)?, user, device })
}

impl Sql<'_> {
    /// The open forward with this id.
    pub(crate) fn forward(&self, id: ForwardId) -> Result<Option<Forward>, StoreFault> {
        let sql =
            concat!("SELECT ", forward_columns!(), " FROM forwards f WHERE f.id = ?1 AND f.ended IS NULL");
        self.first(sql, [id.hex().as_str()], forward)
    }

    /// All open forwards.
    pub(crate) fn open_forwards(&self) -> Result<Vec<Forward>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            forward_columns!(),
            " FROM forwards f WHERE f.ended IS NULL ORDER BY f.protocol, f.port"
        );
        self.rows(sql, [], forward)
    }

    /// The open forward with this id, with the names of its user and device.
    pub(crate) fn forward_row(&self, id: ForwardId) -> Result<Option<ForwardRow>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            forward_columns!(),
            ", u.name, d.name FROM forwards f CROSS JOIN devices d ON d.id = f.device_id \
             CROSS JOIN users u ON u.id = d.user_id WHERE f.id = ?1 AND f.ended IS NULL"
        );
        self.first(sql, [id.hex().as_str()], named)
    }

    /// Open forwards of a user, or of all, after a protocol and port, with the names of their users and devices.
    pub(crate) fn forwards_after(
        &self,
        user: Option<UserId>,
        protocol: &str,
        port: u16,
        limit: usize,
    ) -> Result<Vec<ForwardRow>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            forward_columns!(),
            ", u.name, d.name FROM forwards f CROSS JOIN devices d ON d.id = f.device_id \
             CROSS JOIN users u ON u.id = d.user_id WHERE f.ended IS NULL AND (f.protocol, f.port) > (?1, ?2) \
             AND (?4 IS NULL OR u.id = ?4) ORDER BY f.protocol, f.port LIMIT ?3"
        );
        let user = user.map(|user| user.hex());
        let user = user.as_ref().map(|user| user.as_str());
        self.rows(sql, params![protocol, port, rows(limit), user], named)
    }

    /// A device's open forwards.
    pub(crate) fn open_forwards_of(&self, device: DeviceId) -> Result<Vec<Forward>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            forward_columns!(),
            " FROM forwards f WHERE f.device_id = ?1 AND f.ended IS NULL ORDER BY f.seq"
        );
        self.rows(sql, [device.hex().as_str()], forward)
    }

    /// How many ports other than this one are forwarded to devices of a user.
    pub(crate) fn forwarded_ports_of_user(&self, user: UserId, but: u16) -> Result<u64, StoreFault> {
        let sql = "SELECT count(DISTINCT f.port) FROM devices d CROSS JOIN forwards f ON f.device_id = d.id \
                   AND f.ended IS NULL WHERE d.user_id = ?1 AND f.port <> ?2";
        let count: Option<u32> = self.first(sql, params![user.hex().as_str(), but], |row| row.get(0))?;
        Ok(count.unwrap_or_default().into())
    }

    /// Open forwards whose time is over.
    pub(crate) fn expired_forwards(&self, now: Timestamp) -> Result<Vec<Forward>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            forward_columns!(),
            " FROM forwards f WHERE f.ended IS NULL AND f.expires <= ?1 ORDER BY f.expires, f.seq"
        );
        self.rows(sql, [now.as_millis()], forward)
    }

    /// The ports of a protocol that are forwarded now.
    pub(crate) fn forwarded_ports(&self, protocol: ForwardProtocol) -> Result<Vec<u16>, StoreFault> {
        let sql = "SELECT port FROM forwards WHERE ended IS NULL AND protocol = ?1 ORDER BY port";
        self.rows(sql, [protocol.as_str()], |row| row.get(0))
    }

    /// The newest forward of a port.
    pub(crate) fn last_forward(
        &self,
        protocol: ForwardProtocol,
        port: u16,
    ) -> Result<Option<Forward>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            forward_columns!(),
            " FROM forwards f WHERE f.protocol = ?1 AND f.port = ?2 ORDER BY f.started DESC, f.seq DESC LIMIT 1"
        );
        self.first(sql, params![protocol.as_str(), port], forward)
    }

    /// Forwards of a port at any moment from `from` to `to`, both included, latest first.
    pub(crate) fn forwards_at(
        &self,
        protocol: ForwardProtocol,
        port: u16,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Forward>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            forward_columns!(),
            " FROM forwards f WHERE f.protocol = ?1 AND f.port = ?2 AND f.started <= ?3 \
             ORDER BY f.started DESC, f.seq DESC"
        );
        self.rows_while(sql, params![protocol.as_str(), port, to.as_millis()], |row| {
            let forward = forward(row)?;
            Ok(forward.ended.is_none_or(|ended| ended >= from).then_some(forward))
        })
    }
}
