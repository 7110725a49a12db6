//! Which flows of all: the newest, the oldest, those between two points in time, those to come.

use super::text::Shown;
use crate::api::hubble::convert::timestamp;
use crate::api::hubble::pb::observer::GetFlowsRequest;
use crate::cli::CliError;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Which")]
pub(super) struct Range {
    /// Keep printing flows as they come
    #[arg(short, long)]
    follow: bool,
    /// Only the newest N flows [20; with --follow, --since or --until all of them]
    #[arg(long, value_name = "N", conflicts_with_all = ["all", "first"])]
    last: Option<u64>,
    /// Only the oldest N flows
    #[arg(long, value_name = "N", conflicts_with_all = ["all", "follow"])]
    first: Option<u64>,
    /// All flows in memory
    #[arg(long)]
    all: bool,
    /// Flows after this: 10m, 2h, 3d, or a time such as 2026-01-02 or 2026-01-02T15:04:05Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Flows before this
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

impl Range {
    pub(super) fn request(&self, stats: Shown) -> Result<GetFlowsRequest, CliError> {
        let time = |text: &Option<String>| text.as_deref().map(|text| absolute_time(text, now())).transpose();
        let has_range = self.since.is_some() || self.until.is_some();
        let number = match (self.first.or(self.last), self.all) {
            (Some(number), _) => number,
            (None, true) => 0,
            (None, false) if self.follow || has_range || stats == Shown::Yes => 0,
            (None, false) => 20,
        };
        // `--last 0` shows nothing of the past, where the API's 0 is no limit.
        if self.last == Some(0) && !self.follow {
            return Err(CliError::Invalid("--last 0 without --follow shows nothing".into()));
        }
        // Everything in memory, and then on.
        let since = match (time(&self.since)?, self.all && self.follow) {
            (None, true) => Some(timestamp(0)),
            (since, _) => since,
        };
        Ok(GetFlowsRequest {
            number,
            first: self.first.is_some(),
            follow: self.follow,
            since,
            until: time(&self.until)?,
            ..GetFlowsRequest::default()
        })
    }
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// An age (`10m`, `2h30m`, `3d`) before `now`, a day, or a time in local or given time zone.
fn absolute_time(text: &str, now: jiff::Timestamp) -> Result<prost_types::Timestamp, CliError> {
    let age = || {
        let days = text.strip_suffix('d')?.parse::<i64>().ok()?.checked_mul(24)?;
        Some(jiff::SignedDuration::from_hours(days))
    };
    let before = |age: jiff::SignedDuration| now.checked_sub(age).ok();
    let local = || {
        let date = text.parse::<jiff::civil::DateTime>().ok()?;
        Some(date.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
    };
    let rfc1123 = || Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp());
    text.parse::<jiff::Timestamp>()
        .ok()
        .or_else(|| text.parse::<jiff::SignedDuration>().ok().or_else(age).and_then(before))
        .or_else(local)
        .or_else(rfc1123)
        .and_then(|time| u64::try_from(time.as_nanosecond()).ok())
        .map(timestamp)
        .ok_or_else(|| {
            CliError::Invalid(format!(
                "{text}: expected an age such as 10m, 2h or 3d, or a time such as 2026-01-02T15:04:05Z"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ages_days_or_points() {
        let now: jiff::Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        let seconds = |text: &str| absolute_time(text, now).unwrap().seconds - now.as_second();
        assert_eq!(seconds("10m"), -600);
        assert_eq!(seconds("2h30m"), -9000);
        assert_eq!(seconds("3d"), -3 * 86_400);
        assert_eq!(seconds("2026-01-10T11:59:00Z"), -60);
        assert_eq!(seconds("2026-01-10T13:59:00+02:00"), -60);
        assert!(absolute_time("2026-01-09", now).is_ok());
        assert!(absolute_time("soon", now).is_err());
    }

    #[test]
    fn the_past_is_twenty_flows_unless_something_else_is_asked_for() {
        let range = |follow, since: Option<&str>, all| Range {
            follow,
            all,
            since: since.map(str::to_owned),
            last: None,
            first: None,
            until: None,
        };
        assert_eq!(range(false, None, false).request(Shown::No).unwrap().number, 20);
        assert_eq!(range(true, None, false).request(Shown::No).unwrap().number, 0);
        assert_eq!(range(false, Some("1h"), false).request(Shown::No).unwrap().number, 0);
        assert!(range(true, None, true).request(Shown::No).unwrap().since.is_some());
    }
}
