//! Devices and the networks behind them.

use adit_plan::pool::{Allocator, Pools};
use adit_plan::prefix;
use ipnet::IpNet;
use serde_json::json;

use crate::audit::{self, Entry};
use crate::credential::Reason;
use crate::fault::{ChangeFault, StoreFault};
use crate::forwards;
use crate::id::{DeviceId, UserId};
use crate::model::{Certificate, CertificateState, Change, Device, DeviceRow, Revocation};
use crate::name::Name;
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::{Durability, Sql};
use crate::store::{State, Store, bounded};
use crate::time::Timestamp;
use crate::users::{LONGEST_NOTE, present};

/// What [`Store::add_device`] adds.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewDevice<'a> {
    /// Its name, unique among the user's devices that are not revoked.
    pub name: &'a str,
    /// Free text for operators.
    pub note: &'a str,
    /// The networks behind it.
    pub prefixes: &'a [IpNet],
}

impl Store {
    /// Adds a device to a user who is not removed. The name of a revoked device can be used again.
    pub fn add_device(
        &self,
        change: &Change<'_>,
        user: UserId,
        new: &NewDevice<'_>,
    ) -> Result<Device, ChangeFault> {
        let name = Name::new(new.name)?;
        bounded("the note", new.note, LONGEST_NOTE)?;
        self.change_knowing_pools(change, |sql, pools| {
            let owner = present(sql, user)?;
            if let Some(other) = sql.device_named(user, &name)? {
                return Err(ChangeFault::NameTaken { what: "device", name: other.name.into() });
            }
            let (id, note) = (DeviceId::random()?, new.note.to_owned());
            let device = Device { id, user, name, note, created: change.now, revoked: None };
            sql.insert_device(&device)?;
            let prefixes = fitting(sql, id, new.prefixes, pools)?;
            sql.set_prefixes(id, &prefixes)?;
            let subject = format!("{}/{}", owner.name, device.name);
            let entry = Entry::new("device.add", subject, json!({ "id": id, "prefixes": prefixes }));
            Ok((device, Some(entry)))
        })
    }

    /// The device with this id, revoked or not.
    pub fn device(&self, id: DeviceId) -> Result<Option<Device>, StoreFault> {
        self.read(|sql| sql.device(id))
    }

    /// The user's device with this name, whatever its case, that is not revoked. A text that is no name names none.
    pub fn device_by_name(&self, user: UserId, name: &str) -> Result<Option<Device>, StoreFault> {
        let Ok(name) = Name::new(name) else {
            return Ok(None);
        };
        self.read(|sql| sql.device_named(user, &name))
    }

    /// Devices by their users' names and their own, of one user or of all, with or without those that are revoked.
    /// `now` decides which certificates have expired.
    pub fn devices(
        &self,
        user: Option<UserId>,
        revoked: bool,
        now: Timestamp,
        page: &Page,
    ) -> Result<Listed<DeviceRow>, StoreFault> {
        let ([user_key, name_key, id], limit) = (page.text_keys()?, page.limit());
        let rows = self.read(|sql| {
            let devices = match user {
                Some(user) => sql.devices_of(user, [name_key, id], revoked, limit + 1)?,
                None => sql.devices([user_key, name_key, id], revoked, limit + 1)?,
            };
            let row = |(device, user): (Device, Name)| {
                let prefixes = sql.prefixes(device.id)?;
                let certificate = state(&sql.certificates_of(device.id)?, now);
                Ok(DeviceRow { device, user, prefixes, certificate })
            };
            devices.into_iter().map(row).collect::<Result<_, StoreFault>>()
        })?;
        Ok(Listed::new(rows, limit, |row: &DeviceRow| {
            Cursor::at(&[&row.user.key(), &row.device.name.key(), row.device.id.hex().as_str()])
        }))
    }

    /// Revokes a device for good, and its certificates with it; its forwards end. Gives the device as it is now; revoking twice changes
    /// nothing. Open sessions are not touched: the caller cuts them. None is opened any more after this returns.
    pub fn revoke_device(
        &self,
        change: &Change<'_>,
        id: DeviceId,
        reason: Reason,
    ) -> Result<Device, ChangeFault> {
        self.change(change, |sql| {
            let device = sql.device(id)?.ok_or(ChangeFault::NotFound("device"))?;
            if device.revoked.is_some() {
                return Ok((device, None));
            }
            let certificates = revoke(sql, id, change.now, reason)?;
            let subject = full_name(sql, &device)?;
            let detail = json!({ "id": id, "certificates": certificates, "reason": reason });
            let device = Device { revoked: Some(change.now), ..device };
            Ok((device, Some(Entry::new("device.revoke", subject, detail))))
        })
    }

    /// The networks behind a device, sorted.
    pub fn prefixes(&self, device: DeviceId) -> Result<Vec<IpNet>, StoreFault> {
        self.read(|sql| sql.prefixes(device))
    }

    /// Sets the networks behind a device that is not revoked; what was set before is replaced. Gives them sorted,
    /// each once.
    pub fn set_prefixes(
        &self,
        change: &Change<'_>,
        id: DeviceId,
        prefixes: &[IpNet],
    ) -> Result<Vec<IpNet>, ChangeFault> {
        self.change_knowing_pools(change, |sql, pools| {
            let device = usable(sql, id)?;
            let prefixes = fitting(sql, id, prefixes, pools)?;
            if sql.prefixes(id)? == prefixes {
                return Ok((prefixes, None));
            }
            sql.set_prefixes(id, &prefixes)?;
            let entry =
                Entry::new("device.prefixes", full_name(sql, &device)?, json!({ "prefixes": prefixes }));
            Ok((prefixes, Some(entry)))
        })
    }

    /// A change that has to fit the pools, if they are set.
    fn change_knowing_pools<T>(
        &self,
        change: &Change<'_>,
        work: impl FnOnce(&Sql<'_>, Option<&Pools>) -> Result<(T, Option<Entry>), ChangeFault>,
    ) -> Result<T, ChangeFault> {
        let mut state = self.state();
        let State { db, allocator, .. } = &mut *state;
        let pools = allocator.as_ref().map(Allocator::pools);
        db.transaction(Durability::Now, |sql| {
            let (result, entry) = work(sql, pools)?;
            if let Some(entry) = entry {
                audit::append(sql, change, &entry)?;
            }
            Ok(result)
        })
    }
}

/// The device, which must not be revoked.
pub(crate) fn usable(sql: &Sql<'_>, id: DeviceId) -> Result<Device, ChangeFault> {
    sql.device(id)?.filter(|device| device.revoked.is_none()).ok_or(ChangeFault::NotFound("device"))
}

/// Revokes a device and its certificates, and ends its forwards, within the transaction of a larger change; gives how
/// many certificates.
pub(crate) fn revoke(sql: &Sql<'_>, id: DeviceId, at: Timestamp, reason: Reason) -> Result<u64, StoreFault> {
    sql.set_device_revoked(id, at)?;
    forwards::end_all_of(sql, id, at)?;
    let mut revoked = 0;
    for certificate in sql.certificates_of(id)?.iter().filter(|certificate| certificate.revocation.is_none())
    {
        sql.insert_revocation(&certificate.issuer, &certificate.serial, Revocation { at, reason })?;
        revoked += 1;
    }
    Ok(revoked)
}

/// The device's name as `user/device`.
pub(crate) fn full_name(sql: &Sql<'_>, device: &Device) -> Result<String, StoreFault> {
    let owner = sql.user(device.user)?;
    let owner = owner.as_ref().map_or("?", |user| user.name.as_str());
    Ok(format!("{owner}/{}", device.name))
}

/// Checks prefixes for a device against the pools and the prefixes of all other devices.
fn fitting(
    sql: &Sql<'_>,
    device: DeviceId,
    wanted: &[IpNet],
    pools: Option<&Pools>,
) -> Result<Vec<IpNet>, ChangeFault> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let all = sql.all_prefixes()?;
    let others =
        all.iter().filter(|(owner, ..)| *owner != device).map(|(_, name, prefix)| (name.as_str(), *prefix));
    Ok(prefix::check(wanted, pools, others)?)
}

/// How a device stands with these certificates, of which the first lasts longest.
fn state(certificates: &[Certificate], now: Timestamp) -> CertificateState {
    let unrevoked = certificates.iter().find(|certificate| certificate.revocation.is_none());
    match (unrevoked, certificates.first()) {
        (Some(Certificate { serial, not_after, .. }), _) if *not_after > now => {
            CertificateState::Valid { serial: serial.clone(), not_after: *not_after }
        }
        (Some(Certificate { serial, not_after, .. }), _) => {
            CertificateState::Expired { serial: serial.clone(), not_after: *not_after }
        }
        (None, Some(Certificate { serial, revocation: Some(revocation), .. })) => {
            CertificateState::Revoked { serial: serial.clone(), revocation: *revocation }
        }
        _ => CertificateState::None,
    }
}

#[cfg(test)]
mod tests;
