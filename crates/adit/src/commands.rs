//! Commands that are calls of the API.

use adit_api as api;
use hyper::Method;
use serde_json::json;

use crate::call::{Api, CallFault, segment};
use crate::cli::{Ca, Device, Entrance, Identity, Profile, RouteChoice, Session, TransportChoice, User};
use crate::output::{self, bytes, print, table};

/// Everything a command needs.
pub(crate) struct Context<'a> {
    /// The way to the gateway.
    pub(crate) api: Api<'a>,
    /// Print JSON.
    pub(crate) json: bool,
}

/// What becomes of a command.
pub(crate) type Outcome = Result<(), CallFault>;

impl Context<'_> {
    /// `adit user`
    pub(crate) async fn user(&self, command: User) -> Outcome {
        let path = |name: &str, rest: &str| format!("{}/{}{rest}", api::path::USERS, segment(name));
        match command {
            User::Add { name, device } => {
                let request = json!({ "name": name, "device": device });
                let user: api::User = self.api.call(Method::POST, api::path::USERS, Some(request)).await?;
                self.show(&user, |user| {
                    let mut text = format!("user {} added\n", user.name);
                    match device {
                        Some(device) => {
                            text += &format!("the profile: adit profile {} {device}\n", user.name);
                        }
                        None => text += &format!("a device: adit device add {} DEVICE\n", user.name),
                    }
                    text
                });
            }
            User::List => {
                let list = self.all_users().await?;
                if self.json {
                    output::json(&list);
                } else {
                    let rows: Vec<_> = list
                        .users
                        .iter()
                        .map(|u| {
                            vec![u.name.clone(), word(&u.state), u.devices.to_string(), u.created.to_string()]
                        })
                        .collect();
                    table(
                        &["USER", "STATE", "DEVICES", "ADDED"],
                        &rows,
                        "no users yet: adit user add NAME --device DEVICE",
                    );
                }
            }
            User::Remove { name } => {
                let cut: api::UserCut = self.api.call(Method::DELETE, &path(&name, ""), None).await?;
                self.show(&cut, |cut| {
                    format!("user {} removed, {} sessions cut\n", cut.user, cut.sessions_closed)
                });
            }
            User::Suspend { name } => {
                let cut: api::UserCut = self.api.call(Method::POST, &path(&name, "/suspend"), None).await?;
                self.show(&cut, |cut| {
                    format!("user {} suspended, {} sessions cut\n", cut.user, cut.sessions_closed)
                });
            }
            User::Resume { name } => {
                let user: api::User = self.api.call(Method::POST, &path(&name, "/resume"), None).await?;
                self.show(&user, |user| format!("user {} may connect again\n", user.name));
            }
        }
        Ok(())
    }

    /// `adit device`
    pub(crate) async fn device(&self, command: Device) -> Outcome {
        match command {
            Device::Add { user, device, csr, prefix } => {
                let csr = csr.map(|path| {
                    std::fs::read_to_string(&path).map_err(|error| {
                        CallFault::Transport(format!("cannot read {}: {error}", path.display()))
                    })
                });
                let csr = csr.transpose()?;
                let request = json!({ "user": user, "device": device, "csr": csr, "prefixes": prefix });
                let added: api::Device =
                    self.api.call(Method::POST, api::path::DEVICES, Some(request)).await?;
                self.show(&added, |added| match &added.certificate_pem {
                    Some(pem) => pem.clone(),
                    None => {
                        format!("device {user}/{device} added\nthe profile: adit profile {user} {device}\n")
                    }
                });
            }
            Device::List { user } => {
                let list = self.all_devices(user.as_deref()).await?;
                if self.json {
                    output::json(&list);
                } else {
                    let rows: Vec<_> = list.devices.iter().map(device_row).collect();
                    table(
                        &["USER", "DEVICE", "CERTIFICATE", "EXPIRES", "BEHIND IT"],
                        &rows,
                        "no devices yet",
                    );
                }
            }
            Device::Revoke { user, device } => {
                let path = format!("{}/{}/{}", api::path::DEVICES, segment(&user), segment(&device));
                let cut: api::DeviceRevoked = self.api.call(Method::DELETE, &path, None).await?;
                self.show(&cut, |cut| {
                    format!(
                        "device {}/{} revoked, {} sessions cut\n",
                        cut.user, cut.device, cut.sessions_closed
                    )
                });
            }
        }
        Ok(())
    }

    /// `adit profile`
    pub(crate) async fn profile(&self, options: Profile) -> Outcome {
        let mut query = vec![format!(
            "transport={}",
            match options.transport {
                TransportChoice::Udp => "udp",
                TransportChoice::Tcp => "tcp",
                TransportChoice::Both => "both",
            }
        )];
        let mut add = |key: &str, value: Option<String>| {
            query.extend(value.map(|value| format!("{key}={}", segment(&value))));
        };
        add("identity", options.identity);
        add("port", options.port);
        add("remote", options.remote);
        let route = options.route.map(|route| match route {
            RouteChoice::Full => "full",
            RouteChoice::Split => "split",
            RouteChoice::None => "none",
        });
        add("route", route.map(str::to_owned));
        let (user, device) = (segment(&options.user), segment(&options.device));
        let path = format!("{}/{user}/{device}?{}", api::path::PROFILES, query.join("&"));
        let text = self.api.bytes(Method::GET, &path, None).await?;
        let text = String::from_utf8_lossy(&text);
        if self.json {
            output::json(&json!({ "user": options.user, "device": options.device, "profile": text }));
        } else {
            print(&text);
        }
        Ok(())
    }

    /// `adit session`
    pub(crate) async fn session(&self, command: Session) -> Outcome {
        match command {
            Session::List => {
                let list: api::SessionList = self.api.call(Method::GET, api::path::SESSIONS, None).await?;
                if self.json {
                    output::json(&list);
                } else {
                    let rows: Vec<_> = list.sessions.iter().map(session_row).collect();
                    let heading =
                        ["USER", "DEVICE", "FROM", "BY", "IDENTITY", "INSIDE", "SINCE", "IN", "OUT", "ID"];
                    table(&heading, &rows, "nobody is connected");
                }
            }
            Session::Close { id } => {
                let path = format!("{}/{}", api::path::SESSIONS, segment(&id));
                let closed: api::SessionClosed = self.api.call(Method::DELETE, &path, None).await?;
                self.show(&closed, |closed| format!("session {} closed\n", closed.id));
            }
        }
        Ok(())
    }

    /// `adit entrance`
    pub(crate) async fn entrance(&self, command: Entrance) -> Outcome {
        match command {
            Entrance::Release { port } => {
                let path = format!("{}/{port}/release", api::path::ENTRANCES);
                let released: api::PortReleased = self.api.call(Method::POST, &path, None).await?;
                self.show(&released, |released| {
                    let touched = match released.sessions_touched.len() {
                        0 => String::new(),
                        1 => "; one session came in by it and will connect anew".to_owned(),
                        count => format!("; {count} sessions came in by it and will connect anew"),
                    };
                    format!(
                        "port {} belongs to this machine again{touched}\nto make it last: except = \"{}\" in the \
                         [[entrance]]\n",
                        released.port, released.port
                    )
                });
            }
        }
        Ok(())
    }

    /// `adit identity`
    pub(crate) async fn identity(&self, command: Identity) -> Outcome {
        let path = |name: &str, rest: &str| format!("{}/{}{rest}", api::path::IDENTITIES, segment(name));
        match command {
            Identity::List => {
                let list: api::IdentityList = self.api.call(Method::GET, api::path::IDENTITIES, None).await?;
                if self.json {
                    output::json(&list);
                } else {
                    let rows: Vec<_> = list.identities.iter().map(identity_row).collect();
                    table(
                        &["IDENTITY", "KEY", "WRAP", "PORT", "CERTIFICATE EXPIRES"],
                        &rows,
                        "no identities",
                    );
                }
            }
            Identity::Add { name, key, wrap, auth, port } => {
                let request = json!({ "name": name, "key": key, "wrap": wrap, "auth": auth, "port": port });
                let added: api::Identity =
                    self.api.call(Method::POST, api::path::IDENTITIES, Some(request)).await?;
                self.show(&added, |added| {
                    format!("identity {} added: {} with {}\n", added.name, added.key, added.wrap)
                });
            }
            Identity::Remove { name } => {
                let gone: serde_json::Value = self.api.call(Method::DELETE, &path(&name, ""), None).await?;
                self.show(&gone, |_| format!("identity {name} removed\n"));
            }
            Identity::Rotate { name } => {
                let new: api::Identity = self.api.call(Method::POST, &path(&name, "/rotate"), None).await?;
                self.show(&new, |new| {
                    format!(
                        "identity {} has a new key and certificate, serial {}\n",
                        new.name, new.certificate_serial
                    )
                });
            }
        }
        Ok(())
    }

    /// `adit ca`
    pub(crate) async fn ca(&self, command: Ca) -> Outcome {
        let Ca::Status = command;
        let ca: api::CaStatus = self.api.call(Method::GET, api::path::CA, None).await?;
        self.show(&ca, |ca| {
            let crl = ca.crl_expires.map_or_else(|| "none".to_owned(), |at| format!("valid until {at}"));
            format!(
                "{} ({}), serial {}, valid until {}\nCRL: {} revoked, {crl}\n",
                ca.subject, ca.key, ca.serial, ca.expires, ca.revoked
            )
        });
        Ok(())
    }

    /// `adit status`
    pub(crate) async fn status(&self) -> Outcome {
        let status: api::Status = self.api.call(Method::GET, api::path::STATUS, None).await?;
        self.show(&status, |status| {
            let mut text =
                format!("adit {} \"{}\", running since {}\n", status.version, status.name, status.since);
            for (protocol, count) in &status.sessions {
                text +=
                    &format!("sessions  {count} {protocol}, {} handshakes under way\n", status.handshakes);
            }
            text += &format!("from clients  {} ({}/s)\n", bytes(status.rx_bytes), bytes(status.rx_rate));
            text += &format!("to clients    {} ({}/s)\n", bytes(status.tx_bytes), bytes(status.tx_rate));
            text += &format!(
                "since the start: {} sessions, {} logins refused\n",
                status.sessions_started, status.logins_refused
            );
            for service in &status.services {
                let state = match &service.error {
                    None => "up".to_owned(),
                    Some(error) => format!("down: {error}"),
                };
                text += &format!(
                    "service  {} at {}: {state}; {} open, {} so far, {} failed\n",
                    service.name, service.to, service.open, service.connected, service.failed
                );
            }
            if let Some(nat) = &status.nat {
                text += &format!(
                    "source ports  {} of {} blocks of {} in use",
                    nat.in_use, nat.capacity, nat.block_size
                );
                text += &match nat.leaving {
                    0 => "\n".to_owned(),
                    count => format!(", {count} ranges leave with their last connection\n"),
                };
                for (reason, count) in nat.refused.iter().filter(|(_, count)| **count > 0) {
                    text += &format!("refused  {count:>10}  {reason}\n");
                }
            }
            if let Some(tracked) = &status.tracked {
                text += &format!("tracked connections  {} of {}\n", tracked.count, tracked.max);
            }
            for (reason, count) in &status.drops {
                text += &format!("dropped  {count:>10}  {reason}\n");
            }
            text
        });
        Ok(())
    }

    /// `adit reload`; false when nothing was applied although it was to be.
    pub(crate) async fn reload(&self, dry_run: bool) -> Result<bool, CallFault> {
        let path = format!("{}?dry_run={dry_run}", api::path::RELOAD);
        let report: api::ReloadReport = self.api.call(Method::POST, &path, None).await?;
        self.show(&report, |report| {
            let mut text = String::new();
            for change in &report.changes {
                text += &format!("{change}\n");
            }
            for id in &report.sessions_touched {
                text += &format!("ends session {id}\n");
            }
            for what in &report.needs_restart {
                text += &format!("needs a new start: {what}\n");
            }
            if text.is_empty() {
                text += "nothing has changed\n";
            }
            text
        });
        Ok(dry_run || report.applied)
    }

    pub(crate) fn show<T: serde::Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        if self.json {
            output::json(value);
        } else {
            print(&text(value));
        }
    }

    async fn all_users(&self) -> Result<api::UserList, CallFault> {
        let mut all = api::UserList { users: Vec::new(), next: None };
        let mut path = format!("{}?limit=1000", api::path::USERS);
        loop {
            let page: api::UserList = self.api.call(Method::GET, &path, None).await?;
            all.users.extend(page.users);
            let Some(next) = page.next else { return Ok(all) };
            path = format!("{}?limit=1000&after={}", api::path::USERS, segment(&next));
        }
    }

    async fn all_devices(&self, user: Option<&str>) -> Result<api::DeviceList, CallFault> {
        let mut all = api::DeviceList { devices: Vec::new(), next: None };
        let user = user.map(|user| format!("&user={}", segment(user))).unwrap_or_default();
        let mut path = format!("{}?limit=1000{user}", api::path::DEVICES);
        loop {
            let page: api::DeviceList = self.api.call(Method::GET, &path, None).await?;
            all.devices.extend(page.devices);
            let Some(next) = page.next else { return Ok(all) };
            path = format!("{}?limit=1000{user}&after={}", api::path::DEVICES, segment(&next));
        }
    }
}

/// A value of an enum as it is in JSON.
pub(crate) fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn device_row(device: &api::Device) -> Vec<String> {
    let behind: Vec<String> = device.prefixes.iter().map(ToString::to_string).collect();
    vec![
        device.user.clone(),
        device.device.clone(),
        word(&device.certificate),
        device.certificate_expires.map(|at| at.to_string()).unwrap_or_default(),
        behind.join(" "),
    ]
}

fn session_row(session: &api::Session) -> Vec<String> {
    let inner4 = session.inner4.map(|a| a.to_string());
    let inner6 = session.inner6.map(|a| a.to_string());
    let inside: Vec<String> = inner4.into_iter().chain(inner6).collect();
    vec![
        session.user.clone(),
        session.device.clone(),
        std::net::SocketAddr::new(session.remote_address, session.remote_port).to_string(),
        format!("{} {}", session.protocol, word(&session.transport)),
        session.identity.clone(),
        inside.join(" "),
        session.since.to_string(),
        bytes(session.rx_bytes),
        bytes(session.tx_bytes),
        session.id.clone(),
    ]
}

fn identity_row(identity: &api::Identity) -> Vec<String> {
    let wrap = match &identity.auth {
        Some(auth) => format!("{} {auth}", identity.wrap),
        None => identity.wrap.clone(),
    };
    vec![
        identity.name.clone(),
        identity.key.clone(),
        wrap,
        identity.port.map(|port| port.to_string()).unwrap_or_default(),
        identity.certificate_expires.to_string(),
    ]
}
