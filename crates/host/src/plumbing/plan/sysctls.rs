//! Kernel parameters, which are not independent: setting one may change others along.
//!
//! Of every parameter that is touched, directly or along, the value from before anything was done is kept. So
//! each has a value to go to that does not depend on history: the wanted one, or the one from before. Those
//! that change others along are set first, and what they change is set after them.

use std::collections::BTreeSet;

use super::{Change, Done, Machine};
use crate::plumbing::{PlumbingFault, Sysctl};
use crate::sysctl::{SysctlFault, same_value};

/// Plans the way to the wanted values. `done` is what was done before; `kept` what of it stays wanted, which
/// is brought up to date.
pub(super) fn plan(
    wanted: &[Sysctl],
    done: &[Done],
    machine: &Machine,
    kept: &mut Vec<Done>,
) -> Result<Vec<Change>, PlumbingFault> {
    let mut goals = put_back(done, machine, wanted);
    for sysctl in wanted {
        let Sysctl { name, value } = sysctl;
        if !machine.sysctls.contains_key(name) {
            return Err(SysctlFault::Missing(name.clone()).into());
        }
        let along = along(name, machine).iter().map(String::as_str).collect();
        goals.push(Goal { name, value, reached: reached(sysctl, done, machine), along });
    }
    let changes = in_order(goals);
    for sysctl in wanted {
        // One that has the wanted value already may have it from being changed along.
        if changes.contains(sysctl) || known_before(&sysctl.name, done).is_some() {
            note(sysctl, done, machine, kept);
        }
    }
    Ok(changes.into_iter().map(Change::SetSysctl).collect())
}

/// The changes that put everything back that still is as it was left.
pub(super) fn undo(done: &[Done], machine: &Machine) -> impl Iterator<Item = Change> {
    in_order(put_back(done, machine, &[])).into_iter().map(Change::SetSysctl)
}

/// The changes that bring all parameters that were set, and what changed along with them, to their values
/// `before`.
pub(super) fn opposites(
    executed: &[Change],
    done: &[Done],
    before: &Machine,
) -> impl Iterator<Item = Change> {
    let mut names = BTreeSet::new();
    for change in executed {
        if let Change::SetSysctl(Sysctl { name, .. }) = change {
            names.insert(name.as_str());
            names.extend(changed_along(name, done));
        }
    }
    let goal = |name| {
        let value = before.sysctls.get(name)?;
        Some(Goal { name, value, reached: false, along: changed_along(name, done) })
    };
    in_order(names.into_iter().filter_map(goal).collect()).into_iter().map(Change::SetSysctl)
}

/// What is known to change along when a parameter is set.
fn changed_along<'a>(name: &str, done: &'a [Done]) -> Vec<&'a str> {
    let along = done.iter().filter_map(|done| match done {
        Done::Along { name: along, with, .. } if with == name => Some(along.as_str()),
        _ => None,
    });
    along.collect()
}

/// Where a parameter is to go.
struct Goal<'a> {
    name: &'a str,
    value: &'a str,
    /// It is there already.
    reached: bool,
    /// What changes along when it is set.
    along: Vec<&'a str>,
}

/// The goals of everything that is not wanted (any more) and still is as it was left.
fn put_back<'a>(done: &'a [Done], machine: &Machine, wanted: &[Sysctl]) -> Vec<Goal<'a>> {
    let find = |name: &str| wanted.iter().find(|sysctl| sysctl.name == name);
    let mut goals: Vec<Goal<'a>> = Vec::new();
    for entry in done {
        let (name, before, set) = match entry {
            Done::Sysctl { name, before, .. } => (name, before, name),
            Done::Along { name, before, with, .. } => (name, before, with),
            _ => continue,
        };
        if find(name).is_some() || find(set).is_some() || !as_left(set, done, machine) {
            continue;
        }
        // Parameters of interfaces that are gone need no care.
        let Some(now) = machine.sysctls.get(name) else { continue };
        // Where another one that changes it along stays, its doing is what is left.
        let cause = done.iter().find_map(|done| match done {
            Done::Along { name: along, with, caused, .. } if along == name => Some((find(with)?, caused)),
            _ => None,
        });
        let value = match cause {
            Some((other, _)) if !reached(other, done, machine) => continue,
            Some((_, caused)) => caused.as_ref().unwrap_or(before),
            None => before,
        };
        if goals.iter().all(|goal| goal.name != name) {
            let along = changed_along(name, done);
            goals.push(Goal { name, value, reached: same_value(now, value), along });
        }
    }
    goals
}

/// Whether a parameter has the wanted value, perhaps in the kernel's spelling.
fn reached(wanted: &Sysctl, done: &[Done], machine: &Machine) -> bool {
    let Some(now) = machine.sysctls.get(&wanted.name) else { return false };
    let spelled = done.iter().any(|done| match done {
        Done::Sysctl { name, asked, ours, .. } => {
            (name, asked) == (&wanted.name, &wanted.value) && same_value(now, ours)
        }
        _ => false,
    });
    spelled || same_value(now, &wanted.value)
}

/// Whether a parameter has a value that it was given, or, when putting back was cut short, the one from
/// before.
fn as_left(wanted: &str, done: &[Done], machine: &Machine) -> bool {
    let Some(now) = machine.sysctls.get(wanted) else { return false };
    done.iter().any(|done| match done {
        Done::Sysctl { name, asked, ours, before, .. } if name == wanted => {
            [asked, ours, before].into_iter().any(|value| same_value(value, now))
        }
        _ => false,
    })
}

/// What is to be set, and in which order.
fn in_order(goals: Vec<Goal<'_>>) -> Vec<Sysctl> {
    let (first, second): (Vec<_>, Vec<_>) = goals.into_iter().partition(|goal| !goal.along.is_empty());
    let mut disturbed = BTreeSet::new();
    let mut changes = Vec::new();
    for goal in first.into_iter().chain(second) {
        if !goal.reached || disturbed.contains(goal.name) {
            changes.push(Sysctl::new(goal.name, goal.value));
            disturbed.extend(goal.along);
        }
    }
    changes
}

/// Notes what became of a parameter that was just set, and of what the kernel changed along.
pub(in crate::plumbing) fn note_outcome(
    set: &Sysctl,
    done: &mut [Done],
    read: impl Fn(&str) -> Option<String>,
) {
    for done in done {
        match done {
            Done::Sysctl { name, asked, ours, .. } if (&*name, &*asked) == (&set.name, &set.value) => {
                if let Some(now) = read(name) {
                    *ours = now;
                }
            }
            Done::Along { name, with, caused, .. } if *with == set.name => *caused = read(name),
            _ => {}
        }
    }
}

/// Notes in `kept` that a parameter is set, and what changes along.
fn note(sysctl: &Sysctl, done: &[Done], machine: &Machine, kept: &mut Vec<Done>) {
    let Sysctl { name, value } = sysctl;
    let known = kept.iter_mut().find_map(|done| match done {
        Done::Sysctl { name: known, asked, ours, .. } if known == name => Some((asked, ours)),
        _ => None,
    });
    if let Some((asked, ours)) = known {
        if asked != value {
            value.clone_into(asked);
            value.clone_into(ours);
        }
    } else if let Some(before) = before(name, done, machine) {
        kept.push(Done::Sysctl { name: name.clone(), asked: value.clone(), ours: value.clone(), before });
    }
    for along in along(name, machine) {
        let Some(before) = before(along, done, machine) else { continue };
        let entry = Done::Along { name: along.clone(), with: name.clone(), before, caused: None };
        if !kept.iter().any(|known| known.same_thing(&entry)) {
            kept.push(entry);
        }
    }
}

/// The value from before anything was done, if something was.
fn known_before<'a>(wanted: &str, done: &'a [Done]) -> Option<&'a String> {
    done.iter().find_map(|done| match done {
        Done::Sysctl { name, before, .. } | Done::Along { name, before, .. } if name == wanted => {
            Some(before)
        }
        _ => None,
    })
}

/// The value from before anything was done.
fn before(wanted: &str, done: &[Done], machine: &Machine) -> Option<String> {
    known_before(wanted, done).or_else(|| machine.sysctls.get(wanted)).cloned()
}

fn along<'a>(name: &str, machine: &'a Machine) -> &'a [String] {
    machine.along.get(name).map(Vec::as_slice).unwrap_or_default()
}
