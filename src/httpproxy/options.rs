//! How the process runs, as `NAME=VALUE` settings: the agent's configuration has them, validated as a whole,
//! and hands them to the process as they are.

use std::time::Duration;

use super::{Limits, RecordedPath};

/// See the module.
#[derive(Clone, Debug)]
pub struct Options {
    pub limits: Limits,
    pub recorded_path: RecordedPath,
    /// Flow records a second; more are counted and dropped.
    pub records_per_second: u32,
    /// 0: one for each CPU.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            limits: Limits::default(),
            recorded_path: RecordedPath::WithoutQuery,
            records_per_second: 10_000,
            threads: 0,
        }
    }
}

/// Names, with what they mean.
pub const SETTINGS: &[(&str, &str)] = &[
    ("header-bytes", "most bytes of one message head (65536)"),
    ("header-count", "most header fields of one message (128)"),
    ("header-timeout", "seconds from the first byte of a head or HTTP/2 frame to its last (10)"),
    ("idle-timeout", "seconds between two requests of a connection (3600)"),
    ("body-timeout", "seconds in which nothing of a request and its answer moves (300)"),
    ("response-timeout", "seconds until a server that has a request begins to answer (300)"),
    ("connect-timeout", "seconds for a connection to a server (5)"),
    ("drain-timeout", "seconds for what runs when the process is to end (300)"),
    ("refused-body-bytes", "body of a refused request that is read to keep its connection (1048576)"),
    ("streams", "HTTP/2 streams of one connection at a time (256)"),
    ("connections", "connections at a time, for each protocol and address family (65536)"),
    ("connections-per-client", "of them, those of one client (a quarter)"),
    ("records-per-second", "flow records a second; more are counted and dropped (10000)"),
    ("record-queries", "on: flow records have the query strings of paths too (off)"),
    ("threads", "threads; 0 is one for each CPU (0)"),
];

impl Options {
    /// # Errors
    /// Every setting that is wrong.
    pub fn parse<S: AsRef<str>>(settings: impl IntoIterator<Item = S>) -> Result<Options, Vec<String>> {
        let mut options = Options::default();
        let wrong: Vec<String> =
            settings.into_iter().filter_map(|setting| options.set(setting.as_ref()).err()).collect();
        if wrong.is_empty() { Ok(options) } else { Err(wrong) }
    }

    fn set(&mut self, setting: &str) -> Result<(), String> {
        let (name, value) =
            setting.split_once('=').ok_or_else(|| format!("{setting:?}: expected NAME=VALUE"))?;
        let number = |range: std::ops::RangeInclusive<u64>| match value.parse::<u64>() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!("{name}: {value:?}: expected {} to {}", range.start(), range.end())),
        };
        let size = |range| number(range).map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        let seconds = || number(1..=86_400).map(Duration::from_secs);
        let limits = &mut self.limits;
        match name {
            "header-bytes" => limits.header_bytes = size(1024..=1 << 20)?,
            "header-count" => limits.header_count = size(8..=1024)?,
            "header-timeout" => limits.header_timeout = seconds()?,
            "idle-timeout" => limits.idle_timeout = seconds()?,
            "body-timeout" => limits.body_timeout = seconds()?,
            "response-timeout" => limits.response_timeout = seconds()?,
            "connect-timeout" => limits.connect_timeout = seconds()?,
            "drain-timeout" => limits.drain_timeout = seconds()?,
            "refused-body-bytes" => limits.refused_body_bytes = number(0..=1 << 32)?,
            "streams" => limits.streams = u32::try_from(number(1..=65_536)?).unwrap_or(u32::MAX),
            "connections" => limits.connections = size(1..=1 << 20)?,
            "connections-per-client" => limits.connections_per_client = Some(size(1..=1 << 20)?),
            "records-per-second" => {
                self.records_per_second = u32::try_from(number(0..=10_000_000)?).unwrap_or(u32::MAX);
            }
            "record-queries" => {
                self.recorded_path = match value {
                    "on" => RecordedPath::WithQuery,
                    "off" => RecordedPath::WithoutQuery,
                    _ => return Err(format!("{name}: {value:?}: expected on or off")),
                }
            }
            "threads" => self.threads = size(0..=1024)?,
            _ => return Err(format!("{name:?}: no such setting")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_known_and_wrong_ones_are_all_named() {
        for (name, _) in SETTINGS {
            let value = if *name == "record-queries" { "on" } else { "1024" };
            assert!(Options::parse([format!("{name}={value}")]).is_ok(), "{name}");
        }
        let wrong = Options::parse(["streams=0", "threads", "colour=blue", "header-timeout=-1", "streams=7"]);
        assert_eq!(wrong.unwrap_err().len(), 4);
        let options = Options::parse(["streams=7", "record-queries=on", "drain-timeout=9"]).unwrap();
        assert_eq!((options.limits.streams, options.recorded_path), (7, RecordedPath::WithQuery));
        assert_eq!(options.limits.drain_timeout, Duration::from_secs(9));
    }
}
