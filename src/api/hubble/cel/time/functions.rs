//! Functions of times and durations: conversions from and to numbers and text, and the parts of either.
//!
//! A part of a time may be asked for in a time zone: a name of IANA's, or hours and minutes east of Greenwich. The
//! names are those that the program was built with, so an expression reads no file and means the same on each node.

use std::sync::LazyLock;

use cel::common::functions::Function;
use cel::common::types::{CelInt, CelString, DURATION_TYPE, INT_TYPE, STRING_TYPE, TIMESTAMP_TYPE};
use cel::common::value::CowVal;
use cel::{DeclarationError, Env, ExecutionError};
use jiff::civil::DateTime;
use jiff::tz::TimeZoneDatabase;

use super::{Answer, SECOND, Span, Time};
use crate::api::hubble::cel::meter::{argument, missing, text};

/// Adds them to an environment that has functions of such names for other values.
pub fn declare(env: &mut Env) -> Result<(), DeclarationError> {
    let conversions: [(&str, &str, _, Function); 8] = [
        ("timestamp", "text to time", STRING_TYPE, |values| {
            Time::parse(text(&values, 0)?).map(CowVal::owned).ok_or_else(|| malformed("timestamp"))
        }),
        ("timestamp", "number to time", INT_TYPE, |values| {
            Time::new(*argument::<CelInt>(&values, 0)?.inner(), 0).map(CowVal::owned)
        }),
        ("timestamp", "time to time", TIMESTAMP_TYPE, same),
        ("duration", "text to duration", STRING_TYPE, |values| {
            Span::parse(text(&values, 0)?).map(CowVal::owned).ok_or_else(|| malformed("duration"))
        }),
        ("duration", "duration to duration", DURATION_TYPE, same),
        ("int", "time to number", TIMESTAMP_TYPE, |values| Ok(int(argument::<Time>(&values, 0)?.seconds()))),
        ("string", "time to text", TIMESTAMP_TYPE, |values| {
            Ok(CowVal::owned(CelString::from(argument::<Time>(&values, 0)?.to_string())))
        }),
        ("string", "duration to text", DURATION_TYPE, |values| {
            Ok(CowVal::owned(CelString::from(argument::<Span>(&values, 0)?.to_string())))
        }),
    ];
    for (name, id, of, function) in conversions {
        env.add_overload(name, id, vec![of], function)?;
    }
    let parts_of_time: [(&str, Function); 10] = [
        ("getFullYear", |values| part(&values, |at| at.year().into())),
        ("getMonth", |values| part(&values, |at| i64::from(at.month()) - 1)),
        ("getDate", |values| part(&values, |at| at.day().into())),
        ("getDayOfMonth", |values| part(&values, |at| i64::from(at.day()) - 1)),
        ("getDayOfWeek", |values| part(&values, |at| at.weekday().to_sunday_zero_offset().into())),
        ("getDayOfYear", |values| part(&values, |at| i64::from(at.day_of_year()) - 1)),
        ("getHours", |values| part(&values, |at| at.hour().into())),
        ("getMinutes", |values| part(&values, |at| at.minute().into())),
        ("getSeconds", |values| part(&values, |at| at.second().into())),
        ("getMilliseconds", |values| part(&values, |at| at.millisecond().into())),
    ];
    for (name, function) in parts_of_time {
        env.add_member_overload(name, "of a time", TIMESTAMP_TYPE, vec![], function)?;
        env.add_member_overload(name, "of a time in a zone", TIMESTAMP_TYPE, vec![STRING_TYPE], function)?;
    }
    let whole: [(&str, Function); 4] = [
        ("getHours", |values| whole(&values, 3600 * SECOND)),
        ("getMinutes", |values| whole(&values, 60 * SECOND)),
        ("getSeconds", |values| whole(&values, SECOND)),
        ("getMilliseconds", |values| whole(&values, SECOND / 1000)),
    ];
    for (name, function) in whole {
        env.add_member_overload(name, "of a duration", DURATION_TYPE, vec![], function)?;
    }
    Ok(())
}

fn int<'b, 'v>(number: i64) -> CowVal<'b, 'v> {
    CowVal::owned(CelInt::from(number))
}

fn malformed(function: &str) -> ExecutionError {
    ExecutionError::function_error(function, "malformed, or out of range")
}

fn same<'b, 'v>(mut values: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    values.pop().ok_or_else(missing)
}

fn part<'b, 'v>(values: &[CowVal<'b, 'v>], get: fn(DateTime) -> i64) -> Answer<'b, 'v> {
    let time = argument::<Time>(values, 0)?;
    let east = match values.len() {
        1 => 0,
        _ => east(*time, text(values, 1)?)?,
    };
    time.civil(east).map(|civil| int(get(civil)))
}

fn whole<'b, 'v>(values: &[CowVal<'b, 'v>], unit: i128) -> Answer<'b, 'v> {
    let Span(nanos) = argument(values, 0)?;
    Ok(int(i64::try_from(i128::from(*nanos) / unit).unwrap_or_default()))
}

/// The seconds that the clocks of a zone are ahead at that time.
fn east(time: Time, zone: &str) -> Result<i32, ExecutionError> {
    static NAMES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
    let unknown = || ExecutionError::function_error("timezone", format!("unknown time zone {zone:.40}"));
    let Some((hours, minutes)) = zone.split_once(':') else {
        if zone.is_empty() {
            return Ok(0);
        }
        let zone = NAMES.get(zone).map_err(|_| unknown())?;
        // Of the last day of the year 9999 the library knows nothing; the day before is as good.
        let at = jiff::Timestamp::new(time.seconds(), time.nanos()).unwrap_or(jiff::Timestamp::MAX);
        return Ok(zone.to_offset(at).seconds());
    };
    let sign = if hours.starts_with('-') { -1 } else { 1 };
    let hours: i32 = hours.parse().map_err(|_| unknown())?;
    let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
    if !(-23..=23).contains(&hours) || !(0..=59).contains(&minutes) {
        return Err(unknown());
    }
    Ok(hours * 3600 + sign * minutes * 60)
}
