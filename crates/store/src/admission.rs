//! A login as one change: who may come in gets a session and addresses, or nothing is written.

use crate::certificates::admitted;
use crate::credential::{KeyHash, Serial};
use crate::fault::{AdmissionFault, LeaseFault};
use crate::lease::{self, Lease, LeaseRequest};
use crate::model::{Authorized, Holder, Session, SessionStart};
use crate::sessions;
use crate::sqlite::Durability;
use crate::store::{State, Store};
use crate::time::Timestamp;

/// Who asks to come in, and how.
#[derive(Debug, Clone, Copy)]
pub struct Admission<'a> {
    /// The serial number of the certificate by which the peer proved itself.
    pub serial: &'a Serial,
    /// The hash of its key.
    pub key: &'a KeyHash,
    /// The protocol's name.
    pub protocol: &'a str,
    /// The name of the gateway's identity that answered.
    pub identity: &'a str,
    /// The transport's name.
    pub transport: &'a str,
    /// When the session and the lease begin.
    pub now: Timestamp,
}

/// Who came in, and with what.
#[derive(Debug)]
pub struct Admitted {
    /// Device, user, and the networks behind the device.
    pub who: Authorized,
    /// The session, open now.
    pub session: Session,
    /// Its addresses.
    pub lease: Lease,
}

impl Store {
    /// [`authorize`](Self::authorize), [`open_session`](Self::open_session) and [`lease`](Self::lease) in one
    /// transaction: a device that is revoked at the same moment is either refused or found among the open sessions,
    /// and one that gets no addresses leaves no session behind.
    pub fn admit(&self, admission: &Admission<'_>) -> Result<Admitted, AdmissionFault> {
        let Admission { serial, key, protocol, identity, transport, now } = *admission;
        let mut state = self.state();
        state.told = now;
        let State { db, allocator, .. } = &mut *state;
        let allocator = allocator.as_mut().ok_or(AdmissionFault::NoPools)?;
        let (who, session, begun) = db.transaction(Durability::Soon, |sql| {
            let Holder { device, user, .. } = admitted(sql, serial, key, now)?;
            let prefixes = sql.prefixes(device.id)?;
            let certificate = Some((serial, key));
            let start = SessionStart { device: device.id, certificate, protocol, identity, transport, now };
            let session = sessions::begin(sql, &start)?;
            let request = LeaseRequest { device: device.id, session: session.id, now };
            let who = Authorized { device, user, prefixes };
            match lease::begin(sql, allocator, &request) {
                Ok(begun) => Ok((who, session, begun)),
                Err(LeaseFault::Store(fault)) => Err(AdmissionFault::Store(fault)),
                Err(fault) => Err(AdmissionFault::NoLease { who: Box::new(who), fault }),
            }
        })?;
        let record = begun.settle(allocator);
        drop(state);
        Ok(Admitted { who, session, lease: Lease::new(self.clone(), record) })
    }
}

#[cfg(test)]
mod tests;
