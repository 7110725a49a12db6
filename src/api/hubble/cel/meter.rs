//! The work that an expression may do for one flow, and the functions that count it.
//!
//! Each step of a loop pays for the parts of its body, and whatever a loop variable or a member of the flow gives pays
//! for its size. So everything that is compared, copied or built inside loops was paid for by what it is made of;
//! only a chain of `+` copies its beginnings again, and is as short as expressions are shallow. Who can pay no more
//! gets an error, and the flow is not wanted.
//!
//! Worst cases: two loops within each other over a hundred labels each take 10,000 steps, and run out of work
//! before the inner one has run ten times; a thousand cheap steps are always affordable.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use cel::common::types::{self, CelBool, CelBytes, CelInt, CelList, CelMap, CelString, Kind, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{Env, ExecutionError};

use super::time;
use super::value::PRESENCE;
use crate::flow::filter::Regex;

/// The variable that holds the meter; no source can say it.
pub const METER: &str = "@meter";
/// Variables that hold patterns, with their index.
pub const PATTERN: &str = "@pattern";
/// `TICK(meter, units)` is true if it can be paid for.
pub const TICK: &str = "@tick";
/// `WEIGH(meter, value)` is the value if its size can be paid for.
pub const WEIGH: &str = "@weigh";
/// `HAS(value, name)`: whether a message has a member set, or a map has a key.
pub const HAS: &str = "@has";
/// `MATCHES(meter, text, pattern)`.
pub const MATCHES: &str = "@matches";

/// Bytes of a text that cost as much as one step.
const BYTES: usize = 64;
/// What a search costs beside the length of the text.
const SEARCH: u64 = 16;

static METER_TYPE: Type = Type::new_unspecified_type("meter");
static PATTERN_TYPE: Type = Type::new_unspecified_type("pattern");

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// What is left.
#[derive(Clone, Debug)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    pub fn new(units: u64) -> Meter {
        Meter(Arc::new(AtomicU64::new(units)))
    }

    pub fn spend(&self, units: u64) -> Result<(), ExecutionError> {
        let spend = |left: u64| Some(left.saturating_sub(units));
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).unwrap_or_default();
        if left < units {
            return Err(ExecutionError::function_error("meter", "more work than one flow may cost"));
        }
        Ok(())
    }
}

/// What a text of this many bytes costs beside the step that gives it.
pub fn text_units(bytes: usize) -> u64 {
    u64::try_from(bytes / BYTES).unwrap_or(u64::MAX)
}

impl Val for Meter {
    fn get_type(&self) -> &Type {
        &METER_TYPE
    }

    fn cel_type() -> &'static Type {
        &METER_TYPE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Meter {}

/// A regular expression that was compiled with its expression.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern, String> {
        Regex::parse(text).map(Pattern).map_err(|error| format!("{text:.80?}: {error}"))
    }
}

impl Val for Pattern {
    fn get_type(&self) -> &Type {
        &PATTERN_TYPE
    }

    fn cel_type() -> &'static Type {
        &PATTERN_TYPE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Pattern {}

/// The standard functions, without optional values, and ours.
pub fn environment() -> Arc<Env> {
    static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
        let mut env = Env::default().with_optional_support(false).with_stdlib();
        let meter = || METER_TYPE.to_owned();
        for (name, arguments, function) in [
            (TICK, vec![meter(), types::INT_TYPE], tick as cel::common::functions::Function),
            (WEIGH, vec![meter(), types::DYN_TYPE], weigh),
            (HAS, vec![types::DYN_TYPE, types::STRING_TYPE], has),
            (MATCHES, vec![meter(), types::STRING_TYPE, PATTERN_TYPE.to_owned()], matches),
        ] {
            env.add_overload(name, name, arguments, function).expect("no standard function has such a name");
        }
        time::functions::declare(&mut env).expect("no standard function is of times");
        Arc::new(env)
    });
    Arc::clone(&ENVIRONMENT)
}

pub fn argument<'a, 'b, 'v, T: StaticVal>(
    arguments: &'a [CowVal<'b, 'v>],
    index: usize,
) -> Result<&'a T, ExecutionError> {
    arguments.get(index).and_then(|value| value.downcast_ref::<T>()).ok_or_else(missing)
}

pub fn text<'a>(arguments: &'a [CowVal<'_, '_>], index: usize) -> Result<&'a str, ExecutionError> {
    arguments
        .get(index)
        .and_then(|value| value.downcast_ref::<CelString<'_>>())
        .map(CelString::inner)
        .ok_or_else(missing)
}

pub fn missing() -> ExecutionError {
    ExecutionError::missing_argument_or_target()
}

fn tick<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let units = *argument::<CelInt>(&arguments, 1)?.inner();
    argument::<Meter>(&arguments, 0)?.spend(u64::try_from(units).unwrap_or(u64::MAX))?;
    Ok(CowVal::owned(CelBool::from(true)))
}

fn weigh<'b, 'v>(mut arguments: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let value = arguments.pop().ok_or_else(missing)?;
    argument::<Meter>(&arguments, 0)?.spend(weight(value.as_ref()))?;
    Ok(value)
}

/// Values that a copy or a comparison would go through.
fn weight(value: &dyn Val) -> u64 {
    let inner = if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        text_units(text.inner().len())
    } else if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
        text_units(bytes.inner().len())
    } else if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        list.inner().iter().map(|value| weight(value.as_ref())).fold(0, u64::saturating_add)
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        let entries = map.inner().iter();
        entries
            .map(|(key, value)| weight(key.inner()).saturating_add(weight(value.as_ref())))
            .fold(0, u64::saturating_add)
    } else {
        0
    };
    inner.saturating_add(1)
}

fn has<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let name = text(&arguments, 1)?;
    let value = arguments.first().ok_or_else(missing)?;
    let indexer = value.as_indexer().ok_or_else(|| ExecutionError::no_such_key(name))?;
    let has = if value.get_type().kind() == Kind::Struct {
        let present = indexer.get(&CelString::from(format!("{PRESENCE}{name}")))?;
        present.downcast_ref::<CelBool>().is_some_and(|present| *present.inner())
    } else {
        match indexer.get(&CelString::from(name)) {
            Ok(_) => true,
            Err(ExecutionError::NoSuchKey(_)) => false,
            Err(error) => return Err(error),
        }
    };
    Ok(CowVal::owned(CelBool::from(has)))
}

fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let text = text(&arguments, 1)?;
    argument::<Meter>(&arguments, 0)?
        .spend(SEARCH.saturating_add(text_units(text.len()).saturating_mul(8)))?;
    let Pattern(pattern) = argument(&arguments, 2)?;
    Ok(CowVal::owned(CelBool::from(pattern.is_match(text))))
}
