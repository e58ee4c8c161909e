//! `adit up`: the gateway from start to end.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use adit_engine::{Engine, StartFault};
use adit_entrance::{DatagramOptions, DatagramRelays, Event, Events, Options, Reception, Unknown};
use adit_host::lock::{LockFault, LockFile};
use adit_host::plumbing::{InProcess, Plumbing, PlumbingFault, Recovery, Sysctl, find_conflicts};
use adit_host::privilege::PrivilegeFault;
use adit_host::services::Bound;
use adit_host::sysctl;
use adit_host::tun::TunOptions;
use adit_plan::nat::Layout;
use adit_store::{OpenFault, PoolsFault, Store, StoreFault};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::admin::{Admin, AdminFault, DATABASE, Live};
use crate::alarm::Alarms;
use crate::config::{Config, ConfigFault, Loaded, UnknownAnswer};
use crate::control::{self, Control, Message};
use crate::desk::{self, Desk};
use crate::entrances::{self, Opened, Others};
use crate::exit::{self, Exits};
use crate::identities::{IdentityFault, Numbering, SharedGate};
use crate::keyring::{Keyring, KeyringFault};
use crate::machine_state::{self, Arranged, Machine};
use crate::port_plan::{Decision, Present, decide};
use crate::sites::Sites;
use crate::switch::{self, Connections, Switch};
use crate::{clock, http, identities};

/// Messages that may wait for the control thread.
const INBOX: usize = 8192;
/// How often it is looked for programs that have bound captured ports.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long clients have to hear that the gateway goes away.
const DRAIN: Duration = Duration::from_secs(3);
/// Records that are too old are looked for this often.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);
/// Connections of a client that there is to be room for.
const TRACKED_EACH: u32 = 512;
/// Some 400 MB of them.
const TRACKED_MOST: u32 = 1 << 20;
/// Milliseconds that a gateway may have lived after its last heartbeat: two of them.
const UNSEEN: i64 = 10_000;
/// Descriptors that every process has, where the system does not say.
const USUAL_OPEN_FILES: u64 = 1024;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum UpFault {
    /// Not enough rights.
    #[error(transparent)]
    Privilege(#[from] PrivilegeFault),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigFault),
    /// Another gateway runs on this state.
    #[error(transparent)]
    Lock(#[from] LockFault),
    /// Keys and certificates.
    #[error(transparent)]
    Keyring(#[from] KeyringFault),
    /// Identities.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenFault),
    /// The database, later.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// Pools and prefixes.
    #[error(transparent)]
    Pools(#[from] PoolsFault),
    /// The state as a whole.
    #[error(transparent)]
    Admin(#[from] AdminFault),
    /// The machine.
    #[error(transparent)]
    Plumbing(#[from] PlumbingFault),
    /// The port plan.
    #[error("{0}")]
    Ports(String),
    /// A pool is in use on this machine.
    #[error("{0}; choose another pool in the configuration")]
    PoolInUse(String),
    /// The packet loop.
    #[error(transparent)]
    Engine(#[from] StartFault),
    /// The API's socket.
    #[error("cannot serve the API at {}: {error}", path.display())]
    Api {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Foreign back ends.
    #[error("{0}")]
    Services(String),
    /// Nothing to answer with.
    #[error("the configuration has no {0}: nobody could connect")]
    Missing(&'static str),
    /// Something without which it is of no use has failed.
    #[error("stopped, because nobody could be served any more: {0}; start adit anew")]
    Failed(String),
    /// Threads, signals and the like.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs the gateway until SIGTERM or SIGINT. `ready` is called when clients are accepted.
///
/// # Errors
/// [`UpFault`], worded for the operator; nothing is left changed on the machine then.
pub fn up(config: &Path, ready: impl FnOnce()) -> Result<(), UpFault> {
    adit_host::privilege::check()?;
    let loaded = Loaded::read(config)?;
    // Descriptors and core dumps: better with, but no reason not to start.
    let open_files = adit_host::limits::raise_open_files().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the number of open files");
        USUAL_OPEN_FILES
    });
    if let Err(error) = adit_host::limits::forbid_core_dumps() {
        tracing::warn!(%error, "cannot forbid core dumps");
    }
    let state = loaded.state();
    if !state.is_dir() {
        return Err(KeyringFault::NoAuthority(state).into());
    }
    let _lock = LockFile::acquire(&loaded.lock())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(16)
        .thread_name("control-rt")
        .enable_all()
        .build()?;
    let (gateway, alarms) = Gateway::start(loaded, &runtime, open_files)?;
    let result = runtime.block_on(gateway.serve(ready, alarms));
    gateway.stop();
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

struct Gateway {
    admin: Arc<Admin>,
    engine: Arc<Engine>,
    control: Control,
    desk: std::sync::Mutex<Desk>,
    control_thread: std::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
    api: UnixListener,
    socket: PathBuf,
    listeners: std::sync::Mutex<Vec<(TcpListener, Duration)>>,
    reception: Arc<Reception>,
}

impl Gateway {
    /// Sets everything up. What has been done is undone when a later step fails: handles see to it as they go. The
    /// alarms ring when a part without which it is of no use has ended.
    fn start(
        loaded: Loaded,
        runtime: &tokio::runtime::Runtime,
        open_files: u64,
    ) -> Result<(Self, Alarms), UpFault> {
        let config = loaded.config.clone();
        let state = loaded.state();
        if config.identity.is_empty() {
            return Err(UpFault::Missing("[[identity]]"));
        }
        let keyring = Keyring::open(&state)?;
        let identities = identities::load(&keyring, &config, clock::unix())?;
        let numbering = Numbering::new();
        let (gate, plans) = numbering.plan(&keyring, &identities, &config.tunnel)?;
        let rules = switch::rules(&config, &loaded.directory(), &identities::wraps(&identities), &[])
            .map_err(UpFault::Services)?;
        // What a crashed gateway left behind goes first: it would look like a conflict.
        let (plumbing, recovery) = InProcess::start(&state.join("machine.json"))?;
        if recovery != Recovery::Clean {
            tracing::warn!("{recovery}");
        }
        let mut plumbing: Box<dyn Plumbing> = Box::new(plumbing);
        refuse_conflicts(&config)?;
        // Before the first socket of this process: what is bound now is somebody else's.
        let (decision, mut arranged) = plan_ports(&loaded)?;
        let store = open_store(&state, &config, arranged.layout.as_ref())?;
        let sites = Sites::default();
        sites.refresh(&store)?;
        let mut left = config.clone();
        decision.leave_to_others(&mut left);
        let answering = share_of(open_files, entrances::ANSWERING);
        let Opened { udp, tcp: listeners, diversion } =
            entrances::open(&config, &left, &arranged.others, answering, plumbing.as_mut())?;
        arranged.diversion = diversion;
        if udp.is_empty() && listeners.is_empty() {
            return Err(UpFault::Missing("[[entrance]] with a port"));
        }
        let tun = plumbing.open_tun(&TunOptions::new(&config.tunnel.interface))?;
        let pools = config.tunnel.pools().map_err(AdminFault::BadPools)?;
        plumbing.apply(&machine_state::wanted(&config, &arranged, &pools, &sites.all()))?;

        let alarms = Alarms::new();
        let (inbox, messages) = sync_channel(INBOX);
        let control = Control::new(inbox);
        let gate = Arc::new(gate);
        let shared_gate = SharedGate::new(Arc::clone(&gate));
        let usual = DatagramOptions::default();
        let options = DatagramOptions { max_flows: share_of(open_files, usual.max_flows), ..usual };
        let relays = DatagramRelays::start(options, relay_events(&alarms))?;
        let switch = Switch::new(rules, shared_gate.clone(), control.clone(), relays);
        let offer = control.clone();
        let alarm = alarms.alarm("the packet loop");
        let engine = Arc::new(adit_engine::start(adit_engine::Parts {
            tun,
            sockets: udp,
            gate: Some(gate),
            foreign: Some(Arc::clone(&switch) as _),
            mtu: config.tunnel.mtu,
            max_half_open: config.tunnel.max_handshakes,
            events: Box::new(move |event| offer.offer(Message::Engine(event))),
            failed: Box::new(move |why| alarm.ring(why)),
        })?);
        let tunnel = Arc::new(config.tunnel.clone());
        let rules = exit::Rules::of(arranged.layout.as_ref());
        let machine = Arc::new(Machine::new(plumbing, arranged));
        let desk = desk::Parts {
            store: store.clone(),
            settings: tunnel,
            sites: sites.clone(),
            exits: Exits::new(Arc::clone(&machine), rules),
            control: control.clone(),
        };
        let desk = Desk::start(desk, alarms.alarm("the desk"))?;
        let parts = control::Parts {
            engine: Arc::clone(&engine),
            inbox: messages,
            desk: desk.questions(),
            identities: plans,
            gateway: store.gateway().to_string(),
            max_handshakes: config.tunnel.max_handshakes,
        };
        let alarm = alarms.alarm("the control thread");
        let control_thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            let _alarm = alarm;
            control::run(parts);
        })?;

        let socket = loaded.socket();
        switch.count_in(engine.drops());
        let reception = Arc::new(Reception::start(
            reception_options(&config, open_files),
            Connections(Arc::clone(&switch)),
            relay_events(&alarms),
        )?);
        let api = {
            let _guard = runtime.enter();
            listen_api(&socket)?
        };
        let live = Live {
            control: control.clone(),
            desk: desk.questions(),
            engine: Arc::clone(&engine),
            machine,
            gate: shared_gate,
            switch,
            reception: Arc::clone(&reception),
            numbering,
            since: clock::now(),
        };
        let admin = Arc::new(Admin::with(loaded, store, keyring, sites, Some(live))?);
        let gateway = Self {
            admin,
            engine,
            control,
            desk: std::sync::Mutex::new(desk),
            control_thread: std::sync::Mutex::new(Some(control_thread)),
            api,
            socket,
            listeners: std::sync::Mutex::new(listeners),
            reception,
        };
        Ok((gateway, alarms))
    }

    /// Serves until a signal comes or an alarm rings.
    async fn serve(&self, ready: impl FnOnce(), mut alarms: Alarms) -> Result<(), UpFault> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let listeners = std::mem::take(&mut *lock(&self.listeners));
        for (number, (listener, inspect)) in listeners.into_iter().enumerate() {
            self.reception.listen(listener, number, inspect)?;
        }
        let router = http::router(Arc::clone(&self.admin));
        let api = serve_api(&self.api, router);
        tokio::pin!(api);
        let mut look = tokio::time::interval(LOOK_AGAIN);
        let mut old = tokio::time::interval(HOUSEKEEPING);
        let mut told = BTreeSet::new();
        self.log_start();
        ready();
        notify(&[sd_notify::NotifyState::Ready]);
        let result = loop {
            tokio::select! {
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => break Ok(()),
                _ = hangup.recv() => self.reload().await,
                _ = look.tick() => self.name_latecomers(&mut told),
                _ = old.tick() => {
                    let admin = Arc::clone(&self.admin);
                    // Nobody waits for it; what it has to say it logs.
                    drop(tokio::task::spawn_blocking(move || admin.forget_old()));
                }
                () = &mut api => break Ok(()),
                // Whoever watches over the program starts it anew; a gateway that carries nothing would look alive.
                why = alarms.ring() => break Err(UpFault::Failed(why)),
            }
        };
        notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping: telling clients to come again");
        self.reception.close();
        let _ = self.control.ask(|done| Message::Shutdown(DRAIN, done)).await;
        result
    }

    /// Says, once, which programs have bound a port since that is captured: they hear nothing.
    fn name_latecomers(&self, told: &mut BTreeSet<Bound>) {
        let Some(live) = self.admin.live() else { return };
        let others = live.machine.others();
        let config = &self.admin.loaded().config;
        for late in entrances::latecomers(config, &others, std::process::id()) {
            if told.insert(late.clone()) {
                tracing::warn!(
                    port = late.port, transport = ?late.transport, address = %late.address,
                    "a program has bound a captured port since the gateway started and hears nothing: `adit entrance \
                     release {}` gives it back, `except` in the configuration makes that last",
                    late.port
                );
            }
        }
    }

    async fn reload(&self) {
        notify(&[
            sd_notify::NotifyState::Reloading,
            sd_notify::NotifyState::monotonic_usec_now().unwrap_or(sd_notify::NotifyState::Ready),
        ]);
        match self.admin.reload(false).await {
            Ok(report) if report.applied => tracing::info!(changes = ?report.changes, "reloaded"),
            Ok(report) => {
                tracing::error!(needs_restart = ?report.needs_restart, "not reloaded: start adit anew for this");
            }
            Err(problem) => tracing::error!("not reloaded: {}", problem.detail),
        }
        notify(&[sd_notify::NotifyState::Ready]);
    }

    /// Ends in the order in which nothing is missed: sessions, packets, journal, machine.
    fn stop(&self) {
        let (done, _) = oneshot::channel();
        // Already done after an orderly end; else this is the end.
        self.control.offer(Message::Shutdown(Duration::ZERO, done));
        if let Some(thread) = lock(&self.control_thread).take() {
            let _ = thread.join();
        }
        self.engine.stop();
        lock(&self.desk).close();
        if let Some(live) = self.admin.live()
            && let Err(fault) = live.machine.undo()
        {
            tracing::error!("{fault}");
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    fn log_start(&self) {
        let loaded = self.admin.loaded();
        for identity in &loaded.config.identity {
            tracing::info!(name = identity.name, key = %identity.key, wrap = identity.wrap.name(), "identity");
        }
        for entrance in &loaded.config.entrance {
            tracing::info!(address = %entrance.address, udp = %entrance.udp, tcp = %entrance.tcp, "entrance");
        }
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Tells a service manager, if there is one.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

fn open_store(state: &Path, config: &Config, layout: Option<&Layout>) -> Result<Store, UpFault> {
    let store = Store::open(&state.join(DATABASE))?;
    let recovered = store.recover(clock::now(), UNSEEN)?;
    if recovered.leases > 0 || recovered.sessions > 0 {
        tracing::warn!(
            sessions = recovered.sessions,
            leases = recovered.leases,
            "the gateway was not stopped in order; its journal has been closed at the last moment that it can have lived"
        );
    }
    store.set_pools(config.tunnel.pools().map_err(AdminFault::BadPools)?)?;
    store.set_nat(layout, clock::now())?;
    Ok(store)
}

fn reception_options(config: &Config, open_files: u64) -> Options {
    let unknown = match &config.unknown.answer {
        UnknownAnswer::Close => Unknown::Close,
        // A decoy is a back end like any other; without it there is silence.
        UnknownAnswer::Silence | UnknownAnswer::Service(_) => Unknown::Silence,
    };
    let trusted_proxies = config.entrance.iter().flat_map(|entrance| entrance.proxies.clone()).collect();
    let usual = Options::default();
    let max_undecided = share_of(open_files, usual.max_undecided);
    Options { unknown, trusted_proxies, max_undecided, ..usual }
}

/// How many of `usual` things with a descriptor each there may be with so many: a quarter for strangers' connections, a
/// quarter for UDP flows of back ends, a quarter for ports that answers leave from, so that clients always find one.
fn share_of(open_files: u64, usual: usize) -> usize {
    usize::try_from(open_files / 4).map_or(usual, |quarter| quarter.min(usual))
}

/// What is said of back ends, and of threads that end.
fn relay_events(alarms: &Alarms) -> Events {
    let alarm = std::sync::Mutex::new(Some(alarms.alarm("the reception")));
    Arc::new(move |event| match event {
        Event::Down { backend, error } => {
            let options = backend.options();
            tracing::warn!(service = options.name, to = %options.address, error, "does not answer; tried again with the next client");
        }
        Event::Up(backend) => tracing::info!(service = backend.options().name, "answers again"),
        Event::Exhausted(error) => tracing::warn!(error, "cannot accept connections for the moment"),
        Event::NoFlow(error) => tracing::warn!(error, "cannot relay a flow"),
        Event::Ended => {
            // It rings as it goes.
            drop(lock(&alarm).take());
        }
    })
}

/// Pools that the machine has a use for already.
pub(crate) fn refuse_conflicts(config: &Config) -> Result<(), UpFault> {
    let pools: Vec<_> = config
        .tunnel
        .pool4
        .iter()
        .map(|net| (*net).into())
        .chain(config.tunnel.pool6.iter().map(|net| (*net).into()))
        .collect();
    match find_conflicts(&pools, Some(&config.tunnel.interface))?.first() {
        Some(conflict) => Err(UpFault::PoolInUse(conflict.to_string())),
        None => Ok(()),
    }
}

/// Who gets which port of this machine, as far as it is not for the operator to decide.
fn plan_ports(loaded: &Loaded) -> Result<(Decision, Arranged), UpFault> {
    let present = Present::read(&loaded.lock()).map_err(UpFault::Ports)?;
    let decision = decide(&loaded.config, &present);
    if let Some(problem) = decision.problems.first() {
        return Err(UpFault::Ports(format!("{}; {}", problem.message, problem.hint)));
    }
    for note in &decision.notes {
        tracing::info!("{note}");
    }
    let before = present.clone();
    let others = Others { services: present.services.unwrap_or_default(), ..Others::default() };
    let mut sysctls = decision.sysctls.clone();
    if loaded.config.host.manage_sysctl
        && let Some(layout) = &decision.layout
    {
        sysctls.extend(room_for_connections(layout));
    }
    let arranged = Arranged {
        others,
        sysctls,
        present: Some(before),
        layout: decision.layout.clone(),
        ..Arranged::default()
    };
    Ok((decision, arranged))
}

/// The kernel's table of connections, if it is too small for so many clients. It is the same for all network namespaces
/// and may be changed in the first one only.
fn room_for_connections(layout: &Layout) -> Option<Sysctl> {
    const MAX: &str = "net.netfilter.nf_conntrack_max";
    let wanted = layout.capacity().saturating_mul(TRACKED_EACH).min(TRACKED_MOST);
    let present: u32 = sysctl::get(MAX).ok()?.parse().ok()?;
    let first = adit_host::netns::is_initial();
    (first && present < wanted).then(|| Sysctl::new(MAX, &wanted.to_string()))
}

/// Opens the API's socket for root and its group. A socket that a crashed gateway left is replaced; the lock on the
/// state says that nobody serves it.
fn listen_api(path: &Path) -> Result<UnixListener, UpFault> {
    let fault = |error| UpFault::Api { path: path.to_owned(), error };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(fault)?;
    }
    // A file that is no socket was put there by somebody; binding fails then, and says so.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path).map_err(fault)?;
    }
    let listener = UnixListener::bind(path).map_err(fault)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(fault)?;
    Ok(listener)
}

async fn serve_api(listener: &UnixListener, router: axum::Router) {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto::Builder;
    use hyper_util::service::TowerToHyperService;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others are in the same position, so wait for a while.
                tracing::warn!(%error, "cannot accept a connection to the API");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            // A caller that hangs up in the middle is its own affair.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_have_half_of_the_descriptors_at_most() {
        let shares = [64, 1024, 20_000, u64::MAX].map(|files| share_of(files, 4096));
        assert_eq!(shares, [16, 256, 4096, 4096]);
    }

    #[test]
    fn the_api_replaces_a_socket_that_nobody_serves_and_no_other_file() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("adit.sock");
        drop(listen_api(&path).unwrap());
        assert!(path.exists(), "as after a crash");
        let served = listen_api(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        assert!(listen_api(&path).is_err(), "somebody serves it");
        drop(served);

        let file = directory.path().join("adit.toml");
        std::fs::write(&file, "precious").unwrap();
        assert!(listen_api(&file).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }
}
