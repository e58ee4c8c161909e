//! Plumbing done by this process itself.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;

use super::machine::perform;
use super::plan::{self, Change, Done, Machine, Plan};
use super::record::{RecordFile, boot_id};
use super::{HostState, NftTable, Plumbing, PlumbingFault};
use crate::capture::{Capture, CaptureOptions, CapturePlan, Captured};
use crate::conntrack::{Tracked, Usage};
use crate::netfilter::Netfilter;
use crate::netlink::Netlink;
use crate::netns::{Entered, Netns};
use crate::nft::{self, Counter, Element, ElementChange};
use crate::sysctl::{self, SysctlFault, same_value};
use crate::tcp::{self, ListenOptions};
use crate::tun::{Tun, TunOptions};
use crate::udp::{UdpOptions, UdpSocket};

/// Plumbing of the network namespace in which it was started, from whatever thread it is called.
///
/// Dropping it undoes what is left to undo; [`undo`](Plumbing::undo) does so too and reports faults.
#[derive(Debug)]
pub struct InProcess {
    record: RecordFile,
    home: Netns,
    done: Vec<Done>,
    loaded: Vec<NftTable>,
    capture: Option<Capture>,
    /// Opened when it is first needed, which is never without address translation.
    netfilter: Option<Netfilter>,
}

/// What the next start found and did after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// There was nothing to undo.
    Clean,
    /// These changes put the machine back.
    Undone(Vec<String>),
    /// The machine was restarted since, which undid everything.
    Restarted,
    /// The changes were made in another network namespace, as when a container is made anew. They are not
    /// touched.
    OtherNamespace,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("nothing was left to undo"),
            Self::Undone(changes) if changes.is_empty() => {
                f.write_str("adit had ended without undoing its changes, but nothing of them was left")
            }
            Self::Undone(changes) => {
                write!(f, "adit had ended without undoing its changes; done now: {}", changes.join(", "))
            }
            Self::Restarted => {
                f.write_str("the machine was restarted since adit's last changes: nothing is left")
            }
            Self::OtherNamespace => {
                f.write_str("adit's last changes were made in another network namespace: left alone")
            }
        }
    }
}

/// Undoes what the record at `path` says a process did in this thread's network namespace before it ended,
/// and removes the record.
///
/// # Errors
/// [`PlumbingFault::Left`] with what could not be undone; it stays in the record.
pub fn recover(path: &Path) -> Result<Recovery, PlumbingFault> {
    let file = RecordFile::at(path);
    let Some(record) = file.read()? else { return Ok(Recovery::Clean) };
    let here = Netns::current()?;
    let recovery = if record.boot != boot_id()? {
        Recovery::Restarted
    } else if record.netns != here.identity()? {
        Recovery::OtherNamespace
    } else {
        let undone = undo_all(&record.done)?;
        if !undone.faults.is_empty() {
            file.write(&here, &undone.left)?;
            return Err(PlumbingFault::Left(undone.faults));
        }
        Recovery::Undone(undone.changes)
    };
    file.remove()?;
    Ok(recovery)
}

impl InProcess {
    /// Recovers from a crash, if there was one, and is ready then. What it does is recorded in the file at
    /// `path`; two of them must not share one.
    ///
    /// # Errors
    /// As [`recover`].
    pub fn start(path: &Path) -> Result<(Self, Recovery), PlumbingFault> {
        let recovery = recover(path)?;
        let plumbing = Self {
            record: RecordFile::at(path),
            home: Netns::current()?,
            done: Vec::new(),
            loaded: Vec::new(),
            capture: None,
            netfilter: None,
        };
        Ok((plumbing, recovery))
    }

    /// Brings the thread home, if it is elsewhere: what it opens there has to be of the right network.
    fn enter(&self) -> Result<Option<Entered>, PlumbingFault> {
        if Netns::current()?.identity()? == self.home.identity()? {
            return Ok(None);
        }
        Ok(Some(self.home.enter()?))
    }

    fn netfilter(&mut self) -> Result<&mut Netfilter, PlumbingFault> {
        let _home = if self.netfilter.is_none() { self.enter()? } else { None };
        match &mut self.netfilter {
            Some(open) => Ok(open),
            empty => Ok(empty.insert(Netfilter::open()?)),
        }
    }

    /// Makes the changes; `executed` tells how far that went.
    fn carry_out(
        &self,
        netlink: &mut Netlink,
        plan: &mut Plan,
        executed: &mut Vec<Change>,
    ) -> Result<(), PlumbingFault> {
        for change in &plan.changes {
            perform(netlink, change)?;
            executed.push(change.clone());
            if let Change::SetSysctl(set) = change {
                plan::sysctls::note_outcome(set, &mut plan.done, |name| sysctl::get(name).ok());
                // A value is known again only by the way the kernel writes it.
                if !same_value(&sysctl::get(&set.name)?, &set.value) {
                    self.record.write(&self.home, &union(&self.done, &plan.done))?;
                }
            }
        }
        if plan.tables.is_empty() { Ok(()) } else { Ok(nft::apply(&plan.tables)?) }
    }

    /// Goes back to what was there before a plan failed in the middle. Its tables are not in effect: they
    /// come last and all at once. What was on an interface that is gone by now is not missed.
    fn roll_back(
        &mut self,
        netlink: &mut Netlink,
        opposites: &[Change],
        attempted: Vec<Done>,
        cause: PlumbingFault,
    ) -> PlumbingFault {
        let mut left = Vec::new();
        for change in opposites {
            match perform(netlink, change) {
                Err(fault) if !is_about_the_missing(&fault) => left.push(fault.to_string()),
                _ => {}
            }
        }
        if !left.is_empty() {
            let new_table = |done: &Done| matches!(done, Done::Table { .. }) && !self.done.contains(done);
            self.done = attempted.into_iter().filter(|done| !new_table(done)).collect();
        }
        if let Err(fault) = self.record.write(&self.home, &self.done) {
            left.push(fault.to_string());
        }
        if left.is_empty() { cause } else { PlumbingFault::NotUndone { cause: Box::new(cause), left } }
    }
}

impl Plumbing for InProcess {
    fn apply(&mut self, wanted: &HostState) -> Result<(), PlumbingFault> {
        let _home = self.enter()?;
        let mut netlink = Netlink::open()?;
        let machine = Machine::read(&mut netlink, wanted, &self.done)?;
        let mut plan = plan::plan(wanted, &self.done, &self.loaded, machine.clone())?;
        // Both what was done and what will be: a crash in between leaves some of each.
        let attempted = union(&self.done, &plan.done);
        if attempted != self.done {
            self.record.write(&self.home, &attempted)?;
        }
        let mut executed = Vec::new();
        if let Err(cause) = self.carry_out(&mut netlink, &mut plan, &mut executed) {
            let opposites = plan::opposites(&executed, &attempted, &machine);
            return Err(self.roll_back(&mut netlink, &opposites, attempted, cause));
        }
        self.done = plan.done;
        self.loaded.clone_from(&wanted.tables);
        if attempted != self.done
            && let Err(fault) = self.record.write(&self.home, &self.done)
        {
            // The record from before names everything that was done, and a little more, which does no harm.
            tracing::warn!(%fault, "the record of changes is not up to date");
        }
        Ok(())
    }

    fn undo(&mut self) -> Result<(), PlumbingFault> {
        let _home = self.enter()?;
        self.capture = None;
        let undone = undo_all(&self.done)?;
        self.done = undone.left;
        self.loaded.clear();
        self.record.write(&self.home, &self.done)?;
        if undone.faults.is_empty() { Ok(()) } else { Err(PlumbingFault::Left(undone.faults)) }
    }

    fn open_tun(&mut self, options: &TunOptions) -> Result<Tun, PlumbingFault> {
        let _home = self.enter()?;
        Ok(Tun::open(options)?)
    }

    fn bind_udp(&mut self, address: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, PlumbingFault> {
        let _home = self.enter()?;
        Ok(UdpSocket::bind(address, options)?)
    }

    fn listen_tcp(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<TcpListener, PlumbingFault> {
        let _home = self.enter()?;
        Ok(tcp::listen(address, options)?)
    }

    fn capture(&mut self, plan: &CapturePlan, options: &CaptureOptions) -> Result<Captured, PlumbingFault> {
        let _home = self.enter()?;
        let (capture, captured) = Capture::start(plan, options)?;
        self.capture = Some(capture);
        Ok(captured)
    }

    fn recapture(&mut self, plan: &CapturePlan) -> Result<(), PlumbingFault> {
        let _home = self.enter()?;
        match &mut self.capture {
            Some(capture) => Ok(capture.change(plan)?),
            None => Ok(()),
        }
    }

    fn change_elements(&mut self, changes: &[ElementChange]) -> Result<(), PlumbingFault> {
        Ok(self.netfilter()?.change_elements(changes)?)
    }

    fn elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, PlumbingFault> {
        Ok(self.netfilter()?.elements(table, set)?)
    }

    fn counters(&mut self, table: &str) -> Result<Vec<Counter>, PlumbingFault> {
        Ok(self.netfilter()?.counters(table)?)
    }

    fn forget_connections(&mut self, inner: &[IpAddr]) -> Result<(), PlumbingFault> {
        Ok(self.netfilter()?.forget_connections(inner)?)
    }

    fn forget(&mut self, connections: &[Tracked]) -> Result<(), PlumbingFault> {
        Ok(self.netfilter()?.forget(connections)?)
    }

    fn occupy(&mut self, connections: &[Tracked], seconds: u32) -> Result<(), PlumbingFault> {
        Ok(self.netfilter()?.occupy(connections, seconds)?)
    }

    fn connections(&mut self) -> Result<Vec<Tracked>, PlumbingFault> {
        Ok(self.netfilter()?.connections()?)
    }

    fn connection_usage(&mut self) -> Result<Usage, PlumbingFault> {
        Ok(self.netfilter()?.connection_usage()?)
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if self.done.is_empty() {
            return;
        }
        if let Err(fault) = self.undo() {
            tracing::warn!(%fault, "the machine is not as it was");
        }
    }
}

/// What was to be put back is not there any more.
fn is_about_the_missing(fault: &PlumbingFault) -> bool {
    match fault {
        PlumbingFault::Netlink(fault) => fault.is_missing(),
        PlumbingFault::Sysctl(SysctlFault::Missing(_)) => true,
        _ => false,
    }
}

/// `first`, and of `second` what is not in it.
fn union(first: &[Done], second: &[Done]) -> Vec<Done> {
    let new = second.iter().filter(|done| !first.contains(done));
    first.iter().chain(new).cloned().collect()
}

/// The outcome of undoing.
#[derive(Debug, Default)]
struct Undone {
    /// What was changed.
    changes: Vec<String>,
    /// What went wrong.
    faults: Vec<String>,
    /// What is still to undo, oldest first.
    left: Vec<Done>,
}

/// Undoes as much as possible, newest first.
fn undo_all(done: &[Done]) -> Result<Undone, PlumbingFault> {
    let mut netlink = Netlink::open()?;
    let machine = Machine::read(&mut netlink, &HostState::default(), done)?;
    let mut undone = Undone::default();
    let mut failed = Vec::new();
    let tables_failed = !undo_tables(done, &machine, &mut undone);
    for change in plan::undo(done, machine.clone()) {
        match perform(&mut netlink, &change) {
            Ok(()) => undone.changes.push(change.to_string()),
            // An interface may go, and take everything on it along, while this runs: the descriptors of a
            // process that ended are closed one by one.
            Err(fault) if is_about_the_missing(&fault) => {}
            Err(fault) => {
                undone.faults.push(fault.to_string());
                failed.push(change);
            }
        }
    }
    let is_left = |done: &&Done| match done {
        Done::Table { .. } => tables_failed && !plan::table_deletion(done, &machine).is_empty(),
        done => failed.iter().any(|change| done.is_undone_by(change)),
    };
    undone.left = done.iter().filter(is_left).cloned().collect();
    Ok(undone)
}

/// Tables were the last to come, and are the first to go, in one transaction; says whether they are gone.
fn undo_tables(all: &[Done], machine: &Machine, undone: &mut Undone) -> bool {
    let transaction: String = all.iter().map(|done| plan::table_deletion(done, machine)).collect();
    if transaction.is_empty() {
        return true;
    }
    let result = nft::apply(&transaction);
    for done in all.iter().filter(|done| !plan::table_deletion(done, machine).is_empty()) {
        let Done::Table { family, name } = done else { continue };
        match &result {
            Ok(()) => undone.changes.push(format!("delete table {family} {name}")),
            Err(fault) => undone.faults.push(format!("delete table {family} {name}: {fault}")),
        }
    }
    result.is_ok()
}
