//! Characters as RE2 reads and the regex crate writes them.

/// What is left to read.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl<'a> Text<'a> {
    pub(super) fn take(&mut self) -> Option<char> {
        let mut rest = self.0.chars();
        let next = rest.next();
        self.0 = rest.as_str();
        next
    }

    /// Whether this stands here; then it is read.
    pub(super) fn skip(&mut self, wanted: &str) -> bool {
        let rest = self.0.strip_prefix(wanted);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    pub(super) fn skip_char(&mut self, wanted: char) -> bool {
        let rest = self.0.strip_prefix(wanted);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// A decimal number, without zeros before it.
    pub(super) fn number(&mut self) -> Option<u32> {
        let end = self.0.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at(end);
        if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
            return None;
        }
        self.0 = rest;
        Some(digits.parse().unwrap_or(u32::MAX))
    }

    /// The character that an escape stands for; the backslash is read.
    pub(super) fn escaped(&mut self) -> Result<char, String> {
        let begin = self.0;
        let next = self.take().ok_or("a backslash ends the expression")?;
        let character = match next {
            'a' => Some('\x07'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            'x' => self.hexadecimal(),
            // A digit by itself would be a back-reference.
            '1'..='7' if !self.0.starts_with(|digit| ('0'..='7').contains(&digit)) => None,
            '0'..='7' => self.octal(next),
            other if other == '_' || (other.is_ascii() && !other.is_ascii_alphanumeric()) => Some(other),
            _ => None,
        };
        character.ok_or_else(|| match next {
            '1'..='9' => format!(r"\{next} refers back to a group, which RE2 does not"),
            _ => {
                let read = begin.len() - self.0.len();
                format!(r"\{} is no escape of RE2", &begin[..read])
            }
        })
    }

    /// Up to three digits, of which `first` is read.
    fn octal(&mut self, first: char) -> Option<char> {
        let mut code = first.to_digit(8)?;
        for _ in 0..2 {
            let Some(digit) = self.0.chars().next().and_then(|next| next.to_digit(8)) else { break };
            self.take();
            code = code * 8 + digit;
        }
        char::from_u32(code)
    }

    /// Two digits, or any number of them in braces.
    fn hexadecimal(&mut self) -> Option<char> {
        if !self.skip("{") {
            let high = self.take()?.to_digit(16)?;
            return char::from_u32(high * 16 + self.take()?.to_digit(16)?);
        }
        let mut code = self.take()?.to_digit(16)?;
        while !self.skip("}") {
            code = code.checked_mul(16)?.checked_add(self.take()?.to_digit(16)?)?;
        }
        char::from_u32(code)
    }
}

/// Writes a character so that it is one in every place. Those that mean nothing anywhere stay as they are: messages that
/// show the expression can be read.
pub(super) fn write_char(out: &mut String, character: char) {
    if character.is_ascii_alphanumeric() || "/_%=:;,@!'\"<>".contains(character) {
        out.push(character);
    } else {
        out.push_str(&format!(r"\x{{{:x}}}", u32::from(character)));
    }
}
