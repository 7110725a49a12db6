//! Conversations with their rates; bounded, the one that has been silent longest goes first.

use std::collections::HashMap;
use std::time::Duration;

use crate::api::hubble::pb::flow as pb;
use crate::cli::observe::stats::{Drop, Edge, count};
use crate::cli::observe::text::{Addresses, Columns, Shown, Style, TimeFormat};

const KEPT: usize = 5_000;
/// How fast a rate follows: the weight of the newest interval.
const WEIGHT: f64 = 0.3;

/// By what lines are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Rate,
    Flows,
    Drops,
}

impl Order {
    pub fn next(self) -> Order {
        match self {
            Order::Rate => Order::Flows,
            Order::Flows => Order::Drops,
            Order::Drops => Order::Rate,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Order::Rate => "by rate",
            Order::Flows => "by flows",
            Order::Drops => "by drops",
        }
    }
}

/// Which conversations are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    All,
    WithDrops,
}

/// One conversation.
#[derive(Debug)]
pub struct Talk {
    pub edge: Edge,
    pub flows: u64,
    pub drops: u64,
    /// Flows a second.
    pub rate: f64,
    /// The latest flow as a line.
    pub last: String,
    pub drop: Option<Drop>,
    fresh: u64,
    /// The interval in which it was heard last.
    heard: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Talks {
    talks: HashMap<Edge, Talk>,
    interval: u64,
    fresh: (u64, u64),
    rates: (f64, f64),
}

impl Talks {
    pub fn add(&mut self, flow: &pb::Flow) {
        let edge = Edge::of(flow);
        let count = count(flow);
        let is_drop = flow.verdict() == pb::Verdict::Dropped;
        if self.talks.len() >= KEPT && !self.talks.contains_key(&edge) {
            self.forget();
        }
        let interval = self.interval;
        let talk = self.talks.entry(edge.clone()).or_insert_with(|| Talk {
            edge,
            flows: 0,
            drops: 0,
            rate: 0.0,
            last: String::new(),
            drop: None,
            fresh: 0,
            heard: interval,
        });
        talk.flows += count;
        talk.fresh += count;
        talk.heard = interval;
        self.fresh.0 += count;
        if is_drop {
            talk.drops += count;
            self.fresh.1 += count;
            talk.drop = Drop::of(flow);
        }
        let style = Style { node: Shown::No, addresses: Addresses::Names, time: TimeFormat::StampMilli };
        let columns = Columns::new(flow, style);
        talk.last = format!(
            "{} {} {}{} ({})",
            columns.time, columns.kind, columns.verdict, columns.reason, columns.summary
        );
    }

    /// Half of them at once, so that a flood of new pairs does not sort for each.
    fn forget(&mut self) {
        let mut heard: Vec<u64> = self.talks.values().map(|talk| talk.heard).collect();
        heard.sort_unstable();
        let middle = heard[heard.len() / 2];
        self.talks.retain(|_, talk| talk.heard > middle);
    }

    /// An interval is over.
    pub fn tick(&mut self, interval: Duration) {
        let seconds = interval.as_secs_f64();
        let follow = |rate: f64, fresh: u64| rate + WEIGHT * (fresh as f64 / seconds - rate);
        for talk in self.talks.values_mut() {
            talk.rate = follow(talk.rate, talk.fresh);
            talk.fresh = 0;
        }
        self.rates = (follow(self.rates.0, self.fresh.0), follow(self.rates.1, self.fresh.1));
        self.fresh = (0, 0);
        self.interval += 1;
    }

    pub fn rate(&self) -> f64 {
        self.rates.0
    }

    pub fn drop_rate(&self) -> f64 {
        self.rates.1
    }

    /// The most first.
    pub fn sorted(&self, order: Order, lines: Lines) -> Vec<&Talk> {
        let mut talks: Vec<_> =
            self.talks.values().filter(|talk| lines == Lines::All || talk.drops > 0).collect();
        talks.sort_by(|a, b| {
            let by = match order {
                Order::Rate => b.rate.total_cmp(&a.rate),
                Order::Flows => b.flows.cmp(&a.flows),
                Order::Drops => b.drops.cmp(&a.drops),
            };
            by.then_with(|| a.edge.cmp(&b.edge))
        });
        talks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hubble::convert::{self, Naming};
    use crate::flow::tests::flow as example;

    #[test]
    fn rates_rise_and_fall() {
        let mut talks = Talks::default();
        let flow = convert::flow(&example(80), &Naming { cluster: "default".into() });
        for _ in 0..40 {
            (0..50).for_each(|_| talks.add(&flow));
            talks.tick(Duration::from_millis(500));
        }
        assert!((talks.rate() - 100.0).abs() < 1.0, "{}", talks.rate());
        (0..40).for_each(|_| talks.tick(Duration::from_millis(500)));
        assert!(talks.sorted(Order::Rate, Lines::All)[0].rate < 1.0);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut talks = Talks::default();
        for port in 1..=20_000 {
            talks.add(&convert::flow(&example(port), &Naming { cluster: "default".into() }));
            if port % 1000 == 0 {
                talks.tick(Duration::from_millis(500));
            }
        }
        assert!(talks.talks.len() <= KEPT);
    }
}
