//! Maps, programs and their attachment, by way of bpf(2).
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

pub(crate) mod asm;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::socket::last_errno;

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapUpdate = 2,
    ProgramLoad = 5,
    LinkCreate = 28,
}

/// `enum bpf_map_type`
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum MapKind {
    Hash = 1,
    Array = 2,
    Sockets = 15,
}

/// `BPF_PROG_TYPE_SOCKET_FILTER`.
const SOCKET_FILTER: u32 = 1;
/// `BPF_PROG_TYPE_SK_LOOKUP`, and `BPF_SK_LOOKUP` where it is attached.
const SOCKET_LOOKUP: u32 = 30;
const AT_SOCKET_LOOKUP: u32 = 36;

/// `union bpf_attr` as far as the commands here use it: numbers and addresses at the kernel's offsets. The kernel
/// takes what is behind the last one as zero.
#[repr(C, align(8))]
struct Attributes([u8; 72]);

impl Attributes {
    fn new() -> Self {
        Self([0; 72])
    }

    fn number(&mut self, offset: usize, value: u32) -> &mut Self {
        self.put(offset, &value.to_ne_bytes())
    }

    fn bytes<T>(&mut self, offset: usize, data: &[T]) -> &mut Self {
        self.put(offset, &(data.as_ptr() as u64).to_ne_bytes())
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) -> &mut Self {
        for (to, from) in self.0.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
        self
    }

    /// # Safety
    /// Every address among the attributes points to as many live bytes as the command reads or writes there.
    unsafe fn call(&self, command: Command) -> io::Result<i32> {
        // SAFETY: the attributes are as long as is said and live through the call; the caller answers for what they
        // point to.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as libc::c_int,
                self.0.as_ptr(),
                self.0.len() as libc::c_uint,
            )
        };
        i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(|| last_errno().into())
    }
}

fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A map whose keys are `K` and whose values `V` bytes long.
#[derive(Debug)]
pub(crate) struct Map<const K: usize, const V: usize> {
    fd: OwnedFd,
}

impl<const K: usize, const V: usize> Map<K, V> {
    /// # Errors
    /// Without `CAP_BPF`, or when the kernel has no such maps.
    pub(crate) fn create(kind: MapKind, entries: u32) -> io::Result<Self> {
        let mut attributes = Attributes::new();
        attributes.number(0, kind as u32).number(4, K as u32).number(8, V as u32).number(12, entries);
        // SAFETY: there is no address among these attributes.
        let number = unsafe { attributes.call(Command::MapCreate) }?;
        Ok(Self { fd: descriptor(number) })
    }

    /// Puts `value` in for `key`, instead of what was there.
    ///
    /// # Errors
    /// When the map is full, or the value is not one that it takes.
    pub(crate) fn put(&self, key: [u8; K], value: [u8; V]) -> io::Result<()> {
        let mut attributes = Attributes::new();
        attributes.number(0, self.number().unsigned_abs()).bytes(8, &key).bytes(16, &value);
        // SAFETY: the map was made for keys and values of these lengths, and both live through the call.
        unsafe { attributes.call(Command::MapUpdate) }?;
        Ok(())
    }

    /// The number that programs know it by while they are loaded.
    pub(crate) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// Loads a program that chooses the socket for a new flow, and puts it into effect in the network namespace. It stays
/// in effect until the answer is dropped, or the process ends.
///
/// # Errors
/// The system's words, with what the verifier said of a program that it refuses.
pub(crate) fn attach_socket_lookup(program: &[[u8; 8]], netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let program = load(program, b"adit_entrance", SOCKET_LOOKUP, AT_SOCKET_LOOKUP)?;
    let mut attributes = Attributes::new();
    attributes.number(0, program.as_raw_fd().unsigned_abs());
    attributes.number(4, netns.as_raw_fd().unsigned_abs()).number(8, AT_SOCKET_LOOKUP);
    // SAFETY: there is no address among these attributes.
    let number = unsafe { attributes.call(Command::LinkCreate) }?;
    Ok(descriptor(number))
}

/// Loads a program that looks at a packet and returns a number.
///
/// # Errors
/// As [`attach_socket_lookup`].
pub(crate) fn load_socket_filter(program: &[[u8; 8]], name: &[u8]) -> io::Result<OwnedFd> {
    load(program, name, SOCKET_FILTER, 0)
}

/// `name` has at most 15 bytes.
fn load(program: &[[u8; 8]], name: &[u8], kind: u32, attached_at: u32) -> io::Result<OwnedFd> {
    let licence = b"Dual MIT/GPL\0";
    let mut attributes = Attributes::new();
    attributes.number(0, kind).number(4, program.len() as u32).bytes(8, program).bytes(16, licence);
    attributes.put(48, name).number(68, attached_at);
    // SAFETY: `program` has as many instructions of eight bytes as is said, the licence ends with a zero, and both
    // live through the call.
    let refused = match unsafe { attributes.call(Command::ProgramLoad) } {
        Ok(number) => return Ok(descriptor(number)),
        Err(error) => error,
    };
    // Once more, for the reason.
    let mut log = vec![0u8; 64 * 1024];
    attributes.number(24, 1).number(28, log.len() as u32).put(32, &(log.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: as above, and the log is as long as is said.
    if let Ok(number) = unsafe { attributes.call(Command::ProgramLoad) } {
        return Ok(descriptor(number));
    }
    let said: Vec<u8> = log.into_iter().take_while(|byte| *byte != 0).collect();
    let said = String::from_utf8_lossy(&said);
    match said.trim().lines().next_back() {
        Some(last) => Err(io::Error::new(refused.kind(), format!("{refused}: {last}"))),
        None => Err(refused),
    }
}

/// Puts a listening TCP socket or an unconnected UDP socket into a map of sockets.
///
/// # Errors
/// When it is another kind of socket.
pub(crate) fn put_socket(map: &Map<4, 8>, index: u32, socket: impl AsFd) -> io::Result<()> {
    let number = u64::from(socket.as_fd().as_raw_fd().unsigned_abs());
    map.put(index.to_ne_bytes(), number.to_ne_bytes())
}
