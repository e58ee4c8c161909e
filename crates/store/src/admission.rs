//! Logins as one change: who may come in gets a session and addresses, or nothing is written.

use crate::certificates::admitted;
use crate::credential::{KeyHash, Serial};
use crate::fault::{AdmissionFault, LeaseFault, StoreFault};
use crate::lease::{Begun, Lease, Stock};
use crate::model::{Authorized, Holder, Session, SessionStart};
use crate::sessions;
use crate::sqlite::{Durability, Sql};
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
    /// [`authorize`](Self::authorize), [`open_session`](Self::open_session) and [`lease`](Self::lease) for each of them,
    /// all in one transaction: a device that is revoked at the same moment is either refused or found among the open
    /// sessions, and one that gets no addresses leaves no session behind. Of those that wait together each costs less.
    ///
    /// Gives one outcome for each, in order.
    ///
    /// # Errors
    /// When the database fails. Then nobody came in and nothing was written.
    pub fn admit(
        &self,
        admissions: &[Admission<'_>],
    ) -> Result<Vec<Result<Admitted, AdmissionFault>>, StoreFault> {
        let mut state = self.state();
        let State { db, allocator, epochs, nat, moved, told } = &mut *state;
        let Some(allocator) = allocator.as_mut() else {
            return Ok(admissions.iter().map(|_| Err(AdmissionFault::NoPools)).collect());
        };
        *told = admissions.last().map_or(*told, |last| last.now);
        let mut stock = Stock { allocator, nat: nat.as_mut(), epochs };
        let mut settled = Vec::with_capacity(admissions.len());
        let outcomes = db.transaction(Durability::Soon, |sql| {
            let admit = |admission| match admit_one(sql, &stock, admission) {
                Ok((who, session, begun)) => {
                    // Who comes next finds these addresses taken.
                    stock.settle(&begun);
                    let record = begun.record;
                    settled.push(begun);
                    Ok(Ok((who, session, record)))
                }
                Err(AdmissionFault::Store(fault)) => Err(fault),
                Err(refused) => Ok(Err(refused)),
            };
            admissions.iter().map(admit).collect::<Result<Vec<_>, StoreFault>>()
        });
        let outcomes = outcomes.inspect_err(|_| {
            settled.iter().rev().for_each(|begun| stock.unsettle(begun));
        })?;
        settled.iter().for_each(|begun| begun.forget_replaced(moved));
        drop(state);
        let handed_out =
            |(who, session, record)| Admitted { who, session, lease: Lease::new(self.clone(), record) };
        Ok(outcomes.into_iter().map(|outcome| outcome.map(handed_out)).collect())
    }
}

/// Writes nothing unless all of it is granted.
fn admit_one(
    sql: &Sql<'_>,
    stock: &Stock<'_>,
    admission: &Admission<'_>,
) -> Result<(Authorized, Session, Begun), AdmissionFault> {
    let Admission { serial, key, protocol, identity, transport, now } = *admission;
    let Holder { device, user, .. } = admitted(sql, serial, key, now)?;
    let prefixes = sql.prefixes(device.id)?;
    let (id, certificate) = (device.id, Some((serial, key)));
    let who = Authorized { device, user, prefixes };
    let chosen = match stock.choose(sql, id, now) {
        Ok(chosen) => chosen,
        Err(LeaseFault::Store(fault)) => return Err(AdmissionFault::Store(fault)),
        Err(fault) => return Err(AdmissionFault::NoLease { who: Box::new(who), fault }),
    };
    let start = SessionStart { device: id, certificate, protocol, identity, transport, now };
    let session = sessions::begin(sql, &start)?;
    let begun = stock.begin(sql, chosen, id, session.id)?;
    Ok((who, session, begun))
}

#[cfg(test)]
mod tests;
