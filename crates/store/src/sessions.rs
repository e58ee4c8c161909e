//! Sessions in the journal.

use crate::certificates::{admitted, welcome};
use crate::fault::{AccessFault, Refusal, StoreFault};
use crate::id::{SessionId, UserId};
use crate::model::{Session, SessionStart};
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::{Durability, Sql};
use crate::store::{Store, bounded};
use crate::time::Timestamp;

/// The longest name of a protocol, identity or transport, and the longest reason.
const LONGEST_WORD: usize = 128;

impl Store {
    /// Writes down that a session begins, if its device may come in at this very moment: a device that was
    /// authorised and revoked an instant later is refused here, so a revocation that looks through the open sessions
    /// afterwards misses none.
    pub fn open_session(&self, start: &SessionStart<'_>) -> Result<Session, AccessFault> {
        let SessionStart { device, certificate, now, .. } = *start;
        let mut state = self.state();
        state.told = now;
        state.db.transaction(Durability::Soon, |sql| {
            match certificate {
                Some((serial, key)) if admitted(sql, serial, key, now)?.device.id != device => {
                    return Err(Refusal::KeyMismatch.into());
                }
                Some(_) => {}
                None => {
                    let device = sql.device(device)?.ok_or(Refusal::Unknown)?;
                    welcome(&device, &sql.user(device.user)?.ok_or(Refusal::Unknown)?)?;
                }
            }
            Ok(begin(sql, start)?)
        })
    }

    /// Writes down that a session ends, and why. Says whether it was open; ending twice changes nothing. A session
    /// never ends before it began, whatever the clock says. Its lease ends by itself, see [`Lease`](crate::Lease).
    pub fn close_session(&self, id: SessionId, now: Timestamp, reason: &str) -> Result<bool, StoreFault> {
        bounded("the reason", reason, LONGEST_WORD)?;
        let mut state = self.state();
        state.told = now;
        state.db.transaction(Durability::Soon, |sql| sql.end_session(id, now, reason))
    }

    /// The session with this id, open or not.
    pub fn session(&self, id: SessionId) -> Result<Option<Session>, StoreFault> {
        self.read(|sql| sql.session(id))
    }

    /// This gateway's open sessions, oldest first.
    pub fn open_sessions(&self, page: &Page) -> Result<Listed<Session>, StoreFault> {
        let (after, limit) = (page.seq_key()?.unwrap_or(0), page.limit());
        let rows = self.read(|sql| sql.open_sessions(after, limit + 1))?;
        Ok(Listed::new(rows, limit, |session: &Session| Cursor::at(&[&session.seq.to_string()])))
    }

    /// The open sessions of all of a user's devices at this gateway.
    pub fn open_sessions_of(&self, user: UserId) -> Result<Vec<SessionId>, StoreFault> {
        self.read(|sql| sql.open_sessions_of(user))
    }
}

/// Writes down that a session begins, within a transaction, for a device that is known to be welcome.
pub(crate) fn begin(sql: &Sql<'_>, start: &SessionStart<'_>) -> Result<Session, StoreFault> {
    let SessionStart { device, certificate, protocol, identity, transport, now } = *start;
    bounded("the protocol's name", protocol, LONGEST_WORD)?;
    bounded("the identity's name", identity, LONGEST_WORD)?;
    bounded("the transport's name", transport, LONGEST_WORD)?;
    let seq = sql.next_seq();
    let session = Session {
        id: SessionId::at(seq)?,
        gateway: sql.gateway(),
        seq,
        device,
        certificate: certificate.map(|(serial, _)| serial.clone()),
        protocol: protocol.to_owned(),
        identity: identity.to_owned(),
        transport: transport.to_owned(),
        started: now,
        ended: None,
        reason: None,
    };
    sql.insert_session(&session)?;
    Ok(session)
}

#[cfg(test)]
mod tests;
