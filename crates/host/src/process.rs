//! Processes this one has started.

use std::io;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};

/// Asks a child to end in its own way (SIGTERM). A child that has ended already is no error.
///
/// # Errors
/// When the system refuses.
pub fn terminate(child: &Child) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    match pid.map(|pid| kill_process(pid, Signal::TERM)) {
        None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
        Some(Err(errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_that_is_asked_to_end_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        terminate(&child).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(15));
        terminate(&child).unwrap();
    }
}
