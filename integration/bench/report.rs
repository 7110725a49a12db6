//! The table of results, for people and as JSON.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// For comparison.
    Shown,
}

impl Bar {
    fn met(self, figure: f64) -> Option<bool> {
        match self {
            Bar::AtMost(limit) => Some(figure <= limit),
            Bar::AtLeast(limit) => Some(figure >= limit),
            Bar::Shown => None,
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bar::AtMost(limit) => write!(f, "<= {limit}"),
            Bar::AtLeast(limit) => write!(f, ">= {limit}"),
            Bar::Shown => Ok(()),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// What it is compared with: name and value in the same unit.
    pub against: Option<(String, f64)>,
    /// `value` against the other, by the medians of paired rounds.
    pub ratio: Option<f64>,
    pub bar: Bar,
    pub runs: usize,
}

impl Row {
    /// A figure that stands for itself: the bar is about it.
    pub fn absolute(what: impl Into<String>, value: f64, unit: &'static str, bar: Bar, runs: usize) -> Row {
        Row { what: what.into(), value, unit, against: None, ratio: None, bar, runs }
    }

    /// The bar is about the ratio.
    pub fn compared(what: &str, of: &[f64], against: (&str, &[f64]), unit: &'static str, bar: Bar) -> Row {
        let (name, to) = against;
        Row {
            what: what.to_owned(),
            value: super::stats::median(of),
            unit,
            against: Some((name.to_owned(), super::stats::median(to))),
            ratio: Some(super::stats::paired_ratio(of, to)),
            bar,
            runs: of.len(),
        }
    }

    fn met(&self) -> Option<bool> {
        self.bar.met(self.ratio.unwrap_or(self.value))
    }

    fn verdict(&self) -> &'static str {
        match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "against": self.against.as_ref().map(|(name, value)| json!({"what": name, "value": value})),
            "ratio": self.ratio,
            "bar": match self.bar {
                Bar::AtMost(limit) => json!({"atMost": limit}),
                Bar::AtLeast(limit) => json!({"atLeast": limit}),
                Bar::Shown => Value::Null,
            },
            "met": self.met(),
            "runs": self.runs,
        })
    }
}

fn number(value: f64) -> String {
    let digits = match value.abs() {
        1000.0.. => 0,
        100.0.. => 1,
        1.0.. => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

/// All lines, and where they were measured.
#[derive(Debug, Default)]
pub struct Report {
    pub rows: Vec<Row>,
}

impl Report {
    pub fn add(&mut self, row: Row) {
        eprintln!("  {}: {} {} {}", row.what, number(row.value), row.unit, row.verdict());
        self.rows.push(row);
    }

    /// The table as Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| what | measured | against | ratio | bar | |\n| --- | ---: | --- | ---: | --- | --- |\n",
        );
        for row in &self.rows {
            let against = row
                .against
                .as_ref()
                .map_or(String::new(), |(name, value)| format!("{name}: {} {}", number(*value), row.unit));
            let ratio = row.ratio.map_or(String::new(), number);
            let (what, value, unit) = (&row.what, number(row.value), row.unit);
            text += &format!(
                "| {what} | {value} {unit} | {against} | {ratio} | {} | {} |\n",
                row.bar,
                row.verdict()
            );
        }
        text
    }

    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.met() == Some(false)).count()
    }

    /// Writes everything as JSON.
    pub fn write(&self, path: &Path, command: &str) -> anyhow::Result<()> {
        let report = json!({
            "command": command,
            "date": jiff::Timestamp::now().to_string(),
            "machine": machine(),
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        });
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        }
        std::fs::write(path, format!("{report:#}\n")).with_context(|| format!("write {}", path.display()))
    }
}

/// Problems of a transaction as one error.
pub fn refused<E: std::fmt::Display>(errors: Vec<E>) -> anyhow::Error {
    anyhow::anyhow!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// What figures depend on.
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu": model,
        "load": read("/proc/loadavg").split(' ').next(),
    })
}
