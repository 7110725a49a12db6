//! Parts of expressions: making and measuring them.

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue};

/// Nothing asks for the identifiers of parts once positions in the source do not matter.
pub fn bare(expr: Expr) -> IdedExpr {
    IdedExpr { id: 0, expr }
}

pub fn name(name: &str) -> IdedExpr {
    bare(Expr::Ident(name.to_owned()))
}

pub fn int(number: i64) -> IdedExpr {
    bare(Expr::Literal(LiteralValue::Int(number.into())))
}

pub fn text(text: String) -> IdedExpr {
    bare(Expr::Literal(LiteralValue::String(text.into())))
}

pub fn call(function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    bare(Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args }))
}

/// The segments of `a.b.c`.
pub fn spelled(expr: &Expr) -> Option<Vec<&str>> {
    match expr {
        Expr::Ident(name) => Some(vec![name]),
        Expr::Select(select) if !select.test => {
            let mut segments = spelled(&select.operand.expr)?;
            segments.push(&select.field);
            Some(segments)
        }
        _ => None,
    }
}

/// Levels and parts.
pub fn extent(expression: &IdedExpr) -> (usize, usize) {
    let mut whole = (0, 0);
    let mut part = |part: &IdedExpr| {
        let (depth, parts) = extent(part);
        whole = (whole.0.max(depth), whole.1 + parts);
    };
    match &expression.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).for_each(part),
        Expr::Comprehension(comprehension) => {
            part(&comprehension.iter_range);
            part(&comprehension.accu_init);
            part(&comprehension.loop_cond);
            part(&comprehension.loop_step);
            part(&comprehension.result);
        }
        Expr::List(list) => list.elements.iter().for_each(part),
        Expr::Map(map) => map.entries.iter().for_each(|entry| entry_parts(&entry.expr, &mut part)),
        Expr::Struct(message) => message.entries.iter().for_each(|entry| entry_parts(&entry.expr, &mut part)),
        Expr::Select(select) => part(&select.operand),
    }
    (whole.0 + 1, whole.1 + 1)
}

fn entry_parts(entry: &EntryExpr, part: &mut impl FnMut(&IdedExpr)) {
    match entry {
        EntryExpr::StructField(field) => part(&field.value),
        EntryExpr::MapEntry(entry) => {
            part(&entry.key);
            part(&entry.value);
        }
    }
}
