//! Tables for people, JSON for programs, and text that cannot take over a terminal.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}

/// Prints rows under headings, or `value` as JSON.
pub fn rows<T: Serialize>(
    output: Output,
    value: &T,
    headings: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> anyhow::Result<()> {
    match output {
        Output::Json => anstream::println!("{}", serde_json::to_string_pretty(value)?),
        Output::Table => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
            let mut count = 0;
            for row in rows {
                table.add_row(row.iter().map(|cell| plain(cell)));
                count += 1;
            }
            if count == 0 {
                anstream::println!("none");
                return Ok(());
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            anstream::println!("{}", table.trim_fmt());
        }
    }
    Ok(())
}

/// Text from outside (names, paths, labels) with every control character made visible: data must
/// not be able to move the cursor or colour the terminal (CVE-2025-48056 in a peer).
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| -> Box<dyn Iterator<Item = char>> {
            let bidi =
                matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
            if c.is_control() || bidi { Box::new(c.escape_unicode()) } else { Box::new(std::iter::once(c)) }
        })
        .collect()
}

/// `12 s`, `3 min`, `5 h`, `8 d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2025_48056_control_characters_are_shown_not_sent() {
        assert_eq!(plain("a\x1b[31mb\r\n\u{202e}c"), "a\\u{1b}[31mb\\u{d}\\u{a}\\u{202e}c");
        assert_eq!(plain("shop/été"), "shop/été");
    }

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!((bytes(1536).as_str(), bytes(12).as_str()), ("1.5 KiB", "12 B"));
        assert_eq!((age(90).as_str(), age(600).as_str(), age(90_000).as_str()), ("90 s", "10 min", "25 h"));
    }
}
