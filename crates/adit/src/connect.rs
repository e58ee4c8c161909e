//! `adit connect`: the client in the foreground.

use std::io;

use adit_client::profile::{self, Profile};
use adit_client::{Client, Mode, Status, Stopper};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Connect;
use crate::{output, terminal};

/// Connects, and stays so until SIGINT, SIGTERM or SIGHUP.
pub(crate) fn connect(options: Connect) -> Result<(), String> {
    let mut profile = profile::read(&options.profile).map_err(|fault| fault.to_string())?;
    for note in profile::notes(&profile) {
        tracing::info!("{note}");
    }
    if profile.ask_credentials && profile.credentials.is_none() {
        profile.credentials = Some(terminal::ask_credentials(&server(&profile))?);
    }
    // Keys are in memory; this is better, but no reason not to connect.
    if let Err(error) = adit_host::limits::forbid_core_dumps() {
        tracing::warn!(%error, "cannot forbid core dumps");
    }
    let mode = match options {
        Connect { full: true, .. } => Mode::Full,
        Connect { split, .. } if !split.is_empty() => Mode::Split(split),
        Connect { .. } => Mode::AsTold,
    };
    let client = Client::new(profile, mode).map_err(|fault| fault.to_string())?;
    stop_on_signals(client.stopper()).map_err(|error| format!("cannot wait for signals: {error}"))?;
    let mut report = |status: &Status| {
        if options.status_json {
            output::json_line(status);
        }
    };
    client.run(&mut report).map_err(|fault| fault.to_string())
}

/// The first server, to say who asks for a password.
fn server(profile: &Profile) -> String {
    profile.remotes.first().map(|remote| remote.host.clone()).unwrap_or_default()
}

fn stop_on_signals(stopper: Stopper) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let [mut interrupt, mut terminate, mut hangup] = {
        let _guard = runtime.enter();
        let listen = |kind| -> io::Result<Signal> { signal(kind) };
        [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]
    };
    let wait = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            stopper.stop();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(wait))?;
    Ok(())
}
