//! Reload: the difference between the configuration in force and the file.

use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError};

use adit_api::{Problem, ReloadReport};
use adit_openvpn::machine::Farewell;
use adit_plan::nat::Layout;

use super::{Admin, internal, invalid, unavailable};
use crate::config::{Config, Loaded, TunnelConfig, UnknownAnswer};
use crate::control::{Message, Which};
use crate::desk::{Ask, Done, Replan, described};
use crate::entrances;
use crate::port_plan::{Present, decide};

/// Differences in words, by what they need.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    live: Vec<String>,
    restart: Vec<String>,
    /// Identities that are gone: their sessions end.
    gone: Vec<String>,
    /// Sessions that end because there are no addresses or source ports for them any more.
    ends: Vec<String>,
}

impl Admin {
    /// Reads the file again and says what is different; without `dry_run` puts it in force, unless something needs a
    /// new start.
    ///
    /// # Errors
    /// [`Problem`] when the new configuration makes no sense; the old one stays in force.
    pub async fn reload(&self, dry_run: bool) -> Result<ReloadReport, Problem> {
        let (difference, applied) = self.adopt(dry_run)?;
        let mut sessions_touched = if applied {
            self.cut_identities(&difference.gone).await?
        } else {
            self.sessions_of(&difference.gone).await?
        };
        for session in &difference.ends {
            if applied {
                let farewell = Farewell::Restart("the configuration has changed".into());
                self.cut(Which::Session(session.clone()), farewell).await?;
            }
            sessions_touched.push(session.clone());
        }
        Ok(ReloadReport {
            applied,
            changes: difference.live,
            sessions_touched,
            needs_restart: difference.restart,
        })
    }

    /// Reads the file again; says what is different, and whether it is in force now.
    fn adopt(&self, dry_run: bool) -> Result<(Difference, bool), Problem> {
        // An identity that is added meanwhile would be in the file and not in force.
        let _one_at_a_time = self.files();
        let old = self.loaded();
        let new = Loaded::read(&old.path).map_err(invalid)?;
        let mut difference = compare(&old.config, &new.config);
        let layout = self.plan_ports(&new)?;
        let replan = Replan { pools: new.config.tunnel.pools().map_err(invalid)?, layout };
        if dry_run || !difference.restart.is_empty() {
            self.foresee(&replan, &mut difference).map_err(internal)?;
            return Ok((difference, false));
        }
        // First what may be refused, by the files and by the machine.
        let prepared = self.prepare(&new).map_err(invalid)?;
        self.apply_to_machine(&new.config, replan.layout.clone())?;
        if let Err(problem) = self.replan(replan, &mut difference) {
            self.apply_to_machine(&old.config, self.store.nat())?;
            return Err(problem);
        }
        self.put_in_force(prepared);
        let tunnel = Arc::new(new.config.tunnel.clone());
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        if let Some(live) = self.live() {
            // When the desk is gone the gateway is about to end anyway.
            let _ = live.desk.send(Ask::Settings(tunnel));
        }
        Ok((difference, true))
    }

    /// Who gets which port of the machine with a new configuration; the layout of source ports.
    fn plan_ports(&self, new: &Loaded) -> Result<Option<Layout>, Problem> {
        let present = match self.live().and_then(|live| live.machine.present()) {
            Some(present) => present.with_addresses_of_now(),
            None => Present::read(&new.lock()),
        };
        crate::up::refuse_conflicts(&new.config).map_err(invalid)?;
        let decision = decide(&new.config, &present.map_err(internal)?);
        match decision.problems.first() {
            Some(problem) => Err(invalid(format!("{}; {}", problem.message, problem.hint))),
            None => Ok(decision.layout),
        }
    }

    /// Other pools and another layout of source ports, in force.
    fn replan(&self, replan: Replan, difference: &mut Difference) -> Result<(), Problem> {
        let Some(live) = self.live() else { return Ok(()) };
        let (done, answer) = channel();
        let gone = || unavailable("the gateway is shutting down");
        live.desk.send(Ask::Replan(Box::new(replan), done)).map_err(|_| gone())?;
        let Done { changes, ends } = answer.recv().map_err(|_| gone())?.map_err(invalid)?;
        difference.live.extend(changes);
        difference.ends = ends.iter().map(ToString::to_string).collect();
        Ok(())
    }

    /// What that would do.
    fn foresee(&self, replan: &Replan, difference: &mut Difference) -> Result<(), adit_store::StoreFault> {
        let (Some(_), Some(layout)) = (self.live(), &replan.layout) else { return Ok(()) };
        let mut replanned = self.store.plan_nat(layout)?;
        replanned.outside = self.store.outside_of(&replan.pools)?;
        difference.live.extend(described(&self.store, &replanned));
        let homeless = replanned.homeless.iter().filter(|lost| lost.ends).map(|lost| lost.owner.session);
        let ends = homeless.chain(replanned.outside.iter().map(|lease| lease.session));
        difference.ends = ends.map(|session| session.to_string()).collect();
        Ok(())
    }

    /// Ends the sessions of these identities; their ids.
    pub(super) async fn cut_identities(&self, identities: &[String]) -> Result<Vec<String>, Problem> {
        let sessions = self.sessions_of(identities).await?;
        for id in &sessions {
            let farewell = Farewell::Restart("the configuration has changed".into());
            self.cut(Which::Session(id.clone()), farewell).await?;
        }
        Ok(sessions)
    }

    async fn sessions_of(&self, identities: &[String]) -> Result<Vec<String>, Problem> {
        let Some(live) = self.live().filter(|_| !identities.is_empty()) else { return Ok(Vec::new()) };
        let sessions = live.control.ask(Message::List).await.map_err(internal)?;
        let touched = sessions.into_iter().filter(|session| identities.contains(&session.identity));
        Ok(touched.map(|session| session.id).collect())
    }
}

fn compare(old: &Config, new: &Config) -> Difference {
    let mut difference = Difference::default();
    let restart = &mut difference.restart;
    let mut fixed = |changed: bool, what: &str| {
        if changed {
            restart.push(format!("{what} has changed"));
        }
    };
    fixed(old.name != new.name, "name");
    fixed(old.state != new.state, "state");
    fixed(old.ca.key != new.ca.key, "[ca] key");
    fixed(!entrances::can_follow(old, new), "[[entrance]]");
    fixed(old.host != new.host, "[host]");
    fixed(old.nat.is_some() != new.nat.is_some(), "whether there is [nat]");
    let closes = |config: &Config| config.unknown.answer == UnknownAnswer::Close;
    fixed(closes(old) != closes(new), "[unknown]");
    let first_or_last = old.service.is_empty() != new.service.is_empty();
    fixed(first_or_last && !entrances::services_can_come_and_go(old), "the first or the last [[service]]");
    fixed(old.store != new.store, "[store]");
    fixed(old.api != new.api, "[api]");
    let (before, after) = (&old.tunnel, &new.tunnel);
    fixed(before.interface != after.interface, "[tunnel] interface");
    fixed(before.mtu != after.mtu, "[tunnel] mtu");
    fixed(before.sndbuf != after.sndbuf, "[tunnel] sndbuf");
    fixed(before.rcvbuf != after.rcvbuf, "[tunnel] rcvbuf");
    fixed(before.max_handshakes != after.max_handshakes, "[tunnel] max_handshakes");
    if old.entrance != new.entrance && entrances::can_follow(old, new) {
        difference.live.push("[[entrance]]: captured ports".into());
    }
    if (&old.service, &old.unknown) != (&new.service, &new.unknown) {
        difference.live.push("[[service]]: for new connections".into());
    }
    if old.public != new.public {
        difference.live.push(format!("public: {:?}, in new profiles", new.public));
    }
    if old.ca != new.ca && old.ca.key == new.ca.key {
        difference.live.push("[ca]: for new certificates".into());
    }
    for identity in &old.identity {
        match new.identity.iter().find(|other| other.name == identity.name) {
            None => {
                difference.live.push(format!("identity {} is gone, and its sessions end", identity.name));
                difference.gone.push(identity.name.clone());
            }
            Some(other) if other != identity => {
                difference.live.push(format!("identity {} has changed, for new sessions", identity.name));
            }
            Some(_) => {}
        }
    }
    let added = new.identity.iter().filter(|i| !old.identity.iter().any(|other| other.name == i.name));
    difference.live.extend(added.map(|identity| format!("identity {} is new", identity.name)));
    if before.client_to_client != after.client_to_client {
        let may = if after.client_to_client { "may" } else { "may no longer" };
        difference.live.push(format!("clients {may} reach each other"));
    }
    if (&before.pool4, &before.pool6) != (&after.pool4, &after.pool6) {
        difference.live.push("[tunnel]: other pools".into());
    }
    if old.nat != new.nat && old.nat.is_some() == new.nat.is_some() {
        difference.live.push("[nat]: other source ports".into());
    }
    if old.forward != new.forward {
        difference.live.push("[forward]: other forwarded ports".into());
    }
    let same_but = TunnelConfig {
        client_to_client: before.client_to_client,
        pool4: before.pool4.clone(),
        pool6: before.pool6.clone(),
        ..after.clone()
    };
    if same_but != *before && difference.restart.is_empty() {
        difference.live.push("[tunnel]: for new sessions".into());
    }
    difference
}

/// Replaces a file as a whole, keeping who may read it.
pub(super) fn replace_file(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = directory.join(format!(".adit.toml.{}", std::process::id()));
    let mode = std::fs::metadata(path)?.permissions();
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        file.set_permissions(mode)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let result = write();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{InitOptions, parse, render};

    fn config(change: impl Fn(String) -> String) -> Config {
        parse(&change(render(&InitOptions::default())), Path::new("adit.toml")).unwrap()
    }

    #[test]
    fn what_can_change_while_running_is_told_from_what_cannot() {
        let old = config(|text| text);
        assert_eq!(compare(&old, &old), Difference::default());
        let dns = config(|text| text.replace("# dns", "dns"));
        assert_eq!(compare(&old, &dns).live, ["[tunnel]: for new sessions"]);
        let pool = config(|text| text.replace("10.88.0.0/16", "10.99.0.0/16"));
        assert_eq!(compare(&old, &pool).live, ["[tunnel]: other pools"]);
        let mtu = config(|text| text.replace("mtu = 1500", "mtu = 1400"));
        assert_eq!(compare(&old, &mtu).restart, ["[tunnel] mtu has changed"]);
        let nat = config(|text| format!("{text}\n[nat]\naddresses = [\"192.0.2.1\"]\n"));
        assert_eq!(compare(&old, &nat).restart, ["whether there is [nat] has changed"]);
        let open = config(|text| text.replace("client_to_client = false", "client_to_client = true"));
        assert_eq!(compare(&old, &open).live, ["clients may reach each other"]);
    }

    #[test]
    fn sessions_of_a_removed_identity_are_touched() {
        let old = config(|text| text);
        let new = config(|text| text.replace("name = \"compat\"", "name = \"other\""));
        let difference = compare(&old, &new);
        assert_eq!(difference.gone, ["compat"]);
        assert_eq!(
            difference.live,
            ["identity compat is gone, and its sessions end", "identity other is new"]
        );
    }
}
