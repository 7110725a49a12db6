//! Times and durations of expressions: a time lies between the years 1 and 9999, a duration is what 64 bits of
//! nanoseconds hold, and what would leave that is an error.
//!
//! The interpreter's own would bring a table of all time zones that is relocated at each start, used or not.
//!
//! | file | what |
//! | --- | --- |
//! | here | the two as numbers, and their operators |
//! | `text` | reading and writing them |
//! | `functions` | what expressions call: conversions, and parts of a time in a time zone |

pub mod functions;
mod text;

use std::any::Any;
use std::cmp::Ordering;

use cel::ExecutionError;
use cel::common::traits::{Adder, Comparer, Subtractor};
use cel::common::types::{DURATION_TYPE, TIMESTAMP_TYPE, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use jiff::SignedDuration;
use jiff::civil::{self, DateTime};

const SECOND: i128 = 1_000_000_000;
/// The year 1.
const MIN: i128 = -62_135_596_800 * SECOND;
/// The end of the year 9999.
const MAX: i128 = 253_402_300_800 * SECOND - 1;
const EPOCH: DateTime = civil::date(1970, 1, 1).at(0, 0, 0, 0);

static TIME: Type = TIMESTAMP_TYPE;
static SPAN: Type = DURATION_TYPE;

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i128);

/// Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(i64);

impl Time {
    pub fn new(seconds: i64, nanos: i64) -> Result<Time, ExecutionError> {
        Time::of(Some(i128::from(seconds) * SECOND + i128::from(nanos)))
    }

    fn of(nanos: Option<i128>) -> Result<Time, ExecutionError> {
        nanos.filter(|nanos| (MIN..=MAX).contains(nanos)).map(Time).ok_or_else(|| out_of_range("timestamp"))
    }

    fn seconds(self) -> i64 {
        i64::try_from(self.0.div_euclid(SECOND)).unwrap_or_default()
    }

    fn nanos(self) -> i32 {
        i32::try_from(self.0.rem_euclid(SECOND)).unwrap_or_default()
    }

    /// What calendar and clock show so many seconds east of Greenwich.
    fn civil(self, east: i32) -> Result<DateTime, ExecutionError> {
        let since = SignedDuration::new(self.seconds() + i64::from(east), self.nanos());
        EPOCH.checked_add(since).map_err(|_| out_of_range("timestamp"))
    }
}

impl Span {
    pub fn new(seconds: i64, nanos: i64) -> Result<Span, ExecutionError> {
        Span::of(i128::from(seconds) * SECOND + i128::from(nanos))
    }

    fn of(nanos: i128) -> Result<Span, ExecutionError> {
        i64::try_from(nanos).map(Span).map_err(|_| out_of_range("duration"))
    }
}

fn out_of_range(what: &str) -> ExecutionError {
    ExecutionError::function_error(what, "out of range")
}

fn unsupported(other: &dyn Val, wanted: &Type) -> ExecutionError {
    ExecutionError::UnexpectedType { got: other.get_type().name().to_owned(), want: wanted.name().to_owned() }
}

impl Adder for Time {
    fn add<'b, 'v>(&'b self, other: &(dyn Val + 'v)) -> Answer<'b, 'v>
    where
        Self: 'v,
    {
        let Span(nanos) = other.downcast_ref().ok_or_else(|| unsupported(other, &SPAN))?;
        Time::of(self.0.checked_add(i128::from(*nanos))).map(CowVal::owned)
    }
}

impl Adder for Span {
    fn add<'b, 'v>(&'b self, other: &(dyn Val + 'v)) -> Answer<'b, 'v>
    where
        Self: 'v,
    {
        if let Some(time) = other.downcast_ref::<Time>() {
            return Time::of(time.0.checked_add(i128::from(self.0))).map(CowVal::owned);
        }
        let Span(nanos) = other.downcast_ref().ok_or_else(|| unsupported(other, &SPAN))?;
        Span::of(i128::from(self.0) + i128::from(*nanos)).map(CowVal::owned)
    }
}

impl Subtractor for Time {
    fn sub<'b, 'v>(&'b self, other: &(dyn Val + 'v)) -> Answer<'b, 'v>
    where
        Self: 'v,
    {
        if let Some(time) = other.downcast_ref::<Time>() {
            return Span::of(self.0 - time.0).map(CowVal::owned);
        }
        let Span(nanos) = other.downcast_ref().ok_or_else(|| unsupported(other, &SPAN))?;
        Time::of(self.0.checked_sub(i128::from(*nanos))).map(CowVal::owned)
    }
}

impl Subtractor for Span {
    fn sub<'b, 'v>(&'b self, other: &(dyn Val + 'v)) -> Answer<'b, 'v>
    where
        Self: 'v,
    {
        let Span(nanos) = other.downcast_ref().ok_or_else(|| unsupported(other, &SPAN))?;
        Span::of(i128::from(self.0) - i128::from(*nanos)).map(CowVal::owned)
    }
}

/// What both are to the interpreter: of a type, equal to and ordered among their own.
macro_rules! value {
    ($value:ty, $type:ident) => {
        impl Comparer for $value {
            fn compare(&self, other: &dyn Val) -> Result<Ordering, ExecutionError> {
                other
                    .downcast_ref::<Self>()
                    .map(|other| self.cmp(other))
                    .ok_or_else(|| unsupported(other, &$type))
            }
        }

        impl Val for $value {
            fn get_type(&self) -> &Type {
                &$type
            }

            fn cel_type() -> &'static Type {
                &$type
            }

            fn as_adder<'b, 'v>(&'b self) -> Option<&'b (dyn Adder + 'v)>
            where
                Self: 'v,
            {
                Some(self)
            }

            fn as_subtractor<'b, 'v>(&'b self) -> Option<&'b (dyn Subtractor + 'v)>
            where
                Self: 'v,
            {
                Some(self)
            }

            fn as_comparer(&self) -> Option<&dyn Comparer> {
                Some(self)
            }

            fn equals(&self, other: &dyn Val) -> bool {
                other.downcast_ref::<Self>() == Some(self)
            }

            fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
                Box::new(*self)
            }

            fn as_any(&self) -> Option<&dyn Any> {
                Some(self)
            }
        }

        impl StaticVal for $value {}
    };
}

value!(Time, TIME);
value!(Span, SPAN);
