//! One session as the control thread knows it.

use std::time::Instant;

use adit_api::Time;
use adit_engine::{Clocks, Driver};
use adit_openvpn::machine::{Agreement, Ended, Login};
use adit_store::{DeviceId, Timestamp, UserId};

use crate::desk::Granted;

/// Which sessions are meant.
#[derive(Debug, Clone)]
pub(crate) enum Which {
    /// All of a user.
    User(UserId),
    /// All of a device.
    Device(DeviceId),
    /// The one with this id.
    Session(String),
}

/// See the module's text.
pub(super) struct Entry {
    pub(super) driver: Driver,
    pub(super) identity: String,
    pub(super) peer_id: Option<u32>,
    /// What the desk granted, until data packets may pass.
    pub(super) granted: Option<Box<Granted>>,
    pub(super) live: Option<Live>,
    /// The desk has been told that it is over.
    pub(super) given_back: bool,
    began: Instant,
    client: Option<String>,
    tls: Option<String>,
    /// The log has a line about why the client did not get in.
    failure_logged: bool,
}

/// A session that carries data.
pub(super) struct Live {
    pub(super) granted: Box<Granted>,
    pub(super) agreement: Agreement,
    pub(super) since: Timestamp,
}

impl Entry {
    pub(super) fn new(driver: Driver, identity: String, now: Instant) -> Self {
        Self {
            driver,
            identity,
            peer_id: None,
            granted: None,
            live: None,
            given_back: false,
            began: now,
            client: None,
            tls: None,
            failure_logged: false,
        }
    }

    /// The session's id, for the log; before it has one, where it comes from.
    pub(super) fn id(&self) -> String {
        match &self.live {
            Some(live) => live.granted.session.to_string(),
            None => self.driver.path().remote().to_string(),
        }
    }

    /// True once no packet passes any more, while the client is still being told.
    pub(super) fn is_closed(&self) -> bool {
        self.driver.session().is_some_and(|session| session.is_closed())
    }

    /// Data packets pass: not before the session is attached, and not while the client is being told that it is
    /// over.
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some() && !self.is_closed()
    }

    /// Remembers what a client says of itself.
    pub(super) fn note_login(&mut self, login: &Login) {
        let said: Vec<&str> =
            ["IV_VER", "IV_PLAT", "IV_GUI_VER"].iter().filter_map(|key| login.peer_info.get(key)).collect();
        self.client = (!said.is_empty()).then(|| said.join(" "));
        self.tls = Some(login.tls.clone());
        tracing::debug!(remote = %self.driver.path().remote(), client = self.client, tls = self.tls, took = ?self.began.elapsed(), "client authenticated");
    }

    /// True when it is one of those meant. Sessions that are over already are none of them; those that are still
    /// being decided belong to whom they will be.
    pub(super) fn is(&self, which: &Which) -> bool {
        let live = self.live.as_ref().filter(|_| self.is_live());
        let Some(granted) = live.map(|live| &live.granted).or(self.granted.as_ref()) else {
            return false;
        };
        match which {
            Which::User(user) => granted.user == *user,
            Which::Device(device) => granted.device == *device,
            Which::Session(id) => granted.session.to_string() == *id,
        }
    }

    /// Logs a failure as soon as it is one: a client that has gone away lets the farewell wait.
    pub(super) fn note_failure(&mut self) {
        if self.live.is_none()
            && let Some(why) = self.driver.machine().closing().cloned()
        {
            self.log_failure(&why);
        }
    }

    /// One clear line about a client that did not get in.
    pub(super) fn log_failure(&mut self, why: &Ended) {
        if std::mem::replace(&mut self.failure_logged, true) {
            return;
        }
        let (identity, remote) = (&self.identity, self.driver.path().remote());
        match why {
            // The desk has said why.
            Ended::Refused(_) => {}
            Ended::Local | Ended::PeerLeft => tracing::debug!(identity, %remote, "handshake ended: {why}"),
            Ended::Timeout(..) => tracing::info!(identity, %remote, "handshake failed: {why}"),
            _ => tracing::warn!(identity, %remote, "handshake failed: {why}"),
        }
    }

    /// The session for the API; `None` before it carries data, and when it no longer does.
    pub(super) fn describe(&self, gateway: &str, clocks: &Clocks) -> Option<adit_api::Session> {
        let live = self.live.as_ref().filter(|_| self.is_live())?;
        let counters = self.driver.session()?.counters();
        // How long ago, on the engine's clock; then as a time of day.
        let idle = clocks.since(counters.last_received).as_millis();
        let last_seen = Time::from_millis(crate::clock::now().as_millis() - idle as i64);
        let path = self.driver.path();
        let (remote, local) = (path.remote(), path.local());
        Some(adit_api::Session {
            id: live.granted.session.to_string(),
            gateway: gateway.to_owned(),
            user: live.granted.user_name.clone(),
            device: live.granted.device_name.clone(),
            protocol: "openvpn".into(),
            identity: self.identity.clone(),
            transport: if path.is_stream() { adit_api::Transport::Tcp } else { adit_api::Transport::Udp },
            remote_address: remote.ip().to_canonical(),
            remote_port: remote.port(),
            local_address: local.ip().to_canonical(),
            local_port: local.port(),
            inner4: live.granted.inner.v4,
            inner6: live.granted.inner.v6,
            cipher: live.agreement.cipher.name().into(),
            since: Time::from_millis(live.since.as_millis()),
            last_seen: last_seen.max(Time::from_millis(live.since.as_millis())),
            rx_bytes: counters.received_bytes,
            tx_bytes: counters.sent_bytes,
            late_packets: counters.late_packets,
            worst_backtrack: counters.worst_backtrack,
            client: self.client.clone(),
            tls: self.tls.clone(),
        })
    }
}

/// The reason in a few words for the journal, which keeps nothing a peer has said.
pub(super) fn short(why: &Ended) -> String {
    match why {
        Ended::Local => "closed by the gateway",
        Ended::Refused(_) => "refused",
        Ended::PeerLeft => "client left",
        Ended::Silent(_) => "client silent",
        Ended::Timeout(..) => "negotiation timed out",
        Ended::Tls(_) => "TLS failed",
        Ended::Protocol(_) | Ended::AuthFailed(_) | Ended::Told(..) => "protocol error",
    }
    .to_owned()
}
