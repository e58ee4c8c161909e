//! Devices.

use std::time::Instant;

use adit_api::{AddDevice, Device, DeviceList, DeviceRevoked, KeyInForce, Problem, Time};
use adit_openvpn::machine::Farewell;
use adit_pki::{Request, Signer};
use adit_store::{Certificate, CertificateState, DeviceRow, KeyHash, NewDevice, Page, Reason, Timestamp};

use super::{Admin, internal, invalid, millis, not_found, refused};
use crate::clock;
use crate::control::Which;

impl Admin {
    /// Adds a device with a certificate: for the key in the request, or for one made here.
    ///
    /// # Errors
    /// [`Problem`], worded for people; nothing has been added then.
    pub async fn add_device(&self, request: AddDevice) -> Result<Device, Problem> {
        let user = self.user_id(&request.user)?;
        let csr = request.csr.as_deref().map(Request::from_pem).transpose().map_err(invalid)?;
        let new = NewDevice {
            name: &request.device,
            note: request.note.as_deref().unwrap_or(""),
            prefixes: &request.prefixes,
        };
        let device = self.store.add_device(&self.change(), user, &new).map_err(refused)?;
        let result = self.certify(&device, &request.user, csr.as_ref());
        let pem = match result {
            Ok(pem) => pem,
            Err(problem) => {
                self.store
                    .revoke_device(&self.change(), device.id, Reason::CessationOfOperation)
                    .map_err(refused)?;
                return Err(problem);
            }
        };
        if !request.prefixes.is_empty() {
            self.apply_sites()?;
        }
        let mut described = self.device(user, &request.device)?;
        described.certificate_pem = csr.map(|_| pem);
        Ok(described)
    }

    /// Devices of one user or of all.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub fn devices(&self, user: Option<&str>, page: &Page) -> Result<DeviceList, Problem> {
        let user = user.map(|name| self.user_id(name)).transpose()?;
        let listed = self.store.devices(user, false, clock::now(), page).map_err(internal)?;
        Ok(DeviceList {
            devices: listed.items.iter().map(describe).collect(),
            next: listed.next.map(|cursor| cursor.to_string()),
        })
    }

    /// Revokes a device for good and cuts its sessions.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub async fn revoke_device(&self, user: &str, name: &str) -> Result<DeviceRevoked, Problem> {
        let started = Instant::now();
        let device = self.find_device(user, name)?;
        self.store.revoke_device(&self.change(), device.id, Reason::PrivilegeWithdrawn).map_err(refused)?;
        let farewell = Farewell::AuthFailed("the device is revoked".into());
        let sessions_closed = self.cut(Which::Device(device.id), farewell).await?;
        let cut = DeviceRevoked {
            user: user.to_owned(),
            device: name.to_owned(),
            sessions_closed,
            millis: millis(started),
        };
        self.keyring().forget_device_key(device.id).map_err(internal)?;
        self.publish_crl()?;
        self.apply_sites()?;
        Ok(cut)
    }

    pub(super) fn find_device(&self, user: &str, name: &str) -> Result<adit_store::Device, Problem> {
        let id = self.user_id(user)?;
        let device = self.store.device_by_name(id, name).map_err(internal)?;
        device.ok_or_else(|| not_found(&format!("device of {user}"), name))
    }

    /// Issues the device's certificate and writes it down; returns it as PEM.
    fn certify(
        &self,
        device: &adit_store::Device,
        user: &str,
        csr: Option<&Request>,
    ) -> Result<String, Problem> {
        let ca = &self.loaded().config.ca;
        let public_key = match csr {
            Some(csr) => csr.public_key().to_vec(),
            None => {
                let key = self.keyring().make_device_key(device.id, ca.device_key).map_err(internal)?;
                key.public_key().to_vec()
            }
        };
        let name = format!("{user}-{}", device.name);
        let certificate = self
            .keyring()
            .issue_device(&public_key, &name, ca.device_lifetime, clock::unix())
            .map_err(internal)?;
        let time = |at: adit_pki::UnixTime| Timestamp::from_millis(at.as_secs() as i64 * 1000);
        let record = Certificate {
            issuer: self.issuer()?,
            serial: certificate.serial().to_string().parse().map_err(internal)?,
            key: KeyHash::from_bytes(certificate.key_hash()),
            device: device.id,
            not_before: time(certificate.not_before()),
            not_after: time(certificate.not_after()),
            der: certificate.der().to_vec(),
            revocation: None,
        };
        self.store.add_certificate(&self.change(), &record).map_err(refused)?;
        Ok(certificate.to_pem())
    }

    fn device(&self, user: adit_store::UserId, name: &str) -> Result<Device, Problem> {
        let page = Page::after(None, adit_store::LARGEST_PAGE);
        let listed = self.store.devices(Some(user), false, clock::now(), &page).map_err(internal)?;
        let row = listed.items.iter().find(|row| row.device.name.as_str().eq_ignore_ascii_case(name));
        row.map(describe).ok_or_else(|| internal("the device vanished"))
    }
}

fn describe(row: &DeviceRow) -> Device {
    let time = |at: &Timestamp| Time::from_millis(at.as_millis());
    let (certificate, serial, expires) = match &row.certificate {
        CertificateState::None => (KeyInForce::None, None, None),
        CertificateState::Valid { serial, not_after } => (KeyInForce::Valid, Some(serial), Some(not_after)),
        CertificateState::Expired { serial, not_after } => {
            (KeyInForce::Expired, Some(serial), Some(not_after))
        }
        CertificateState::Revoked { serial, .. } => (KeyInForce::Revoked, Some(serial), None),
    };
    Device {
        id: row.device.id.to_string(),
        user: row.user.to_string(),
        device: row.device.name.to_string(),
        prefixes: row.prefixes.clone(),
        certificate,
        certificate_serial: serial.map(ToString::to_string),
        certificate_expires: expires.map(time),
        revoked: row.device.revoked.as_ref().map(time),
        note: row.device.note.clone(),
        created: time(&row.device.created),
        certificate_pem: None,
    }
}
