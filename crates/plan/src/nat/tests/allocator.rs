use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// Chooses for an address without a block before and takes it.
fn newcomer(blocks: &mut Blocks, inner: Ipv4Addr) -> Choice {
    let choice = blocks.choose(inner, None, false).unwrap();
    blocks.take(choice.number, inner);
    choice
}

fn newcomers(blocks: &mut Blocks, places: std::ops::Range<u8>) {
    for place in places {
        newcomer(blocks, inner(place));
    }
}

fn four() -> Blocks {
    Blocks::new(small(&["192.0.2.1"], 1000..=1031, 8, Assign::Lease))
}

#[test]
fn highest_ports_come_first_and_old_blocks_come_back() {
    let mut blocks = four();
    let given: Vec<Block> = (0..3).map(|place| newcomer(&mut blocks, inner(place)).block).collect();
    assert_eq!(given[0], block("192.0.2.1:1024-1031"));
    assert_eq!(given[2], block("192.0.2.1:1008-1015"));
    assert_eq!(blocks.in_use(), 3);

    blocks.release(0, 70);
    blocks.release(1, 80);
    let again = blocks.choose(inner(1), Some(given[1]), false).unwrap();
    assert_eq!((again.block, again.free_since), (given[1], Some(80)));
    assert_eq!(newcomer(&mut blocks, inner(5)).number, 3, "never used comes before used");
    let longest = blocks.choose(inner(6), Some(given[2]), false).unwrap();
    assert_eq!((longest.number, longest.free_since), (0, Some(70)), "the old one is taken");
}

#[test]
fn when_all_are_taken_nobody_else_gets_one() {
    let mut blocks = four();
    newcomers(&mut blocks, 0..4);

    let full = blocks.choose(inner(9), None, false).unwrap_err();
    assert_eq!(full, NoBlock::Full { blocks: 4, size: 8, taken: 4 });
    assert!(full.to_string().starts_with("no free port block"), "{full}");
    let own = blocks.layout().block(2);
    assert_eq!(blocks.choose(inner(2), own, true).unwrap().number, 2, "its own still");
    assert!(blocks.choose(inner(3), own, true).is_err(), "held by another");
}

#[test]
fn a_range_in_quarantine_is_its_owners_only() {
    let mut blocks = four();
    let old = block("192.0.2.1:1020-1027");
    blocks.quarantine(old, inner(1));

    assert_eq!(newcomer(&mut blocks, inner(2)).number, 2, "two blocks have ports of it");
    let own = blocks.layout().block(0);
    assert_eq!(blocks.choose(inner(3), own, false).unwrap().number, 3);
    assert_eq!(blocks.choose(inner(1), own, false).unwrap().number, 0);
    newcomer(&mut blocks, inner(3));
    assert_eq!(
        blocks.choose(inner(4), None, false).unwrap_err().to_string().split(':').next(),
        Some("no free port block")
    );
    assert_eq!(
        blocks.choose(inner(1), None, false).unwrap().number,
        0,
        "it may have what only it reaches into"
    );

    assert_eq!(blocks.quarantined().collect::<Vec<_>>(), [(old, inner(1))]);
    blocks.clear(old, inner(2));
    assert!(blocks.choose(inner(4), None, false).is_err(), "not its owner");
    blocks.clear(old, inner(1));
    assert_eq!(blocks.quarantined().count(), 0);
    assert!(blocks.choose(inner(4), None, false).is_ok());
}

#[test]
fn a_block_released_in_quarantine_is_free_when_that_ends() {
    let mut blocks = four();
    blocks.take(0, inner(1));
    let range = blocks.layout().block(0).unwrap();
    blocks.quarantine(range, inner(1));
    blocks.release(0, 50);
    newcomers(&mut blocks, 7..10);
    assert!(blocks.choose(inner(2), Some(range), false).is_err());

    blocks.clear(range, inner(1));
    let choice = blocks.choose(inner(2), None, false).unwrap();
    assert_eq!((choice.number, choice.free_since), (0, Some(50)));
}

#[test]
fn a_static_block_waits_for_others_connections() {
    let mut blocks = Blocks::new(small(&["192.0.2.1"], 1000..=1039, 8, Assign::Static));
    let range = block("192.0.2.1:1020-1027");
    blocks.quarantine(range, inner(4));

    let busy = blocks.choose(inner(1), None, false).unwrap_err();
    let wanted = blocks.layout().block(1).unwrap();
    assert_eq!(busy, NoBlock::Busy { block: wanted, others: vec![(range, inner(4))] });
    blocks.clear(range, inner(4));
    assert_eq!(blocks.choose(inner(1), Some(range), false).unwrap().number, 1);
    assert_eq!(blocks.choose(ip("10.99.0.2"), None, false), Err(NoBlock::Outside(ip("10.99.0.2"))));
}

#[test]
fn numbers_that_are_none_are_passed_over() {
    let mut blocks = four();
    for number in [4, u32::MAX] {
        blocks.take(number, inner(1));
        blocks.release(number, 1);
    }
    assert_eq!(blocks.in_use(), 0);
    assert_eq!(newcomer(&mut blocks, inner(1)).number, 0);
}

#[test]
fn many_blocks_cost_no_scan() {
    let addresses = (1..=4).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect();
    let size = Size::Ports(1);
    let layout = Layout::new(&Wanted { addresses, size, ports: 1..=65_535, ..wanted() }).unwrap();
    let mut blocks = Blocks::new(layout);
    let addresses =
        |turn: u32| (0..blocks.layout().capacity()).map(move |n| (n, Ipv4Addr::from_bits(turn + n)));

    for (turn, (number, inner)) in
        [0, 1].into_iter().flat_map(addresses).collect::<Vec<_>>().into_iter().enumerate()
    {
        let turn = turn as i64;
        if turn >= 4 * 65_535 {
            blocks.release(number, turn);
        }
        assert_eq!(newcomer(&mut blocks, inner).number, number);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Connect(u8),
    Disconnect(u8),
    /// A range of an earlier layout: start, power of its size.
    Leave(u8, u16, u32),
    Clear(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..20u8).prop_map(Step::Connect),
        4 => (0..20u8).prop_map(Step::Disconnect),
        2 => (0..20u8, 990..1040u16, 0..5u32).prop_map(|(who, from, power)| Step::Leave(who, from, power)),
        2 => any::<u8>().prop_map(Step::Clear),
        1 => Just(Step::Restart),
    ]
}

/// Who may have which block, found by looking at all of them.
#[derive(Default)]
struct Model {
    owners: BTreeMap<u32, Ipv4Addr>,
    left: BTreeSet<(Block, Ipv4Addr)>,
    used: HashSet<u32>,
    /// Free blocks that were used, the one free longest first.
    free: Vec<u32>,
}

impl Model {
    fn reached(&self, block: &Block, by: impl Fn(&Ipv4Addr) -> bool) -> bool {
        self.left.iter().any(|(range, owner)| range.overlaps(block) && by(owner))
    }

    fn free_for(&self, layout: &Layout, number: u32, inner: Ipv4Addr) -> bool {
        let block = layout.block(number).unwrap();
        !self.owners.contains_key(&number) && !self.reached(&block, |owner| *owner != inner)
    }

    /// Puts the blocks of a range where they belong now.
    fn settle(&mut self, layout: &Layout, range: Block) {
        for number in 0..layout.capacity() {
            let block = layout.block(number).unwrap();
            if block.overlaps(&range) {
                self.used.insert(number);
                self.free.retain(|other| *other != number);
                if !self.owners.contains_key(&number) && !self.reached(&block, |_| true) {
                    self.free.push(number);
                }
            }
        }
    }

    fn expected(&self, layout: &Layout, inner: Ipv4Addr, old: Option<Block>) -> Option<u32> {
        let mut numbers = 0..layout.capacity();
        let old = numbers.clone().find(|n| layout.block(*n) == old && self.free_for(layout, *n, inner));
        old.or_else(|| numbers.find(|number| !self.used.contains(number))).or(self.free.first().copied())
    }
}

proptest! {
    #[test]
    fn choices_follow_the_rules(
        size in 0..4u32,
        addresses in 1..3usize,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let layout = small(&["192.0.2.1", "192.0.2.2"][..addresses], 1000..=1033, 4 << size, Assign::Lease);
        let mut blocks = Blocks::new(layout.clone());
        let mut model = Model::default();
        let mut open: HashMap<Ipv4Addr, u32> = HashMap::new();
        let mut last: HashMap<Ipv4Addr, Block> = HashMap::new();

        for (stamp, step) in steps.into_iter().enumerate() {
            match step {
                Step::Connect(who) => {
                    let (inner, old) = (inner(who), last.get(&inner(who)).copied());
                    if let Some(number) = open.get(&inner) {
                        prop_assert_eq!(blocks.choose(inner, old, true).unwrap().number, *number);
                        continue;
                    }
                    let expected = model.expected(&layout, inner, old);
                    match blocks.choose(inner, old, false) {
                        Ok(Choice { number, block, .. }) => {
                            prop_assert_eq!(layout.block(number), Some(block));
                            prop_assert!(model.free_for(&layout, number, inner), "{} is another's", block);
                            prop_assert_eq!(number, expected.unwrap_or(number));
                            blocks.take(number, inner);
                            model.owners.insert(number, inner);
                            model.settle(&layout, block);
                            open.insert(inner, number);
                            last.insert(inner, block);
                        }
                        Err(_) => {
                            let free = |number| model.free_for(&layout, number, inner);
                            prop_assert!(!(0..layout.capacity()).any(free), "refused with room");
                        }
                    }
                }
                Step::Disconnect(who) => {
                    if let Some(number) = open.remove(&inner(who)) {
                        blocks.release(number, stamp as i64);
                        model.owners.remove(&number);
                        model.settle(&layout, layout.block(number).unwrap());
                    }
                }
                Step::Leave(who, from, power) => {
                    let range = Block { address: ip("192.0.2.1"), from, to: from + ((1 << power) - 1) };
                    let live = |(number, owner): (&u32, &Ipv4Addr)| {
                        *owner != inner(who) && layout.block(*number).unwrap().overlaps(&range)
                    };
                    if !model.owners.iter().any(live) && !model.reached(&range, |owner| *owner != inner(who)) {
                        blocks.quarantine(range, inner(who));
                        model.left.insert((range, inner(who)));
                        model.settle(&layout, range);
                    }
                }
                Step::Clear(which) => {
                    let all: Vec<_> = model.left.iter().copied().collect();
                    if let Some(&(range, owner)) = all.get(usize::from(which) % all.len().max(1)) {
                        blocks.clear(range, owner);
                        model.left.remove(&(range, owner));
                        model.settle(&layout, range);
                    }
                }
                Step::Restart => {
                    let before = blocks;
                    blocks = Blocks::new(layout.clone());
                    let mut used: Vec<u32> = model.used.iter().copied().collect();
                    used.sort_by_key(|number| model.free.iter().position(|other| other == number));
                    used.iter().for_each(|&number| blocks.release(number, 0));
                    open.iter().for_each(|(inner, number)| blocks.take(*number, *inner));
                    before.quarantined().for_each(|(range, owner)| blocks.quarantine(range, owner));
                }
            }
            prop_assert_eq!(blocks.in_use() as usize, open.len());
            let left: BTreeSet<_> = blocks.quarantined().collect();
            prop_assert_eq!(&left, &model.left);
        }
    }
}
