//! Classes: brackets, `\d` and its like, properties of Unicode.
//!
//! A class is written with all members spelt out: the regex crate knows brackets inside brackets and set operators (`&&`,
//! `--`, `~~`), where RE2 knows characters.

use super::text::{Text, write_char};

/// Classes with a letter. In RE2 a vertical tab is no `\s`.
const LETTERS: &[(char, &str)] = &[('d', "0-9"), ('s', r"\t\n\x0c\r\x20"), ('w', "0-9A-Za-z_")];
/// Classes with a name, as `[:alpha:]`. Both dialects mean the same.
const NAMES: &[&str] = &[
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];
/// What RE2 knows by one or two letters: general categories.
const CATEGORIES: &[&str] = &[
    "C", "Cc", "Cf", "Co", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl", "No",
    "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs",
];

#[derive(Default)]
pub(super) struct Class {
    negated: bool,
    /// As they stand between the brackets.
    members: String,
    unicode: bool,
}

impl Class {
    /// What stands in brackets; the first one is read.
    pub(super) fn read(text: &mut Text<'_>) -> Result<Class, String> {
        let mut class = Class { negated: text.skip("^"), ..Class::default() };
        let mut first = true;
        // Only behind the beginning does a closing bracket close.
        while first || !text.skip("]") {
            first = false;
            if !class.name(text)? && !class.escape(text)? {
                class.range(text)?;
            }
        }
        Ok(class)
    }

    /// The class that an escape stands for; the backslash is read. `None`: it stands for something else, and nothing was read.
    pub(super) fn of_escape(text: &mut Text<'_>) -> Result<Option<Class>, String> {
        let mut class = Class::default();
        Ok(class.letter(text)?.then_some(class))
    }

    pub(super) fn written(&self) -> String {
        let caret = if self.negated { "^" } else { "" };
        let class = format!("[{caret}{}]", self.members);
        if self.unicode { format!("(?u:{class})") } else { class }
    }

    /// `[:alpha:]`, `[:^alpha:]`. Without its end the bracket is a character.
    fn name(&mut self, text: &mut Text<'_>) -> Result<bool, String> {
        let Some((name, rest)) = text.0.strip_prefix("[:").and_then(|rest| rest.split_once(":]")) else {
            return Ok(false);
        };
        if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err(format!("[:{name}:] is no class of RE2"));
        }
        self.members.push_str(&format!("[:{name}:]"));
        *text = Text(rest);
        Ok(true)
    }

    fn escape(&mut self, text: &mut Text<'_>) -> Result<bool, String> {
        let mut ahead = *text;
        let found = ahead.skip("\\") && self.letter(&mut ahead)?;
        if found {
            *text = ahead;
        }
        Ok(found)
    }

    /// `d`, `D`, `pL`, `P{Greek}` and so on, behind a backslash.
    fn letter(&mut self, text: &mut Text<'_>) -> Result<bool, String> {
        for (letter, members) in LETTERS {
            if text.skip_char(*letter) {
                self.members.push_str(members);
                return Ok(true);
            }
            if text.skip_char(letter.to_ascii_uppercase()) {
                self.members.push_str(&format!("[^{members}]"));
                return Ok(true);
            }
        }
        let mut negated = text.0.starts_with('P');
        if !text.skip("p") && !text.skip("P") {
            return Ok(false);
        }
        let name = if text.skip("{") {
            let (name, rest) = text.0.split_once('}').ok_or(r"\p{ does not end")?;
            *text = Text(rest);
            negated ^= name.starts_with('^');
            name.strip_prefix('^').unwrap_or(name).to_owned()
        } else {
            text.take().ok_or(r"\p has no name")?.to_string()
        };
        let sign = if negated { 'P' } else { 'p' };
        let property = match &*name {
            "Any" => "Any".to_owned(),
            category if CATEGORIES.contains(&category) => category.to_owned(),
            // Only a script: the regex crate knows many more properties.
            script if script.len() > 2 && is_script(script) => format!("sc={script}"),
            _ => return Err(format!("{name:?} is no category and no script of Unicode")),
        };
        self.members.push_str(&format!(r"\{sign}{{{property}}}"));
        self.unicode = true;
        Ok(true)
    }

    /// One character, or two with a dash between them. A dash before the end is itself.
    fn range(&mut self, text: &mut Text<'_>) -> Result<(), String> {
        let first = self.character(text)?;
        write_char(&mut self.members, first);
        if text.0.starts_with('-') && !text.0.starts_with("-]") {
            text.skip("-");
            let last = self.character(text)?;
            if last < first {
                return Err(format!("the range {first:?} to {last:?} is in the wrong order"));
            }
            self.members.push('-');
            write_char(&mut self.members, last);
        }
        Ok(())
    }

    fn character(&mut self, text: &mut Text<'_>) -> Result<char, String> {
        let character = match text.take().ok_or("a [ is not closed")? {
            '\\' => text.escaped()?,
            other => other,
        };
        self.unicode |= !character.is_ascii();
        Ok(character)
    }
}

/// Names of scripts are words that begin with a capital letter.
fn is_script(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.chars().all(|part| part.is_ascii_alphabetic() || part == '_')
}
