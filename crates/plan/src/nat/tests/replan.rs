use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;

/// A state with these blocks taken.
fn taken(layout: &Layout, open: &[(Ipv4Addr, Block)]) -> Blocks {
    let mut blocks = Blocks::new(layout.clone());
    for (inner, block) in open {
        blocks.take(layout.number_of(*block).unwrap(), *inner);
    }
    blocks
}

fn first(layout: &Layout, count: u8) -> Vec<(Ipv4Addr, Block)> {
    (0..count).map(|place| (inner(place), layout.block(u32::from(place)).unwrap())).collect()
}

fn lease(ports: RangeInclusive<u16>, size: u16) -> Layout {
    small(&["192.0.2.1"], ports, size, Assign::Lease)
}

#[test]
fn a_block_that_is_still_there_stays_whatever_its_number() {
    let old = lease(1000..=1031, 8);
    let open = first(&old, 4);
    let new = small(&["192.0.2.7", "192.0.2.1"], 1000..=1047, 8, Assign::Lease);

    let replan = taken(&old, &open).replan(new, &open);

    assert_eq!(replan.kept, [inner(0), inner(1), inner(2), inner(3)]);
    assert_eq!((replan.moved.len(), replan.homeless.len()), (0, 0));
    assert_eq!((replan.blocks.in_use(), replan.blocks.quarantined().count()), (4, 0));
    let mut held = open.iter().map(|(inner, block)| replan.blocks.choose(*inner, Some(*block), true));
    assert!(held.all(|choice| choice.is_ok()));
}

#[test]
fn smaller_blocks_are_cut_from_ones_own() {
    let old = lease(1000..=1031, 8);
    let open = first(&old, 4);

    let replan = taken(&old, &open).replan(lease(1000..=1031, 4), &open);

    for (one, (inner, from)) in replan.moved.iter().zip(&open) {
        assert_eq!((one.inner, one.from), (*inner, *from));
        assert!(from.contains(one.to.address, one.to.from) && from.contains(one.to.address, one.to.to));
        assert_eq!(replan.blocks.layout().block(one.number), Some(one.to));
    }
    assert_eq!((replan.moved.len(), replan.homeless.len()), (4, 0));
    assert_eq!(replan.blocks.quarantined().count(), 4);
    assert!(replan.blocks.choose(inner(9), None, false).is_err(), "all the rest is in quarantine");
}

#[test]
fn who_finds_no_block_leaves_room_for_the_next() {
    let old = lease(1000..=1031, 8);
    let open = first(&old, 4);

    let replan = taken(&old, &open).replan(lease(1000..=1031, 16), &open);

    // Two owners' ports are in each new block: the first of each pair goes.
    assert_eq!(replan.homeless, [open[0], open[2]]);
    assert_eq!(replan.moved.iter().map(|one| one.inner).collect::<Vec<_>>(), [inner(1), inner(3)]);
    assert!(replan.moved.iter().all(|one| one.to.overlaps(&one.from)));
}

#[test]
fn what_was_in_quarantine_stays_there() {
    let old = lease(1000..=1031, 8);
    let mut blocks = taken(&old, &first(&old, 1));
    let range = block("192.0.2.1:1004-1005");
    blocks.quarantine(range, inner(5));

    let replan = blocks.replan(lease(1000..=1031, 16), &first(&old, 1));

    assert!(replan.blocks.quarantined().any(|one| one == (range, inner(5))));
    assert!(replan.blocks.choose(inner(6), None, false).is_err());
    assert_eq!(replan.blocks.choose(inner(5), None, false).unwrap().number, 1);
}

#[test]
fn ports_remember_when_they_were_free() {
    let old = lease(1000..=1031, 8);
    let mut blocks = taken(&old, &first(&old, 4));
    blocks.release(2, 20);
    blocks.release(3, 30);

    let replan = blocks.replan(lease(1000..=1031, 4), &first(&old, 2));

    let mut new = replan.blocks;
    let stamps = (0..4).map(|place| {
        let choice = new.choose(inner(9 + place), None, false).unwrap();
        new.take(choice.number, inner(9 + place));
        (choice.number, choice.free_since)
    });
    assert_eq!(stamps.collect::<Vec<_>>(), [(4, Some(20)), (5, Some(20)), (6, Some(30)), (7, Some(30))]);
}

#[test]
fn static_blocks_go_to_their_addresses_and_old_ports_in_them_are_given_up() {
    let old = lease(1000..=1039, 8);
    let block = |number| old.block(number).unwrap();
    // In their order of places; the second and third have each other's, the fourth one that is nobody's.
    let open =
        [(inner(0), block(0)), (inner(1), block(2)), (inner(2), block(1)), (ip("10.88.9.9"), block(4))];
    let new = small(&["192.0.2.1"], 1000..=1039, 8, Assign::Static);

    let replan = taken(&old, &open).replan(new, &open);

    assert_eq!(replan.kept, [inner(0)]);
    assert_eq!(
        replan.moved.iter().map(|one| (one.inner, one.to)).collect::<Vec<_>>(),
        [(inner(1), block(1)), (inner(2), block(2))]
    );
    let homeless: HashSet<_> = replan.homeless.iter().copied().collect();
    assert_eq!(homeless, HashSet::from([open[1], open[2], open[3]]), "the last is outside the pools");
    assert_eq!(replan.blocks.quarantined().count(), 0);
}

fn any_layout() -> impl Strategy<Value = Layout> {
    let addresses = prop_oneof![
        Just(vec!["192.0.2.1"]),
        Just(vec!["192.0.2.2"]),
        Just(vec!["192.0.2.1", "192.0.2.2"]),
        Just(vec!["192.0.2.2", "192.0.2.1"]),
    ];
    (addresses, 1000..1016u16, 1047..1064u16, 0..4u32, any::<bool>()).prop_filter_map(
        "too small",
        |(addresses, first, last, power, is_static)| {
            let addresses = addresses.iter().map(|text| ip(text)).collect();
            let assign = if is_static { Assign::Static } else { Assign::Lease };
            let pools = vec!["10.88.0.0/28".parse().unwrap()];
            let size = Size::Ports(1 << power);
            Layout::new(&Wanted { addresses, ports: first..=last, size, assign, pools, ..wanted() }).ok()
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Connect(u8),
    Disconnect(u8),
    Clear(u8),
    Layout(Layout),
}

fn step() -> impl Strategy<Value = Step> {
    // Some addresses are outside the pool of static layouts.
    prop_oneof![
        6 => (0..16u8).prop_map(Step::Connect),
        2 => (0..16u8).prop_map(Step::Disconnect),
        1 => any::<u8>().prop_map(Step::Clear),
        2 => any_layout().prop_map(Step::Layout),
    ]
}

/// Every port that somebody has or had, with whom; fails when there are two.
fn disjoint(blocks: &Blocks, open: &BTreeMap<Ipv4Addr, Block>) -> Result<(), TestCaseError> {
    let live = open.iter().map(|(inner, block)| (*block, *inner));
    let mut ports: BTreeMap<(Ipv4Addr, u16), Ipv4Addr> = BTreeMap::new();
    for (range, owner) in live.chain(blocks.quarantined()) {
        for port in range.from..=range.to {
            let other = *ports.entry((range.address, port)).or_insert(owner);
            prop_assert_eq!(other, owner, "port {} of {}", port, range);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn nobody_ever_has_a_port_of_somebody_else(start in any_layout(), steps in prop::collection::vec(step(), 1..80)) {
        let mut blocks = Blocks::new(start);
        let mut open: BTreeMap<Ipv4Addr, Block> = BTreeMap::new();
        for (stamp, step) in steps.into_iter().enumerate() {
            match step {
                Step::Connect(who) => {
                    let inner = inner(who);
                    let chosen = blocks.choose(inner, open.get(&inner).copied(), open.contains_key(&inner));
                    match chosen {
                        Ok(choice) => {
                            prop_assert!(open.get(&inner).is_none_or(|block| *block == choice.block));
                            blocks.take(choice.number, inner);
                            open.insert(inner, choice.block);
                        }
                        Err(NoBlock::Busy { others, .. }) => {
                            prop_assert!(!others.is_empty());
                            others.into_iter().for_each(|(range, owner)| blocks.clear(range, owner));
                            prop_assert!(blocks.choose(inner, None, false).is_ok());
                        }
                        Err(_) => {}
                    }
                }
                Step::Disconnect(who) => {
                    // All connections of the address end with its lease.
                    if let Some(block) = open.remove(&inner(who)) {
                        let number = blocks.layout().number_of(block).unwrap();
                        blocks.release(number, stamp as i64);
                        let left: Vec<_> = blocks.quarantined().filter(|(_, owner)| *owner == inner(who)).collect();
                        left.into_iter().for_each(|(range, owner)| blocks.clear(range, owner));
                    }
                }
                Step::Clear(which) => {
                    let all: Vec<_> = blocks.quarantined().collect();
                    if let Some(&(range, owner)) = all.get(usize::from(which) % all.len().max(1)) {
                        blocks.clear(range, owner);
                    }
                }
                Step::Layout(layout) => {
                    let leases: Vec<_> = open.iter().map(|(inner, block)| (*inner, *block)).collect();
                    let left: BTreeSet<_> = blocks.quarantined().collect();
                    let Replan { blocks: new, kept, moved, homeless } = blocks.replan(layout.clone(), &leases);
                    let homeless: BTreeSet<_> = homeless.into_iter().map(|(owner, range)| (range, owner)).collect();
                    let is_static = layout.assign() == Assign::Static;
                    let mut now = BTreeMap::new();
                    for (inner, block) in leases {
                        let number = if is_static { layout.static_number(inner) } else { layout.number_of(block) };
                        let stays = number.and_then(|number| layout.block(number)) == Some(block);
                        prop_assert_eq!(kept.contains(&inner), stays, "{} {}", inner, block);
                        let quarantined = new.quarantined().any(|one| one == (block, inner));
                        if stays {
                            now.insert(inner, block);
                        } else {
                            prop_assert!(quarantined != homeless.contains(&(block, inner)), "one of the two");
                        }
                        if let Some(one) = moved.iter().find(|one| one.inner == inner) {
                            prop_assert_eq!((one.from, layout.number_of(one.to)), (block, Some(one.number)));
                            prop_assert!(one.to != block && !stays);
                            prop_assert!(!is_static || Some(one.number) == number);
                            now.insert(inner, one.to);
                        } else if !stays {
                            prop_assert!(homeless.contains(&(block, inner)), "{} vanished", inner);
                        }
                    }
                    for one in left {
                        let stays = new.quarantined().any(|other| other == one);
                        prop_assert!(stays != homeless.contains(&one), "one of the two");
                    }
                    prop_assert_eq!(new.in_use() as usize, now.len());
                    (blocks, open) = (new, now);
                }
            }
            disjoint(&blocks, &open)?;
            for (inner, block) in &open {
                prop_assert_eq!(blocks.choose(*inner, Some(*block), true).unwrap().block, *block);
            }
        }
    }
}
