//! One TLS connection over buffers.

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};
use std::sync::{Arc, OnceLock};

use adit_openvpn::tls::{ControlTls, PeerCertificates, TlsFault};
use rustls::pki_types::CertificateDer;
use rustls::{Connection as Library, ProtocolVersion};
use zeroize::Zeroizing;

use crate::fault::{self, FirstBytes};
use crate::trust::take_words;

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// The most plaintext of one record (RFC 8446 §5.1).
const MAX_RECORD: usize = 1 << 14;

/// A rustls connection behind the control channel's trait.
pub(crate) struct Connection {
    library: Library,
    side: Side,
    /// The certificate shown to the peer, once one is chosen.
    own: Arc<OnceLock<CertificateDer<'static>>>,
    /// What the peer sent first, to tell its TLS version when the library cannot.
    first: FirstBytes,
    /// Records decrypted and not yet read. They hold keys and passwords.
    inbox: VecDeque<Zeroizing<Vec<u8>>>,
    /// The peer has said that nothing more comes.
    closed: bool,
    failed: bool,
}

impl Connection {
    /// `own` is filled with the certificate shown to the peer as soon as one is chosen.
    pub(crate) fn new(mut library: Library, side: Side, own: Arc<OnceLock<CertificateDer<'static>>>) -> Self {
        // A record that is only half taken would break the caller's messages; how much it writes without
        // draining is the caller's business.
        library.set_buffer_limit(None);
        Self {
            library,
            side,
            own,
            first: FirstBytes::default(),
            inbox: VecDeque::new(),
            closed: false,
            failed: false,
        }
    }

    /// Takes one piece of ciphertext as large as the library likes.
    fn advance(&mut self, ciphertext: &mut &[u8]) -> Result<(), TlsFault> {
        // The library refuses input it has no room for: more than a record or a handshake message can be.
        self.library
            .read_tls(ciphertext)
            .map_err(|_| TlsFault::Peer("the peer sent a TLS message that is too large".into()))?;
        let _stale = take_words();
        let state = self
            .library
            .process_new_packets()
            .map_err(|error| fault::describe(&error, take_words(), self.side, &self.first))?;
        self.closed = state.peer_has_closed();
        self.collect();
        Ok(())
    }

    /// Moves plaintext out of the library, which stops at 16 KiB of it. The library hands it out by records.
    fn collect(&mut self) {
        let mut reader = self.library.reader();
        // An error here means that there is nothing now.
        while let Ok(record) = reader.fill_buf() {
            let length = record.len();
            if length == 0 {
                break;
            }
            self.inbox.push_back(Zeroizing::new(record.to_vec()));
            reader.consume(length);
        }
    }
}

impl ControlTls for Connection {
    fn feed(&mut self, mut ciphertext: &[u8]) -> Result<(), TlsFault> {
        if self.failed {
            return Err(TlsFault::Local("the TLS connection has already failed".into()));
        }
        self.first.see(ciphertext);
        while !ciphertext.is_empty() && !self.closed {
            if let Err(fault) = self.advance(&mut ciphertext) {
                self.failed = true;
                return Err(fault);
            }
        }
        Ok(())
    }

    fn drain(&mut self, out: &mut Vec<u8>, limit: usize) -> usize {
        let mut sink = Sink { out, room: limit };
        while sink.room > 0 && self.library.wants_write() {
            // The sink never fails, and takes something as long as it has room.
            if self.library.write_tls(&mut sink).unwrap_or(0) == 0 {
                break;
            }
        }
        limit - sink.room
    }

    fn write(&mut self, plaintext: &[u8]) -> Result<(), TlsFault> {
        if !self.established() {
            return Err(TlsFault::Local("the TLS connection is not established".into()));
        }
        if plaintext.len() > MAX_RECORD {
            return Err(TlsFault::Local("more than one TLS record was to be written at once".into()));
        }
        let written = self.library.writer().write_all(plaintext);
        written.map_err(|error| TlsFault::Local(format!("the TLS library did not encrypt: {error}")))
    }

    fn read(&mut self, out: &mut Vec<u8>) -> Result<usize, TlsFault> {
        match self.inbox.pop_front() {
            Some(record) => {
                out.extend_from_slice(&record);
                Ok(record.len())
            }
            None if self.closed => Err(TlsFault::Peer("the peer has closed the TLS connection".into())),
            None => {
                // An idle connection holds no buffer.
                self.inbox.shrink_to_fit();
                Ok(0)
            }
        }
    }

    fn established(&self) -> bool {
        !self.failed && !self.library.is_handshaking()
    }

    fn export(&self, label: &str, out: &mut [u8]) -> Result<(), TlsFault> {
        if !self.established() {
            return Err(TlsFault::Local("the TLS connection is not established".into()));
        }
        self.library
            .export_keying_material(out, label.as_bytes(), None)
            .map(|_| ())
            .map_err(|error| TlsFault::Local(format!("the TLS library exported no keys: {error}")))
    }

    fn peer(&self) -> PeerCertificates {
        let chain = self.library.peer_certificates().filter(|_| self.established()).unwrap_or_default();
        PeerCertificates { chain: chain.iter().map(|certificate| certificate.to_vec()).collect() }
    }

    fn own_certificate(&self) -> Option<Vec<u8>> {
        self.own.get().map(|certificate| certificate.to_vec())
    }

    fn describe(&self) -> String {
        let version = match self.library.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLS",
        };
        match (self.library.negotiated_cipher_suite(), self.library.negotiated_key_exchange_group()) {
            (Some(suite), Some(group)) => format!("{version} {:?} {:?}", suite.suite(), group.name()),
            (Some(suite), None) => format!("{version} {:?}", suite.suite()),
            _ => format!("{version} handshake not complete"),
        }
    }
}

/// Appends up to a limit.
struct Sink<'a> {
    out: &'a mut Vec<u8>,
    room: usize,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(self.room);
        self.out.extend_from_slice(&bytes[..length]);
        self.room -= length;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
