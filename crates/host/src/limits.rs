//! What a daemon with many sockets and keys in memory asks of the kernel and the C library.

use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Raises the number of files this process may have open to its hard limit, and returns it (`u64::MAX` when
/// there is none).
///
/// # Errors
/// What the kernel says; raising to the hard limit needs no privilege.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Keeps keys out of core dumps, and other processes of the same user from reading this one's memory. As a
/// consequence `/proc/self` belongs to root.
///
/// # Errors
/// What the kernel says.
pub fn forbid_core_dumps() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Keeps all of this process's memory, present and future, out of swap.
///
/// # Errors
/// Without `CAP_IPC_LOCK`, when the memory is larger than `RLIMIT_MEMLOCK` allows.
pub fn lock_memory() -> io::Result<()> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)?;
    Ok(())
}

/// Makes all threads allocate from one growing heap. To be called before there are other threads.
///
/// The GNU C library gives each thread a heap of its own, which costs it a system call for every few kilobytes that it
/// grows and the process what the others have left over. The packet path, which would mind to share, allocates nothing.
/// Other C libraries do not have them.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "mallopt, which no safe wrapper covers"))]
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [(libc::M_ARENA_MAX, 1), (libc::M_TOP_PAD, HEAP_STEP)] {
        // SAFETY: takes two numbers and changes nothing but settings of the allocator. What it does not know it ignores.
        unsafe { libc::mallopt(option, value) };
    }
}

/// The heap grows by at least so many bytes.
#[cfg(target_env = "gnu")]
const HEAP_STEP: libc::c_int = 1 << 20;

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_limit() {
        let hard = getrlimit(Resource::Nofile).maximum;

        let raised = raise_open_files().unwrap();

        assert_eq!(Some(raised), hard.or(Some(u64::MAX)));
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }

    #[test]
    fn core_dumps_are_forbidden_for_this_process() {
        forbid_core_dumps().unwrap();

        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap();
    }

    #[test]
    fn memory_can_be_locked() {
        lock_memory().expect("these tests need root");

        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        rustix::mm::munlockall().unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim();
        assert_ne!(locked, "0 kB");
    }
}
