//! Expressions in filters (Common Expression Language), as Hubble reads them: `_flow` is the message `flow.Flow`, names
//! of types may leave out `flow.`, and the result is a bool. Several expressions of one filter are alternatives, tried
//! in order; an error while one runs means that the flow is not wanted.
//!
//! | file | what |
//! | --- | --- |
//! | here | compiling within bounds, and running |
//! | `check` | names, members and types are right; the expression is rewritten for the interpreter |
//! | `types` | what is known of a value before anything runs |
//! | `value` | protobuf messages as the interpreter's values |
//! | `time` | times and durations as the interpreter's values |
//! | `meter` | the work that one flow may cost |
//!
//! The interpreter knows no messages, no enums and no bounds. So an expression is small (`SOURCE`, `DEPTH`, `NODES`),
//! is parsed and checked on a stack that fits the worst that this many bytes can be, and afterwards is shallow
//! enough for any stack. What it may do for one flow is metered while it runs (see [`meter`]).

mod check;
mod meter;
#[cfg(test)]
mod tests;
mod time;
mod types;
mod value;

use std::sync::LazyLock;

use cel::common::ast::IdedExpr;
use cel::common::types::CelBool;
use cel::common::value::CowVal;
use cel::context::VariableResolver;
use cel::parser::PrattParser;
use cel::{Context, Value};
use prost_reflect::{DynamicMessage, MessageDescriptor};

use self::meter::{Meter, Pattern};
use self::value::Message;
use super::convert::{self, Naming};
use super::mask::descriptor;
use crate::flow::Flow;
use crate::flow::filter::Predicate;

/// Bytes of one expression.
const SOURCE: usize = 1024;
/// Levels of brackets and calls while parsing, and of the parsed expression. A level takes up to 3 KiB of the stack that
/// the expression runs on, 40 KiB without optimisation.
const DEPTH: usize = 24;
/// Operators, names, values and calls of one expression, with what macros expand to.
const NODES: usize = 512;
/// The stack for parsing. No 1024 bytes need a fourth of it, even without optimisation.
const STACK: usize = 16 << 20;
/// What all expressions of one filter may cost for one flow, in units of a [`meter`]: 0.1 µs each or less. Work that
/// no loop repeats costs no units, and there is little of it: at most `NODES` steps an expression.
const WORK: u64 = 10_000;

static FLOW: LazyLock<MessageDescriptor> = LazyLock::new(|| descriptor("flow.Flow"));

/// The expressions of one filter.
#[derive(Debug)]
pub struct Expressions {
    programs: Vec<Program>,
    naming: Naming,
}

impl Expressions {
    /// Errors begin with the index of the expression: `[0]: unknown name`.
    pub fn compile(sources: &[String], naming: &Naming) -> Result<Expressions, String> {
        let programs = sources
            .iter()
            .enumerate()
            .map(|(index, source)| Program::compile(source).map_err(|error| format!("[{index}]: {error}")))
            .collect::<Result<_, _>>()?;
        Ok(Expressions { programs, naming: naming.clone() })
    }
}

impl Predicate for Expressions {
    fn matches(&self, flow: &Flow) -> bool {
        let mut message = DynamicMessage::new(FLOW.clone());
        if message.transcode_from(&convert::flow(flow, &self.naming)).is_err() {
            return false;
        }
        let meter = Meter::new(WORK);
        for program in &self.programs {
            match program.run(&message, &meter) {
                Outcome::Bool(false) => {}
                Outcome::Bool(true) => return true,
                // As in Hubble: what comes after an error is not tried.
                Outcome::Other | Outcome::Error => return false,
            }
        }
        false
    }
}

/// What an expression comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Bool(bool),
    /// A value that is no bool.
    Other,
    /// Such as a division by zero, or more work than is allowed.
    Error,
}

#[derive(Debug)]
struct Program {
    expression: IdedExpr,
    patterns: Vec<Pattern>,
}

impl Program {
    fn compile(source: &str) -> Result<Program, String> {
        if source.len() > SOURCE {
            return Err(format!("the expression is longer than {SOURCE} bytes"));
        }
        let checked = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("cel".into()).stack_size(STACK);
            let parsing = thread.spawn_scoped(scope, || parse(source).and_then(check::check));
            let parsing = parsing.map_err(|error| format!("cannot be parsed now: {error}"))?;
            parsing.join().map_err(|_| "the expression is not understood".to_owned())?
        })?;
        let program = Program { expression: checked.expression, patterns: checked.patterns };
        // Where types are known when something runs only, a flow without members shows most of what is no bool.
        let nothing = DynamicMessage::new(FLOW.clone());
        match program.run(&nothing, &Meter::new(WORK)) {
            Outcome::Other => Err("the expression is no bool".into()),
            Outcome::Bool(_) | Outcome::Error => Ok(program),
        }
    }

    fn run(&self, flow: &DynamicMessage, meter: &Meter) -> Outcome {
        let names = Names { flow, meter, patterns: &self.patterns };
        let mut context = Context::with_env(meter::environment());
        context.set_variable_resolver(&names);
        match Value::resolve_val(&self.expression, &context) {
            Ok(value) => match value.downcast_ref::<CelBool>() {
                Some(bool) => Outcome::Bool(*bool.inner()),
                None => Outcome::Other,
            },
            Err(_) => Outcome::Error,
        }
    }
}

fn parse(source: &str) -> Result<IdedExpr, String> {
    let parser = PrattParser::new()
        .max_recursion_depth(u16::try_from(DEPTH).unwrap_or(u16::MAX))
        .max_expression_node_count(NODES);
    let parsed = parser.parse(source).map_err(|errors| match errors.errors.first() {
        Some(first) if first.pos.0 > 0 => format!("{}:{}: {}", first.pos.0, first.pos.1, first.msg),
        Some(first) => first.msg.clone(),
        None => "the expression is not understood".into(),
    })?;
    let (depth, nodes) = check::extent(&parsed);
    if depth > DEPTH {
        return Err(format!("the expression is nested deeper than {DEPTH} levels"));
    }
    if nodes > NODES {
        return Err(format!("the expression has more than {NODES} parts"));
    }
    Ok(parsed)
}

/// What names of an expression stand for while it looks at one flow.
struct Names<'f> {
    flow: &'f DynamicMessage,
    meter: &'f Meter,
    patterns: &'f [Pattern],
}

impl VariableResolver for Names<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        match name {
            check::FLOW => Some(CowVal::owned(Message::set(self.flow, self.meter))),
            meter::METER => Some(CowVal::Borrowed(self.meter)),
            _ => {
                let index: usize = name.strip_prefix(meter::PATTERN)?.parse().ok()?;
                Some(CowVal::Borrowed(self.patterns.get(index)?))
            }
        }
    }
}
