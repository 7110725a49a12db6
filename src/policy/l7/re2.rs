//! Regular expressions of RE2, written anew for the regex crate.
//!
//! Contract (policy semantics, section 6): an expression means here what it means to RE2, and what RE2 refuses is refused.
//! The two dialects look alike and part in corners: brackets inside brackets, `&&`, `\<`, a `{` that begins no count,
//! `(?x)`, `a**`. An expression that is read in the wrong one admits more, or less, than its author wrote. So nothing of
//! the text is handed through: it is read as RE2 reads it, and each character, class and count is written in a form that
//! has one meaning.
//!
//! The result is for a matcher of bytes with ASCII classes, and says itself where a class needs Unicode. Names of groups
//! are checked and dropped: nobody asks for captures. Two expressions that RE2 takes are refused, because nobody means
//! them: a repetition that follows `(?i)` or `\Q\E` and would reach over it.
//!
//! - this file: groups, alternatives and repetitions;
//! - [`class`]: what stands in brackets, and classes with names;
//! - [`text`]: reading characters and escapes.

mod class;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeSet;

use self::class::Class;
use self::text::{Text, write_char};

/// RE2's limit for a count, and for counts within counts multiplied.
const MAX_REPEAT: u32 = 1000;
/// Flags of RE2: letter case, lines, newlines, greed.
const FLAGS: &str = "imsU";

/// The expression in the syntax of the regex crate (bytes, `unicode(false)`); an error says what RE2 does not take.
pub fn translate(expression: &str) -> Result<String, String> {
    let translator = Translator {
        text: Text(expression),
        out: String::with_capacity(expression.len()),
        groups: vec![Group::default()],
        names: BTreeSet::new(),
    };
    translator.run()
}

/// What stands before a repetition.
#[derive(Clone, Copy, Default, PartialEq)]
enum Before {
    /// The beginning of a group or an alternative, or flags.
    #[default]
    Nothing,
    /// With the largest product of counts inside it.
    Item(u32),
    /// An item that is repeated already.
    Repeated,
}

#[derive(Default)]
struct Group {
    before: Before,
    /// The largest product of counts so far.
    counts: u32,
}

struct Translator<'a> {
    text: Text<'a>,
    out: String,
    /// The open groups; the first one is the whole expression.
    groups: Vec<Group>,
    names: BTreeSet<&'a str>,
}

impl<'a> Translator<'a> {
    fn run(mut self) -> Result<String, String> {
        while let Some(next) = self.text.take() {
            match next {
                '(' => self.open()?,
                ')' => self.close()?,
                '|' => {
                    self.out.push('|');
                    self.set_before(Before::Nothing);
                }
                '*' | '+' | '?' => self.repeat(next.to_string(), 1)?,
                '{' => match count(&mut self.text)? {
                    Some((written, most)) => self.repeat(written, most)?,
                    None => self.character('{'),
                },
                '[' => {
                    let class = Class::read(&mut self.text)?;
                    self.item(&class.written());
                }
                '\\' => self.escape()?,
                '.' | '^' | '$' => self.item(next.encode_utf8(&mut [0; 4])),
                other => self.character(other),
            }
        }
        match self.groups.len() {
            1 => Ok(self.out),
            _ => Err("a ( is not closed".to_owned()),
        }
    }

    fn group(&mut self) -> Option<&mut Group> {
        self.groups.last_mut()
    }

    fn set_before(&mut self, before: Before) {
        if let Some(group) = self.group() {
            group.before = before;
            if let Before::Item(counts) = before {
                group.counts = group.counts.max(counts);
            }
        }
    }

    fn item(&mut self, written: &str) {
        self.out.push_str(written);
        self.set_before(Before::Item(1));
    }

    fn character(&mut self, character: char) {
        // A repetition takes the group around a character that needs Unicode.
        if character.is_ascii() {
            write_char(&mut self.out, character);
        } else {
            self.out.push_str("(?u:");
            write_char(&mut self.out, character);
            self.out.push(')');
        }
        self.set_before(Before::Item(1));
    }

    fn escape(&mut self) -> Result<(), String> {
        if self.text.skip("Q") {
            while !self.text.skip(r"\E") {
                match self.text.take() {
                    Some(quoted) => self.character(quoted),
                    None => break,
                }
            }
        } else if let Some(anchor) =
            ['A', 'z', 'b', 'B'].into_iter().find(|letter| self.text.skip_char(*letter))
        {
            self.item(&format!(r"\{anchor}"));
        } else if self.text.skip("C") {
            self.item("(?s:.)");
        } else if let Some(class) = Class::of_escape(&mut self.text)? {
            self.item(&class.written());
        } else {
            let escaped = self.text.escaped()?;
            self.character(escaped);
        }
        Ok(())
    }

    /// `count`: how often at most, or at least where there is no most.
    fn repeat(&mut self, written: String, count: u32) -> Result<(), String> {
        let lazy = if self.text.skip("?") { "?" } else { "" };
        let counts = match self.groups.last().map(|group| group.before) {
            Some(Before::Item(counts)) => counts.saturating_mul(count.max(1)),
            Some(Before::Repeated) => {
                return Err(format!("{written}{lazy} repeats a repetition: a group is needed around it"));
            }
            Some(Before::Nothing) | None => return Err(format!("{written}{lazy} has nothing to repeat")),
        };
        if count > MAX_REPEAT || counts > MAX_REPEAT {
            return Err(format!(
                "{written} repeats more than {MAX_REPEAT} times, counts within counts included"
            ));
        }
        self.out.push_str(&written);
        self.out.push_str(lazy);
        self.set_before(Before::Item(counts));
        self.set_before(Before::Repeated);
        Ok(())
    }

    fn open(&mut self) -> Result<(), String> {
        if !self.text.skip("?") {
            self.begin("(");
            return Ok(());
        }
        let look_around = ["=", "!", "<=", "<!"].into_iter().find(|sign| self.text.0.starts_with(sign));
        if let Some(sign) = look_around {
            return Err(format!("(?{sign} looks around, which RE2 does not"));
        }
        if self.text.skip("P<") || self.text.skip("<") {
            return self.name();
        }
        self.flags()
    }

    fn begin(&mut self, written: &str) {
        self.out.push_str(written);
        self.groups.push(Group::default());
    }

    fn name(&mut self) -> Result<(), String> {
        let (name, rest) = self.text.0.split_once('>').ok_or("the name of a group does not end")?;
        if name.is_empty() || !name.chars().all(|part| part.is_alphanumeric() || part == '_') {
            return Err(format!("{name:?} is no name of a group"));
        }
        if !self.names.insert(name) {
            return Err(format!("two groups are named {name}"));
        }
        self.text = Text(rest);
        self.begin("(");
        Ok(())
    }

    /// `(?i)`, for the rest of the group, or `(?i:`. The last word on a flag holds.
    fn flags(&mut self) -> Result<(), String> {
        let begin = self.text.0;
        let mut said: Vec<(char, bool)> = Vec::new();
        let mut minus = None;
        let closes = loop {
            let here = self.text.0.len();
            match self.text.take() {
                Some(flag) if FLAGS.contains(flag) => {
                    said.retain(|(other, _)| *other != flag);
                    said.push((flag, minus.is_none()));
                }
                Some('-') if minus.is_none() => minus = Some(here),
                // A minus with no flag behind it says nothing.
                Some(end @ (')' | ':')) if minus != Some(here + 1) => break end == ')',
                _ => {
                    let seen: String = begin.chars().take(3).collect();
                    return Err(format!("(?{seen} begins no group of RE2, whose flags are i, m, s and U"));
                }
            }
        };
        let of = |wanted: bool| -> String {
            said.iter().filter(|(_, on)| *on == wanted).map(|(flag, _)| *flag).collect()
        };
        let (on, off) = (of(true), of(false));
        let minus = if off.is_empty() { "" } else { "-" };
        if !closes {
            self.begin(&format!("(?{on}{minus}{off}:"));
            return Ok(());
        }
        if !said.is_empty() {
            self.out.push_str(&format!("(?{on}{minus}{off})"));
        }
        self.set_before(Before::Nothing);
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        if self.groups.len() == 1 {
            return Err("a ) closes nothing".to_owned());
        }
        let counts = self.groups.pop().map_or(1, |group| group.counts.max(1));
        self.out.push(')');
        self.set_before(Before::Item(counts));
        Ok(())
    }
}

/// The rest of `{n}`, `{n,}` or `{n,m}`: as written, and how often at most (at least, where there is no most). `None` where the
/// brace is a character like others.
fn count(text: &mut Text<'_>) -> Result<Option<(String, u32)>, String> {
    let mut ahead = *text;
    let Some(least) = ahead.number() else { return Ok(None) };
    let several = ahead.skip(",");
    let most = if several { ahead.number() } else { Some(least) };
    if !ahead.skip("}") {
        return Ok(None);
    }
    *text = ahead;
    match most {
        Some(most) if most < least => Err(format!("{{{least},{most}}} has its numbers in the wrong order")),
        Some(most) if several => Ok(Some((format!("{{{least},{most}}}"), most))),
        Some(_) => Ok(Some((format!("{{{least}}}"), least))),
        None => Ok(Some((format!("{{{least},}}"), least))),
    }
}
