//! Users.

use serde::{Deserialize, Serialize};

use crate::Time;

/// Adds a user, with a first device if one is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddUser {
    /// The name.
    pub name: String,
    /// Name of a first device.
    #[serde(default)]
    pub device: Option<String>,
    /// Free text.
    #[serde(default)]
    pub note: Option<String>,
}

/// Whether a user may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserState {
    /// Yes.
    Active,
    /// Not before they are resumed.
    Suspended,
    /// Never again.
    Removed,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Stays the same for ever.
    pub id: String,
    /// The name.
    pub name: String,
    /// Whether the user may connect.
    pub state: UserState,
    /// Devices that are not revoked.
    pub devices: u64,
    /// Free text.
    pub note: String,
    /// When the user was added.
    pub created: Time,
}

/// All users, or a page of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserList {
    /// By name.
    pub users: Vec<User>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// A user was removed or suspended, and every session of theirs is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserCut {
    /// The user's name.
    pub user: String,
    /// Sessions that were ended by it.
    pub sessions_closed: u64,
    /// How long it took, from the call until no packet could pass any more.
    pub millis: u64,
}
