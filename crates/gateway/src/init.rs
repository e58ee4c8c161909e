//! `adit init`: a configuration, a CA and identities, from nothing.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use adit_host::netlink::Netlink;
use adit_store::Store;

use crate::admin::{Admin, AdminFault, DATABASE};
use crate::config::{self, ConfigFault, InitOptions, Loaded};
use crate::identities::{self, IdentityFault};
use crate::keyring::{Keyring, KeyringFault};
use crate::{clock, config::Config};

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitFault {
    /// There is something already.
    #[error("{} exists already; nothing has been changed", .0.display())]
    Exists(PathBuf),
    /// The directory or file cannot be made.
    #[error("cannot make {}: {error}", path.display())]
    Write {
        /// Directory or file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// What was asked for makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigFault),
    /// Keys and certificates.
    #[error(transparent)]
    Keyring(#[from] KeyringFault),
    /// Identities.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// The database.
    #[error(transparent)]
    State(#[from] AdminFault),
    /// The database.
    #[error(transparent)]
    Open(#[from] adit_store::OpenFault),
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The configuration file.
    pub config: PathBuf,
    /// The addresses in profiles.
    pub public: Vec<String>,
}

/// Makes `dir/adit.toml`, the state directory, the CA and the identities. Overwrites nothing; what was made is removed
/// again if it cannot be completed.
///
/// # Errors
/// [`InitFault`], worded for people.
pub fn init(dir: &Path, mut options: InitOptions) -> Result<Initialised, InitFault> {
    if options.public.is_empty() {
        options.public.extend(own_address().map(|address| address.to_string()));
    }
    let path = dir.join("adit.toml");
    let text = config::render(&options);
    let parsed = config::parse(&text, &path)?;
    let state = dir.join(&parsed.state);
    for existing in [&path, &state] {
        if existing.exists() {
            return Err(InitFault::Exists(existing.clone()));
        }
    }
    let write_fault = |path: &Path| {
        let path = path.to_owned();
        move |error| InitFault::Write { path, error }
    };
    std::fs::create_dir_all(dir).map_err(write_fault(dir))?;
    std::fs::DirBuilder::new().mode(0o700).create(&state).map_err(write_fault(&state))?;
    let result = fill(&state, &parsed).and_then(|()| {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path);
        let written =
            file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(write_fault(&path))
    });
    let result = result.and_then(|()| {
        // The first CRL is there from the beginning, so that it can be handed out.
        let loaded = Loaded::read(&path)?;
        Admin::open(&loaded.path)?.first_crl().map_err(AdminFault::BadPools)?;
        Ok(())
    });
    if let Err(fault) = result {
        let _ = std::fs::remove_dir_all(&state);
        let _ = std::fs::remove_file(&path);
        return Err(fault);
    }
    Ok(Initialised { config: path, public: options.public })
}

fn fill(state: &Path, config: &Config) -> Result<(), InitFault> {
    let keyring = Keyring::create(state, &config.name, &config.ca, clock::unix())?;
    identities::load(&keyring, config, clock::unix())?;
    Store::create(&state.join(DATABASE), clock::now())?;
    Ok(())
}

/// The address this machine reaches the world from, as clients may see it.
pub(crate) fn own_address() -> Option<IpAddr> {
    // Only asks the routing table; nothing is sent.
    let somewhere = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    let route = Netlink::open().ok()?.route_to(somewhere, 0).ok()??;
    route.source.filter(|source| !source.is_loopback())
}
