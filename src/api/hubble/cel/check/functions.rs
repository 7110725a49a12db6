//! What an expression may call, and what that gives.

use std::ops::RangeInclusive;

use cel::common::ast::operators::{
    ADD, CONDITIONAL, DIVIDE, EQUALS, GREATER, GREATER_EQUALS, IN, INDEX, LESS, LESS_EQUALS, LOGICAL_AND,
    LOGICAL_NOT, LOGICAL_OR, MODULO, MULTIPLY, NEGATE, NOT_EQUALS, SUBSTRACT,
};

use crate::api::hubble::cel::types::{Known, Scalar};

/// How something is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `f(x)`
    Function,
    /// `x.f()`
    Method,
}

/// A standard function: its values, with what a method is called on, and what it gives, if that is always the same.
struct Signature {
    name: &'static str,
    styles: &'static [Style],
    values: RangeInclusive<usize>,
    result: Option<Scalar>,
}

const fn conversion(name: &'static str, result: Option<Scalar>) -> Signature {
    Signature { name, styles: &[Style::Function], values: 1..=1, result }
}

const fn of_two_texts(name: &'static str) -> Signature {
    Signature { name, styles: &[Style::Method], values: 2..=2, result: Some(Scalar::Bool) }
}

/// Of a time, or of a time in a time zone.
const fn part_of_time(name: &'static str) -> Signature {
    Signature { name, styles: &[Style::Method], values: 1..=2, result: Some(Scalar::Int) }
}

const SIGNATURES: [Signature; 25] = [
    Signature {
        name: "size",
        styles: &[Style::Function, Style::Method],
        values: 1..=1,
        result: Some(Scalar::Int),
    },
    of_two_texts("contains"),
    of_two_texts("startsWith"),
    of_two_texts("endsWith"),
    conversion("bool", Some(Scalar::Bool)),
    conversion("bytes", Some(Scalar::Bytes)),
    conversion("double", Some(Scalar::Double)),
    conversion("duration", Some(Scalar::Duration)),
    conversion("dyn", None),
    conversion("int", Some(Scalar::Int)),
    conversion("string", Some(Scalar::String)),
    conversion("timestamp", Some(Scalar::Timestamp)),
    conversion("type", Some(Scalar::Type)),
    conversion("uint", Some(Scalar::Uint)),
    part_of_time("getDate"),
    part_of_time("getDayOfMonth"),
    part_of_time("getDayOfWeek"),
    part_of_time("getDayOfYear"),
    part_of_time("getFullYear"),
    part_of_time("getHours"),
    part_of_time("getMilliseconds"),
    part_of_time("getMinutes"),
    part_of_time("getMonth"),
    part_of_time("getSeconds"),
    // Rewritten before it would be called.
    of_two_texts("matches"),
];

/// What a call gives.
pub fn call_type(name: &str, style: Style, values: usize) -> Result<Known, String> {
    let signature = SIGNATURES
        .iter()
        .find(|signature| signature.name == name)
        .ok_or_else(|| format!("{name}(): unknown function"))?;
    if !signature.styles.contains(&style) {
        return Err(match style {
            Style::Function => format!("{name}() is called on a value: x.{name}()"),
            Style::Method => format!("{name}() is not called on a value: {name}(x)"),
        });
    }
    if !signature.values.contains(&values) {
        return Err(format!("{name}(): wrong number of arguments"));
    }
    Ok(signature.result.map_or(Known::Any, Known::Scalar))
}

/// What an operator gives; `None` if that is no operator.
pub fn operator_type(name: &str, operands: &[Known]) -> Option<Result<Known, String>> {
    let bool = || Ok(Known::Scalar(Scalar::Bool));
    let of = |fits: bool, result: Known| if fits { Ok(result) } else { Err(misfit(name, operands)) };
    let is_bool = |known: &Known| known.may_be(Scalar::Bool);
    Some(match (name, operands) {
        (CONDITIONAL, [condition, a, b]) => of(is_bool(condition), a.clone().or(b.clone())),
        (LOGICAL_AND | LOGICAL_OR, [a, b]) => of(is_bool(a) && is_bool(b), Known::Scalar(Scalar::Bool)),
        (LOGICAL_NOT, [a]) => of(is_bool(a), Known::Scalar(Scalar::Bool)),
        (EQUALS | NOT_EQUALS, [a, b]) => of(a.may_equal(b), Known::Scalar(Scalar::Bool)),
        (LESS | LESS_EQUALS | GREATER | GREATER_EQUALS, [a, b]) => {
            of(a.may_order(b), Known::Scalar(Scalar::Bool))
        }
        (IN, [value, Known::List(element)]) => of(value.may_equal(element), Known::Scalar(Scalar::Bool)),
        (IN, [_, Known::Map(_) | Known::Any]) => bool(),
        (INDEX, [a, _]) => a.at_index(),
        (ADD | SUBSTRACT | MULTIPLY | DIVIDE | MODULO, [a, b]) => arithmetic(a, b),
        (NEGATE, [a]) => Ok(a.clone()),
        (IN, [..]) => Err(misfit(name, operands)),
        _ => return None,
    })
}

/// Of two of a kind that kind, but for times, whose difference is none.
fn arithmetic(a: &Known, b: &Known) -> Result<Known, String> {
    let is_time = *a == Known::Scalar(Scalar::Timestamp);
    Ok(if a == b && !is_time { a.clone() } else { Known::Any })
}

fn misfit(operator: &str, operands: &[Known]) -> String {
    let operator = match operator {
        IN => "in",
        CONDITIONAL => "? :",
        other => other.trim_matches('_'),
    };
    let operands: Vec<_> = operands.iter().map(ToString::to_string).collect();
    format!("{operator} is not for {}", operands.join(" and "))
}
