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

/// Learns for nobody in particular.
fn learn(manager: &mut NameManager, now: Duration, answer: &Learned) -> Touched {
    manager.learn(now, answer, &[]).touched
}

fn star() -> DnsPattern {
    DnsPattern::Pattern("*.example".into())
}

#[test]
fn an_address_counts_until_its_ttl_ends() {
    let mut manager = NameManager::default();
    manager.add_pattern(&star());
    assert_eq!(learn(&mut manager, seconds(0), &answer("a.example", 10, &[1])), [address(1)].into());
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
    learn(&mut manager, seconds(0), &answer("a.example", 10, &[1]));
    assert!(manager.patterns_of(address(1)).is_empty());
    assert_eq!(manager.add_pattern(&star()), [address(1)].into());
    assert_eq!(manager.patterns_of(address(1)).len(), 1);
    assert_eq!(manager.remove_pattern(&star()), [address(1)].into());
    assert!(manager.patterns_of(address(1)).is_empty());
}

#[test]
fn an_answer_never_shortens_what_an_earlier_one_gave() {
    let mut manager = NameManager::default();
    learn(&mut manager, seconds(0), &answer("a.example", 100, &[1]));
    assert!(learn(&mut manager, seconds(1), &answer("a.example", 1, &[1])).is_empty());
    assert!(manager.expire(seconds(50)).touched.is_empty());
}

#[test]
fn the_floor_holds_and_a_zero_ttl_without_floor_is_no_address() {
    let ttl = TtlBounds::new(seconds(5), seconds(60));
    let mut floor = NameManager::new(NameManagerOptions { ttl, ..Default::default() });
    learn(&mut floor, seconds(0), &answer("a.example", 0, &[1]));
    assert!(floor.expire(seconds(4)).touched.is_empty());
    assert_eq!(floor.expire(seconds(5)).touched.len(), 1);
    let mut none = NameManager::default();
    learn(&mut none, seconds(0), &answer("a.example", 0, &[1]));
    assert_eq!(none.names().count(), 0);
}

#[test]
fn a_name_with_too_many_addresses_loses_those_that_end_first() {
    let options = NameManagerOptions { max_addresses: 2, max_names: 1, ..Default::default() };
    let mut manager = NameManager::new(options);
    manager.add_pattern(&star());
    learn(&mut manager, seconds(0), &answer("a.example", 10, &[1]));
    learn(&mut manager, seconds(0), &answer("a.example", 30, &[2]));
    let touched = learn(&mut manager, seconds(0), &answer("a.example", 20, &[3]));
    assert_eq!(touched, [address(1), address(3)].into());
    assert_eq!(manager.stats().evicted, 1);
    assert!(learn(&mut manager, seconds(0), &answer("b.example", 20, &[4])).is_empty());
    assert_eq!(manager.stats().refused_names, 1);
}

#[test]
fn a_snapshot_survives_a_restart_without_what_ended_meanwhile() {
    let mut manager = NameManager::default();
    learn(&mut manager, seconds(100), &answer("a.example", 10, &[1]));
    learn(&mut manager, seconds(100), &answer("a.example", 60, &[2]));
    let text = serde_json::to_string(&manager.snapshot(seconds(105))).unwrap();
    let ttl = TtlBounds::new(seconds(999), seconds(999));
    let mut restored = NameManager::new(NameManagerOptions { ttl, ..Default::default() });
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
                    learn(&mut manager, now, &answer(names[which], n, &[number]))
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
    learn(&mut manager, seconds(0), &answer("a.example", 10, &[1, 2]));
    let state = manager.snapshot(seconds(0));
    let learnt = manager.learn(seconds(0), &answer("a.example", 50, &[2, 3]), &[]);
    assert_eq!(manager.take_back(&learnt), [address(1), address(2), address(3)].into());
    assert_eq!(manager.snapshot(seconds(0)), state);
    let expired = manager.expire(seconds(20));
    assert_eq!(manager.names().count(), 0);
    manager.reinstate(&expired);
    assert_eq!(manager.snapshot(seconds(0)), state);
    manager.forget_addresses(&[address(1), address(2)].into());
    assert_eq!((manager.names().count(), manager.next_expiry()), (0, None));
}

/// Room for so many names, with `*.example` wanted.
fn small(max_names: usize) -> NameManager {
    let mut manager = NameManager::new(NameManagerOptions { max_names, ..Default::default() });
    manager.add_pattern(&star());
    manager
}

fn pod(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn has(manager: &NameManager, name: &str) -> bool {
    !manager.addresses(name).is_empty()
}

#[test]
fn names_that_no_rule_wants_never_keep_out_one_that_some_rule_wants() {
    let mut manager = small(3);
    for name in ["a.org", "b.org", "c.org", "d.org"] {
        manager.learn(seconds(0), &answer(name, 100, &[1]), &[pod(1)]);
    }
    assert!(!has(&manager, "a.org") && has(&manager, "d.org"), "among them the oldest makes room");
    let wanted = answer("a.example", 5, &[2]);
    let learnt = manager.learn(seconds(0), &wanted, &[pod(1)]);
    assert!(manager.holds(seconds(0), &wanted));
    assert_eq!(
        (learnt.touched, learnt.lost),
        ([address(1), address(2)].into(), vec![("b.org".into(), address(1))])
    );
    for name in ["b.example", "c.example"] {
        manager.learn(seconds(0), &answer(name, 5, &[2]), &[pod(1)]);
    }
    manager.learn(seconds(0), &answer("e.org", 100, &[1]), &[pod(2)]);
    assert!(!has(&manager, "e.org") && has(&manager, "a.example"), "and never the other way round");
    let stats = manager.stats();
    assert_eq!((stats.evicted_spares, stats.evicted_names, stats.refused_names), (4, 0, 1));
}

#[test]
fn one_client_cannot_fill_the_table_for_the_others() {
    let mut manager = small(4);
    for n in 0..9 {
        manager.learn(seconds(0), &answer(&format!("n{n}.example"), 100, &[n]), &[pod(1)]);
    }
    assert_eq!(manager.stats().refused_names, 5, "who has the most is refused");
    let refused = answer("n8.example", 100, &[8]);
    assert!(!manager.holds(seconds(0), &refused), "and the answer is not called held");
    let learnt = manager.learn(seconds(0), &answer("other.example", 100, &[20]), &[pod(2)]);
    assert_eq!(learnt.lost, [("n0.example".into(), address(0))]);
    manager.learn(seconds(0), &answer("another.example", 100, &[21]), &[pod(2)]);
    assert!(has(&manager, "other.example") && has(&manager, "another.example"));
    manager.learn(seconds(0), &answer("n8.example", 100, &[8]), &[pod(1)]);
    manager.learn(seconds(0), &answer("third.example", 100, &[22]), &[pod(2)]);
    assert!(!has(&manager, "n8.example") && !has(&manager, "third.example"), "both have their half");
    assert_eq!(manager.stats().evicted_names, 2);
}

#[test]
fn a_name_stays_while_a_client_with_few_names_has_asked_for_it() {
    let mut manager = small(3);
    for name in ["shared.example", "a.example", "b.example"] {
        manager.learn(seconds(0), &answer(name, 100, &[1]), &[pod(1)]);
    }
    manager.learn(seconds(0), &answer("shared.example", 100, &[1]), &[pod(2)]);
    manager.learn(seconds(0), &answer("c.example", 100, &[1]), &[pod(3)]);
    assert!(has(&manager, "shared.example") && !has(&manager, "a.example"));
}

#[test]
fn all_addresses_together_are_bounded() {
    let options = NameManagerOptions { max_all_addresses: 6, ..Default::default() };
    let mut manager = NameManager::new(options);
    manager.add_pattern(&star());
    manager.learn(seconds(0), &answer("big.example", 100, &[1, 2, 3, 4]), &[pod(1)]);
    manager.learn(seconds(0), &answer("big.org", 100, &[5, 6]), &[pod(1)]);
    let more = answer("big.example", 200, &[1, 7, 8, 9]);
    manager.learn(seconds(0), &more, &[pod(1)]);
    assert!(!has(&manager, "big.org") && !manager.holds(seconds(0), &more));
    assert_eq!(manager.end_of("big.example", address(1)), Some(seconds(200)), "what it has may stay longer");
    assert_eq!(manager.stats().refused_addresses, 1);
    let others = answer("small.example", 100, &[11, 12, 13]);
    manager.learn(seconds(0), &others, &[pod(2)]);
    assert!(manager.holds(seconds(0), &others) && !has(&manager, "big.example"));
}

#[test]
fn what_made_room_is_back_when_the_answer_is_taken_back() {
    let mut manager = small(2);
    manager.learn(seconds(0), &answer("a.example", 10, &[1, 2]), &[pod(1)]);
    manager.learn(seconds(0), &answer("b.org", 10, &[3]), &[pod(1)]);
    let before = manager.snapshot(seconds(0));
    let learnt = manager.learn(seconds(0), &answer("c.example", 10, &[4]), &[pod(2)]);
    assert!(!has(&manager, "b.org"));
    assert_eq!(manager.take_back(&learnt), [address(3), address(4)].into());
    assert_eq!(manager.snapshot(seconds(0)), before);
}

proptest! {
    /// Whatever clients ask for, and in whatever order: who has less than an equal part of the room is never refused a
    /// name that a rule wants, and never loses one. Limits hold.
    #[test]
    fn who_has_less_than_an_equal_part_gets_what_rules_want(
        steps in proptest::collection::vec((0u8..4, 0u8..20, 1u64..9, any::<bool>(), 0u64..2), 1..150),
    ) {
        let (room, part) = (12, 3);
        let mut manager = small(room);
        let mut now = Duration::ZERO;
        // What each client asked for since the name is there.
        let mut asked: Vec<BTreeSet<String>> = vec![BTreeSet::new(); 4];
        for (client, name, ttl, is_wanted, wait) in steps {
            now += seconds(wait);
            manager.expire(now);
            for names in &mut asked {
                names.retain(|name| has(&manager, name));
            }
            let zone = if is_wanted { "example" } else { "org" };
            let name = format!("n{name}.{zone}");
            let answer = answer(&name, ttl, &[1]);
            manager.learn(now, &answer, &[pod(client)]);
            let wanted = |names: &BTreeSet<String>| {
                names.iter().filter(|name| name.ends_with("example")).cloned().collect::<Vec<_>>()
            };
            let has_little = wanted(&asked[usize::from(client)]).len() < part;
            prop_assert!(!is_wanted || !has_little || manager.holds(now, &answer), "{} refused", name);
            for names in asked.iter().map(wanted).filter(|names| names.len() <= part) {
                prop_assert!(names.iter().all(|name| has(&manager, name)), "one of {:?} lost", names);
            }
            prop_assert!(manager.names().count() <= room);
            asked[usize::from(client)].insert(name);
        }
    }
}
