//! The cryptographic provider of all connections: rustls's own on aws-lc-rs, with Ed448 and secp521r1 added.

use std::sync::{Arc, LazyLock};

use adit_openvpn::tls::Group;
use adit_pki::ed448;
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms};
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls12CipherSuite};

use crate::secp521r1::Secp521r1;

/// The provider, built once: the library's cipher suites and algorithms plus Ed448 for certificates and
/// handshakes. Key exchange prefers the hybrid of X25519 and ML-KEM-768, so that what is recorded today stays
/// closed to the quantum computers of tomorrow.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(build()));
    Arc::clone(&PROVIDER)
}

fn build() -> CryptoProvider {
    let library = aws_lc_rs::default_provider();
    CryptoProvider {
        cipher_suites: library.cipher_suites.iter().copied().map(with_ed448).collect(),
        kx_groups: Group::ALL.map(key_exchange).to_vec(),
        signature_verification_algorithms: verification(&library.signature_verification_algorithms),
        ..library
    }
}

/// The same with these key exchanges only.
pub(crate) fn provider_with(groups: &[Group]) -> Arc<CryptoProvider> {
    let kx_groups = groups.iter().map(|group| key_exchange(*group)).collect();
    Arc::new(CryptoProvider { kx_groups, ..provider().as_ref().clone() })
}

fn key_exchange(group: Group) -> &'static dyn SupportedKxGroup {
    match group {
        Group::X25519MlKem768 => kx_group::X25519MLKEM768,
        Group::X25519 => kx_group::X25519,
        Group::P256 => kx_group::SECP256R1,
        Group::P384 => kx_group::SECP384R1,
        Group::P521 => &Secp521r1,
    }
}

/// The library wants its tables to live for ever; they are made once per process, so leaking them is right.
fn leak<T>(table: Vec<T>) -> &'static [T] {
    table.leak()
}

fn verification(library: &WebPkiSupportedAlgorithms) -> WebPkiSupportedAlgorithms {
    static ED448: &[&dyn SignatureVerificationAlgorithm] = &[&Ed448];
    WebPkiSupportedAlgorithms {
        all: leak([library.all, ED448].concat()),
        mapping: leak([library.mapping, &[(SignatureScheme::ED448, ED448)]].concat()),
    }
}

/// In TLS 1.2 a cipher suite limits the signatures that go with it: Ed448 belongs to the ECDSA ones (RFC 8422
/// §5.10), which the library's list does not know.
fn with_ed448(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    match suite {
        SupportedCipherSuite::Tls12(suite) if suite.sign.contains(&SignatureScheme::ED25519) => {
            let suite = Tls12CipherSuite {
                common: CipherSuiteCommon {
                    suite: suite.common.suite,
                    hash_provider: suite.common.hash_provider,
                    confidentiality_limit: suite.common.confidentiality_limit,
                },
                prf_provider: suite.prf_provider,
                kx: suite.kx,
                sign: leak([suite.sign, &[SignatureScheme::ED448]].concat()),
                aead_alg: suite.aead_alg,
            };
            SupportedCipherSuite::Tls12(Box::leak(Box::new(suite)))
        }
        other => other,
    }
}

/// Ed448 signatures (RFC 8410 §3): key and signature have the same identifier.
#[derive(Debug)]
struct Ed448;

impl SignatureVerificationAlgorithm for Ed448 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        ed448::verify(public_key, message, signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ED448
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ED448
    }
}
