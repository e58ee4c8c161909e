use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

fn pools(v4: &[&str], v6: &[&str]) -> Result<Pools, PoolFault> {
    let v4: Vec<Ipv4Net> = v4.iter().map(|net| net.parse().unwrap()).collect();
    let v6: Vec<Ipv6Net> = v6.iter().map(|net| net.parse().unwrap()).collect();
    Pools::new(&v4, &v6)
}

fn allocator(v4: &[&str], v6: &[&str]) -> Allocator {
    Allocator::new(pools(v4, v6).unwrap())
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn inner(v4: &str, v6: &str) -> Inner {
    Inner { v4: v4.parse().ok(), v6: v6.parse().ok() }
}

/// Chooses for a newcomer and takes it.
fn newcomer(allocator: &mut Allocator) -> Inner {
    let chosen = allocator.choose(Inner::default(), false).unwrap().inner;
    allocator.take(chosen);
    chosen
}

#[test]
fn network_broadcast_and_gateway_are_never_leased() {
    let pools = pools(&["10.88.0.0/24"], &["fd88::/64"]).unwrap();

    for reserved in ["10.88.0.0", "10.88.0.1", "10.88.0.255", "fd88::", "fd88::1", "10.89.0.5", "fd89::5"] {
        assert!(!pools.leases(reserved.parse().unwrap()), "{reserved}");
    }
    for free in ["10.88.0.2", "10.88.0.254", "fd88::2", "fd88::ffff:ffff:ffff:ffff"] {
        assert!(pools.leases(free.parse().unwrap()), "{free}");
    }
}

#[test]
fn each_pool_has_its_gateway() {
    let pools = pools(&["10.88.0.0/16", "10.90.4.0/24"], &["fd88::/64", "fd90::/112"]).unwrap();

    assert_eq!(pools.gateway4().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.88.0.1", "10.90.4.1"]);
    assert_eq!(pools.gateway6().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["fd88::1", "fd90::1"]);
    assert_eq!(pools.pool_of("10.90.4.77".parse().unwrap()).unwrap().gateway().to_string(), "10.90.4.1");
    assert_eq!(pools.pool_of("10.91.0.1".parse().unwrap()), None);
}

#[test]
fn capacity_leaves_out_the_reserved_addresses() {
    let pools = pools(&["10.88.0.0/24", "10.90.0.0/30"], &["fd88::/64", "fd90::/126"]).unwrap();

    assert_eq!(pools.capacity(), Capacity { v4: 253 + 1, v6: (1 << 64) - 2 + 2 });
}

#[test]
fn overlapping_pools_are_named() {
    let fault = pools(&["10.90.0.0/24", "10.88.0.0/16", "10.88.4.0/24"], &[]).unwrap_err();

    assert_eq!(fault, PoolFault::Overlap { first: net("10.88.0.0/16"), second: net("10.88.4.0/24") });
    assert!(pools(&[], &["fd88::/64", "fd88::/48"]).is_err());
    assert!(pools(&["10.88.0.0/16", "10.88.0.0/16"], &[]).is_err());
}

#[test]
fn pools_without_room_for_a_device_are_refused() {
    assert_eq!(pools(&[], &[]).unwrap_err(), PoolFault::Empty);
    for v4 in ["10.88.0.0/31", "10.88.0.4/32"] {
        assert!(matches!(pools(&[v4], &[]).unwrap_err(), PoolFault::TooSmall { longest: 30, .. }), "{v4}");
    }
    for v6 in ["fd88::/127", "fd88::/128"] {
        assert!(matches!(pools(&[], &[v6]).unwrap_err(), PoolFault::TooSmall { longest: 126, .. }), "{v6}");
    }
    assert!(pools(&["10.88.0.0/30"], &["fd88::/126"]).is_ok());
}

#[test]
fn host_bits_and_special_ranges_are_refused() {
    let fault = pools(&["10.88.0.5/16"], &[]).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "the pool 10.88.0.5/16 has address bits beyond its length; write 10.88.0.0/16"
    );

    for v4 in ["0.0.0.0/0", "127.0.0.0/16", "224.0.1.0/24", "169.254.0.0/24", "240.0.0.0/8", "64.0.0.0/2"] {
        assert!(matches!(pools(&[v4], &[]).unwrap_err(), PoolFault::Special { .. }), "{v4}");
    }
    for v6 in ["::/0", "::/64", "fe80::/64", "ff00::/16", "::ffff:0:0/112"] {
        assert!(matches!(pools(&[], &[v6]).unwrap_err(), PoolFault::Special { .. }), "{v6}");
    }
}

#[test]
fn addresses_are_given_in_order_and_pool_after_pool() {
    let mut allocator = allocator(&["10.88.0.0/30", "10.90.0.0/29"], &[]);

    let given: Vec<String> = (0..6).map(|_| newcomer(&mut allocator).to_string()).collect();

    assert_eq!(given, ["10.88.0.2", "10.90.0.2", "10.90.0.3", "10.90.0.4", "10.90.0.5", "10.90.0.6"]);
}

#[test]
fn a_full_pool_says_which_and_how_many() {
    let mut one = allocator(&["10.88.0.0/30"], &["fd88::/64"]);
    newcomer(&mut one);
    let mut two = allocator(&[], &["fd88::/126", "fd89::/126"]);
    for _ in 0..4 {
        newcomer(&mut two);
    }

    let full = one.choose(Inner::default(), false).unwrap_err();
    assert_eq!(full, Full { pools: vec![net("10.88.0.0/30")], addresses: 1 });
    assert!(
        full.to_string().starts_with("the pool 10.88.0.0/30 is full: its only address is leased;"),
        "{full}"
    );

    let full = two.choose(Inner::default(), false).unwrap_err();
    assert!(
        full.to_string().starts_with("the pools fd88::/126, fd89::/126 are full: all 4 addresses"),
        "{full}"
    );
}

#[test]
fn a_device_gets_its_old_addresses_back() {
    let mut allocator = allocator(&["10.88.0.0/24"], &["fd88::/64"]);
    let [first, second] = [(); 2].map(|()| newcomer(&mut allocator));
    allocator.release(first, 1);
    allocator.release(second, 2);

    assert_eq!(allocator.choose(second, false).unwrap().inner, second);
    assert_eq!(allocator.choose(first, false).unwrap().inner, first);
}

#[test]
fn an_old_address_that_somebody_has_is_not_given() {
    let mut allocator = allocator(&["10.88.0.0/24"], &["fd88::/64"]);
    let taken = newcomer(&mut allocator);

    let other = allocator.choose(taken, false).unwrap().inner;

    assert_eq!(other, inner("10.88.0.3", "fd88::3"));
}

#[test]
fn an_old_address_outside_the_pools_is_not_given() {
    let allocator = allocator(&["10.88.0.0/24"], &["fd88::/64"]);

    for old in [inner("10.99.0.7", "fd99::7"), inner("10.88.0.1", "fd88::1"), inner("10.88.0.255", "fd88::")]
    {
        for held in [false, true] {
            assert_eq!(allocator.choose(old, held).unwrap().inner, inner("10.88.0.2", "fd88::2"));
        }
    }
}

#[test]
fn a_held_address_stays_and_a_missing_family_is_added() {
    let mut allocator = allocator(&["10.88.0.0/24"], &["fd88::/64"]);
    allocator.take(inner("10.88.0.9", ""));

    let chosen = allocator.choose(inner("10.88.0.9", ""), true).unwrap().inner;

    assert_eq!(chosen, inner("10.88.0.9", "fd88::9"));
}

#[test]
fn after_the_last_new_address_the_one_free_longest_is_given() {
    let mut allocator = allocator(&["10.88.0.0/29"], &[]);
    let given: Vec<Inner> = (0..5).map(|_| newcomer(&mut allocator)).collect();
    for (stamp, place) in [(10, 3), (11, 0), (12, 4)] {
        allocator.release(given[place], stamp);
    }

    let next = allocator.choose(Inner::default(), false).unwrap();
    assert_eq!((next.inner, next.free_since), (given[3], Some(10)));
    allocator.take(next.inner);
    allocator.release(next.inner, 13);
    let order: Vec<Inner> = (0..3).map(|_| newcomer(&mut allocator)).collect();
    assert_eq!(order, [given[0], given[4], given[3]]);
}

#[test]
fn the_later_release_of_the_pair_is_its_free_since() {
    let mut allocator = allocator(&["10.88.0.0/24"], &["fd88::/64"]);
    allocator.release(inner("10.88.0.5", ""), 7);
    allocator.release(inner("", "fd88::5"), 9);
    allocator.release(inner("", "fd88::5"), 3);

    let choice = allocator.choose(inner("10.88.0.5", "fd88::5"), false).unwrap();

    assert_eq!(choice.free_since, Some(9));
}

#[test]
fn ipv6_mirrors_the_ipv4_host_number() {
    let mut pair = allocator(&["10.88.0.0/16", "10.90.0.0/24"], &["fd88::/64"]);

    assert_eq!(pair.choose(inner("10.88.1.2", ""), false).unwrap().inner, inner("10.88.1.2", "fd88::102"));
    assert_eq!(pair.choose(inner("10.90.0.7", ""), false).unwrap().inner, inner("10.90.0.7", "fd88::1:7"));

    pair.take(inner("", "fd88::102"));
    let beside = pair.choose(inner("10.88.1.2", ""), false).unwrap().inner;
    assert_eq!(beside, inner("10.88.1.2", "fd88::1:100"), "counts on after the places of mirrors");
}

#[test]
fn an_ipv6_pool_too_small_for_mirrors_is_still_used_up() {
    let mut allocator = allocator(&["10.88.0.0/28"], &["fd88::/125"]);

    let given: HashSet<Inner> = (0..6).map(|_| newcomer(&mut allocator)).collect();

    assert_eq!(given.len(), 6);
    assert_eq!(allocator.choose(Inner::default(), false).unwrap_err().pools, [net("fd88::/125")]);
}

#[test]
fn a_huge_pool_costs_no_scan() {
    let mut allocator = allocator(&["10.0.0.0/8"], &["2001:db8::/32"]);

    let given: HashSet<Inner> = (0..50_000).map(|_| newcomer(&mut allocator)).collect();

    assert_eq!(given.len(), 50_000);
}

#[derive(Debug, Clone)]
enum Step {
    /// The device connects, with the addresses it had last.
    Connect(u8),
    /// It disconnects.
    Disconnect(u8),
    /// The allocator is built anew from the history.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..14u8).prop_map(Step::Connect),
        4 => (0..14u8).prop_map(Step::Disconnect),
        1 => Just(Step::Restart),
    ]
}

fn layout() -> impl Strategy<Value = Pools> {
    prop_oneof![
        Just(pools(&["10.88.0.0/29"], &[]).unwrap()),
        Just(pools(&[], &["fd88::/125"]).unwrap()),
        Just(pools(&["10.88.0.0/28"], &["fd88::/64"]).unwrap()),
        Just(pools(&["10.88.0.0/30", "10.90.0.0/29"], &["fd88::/124"]).unwrap()),
        Just(pools(&["10.88.0.0/28"], &["fd88::/126", "fd89::/126"]).unwrap()),
    ]
}

/// What one family of one device may be given, found by looking at every address.
struct Model {
    /// Every address of the family that can be leased, in order; IPv6 here only as a set.
    all: Vec<IpAddr>,
    leased: HashSet<IpAddr>,
    /// Addresses in the order of their latest release.
    released: Vec<IpAddr>,
}

impl Model {
    fn new(pools: &Pools, v4: bool) -> Self {
        let small = |pool: &Pool| pool.net().hosts().take(64).collect::<Vec<IpAddr>>();
        let family = pools.iter().filter(|pool| matches!(pool.net(), IpNet::V4(_)) == v4);
        let all = family.flat_map(|pool| small(pool).into_iter().filter(|&host| pool.leases(host))).collect();
        Self { all, leased: HashSet::new(), released: Vec::new() }
    }

    fn check(
        &mut self,
        given: Option<IpAddr>,
        old: Option<IpAddr>,
        exact: bool,
    ) -> Result<(), TestCaseError> {
        if self.all.is_empty() {
            prop_assert_eq!(given, None);
            return Ok(());
        }
        let Some(given) = given else {
            return Err(TestCaseError::fail("a family with a pool was left out"));
        };
        prop_assert!(self.all.contains(&given), "{given} is reserved or outside");
        prop_assert!(!self.leased.contains(&given), "{given} was given twice");
        let untouched: Vec<_> =
            self.all.iter().filter(|ip| !self.leased.contains(ip) && !self.released.contains(ip)).collect();
        if let Some(old) = old.filter(|old| !self.leased.contains(old)) {
            prop_assert_eq!(given, old, "the old address was free");
        } else if untouched.is_empty() {
            if exact {
                prop_assert_eq!(Some(&given), self.released.first(), "another was free longer");
            }
        } else if exact {
            prop_assert_eq!(&given, untouched[0], "not the lowest unused address");
        }
        self.leased.insert(given);
        self.released.retain(|ip| *ip != given);
        Ok(())
    }

    fn release(&mut self, address: Option<IpAddr>) {
        if let Some(address) = address {
            self.leased.remove(&address);
            self.released.push(address);
        }
    }

    fn full(&self) -> bool {
        !self.all.is_empty() && self.all.len() == self.leased.len()
    }
}

proptest! {
    #[test]
    fn choices_follow_the_rules(layout in layout(), steps in prop::collection::vec(step(), 1..120)) {
        let mut allocator = Allocator::new(layout.clone());
        let mut v4 = Model::new(&layout, true);
        let mut v6 = Model::new(&layout, false);
        let mut open: BTreeMap<u8, Inner> = BTreeMap::new();
        let mut last: HashMap<u8, Inner> = HashMap::new();
        let mut ended: Vec<Inner> = Vec::new();

        for (stamp, step) in steps.into_iter().enumerate() {
            match step {
                Step::Connect(device) => {
                    let held = open.remove(&device);
                    let old = last.get(&device).copied().unwrap_or_default();
                    if let Some(held) = held {
                        prop_assert_eq!(allocator.choose(held, true).unwrap().inner, held, "a held address stays");
                        open.insert(device, held);
                        continue;
                    }
                    match allocator.choose(old, false) {
                        Ok(Choice { inner, .. }) => {
                            v4.check(inner.v4.map(IpAddr::V4), old.v4.map(IpAddr::V4), true)?;
                            v6.check(inner.v6.map(IpAddr::V6), old.v6.map(IpAddr::V6), layout.v4.is_empty())?;
                            allocator.take(inner);
                            open.insert(device, inner);
                            last.insert(device, inner);
                        }
                        Err(_) => prop_assert!(v4.full() || v6.full(), "refused although both families have room"),
                    }
                }
                Step::Disconnect(device) => {
                    if let Some(inner) = open.remove(&device) {
                        allocator.release(inner, stamp as i64);
                        v4.release(inner.v4.map(IpAddr::V4));
                        v6.release(inner.v6.map(IpAddr::V6));
                        ended.push(inner);
                    }
                }
                Step::Restart => {
                    allocator = Allocator::new(layout.clone());
                    ended.iter().for_each(|&inner| allocator.release(inner, 0));
                    open.values().for_each(|&inner| allocator.take(inner));
                }
            }
        }
    }
}
