//! The gateway's journal: its clock, sessions and leases.

use std::net::{IpAddr, Ipv4Addr};

use adit_plan::pool::Inner;
use rusqlite::params;

use super::row::{lease, lease_columns, parsed, parsed_option, session, session_columns, time, time_option};
use super::{Sql, rows};
use crate::fault::StoreFault;
use crate::id::{DeviceId, SessionId, UserId};
use crate::model::{LeaseRecord, Session};
use crate::time::Timestamp;

/// For each address in a column of the leases, when its last lease ended, if it did, and where in the journal that
/// is. It steps from address to address through the index, because most leases are of an address that has a later one.
macro_rules! last_leases {
    ($column:literal) => {
        concat!(
            "WITH RECURSIVE addresses (address) AS (SELECT min(",
            $column,
            ") FROM leases UNION ALL SELECT (SELECT min(",
            $column,
            ") FROM leases WHERE ",
            $column,
            " > address) FROM addresses WHERE address IS NOT NULL) \
             SELECT address, l.ended, l.seq FROM addresses CROSS JOIN leases l ON l.seq = (SELECT seq FROM leases WHERE ",
            $column,
            " = address ORDER BY started DESC, seq DESC LIMIT 1)"
        )
    };
}

impl Sql<'_> {
    pub(crate) fn heartbeat(&self) -> Result<Timestamp, StoreFault> {
        self.first("SELECT heartbeat FROM gateways", [], |row| time(row, 0))?
            .ok_or_else(|| self.missing("the gateway's row"))
    }

    /// Writes the heartbeat, how far the journal's numbering has come, and the trail's head.
    pub(crate) fn set_heartbeat(&self, now: Timestamp) -> Result<(), StoreFault> {
        let sql = "UPDATE gateways SET heartbeat = ?1, seq = ?2, trail_seq = ?3, trail_hash = ?4";
        let head = self.head.get();
        self.run(sql, params![now.as_millis(), self.seq.get(), head.seq, head.hash])?;
        Ok(())
    }

    /// Counts on and gives the next place in the gateway's journal. The place of a transaction that fails stays empty.
    pub(crate) fn next_seq(&self) -> i64 {
        let next = self.seq.get() + 1;
        self.seq.set(next);
        next
    }

    pub(crate) fn insert_session(&self, session: &Session) -> Result<(), StoreFault> {
        let sql = "INSERT INTO sessions (id, gateway_id, seq, device_id, certificate_serial, protocol, identity, \
                   transport, started) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let (id, gateway, device) = (session.id.hex(), session.gateway.hex(), session.device.hex());
        self.run(
            sql,
            params![
                id.as_str(),
                gateway.as_str(),
                session.seq,
                device.as_str(),
                session.certificate.as_ref().map(|serial| serial.as_str()),
                session.protocol,
                session.identity,
                session.transport,
                session.started.as_millis(),
            ],
        )?;
        Ok(())
    }

    /// Ends a session if it is open, not before it began; says whether it was.
    pub(crate) fn end_session(&self, id: SessionId, at: Timestamp, reason: &str) -> Result<bool, StoreFault> {
        let sql = "UPDATE sessions SET ended = max(started, ?3), reason = ?4 \
                   WHERE seq = ?1 AND id = ?2 AND ended IS NULL";
        Ok(self.run(sql, params![id.seq(), id.hex().as_str(), at.as_millis(), reason])? > 0)
    }

    pub(crate) fn session(&self, id: SessionId) -> Result<Option<Session>, StoreFault> {
        let sql = concat!("SELECT ", session_columns!(), " FROM sessions s WHERE s.seq = ?1 AND s.id = ?2");
        self.first(sql, params![id.seq(), id.hex().as_str()], session)
    }

    /// The device of a session, if the session is open.
    pub(crate) fn open_session_device(&self, id: SessionId) -> Result<Option<DeviceId>, StoreFault> {
        let sql = "SELECT device_id FROM sessions WHERE seq = ?1 AND id = ?2 AND ended IS NULL";
        self.first(sql, params![id.seq(), id.hex().as_str()], |row| parsed(row, 0))
    }

    /// The gateway's open sessions after a place in the journal, in its order.
    pub(crate) fn open_sessions(&self, after: i64, limit: usize) -> Result<Vec<Session>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            session_columns!(),
            " FROM sessions s WHERE s.ended IS NULL AND s.seq > ?1 ORDER BY s.seq LIMIT ?2"
        );
        self.rows(sql, params![after, rows(limit)], session)
    }

    /// The open sessions of all devices of a user.
    pub(crate) fn open_sessions_of(&self, user: UserId) -> Result<Vec<SessionId>, StoreFault> {
        let sql = "SELECT s.id FROM sessions s JOIN devices d ON d.id = s.device_id \
                   WHERE s.ended IS NULL AND d.user_id = ?1 ORDER BY s.seq";
        self.rows(sql, [user.hex().as_str()], |row| parsed(row, 0))
    }

    /// The newest lease of the device here.
    pub(crate) fn last_lease(&self, device: DeviceId) -> Result<Option<LeaseRecord>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            lease_columns!(),
            " FROM leases l WHERE l.device_id = ?1 ORDER BY l.seq DESC LIMIT 1"
        );
        self.first(sql, [device.hex().as_str()], lease)
    }

    /// The newest lease of an inner address here.
    pub(crate) fn last_lease_of(&self, inner: Ipv4Addr) -> Result<Option<LeaseRecord>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            lease_columns!(),
            " FROM leases l WHERE l.inner4 = ?1 ORDER BY l.started DESC, l.seq DESC LIMIT 1"
        );
        self.first(sql, [inner.to_string()], lease)
    }

    /// A device's leases before a place in the journal, newest first.
    pub(crate) fn leases_of(
        &self,
        device: DeviceId,
        before: i64,
        limit: usize,
    ) -> Result<Vec<LeaseRecord>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            lease_columns!(),
            " FROM leases l WHERE l.device_id = ?1 AND l.seq < ?2 ORDER BY l.seq DESC LIMIT ?3"
        );
        self.rows(sql, params![device.hex().as_str(), before, rows(limit)], lease)
    }

    /// Leases of an address that began no later than `to` and ended no earlier than `from`, the latest first.
    pub(crate) fn leases_at(
        &self,
        address: IpAddr,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<LeaseRecord>, StoreFault> {
        let sql = match address {
            IpAddr::V4(_) => concat!(
                "SELECT ",
                lease_columns!(),
                " FROM leases l WHERE l.inner4 = ?1 AND l.started <= ?2 \
                 ORDER BY l.started DESC, l.seq DESC"
            ),
            IpAddr::V6(_) => concat!(
                "SELECT ",
                lease_columns!(),
                " FROM leases l WHERE l.inner6 = ?1 AND l.started <= ?2 \
                 ORDER BY l.started DESC, l.seq DESC"
            ),
        };
        let address = address.to_string();
        let values = params![address, to.as_millis()];
        // Leases of one address do not overlap: before one that ended too early there are only others that did.
        self.rows_while(sql, values, |row| {
            let lease = lease(row)?;
            Ok(lease.ended.is_none_or(|ended| ended >= from).then_some(lease))
        })
    }

    /// The addresses that were ever leased, each with the end of its last lease, in the order of these ends; those of
    /// open leases have none.
    pub(crate) fn known_addresses(&self) -> Result<Vec<(Inner, Option<Timestamp>)>, StoreFault> {
        let v4 = self.rows(last_leases!("inner4"), [], |row| {
            Ok((Inner { v4: parsed_option(row, 0)?, v6: None }, time_option(row, 1)?, row.get(2)?))
        })?;
        let v6 = self.rows(last_leases!("inner6"), [], |row| {
            Ok((Inner { v4: None, v6: parsed_option(row, 0)? }, time_option(row, 1)?, row.get(2)?))
        })?;
        let mut known: Vec<(Inner, Option<Timestamp>, i64)> = [v4, v6].concat();
        known.sort_by_key(|&(_, ended, seq)| (ended, seq));
        Ok(known.into_iter().map(|(inner, ended, _)| (inner, ended)).collect())
    }

    /// Ends all open sessions of the gateway at `at`, none before it began; gives how many.
    pub(crate) fn end_all_sessions(&self, at: Timestamp, reason: &str) -> Result<u64, StoreFault> {
        let sql = "UPDATE sessions SET ended = max(started, ?1), reason = ?2 WHERE ended IS NULL";
        Ok(self.run(sql, params![at.as_millis(), reason])? as u64)
    }

    /// The open leases of the gateway after a device, by device. Only the last lease of a device can be open.
    pub(crate) fn open_leases(&self, after: &str, limit: usize) -> Result<Vec<LeaseRecord>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            lease_columns!(),
            " FROM devices d CROSS JOIN leases l ON l.seq = (SELECT max(m.seq) FROM leases m WHERE m.device_id = d.id) \
             WHERE d.id > ?1 AND l.ended IS NULL ORDER BY d.id LIMIT ?2"
        );
        self.rows(sql, params![after, rows(limit)], lease)
    }

    /// A device's leases at any moment from `from` to `to`, both included, latest first.
    pub(crate) fn leases_during(
        &self,
        device: DeviceId,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<LeaseRecord>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            lease_columns!(),
            " FROM leases l WHERE l.device_id = ?1 AND l.started <= ?3 AND (l.ended IS NULL OR l.ended >= ?2) \
             ORDER BY l.seq DESC"
        );
        self.rows(sql, params![device.hex().as_str(), from.as_millis(), to.as_millis()], lease)
    }

    /// The sessions at places after `after`, up to `to`, that ended before a moment.
    pub(crate) fn sessions_ended(
        &self,
        after: i64,
        to: i64,
        before: Timestamp,
    ) -> Result<Vec<i64>, StoreFault> {
        let sql = "SELECT seq FROM sessions WHERE seq > ?1 AND seq <= ?2 AND ended < ?3 ORDER BY seq";
        self.rows(sql, params![after, to, before.as_millis()], |row| row.get(0))
    }

    /// The sessions that the leases at places after `after`, up to `to`, are of.
    pub(crate) fn leased_sessions(&self, after: i64, to: i64) -> Result<Vec<SessionId>, StoreFault> {
        let sql = "SELECT session_id FROM leases WHERE seq > ?1 AND seq <= ?2";
        self.rows(sql, [after, to], |row| parsed(row, 0))
    }

    /// Whether a session of these places began at a moment or later.
    pub(crate) fn has_session_since(
        &self,
        after: i64,
        to: i64,
        since: Timestamp,
    ) -> Result<bool, StoreFault> {
        let sql = "SELECT 1 FROM sessions WHERE seq > ?1 AND seq <= ?2 AND started >= ?3 LIMIT 1";
        Ok(self.first(sql, params![after, to, since.as_millis()], |_| Ok(()))?.is_some())
    }

    /// Deletes an ended session.
    pub(crate) fn forget_session(&self, seq: i64) -> Result<(), StoreFault> {
        self.run("DELETE FROM sessions WHERE seq = ?1", [seq])?;
        Ok(())
    }
}
