//! Users.

use serde_json::json;

use crate::audit::Entry;
use crate::credential::Reason;
use crate::devices;
use crate::fault::{ChangeFault, StoreFault};
use crate::id::UserId;
use crate::model::{Change, User, UserRow};
use crate::name::Name;
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::Sql;
use crate::store::{Store, bounded};

/// The longest note on a user or device.
pub(crate) const LONGEST_NOTE: usize = 1024;

impl Store {
    /// Adds a user. The name of a removed user can be used again.
    pub fn add_user(&self, change: &Change<'_>, name: &str, note: &str) -> Result<User, ChangeFault> {
        let name = Name::new(name)?;
        bounded("the note", note, LONGEST_NOTE)?;
        self.change(change, |sql| {
            if let Some(other) = sql.user_named(&name)? {
                return Err(ChangeFault::NameTaken { what: "user", name: other.name.into() });
            }
            let (id, note) = (UserId::random()?, note.to_owned());
            let user = User { id, name, note, created: change.now, suspended: None, removed: None };
            sql.insert_user(&user)?;
            let entry = Entry::new("user.add", user.name.as_str(), json!({ "id": id }));
            Ok((user, Some(entry)))
        })
    }

    /// The user with this id, removed or not.
    pub fn user(&self, id: UserId) -> Result<Option<User>, StoreFault> {
        self.read(|sql| sql.user(id))
    }

    /// The user with this name, whatever its case, who is not removed. A text that is no name names nobody.
    pub fn user_by_name(&self, name: &str) -> Result<Option<User>, StoreFault> {
        let Ok(name) = Name::new(name) else {
            return Ok(None);
        };
        self.read(|sql| sql.user_named(&name))
    }

    /// Users by name, with or without those that are removed.
    pub fn users(&self, removed: bool, page: &Page) -> Result<Listed<UserRow>, StoreFault> {
        let (keys, limit) = (page.text_keys()?, page.limit());
        let rows = self.read(|sql| sql.users(keys, removed, limit + 1))?;
        Ok(Listed::new(rows, limit, |row: &UserRow| {
            Cursor::at(&[&row.user.name.key(), row.user.id.hex().as_str()])
        }))
    }

    /// Keeps a user out until [`resume_user`](Self::resume_user). Gives the user as it is now; suspending twice
    /// changes nothing. Open sessions are not touched: the caller cuts them, see
    /// [`open_sessions_of`](Self::open_sessions_of).
    pub fn suspend_user(&self, change: &Change<'_>, id: UserId) -> Result<User, ChangeFault> {
        self.change(change, |sql| {
            let mut user = present(sql, id)?;
            if user.suspended.is_some() {
                return Ok((user, None));
            }
            user.suspended = Some(change.now);
            sql.set_suspended(id, user.suspended)?;
            let entry = Entry::new("user.suspend", user.name.as_str(), json!({ "id": id }));
            Ok((user, Some(entry)))
        })
    }

    /// Lets a suspended user in again. Gives the user as it is now; resuming twice changes nothing.
    pub fn resume_user(&self, change: &Change<'_>, id: UserId) -> Result<User, ChangeFault> {
        self.change(change, |sql| {
            let mut user = present(sql, id)?;
            if user.suspended.is_none() {
                return Ok((user, None));
            }
            user.suspended = None;
            sql.set_suspended(id, None)?;
            let entry = Entry::new("user.resume", user.name.as_str(), json!({ "id": id }));
            Ok((user, Some(entry)))
        })
    }

    /// Removes a user for good and revokes all its devices and their certificates; their forwards end, all at once. Gives the user as it
    /// is now; removing twice changes nothing. Open sessions are not touched: the caller cuts them, see
    /// [`open_sessions_of`](Self::open_sessions_of). None is opened any more after this returns.
    pub fn remove_user(&self, change: &Change<'_>, id: UserId) -> Result<User, ChangeFault> {
        self.change(change, |sql| {
            let mut user = sql.user(id)?.ok_or(ChangeFault::NotFound("user"))?;
            if user.removed.is_some() {
                return Ok((user, None));
            }
            user.removed = Some(change.now);
            sql.set_removed(id, change.now)?;
            let active = sql.active_devices(id)?;
            let mut certificates = 0;
            for &device in &active {
                certificates += devices::revoke(sql, device, change.now, Reason::CessationOfOperation)?;
            }
            let detail = json!({ "id": id, "devices": active.len(), "certificates": certificates });
            let entry = Entry::new("user.remove", user.name.as_str(), detail);
            Ok((user, Some(entry)))
        })
    }
}

/// The user, who must not be removed.
pub(crate) fn present(sql: &Sql<'_>, id: UserId) -> Result<User, ChangeFault> {
    sql.user(id)?.filter(|user| user.removed.is_none()).ok_or(ChangeFault::NotFound("user"))
}

#[cfg(test)]
mod tests;
