//! What an interface does about long packets, by itself or in software: the features that `ethtool -k` lists.
#![expect(unsafe_code, reason = "SIOCETHTOOL, which no safe wrapper covers")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::socket::last_errno;
use crate::tun::{MAX_NAME_LEN, check_name};

/// Sends a train of UDP datagrams in one piece (Linux 4.18).
pub const UDP_SEGMENTATION: &str = "tx-udp-segmentation";
/// Joins packets that come in (`UDP_GRO` needs it).
pub const RECEIVE_OFFLOAD: &str = "rx-gro";
/// Joins datagrams even where no socket asked for it.
pub const UDP_FORWARDING: &str = "rx-udp-gro-forwarding";
/// Sends a TCP superpacket over IPv4 in one piece.
pub const TCP4_SEGMENTATION: &str = "tx-tcp-segmentation";
/// Sends a TCP superpacket over IPv6 in one piece.
pub const TCP6_SEGMENTATION: &str = "tx-tcp6-segmentation";

// linux/ethtool.h
const GET_STRINGS: u32 = 0x1b;
const GET_SET_INFO: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
const FEATURE_NAMES: u32 = 4;
const NAME_LEN: usize = 32;

/// The features of one interface, by their names.
#[derive(Debug)]
pub struct Features {
    socket: OwnedFd,
    interface: [u8; MAX_NAME_LEN + 1],
    names: Vec<String>,
}

impl Features {
    /// Asks for the names of the features that the kernel knows.
    ///
    /// # Errors
    /// When there is no such interface in the calling thread's network namespace.
    pub fn of(interface: &str) -> io::Result<Self> {
        let name = check_name(interface).map_err(io::Error::other)?;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let mut features = Self { socket, interface: name, names: Vec::new() };
        // Command, padding, a mask of 64 bits whose lower half holds the bit, and the number for it.
        let mask = 1 << FEATURE_NAMES;
        let (first, second) = if cfg!(target_endian = "little") { (mask, 0) } else { (0, mask) };
        let mut info = [GET_SET_INFO, 0, first, second, 0];
        features.call(&mut info)?;
        let [.., count] = info;
        // The kernel writes as many names as there are, whatever room it is told of.
        let mut strings = vec![0u32; 3 + count as usize * NAME_LEN / 4];
        if let [command, set, length, ..] = strings.as_mut_slice() {
            (*command, *set, *length) = (GET_STRINGS, FEATURE_NAMES, count);
        }
        features.call(&mut strings)?;
        let bytes: Vec<u8> = strings.iter().skip(3).flat_map(|word| word.to_ne_bytes()).collect();
        let name = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
        };
        features.names = bytes.chunks_exact(NAME_LEN).map(name).collect();
        Ok(features)
    }

    /// Whether the feature is in effect. One that the kernel does not know is not.
    ///
    /// # Errors
    /// When the interface has gone.
    pub fn is_on(&self, name: &str) -> io::Result<bool> {
        let Some((block, bit)) = self.place(name) else { return Ok(false) };
        // Command, number of blocks; of each block: available, requested, active, never changed.
        let mut request = vec![0; 2 + self.blocks() * 4];
        if let [command, blocks, ..] = request.as_mut_slice() {
            (*command, *blocks) = (GET_FEATURES, self.blocks() as u32);
        }
        self.call(&mut request)?;
        Ok(request.get(2 + block * 4 + 2).is_some_and(|active| active & bit != 0))
    }

    /// Turns the feature on or off.
    ///
    /// # Errors
    /// Without privilege; when the interface has gone or cannot ([`io::ErrorKind::Unsupported`]).
    pub fn set(&self, name: &str, on: bool) -> io::Result<()> {
        let (block, bit) = self.place(name).ok_or(io::ErrorKind::Unsupported)?;
        // Command, number of blocks; of each block: which are meant, what they become.
        let mut request = vec![0; 2 + self.blocks() * 2];
        if let [command, blocks, ..] = request.as_mut_slice() {
            (*command, *blocks) = (SET_FEATURES, self.blocks() as u32);
        }
        if let Some([meant, wanted]) =
            request.get_mut(2 + block * 2..).and_then(|rest| rest.first_chunk_mut())
        {
            (*meant, *wanted) = (bit, if on { bit } else { 0 });
        }
        self.call(&mut request)?;
        if self.is_on(name)? == on { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn place(&self, name: &str) -> Option<(usize, u32)> {
        let at = self.names.iter().position(|known| known == name)?;
        Some((at / 32, 1 << (at % 32)))
    }

    fn blocks(&self) -> usize {
        self.names.len().div_ceil(32)
    }

    /// Asks the kernel; `request` starts with the command, and has room for the answer.
    fn call(&self, request: &mut [u32]) -> io::Result<()> {
        let mut argument =
            InterfaceRequest { name: self.interface, data: request.as_mut_ptr(), rest: [0; 16] };
        let pointer: *mut InterfaceRequest = &raw mut argument;
        // SAFETY: SIOCETHTOOL reads one `struct ifreq`, which `argument` is laid out like, and follows its pointer to
        // `request`, which its callers make as long as the command says; both live through the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, pointer) };
        if result < 0 { Err(last_errno().into()) } else { Ok(()) }
    }
}

/// `struct ifreq` as SIOCETHTOOL uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; MAX_NAME_LEN + 1],
    data: *mut u32,
    rest: [u8; 16],
}

const _: () = assert!(size_of::<InterfaceRequest>() >= size_of::<libc::ifreq>());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::TemporaryNetns;

    #[test]
    fn features_are_read_and_set_by_name() {
        TemporaryNetns::create("adit-ethtool").unwrap().run_in(|| {
            let features = Features::of("lo").unwrap();
            assert!(features.is_on(UDP_SEGMENTATION).unwrap());
            assert!(features.is_on(TCP4_SEGMENTATION).unwrap() && features.is_on(TCP6_SEGMENTATION).unwrap());
            assert!(!features.is_on("no such feature").unwrap());

            features.set(RECEIVE_OFFLOAD, false).unwrap();
            assert!(!features.is_on(RECEIVE_OFFLOAD).unwrap());
            features.set(RECEIVE_OFFLOAD, true).unwrap();
            assert!(features.is_on(RECEIVE_OFFLOAD).unwrap());

            let fixed = features.set("netns-local", false).unwrap_err();
            assert_eq!(fixed.kind(), io::ErrorKind::Unsupported);
            assert!(Features::of("nosuch0").is_err());
        });
    }
}
