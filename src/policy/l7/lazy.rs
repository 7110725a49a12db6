//! An automaton that is built while it reads, for expressions whose table would be too large.
//!
//! Contract: a lookup is bounded, whatever the expressions and the text are, because it runs in a thread that serves
//! others, too. A text beyond [`LONGEST_TEXT`], or one that makes the automaton grow by more than [`MOST_WORK`]
//! allows, is given up: whoever asks must not take it for one that matches nothing. What has been built is kept for later texts, up to a limit.
//!
//! The work of a step that is not known yet: every state of the set that is active takes the byte, and from where it
//! arrives all branches are followed that take none. The first are as many as the step's state is large, the second
//! are at most `widest` for each of them, and never more than there are (`branches`).

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::hybrid::{LazyStateID, dfa};
use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::pool::Pool;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use smallvec::SmallVec;

/// Longest text in bytes. Servers take about as much of a request line.
const LONGEST_TEXT: usize = 8192;
/// Steps of single states and branches that one text may cost; measured, one takes 3 to 10 ns.
const MOST_WORK: usize = 2_000_000;
/// Largest cache of states, in bytes, for each thread that matches.
const CACHE_LIMIT: usize = 4 << 20;
/// Branches that are counted to find out how many follow one byte.
const MOST_COUNTED: usize = 4_000_000;

/// The text would cost too much. Nothing is known about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenUp;

/// What one thread has built.
struct Built {
    cache: Cache,
    /// Bytes of the largest state so far.
    largest: usize,
}

/// See the module.
pub(super) struct Lazy {
    dfa: DFA,
    built: Pool<Built, Box<dyn Fn() -> Built + Send + Sync>>,
    /// Of the whole set.
    branches: usize,
    /// Most branches that follow one byte.
    widest: usize,
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lazy({} patterns)", self.dfa.pattern_len())
    }
}

impl Lazy {
    /// Of expressions that are anchored at both ends.
    pub(super) fn new(nfa: &NFA) -> Result<Lazy, String> {
        let config = dfa::Config::new()
            .match_kind(MatchKind::All)
            .cache_capacity(CACHE_LIMIT)
            // It may be that a large set needs more for the least it can do.
            .skip_cache_capacity_check(true);
        let dfa = dfa::Builder::new().configure(config).build_from_nfa(nfa.clone());
        let dfa = dfa.map_err(|error| error.to_string())?;
        let for_caches = dfa.clone();
        let built = move || Built { cache: for_caches.create_cache(), largest: 0 };
        let all = nfa.states().iter().map(|state| branches(state).len()).sum();
        let widest = widest(nfa).unwrap_or(all);
        Ok(Lazy { dfa, built: Pool::new(Box::new(built)), branches: all, widest })
    }

    /// The patterns that match the whole text.
    pub(super) fn matches(&self, text: &str, mut found: impl FnMut(usize)) -> Result<(), GivenUp> {
        if text.len() > LONGEST_TEXT {
            return Err(GivenUp);
        }
        let mut built = self.built.get();
        let Built { cache, largest } = &mut *built;
        let start = start::Config::new().anchored(Anchored::Yes);
        let before = cache.memory_usage();
        let mut state = self.dfa.start_state(cache, &start).map_err(|_| GivenUp)?;
        let mut size = self.size(before, cache);
        *largest = size.max(*largest);
        if size == 0 {
            size = *largest;
        }
        let mut work = 0;
        for byte in text.bytes() {
            if let Some(known) = self.known(cache, state, byte) {
                (state, size) = (known, *largest);
            } else {
                work += size + self.branches.min(self.widest.saturating_mul(size));
                if work > MOST_WORK {
                    return Err(GivenUp);
                }
                let before = cache.memory_usage();
                state = self.dfa.next_state(cache, state, byte).map_err(|_| GivenUp)?;
                size = self.size(before, cache);
                *largest = size.max(*largest);
                // Nothing new: the state was there already, or all that was there has been thrown away.
                if size == 0 {
                    size = *largest;
                }
            }
            if state.is_dead() {
                return Ok(());
            }
        }
        let state = self.dfa.next_eoi_state(cache, state).map_err(|_| GivenUp)?;
        if state.is_match() {
            let patterns = 0..self.dfa.match_len(cache, state);
            patterns.for_each(|index| found(self.dfa.match_pattern(cache, state, index).as_usize()));
        }
        Ok(())
    }

    /// The step, if it was taken before.
    fn known(&self, cache: &Cache, state: LazyStateID, byte: u8) -> Option<LazyStateID> {
        if state.is_tagged() {
            return None;
        }
        Some(self.dfa.next_state_untagged(cache, state, byte)).filter(|next| !next.is_unknown())
    }

    /// Bytes of the states inside a state that is new since `before`.
    fn size(&self, before: usize, cache: &Cache) -> usize {
        let row = size_of::<LazyStateID>() << self.dfa.byte_classes().stride2();
        cache.memory_usage().saturating_sub(before).saturating_sub(row)
    }
}

/// Where a state leads to without a byte.
fn branches(state: &State) -> SmallVec<[StateID; 2]> {
    match state {
        State::Union { alternates } => alternates.iter().copied().collect(),
        State::BinaryUnion { alt1, alt2 } => [*alt1, *alt2].into_iter().collect(),
        State::Look { next, .. } | State::Capture { next, .. } => [*next].into_iter().collect(),
        State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Fail | State::Match { .. } => {
            SmallVec::new()
        }
    }
}

/// Most branches that are followed after one state took a byte; `None`: it would take too long to find out.
fn widest(nfa: &NFA) -> Option<usize> {
    let mut seen = vec![0_u32; nfa.states().len()];
    let (mut widest, mut counted, mut round) = (0, 0, 0);
    let mut open: Vec<StateID> = Vec::new();
    for state in nfa.states() {
        let ends: SmallVec<[StateID; 4]> = match state {
            State::ByteRange { trans } => [trans.next].into_iter().collect(),
            State::Sparse(sparse) => sparse.transitions.iter().map(|trans| trans.next).collect(),
            State::Dense(dense) => dense.transitions.iter().copied().collect(),
            _ => continue,
        };
        round += 1;
        let before = counted;
        open.extend(ends);
        while let Some(id) = open.pop() {
            if std::mem::replace(&mut seen[id.as_usize()], round) == round {
                continue;
            }
            let next = branches(&nfa.states()[id.as_usize()]);
            counted += next.len();
            open.extend(next);
        }
        if counted > MOST_COUNTED {
            return None;
        }
        widest = widest.max(counted - before);
    }
    Some(widest)
}

#[cfg(test)]
mod tests {
    use super::super::expressions::{anchored, compile_set};
    use super::*;

    fn lazy(expressions: &[String]) -> Lazy {
        let patterns: Vec<String> = expressions.iter().map(|expression| anchored(expression)).collect();
        Lazy::new(&compile_set(&patterns).unwrap()).unwrap()
    }

    fn matched(lazy: &Lazy, text: &str) -> Result<Vec<usize>, GivenUp> {
        let mut found = Vec::new();
        lazy.matches(text, |pattern| found.push(pattern))?;
        Ok(found)
    }

    #[test]
    fn a_text_whose_every_byte_needs_another_large_state_is_given_up() {
        let heavy: Vec<String> = (0..100).map(|n| format!("/.*a[a-z]{{1000}}N{n}")).collect();
        let lazy = lazy(&heavy);
        // Every position that has an a keeps a state of its own alive for a thousand bytes.
        let mut noise = 12345_u32;
        let letters = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if noise >> 31 == 0 { 'a' } else { 'b' }
        });
        let text: String = std::iter::once('/').chain(letters).take(LONGEST_TEXT).collect();
        assert_eq!(matched(&lazy, &text), Err(GivenUp));
        assert_eq!(matched(&lazy, &"/".repeat(LONGEST_TEXT + 1)), Err(GivenUp));
        // It costs nobody else anything.
        assert_eq!(matched(&lazy, &format!("/a{}N7", "b".repeat(1000))), Ok(vec![7]));
    }

    #[test]
    fn ordinary_texts_of_large_sets_are_never_given_up() {
        let rules: Vec<String> =
            (0..3000).map(|n| format!("/tenants/[a-z0-9-]+/service{n}/items/[^/]+/x(/.*)?")).collect();
        let lazy = lazy(&rules);
        for number in [0, 7, 2999] {
            let text = format!("/tenants/{}/service{number}/items/{}/x", "a-9".repeat(40), "%20".repeat(80));
            assert_eq!(matched(&lazy, &text), Ok(vec![number]));
            assert_eq!(matched(&lazy, &format!("{text}/{}", "?y=z".repeat(1900))), Ok(vec![number]));
            assert_eq!(matched(&lazy, &format!("{text}y")), Ok(vec![]));
        }
    }

    #[test]
    fn branches_without_a_byte_are_work() {
        let empty = "|b?".repeat(200);
        let lazy = lazy(&(0..5).map(|n| format!("/.*a(?:[a-z](?:{empty})){{30}}N{n}")).collect::<Vec<_>>());
        assert!(lazy.widest >= 200 && lazy.branches >= 5 * 30 * 200, "{} {}", lazy.widest, lazy.branches);
    }
}
