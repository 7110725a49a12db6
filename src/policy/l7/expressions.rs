//! Regular expressions that must match a whole text, many at once.
//!
//! Contract (policy semantics, section 6): the syntax of RE2 ([`super::re2`]), bytes and ASCII classes; an expression is
//! anchored at both ends and cannot leave its anchors. The time of a match is linear in the text and does not grow with the number
//! of expressions: literal ones are found by a hash, all others run as one automaton. Sizes are bounded: an expression that
//! explodes is an error.

use std::collections::HashMap;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, Input, PatternSet, meta};
use smallvec::SmallVec;

use super::re2;

/// Largest compiled size of one rule set's automaton, in bytes.
const SIZE_LIMIT: usize = 32 << 20;
/// Largest table of an automaton that is built whole, in bytes. What is larger is built lazily, as texts need it.
const TABLE_LIMIT: usize = 2 << 20;
/// Largest cache of lazily built states, in bytes, for each automaton.
const CACHE_LIMIT: usize = 4 << 20;

/// A regular expression that sluice does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("regular expression {expression:?}: {problem}")]
pub struct ExpressionError {
    pub expression: String,
    pub problem: String,
}

/// Distinct expressions, numbered; a lookup gives the numbers of those that match a whole text.
#[derive(Debug)]
pub(super) struct Expressions {
    literals: HashMap<String, usize>,
    /// Pattern of the automaton -> number.
    numbers: Vec<usize>,
    automaton: Option<Automaton>,
}

/// All patterns at once. Each is anchored at both ends, so what matches is known at the end of the text.
#[derive(Debug)]
enum Automaton {
    /// A table lookup for each byte of the text.
    Table(Box<dense::DFA<Vec<u32>>>),
    /// For sets whose table would be large.
    Lazy(meta::Regex),
}

impl Automaton {
    fn build(patterns: &[String]) -> Result<Automaton, String> {
        let lazy = compile(patterns)?;
        let table = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .match_kind(regex_automata::MatchKind::All)
                    .start_kind(StartKind::Anchored)
                    .dfa_size_limit(Some(TABLE_LIMIT))
                    .determinize_size_limit(Some(4 * TABLE_LIMIT)),
            )
            .syntax(bytes())
            .build_many(patterns);
        Ok(table.map_or(Automaton::Lazy(lazy), |table| Automaton::Table(table.into())))
    }

    /// The patterns that match the whole text.
    fn matches(&self, text: &str, mut found: impl FnMut(usize)) {
        match self {
            Automaton::Table(table) => {
                let start = start::Config::new().anchored(Anchored::Yes);
                let Ok(mut state) = table.start_state(&start) else { return };
                for byte in text.bytes() {
                    state = table.next_state(state, byte);
                    if table.is_special_state(state) && table.is_dead_state(state) {
                        return;
                    }
                }
                state = table.next_eoi_state(state);
                if table.is_match_state(state) {
                    let patterns = 0..table.match_len(state);
                    patterns.for_each(|index| found(table.match_pattern(state, index).as_usize()));
                }
            }
            Automaton::Lazy(lazy) => {
                let mut patterns = PatternSet::new(lazy.pattern_len());
                lazy.which_overlapping_matches(&Input::new(text), &mut patterns);
                patterns.iter().for_each(|pattern| found(pattern.as_usize()));
            }
        }
    }
}

/// Gathers expressions; the same one twice has one number.
#[derive(Default)]
pub(super) struct ExpressionsBuilder {
    known: HashMap<String, usize>,
    order: Vec<String>,
}

impl ExpressionsBuilder {
    pub(super) fn add(&mut self, expression: &str) -> usize {
        if let Some(number) = self.known.get(expression) {
            return *number;
        }
        let number = self.order.len();
        self.known.insert(expression.to_owned(), number);
        self.order.push(expression.to_owned());
        number
    }

    pub(super) fn build(self) -> Result<Expressions, ExpressionError> {
        let mut literals = HashMap::new();
        let mut numbers = Vec::new();
        let mut patterns = Vec::new();
        for (number, expression) in self.order.into_iter().enumerate() {
            if is_literal(&expression) {
                literals.insert(expression, number);
            } else {
                patterns.push(checked(&expression)?);
                numbers.push(number);
            }
        }
        let automaton = match patterns.len() {
            0 => None,
            _ => Some(
                Automaton::build(&patterns)
                    .map_err(|problem| ExpressionError { expression: patterns.join(" | "), problem })?,
            ),
        };
        Ok(Expressions { literals, numbers, automaton })
    }
}

impl Expressions {
    pub(super) fn matches(&self, text: &str) -> SmallVec<[usize; 4]> {
        let mut found: SmallVec<[usize; 4]> = SmallVec::new();
        if !self.literals.is_empty() {
            found.extend(self.literals.get(text).copied());
        }
        if let Some(automaton) = &self.automaton {
            automaton.matches(text, |pattern| found.push(self.numbers[pattern]));
        }
        found
    }
}

/// An expression without any special character matches itself.
fn is_literal(expression: &str) -> bool {
    !expression.is_empty()
        && expression.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_~!@%&=:;,'\" ".contains(&byte))
}

/// An expression is valid by itself, so that the group around it cannot be left from inside.
pub fn check_expression(expression: &str) -> Result<(), ExpressionError> {
    checked(expression).map(drop)
}

/// The anchored pattern of a valid expression.
fn checked(expression: &str) -> Result<String, ExpressionError> {
    let error = |problem| ExpressionError { expression: expression.to_owned(), problem };
    let translated = re2::translate(expression).map_err(error)?;
    let anchored = anchored(&translated);
    compile(&[translated]).map_err(error)?;
    compile(std::slice::from_ref(&anchored)).map_err(error)?;
    Ok(anchored)
}

/// Takes an expression that is translated.
fn anchored(expression: &str) -> String {
    format!(r"\A(?:{expression})\z")
}

/// ASCII classes and bytes, as RE2 has them.
fn bytes() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false)
}

fn compile(patterns: &[String]) -> Result<meta::Regex, String> {
    meta::Regex::builder()
        .configure(
            meta::Regex::config()
                .match_kind(regex_automata::MatchKind::All)
                .nfa_size_limit(Some(SIZE_LIMIT))
                .hybrid_cache_capacity(CACHE_LIMIT),
        )
        .syntax(bytes())
        .build_many(patterns)
        .map_err(|error| match error.syntax_error() {
            Some(syntax) => syntax.to_string(),
            None if error.size_limit().is_some() => "too large".to_owned(),
            None => error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_is_too_large_for_a_table_decides_the_same() {
        let patterns: Vec<String> =
            (0..50).map(|n| anchored(&format!("/api/v{}/.*[a-z]{{1,{}}}x?", n % 7, n % 5 + 1))).collect();
        let table = Automaton::build(&patterns).unwrap();
        assert!(matches!(table, Automaton::Table(_)));
        let lazy = Automaton::Lazy(compile(&patterns).unwrap());
        for text in
            ["", "/", "/api/v3/abc", "/api/v3/7", "/api/v6/abcx", "/api/v1/\nq", "/api/v9/abc", "x/api/v1/a"]
        {
            let all = |automaton: &Automaton| {
                let mut found = Vec::new();
                automaton.matches(text, |pattern| found.push(pattern));
                found.sort_unstable();
                found
            };
            assert_eq!(all(&table), all(&lazy), "{text:?}");
        }
        let huge: Vec<String> = (0..40).map(|n| anchored(&format!("/.*{n}.{{{}}}z", n % 9 + 8))).collect();
        let huge = Automaton::build(&huge).unwrap();
        assert!(matches!(huge, Automaton::Lazy(_)));
    }
}
