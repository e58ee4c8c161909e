//! Reading and writing fields without indexing: out of range is an answer, never a panic.

/// The `N` bytes at `offset`.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

/// The big-endian 16-bit field at `offset`.
pub(crate) fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_be_bytes)
}

/// Writes `value` at `offset`; `None` when it does not fit.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(offset..offset.checked_add(value.len())?)?.copy_from_slice(value);
    Some(())
}

/// Writes a big-endian 16-bit field at `offset`; `None` when it does not fit.
pub(crate) fn put16(bytes: &mut [u8], offset: usize, value: u16) -> Option<()> {
    put(bytes, offset, &value.to_be_bytes())
}
