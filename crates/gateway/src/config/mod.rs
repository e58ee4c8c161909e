//! `adit.toml`: one file, read as a whole, in which nothing unknown is passed over.

mod duration;
mod model;
mod natfw;
mod ports;
mod services;
mod template;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use model::{
    ApiConfig, CaConfig, Config, EntranceConfig, IdentityConfig, Routes, StoreConfig, TunnelConfig,
    UnknownAnswer, WrapKind,
};
pub use natfw::{NatfwConfig, NatfwProfile};
pub use ports::{Block, ForwardConfig, HostConfig, NatConfig};
pub use services::{BytesConfig, MatchConfig, PatternConfig, ProxyConfig, ServiceConfig};
pub use template::{InitOptions, render};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    /// The file cannot be read.
    #[error("cannot read {}: {error}; `adit init --dir DIR` makes one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file says something that makes no sense.
    #[error("{}:{} {message}", path.display(), line.map(|line| format!("{line}:")).unwrap_or_default())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line number, from 1; `None` when it is about the whole file.
        line: Option<usize>,
        /// What is wrong and what to do.
        message: String,
    },
}

/// A configuration with where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file.
    pub path: PathBuf,
    /// Its content.
    pub config: Config,
}

impl Loaded {
    /// Reads `path`. Paths in it are relative to its directory.
    ///
    /// # Errors
    /// [`ConfigFault`] with file and line.
    pub fn read(path: &Path) -> Result<Self, ConfigFault> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigFault::Read { path: path.to_owned(), error })?;
        Ok(Self { path: path.to_owned(), config: parse(&text, path)? })
    }

    /// Refuses what `adit up` cannot do yet.
    ///
    /// # Errors
    /// [`ConfigFault::Malformed`] that names the table.
    pub(crate) fn refuse_unsupported(&self) -> Result<(), ConfigFault> {
        match self.config.unsupported().into_iter().next() {
            Some(message) => Err(ConfigFault::Malformed { path: self.path.clone(), line: None, message }),
            None => Ok(()),
        }
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.beside(&self.config.state)
    }

    /// The file that the running gateway has locked.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.state().join("lock")
    }

    /// The socket of the API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.beside(&self.config.api.socket)
    }

    /// Where relative paths of the file begin.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.path.parent().map_or_else(PathBuf::new, Path::to_owned)
    }

    /// A path of the file, seen from where the file is.
    fn beside(&self, path: &Path) -> PathBuf {
        self.directory().join(path)
    }
}

/// Parses the text of a configuration; `path` is for messages.
///
/// # Errors
/// [`ConfigFault::Malformed`] with the line, and the nearest right name for an unknown key.
pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigFault> {
    let malformed = |line, message| ConfigFault::Malformed { path: path.to_owned(), line, message };
    let config: Config = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| 1 + before.matches('\n').count());
        let value = error.span().and_then(|span| text.get(span));
        malformed(line, with_value(explain(error.message()), value))
    })?;
    config.validate().map_err(|message| malformed(None, message))?;
    Ok(config)
}

/// Adds the value that a complaint is about, if it is short and the complaint does not show it.
fn with_value(message: String, value: Option<&str>) -> String {
    let bare = |value: &str| value.trim_matches(['"', '\'']).to_owned();
    match value.filter(|value| (1..=60).contains(&value.len()) && !value.contains('\n')) {
        Some(value) if !message.contains(&bare(value)) => format!("{message}: {value}"),
        _ => message,
    }
}

/// Adds the nearest right name to a complaint about an unknown one.
fn explain(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let known_kind = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let (Some(wrong), true) = (quoted.next(), known_kind) else { return message.trim().to_owned() };
    let nearest = quoted
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= 3.max(name.len() / 3));
    let what = if message.starts_with("unknown field") { "key" } else { "value" };
    match nearest {
        Some((_, name)) => format!("unknown {what} `{wrong}`; did you mean `{name}`?"),
        None => message.trim().to_owned(),
    }
}
