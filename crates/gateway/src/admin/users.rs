//! Users.

use std::time::Instant;

use adit_api::{AddDevice, AddUser, Problem, Time, User, UserCut, UserList, UserState};
use adit_openvpn::machine::Farewell;
use adit_store::{DeviceId, Page, UserId};

use super::{Admin, internal, millis, not_found, refused};
use crate::control::Which;

impl Admin {
    /// Adds a user, with a first device if one is named; if the device cannot be added, the user is not either.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub async fn add_user(&self, request: AddUser) -> Result<User, Problem> {
        let note = request.note.as_deref().unwrap_or("");
        let user = self.store.add_user(&self.change(), &request.name, note).map_err(refused)?;
        if let Some(device) = request.device {
            let request =
                AddDevice { user: request.name.clone(), device, csr: None, prefixes: Vec::new(), note: None };
            if let Err(problem) = self.add_device(request).await {
                self.store.remove_user(&self.change(), user.id).map_err(refused)?;
                return Err(problem);
            }
        }
        self.user(user.id)
    }

    /// All users, or a page of them.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub fn users(&self, page: &Page) -> Result<UserList, Problem> {
        let listed = self.store.users(false, page).map_err(internal)?;
        Ok(UserList {
            users: listed.items.into_iter().map(|row| describe(&row.user, row.devices)).collect(),
            next: listed.next.map(|cursor| cursor.to_string()),
        })
    }

    /// Removes a user for good and cuts all their sessions.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub async fn remove_user(&self, name: &str) -> Result<UserCut, Problem> {
        let started = Instant::now();
        let id = self.user_id(name)?;
        let devices = self.devices_of(id)?;
        self.store.remove_user(&self.change(), id).map_err(refused)?;
        let farewell = Farewell::AuthFailed("the user was removed".into());
        let sessions_closed = self.cut(Which::User(id), farewell).await?;
        let cut = UserCut { user: name.to_owned(), sessions_closed, millis: millis(started) };
        for device in devices {
            self.keyring().forget_device_key(device).map_err(internal)?;
        }
        self.publish_crl()?;
        self.apply_sites()?;
        Ok(cut)
    }

    /// Suspends a user and cuts all their sessions.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub async fn suspend_user(&self, name: &str) -> Result<UserCut, Problem> {
        let started = Instant::now();
        let id = self.user_id(name)?;
        self.store.suspend_user(&self.change(), id).map_err(refused)?;
        let farewell = Farewell::AuthFailed("the user is suspended".into());
        let sessions_closed = self.cut(Which::User(id), farewell).await?;
        Ok(UserCut { user: name.to_owned(), sessions_closed, millis: millis(started) })
    }

    /// Lets a suspended user in again.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub fn resume_user(&self, name: &str) -> Result<User, Problem> {
        let id = self.user_id(name)?;
        self.store.resume_user(&self.change(), id).map_err(refused)?;
        self.user(id)
    }

    pub(super) fn user_id(&self, name: &str) -> Result<UserId, Problem> {
        let user = self.store.user_by_name(name).map_err(internal)?;
        user.map(|user| user.id).ok_or_else(|| not_found("user", name))
    }

    fn user(&self, id: UserId) -> Result<User, Problem> {
        let user = self.store.user(id).map_err(internal)?.ok_or_else(|| internal("the user vanished"))?;
        Ok(describe(&user, self.devices_of(id)?.len() as u64))
    }

    /// All devices of a user that are not revoked.
    fn devices_of(&self, user: UserId) -> Result<Vec<DeviceId>, Problem> {
        let mut devices = Vec::new();
        let mut page = Page::after(None, adit_store::LARGEST_PAGE);
        loop {
            let listed =
                self.store.devices(Some(user), false, crate::clock::now(), &page).map_err(internal)?;
            devices.extend(listed.items.into_iter().map(|row| row.device.id));
            match listed.next {
                Some(next) => page.after = Some(next),
                None => return Ok(devices),
            }
        }
    }
}

fn describe(user: &adit_store::User, devices: u64) -> User {
    User {
        id: user.id.to_string(),
        name: user.name.to_string(),
        state: match (user.removed, user.suspended) {
            (Some(_), _) => UserState::Removed,
            (None, Some(_)) => UserState::Suspended,
            (None, None) => UserState::Active,
        },
        devices,
        note: user.note.clone(),
        created: Time::from_millis(user.created.as_millis()),
    }
}
