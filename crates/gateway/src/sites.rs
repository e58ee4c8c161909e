//! Networks behind devices: known to all who decide about routes, without asking the database each time.

use std::sync::{Arc, RwLock};

use adit_store::{DeviceId, Page, Store, StoreFault};
use ipnet::IpNet;

/// Shared by all; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sites(Arc<RwLock<Vec<(DeviceId, IpNet)>>>);

impl Sites {
    /// Reads all networks anew.
    pub(crate) fn refresh(&self, store: &Store) -> Result<(), StoreFault> {
        let mut found = Vec::new();
        let mut page = Page::after(None, adit_store::LARGEST_PAGE);
        loop {
            let listed = store.devices(None, false, crate::clock::now(), &page)?;
            for row in &listed.items {
                found.extend(row.prefixes.iter().map(|prefix| (row.device.id, *prefix)));
            }
            match listed.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
        Ok(())
    }

    /// All networks.
    pub(crate) fn all(&self) -> Vec<IpNet> {
        self.read(|_| true)
    }

    /// Those that are not behind `device`.
    pub(crate) fn others(&self, device: DeviceId) -> Vec<IpNet> {
        self.read(|owner| owner != device)
    }

    fn read(&self, wanted: impl Fn(DeviceId) -> bool) -> Vec<IpNet> {
        let sites = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        sites.iter().filter(|(owner, _)| wanted(*owner)).map(|(_, network)| *network).collect()
    }
}
