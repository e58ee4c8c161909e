//! All that a shard knows of sessions, by whatever leads to them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use adit_openvpn::packet::SessionId;
use rustc_hash::FxHashMap;

use crate::command::ControlKey;
use crate::routes::Routes;
use crate::{Handle, Path, Session};

/// See the module's text. A shard has its own, changed by commands: one insertion costs the same however many
/// sessions there are, and nobody ever waits for a reader.
#[derive(Debug, Default)]
pub(crate) struct Table {
    by_handle: FxHashMap<Handle, Entry>,
    by_peer: FxHashMap<u32, Arc<Session>>,
    by_remote: FxHashMap<SocketAddr, Arc<Session>>,
    by_control: FxHashMap<ControlKey, Handle>,
    watched: FxHashMap<SocketAddr, Handle>,
    routes: Routes,
    /// Handles with a control channel and no session yet.
    half_open: usize,
}

#[derive(Debug, Default)]
struct Entry {
    control: Option<ControlKey>,
    watched: Option<SocketAddr>,
    session: Option<Arc<Session>>,
}

impl Table {
    /// Remembers a client that the gate has admitted.
    pub(crate) fn admit(&mut self, handle: Handle, remote: SocketAddr, session: SessionId) {
        let key = ControlKey { remote, session };
        self.by_control.insert(key, handle);
        self.by_handle.insert(handle, Entry { control: Some(key), ..Entry::default() });
        self.half_open += 1;
    }

    /// Sends control packets from `remote` to `handle`.
    pub(crate) fn watch(&mut self, remote: SocketAddr, handle: Handle) {
        self.watched.insert(remote, handle);
        self.by_handle.entry(handle).or_default().watched = Some(remote);
    }

    /// Handshakes that have not become sessions.
    pub(crate) fn half_open(&self) -> usize {
        self.half_open
    }

    /// Whom a control packet is for.
    pub(crate) fn control(&self, remote: SocketAddr, session: Option<SessionId>) -> Option<Handle> {
        let known = session.and_then(|session| self.by_control.get(&ControlKey { remote, session }));
        known.or_else(|| self.watched.get(&remote)).copied()
    }

    /// The session of a DATA_V2 packet.
    pub(crate) fn by_peer(&self, peer: u32) -> Option<&Arc<Session>> {
        self.by_peer.get(&peer)
    }

    /// The session of a DATA_V1 packet.
    pub(crate) fn by_remote(&self, remote: SocketAddr) -> Option<&Arc<Session>> {
        self.by_remote.get(&remote)
    }

    /// The session that owns an inner address.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&Arc<Session>> {
        self.routes.find(address)
    }

    /// The session under `handle`, once attached.
    pub(crate) fn session(&self, handle: Handle) -> Option<&Arc<Session>> {
        self.by_handle.get(&handle)?.session.as_ref()
    }

    /// Makes a session reachable.
    pub(crate) fn attach(&mut self, session: &Arc<Session>) {
        let entry = self.by_handle.entry(session.handle()).or_default();
        if entry.session.replace(Arc::clone(session)).is_none() && entry.control.is_some() {
            self.half_open -= 1;
        }
        if let Some(peer) = session.peer_id() {
            self.by_peer.insert(peer, Arc::clone(session));
        }
        if let Path::Udp { remote, .. } = session.path() {
            self.by_remote.insert(remote, Arc::clone(session));
        }
        for network in session.sources().networks() {
            self.routes.insert(*network, session);
        }
    }

    /// True while another session is at this address: who forges it must not take that session's place.
    pub(crate) fn is_taken(&self, remote: SocketAddr, session: &Arc<Session>) -> bool {
        self.by_remote.get(&remote).is_some_and(|other| !Arc::ptr_eq(other, session) && !other.is_closed())
    }

    /// The session is reached over another path now.
    pub(crate) fn moved(&mut self, session: &Arc<Session>, path: Path) {
        let old = session.path().remote();
        session.set_path(path);
        remove_if_same(&mut self.by_remote, &old, session);
        self.by_remote.insert(path.remote(), Arc::clone(session));
        let Some(entry) = self.by_handle.get_mut(&session.handle()) else { return };
        if let Some(key) = &mut entry.control {
            self.by_control.remove(key);
            key.remote = path.remote();
            self.by_control.insert(*key, session.handle());
        }
        if let Some(watched) = &mut entry.watched {
            self.watched.remove(watched);
            *watched = path.remote();
            self.watched.insert(*watched, session.handle());
        }
    }

    /// Removes everything that leads to `handle`; false when nothing did.
    pub(crate) fn forget(&mut self, handle: Handle) -> bool {
        let Some(entry) = self.by_handle.remove(&handle) else { return false };
        if let Some(key) = entry.control {
            if self.by_control.get(&key) == Some(&handle) {
                self.by_control.remove(&key);
            }
            self.half_open -= usize::from(entry.session.is_none());
        }
        if let Some(remote) = entry.watched
            && self.watched.get(&remote) == Some(&handle)
        {
            self.watched.remove(&remote);
        }
        if let Some(session) = entry.session {
            session.close();
            if let Some(peer) = session.peer_id() {
                remove_if_same(&mut self.by_peer, &peer, &session);
            }
            remove_if_same(&mut self.by_remote, &session.path().remote(), &session);
            for network in session.sources().networks() {
                self.routes.remove(*network, &session);
            }
        }
        true
    }
}

/// A newer session may have taken the place already.
fn remove_if_same<K: std::hash::Hash + Eq>(
    map: &mut FxHashMap<K, Arc<Session>>,
    key: &K,
    session: &Arc<Session>,
) {
    if map.get(key).is_some_and(|owner| Arc::ptr_eq(owner, session)) {
        map.remove(key);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use adit_openvpn::data::{Channel, ChannelOptions};

    use super::*;
    use crate::Sources;

    pub(crate) fn path(port: u16) -> Path {
        Path::Udp {
            socket: 0,
            remote: SocketAddr::from(([192, 0, 2, 1], port)),
            local: SocketAddr::from(([198, 51, 100, 1], 1194)),
        }
    }

    pub(crate) fn session(n: u64, networks: &[&str]) -> Arc<Session> {
        let channel = Arc::new(Channel::new(ChannelOptions::default()));
        let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
        let handle = Handle::from_number(n);
        Arc::new(Session::new(handle, channel, Some(n as u32), Sources::new(networks), path(n as u16)))
    }

    fn id(n: u8) -> SessionId {
        SessionId::new([n; 8]).unwrap()
    }

    fn find(table: &Table, address: &str) -> Option<u64> {
        table.owner(address.parse().unwrap()).map(|session| session.handle().number())
    }

    #[test]
    fn a_session_is_reached_by_all_its_ways_until_it_is_forgotten() {
        let mut table = Table::default();
        let one = session(1, &["10.0.0.2/32", "192.168.7.0/24"]);
        table.admit(one.handle(), path(1).remote(), id(1));
        assert_eq!(table.half_open(), 1);
        table.attach(&one);
        assert_eq!(table.half_open(), 0);
        assert!(table.by_peer(1).is_some() && table.by_remote(path(1).remote()).is_some());
        assert_eq!(find(&table, "192.168.7.9"), Some(1));
        assert_eq!(table.control(path(1).remote(), Some(id(1))), Some(one.handle()));
        assert_eq!(table.control(path(2).remote(), Some(id(1))), None);
        assert!(table.forget(one.handle()));
        assert!(one.is_closed());
        assert!(table.by_peer(1).is_none() && table.by_remote(path(1).remote()).is_none());
        assert_eq!((find(&table, "10.0.0.2"), find(&table, "192.168.7.9")), (None, None));
        assert!(!table.forget(one.handle()));
    }

    #[test]
    fn a_session_that_moves_takes_its_control_channel_along() {
        let mut table = Table::default();
        let one = session(1, &[]);
        table.admit(one.handle(), path(1).remote(), id(1));
        table.attach(&one);
        table.moved(&one, path(77));
        assert_eq!(one.path(), path(77));
        assert_eq!(table.control(path(77).remote(), Some(id(1))), Some(one.handle()));
        assert_eq!(table.control(path(1).remote(), Some(id(1))), None);
        assert!(table.by_remote(path(1).remote()).is_none() && table.by_remote(path(77).remote()).is_some());
    }

    #[test]
    fn a_server_that_moves_is_still_heard_and_our_own_address_stays_open() {
        let mut table = Table::default();
        let open = |port| match path(port) {
            Path::Udp { socket, remote, local } => {
                Path::Udp { socket, remote, local: SocketAddr::from(([0; 4], local.port())) }
            }
            stream => stream,
        };
        let one = session(1, &[]);
        one.set_path(open(1));
        table.watch(path(1).remote(), one.handle());
        table.attach(&one);
        assert_eq!(one.path().moved_to(path(1)), open(1), "nothing has changed");
        assert_eq!(path(1).moved_to(path(77)), path(77));
        table.moved(&one, one.path().moved_to(path(77)));
        assert_eq!(one.path(), open(77));
        assert_eq!(table.control(path(77).remote(), None), Some(one.handle()));
        assert_eq!(table.control(path(1).remote(), None), None);
        table.forget(one.handle());
        assert_eq!(table.control(path(77).remote(), None), None);
    }

    #[test]
    fn an_address_is_taken_while_another_open_session_is_there() {
        let mut table = Table::default();
        let (one, two) = (session(1, &[]), session(2, &[]));
        table.attach(&one);
        table.attach(&two);
        assert!(table.is_taken(path(1).remote(), &two));
        assert!(!table.is_taken(path(1).remote(), &one), "its own");
        assert!(!table.is_taken(path(3).remote(), &two), "nobody's");
        one.close();
        assert!(!table.is_taken(path(1).remote(), &two), "nobody's any more");
    }

    #[test]
    fn forgetting_an_old_session_leaves_its_heir_in_place() {
        let mut table = Table::default();
        let (old, new) = (session(1, &["10.0.0.2/32"]), session(2, &["10.0.0.2/32"]));
        table.attach(&old);
        table.attach(&new);
        table.forget(old.handle());
        assert_eq!(find(&table, "10.0.0.2"), Some(2));
    }

    #[test]
    fn an_admitted_client_that_never_arrives_counts_as_half_open_until_forgotten() {
        let mut table = Table::default();
        table.admit(Handle::from_number(5), path(5).remote(), id(5));
        assert!(table.forget(Handle::from_number(5)));
        assert_eq!(table.half_open(), 0);
        assert_eq!(table.control(path(5).remote(), Some(id(5))), None);
    }
}
