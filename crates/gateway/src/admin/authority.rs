//! The state of the CA.

use adit_api::{CaStatus, Problem, Time};
use adit_pki::UnixTime;
use adit_store::Page;

use super::{Admin, internal};

impl Admin {
    /// The CA and its CRL.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub fn ca_status(&self) -> Result<CaStatus, Problem> {
        let certificate = self.keyring().authority().certificate();
        let time = |at: UnixTime| Time::from_millis(at.as_secs() as i64 * 1000);
        let crl = self.keyring().crl().map_err(internal)?;
        let issuer = self.issuer()?;
        let mut revoked = 0;
        let mut page = Page::after(None, adit_store::LARGEST_PAGE);
        loop {
            let listed = self.store.revocations(&issuer, &page).map_err(internal)?;
            revoked += listed.items.len() as u64;
            match listed.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        Ok(CaStatus {
            subject: certificate.subject(),
            key: certificate.key_kind().map_or_else(|| "unknown".into(), |kind| kind.to_string()),
            serial: certificate.serial().to_string(),
            expires: time(certificate.not_after()),
            revoked,
            crl_updated: crl.as_ref().map(|crl| time(crl.this_update())),
            crl_expires: crl.as_ref().and_then(adit_pki::Crl::next_update).map(time),
        })
    }
}
