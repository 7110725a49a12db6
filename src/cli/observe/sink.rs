//! Where flows go: lines as they come, rows that are aligned together, a Parquet file, or counts.

use super::FlowOutput;
use super::columns::{Table, csv_header, csv_row};
use super::stats::Stats;
use super::text::{self, Shown, Style};
use crate::api::hubble::pb::flow as pb;

/// See the module.
pub(super) enum Sink {
    Text { output: FlowOutput, style: Style },
    Rows { style: Style, rows: Vec<Vec<String>> },
    Csv,
    Parquet(Table),
    Stats(Stats, FlowOutput),
}

/// Rows that `-o table` aligns together.
const TABLE_ROWS: usize = 100_000;

impl Sink {
    pub(super) fn new(output: FlowOutput, style: Style, stats: Shown) -> Sink {
        match (stats, output) {
            (Shown::Yes, output) => Sink::Stats(Stats::default(), output),
            (Shown::No, FlowOutput::Table) => Sink::Rows { style, rows: Vec::new() },
            (Shown::No, FlowOutput::Csv) => Sink::Csv,
            (Shown::No, FlowOutput::Parquet) => Sink::Parquet(Table::default()),
            (Shown::No, output) => Sink::Text { output, style },
        }
    }

    /// What is no text must not be searched for colours: the bytes that look like some would be taken out.
    pub(super) fn destination(&self) -> Box<dyn std::io::Write> {
        match self {
            Sink::Parquet(_) => Box::new(std::io::stdout()),
            _ => Box::new(anstream::stdout()),
        }
    }

    pub(super) fn begin(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        match self {
            Sink::Csv => writeln!(out, "{}", csv_header()),
            _ => Ok(()),
        }
    }

    pub(super) fn flow(&mut self, flow: &pb::Flow, out: &mut impl std::io::Write) -> std::io::Result<()> {
        match self {
            Sink::Text { output, style } => writeln!(out, "{}", text::format(flow, *output, *style)),
            Sink::Csv => writeln!(out, "{}", csv_row(flow)),
            Sink::Rows { style, rows } => {
                rows.push(text::Columns::new(flow, *style).row());
                if rows.len() == TABLE_ROWS { print_rows(rows, out) } else { Ok(()) }
            }
            Sink::Parquet(table) => table.push(flow).map_or(Ok(()), |bytes| out.write_all(&bytes)),
            Sink::Stats(stats, _) => {
                stats.add(flow);
                Ok(())
            }
        }
    }

    pub(super) fn finish(self, out: &mut impl std::io::Write) -> anyhow::Result<()> {
        match self {
            Sink::Rows { mut rows, .. } => print_rows(&mut rows, out)?,
            Sink::Parquet(table) => out.write_all(&table.finish())?,
            Sink::Stats(stats, FlowOutput::Json) => writeln!(out, "{}", stats.json())?,
            Sink::Stats(stats, _) => stats.print()?,
            Sink::Text { .. } | Sink::Csv => {}
        }
        Ok(())
    }
}

fn print_rows(rows: &mut Vec<Vec<String>>, out: &mut impl std::io::Write) -> std::io::Result<()> {
    let header = ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"].map(str::to_owned);
    rows.insert(0, header.to_vec());
    let mut widths = [0; 6];
    for row in rows.iter() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows.drain(..) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("   ").trim_end())?;
    }
    Ok(())
}
