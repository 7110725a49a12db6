//! Regular expressions that must match a whole text, many at once.
//!
//! Contract (policy semantics, section 6): the syntax of RE2 ([`super::re2`]), bytes and ASCII classes; an expression is anchored at
//! both ends and cannot leave its anchors. The time of a match is linear in the text and does not grow with the number
//! of expressions: literal ones are found by a hash, all others run as one automaton. Sizes are bounded: an expression
//! that explodes is an error, and so is a set of too many large ones. The work for one text is bounded: see [`super::lazy`].
//!
//! Sizes that were measured: a host of six labels of at most 63 characters 50 KB, `[a-zA-Z0-9_-]{1,255}` 37 KB,
//! `[^/]{1,1000}` 118 KB, a UUID 4 KB, 1,000 names in one expression 16 KB; 1,000 rules like
//! `/tenants/[a-z0-9-]+/service1/items/[^/]+/x` 1.2 MB, with `{1,63}` for the `+` 8.4 MB.

use std::collections::HashMap;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};
use smallvec::SmallVec;

use super::lazy::{GivenUp, Lazy};
use super::re2;

/// Most memory in bytes that compiling one expression takes.
const EXPRESSION_LIMIT: usize = 128 << 10;
/// Most memory in bytes that compiling a set takes.
const SET_LIMIT: usize = 16 << 20;
/// So many expressions, each within its limit, cannot be too large together.
pub(super) const ALWAYS_FIT: usize = SET_LIMIT / EXPRESSION_LIMIT - 1;
/// Largest table of an automaton that is built whole, in bytes. What is larger is built lazily, as texts need it.
const TABLE_LIMIT: usize = 2 << 20;

/// A regular expression that sluice does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("regular expression {expression:?}: {problem}")]
pub struct ExpressionError {
    pub expression: String,
    pub problem: String,
}

/// Expressions that are no set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    #[error(
        "{count} regular expressions are too large together: they take more than {} MiB to compile",
        SET_LIMIT >> 20
    )]
    TooLarge { count: usize },
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
    Lazy(Box<Lazy>),
}

impl Automaton {
    fn build(patterns: &[String]) -> Result<Automaton, String> {
        let nfa = compile_set(patterns)?;
        let table = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .match_kind(MatchKind::All)
                    .start_kind(StartKind::Anchored)
                    .dfa_size_limit(Some(TABLE_LIMIT))
                    .determinize_size_limit(Some(4 * TABLE_LIMIT)),
            )
            .build_from_nfa(&nfa);
        match table {
            Ok(table) => Ok(Automaton::Table(table.into())),
            Err(_) => Lazy::new(&nfa).map(|lazy| Automaton::Lazy(lazy.into())),
        }
    }

    /// The patterns that match the whole text.
    fn matches(&self, text: &str, mut found: impl FnMut(usize)) -> Result<(), GivenUp> {
        match self {
            Automaton::Table(table) => {
                let start = start::Config::new().anchored(Anchored::Yes);
                let mut state = table.start_state(&start).map_err(|_| GivenUp)?;
                for byte in text.bytes() {
                    state = table.next_state(state, byte);
                    if table.is_special_state(state) && table.is_dead_state(state) {
                        return Ok(());
                    }
                }
                state = table.next_eoi_state(state);
                if table.is_match_state(state) {
                    let patterns = 0..table.match_len(state);
                    patterns.for_each(|index| found(table.match_pattern(state, index).as_usize()));
                }
                Ok(())
            }
            Automaton::Lazy(lazy) => lazy.matches(text, found),
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

    /// They fit together, as far as each is valid by itself.
    pub(super) fn check_size(&self) -> Result<(), SetError> {
        let patterns: Vec<String> = self
            .order
            .iter()
            .filter(|expression| !is_literal(expression))
            .filter_map(|expression| Some(anchored(&re2::translate(expression).ok()?)))
            .collect();
        let count = patterns.len();
        if count <= ALWAYS_FIT {
            return Ok(());
        }
        compile_set(&patterns).map(drop).map_err(|_| SetError::TooLarge { count })
    }

    pub(super) fn build(self) -> Result<Expressions, SetError> {
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
            // Each compiles by itself: what is left is their size.
            count => Some(Automaton::build(&patterns).map_err(|_| SetError::TooLarge { count })?),
        };
        Ok(Expressions { literals, numbers, automaton })
    }
}

/// Numbers of expressions.
pub(super) type Found = SmallVec<[usize; 4]>;

/// These match; to know of the others would take too much work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incomplete(pub(super) Found);

impl Expressions {
    pub(super) fn matches(&self, text: &str) -> Result<Found, Incomplete> {
        let mut found = Found::new();
        if !self.literals.is_empty() {
            found.extend(self.literals.get(text).copied());
        }
        if let Some(automaton) = &self.automaton {
            let all = automaton.matches(text, |pattern| found.push(self.numbers[pattern]));
            if all == Err(GivenUp) {
                return Err(Incomplete(found));
            }
        }
        Ok(found)
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
    for pattern in [&*translated, &*anchored] {
        compile(&[pattern], EXPRESSION_LIMIT).map_err(error)?;
    }
    Ok(anchored)
}

/// Takes an expression that is translated.
pub(super) fn anchored(expression: &str) -> String {
    format!(r"\A(?:{expression})\z")
}

pub(super) fn compile_set(patterns: &[String]) -> Result<NFA, String> {
    compile(patterns, SET_LIMIT)
}

/// With ASCII classes and bytes, as RE2 has them.
fn compile<P: AsRef<str>>(patterns: &[P], limit: usize) -> Result<NFA, String> {
    let config =
        thompson::Config::new().nfa_size_limit(Some(limit)).which_captures(WhichCaptures::None).utf8(false);
    thompson::Compiler::new()
        .configure(config)
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .build_many(patterns)
        .map_err(|error| match (error.size_limit(), std::error::Error::source(&error)) {
            (Some(limit), _) => format!(
                "too large: it takes more than {} KiB to compile; what makes an expression large are repetitions like {{1,1000}}",
                limit >> 10
            ),
            (None, Some(syntax)) => syntax.to_string(),
            (None, None) => error.to_string(),
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
        let lazy = Automaton::Lazy(Lazy::new(&compile_set(&patterns).unwrap()).unwrap().into());
        for text in
            ["", "/", "/api/v3/abc", "/api/v3/7", "/api/v6/abcx", "/api/v1/\nq", "/api/v9/abc", "x/api/v1/a"]
        {
            let all = |automaton: &Automaton| {
                let mut found = Vec::new();
                automaton.matches(text, |pattern| found.push(pattern)).unwrap();
                found.sort_unstable();
                found
            };
            assert_eq!(all(&table), all(&lazy), "{text:?}");
        }
        let huge: Vec<String> = (0..40).map(|n| anchored(&format!("/.*{n}.{{{}}}z", n % 9 + 8))).collect();
        let huge = Automaton::build(&huge).unwrap();
        assert!(matches!(huge, Automaton::Lazy(_)));
    }

    #[test]
    fn an_expression_that_stalls_others_is_refused_and_reasonable_ones_are_not() {
        for expression in
            ["/.*a[a-z]{1000}[a-z]{1000}[a-z]{1000}N", "/([a-z]{900}|[0-9]{900}|[a-f]{900}|[g-m]{900})N"]
        {
            let error = check_expression(expression).unwrap_err();
            assert!(error.problem.contains("more than 128 KiB"), "{error}");
        }
        let names: Vec<String> = (0..1000).map(|n| format!("/item{n}")).collect();
        for expression in [
            "[a-z0-9-]{1,63}",
            r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,5}(:[0-9]{1,5})?",
            "/[a-zA-Z0-9_-]{1,255}",
            "/[^/]{1,1000}",
            "/v1/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/.*)?",
            "(?i)/status-of-[a-z]{1,63}",
            names.join("|").as_str(),
        ] {
            assert_eq!(check_expression(expression), Ok(()));
        }
    }

    #[test]
    fn a_set_is_bounded() {
        let set = |count: usize, expression: fn(usize) -> String| {
            let mut builder = ExpressionsBuilder::default();
            for number in 0..count {
                builder.add(&expression(number));
            }
            builder.build()
        };
        let paths = set(1000, |n| format!("/tenants/[a-z0-9-]{{1,63}}/service{n}/[^/]+")).unwrap();
        assert_eq!(paths.matches("/tenants/blue-7/service999/x").unwrap()[..], [999]);
        let error = set(200, |n| format!("/.*a[a-z]{{750}}[a-z]{{750}}N{n}")).unwrap_err();
        assert_eq!(error, SetError::TooLarge { count: 200 });
        assert!(error.to_string().contains("200 regular expressions are too large together"), "{error}");
    }
}
