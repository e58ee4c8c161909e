//! What an administrator can do, as plain calls: the API serves them, and without a running gateway the command line
//! makes them itself.

mod authority;
mod devices;
mod entrances;
mod forwards;
mod identities;
mod profiles;
mod reload;
mod sessions;
mod trace;
mod users;

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use adit_api::Problem;
use adit_engine::{Command, Engine};
use adit_entrance::Reception;
use adit_openvpn::gate::{Gate, IdentityId};
use adit_openvpn::machine::Farewell;
use adit_plan::nat::Layout;
use adit_store::{Change, ChangeFault, OpenFault, Page, Store, StoreFault};
use tokio::sync::oneshot;

pub use self::profiles::{ProfileOptions, ProfileRoute, ProfileTransport};
use crate::clock;
use crate::config::{Config, ConfigFault, Loaded};
use crate::control::{Control, IdentityPlan, Message, Which};
use crate::desk::Ask;
use crate::identities::{IdentityFault, Numbering, SharedGate};
use crate::keyring::{Keyring, KeyringFault};
use crate::machine_state::Machine;
use crate::sites::Sites;
use crate::switch::{self, Rules, Switch};

/// Name of the database in the state directory.
pub(crate) const DATABASE: &str = "adit.db";

/// See the module's text.
pub struct Admin {
    store: Store,
    keyring: Keyring,
    loaded: RwLock<Arc<Loaded>>,
    sites: Sites,
    live: Option<Live>,
    /// Calls that read a file, or all that is revoked, and write something made of it, one at a time.
    files: Mutex<()>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("live", &self.live.is_some()).finish_non_exhaustive()
    }
}

/// What there is only while the gateway runs.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) control: Control,
    pub(crate) desk: Sender<Ask>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) gate: SharedGate,
    pub(crate) switch: Arc<Switch>,
    pub(crate) reception: Arc<Reception>,
    pub(crate) numbering: Numbering,
    pub(crate) since: adit_store::Timestamp,
}

/// Identities and back ends, ready to be put in force.
struct Prepared {
    gate: Arc<Gate>,
    plans: HashMap<IdentityId, IdentityPlan>,
    rules: Rules,
}

/// Why state cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminFault {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigFault),
    /// Keys and certificates.
    #[error(transparent)]
    Keyring(#[from] KeyringFault),
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenFault),
    /// The database, later.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// The pools do not fit what the database holds.
    #[error(transparent)]
    Pools(#[from] adit_store::PoolsFault),
    /// The pools themselves.
    #[error("{0}")]
    BadPools(String),
}

impl Admin {
    /// Opens the state that `config` names, without a running gateway.
    ///
    /// # Errors
    /// [`AdminFault`], worded for the operator.
    pub fn open(config: &Path) -> Result<Self, AdminFault> {
        let loaded = Loaded::read(config)?;
        let state = loaded.state();
        let keyring = Keyring::open(&state)?;
        let store = Store::open(&state.join(DATABASE))?;
        store.set_pools(loaded.config.tunnel.pools().map_err(AdminFault::BadPools)?)?;
        Self::with(loaded, store, keyring, Sites::default(), None)
    }

    pub(crate) fn with(
        loaded: Loaded,
        store: Store,
        keyring: Keyring,
        sites: Sites,
        live: Option<Live>,
    ) -> Result<Self, AdminFault> {
        sites.refresh(&store)?;
        Ok(Self {
            store,
            keyring,
            loaded: RwLock::new(Arc::new(loaded)),
            sites,
            live,
            files: Mutex::default(),
        })
    }

    /// Makes the CRL that is there from the beginning.
    pub(crate) fn first_crl(&self) -> Result<(), String> {
        self.publish_crl().map_err(|problem| problem.detail)
    }

    pub(crate) fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn live(&self) -> Option<&Live> {
        self.live.as_ref()
    }

    pub(crate) fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    fn files(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> Change<'static> {
        Change { actor: "operator", now: clock::now() }
    }

    /// Closes sessions and returns how many, when no packet of theirs passes any more. Of users and devices that are
    /// not to come again nothing is left then: no address, no port, no connection.
    async fn cut(&self, which: Which, farewell: Farewell) -> Result<u64, Problem> {
        let Some(live) = &self.live else { return Ok(0) };
        let (reply, answer) = oneshot::channel();
        // By way of the desk: behind the logins it has decided already.
        let message = Ask::Forward(Box::new(Message::Close(which.clone(), farewell, reply)));
        let gone = || unavailable("the gateway is shutting down");
        live.desk.send(message).map_err(|_| gone())?;
        let closed = answer.await.map_err(|_| gone())?;
        let (done, settled) = oneshot::channel();
        live.desk.send(Ask::Settle { which, done }).map_err(|_| gone())?;
        settled.await.map_err(|_| gone())?;
        Ok(closed)
    }

    /// The machine's routes and rules follow the networks behind devices.
    fn apply_sites(&self) -> Result<(), Problem> {
        self.apply_to_machine(&self.loaded().config, self.store.nat())
    }

    /// The machine follows a configuration with its layout of source ports, and the networks behind devices.
    fn apply_to_machine(&self, config: &Config, layout: Option<Layout>) -> Result<(), Problem> {
        self.sites.refresh(&self.store).map_err(internal)?;
        let Some(live) = &self.live else { return Ok(()) };
        live.machine.apply_with(config, &self.sites.all(), layout).map_err(internal)
    }

    /// Puts new identities and back ends in force.
    fn use_identities(&self, loaded: &Loaded) -> Result<(), IdentityFault> {
        self.prepare(loaded).map(|prepared| self.put_in_force(prepared))
    }

    /// Loads identities and back ends; whatever may fail. `None` when no gateway runs.
    fn prepare(&self, loaded: &Loaded) -> Result<Option<Prepared>, IdentityFault> {
        let identities = crate::identities::load(&self.keyring, &loaded.config, clock::unix())?;
        let Some(live) = &self.live else { return Ok(None) };
        let (gate, plans) = live.numbering.plan(&self.keyring, &identities, &loaded.config.tunnel)?;
        let wraps = crate::identities::wraps(&identities);
        let old = live.switch.rules();
        let rules = switch::rules(&loaded.config, &loaded.directory(), &wraps, old.backends())
            .map_err(IdentityFault::Services)?;
        Ok(Some(Prepared { gate: Arc::new(gate), plans, rules }))
    }

    fn put_in_force(&self, prepared: Option<Prepared>) {
        let (Some(live), Some(Prepared { gate, plans, rules })) = (&self.live, prepared) else { return };
        live.switch.set(rules);
        live.control.tell(Message::Identities(plans));
        live.gate.set(Arc::clone(&gate));
        live.engine.tell(Command::Gate(Some(gate)));
    }

    /// Makes the CRL anew from what is revoked.
    fn publish_crl(&self) -> Result<(), Problem> {
        let issuer = self.issuer()?;
        // Else a list made before the newest revocation could be the last one written.
        let _one_at_a_time = self.files();
        let mut revoked = Vec::new();
        let mut page = Page::after(None, adit_store::LARGEST_PAGE);
        loop {
            let listed = self.store.revocations(&issuer, &page).map_err(internal)?;
            for row in listed.items {
                revoked.push(adit_pki::Revoked {
                    serial: row.serial.as_str().parse().map_err(internal)?,
                    time: adit_pki::UnixTime::from_secs(row.revocation.at.as_millis().max(0) as u64 / 1000),
                    reason: crl_reason(row.revocation.reason),
                });
            }
            match listed.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        let number = self.store.next_crl_number(&issuer).map_err(internal)?;
        self.keyring.write_crl(&revoked, number, clock::unix()).map_err(internal)?;
        Ok(())
    }

    /// The CA's name in the database.
    fn issuer(&self) -> Result<adit_store::Issuer, Problem> {
        let certificate = self.keyring.authority().certificate();
        let id =
            certificate.key_id().ok_or_else(|| internal("the CA's certificate has no key identifier"))?;
        adit_store::Issuer::from_bytes(id).map_err(internal)
    }
}

fn crl_reason(reason: adit_store::Reason) -> adit_pki::Reason {
    use adit_pki::Reason as Crl;
    use adit_store::Reason;
    match reason {
        Reason::Unspecified => Crl::Unspecified,
        Reason::KeyCompromise => Crl::KeyCompromise,
        Reason::CaCompromise => Crl::CaCompromise,
        Reason::AffiliationChanged => Crl::AffiliationChanged,
        Reason::Superseded => Crl::Superseded,
        Reason::CessationOfOperation => Crl::CessationOfOperation,
        Reason::PrivilegeWithdrawn => Crl::PrivilegeWithdrawn,
        Reason::AaCompromise => Crl::AaCompromise,
    }
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}

pub(crate) fn not_found(what: &str, name: &str) -> Problem {
    Problem::new(404, "Not Found", format!("there is no {what} named {name}"))
}

pub(crate) fn invalid(detail: impl std::fmt::Display) -> Problem {
    Problem::new(422, "Unprocessable Content", detail.to_string())
}

pub(crate) fn conflict(detail: impl std::fmt::Display) -> Problem {
    Problem::new(409, "Conflict", detail.to_string())
}

pub(crate) fn unavailable(detail: impl std::fmt::Display) -> Problem {
    Problem::new(503, "Service Unavailable", detail.to_string())
}

pub(crate) fn internal(detail: impl std::fmt::Display) -> Problem {
    Problem::new(500, "Internal Server Error", detail.to_string())
}

/// A change that the store refused.
fn refused(fault: ChangeFault) -> Problem {
    match &fault {
        ChangeFault::NotFound(_) => Problem::new(404, "Not Found", fault.to_string()),
        ChangeFault::NameTaken { .. } | ChangeFault::SerialTaken(_) => conflict(fault),
        ChangeFault::Name(_) | ChangeFault::Prefix(_) => invalid(fault),
        ChangeFault::Store(_) => internal(fault),
    }
}
