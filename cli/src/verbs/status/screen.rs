//! What `status --watch` shows and what its keys mean: no I/O, so that it is tested on a screen in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream_types::size::format_size;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, Wrap};
use serde_json::Value;

/// Rows of the map: what leaves room for the list below it.
const MAP_ROWS: u16 = 12;
/// Columns for the map's labels.
const LABEL: u16 = 18;
/// Data that is older than this is said to be old.
const STALE: Duration = Duration::from_secs(3);
/// Items asked for in a list: more than a screen has lines.
const LIST: u16 = 200;

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// Everything at a glance.
    Overview,
    /// All nodes.
    Nodes,
    /// One version.
    Dataset(String),
    /// One node.
    Node(String),
}

/// What follows from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing new is needed.
    Stay,
    /// Other documents are needed.
    Look,
    /// Enough.
    Quit,
}

/// What is on the screen.
#[derive(Debug)]
pub struct Screen {
    views: Vec<View>,
    selected: usize,
    documents: BTreeMap<String, Value>,
    lost: Option<String>,
}

impl Screen {
    /// Begins with a view.
    pub fn new(view: View) -> Screen {
        let views = if view == View::Overview { vec![view] } else { vec![View::Overview, view] };
        Screen { views, selected: 0, documents: BTreeMap::new(), lost: None }
    }

    fn view(&self) -> &View {
        self.views.last().unwrap_or(&View::Overview)
    }

    /// Names and paths (below `/api/v1/`) of the documents that the view needs.
    pub fn paths(&self, (width, _): (u16, u16)) -> Vec<(&'static str, String)> {
        let encoded = |name: &str| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
        match self.view() {
            View::Overview => vec![("overview", "overview".into())],
            View::Nodes => vec![("nodes", format!("nodes?limit={LIST}"))],
            View::Node(name) => vec![("node", format!("nodes/{}", encoded(name)))],
            View::Dataset(name) => {
                let base = format!("datasets/{}", encoded(name));
                let columns = width.saturating_sub(LABEL + 4).clamp(8, 512);
                vec![
                    ("map", format!("{base}/map?rows={MAP_ROWS}&columns={columns}")),
                    ("nodes", format!("{base}/nodes?limit={LIST}")),
                    ("dataset", base),
                ]
            }
        }
    }

    /// New documents came.
    pub fn take(&mut self, documents: BTreeMap<String, Value>) {
        self.documents = documents;
        self.lost = None;
        self.selected = self.selected.min(self.targets().len().saturating_sub(1));
    }

    /// They did not.
    pub fn lost(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        let last = self.targets().len().saturating_sub(1);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Quit,
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.selected = (self.selected + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = last,
            KeyCode::Char('o') => return self.go(vec![View::Overview]),
            KeyCode::Char('n') => return self.go(vec![View::Overview, View::Nodes]),
            KeyCode::Enter | KeyCode::Right => {
                if let Some(view) = self.targets().get(self.selected).cloned() {
                    let mut views = self.views.clone();
                    views.push(view);
                    return self.go(views);
                }
            }
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace if self.views.len() > 1 => {
                let mut views = self.views.clone();
                views.pop();
                return self.go(views);
            }
            _ => {}
        }
        Next::Stay
    }

    fn go(&mut self, views: Vec<View>) -> Next {
        self.views = views;
        self.selected = 0;
        self.documents.clear();
        Next::Look
    }

    /// Where Enter leads, by row of the list.
    fn targets(&self) -> Vec<View> {
        let names = |path: &str, list: &str, field: &str| -> Vec<String> {
            let items = self.documents.get(path).and_then(|d| d.pointer(list)).and_then(Value::as_array);
            items.into_iter().flatten().map(|i| text(i, field)).collect()
        };
        let (names, view): (_, fn(String) -> View) = match self.view() {
            View::Overview => (names("overview", "/datasets/items", "/dataset"), View::Dataset),
            View::Nodes => (names("nodes", "/items", "/node"), View::Node),
            View::Dataset(_) => (names("nodes", "/items", "/node"), View::Node),
            View::Node(_) => (names("node", "/datasets", "/dataset"), View::Dataset),
        };
        names.into_iter().map(view).collect()
    }

    /// Draws everything; `age` of what is shown.
    pub fn draw(&self, frame: &mut Frame<'_>, age: Option<Duration>) {
        let [top, body, bottom] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
        let title = match self.view() {
            View::Overview => "overview".to_owned(),
            View::Nodes => "nodes".to_owned(),
            View::Dataset(name) | View::Node(name) => name.clone(),
        };
        let live = match (&self.lost, age) {
            (Some(why), _) => Span::styled(format!("✕ {why}"), Style::new().fg(Color::Red)),
            (None, Some(age)) if age > STALE => {
                Span::styled(format!("◌ {} s old", age.as_secs()), Style::new().fg(Color::Yellow))
            }
            (None, Some(_)) => Span::styled("● live", Style::new().fg(Color::Green)),
            (None, None) => Span::raw("◌ connecting …"),
        };
        let title = Span::styled(format!("millstream · {title}  "), Style::new().add_modifier(Modifier::BOLD));
        frame.render_widget(Line::from(vec![title, live]), top);
        self.body(frame, body);
        let help = "↑↓ select  Enter open  Esc back  o overview  n nodes  q quit";
        frame.render_widget(Line::styled(help, Style::new().add_modifier(Modifier::DIM)), bottom);
    }

    fn body(&self, frame: &mut Frame<'_>, area: Rect) {
        if let Some(error) = self.documents.values().find_map(|d| d.get("error")?.as_str()) {
            frame.render_widget(Paragraph::new(error.to_owned()).wrap(Wrap { trim: true }), area);
            return;
        }
        match self.view() {
            View::Overview => self.overview(frame, area),
            View::Nodes => self.list(frame, area, "Nodes", self.node_rows("nodes")),
            View::Dataset(_) => self.dataset(frame, area),
            View::Node(_) => self.node(frame, area),
        }
    }

    fn document(&self, name: &str) -> &Value {
        self.documents.get(name).unwrap_or(&Value::Null)
    }

    fn overview(&self, frame: &mut Frame<'_>, area: Rect) {
        let o = self.document("overview");
        let alarms: Vec<Line<'_>> = items(o, "/alarms").iter().map(alarm).collect();
        let stages: Vec<Row<'_>> = items(o, "/stages/items").iter().map(stage).collect();
        let height = |n: usize, most: u16| (n as u16 + 2).min(most);
        let [head, alarm_area, datasets, stage_area] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(if alarms.is_empty() { 0 } else { height(alarms.len(), area.height / 3) }),
            Constraint::Min(4),
            Constraint::Length(height(stages.len() + 1, area.height / 3)),
        ])
        .areas(area);
        let t = |field: &str| bytes(o, &format!("/totals/rate_bytes_per_s/{field}"));
        let lines = vec![
            Line::from(mark(&text(o, "/headline/state"), text(o, "/headline/text"))),
            Line::raw(format!(
                "{} of {} nodes up · S3 {}/s · RDMA {}/s · TCP {}/s · {} alarms",
                text(o, "/totals/nodes_up"),
                text(o, "/totals/nodes"),
                t("origin"),
                t("rdma"),
                t("tcp"),
                text(o, "/totals/alarms"),
            )),
        ];
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), head);
        frame.render_widget(Paragraph::new(alarms).block(titled("Alarms".into())), alarm_area);
        let rows = items(o, "/datasets/items").iter().map(|d| {
            let waits = items(d, "/verdict/waiting_for").first();
            let waits = waits.map(|b| format!("{}: {}", text(b, "/node"), text(b, "/reason"))).unwrap_or_default();
            let verdict = mark(&text(d, "/verdict/state"), text(d, "/verdict/text"));
            vec![
                Cell::new(text(d, "/dataset")),
                Cell::new(Line::from(verdict)),
                Cell::new(waits),
                right(bytes(d, "/bytes")),
            ]
        });
        let widths = [Constraint::Length(24), Constraint::Length(34), Constraint::Min(20), Constraint::Length(10)];
        self.list(
            frame,
            datasets,
            &counted("Datasets", o, "/datasets"),
            (["DATASET", "WHERE", "WAITS FOR", "SIZE"].into(), widths.into(), rows.collect()),
        );
        let heads = Row::new(["STAGE", "DATASET", "STATE", "READY", "LEFT", "T/T*", "S3/DATA"]).style(dim());
        let widths = [6, 24, 10, 8, 10, 16, 8].map(Constraint::Length);
        frame.render_widget(
            Table::new(stages, widths).header(heads).block(titled(counted("Stages", o, "/stages"))),
            stage_area,
        );
    }

    fn dataset(&self, frame: &mut Frame<'_>, area: Rect) {
        let (d, m) = (self.document("dataset"), self.document("map"));
        let rows = items(m, "/rows");
        let failures: Vec<Line<'_>> = items(d, "/failures/items").iter().take(4).map(failure).collect();
        let [head, map, bad, nodes] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(rows.len() as u16 + 2),
            Constraint::Length(if failures.is_empty() { 0 } else { failures.len() as u16 + 2 }),
            Constraint::Min(4),
        ])
        .areas(area);
        let state = mark(&text(d, "/verdict/state"), text(d, "/verdict/text"));
        let facts = format!(
            "{} in {} shards · from the origin {} · {} transfers from it, {} from peers",
            bytes(d, "/bytes"),
            text(d, "/shards"),
            bytes(d, "/origin_bytes"),
            text(d, "/transfers_from_origin"),
            text(d, "/transfers_from_peers"),
        );
        frame.render_widget(
            Paragraph::new(vec![Line::from(state), Line::raw(facts), legend(m)]).wrap(Wrap { trim: true }),
            head,
        );
        let title =
            format!("Map: one cell is {} nodes by {} shards", text(m, "/nodes_per_row"), text(m, "/shards_per_column"));
        frame.render_widget(Paragraph::new(rows.iter().map(map_row).collect::<Vec<_>>()).block(titled(title)), map);
        frame.render_widget(Paragraph::new(failures).block(titled("Failures".into())), bad);
        let rows = items(self.document("nodes"), "/items").iter().map(|n| {
            let share = format!("{} %", text(n, "/percent"));
            vec![
                Cell::new(text(n, "/node")),
                Cell::new(Line::from(mark(&text(n, "/state"), text(n, "/state")))),
                right(share),
                Cell::new(text(n, "/reason")),
            ]
        });
        let widths = [Constraint::Length(20), Constraint::Length(14), Constraint::Length(6), Constraint::Min(20)];
        let title = counted("Nodes", self.document("nodes"), "");
        self.list(frame, nodes, &title, (["NODE", "STATE", "%", "WHY"].into(), widths.into(), rows.collect()));
    }

    fn node(&self, frame: &mut Frame<'_>, area: Rect) {
        let n = self.document("node");
        let mut lines = vec![
            Line::from(mark(
                &text(n, "/state"),
                format!(
                    "{} · {} · {} {}",
                    text(n, "/state"),
                    text(n, "/address"),
                    text(n, "/io"),
                    text(n, "/agent_version")
                ),
            )),
            Line::raw(format!(
                "disk {} of {}, {} pinned, {} partial · in {}/s, out {}/s",
                bytes(n, "/disk/used_bytes"),
                bytes(n, "/disk/capacity_bytes"),
                bytes(n, "/disk/pinned_bytes"),
                bytes(n, "/disk/partial_bytes"),
                bytes(n, "/rate_bytes_per_s/in"),
                bytes(n, "/rate_bytes_per_s/out"),
            )),
            Line::raw(format!("fed by {}", links(items(n, "/links_in")))),
            Line::raw(format!("feeds {}", links(items(n, "/links_out")))),
        ];
        lines.extend(items(n, "/alarms").iter().map(alarm));
        let stands_out = items(n, "/compared").iter().filter(|c| c.get("outlier") == Some(&Value::Bool(true)));
        lines.extend(stands_out.map(|c| {
            let text = format!("{}: {} (median {})", text(c, "/what"), number(c, "/value"), number(c, "/median"));
            Line::from(mark("warning", text))
        }));
        let errors = items(n, "/last_errors").iter().rev().take(3);
        lines.extend(errors.filter_map(Value::as_str).map(|e| Line::styled(format!("error: {e}"), dim())));
        let [head, datasets] =
            Layout::vertical([Constraint::Length(lines.len() as u16), Constraint::Min(4)]).areas(area);
        frame.render_widget(Paragraph::new(lines), head);
        let rows = items(n, "/datasets").iter().map(|d| {
            let pinned = if d.get("pinned") == Some(&Value::Bool(true)) { "pinned" } else { "" };
            let shards = format!("{}/{}", text(d, "/shards_ready"), text(d, "/shards_wanted"));
            vec![
                Cell::new(text(d, "/dataset")),
                Cell::new(Line::from(mark(&text(d, "/state"), text(d, "/state")))),
                right(shards),
                Cell::new(pinned),
                Cell::new(text(d, "/reason")),
            ]
        });
        let widths = [
            Constraint::Length(24),
            Constraint::Length(14),
            Constraint::Length(14),
            Constraint::Length(8),
            Constraint::Min(20),
        ];
        self.list(
            frame,
            datasets,
            "Datasets here",
            (["DATASET", "STATE", "SHARDS", "PIN", "WHY"].into(), widths.into(), rows.collect()),
        );
    }

    fn node_rows(&self, document: &str) -> Listed<'_> {
        let rows = items(self.document(document), "/items").iter().map(|n| {
            let used = format!("{} of {}", bytes(n, "/disk/used_bytes"), bytes(n, "/disk/capacity_bytes"));
            let (into, out) = (bytes(n, "/rate_bytes_per_s/in"), bytes(n, "/rate_bytes_per_s/out"));
            vec![
                Cell::new(text(n, "/node")),
                Cell::new(Line::from(mark(&text(n, "/state"), text(n, "/state")))),
                right(used),
                right(format!("{into}/s")),
                right(format!("{out}/s")),
                Cell::new(text(n, "/io")),
            ]
        });
        let widths = [20, 12, 24, 14, 14, 10].map(Constraint::Length);
        (["NODE", "STATE", "DISK", "IN", "OUT", "IO"].into(), widths.into(), rows.collect())
    }

    /// The list in which rows are selected.
    fn list(&self, frame: &mut Frame<'_>, area: Rect, title: &str, (heads, widths, rows): Listed<'_>) {
        let room = area.height.saturating_sub(3).max(1) as usize;
        let first = (self.selected + 1).saturating_sub(room);
        let rows = rows.into_iter().enumerate().skip(first).map(|(i, cells)| {
            let row = Row::new(cells);
            if i == self.selected { row.style(Style::new().add_modifier(Modifier::REVERSED)) } else { row }
        });
        let table = Table::new(rows, widths).header(Row::new(heads).style(dim())).block(titled(title.to_owned()));
        frame.render_widget(table, area);
    }
}

type Listed<'a> = (Vec<&'static str>, Vec<Constraint>, Vec<Vec<Cell<'a>>>);

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn titled(title: String) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(title)
}

fn right(text: String) -> Cell<'static> {
    Cell::new(Line::from(text).right_aligned())
}

fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".into(),
        Some(other) => other.to_string(),
    }
}

fn number(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_f64).map_or_else(|| "-".into(), |n| format!("{n:.2}"))
}

fn bytes(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_u64).map_or_else(|| "-".into(), format_size)
}

fn counted(what: &str, value: &Value, pointer: &str) -> String {
    let shown = items(value, &format!("{pointer}/items")).len();
    format!("{what}: showing {shown} of {}", text(value, &format!("{pointer}/matched")))
}

/// A state as a shape and a colour, with words.
fn mark(state: &str, words: String) -> Span<'static> {
    let (shape, color) = match state {
        "ready" | "ok" | "up" | "done" => ("●", Color::Green),
        "staging" | "receiving" | "verifying" | "running" | "waiting" => ("◐", Color::Blue),
        "failed" | "bad" | "down" | "error" => ("✕", Color::Red),
        "warning" | "suspect" => ("▲", Color::Yellow),
        _ => ("·", Color::Reset),
    };
    Span::styled(format!("{shape} {words}"), Style::new().fg(color))
}

fn alarm(alarm: &Value) -> Line<'static> {
    Line::from(mark(&text(alarm, "/severity"), format!("{} · next: {}", text(alarm, "/text"), text(alarm, "/next"))))
}

fn failure(failure: &Value) -> Line<'static> {
    let words = format!(
        "{} piece {}: {}; expected {}, got {}; source {}",
        text(failure, "/key"),
        text(failure, "/piece"),
        text(failure, "/detail"),
        text(failure, "/expected"),
        text(failure, "/actual"),
        text(failure, "/source"),
    );
    Line::from(mark("failed", words))
}

fn stage(stage: &Value) -> Row<'static> {
    let of = |field: &str| stage.get(field).and_then(Value::as_f64).unwrap_or(0.0);
    let percent = 100.0 * of("bytes_ready") / of("bytes_total").max(1.0);
    let seconds =
        |field: &str| stage.get(field).and_then(Value::as_f64).map_or_else(|| "-".into(), |s| format!("{s:.0} s"));
    let ratio = stage
        .get("ratio_to_bound")
        .and_then(Value::as_f64)
        .map_or_else(|| "-".into(), |r| format!("{r:.2} ({})", text(stage, "/bound_by")));
    let state = text(stage, "/state");
    Row::new(vec![
        Cell::new(text(stage, "/id")),
        Cell::new(text(stage, "/dataset")),
        Cell::new(Line::from(mark(&state, state.clone()))),
        Cell::new(format!("{:.0} %", percent.floor())),
        Cell::new(seconds("eta_s")),
        Cell::new(ratio),
        Cell::new(format!("{:.2}", of("origin_bytes") / of("dataset_bytes").max(1.0))),
    ])
}

fn links(links: &[Value]) -> String {
    if links.is_empty() {
        return "nobody now".into();
    }
    let words = links.iter().take(6).map(|l| format!("{} {}/s", text(l, "/peer"), bytes(l, "/bytes_per_s")));
    words.collect::<Vec<_>>().join(", ")
}

/// Shapes of the map, by the API's letters.
const SHAPES: [(char, &str, char, Color); 6] = [
    ('o', "ready", '█', Color::Green),
    ('v', "verifying", '▓', Color::Magenta),
    ('r', "receiving", '▒', Color::Blue),
    ('q', "queued", '░', Color::Reset),
    ('m', "missing", '·', Color::Reset),
    ('b', "bad", '✕', Color::Red),
];

fn map_row(row: &Value) -> Line<'static> {
    let label: String = text(row, "/label").chars().take(LABEL as usize - 1).collect();
    let mut spans = vec![Span::raw(format!("{label:<width$}", width = LABEL as usize))];
    let cells = text(row, "/cells");
    spans.extend(cells.chars().step_by(2).map(|letter| {
        let shape = SHAPES.iter().find(|s| s.0 == letter);
        shape.map_or(Span::raw("?"), |s| Span::styled(s.2.to_string(), Style::new().fg(s.3)))
    }));
    Line::from(spans)
}

fn legend(map: &Value) -> Line<'static> {
    let words = SHAPES.map(|(_, name, shape, color)| {
        Span::styled(format!("{shape} {name} {}  ", text(map, &format!("/totals/{name}"))), Style::new().fg(color))
    });
    Line::from(words.to_vec())
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn shown(screen: &Screen, width: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, 30)).unwrap();
        terminal.draw(|frame| screen.draw(frame, Some(Duration::ZERO))).unwrap();
        terminal.backend().to_string()
    }

    fn press(screen: &mut Screen, code: KeyCode) -> Next {
        screen.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn overview() -> BTreeMap<String, Value> {
        let dataset = |name: &str, state: &str| {
            json!({"dataset": name, "bytes": 2048, "verdict": {"state": state, "text": "ready on 1 of 2 nodes",
                   "waiting_for": [{"node": "n2", "reason": "its agent is not connected"}]}})
        };
        let document = json!({
            "headline": {"state": "waiting", "text": "d@v1 is ready on 1 of 2 nodes"},
            "totals": {"nodes": 2, "nodes_up": 1, "alarms": 1, "rate_bytes_per_s": {"origin": 1048576, "rdma": 0, "tcp": 5}},
            "alarms": [{"severity": "error", "text": "n2 is down", "next": "is the agent running?"}],
            "datasets": {"matched": 2, "items": [dataset("d@v1", "staging"), dataset("e@v1", "ready")]},
            "stages": {"matched": 1, "items": [{"id": 7, "dataset": "d@v1", "state": "running", "bytes_ready": 1,
                       "bytes_total": 2, "eta_s": 3.2, "ratio_to_bound": 1.25, "bound_by": "link", "origin_bytes": 2, "dataset_bytes": 2}]},
        });
        BTreeMap::from([("overview".to_owned(), document)])
    }

    #[test]
    fn the_overview_says_what_is_wrong_and_what_waits() {
        let mut screen = Screen::new(View::Overview);
        screen.take(overview());
        let text = shown(&screen, 140);
        for part in [
            "● live",
            "◐ d@v1 is ready on 1 of 2 nodes",
            "1 of 2 nodes up",
            "✕ n2 is down · next: is the agent running?",
            "n2: its agent is not connected",
            "showing 2 of 2",
            "1.25 (link)",
            "50 %",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn keys_lead_to_a_version_to_a_node_and_back() {
        let mut screen = Screen::new(View::Overview);
        screen.take(overview());
        press(&mut screen, KeyCode::Down);
        assert_eq!(press(&mut screen, KeyCode::Enter), Next::Look);
        assert_eq!(screen.view(), &View::Dataset("e@v1".into()));
        let paths: Vec<String> = screen.paths((100, 30)).into_iter().map(|(_, p)| p).collect();
        assert!(paths[0].starts_with("datasets/e%40v1/map?rows=12&columns="), "{paths:?}");
        let nodes = json!({"matched": 1, "items": [{"node": "n2", "state": "absent", "percent": 0, "reason": "the node is down"}]});
        let map = json!({"nodes_per_row": 1, "shards_per_column": 3, "totals": {"ready": 4},
                         "rows": [{"label": "n2", "cells": "o9r3b0q0m0v9"}]});
        let dataset = json!({"verdict": {"state": "staging", "text": "ready on 0 of 1 nodes"}, "bytes": 5, "failures": {"items": []}});
        let all = [("nodes", nodes), ("map", map), ("dataset", dataset)];
        screen.take(all.map(|(k, v)| (k.to_owned(), v)).into());
        let text = shown(&screen, 120);
        for part in ["█▒✕░·▓", "ready 4", "1 nodes by 3 shards", "the node is down"] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        press(&mut screen, KeyCode::Enter);
        assert_eq!(screen.view(), &View::Node("n2".into()));
        assert_eq!(press(&mut screen, KeyCode::Esc), Next::Look);
        assert_eq!(press(&mut screen, KeyCode::Esc), Next::Look);
        assert_eq!(press(&mut screen, KeyCode::Esc), Next::Stay);
        assert_eq!(screen.view(), &View::Overview);
        assert_eq!(press(&mut screen, KeyCode::Char('q')), Next::Quit);
    }

    #[test]
    fn a_coordinator_that_is_away_is_said_and_small_screens_do_no_harm() {
        let mut screen = Screen::new(View::Node("n1".into()));
        screen.lost("no coordinator answers".into());
        assert!(shown(&screen, 80).contains("✕ no coordinator answers"));
        for view in [View::Overview, View::Nodes, View::Dataset("d".into()), View::Node("n".into())] {
            shown(&Screen::new(view), 10);
        }
        let wrong = json!({"error": "no node n1", "next": "", "code": 3});
        screen.take(BTreeMap::from([("node".to_owned(), wrong)]));
        assert!(shown(&screen, 80).contains("no node n1"));
    }
}
