//! Ports that are forwarded to devices.

use std::collections::HashMap;

use adit_api::{AddForward, Forward, ForwardList, ForwardProtocol, Problem, Time};
use adit_plan::nat::Forwards;
use adit_plan::rules::{FORWARDS, FORWARDS_ANY};
use adit_store::{ForwardFault, ForwardRow, NewForward, Page, Timestamp};
use tokio::sync::oneshot;

use super::{Admin, Live, conflict, internal, invalid, not_found, refused, unavailable};
use crate::desk::{Ask, forward_ways};
use crate::exit::{Key, Way, keys};

impl Admin {
    /// Forwards a port to a device; open when this returns, if the device is connected.
    ///
    /// # Errors
    /// [`Problem`], worded for people; nothing is forwarded then.
    pub async fn add_forward(&self, request: AddForward) -> Result<ForwardList, Problem> {
        let loaded = self.loaded();
        let Some(config) = &loaded.config.forward else {
            return Err(conflict(
                "no ports are forwarded here: add [forward] to the configuration and reload",
            ));
        };
        let device = self.find_device(&request.user, &request.device)?;
        let change = self.change();
        let expires = request.expires_in.map(|seconds| {
            let millis = i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
            Timestamp::from_millis(change.now.as_millis().saturating_add(millis))
        });
        use adit_store::ForwardProtocol::{Tcp, Udp};
        let new = NewForward {
            device: device.id,
            protocols: match request.protocol {
                ForwardProtocol::Tcp => &[Tcp],
                ForwardProtocol::Udp => &[Udp],
                ForwardProtocol::Both => &[Tcp, Udp],
            },
            port: request.port,
            to_port: request.to,
            expires,
            ports: &config.ports,
            per_user: config.per_user.into(),
        };
        let added = self.store.add_forward(&change, &new).map_err(fault)?;
        self.follow_forwards(device.id, Vec::new()).await?;
        let rows = added.iter().filter_map(|added| self.store.forward_row(added.id).transpose());
        self.list(rows.collect::<Result<_, _>>().map_err(internal)?, None)
    }

    /// Forwarded ports, of one user or all, or a page of them.
    ///
    /// # Errors
    /// [`Problem`] when there is no such user.
    pub fn forwards(&self, user: Option<&str>, page: &Page) -> Result<ForwardList, Problem> {
        let user = user.map(|name| self.user_id(name)).transpose()?;
        let listed = self.store.forwards(user, page).map_err(internal)?;
        self.list(listed.items, listed.next.map(|cursor| cursor.to_string()))
    }

    /// Ends a forward, and the connections that came in by it.
    ///
    /// # Errors
    /// [`Problem`] when there is none with this id.
    pub async fn remove_forward(&self, id: &str) -> Result<Forward, Problem> {
        let id = id.parse().map_err(|_| not_found("forward", id))?;
        let row = self.store.forward_row(id).map_err(internal)?;
        let row = row.ok_or_else(|| not_found("forward", &id.to_string()))?;
        let (device, ways) = (row.forward.device, forward_ways(&row.forward));
        let before = self.list(vec![row], None)?.forwards.pop();
        // Nothing comes in by it any more when the journal says that it is over.
        self.follow_forwards(device, ways).await?;
        if let Err(fault) = self.store.end_forward(&self.change(), id) {
            self.follow_forwards(device, Vec::new()).await?;
            return Err(refused(fault));
        }
        before.map(|before| Forward { open: false, ..before }).ok_or_else(|| internal("the forward vanished"))
    }

    /// The kernel follows what has changed for a device.
    async fn follow_forwards(&self, device: adit_store::DeviceId, cut: Vec<Way>) -> Result<(), Problem> {
        let Some(live) = self.live() else { return Ok(()) };
        let (done, answer) = oneshot::channel();
        let gone = || unavailable("the gateway is shutting down");
        live.desk.send(Ask::Forwards { device, cut, done }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(internal)
    }

    fn list(&self, rows: Vec<ForwardRow>, next: Option<String>) -> Result<ForwardList, Problem> {
        let layout = self.store.nat();
        let places = layout.as_ref().and_then(|layout| layout.forward());
        let open = match (self.live(), places) {
            (Some(live), Some(places)) => counts(live, places)?,
            _ => HashMap::new(),
        };
        let addresses = places.map(|places| places.addresses.clone()).unwrap_or_default();
        let forwards = rows.into_iter().map(|row| {
            let ForwardRow { forward, user, device } = row;
            let counted = |way| places.map(|places| keys(&way, places)).unwrap_or_default();
            let mut found = forward_ways(&forward)
                .into_iter()
                .flat_map(counted)
                .filter_map(|key| open.get(&key))
                .peekable();
            Forward {
                id: forward.id.to_string(),
                user: user.to_string(),
                device: device.to_string(),
                protocol: match forward.protocol {
                    adit_store::ForwardProtocol::Tcp => ForwardProtocol::Tcp,
                    adit_store::ForwardProtocol::Udp => ForwardProtocol::Udp,
                },
                addresses: addresses.clone(),
                port: forward.port,
                to: forward.to_port,
                open: found.peek().is_some(),
                connections: found.sum(),
                created: Time::from_millis(forward.started.as_millis()),
                expires: forward.expires.map(|at| Time::from_millis(at.as_millis())),
            }
        });
        Ok(ForwardList { forwards: forwards.collect(), next })
    }
}

/// The forwards that are open, with the connections that they let in.
fn counts(live: &Live, places: &Forwards) -> Result<HashMap<Key, u64>, Problem> {
    let map = if places.addresses.is_empty() { FORWARDS_ANY } else { FORWARDS };
    let elements = live.machine.elements(map).map_err(internal)?;
    let counted = |element: adit_host::nft::Element| Some((Key::forward(&element.key)?, element.packets));
    Ok(elements.into_iter().filter_map(counted).collect())
}

fn fault(fault: ForwardFault) -> Problem {
    match fault {
        ForwardFault::Change(fault) => refused(fault),
        ForwardFault::Taken { .. } | ForwardFault::Full { .. } | ForwardFault::TooMany { .. } => {
            conflict(fault)
        }
        _ => invalid(fault),
    }
}
