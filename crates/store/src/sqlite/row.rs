//! Reading rows into the store's types.

use std::str::FromStr;

use rusqlite::Row;
use rusqlite::types::Type;

use adit_plan::pool::Inner;

use crate::credential::Reason;
use crate::model::{Certificate, Device, LeaseRecord, Revocation, Session, User};
use crate::time::Timestamp;

/// The columns of a user, under the table's alias `u`, as [`user`] reads them.
macro_rules! user_columns {
    () => {
        "u.id, u.name, u.note, u.created, u.suspended_at, u.removed_at"
    };
}
/// The columns of a device, under the table's alias `d`, as [`device`] reads them.
macro_rules! device_columns {
    () => {
        "d.id, d.user_id, d.name, d.note, d.created, d.revoked_at"
    };
}
/// The columns of a certificate `c` with its revocation `r`, as [`certificate`] reads them.
macro_rules! certificate_columns {
    () => {
        "c.issuer, c.serial, c.key_hash, c.device_id, c.not_before, c.not_after, c.der, r.revoked_at, r.reason"
    };
}
/// The columns of a session `s`, as [`session`] reads them.
macro_rules! session_columns {
    () => {
        "s.id, s.gateway_id, s.seq, s.device_id, s.certificate_serial, s.protocol, s.identity, s.transport, \
         s.started, s.ended, s.reason"
    };
}
/// The columns of a lease `l`, as [`lease`] reads them.
macro_rules! lease_columns {
    () => {
        "l.id, l.gateway_id, l.seq, l.device_id, l.session_id, l.inner4, l.inner6, l.started, l.ended"
    };
}
pub(super) use {certificate_columns, device_columns, lease_columns, session_columns, user_columns};

/// How many columns a user takes.
pub(super) const USER_WIDTH: usize = 6;
/// How many columns a device takes.
pub(super) const DEVICE_WIDTH: usize = 6;
/// How many columns a lease takes.
pub(super) const LEASE_WIDTH: usize = 9;
/// How many columns a certificate takes.
pub(super) const CERTIFICATE_WIDTH: usize = 9;

/// A text column that is the written form of a value.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    parse(row.get_ref(column)?.as_str()?, column)
}

/// The same for a column that may be empty.
pub(super) fn parsed_option<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get_ref(column)?.as_str_or_null()?.map(|text| parse(text, column)).transpose()
}

fn parse<T>(text: &str, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    row.get(column).map(Timestamp::from_millis)
}

pub(super) fn time_option(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_millis))
}

/// A user, whose columns begin at `at`.
pub(super) fn user(row: &Row<'_>, at: usize) -> rusqlite::Result<User> {
    Ok(User {
        id: parsed(row, at)?,
        name: parsed(row, at + 1)?,
        note: row.get(at + 2)?,
        created: time(row, at + 3)?,
        suspended: time_option(row, at + 4)?,
        removed: time_option(row, at + 5)?,
    })
}

/// A device, whose columns begin at `at`.
pub(super) fn device(row: &Row<'_>, at: usize) -> rusqlite::Result<Device> {
    Ok(Device {
        id: parsed(row, at)?,
        user: parsed(row, at + 1)?,
        name: parsed(row, at + 2)?,
        note: row.get(at + 3)?,
        created: time(row, at + 4)?,
        revoked: time_option(row, at + 5)?,
    })
}

/// A certificate, whose columns begin at `at`.
pub(super) fn certificate(row: &Row<'_>, at: usize) -> rusqlite::Result<Certificate> {
    Ok(Certificate {
        issuer: parsed(row, at)?,
        serial: parsed(row, at + 1)?,
        key: parsed(row, at + 2)?,
        device: parsed(row, at + 3)?,
        not_before: time(row, at + 4)?,
        not_after: time(row, at + 5)?,
        der: row.get(at + 6)?,
        revocation: time_option(row, at + 7)?.map(|_| revocation(row, at + 7)).transpose()?,
    })
}

/// A revocation in the columns `at` and `at + 1`.
pub(super) fn revocation(row: &Row<'_>, at: usize) -> rusqlite::Result<Revocation> {
    let code: u8 = row.get(at + 1)?;
    let reason =
        Reason::from_code(code).ok_or(rusqlite::Error::IntegralValueOutOfRange(at + 1, i64::from(code)))?;
    Ok(Revocation { at: time(row, at)?, reason })
}

pub(super) fn session(row: &Row<'_>) -> rusqlite::Result<Session> {
    Ok(Session {
        id: parsed(row, 0)?,
        gateway: parsed(row, 1)?,
        seq: row.get(2)?,
        device: parsed(row, 3)?,
        certificate: parsed_option(row, 4)?,
        protocol: row.get(5)?,
        identity: row.get(6)?,
        transport: row.get(7)?,
        started: time(row, 8)?,
        ended: time_option(row, 9)?,
        reason: row.get(10)?,
    })
}

pub(super) fn lease(row: &Row<'_>) -> rusqlite::Result<LeaseRecord> {
    Ok(LeaseRecord {
        id: parsed(row, 0)?,
        gateway: parsed(row, 1)?,
        seq: row.get(2)?,
        device: parsed(row, 3)?,
        session: parsed(row, 4)?,
        inner: Inner { v4: parsed_option(row, 5)?, v6: parsed_option(row, 6)? },
        block: None,
        started: time(row, 7)?,
        ended: time_option(row, 8)?,
    })
}
