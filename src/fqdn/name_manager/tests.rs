//! Behaviour of the name manager, and a simulation against a naive list of answers.

use super::*;
use proptest::prelude::*;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn address(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn answer(name: &str, ttl: u64, numbers: &[u8]) -> Learned {
    Learned { name: name.into(), addresses: numbers.iter().map(|n| (address(*n), seconds(ttl))).collect() }
}

fn star() -> DnsPattern {
    DnsPattern::Pattern("*.example".into())
}

#[test]
fn an_address_counts_until_its_ttl_ends() {
    let mut manager = NameManager::default();
    manager.add_pattern(&star());
    assert_eq!(manager.learn(seconds(0), &answer("a.example", 10, &[1])), [address(1)].into());
    assert_eq!(manager.patterns_of(address(1)), ["*.example".into()].into());
    assert!(manager.expire(seconds(9)).touched.is_empty());
    assert_eq!(manager.next_expiry(), Some(seconds(10)));
    assert_eq!(manager.expire(seconds(10)).touched, [address(1)].into());
    assert!(manager.patterns_of(address(1)).is_empty());
    assert_eq!(manager.next_expiry(), None);
}

#[test]
fn a_pattern_that_comes_later_uses_fresh_answers() {
    let mut manager = NameManager::default();
    manager.learn(seconds(0), &answer("a.example", 10, &[1]));
    assert!(manager.patterns_of(address(1)).is_empty());
    assert_eq!(manager.add_pattern(&star()), [address(1)].into());
    assert_eq!(manager.patterns_of(address(1)).len(), 1);
    assert_eq!(manager.remove_pattern(&star()), [address(1)].into());
    assert!(manager.patterns_of(address(1)).is_empty());
}

#[test]
fn an_answer_never_shortens_what_an_earlier_one_gave() {
    let mut manager = NameManager::default();
    manager.learn(seconds(0), &answer("a.example", 100, &[1]));
    assert!(manager.learn(seconds(1), &answer("a.example", 1, &[1])).is_empty());
    assert!(manager.expire(seconds(50)).touched.is_empty());
}

#[test]
fn the_floor_holds_and_a_zero_ttl_without_floor_is_no_address() {
    let mut floor = NameManager::new(NameManagerOptions { min_ttl: seconds(5), ..Default::default() });
    floor.learn(seconds(0), &answer("a.example", 0, &[1]));
    assert!(floor.expire(seconds(4)).touched.is_empty());
    assert_eq!(floor.expire(seconds(5)).touched.len(), 1);
    let mut none = NameManager::default();
    none.learn(seconds(0), &answer("a.example", 0, &[1]));
    assert_eq!(none.names().count(), 0);
}

#[test]
fn a_name_with_too_many_addresses_loses_those_that_end_first() {
    let options = NameManagerOptions { max_addresses: 2, max_names: 1, ..Default::default() };
    let mut manager = NameManager::new(options);
    manager.learn(seconds(0), &answer("a.example", 10, &[1]));
    manager.learn(seconds(0), &answer("a.example", 30, &[2]));
    let touched = manager.learn(seconds(0), &answer("a.example", 20, &[3]));
    assert_eq!(touched, [address(1), address(3)].into());
    assert_eq!(manager.stats().evicted, 1);
    assert!(manager.learn(seconds(0), &answer("b.example", 20, &[4])).is_empty());
    assert_eq!(manager.stats().refused_names, 1);
}

#[test]
fn a_snapshot_survives_a_restart_without_what_ended_meanwhile() {
    let mut manager = NameManager::default();
    manager.learn(seconds(100), &answer("a.example", 10, &[1]));
    manager.learn(seconds(100), &answer("a.example", 60, &[2]));
    let text = serde_json::to_string(&manager.snapshot(seconds(105))).unwrap();
    let mut restored = NameManager::new(NameManagerOptions { min_ttl: seconds(999), ..Default::default() });
    let touched = restored.restore(seconds(0), seconds(20), &serde_json::from_str(&text).unwrap());
    assert_eq!(touched, [address(2)].into());
    assert_eq!(restored.next_expiry(), Some(seconds(35)), "the floor is not applied twice");
}

proptest! {
    /// Simulation: the manager agrees with a list of all answers ever given.
    #[test]
    fn agrees_with_a_list_of_answers(
        steps in proptest::collection::vec((0u8..6, 0u8..3, 0u8..5, 0u64..12), 1..80),
    ) {
        let names = ["a.example", "b.example", "a.other"];
        let patterns = [star(), DnsPattern::Name("a.other".into()), DnsPattern::Pattern("*".into())];
        let mut manager = NameManager::default();
        let mut list: Vec<(usize, IpAddr, Duration)> = Vec::new();
        let mut used: BTreeSet<usize> = BTreeSet::new();
        let mut now = Duration::ZERO;
        for (step, which, number, n) in steps {
            let which = usize::from(which);
            let before: Vec<_> = (0..5).map(|n| manager.patterns_of(address(n))).collect();
            let touched = match step {
                0..=2 => {
                    list.push((which, address(number), now + seconds(n)));
                    manager.learn(now, &answer(names[which], n, &[number]))
                }
                3 => {
                    now += seconds(n);
                    manager.expire(now).touched
                }
                4 => {
                    used.insert(which);
                    manager.add_pattern(&patterns[which])
                }
                _ => {
                    used.remove(&which);
                    manager.remove_pattern(&patterns[which])
                }
            };
            for n in 0..5u8 {
                let expected: BTreeSet<Arc<str>> = used
                    .iter()
                    .filter(|pattern| list.iter().any(|(name, a, end)| {
                        *a == address(n) && *end > now && patterns[**pattern].matches(names[*name])
                    }))
                    .map(|pattern| pattern_text(&patterns[*pattern]).clone())
                    .collect();
                let found = manager.patterns_of(address(n));
                prop_assert!(found == before[usize::from(n)] || touched.contains(&address(n)), "change reported");
                prop_assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn what_is_taken_back_leaves_no_trace() {
    let mut manager = NameManager::default();
    manager.learn(seconds(0), &answer("a.example", 10, &[1, 2]));
    let state = manager.snapshot(seconds(0));
    let before = manager.addresses("a.example");
    manager.learn(seconds(0), &answer("a.example", 50, &[2, 3]));
    assert_eq!(manager.put_back(&"a.example".into(), before), [address(1), address(2), address(3)].into());
    assert_eq!(manager.snapshot(seconds(0)), state);
    let expired = manager.expire(seconds(20));
    assert_eq!(manager.names().count(), 0);
    manager.reinstate(&expired);
    assert_eq!(manager.snapshot(seconds(0)), state);
    manager.forget_addresses(&[address(1), address(2)].into());
    assert_eq!((manager.names().count(), manager.next_expiry()), (0, None));
}
