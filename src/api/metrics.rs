//! Metrics as text: the Prometheus text format 0.0.4, and OpenMetrics 1.0 for who asks for it.
//!
//! [`Page`] writes families and samples; [`flows`] counts flows under the names that Hubble's dashboards know.
//! Names, labels and meanings follow Cilium's and Hubble's documentation of their metrics.

use std::fmt::Write as _;

pub mod context;
pub mod flows;
pub mod table;

/// What a family is, as both formats say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What a scraper accepts (its `Accept` header).
    pub fn accepted(accept: &str) -> Format {
        if accept.contains("application/openmetrics-text") { Format::OpenMetrics } else { Format::Prometheus }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Name, kind and meaning of a family. The name of a counter ends in `_total` (Cilium's older names of bytes and
/// packets do too).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

/// A page of metrics that is being written.
#[derive(Debug)]
pub struct Page {
    text: String,
    format: Format,
}

impl Page {
    pub fn new(format: Format) -> Page {
        Page { text: String::new(), format }
    }

    /// Begins a family: its samples follow.
    pub fn family(&mut self, family: &Family) {
        let name = match self.format {
            Format::OpenMetrics => family.name.strip_suffix("_total").unwrap_or(family.name),
            Format::Prometheus => family.name,
        };
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        writeln!(self.text, "# HELP {name} {}\n# TYPE {name} {kind}", family.help).ok();
    }

    /// One sample of the family that was begun last; `suffix` is `_bucket` and the like.
    pub fn sample(&mut self, family: &Family, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(family.name);
        self.text.push_str(suffix);
        for (index, (name, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(value, &mut self.text);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        writeln!(self.text, " {value}").ok();
    }

    /// A family of one sample.
    pub fn single(&mut self, family: &Family, value: f64) {
        self.family(family);
        self.sample(family, "", &[], value);
    }

    /// A family whose samples differ in their labels.
    pub fn all<'a>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (Vec<(&'a str, String)>, f64)>,
    ) {
        self.family(family);
        for (labels, value) in samples {
            let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
            self.sample(family, "", &labels, value);
        }
    }

    /// Samples of a histogram with these labels.
    pub fn histogram(&mut self, family: &Family, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut sum = 0;
        let bounds = histogram.bounds.iter().zip(&histogram.counts).map(|(bound, count)| {
            sum += count;
            (bound.to_string(), sum)
        });
        let bounds: Vec<_> = bounds.chain([("+Inf".to_owned(), histogram.count)]).collect();
        for (bound, count) in &bounds {
            let labelled: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(family, "_bucket", &labelled, *count as f64);
        }
        self.sample(family, "_sum", labels, histogram.sum);
        self.sample(family, "_count", labels, histogram.count as f64);
    }

    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

fn escape(value: &str, text: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

/// Seconds, in buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// Of each bucket alone.
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

/// Prometheus' own default buckets, in seconds.
pub const DEFAULT_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// For what is expected to take micro- to milliseconds.
pub const FAST_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len()], count: 0, sum: 0.0 }
    }

    pub fn observe(&mut self, seconds: f64) {
        if let Some(bucket) = self.bounds.iter().position(|bound| seconds <= *bound) {
            self.counts[bucket] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    pub fn count(&self) -> u64 {
        self.count
    }
}

/// What is wrong with a page, by the rules of the text format that `promtool check metrics` knows: for tests
/// of whoever writes one.
pub fn problems(page: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut types: std::collections::BTreeMap<&str, &str> = Default::default();
    let mut seen: std::collections::BTreeSet<&str> = Default::default();
    let mut current = "";
    for line in page.lines().filter(|line| !line.is_empty() && *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            if types.insert(name, kind).is_some() {
                problems.push(format!("{name} is there twice"));
            }
            current = name;
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let end = line.find(['{', ' ']).unwrap_or(line.len());
        let name = &line[..end];
        let is_name = |text: &str| {
            !text.is_empty()
                && !text.starts_with(|c: char| c.is_ascii_digit())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
        };
        if !is_name(name) || !name.starts_with(current) {
            problems.push(format!("{line}: not a sample of {current}"));
        }
        let kind = types.get(current).copied().unwrap_or_default();
        if kind.is_empty() {
            problems.push(format!("{line}: no type"));
        }
        if kind == "counter" && !name.ends_with("_total") && !name.contains("_total") {
            problems.push(format!("{name}: a counter's name ends in _total"));
        }
        let Some((series, value)) = line.rsplit_once(' ') else {
            problems.push(format!("{line}: no value"));
            continue;
        };
        if value.parse::<f64>().is_err() {
            problems.push(format!("{line}: {value} is no number"));
        }
        if !seen.insert(series) {
            problems.push(format!("{series} is there twice"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: Family = Family { name: "a_total", kind: Kind::Counter, help: "A." };
    const TIMES: Family = Family { name: "t_seconds", kind: Kind::Histogram, help: "T." };

    fn page(format: Format) -> String {
        let mut page = Page::new(format);
        page.all(&COUNTER, [(vec![("pod", "a\"b\\c\n".to_owned())], 3.0)]);
        let mut histogram = Histogram::new(&[0.1, 1.0]);
        [0.05, 0.5, 7.0].into_iter().for_each(|seconds| histogram.observe(seconds));
        page.family(&TIMES);
        page.histogram(&TIMES, &[("x", "y")], &histogram);
        page.finish()
    }

    #[test]
    fn both_formats_are_well_formed() {
        let prometheus = page(Format::Prometheus);
        assert_eq!(
            prometheus,
            "# HELP a_total A.\n# TYPE a_total counter\na_total{pod=\"a\\\"b\\\\c\\n\"} 3\n\
             # HELP t_seconds T.\n# TYPE t_seconds histogram\nt_seconds_bucket{x=\"y\",le=\"0.1\"} 1\n\
             t_seconds_bucket{x=\"y\",le=\"1\"} 2\nt_seconds_bucket{x=\"y\",le=\"+Inf\"} 3\n\
             t_seconds_sum{x=\"y\"} 7.55\nt_seconds_count{x=\"y\"} 3\n"
        );
        let open = page(Format::OpenMetrics);
        assert!(open.contains("# TYPE a counter\na_total{") && open.ends_with("# EOF\n"), "{open}");
        assert_eq!(problems(&prometheus), Vec::<String>::new());
        assert_eq!(problems(&open), Vec::<String>::new());
    }

    #[test]
    fn the_check_finds_what_is_wrong() {
        for bad in [
            "a_total 1\n",
            "# TYPE a counter\na 1\n",
            "# TYPE a gauge\nb 1\n",
            "# TYPE a gauge\na x\n",
            "# TYPE a gauge\na 1\na 1\n",
        ] {
            assert!(!problems(bad).is_empty(), "{bad}");
        }
    }
}
