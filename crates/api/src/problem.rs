//! Errors, as problem details (RFC 9457).

use serde::{Deserialize, Serialize};

/// Content type of a [`Problem`].
pub const PROBLEM_TYPE: &str = "application/problem+json";

/// Why a call was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `about:blank`: the status says the kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status.
    pub status: u16,
    /// Short name of the status.
    pub title: String,
    /// What went wrong and what to do.
    pub detail: String,
}

impl Problem {
    /// A problem with this status.
    #[must_use]
    pub fn new(status: u16, title: &str, detail: impl Into<String>) -> Self {
        Self { kind: "about:blank".into(), status, title: title.to_owned(), detail: detail.into() }
    }
}
