//! `adit connect`: the client in the foreground.

use std::io;

use adit_client::profile::{self, Profile};
use adit_client::{Client, ClientFault, Mode, Options, Status, Stopper};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Connect, ConnectTransport};
use crate::{output, terminal};

/// Connects, and stays so until SIGINT, SIGTERM or SIGHUP.
pub(crate) fn connect(options: &Connect, json: bool) -> Result<(), String> {
    let mut profile = profile::read(&options.profile).map_err(|fault| fault.to_string())?;
    choose(&mut profile, options.transport).map_err(|why| format!("{}: {why}", options.profile.display()))?;
    for note in profile::notes(&profile) {
        tracing::info!("{note}");
    }
    if profile.ask_credentials && profile.credentials.is_none() {
        let asked = terminal::ask_credentials(&server(&profile));
        profile.credentials = Some(asked.map_err(|why| format!("{}: {why}", options.profile.display()))?);
    }
    // Keys are in memory; this is better, but no reason not to connect.
    if let Err(error) = adit_host::limits::forbid_core_dumps() {
        tracing::warn!(%error, "cannot forbid core dumps");
    }
    let json = json || options.status_json;
    let (kill_switch, bind) = (options.kill_switch, options.bind.clone());
    let mode = match options {
        Connect { full: true, .. } => Mode::Full,
        Connect { split, .. } if !split.is_empty() => Mode::Split(split.clone()),
        Connect { .. } => Mode::AsTold,
    };
    let client = Client::new(profile, Options { mode, kill_switch, bind }).map_err(|fault| match fault {
        ClientFault::Settings(fault) => format!("{}: {fault}", options.profile.display()),
        fault => fault.to_string(),
    })?;
    stop_on_signals(client.stopper()).map_err(|error| format!("cannot wait for signals: {error}"))?;
    let mut report = |status: &Status| {
        // Whoever reads this may leave; the machine has to be put back all the same.
        output::say(&if json { output::json_line(status) } else { status.to_string() });
    };
    client.run(&mut report).map_err(|fault| fault.to_string())
}

/// Leaves only remotes of this transport.
fn choose(profile: &mut Profile, transport: ConnectTransport) -> Result<(), String> {
    let wanted = match transport {
        ConnectTransport::Auto => return Ok(()),
        ConnectTransport::Udp => "udp",
        ConnectTransport::Tcp => "tcp",
    };
    profile.remotes.retain(|remote| remote.transport.name() == wanted);
    if profile.remotes.is_empty() {
        return Err(format!("no remote of the profile is reached by {wanted}: leave --transport out"));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_leaves_its_remotes_and_there_must_be_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.ovpn");
        let read = |remotes: &str| {
            std::fs::write(&file, format!("client\n{remotes}<ca>\nx\n</ca>\n")).unwrap();
            profile::read(&file).unwrap()
        };
        let mut both = read("remote a 1 udp\nremote a 2 tcp\n");
        choose(&mut both, ConnectTransport::Auto).unwrap();
        assert_eq!(both.remotes.len(), 2);
        choose(&mut both, ConnectTransport::Tcp).unwrap();
        assert_eq!(both.remotes.iter().map(|remote| remote.port).collect::<Vec<_>>(), [2]);
        assert!(choose(&mut both, ConnectTransport::Udp).unwrap_err().contains("reached by udp"));
    }
}
