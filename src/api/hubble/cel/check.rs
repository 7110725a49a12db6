//! Checks an expression as it was parsed, and rewrites it for the interpreter.
//!
//! Refused are names, members and functions that do not exist, operators on types that they are not for, loops deeper
//! than [`LOOPS`], and regular expressions that are not literals. Rewritten are names of enum values (to their
//! numbers), `has()` and `matches()` (to functions that know messages and compiled patterns), and whatever a loop
//! repeats (so that it is metered). `functions` has what an expression may call.

mod functions;
mod tree;

use cel::common::ast::operators::{ADD, CONDITIONAL, LOGICAL_AND, LOGICAL_OR};
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr, SelectExpr,
};

use self::functions::{call_type, operator_type};
pub use self::tree::extent;
use self::tree::{call, int, name, spelled, text};
use super::meter::{HAS, MATCHES, METER, PATTERN, Pattern, TICK, WEIGH};
use super::types::{Known, Scalar};

/// The variable that is the flow.
pub const FLOW: &str = "_flow";
/// Where names are looked for first.
const CONTAINER: &str = "flow";
/// Loops (`all`, `exists`, `exists_one`, `map`, `filter`) within the body of another, that one included.
const LOOPS: usize = 2;
/// Regular expressions of one expression; what each may take is bounded where it is compiled.
const PATTERNS: usize = 4;
/// Names that are types.
const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// An expression that may run.
#[derive(Debug)]
pub struct Checked {
    pub expression: IdedExpr,
    /// What its variables `PATTERN` and index stand for.
    pub patterns: Vec<Pattern>,
}

pub fn check(parsed: IdedExpr) -> Result<Checked, String> {
    let mut checker = Checker { variables: Vec::new(), patterns: Vec::new() };
    let (expression, known) = checker.expression(parsed)?;
    if !known.may_be(Scalar::Bool) {
        return Err(format!("the expression is no bool, but of type {known}"));
    }
    Ok(Checked { expression, patterns: checker.patterns })
}

type Typed = (IdedExpr, Known);

struct Checker {
    /// Of the loops around, innermost last.
    variables: Vec<(String, Known)>,
    patterns: Vec<Pattern>,
}

impl Checker {
    fn expression(&mut self, parsed: IdedExpr) -> Result<Typed, String> {
        match parsed.expr {
            Expr::Literal(ref literal) => {
                let known = Known::Scalar(of_literal(literal));
                Ok((parsed, known))
            }
            Expr::Ident(_) => self.path(parsed),
            Expr::Select(select) if select.test => self.presence(select),
            Expr::Select(_) => self.path(parsed),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => self.list(list),
            Expr::Map(map) => self.map(map),
            Expr::Comprehension(comprehension) => self.comprehension(*comprehension),
            Expr::Struct(message) => Err(format!("{}: messages cannot be made here", message.type_name)),
            Expr::Unspecified => Err("the expression is not understood".into()),
        }
    }

    fn variable(&self, name: &str) -> Option<&Known> {
        self.variables.iter().rev().find(|(variable, _)| variable == name).map(|(_, known)| known)
    }

    /// `a` or `x.a`: a variable, a member, or an enum value.
    fn path(&mut self, parsed: IdedExpr) -> Result<Typed, String> {
        if let Some(segments) = spelled(&parsed.expr)
            && self.variable(segments[0]).is_none()
            && !is_flow(segments[0])
        {
            return constant(&segments).map(|known| match known {
                Constant::Enum(number) => (int(number), Known::Scalar(Scalar::Int)),
                Constant::Type(name) => (tree::name(name), Known::Scalar(Scalar::Type)),
            });
        }
        match parsed.expr {
            Expr::Ident(variable) => Ok(match self.variable(&variable).cloned() {
                // Whatever is done with it pays for its size first.
                Some(known) => (call(WEIGH, vec![name(METER), name(&variable)]), known),
                None => (name(&variable), Known::Message(super::FLOW.clone())),
            }),
            Expr::Select(select) => {
                let (operand, known) = self.expression(*select.operand)?;
                let member = known.member(&select.field)?;
                let select = SelectExpr { operand: Box::new(operand), field: select.field, test: false };
                Ok((tree::bare(Expr::Select(select)), member))
            }
            _ => Err("the expression is not understood".into()),
        }
    }

    fn presence(&mut self, select: SelectExpr) -> Result<Typed, String> {
        let (operand, known) = self.expression(*select.operand)?;
        known.member(&select.field)?;
        Ok((call(HAS, vec![operand, text(select.field)]), Known::Scalar(Scalar::Bool)))
    }

    fn call(&mut self, called: CallExpr) -> Result<Typed, String> {
        let CallExpr { func_name, target, args } = called;
        let style = if target.is_some() { functions::Style::Method } else { functions::Style::Function };
        let all: Vec<_> = target.map(|target| *target).into_iter().chain(args).collect();
        if func_name == "matches" {
            return self.matches(all);
        }
        let mut values = Vec::with_capacity(all.len());
        let mut known = Vec::with_capacity(all.len());
        for value in all {
            let (value, one) = self.expression(value)?;
            values.push(value);
            known.push(one);
        }
        let result = match operator_type(&func_name, &known) {
            Some(result) => result?,
            None => call_type(&func_name, style, known.len())?,
        };
        let target = match style {
            functions::Style::Method => Some(Box::new(values.remove(0))),
            functions::Style::Function => None,
        };
        Ok((tree::bare(Expr::Call(CallExpr { func_name, target, args: values })), result))
    }

    /// Compiled now: for every flow anew it would take longer than all the rest.
    fn matches(&mut self, mut values: Vec<IdedExpr>) -> Result<Typed, String> {
        let pattern = values.pop();
        let (Some(subject), true) = (values.pop(), values.is_empty()) else {
            return Err("matches() is of a text and a regular expression".into());
        };
        let Some(Expr::Literal(LiteralValue::String(pattern))) = pattern.map(|pattern| pattern.expr) else {
            return Err("matches(): the regular expression has to be a literal".into());
        };
        let (subject, known) = self.expression(subject)?;
        if !known.may_be(Scalar::String) {
            return Err(format!("matches() is of a text, not of {known}"));
        }
        if self.patterns.len() == PATTERNS {
            return Err(format!("more than {PATTERNS} regular expressions"));
        }
        let variable = format!("{PATTERN}{}", self.patterns.len());
        self.patterns.push(Pattern::parse(pattern.inner()).map_err(|error| format!("matches(): {error}"))?);
        Ok((call(MATCHES, vec![name(METER), subject, name(&variable)]), Known::Scalar(Scalar::Bool)))
    }

    fn list(&mut self, list: ListExpr) -> Result<Typed, String> {
        let mut elements = Vec::with_capacity(list.elements.len());
        let mut known: Option<Known> = None;
        for element in list.elements {
            let (element, one) = self.expression(element)?;
            elements.push(element);
            known = Some(match known {
                Some(known) => known.or(one),
                None => one,
            });
        }
        Ok((tree::bare(Expr::List(ListExpr::new(elements))), Known::list(known.unwrap_or(Known::Any))))
    }

    fn map(&mut self, mut map: MapExpr) -> Result<Typed, String> {
        for entry in &mut map.entries {
            let EntryExpr::MapEntry(entry) = &mut entry.expr else {
                return Err("the expression is not understood".into());
            };
            entry.key = self.expression(std::mem::take(&mut entry.key))?.0;
            entry.value = self.expression(std::mem::take(&mut entry.value))?.0;
        }
        Ok((tree::bare(Expr::Map(map)), Known::Map(Box::new(Known::Any))))
    }

    fn comprehension(&mut self, mut loop_: ComprehensionExpr) -> Result<Typed, String> {
        let (range, known) = self.expression(loop_.iter_range)?;
        let element = known.element()?;
        if self.variables.len() == LOOPS {
            return Err(format!("more than {LOOPS} loops within each other"));
        }
        let step = Step { parts: extent(&loop_.loop_step).1 };
        self.variables.push((loop_.iter_var.clone(), element));
        let (body, result) = self.step(loop_.loop_step, step)?;
        self.variables.pop();
        loop_.iter_range = range;
        loop_.loop_step = body;
        Ok((tree::bare(Expr::Comprehension(Box::new(loop_))), result))
    }

    /// The body of a loop as macros expand to it: `result && body`, `result || body`, `body ? append : result`, or
    /// just `append`. The interpreter knows these forms, so only what the source said is touched.
    fn step(&mut self, parsed: IdedExpr, step: Step) -> Result<Typed, String> {
        let Expr::Call(mut called) = parsed.expr else { return Err(unknown_loop()) };
        let known = match (called.func_name.as_str(), &mut called.args[..]) {
            (LOGICAL_AND | LOGICAL_OR, [_, body]) => self.condition(body, step)?,
            (CONDITIONAL, [body, append, _]) => {
                self.condition(body, step)?;
                self.append(append, None)?
            }
            _ => {
                let mut append = tree::bare(Expr::Call(called));
                let known = self.append(&mut append, Some(step))?;
                return Ok((append, known));
            }
        };
        Ok((tree::bare(Expr::Call(called)), known))
    }

    fn condition(&mut self, body: &mut IdedExpr, step: Step) -> Result<Known, String> {
        let (condition, known) = self.expression(std::mem::take(body))?;
        if !known.may_be(Scalar::Bool) {
            return Err(format!("the condition of a loop is no bool, but of type {known}"));
        }
        *body = step.pay(condition);
        Ok(Known::Scalar(Scalar::Bool))
    }

    /// `result + 1` counts, `result + [body]` collects.
    fn append(&mut self, append: &mut IdedExpr, step: Option<Step>) -> Result<Known, String> {
        let Expr::Call(CallExpr { func_name, args, .. }) = &mut append.expr else {
            return Err(unknown_loop());
        };
        match (func_name.as_str(), &mut args[..]) {
            (ADD, [_, IdedExpr { expr: Expr::Literal(_), .. }]) => Ok(Known::Scalar(Scalar::Bool)),
            (ADD, [_, IdedExpr { expr: Expr::List(list), .. }]) if list.elements.len() == 1 => {
                let (body, known) = self.expression(std::mem::take(&mut list.elements[0]))?;
                list.elements[0] = match step {
                    Some(step) => step.pay(body),
                    None => body,
                };
                Ok(Known::list(known))
            }
            _ => Err(unknown_loop()),
        }
    }
}

fn unknown_loop() -> String {
    "the loop is not understood".into()
}

/// One step of a loop.
#[derive(Clone, Copy)]
struct Step {
    parts: usize,
}

impl Step {
    /// The body, if its parts can be paid for; an error else.
    fn pay(self, body: IdedExpr) -> IdedExpr {
        let units = int(i64::try_from(self.parts).unwrap_or(i64::MAX));
        let paid = call(TICK, vec![name(METER), units]);
        call(CONDITIONAL, vec![paid, body, tree::bare(Expr::Literal(LiteralValue::Null))])
    }
}

fn is_flow(name: &str) -> bool {
    name.strip_prefix('.').unwrap_or(name) == FLOW
}

fn of_literal(literal: &LiteralValue) -> Scalar {
    match literal {
        LiteralValue::Boolean(_) => Scalar::Bool,
        LiteralValue::Bytes(_) => Scalar::Bytes,
        LiteralValue::Double(_) => Scalar::Double,
        LiteralValue::Int(_) => Scalar::Int,
        LiteralValue::Null => Scalar::Null,
        LiteralValue::String(_) => Scalar::String,
        LiteralValue::UInt(_) => Scalar::Uint,
    }
}

/// What a name without a variable stands for.
enum Constant {
    Enum(i64),
    Type(&'static str),
}

/// `Verdict.DROPPED`, `flow.Verdict.DROPPED`, `Tunnel.Protocol.VXLAN`, or a type.
fn constant(segments: &[&str]) -> Result<Constant, String> {
    let path = segments.join(".");
    let path = path.strip_prefix('.').unwrap_or(&path);
    if let Some(name) = TYPES.into_iter().find(|name| *name == path) {
        return Ok(Constant::Type(name));
    }
    let pool = super::FLOW.parent_pool();
    let number = path.rsplit_once('.').and_then(|(of, value)| {
        let found =
            pool.get_enum_by_name(&format!("{CONTAINER}.{of}")).or_else(|| pool.get_enum_by_name(of))?;
        found.get_value_by_name(value).map(|value| i64::from(value.number()))
    });
    number.map(Constant::Enum).ok_or_else(|| format!("{path}: unknown name"))
}
