//! Users, devices, prefixes and settings.

use ipnet::IpNet;
use rusqlite::params;

use super::row::{DEVICE_WIDTH, USER_WIDTH, device, device_columns, parsed, user, user_columns};
use super::{Sql, rows};
use crate::fault::StoreFault;
use crate::id::{DeviceId, UserId};
use crate::model::{Device, User, UserRow};
use crate::name::Name;
use crate::time::Timestamp;

impl Sql<'_> {
    pub(crate) fn setting(&self, key: &str) -> Result<Option<String>, StoreFault> {
        self.first("SELECT value FROM settings WHERE key = ?1", [key], |row| row.get(0))
    }

    pub(crate) fn set_setting(&self, key: &str, value: Option<&str>) -> Result<(), StoreFault> {
        match value {
            Some(value) => {
                let sql = "INSERT INTO settings (key, value) VALUES (?1, ?2) \
                           ON CONFLICT (key) DO UPDATE SET value = excluded.value";
                self.run(sql, [key, value])?;
            }
            None => {
                self.run("DELETE FROM settings WHERE key = ?1", [key])?;
            }
        }
        Ok(())
    }

    pub(crate) fn insert_user(&self, user: &User) -> Result<(), StoreFault> {
        let sql = "INSERT INTO users (id, name, name_key, note, created) VALUES (?1, ?2, ?3, ?4, ?5)";
        let (id, name) = (user.id.hex(), user.name.as_str());
        self.run(sql, params![id.as_str(), name, user.name.key(), user.note, user.created.as_millis()])?;
        Ok(())
    }

    pub(crate) fn user(&self, id: UserId) -> Result<Option<User>, StoreFault> {
        let sql = concat!("SELECT ", user_columns!(), " FROM users u WHERE u.id = ?1");
        self.first(sql, [id.hex().as_str()], |row| user(row, 0))
    }

    /// The user of this name who is not removed.
    pub(crate) fn user_named(&self, name: &Name) -> Result<Option<User>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            user_columns!(),
            " FROM users u WHERE u.name_key = ?1 AND u.removed_at IS NULL"
        );
        self.first(sql, [name.key()], |row| user(row, 0))
    }

    /// Users after the keys (name, id), by name.
    pub(crate) fn users(
        &self,
        [name, id]: [&str; 2],
        removed: bool,
        limit: usize,
    ) -> Result<Vec<UserRow>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            user_columns!(),
            ", (SELECT count(*) FROM devices d WHERE d.user_id = u.id AND d.revoked_at IS NULL) \
             FROM users u WHERE (u.name_key, u.id) > (?1, ?2) AND (?3 OR u.removed_at IS NULL) \
             ORDER BY u.name_key, u.id LIMIT ?4"
        );
        self.rows(sql, params![name, id, removed, rows(limit)], |row| {
            Ok(UserRow { user: user(row, 0)?, devices: row.get::<_, u32>(USER_WIDTH)?.into() })
        })
    }

    pub(crate) fn set_suspended(&self, id: UserId, since: Option<Timestamp>) -> Result<(), StoreFault> {
        let sql = "UPDATE users SET suspended_at = ?2 WHERE id = ?1";
        self.run(sql, params![id.hex().as_str(), since.map(Timestamp::as_millis)])?;
        Ok(())
    }

    pub(crate) fn set_removed(&self, id: UserId, at: Timestamp) -> Result<(), StoreFault> {
        self.run(
            "UPDATE users SET removed_at = ?2 WHERE id = ?1",
            params![id.hex().as_str(), at.as_millis()],
        )?;
        Ok(())
    }

    pub(crate) fn insert_device(&self, device: &Device) -> Result<(), StoreFault> {
        let sql = "INSERT INTO devices (id, user_id, name, name_key, note, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let (id, user) = (device.id.hex(), device.user.hex());
        let (name, created) = (&device.name, device.created.as_millis());
        self.run(sql, params![id.as_str(), user.as_str(), name.as_str(), name.key(), device.note, created])?;
        Ok(())
    }

    pub(crate) fn device(&self, id: DeviceId) -> Result<Option<Device>, StoreFault> {
        let sql = concat!("SELECT ", device_columns!(), " FROM devices d WHERE d.id = ?1");
        self.first(sql, [id.hex().as_str()], |row| device(row, 0))
    }

    /// The user's device of this name that is not revoked.
    pub(crate) fn device_named(&self, user: UserId, name: &Name) -> Result<Option<Device>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            device_columns!(),
            " FROM devices d WHERE d.user_id = ?1 AND d.name_key = ?2 AND d.revoked_at IS NULL"
        );
        self.first(sql, [user.hex().as_str(), &name.key()], |row| device(row, 0))
    }

    /// The user's devices that are not revoked.
    pub(crate) fn active_devices(&self, user: UserId) -> Result<Vec<DeviceId>, StoreFault> {
        let sql = "SELECT id FROM devices WHERE user_id = ?1 AND revoked_at IS NULL ORDER BY name_key";
        self.rows(sql, [user.hex().as_str()], |row| parsed(row, 0))
    }

    /// Devices of all users after the keys (user's name, device's name, id), by these, with their users' names.
    pub(crate) fn devices(
        &self,
        [user, name, id]: [&str; 3],
        revoked: bool,
        limit: usize,
    ) -> Result<Vec<(Device, Name)>, StoreFault> {
        // The first condition repeats part of the second: it is the one an index can serve.
        let sql = concat!(
            "SELECT ",
            device_columns!(),
            ", u.name FROM users u CROSS JOIN devices d ON d.user_id = u.id \
             WHERE u.name_key >= ?1 AND (u.name_key, d.name_key, d.id) > (?1, ?2, ?3) \
             AND (?4 OR d.revoked_at IS NULL) ORDER BY u.name_key, d.name_key, d.id LIMIT ?5"
        );
        self.rows(sql, params![user, name, id, revoked, rows(limit)], |row| {
            Ok((device(row, 0)?, parsed(row, DEVICE_WIDTH)?))
        })
    }

    /// Devices of one user after the keys (name, id), by these.
    pub(crate) fn devices_of(
        &self,
        user: UserId,
        [name, id]: [&str; 2],
        revoked: bool,
        limit: usize,
    ) -> Result<Vec<(Device, Name)>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            device_columns!(),
            ", u.name FROM devices d CROSS JOIN users u ON u.id = d.user_id \
             WHERE d.user_id = ?1 AND (d.name_key, d.id) > (?2, ?3) \
             AND (?4 OR d.revoked_at IS NULL) ORDER BY d.name_key, d.id LIMIT ?5"
        );
        let user = user.hex();
        self.rows(sql, params![user.as_str(), name, id, revoked, rows(limit)], |row| {
            Ok((device(row, 0)?, parsed(row, DEVICE_WIDTH)?))
        })
    }

    pub(crate) fn set_device_revoked(&self, id: DeviceId, at: Timestamp) -> Result<(), StoreFault> {
        self.run(
            "UPDATE devices SET revoked_at = ?2 WHERE id = ?1",
            params![id.hex().as_str(), at.as_millis()],
        )?;
        Ok(())
    }

    pub(crate) fn prefixes(&self, device: DeviceId) -> Result<Vec<IpNet>, StoreFault> {
        let sql = "SELECT prefix FROM device_prefixes WHERE device_id = ?1";
        let mut prefixes: Vec<IpNet> = self.rows(sql, [device.hex().as_str()], |row| parsed(row, 0))?;
        prefixes.sort_unstable();
        Ok(prefixes)
    }

    /// The prefixes behind all devices that are not revoked, each with its device and the device's full name.
    pub(crate) fn all_prefixes(&self) -> Result<Vec<(DeviceId, String, IpNet)>, StoreFault> {
        let sql = "SELECT d.id, u.name || '/' || d.name, p.prefix FROM device_prefixes p \
                   JOIN devices d ON d.id = p.device_id JOIN users u ON u.id = d.user_id WHERE d.revoked_at IS NULL";
        self.rows(sql, [], |row| Ok((parsed(row, 0)?, row.get(1)?, parsed(row, 2)?)))
    }

    pub(crate) fn set_prefixes(&self, device: DeviceId, prefixes: &[IpNet]) -> Result<(), StoreFault> {
        let device = device.hex();
        self.run("DELETE FROM device_prefixes WHERE device_id = ?1", [device.as_str()])?;
        for prefix in prefixes {
            let sql = "INSERT INTO device_prefixes (device_id, prefix) VALUES (?1, ?2)";
            self.run(sql, [device.as_str(), &prefix.to_string()])?;
        }
        Ok(())
    }
}
