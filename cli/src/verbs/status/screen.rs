//! What `status --watch` shows and what its keys mean: no I/O, so that it is tested on a screen in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use serde_json::Value;

mod views;
mod words;

use words::text;

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
        if self.documents.is_empty() {
            return frame.render_widget("Loading …", area);
        }
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
}

#[cfg(test)]
mod tests {
    use millstream_types::size::format_size;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn shown(screen: &Screen, width: u16) -> String {
        shown_on(screen, width, 30)
    }

    fn shown_on(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
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
                       "bytes_total": 2, "eta_s": 3.2, "ratio_to_bound": 1.25, "bound_by": "link", "origin_bytes": 2, "dataset_bytes": 2,
                       "lacking": [{"node": "n9", "reason": "its agent is not connected, for 12 s now"}]}]},
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
            "▲ stage 7 is missing on n9: its agent is not connected, for 12 s now",
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
        for part in ["█▒✕░·▓", "ready 4", "1 node by 3 shards", "the node is down"] {
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

    /// The words on the screen, without borders and wraps.
    fn words(text: &str) -> String {
        text.replace('"', " ").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn eighty_columns_cut_nothing_that_says_what_to_do() {
        let mut screen = Screen::new(View::Overview);
        let mut all = overview();
        let long = "n2 is down: not heard of for 7 s; a-dataset-with-a-name@v2024-10 waits for it";
        let next = "on n2: is the agent running? see its log with journalctl -u millstream-agent";
        let document = all.get_mut("overview").unwrap();
        document["alarms"] = json!([{"severity": "error", "text": long, "next": next}]);
        screen.take(all);
        let text = words(&shown_on(&screen, 80, 24));
        for part in [long, next, "n2: its agent is not connected", "T/T*", "1 alarm "] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let mut screen = Screen::new(View::Dataset("d@v1".into()));
        let reason = "52 % there; 977 KiB ordered, none of it has arrived lately from any source";
        let nodes =
            json!({"matched": 1, "items": [{"node": "n1", "state": "receiving", "percent": 52, "reason": reason}]});
        let failure = json!({"key": "shard-0001.tar", "piece": 3, "detail": "the shard is not what the origin says",
                             "expected": "crc64nvme:0123456789abcdef", "actual": "crc64nvme:fedcba9876543210", "source": "origin"});
        let map = json!({"nodes_per_row": 1, "shards_per_column": 4, "totals": {"ready": 123_456, "queued": 654_321, "receiving": 99_999},
                         "rows": [{"label": "n1", "cells": "o9"}]});
        let dataset = json!({"verdict": {"state": "staging", "text": "ready on 0 of 1 nodes"}, "bytes": 20_000_000, "shards": 200,
                             "origin_bytes": 10_000_000, "transfers_from_origin": 20, "transfers_from_peers": 20,
                             "failures": {"items": [failure]}});
        screen.take([("nodes", nodes), ("map", map), ("dataset", dataset)].map(|(k, v)| (k.to_owned(), v)).into());
        let text = words(&shown_on(&screen, 80, 24));
        for part in [reason, "✕ bad", "ready 123456", "20 from peers", "1 node by 4 shards", "source origin"] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn eighty_columns_have_room_for_nodes() {
        let rate = json!({"in": 1_071_644_672u64, "out": 1_071_644_672u64});
        let node = json!({"node": "gpu-rack12-n07", "state": "suspect", "io": "blocking", "rate_bytes_per_s": rate,
                          "disk": {"used_bytes": 1_071_644_672u64, "capacity_bytes": 1_097_364_144_128u64}});
        let mut screen = Screen::new(View::Nodes);
        screen.take(BTreeMap::from([("nodes".to_owned(), json!({"matched": 1, "items": [node]}))]));
        let text = shown(&screen, 80);
        let size = format_size(1_071_644_672);
        let used = format!("{size} of {}", format_size(1_097_364_144_128));
        for part in ["gpu-rack12-n07", "▲ suspect", &used, &format!(" {size}/s"), "blocking"] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_coordinator_that_is_away_is_said_and_small_screens_do_no_harm() {
        let mut screen = Screen::new(View::Node("n1".into()));
        screen.lost("no coordinator answers".into());
        assert!(shown(&screen, 80).contains("✕ no coordinator answers"));
        for view in [View::Overview, View::Nodes, View::Dataset("d".into()), View::Node("n".into())] {
            let mut screen = Screen::new(view);
            assert!(shown(&screen, 40).contains("Loading"));
            screen.take(BTreeMap::from([("none".to_owned(), Value::Null)]));
            shown(&screen, 10);
        }
        let wrong = json!({"error": "no node n1", "next": "", "code": 3});
        screen.take(BTreeMap::from([("node".to_owned(), wrong)]));
        assert!(shown(&screen, 80).contains("no node n1"));
    }
}
