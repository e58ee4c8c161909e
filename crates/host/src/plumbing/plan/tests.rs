//! Random histories on a model of a machine.

use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;

/// A machine with parameters `f`, which changes `a` and `b` along, and `c`, and one interface.
fn machine(values: [u8; 4], link: (u32, bool), foreign: &HostState) -> Machine {
    let sysctls = std::iter::zip(["f", "a", "b", "c"], values);
    let (mtu, up) = link;
    let not_ours = |route: &Route| Route { protocol: 4, ..route.clone() };
    Machine {
        sysctls: sysctls.map(|(name, value)| (name.to_owned(), value.to_string())).collect(),
        along: BTreeMap::from([("f".to_owned(), vec!["a".to_owned(), "b".to_owned()])]),
        links: vec![Link { index: 1, name: "l".to_owned(), up, mtu, tx_queue_len: 500 }],
        addresses: foreign.addresses.clone(),
        routes: foreign.routes.iter().map(not_ours).collect(),
        rules: foreign.rules.iter().map(|rule| Rule { protocol: 4, ..rule.clone() }).collect(),
        tables: Vec::new(),
    }
}

/// Does to the machine what the kernel does.
fn perform(machine: &mut Machine, change: &Change) {
    match change {
        Change::SetSysctl(Sysctl { name, value }) => {
            let along = machine.along.get(name).cloned().unwrap_or_default();
            for name in along.into_iter().chain([name.clone()]) {
                machine.sysctls.insert(name, value.clone());
            }
        }
        Change::SetLink { setting, .. } => match *setting {
            LinkSetting::Mtu(mtu) => machine.links[0].mtu = mtu,
            LinkSetting::TxQueueLen(packets) => machine.links[0].tx_queue_len = packets,
            LinkSetting::Up(up) => machine.links[0].up = up,
        },
        Change::AddAddress(address) => machine.addresses.push(address.clone()),
        Change::AddRoute(route) => {
            let taken = machine.routes.iter().any(|there| there.destination == route.destination);
            assert!(!taken, "{route} is in the way of another");
            machine.routes.push(route.clone());
        }
        Change::AddRule(rule) => machine.rules.push(rule.clone()),
        Change::DeleteAddress(address) => {
            drop(take(&mut machine.addresses, |there| there == address).unwrap());
        }
        Change::DeleteRoute(route) => drop(take(&mut machine.routes, |there| there == route).unwrap()),
        Change::DeleteRule(rule) => drop(take(&mut machine.rules, |there| there == rule).unwrap()),
    }
}

/// In an order that does not depend on history.
fn sorted(mut machine: Machine) -> Machine {
    machine.addresses.sort();
    machine.routes.sort();
    machine.rules.sort();
    machine
}

fn wanted() -> impl Strategy<Value = HostState> {
    let sysctls = prop::collection::vec((0..4usize, 0..3u8), 0..5).prop_map(|all| {
        let mut seen = HashSet::new();
        let first = all.into_iter().filter(|(name, _)| seen.insert(*name));
        first.map(|(name, value)| Sysctl::new(["f", "a", "b", "c"][name], &value.to_string())).collect()
    });
    let link = (prop::option::of(1400..1403u32), prop::option::of(any::<bool>()))
        .prop_map(|(mtu, up)| vec![LinkSettings { mtu, up, ..LinkSettings::of("l") }]);
    let objects =
        (prop::collection::vec(0..4u8, 0..4), [0..3u8, 0..3, 0..3], prop::collection::vec(0..3u32, 0..3));
    (sysctls, link, objects).prop_map(|(sysctls, links, (addresses, routes, rules))| {
        let address = |n| InterfaceAddress {
            interface: "l".to_owned(),
            address: format!("10.0.0.{n}/24").parse().unwrap(),
        };
        // Of each destination there may be none, or one by either of two interfaces.
        let route = |(n, by): (usize, u8)| {
            let to = format!("10.{n}.0.0/16").parse().unwrap();
            (by > 0).then(|| Route::by_interface(to, if by == 1 { "l" } else { "m" }))
        };
        HostState {
            sysctls,
            links,
            addresses: addresses.into_iter().collect::<BTreeSet<_>>().into_iter().map(address).collect(),
            routes: routes.into_iter().enumerate().filter_map(route).collect(),
            rules: rules
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(|n| Rule::new(false, n, n))
                .collect(),
            tables: Vec::new(),
        }
    })
}

/// All that is wanted is there.
fn satisfied(wanted: &HostState, machine: &Machine) -> bool {
    wanted.sysctls.iter().all(|sysctl| machine.sysctls[&sysctl.name] == sysctl.value)
        && wanted.links.iter().flat_map(settings).all(|setting| setting.on(&machine.links[0]) == setting)
        && wanted.addresses.iter().all(|address| machine.addresses.contains(address))
        && wanted.routes.iter().all(|route| machine.routes.iter().any(|there| route.matches(there)))
        && wanted.rules.iter().all(|rule| machine.rules.iter().any(|there| rule.matches(there)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_was_applied_and_wherever_it_crashed_undoing_leaves_what_was_there(
        values in [0..3u8, 0..3, 0..3, 0..3],
        link in (1400..1403u32, any::<bool>()),
        foreign in wanted(),
        sequence in prop::collection::vec(wanted(), 1..5),
        crash: prop::sample::Index,
    ) {
        let foreign = HostState { routes: Vec::new(), ..foreign };
        let start = machine(values, link, &foreign);
        let (mut now, mut done) = (start.clone(), Vec::new());
        let last = sequence.len() - 1;
        for (at, wanted) in sequence.iter().enumerate() {
            let plan = plan(wanted, &done, &[], now.clone()).unwrap();
            if at == last {
                // The record names what was done and what is to be done, and then the process ends.
                let new = plan.done.iter().filter(|new| !done.contains(new)).cloned();
                let record: Vec<_> = done.iter().cloned().chain(new).collect();
                let mut crashed = now.clone();
                let executed = &plan.changes[..crash.index(plan.changes.len() + 1)];
                for change in executed {
                    perform(&mut crashed, change);
                }
                // Or it lives on, and goes back to what was wanted before.
                let mut back = crashed.clone();
                for change in opposites(executed, &record, &now) {
                    perform(&mut back, &change);
                }
                prop_assert_eq!(sorted(back), sorted(now.clone()), "after going back");
                for change in undo(&record, crashed.clone()) {
                    perform(&mut crashed, &change);
                }
                prop_assert_eq!(sorted(crashed), sorted(start.clone()), "after a crash");
            }
            done = plan.done;
            for change in &plan.changes {
                perform(&mut now, change);
                if let Change::SetSysctl(set) = change {
                    sysctls::note_outcome(set, &mut done, |name| now.sysctls.get(name).cloned());
                }
            }
            prop_assert!(satisfied(wanted, &now), "{:?} in {:?}", wanted, now);
            prop_assert!(super::plan(wanted, &done, &[], now.clone()).unwrap().changes.is_empty());
        }
        let end = plan(&HostState::default(), &done, &[], now.clone()).unwrap();
        for change in &end.changes {
            perform(&mut now, change);
        }
        prop_assert_eq!(sorted(now), sorted(start));
        prop_assert!(end.done.is_empty());
    }
}
