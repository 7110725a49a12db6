//! `sluice top`: who talks to whom, live and full screen; nothing but a terminal is needed (ssh is one).
//!
//! The terminal is put back whatever ends it: a key, the server, a signal, a panic.

mod table;

use std::io::IsTerminal as _;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::table::{Lines, Order, Talk, Talks};
use super::connect::block_on;
use super::flow_server::FlowServer;
use super::observe::FilterArgs;
use super::observe::stats::Drop;
use super::observe::text;
use super::print::plain;
use super::{CliError, CliResult, Exit};
use crate::api::hubble::pb::observer::get_flows_response::ResponseTypes;
use crate::api::hubble::pb::observer::{GetFlowsRequest, GetFlowsResponse};

const REFRESH: Duration = Duration::from_millis(500);
const KEYS: &str = " q quit   p pause   o order   d drops only   up/down select   c clear";

#[derive(Debug, clap::Args)]
pub struct TopArgs {
    #[command(flatten)]
    server: FlowServer,
    #[command(flatten)]
    filters: FilterArgs,
}

/// What is on the screen.
struct Screen {
    talks: Talks,
    order: Order,
    lines: Lines,
    is_paused: bool,
    selected: usize,
    remark: String,
    lost: u64,
}

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Quit,
    Stay,
}

pub fn run(args: TopArgs) -> CliResult {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(CliError::Invalid("top needs a terminal; `sluice observe` does not".into()));
    }
    let (whitelist, blacklist) = args.filters.lists()?;
    let request = GetFlowsRequest { whitelist, blacklist, follow: true, ..GetFlowsRequest::default() };
    block_on(async {
        // Before the screen changes, so that a refusal is read.
        let flows = args.server.connect().await?.get_flows(request).await?.into_inner();
        let terminal = ratatui::try_init().map_err(anyhow::Error::from)?;
        let ended = watch(terminal, flows).await;
        ratatui::restore();
        ended
    })
}

/// Keys, from a thread of their own: reading a terminal blocks.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let event = match event::poll(Duration::from_millis(200)) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let Ok(event) = event else { return };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn watch(mut terminal: DefaultTerminal, mut flows: tonic::Streaming<GetFlowsResponse>) -> CliResult {
    let mut screen = Screen {
        talks: Talks::default(),
        order: Order::Rate,
        lines: Lines::All,
        is_paused: false,
        selected: 0,
        remark: String::new(),
        lost: 0,
    };
    let mut keys = keys();
    let mut tick = tokio::time::interval(REFRESH);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(anyhow::Error::from)?;
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => return Ok(Exit::Done),
            _ = hangup.recv() => return Ok(Exit::Done),
            key = keys.recv() => match key {
                None => return Ok(Exit::Done),
                Some(event) => {
                    if screen.key(&event) == Action::Quit {
                        return Ok(Exit::Done);
                    }
                    draw(&mut terminal, &mut screen)?;
                }
            },
            _ = tick.tick() => {
                screen.talks.tick(REFRESH);
                draw(&mut terminal, &mut screen)?;
            }
            response = flows.message() => match response? {
                Some(response) => screen.take(&response),
                None => return Err(CliError::Unreachable("the server has ended the stream".into())),
            },
        }
    }
}

fn draw(terminal: &mut DefaultTerminal, screen: &mut Screen) -> Result<(), CliError> {
    if !screen.is_paused {
        terminal.draw(|frame| screen.render(frame)).map_err(anyhow::Error::from)?;
    }
    Ok(())
}

impl Screen {
    fn take(&mut self, response: &GetFlowsResponse) {
        match &response.response_types {
            Some(ResponseTypes::Flow(flow)) => self.talks.add(flow),
            Some(ResponseTypes::LostEvents(lost)) => self.lost += lost.num_events_lost,
            Some(ResponseTypes::NodeStatus(_)) => {
                self.remark = text::remark(response).unwrap_or_default();
            }
            None => {}
        }
    }

    fn key(&mut self, event: &Event) -> Action {
        let Event::Key(key) = event else { return Action::Stay };
        if key.kind == KeyEventKind::Release {
            return Action::Stay;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Action::Quit,
            KeyCode::Char('p') | KeyCode::Char(' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('o') => self.order = self.order.next(),
            KeyCode::Char('d') => {
                self.lines = if self.lines == Lines::All { Lines::WithDrops } else { Lines::All };
            }
            KeyCode::Char('c') => self.talks = Talks::default(),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.selected += 1,
            _ => {}
        }
        Action::Stay
    }

    fn render(&mut self, frame: &mut Frame<'_>) {
        let [head, body, foot, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(4),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let rows = usize::from(body.height.saturating_sub(2));
        let talks = self.talks.sorted(self.order, self.lines);
        self.selected = self.selected.min(talks.len().saturating_sub(1));
        // The selected line is always in view.
        let first = self.selected.saturating_sub(rows.saturating_sub(1));
        frame.render_widget(self.head(), head);
        let table = Table::new(
            talks.iter().enumerate().skip(first).take(rows).map(|(at, talk)| row(talk, at == self.selected)),
            [
                Constraint::Fill(3),
                Constraint::Fill(3),
                Constraint::Length(6),
                Constraint::Length(9),
                Constraint::Length(9),
                Constraint::Length(9),
            ],
        )
        .header(
            Row::new(["SOURCE", "DESTINATION", "PROTO", "FLOWS/S", "FLOWS", "DROPS"])
                .style(Style::new().add_modifier(Modifier::BOLD)),
        )
        .block(Block::bordered().title(format!(" {} ", self.order.title())));
        frame.render_widget(table, body);
        frame.render_widget(Paragraph::new(detail(talks.get(self.selected).copied())), foot);
        frame.render_widget(Paragraph::new(KEYS).style(Style::new().fg(Color::DarkGray)), keys);
    }

    fn head(&self) -> Paragraph<'_> {
        let mut spans = vec![
            Span::styled(" sluice top ", Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!(" {:.0} flows/s  ", self.talks.rate())),
            Span::styled(format!("{:.0} drops/s", self.talks.drop_rate()), Style::new().fg(Color::Red)),
        ];
        if self.lost > 0 {
            spans.push(Span::styled(format!("  {} lost", self.lost), Style::new().fg(Color::Yellow)));
        }
        if self.lines == Lines::WithDrops {
            spans.push(Span::raw("  [drops only]"));
        }
        if !self.remark.is_empty() {
            spans.push(Span::styled(format!("  {}", self.remark), Style::new().fg(Color::Yellow)));
        }
        Paragraph::new(Line::from(spans))
    }
}

fn row(talk: &Talk, is_selected: bool) -> Row<'static> {
    let drops = Style::new().fg(if talk.drops > 0 { Color::Red } else { Color::Reset });
    let row = Row::new([
        Cell::from(plain(&talk.edge.source)),
        Cell::from(plain(&talk.edge.target())),
        Cell::from(plain(&talk.edge.protocol)),
        Cell::from(format!("{:.1}", talk.rate)),
        Cell::from(talk.flows.to_string()),
        Cell::from(talk.drops.to_string()).style(drops),
    ]);
    if is_selected { row.style(Style::new().add_modifier(Modifier::REVERSED)) } else { row }
}

fn detail(talk: Option<&Talk>) -> Vec<Line<'static>> {
    let Some(talk) = talk else { return vec![Line::raw(" waiting for flows")] };
    let mut lines = vec![Line::raw(format!(" last: {}", talk.last))];
    if let Some(Drop { reason, missing, explain, .. }) = &talk.drop {
        lines.push(Line::styled(format!(" dropped: {}", plain(reason)), Style::new().fg(Color::Red)));
        lines.push(Line::raw(format!(" missing: {}", plain(missing))));
        lines.push(Line::raw(format!(" why: {}", plain(explain))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    use super::*;
    use crate::api::hubble::convert::{self, Naming};
    use crate::flow::tests::flow as example;
    use crate::flow::{Flow, Verdict};
    use crate::model::DropReason;

    fn screen() -> Screen {
        let mut talks = Talks::default();
        let naming = Naming { cluster: "default".into() };
        for port in 1..=50 {
            talks.add(&convert::flow(&example(port), &naming));
        }
        let dropped = Flow { verdict: Verdict::Dropped(DropReason::PolicyDenied), ..example(7777) };
        talks.add(&convert::flow(&dropped, &naming));
        let (order, remark) = (Order::Drops, String::new());
        Screen { talks, order, lines: Lines::All, is_paused: false, selected: 0, remark, lost: 3 }
    }

    fn text(screen: &mut Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.render(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_selected_drop_says_what_is_missing() {
        let text = text(&mut screen(), 120, 20);
        assert!(text.contains("shop/backend:7777") && text.contains("POLICY_DENIED"), "{text}");
        assert!(text.contains("sluice policy explain shop/frontend shop/backend:7777"), "{text}");
        assert!(text.contains("3 lost"), "{text}");
    }

    #[test]
    fn any_size_of_terminal_will_do() {
        for (width, height) in [(1, 1), (10, 3), (80, 24), (300, 100)] {
            text(&mut screen(), width, height);
        }
    }

    #[test]
    fn q_escape_and_control_c_quit() {
        let mut screen = screen();
        let mut press = |code, modifiers| screen.key(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(press(KeyCode::Char('q'), KeyModifiers::NONE), Action::Quit);
        assert_eq!(press(KeyCode::Esc, KeyModifiers::NONE), Action::Quit);
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Action::Quit);
        assert_eq!(press(KeyCode::Char('d'), KeyModifiers::NONE), Action::Stay);
        assert_eq!(press(KeyCode::Down, KeyModifiers::NONE), Action::Stay);
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::NONE), Action::Stay);
        assert!(screen.talks.sorted(Order::Rate, Lines::All).is_empty());
    }
}
