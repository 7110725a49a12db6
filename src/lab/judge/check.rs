//! Does what was seen meet what a step expects?

use super::traffic::{Got, Seen, SeenBy, SeenSide};
use crate::lab::report::Status;
use crate::lab::scenario::{Because, By, Expected};

/// `because` names a side that decided, and in `by` an object that did.
pub(super) fn check(expected: &Expected, seen: &Seen) -> Status {
    let as_expected = seen.got == Got::Expectable(expected.expect);
    let reason_fits = expected.because.as_ref().is_none_or(|because| reason_fits(because, &seen.sides));
    if as_expected && reason_fits {
        return Status::Passed;
    }
    let got = match &seen.got {
        Got::Expectable(expect) => expect.as_str().to_owned(),
        Got::NoAnswer(why) => format!("no answer: {why}"),
    };
    Status::Failed { expected: expected_text(expected), got, because: sides_text(&seen.sides) }
}

fn reason_fits(because: &Because, sides: &[SeenSide]) -> bool {
    sides.iter().filter(|side| because.direction.is_none_or(|direction| direction == side.direction)).any(
        |side| match (&because.by, &side.by) {
            (None, _) => true,
            (Some(By::DefaultDeny), SeenBy::DefaultDeny) => true,
            (Some(By::Object(name)), SeenBy::Objects(objects)) => objects.contains(name),
            (Some(By::DefaultDeny), SeenBy::Objects(_)) | (Some(By::Object(_)), SeenBy::DefaultDeny) => false,
        },
    )
}

fn expected_text(expected: &Expected) -> String {
    let mut text = expected.expect.as_str().to_owned();
    if let Some(because) = &expected.because {
        if let Some(direction) = because.direction {
            text += &format!(" at {direction}");
        }
        match &because.by {
            Some(By::DefaultDeny) => text += " by default-deny",
            Some(By::Object(name)) => text += &format!(" by {name}"),
            None => {}
        }
    }
    text
}

fn sides_text(sides: &[SeenSide]) -> String {
    if sides.is_empty() {
        return "no policy was asked".to_owned();
    }
    let sides: Vec<String> = sides.iter().map(|side| format!("{}: {}", side.direction, side.text)).collect();
    sides.join("; ")
}
