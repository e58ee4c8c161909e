//! Key exchange on secp521r1 (RFC 8422 §5.4, RFC 8446 §4.2.8.2), which the library does not offer.
//!
//! It is the last choice, and there for one reason: in TLS 1.2 a peer that has a secp521r1 certificate uses it
//! only with those who name the curve among their groups (RFC 8422 §5.1.1 counts it for certificates too).

use aws_lc_rs::agreement::{ECDH_P521, EphemeralPrivateKey, PublicKey, UnparsedPublicKey, agree_ephemeral};
use aws_lc_rs::rand::SystemRandom;
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// The group.
#[derive(Debug)]
pub(crate) struct Secp521r1;

impl SupportedKxGroup for Secp521r1 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let random = |_| Error::FailedToGetRandomBytes;
        let own = EphemeralPrivateKey::generate(&ECDH_P521, &SystemRandom::new()).map_err(random)?;
        let public = own.compute_public_key().map_err(random)?;
        Ok(Box::new(Exchange { own, public }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

struct Exchange {
    own: EphemeralPrivateKey,
    public: PublicKey,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let bad_share = Error::from(PeerMisbehaved::InvalidKeyShare);
        // TLS allows the uncompressed form of points only; aws-lc would take others.
        if peer.first() != Some(&0x04) {
            return Err(bad_share);
        }
        agree_ephemeral(self.own, UnparsedPublicKey::new(&ECDH_P521, peer), bad_share, |secret| {
            Ok(SharedSecret::from(secret))
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_ref()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share() -> Box<dyn ActiveKeyExchange> {
        Secp521r1.start().unwrap()
    }

    #[test]
    fn two_ends_agree_and_a_third_does_not() {
        let (one, two, three) = (share(), share(), share());
        let (from_one, from_two) = (one.pub_key().to_vec(), two.pub_key().to_vec());

        let secret = one.complete(&from_two).unwrap();

        assert_eq!(secret.secret_bytes().len(), 66);
        assert_eq!(secret.secret_bytes(), two.complete(&from_one).unwrap().secret_bytes());
        assert_ne!(secret.secret_bytes(), three.complete(&from_one).unwrap().secret_bytes());
    }

    #[test]
    fn points_off_the_curve_and_compressed_ones_are_refused() {
        let good = share().pub_key().to_vec();
        let mut off = good.clone();
        off[100] ^= 1;
        let compressed = [&[2 + (good[132] & 1)], &good[1..67]].concat();

        for bad in [off.as_slice(), &compressed, &good[..132], &[], &[4]] {
            assert_eq!(share().complete(bad).err(), Some(PeerMisbehaved::InvalidKeyShare.into()));
        }
    }
}
