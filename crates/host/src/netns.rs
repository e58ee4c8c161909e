//! Network namespaces, named as `ip netns` names them, so that `ip netns exec` and this code see the same
//! ones.
#![expect(unsafe_code, reason = "unshare, which its safe wrapper no longer covers")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use thiserror::Error;

use crate::errno::words;
use crate::netlink::{Netlink, NetlinkFault};
use crate::sysctl;

/// Where the names are, for `ip netns` as well.
const DIRECTORY: &str = "/run/netns";
/// The calling thread's own namespace. `/proc/self` would be that of the first thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// Why something about a namespace failed.
#[derive(Debug, Error)]
pub enum NetnsFault {
    /// Creating one that exists.
    #[error(
        "the network namespace {0} exists already: delete it with 'ip netns delete {0}' or choose another name"
    )]
    Exists(String),
    /// Opening or deleting one that does not exist.
    #[error("there is no network namespace {0}")]
    Missing(String),
    /// Not a file name.
    #[error("{0:?} is no name for a network namespace")]
    BadName(String),
    /// Neither root nor the capability.
    #[error("{operation}: not permitted: network namespaces need root or CAP_SYS_ADMIN")]
    NotPermitted {
        /// What was attempted.
        operation: String,
    },
    /// Anything else.
    #[error("{operation}: {}", words(source))]
    Io {
        /// What was attempted.
        operation: String,
        /// What the system said.
        source: io::Error,
    },
    /// Bringing up the loopback interface, or making a veth pair.
    #[error(transparent)]
    Netlink(#[from] NetlinkFault),
}

/// A network namespace. Dropping this value closes a handle; it deletes nothing.
#[derive(Debug)]
pub struct Netns {
    label: String,
    fd: OwnedFd,
}

impl Netns {
    /// Creates a named namespace with its loopback interface up.
    ///
    /// # Errors
    /// [`NetnsFault::Exists`] when the name is taken; otherwise mostly missing privilege.
    pub fn create(name: &str) -> Result<Self, NetnsFault> {
        let path = path_of(name)?;
        let operation = || format!("create network namespace {name}");
        let _one_at_a_time = prepare_directory().map_err(|error| fault(operation(), error))?;
        OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path).map_err(
            |error| match error.kind() {
                io::ErrorKind::AlreadyExists => NetnsFault::Exists(name.to_owned()),
                _ => fault(operation(), error),
            },
        )?;
        let made = on_fresh_thread(|| {
            // SAFETY: file descriptors stay shared; only the network namespace of this thread, which ends
            // below, changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| fault(operation(), errno.into()))?;
            Netlink::open()?.set_up("lo", true)?;
            mount_bind(CURRENT, &path).map_err(|errno| fault(operation(), errno.into()))
        });
        match made {
            Ok(()) => Self::open(name),
            Err(why) => {
                // The empty file would look like a namespace.
                let _ = fs::remove_file(&path);
                Err(why)
            }
        }
    }

    /// Opens a namespace by its name.
    ///
    /// # Errors
    /// [`NetnsFault::Missing`] when there is none of this name.
    pub fn open(name: &str) -> Result<Self, NetnsFault> {
        match File::open(path_of(name)?) {
            Ok(file) => Ok(Self { label: name.to_owned(), fd: file.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(NetnsFault::Missing(name.to_owned()))
            }
            Err(error) => Err(fault(format!("open network namespace {name}"), error)),
        }
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> Result<Self, NetnsFault> {
        let file =
            File::open(CURRENT).map_err(|error| fault("open this network namespace".to_owned(), error))?;
        Ok(Self { label: "(current)".to_owned(), fd: file.into() })
    }

    /// Deletes the name. The namespace itself ends with the last process and handle in it; interfaces that
    /// have nowhere else to go end with it.
    ///
    /// # Errors
    /// [`NetnsFault::Missing`] when there is none of this name.
    pub fn delete(name: &str) -> Result<(), NetnsFault> {
        let path = path_of(name)?;
        let operation = || format!("delete network namespace {name}");
        match unmount(&path, UnmountFlags::DETACH) {
            // Not a mount point: a name whose creation was cut short.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(Errno::NOENT) => return Err(NetnsFault::Missing(name.to_owned())),
            Err(errno) => return Err(fault(operation(), errno.into())),
        }
        fs::remove_file(&path).map_err(|error| fault(operation(), error))
    }

    /// Names that start with `prefix`, sorted.
    ///
    /// # Errors
    /// When the directory exists and cannot be read.
    pub fn list(prefix: &str) -> Result<Vec<String>, NetnsFault> {
        let operation = || "list network namespaces".to_owned();
        let entries = match fs::read_dir(DIRECTORY) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fault(operation(), error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| fault(operation(), error))?.file_name();
            names.extend(name.to_str().filter(|name| name.starts_with(prefix)).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.label
    }

    /// Device and inode: equal for two handles of one namespace, as long as one of them is open.
    ///
    /// # Errors
    /// Only for a bug: the handle is a file.
    pub fn identity(&self) -> Result<(u64, u64), NetnsFault> {
        let stat = fstat(&self.fd).map_err(|errno| fault(format!("look at {}", self.label), errno.into()))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Moves the calling thread into the namespace until the guard is dropped. Other threads stay where they
    /// are; processes started meanwhile start in it.
    ///
    /// # Errors
    /// [`NetnsFault::NotPermitted`] without `CAP_SYS_ADMIN`.
    pub fn enter(&self) -> Result<Entered, NetnsFault> {
        let previous = Self::current()?;
        self.join()?;
        Ok(Entered { previous, _this_thread: PhantomData })
    }

    /// Runs `work` on a thread of its own inside the namespace and returns what it returns. A panic in it is
    /// passed on.
    ///
    /// # Panics
    /// When the namespace cannot be entered: without `CAP_SYS_ADMIN`.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_fresh_thread(|| match self.join() {
            Ok(()) => work(),
            Err(why) => panic!("{why}"),
        })
    }

    fn join(&self) -> Result<(), NetnsFault> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| fault(format!("enter network namespace {}", self.label), errno.into()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The calling thread is in another namespace; dropping this brings it back.
#[derive(Debug)]
#[must_use = "the thread returns when this is dropped"]
pub struct Entered {
    previous: Netns,
    /// Returning is the entering thread's business: this keeps the guard from being sent to another.
    _this_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(why) = self.previous.join() {
            // To go on in the wrong network would be worse than to stop.
            panic!("{why}");
        }
    }
}

/// A namespace with a unique name that is deleted when this value is dropped, for tests and demonstrations.
#[derive(Debug)]
pub struct TemporaryNetns {
    netns: Netns,
}

impl TemporaryNetns {
    /// Creates one named after `prefix`, this process and a number.
    ///
    /// # Errors
    /// As [`Netns::create`].
    pub fn create(prefix: &str) -> Result<Self, NetnsFault> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::create(&format!("{prefix}-{}-{number}", std::process::id()))?;
        Ok(Self { netns })
    }
}

impl Deref for TemporaryNetns {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for TemporaryNetns {
    fn drop(&mut self) {
        if let Err(why) = Netns::delete(self.netns.name()) {
            tracing::warn!(%why, "a temporary network namespace stays behind");
        }
    }
}

/// Makes a pair of connected interfaces: `a` in `ns_a` and `b` in `ns_b`, both down and without addresses.
///
/// # Errors
/// When a name is taken, or without privilege.
pub fn veth(a: &str, ns_a: &Netns, b: &str, ns_b: &Netns) -> Result<(), NetnsFault> {
    let _inside = ns_a.enter()?;
    Ok(Netlink::open()?.add_veth(a, b, ns_b.as_fd())?)
}

/// Whether the calling thread is in the machine's first network namespace and not in one of a container or an
/// administrator. Some parameters are changed in the first one only, such as how many connections are
/// tracked.
#[must_use]
pub fn is_initial() -> bool {
    // A parameter of the whole machine that the kernel shows in no other one.
    sysctl::get("net.core.netdev_max_backlog").is_ok()
}

fn path_of(name: &str) -> Result<PathBuf, NetnsFault> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) || name.len() > 255 {
        return Err(NetnsFault::BadName(name.to_owned()));
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// Makes the directory a shared mount, so that names appear in and disappear from all mount namespaces.
/// Returns a lock that is held while a name is created: two first creators would mount it on itself twice.
fn prepare_directory() -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    let directory = File::open(DIRECTORY)?;
    flock(&directory, FlockOperation::LockExclusive)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    if mount_change(DIRECTORY, shared) == Err(Errno::INVAL) {
        mount_bind_recursive(DIRECTORY, DIRECTORY)?;
        mount_change(DIRECTORY, shared)?;
    }
    Ok(directory)
}

fn on_fresh_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn fault(operation: String, error: io::Error) -> NetnsFault {
    match error.kind() {
        io::ErrorKind::PermissionDenied => NetnsFault::NotPermitted { operation },
        _ => NetnsFault::Io { operation, source: error },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn ip_netns_sees_what_is_created_and_the_loopback_interface_is_up() {
        let netns = TemporaryNetns::create("adit-netns").unwrap();

        let output = Command::new("ip").args(["-n", netns.name(), "link", "show", "lo"]).output().unwrap();

        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("LOOPBACK,UP"), "{text}");
        assert_eq!(Netns::list(netns.name()).unwrap(), [netns.name()]);
    }

    #[test]
    fn what_ip_netns_creates_can_be_opened_and_deleted() {
        let name = format!("adit-netns-ip-{}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());

        let identity = Netns::open(&name).unwrap().identity().unwrap();

        assert_ne!(identity, Netns::current().unwrap().identity().unwrap());
        Netns::delete(&name).unwrap();
        assert!(matches!(Netns::open(&name), Err(NetnsFault::Missing(_))));
        assert!(matches!(Netns::delete(&name), Err(NetnsFault::Missing(_))));
    }

    #[test]
    fn a_taken_name_is_refused_and_survives() {
        let netns = TemporaryNetns::create("adit-netns").unwrap();

        assert!(matches!(Netns::create(netns.name()), Err(NetnsFault::Exists(_))));

        assert_eq!(Netns::open(netns.name()).unwrap().identity().unwrap(), netns.identity().unwrap());
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for bad in ["", ".", "..", "a/b", "../x", "a\0b"] {
            assert!(matches!(Netns::open(bad), Err(NetnsFault::BadName(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_thread_enters_and_returns() {
        let netns = TemporaryNetns::create("adit-netns").unwrap();
        let here = || Netns::current().unwrap().identity().unwrap();
        let home = here();

        let entered = netns.enter().unwrap();
        assert_eq!(here(), netns.identity().unwrap());
        drop(entered);

        assert_eq!(here(), home);
        assert_eq!(netns.run_in(here), netns.identity().unwrap());
        assert_eq!(here(), home);
    }

    #[test]
    fn a_panic_inside_is_passed_on_and_the_namespace_deleted() {
        let name = std::panic::catch_unwind(|| {
            let netns = TemporaryNetns::create("adit-netns").unwrap();
            let name = netns.name().to_owned();
            netns.run_in(|| std::panic::panic_any(name));
        })
        .unwrap_err();

        let name = name.downcast::<String>().unwrap();
        assert_eq!(Netns::list(&name).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_veth_pair_joins_two_namespaces() {
        let (left, right) =
            (TemporaryNetns::create("adit-netns").unwrap(), TemporaryNetns::create("adit-netns").unwrap());

        veth("left0", &left, "right0", &right).unwrap();

        let names = |netns: &Netns| {
            netns.run_in(|| {
                let links = Netlink::open().unwrap().links().unwrap();
                links.into_iter().map(|link| link.name).collect::<Vec<_>>()
            })
        };
        assert!(names(&left).contains(&"left0".to_owned()));
        assert!(names(&right).contains(&"right0".to_owned()));
        assert!(!names(&left).contains(&"right0".to_owned()));
    }

    #[test]
    fn the_first_namespace_is_where_the_number_of_tracked_connections_may_be_set() {
        let writable = || {
            let path = "/proc/sys/net/netfilter/nf_conntrack_max";
            fs::metadata(path).unwrap().permissions().mode() & 0o200 != 0
        };
        let netns = TemporaryNetns::create("adit-netns").unwrap();

        assert_eq!(netns.run_in(|| (is_initial(), writable())), (false, false));
        // Where these tests run may be a container.
        assert_eq!(is_initial(), writable());
    }
}
