//! Counters by label values, bounded: what is one too many is counted under `overflow`.

use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{Family, Histogram, Kind, Page};

/// The value of a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    Static(&'static str),
    Shared(Arc<str>),
    Number(u32),
}

impl Text {
    fn as_str<'a>(&'a self, buffer: &'a mut String) -> &'a str {
        match self {
            Text::Static(text) => text,
            Text::Shared(text) => text,
            Text::Number(number) => {
                *buffer = number.to_string();
                buffer
            }
        }
    }
}

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Text {
        Text::Static(text)
    }
}

impl From<&Option<Arc<str>>> for Text {
    fn from(text: &Option<Arc<str>>) -> Text {
        text.as_ref().map_or(Text::Static(""), |text| Text::Shared(Arc::clone(text)))
    }
}

/// Values of all labels of one series.
pub type Values = SmallVec<[Text; 8]>;

const OVERFLOW: Text = Text::Static("overflow");

/// One family's series.
#[derive(Debug)]
pub struct Table<V> {
    family: Family,
    labels: Vec<&'static str>,
    rows: HashMap<Values, V>,
    most: usize,
    overflowed: u64,
}

/// What a table can hold.
pub trait Cell: Sized {
    fn write(&self, page: &mut Page, family: &Family, labels: &[(&str, &str)]);
}

impl Cell for u64 {
    fn write(&self, page: &mut Page, family: &Family, labels: &[(&str, &str)]) {
        page.sample(family, "", labels, *self as f64);
    }
}

impl Cell for Histogram {
    fn write(&self, page: &mut Page, family: &Family, labels: &[(&str, &str)]) {
        page.histogram(family, labels, self);
    }
}

impl<V: Cell> Table<V> {
    /// At most `most` series.
    pub fn new(family: Family, labels: Vec<&'static str>, most: usize) -> Table<V> {
        Table { family, labels, rows: HashMap::new(), most, overflowed: 0 }
    }

    pub fn family(&self) -> &Family {
        &self.family
    }

    /// The cell of these values.
    pub fn at(&mut self, values: Values, new: impl FnOnce() -> V) -> &mut V {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.family.name);
        let is_new = self.rows.len() >= self.most && !self.rows.contains_key(&values);
        let key = if is_new {
            self.overflowed += 1;
            values.iter().map(|_| OVERFLOW).collect()
        } else {
            values
        };
        self.rows.entry(key).or_insert_with(new)
    }

    /// Events that were counted under `overflow`.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// The whole family.
    pub fn write(&self, page: &mut Page) {
        page.family(&self.family);
        let mut lines: Vec<(Vec<String>, &V)> = (self.rows.iter())
            .map(|(values, cell)| {
                let mut buffer = String::new();
                (values.iter().map(|value| value.as_str(&mut buffer).to_owned()).collect(), cell)
            })
            .collect();
        lines.sort_by(|one, other| one.0.cmp(&other.0));
        for (values, cell) in lines {
            let labels: Vec<_> = self.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            cell.write(page, &self.family, &labels);
        }
    }
}

impl Table<u64> {
    pub fn add(&mut self, values: Values, count: u64) {
        *self.at(values, || 0) += count;
    }

    /// A table of a counter.
    pub fn counter(
        name: &'static str,
        help: &'static str,
        labels: Vec<&'static str>,
        most: usize,
    ) -> Table<u64> {
        Table::new(Family { name, kind: Kind::Counter, help }, labels, most)
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::super::Format;
    use super::*;

    #[test]
    fn too_many_series_are_counted_together() {
        let mut table = Table::counter("x_total", "X.", vec!["pod"], 2);
        for number in 0..10_u32 {
            table.add(smallvec![Text::Number(number)], 1);
        }
        table.add(smallvec![Text::Number(0)], 5);
        assert_eq!(table.overflowed(), 8);
        let mut page = Page::new(Format::Prometheus);
        table.write(&mut page);
        let text = page.finish();
        assert!(
            text.ends_with("x_total{pod=\"0\"} 6\nx_total{pod=\"1\"} 1\nx_total{pod=\"overflow\"} 8\n"),
            "{text}"
        );
    }
}
