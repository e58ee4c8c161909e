//! Chains that have led to a root: what is proven stays so as long as all certificates of it are valid.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adit_pki::{Certificate, Purpose, UnixTime};
use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;

/// The most chains that are remembered; the oldest make room. One takes about 1.7 KB.
pub(crate) const CAPACITY: usize = 16_384;

/// SHA-256 over the certificates of a chain and what it is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ChainId([u8; 32]);

impl ChainId {
    pub(crate) fn new(role: Purpose, leaf: &[u8], intermediates: &[CertificateDer<'_>]) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(match role {
            Purpose::Server => b"s",
            Purpose::Client => b"c",
        });
        for der in [leaf].into_iter().chain(intermediates.iter().map(AsRef::as_ref)) {
            // With their lengths, the same bytes cut up otherwise are another chain.
            hash.update(&der.len().to_be_bytes());
            hash.update(der);
        }
        Self(hash.finish().as_ref().try_into().expect("SHA-256 is 32 bytes long"))
    }
}

/// The chains that led to one set of roots.
#[derive(Debug, Default)]
pub(crate) struct Proven(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    chains: HashMap<ChainId, Chain>,
    /// Every key of `chains` once, the oldest first.
    order: VecDeque<ChainId>,
}

#[derive(Debug)]
struct Chain {
    leaf: Arc<Certificate>,
    /// From the first to the last second in which each certificate of the path is valid.
    valid: RangeInclusive<UnixTime>,
}

impl Proven {
    /// The first certificate of the chain, if it is known and all of it valid `now`.
    pub(crate) fn find(&self, id: &ChainId, now: UnixTime) -> Option<Arc<Certificate>> {
        let memory = self.memory();
        memory.chains.get(id).filter(|chain| chain.valid.contains(&now)).map(|chain| Arc::clone(&chain.leaf))
    }

    /// Remembers a chain that has been verified, in the place of what was known of it before.
    pub(crate) fn keep(&self, id: ChainId, leaf: Arc<Certificate>, valid: RangeInclusive<UnixTime>) {
        let mut memory = self.memory();
        if memory.chains.insert(id, Chain { leaf, valid }).is_some() {
            return;
        }
        memory.order.push_back(id);
        if memory.order.len() > CAPACITY
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.chains.remove(&oldest);
        }
    }

    /// How many chains are remembered.
    pub(crate) fn len(&self) -> usize {
        self.memory().chains.len()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
