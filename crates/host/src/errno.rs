use std::io;

use rustix::io::Errno;

/// The system's words for an error, without the number that `io::Error` puts behind them.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// The error's number, where the system gave one.
pub(crate) fn of(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}

/// Repeats a call for as long as a signal interrupts it.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_cut_off() {
        assert_eq!(words(&Errno::NODEV.into()), "No such device");
        assert_eq!(words(&io::Error::other("odd")), "odd");
    }
}
