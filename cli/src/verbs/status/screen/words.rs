//! Pieces of documents as text, shapes and colours.

use millstream_types::size::format_size;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Row};
use serde_json::Value;

use super::LABEL;

pub(super) fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

pub(super) fn titled(title: String) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(title)
}

pub(super) fn right(text: String) -> Cell<'static> {
    Cell::new(Line::from(text).right_aligned())
}

pub(super) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".into(),
        Some(other) => other.to_string(),
    }
}

pub(super) fn number(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_f64).map_or_else(|| "-".into(), |n| format!("{n:.2}"))
}

pub(super) fn bytes(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_u64).map_or_else(|| "-".into(), format_size)
}

/// "1 node", "2 nodes".
pub(super) fn count(value: &Value, path: &str, one: &str) -> String {
    let n = text(value, path);
    format!("{n} {one}{}", if n == "1" { "" } else { "s" })
}

pub(super) fn counted(what: &str, value: &Value, pointer: &str) -> String {
    let shown = items(value, &format!("{pointer}/items")).len();
    format!("{what}: showing {shown} of {}", text(value, &format!("{pointer}/matched")))
}

/// A state as a shape and a colour, with words.
pub(super) fn mark(state: &str, words: String) -> Span<'static> {
    let (shape, color) = match state {
        "ready" | "ok" | "up" | "done" => ("●", Color::Green),
        "staging" | "receiving" | "verifying" | "running" | "waiting" => ("◐", Color::Blue),
        "failed" | "bad" | "down" | "error" => ("✕", Color::Red),
        "warning" | "suspect" => ("▲", Color::Yellow),
        _ => ("·", Color::Reset),
    };
    Span::styled(format!("{shape} {words}"), Style::new().fg(color))
}

pub(super) fn alarm(alarm: &Value) -> Line<'static> {
    Line::from(mark(&text(alarm, "/severity"), format!("{} · next: {}", text(alarm, "/text"), text(alarm, "/next"))))
}

pub(super) fn failure(failure: &Value) -> Line<'static> {
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

pub(super) fn stage(stage: &Value) -> Row<'static> {
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

/// Nodes that lack what a stage was to bring there, and are not waited for.
pub(super) fn lacking(stage: &Value) -> Vec<Line<'static>> {
    let named = items(stage, "/lacking").iter().map(|b| {
        let words = format!("stage {} is missing on {}: {}", text(stage, "/id"), text(b, "/node"), text(b, "/reason"));
        Line::from(mark("warning", words))
    });
    named.collect()
}

pub(super) fn rail(rail: &Value) -> Line<'static> {
    let state = text(rail, "/state");
    if !matches!(state.as_str(), "" | "-" | "up") {
        return Line::from(mark("warning", format!("rail {} is not used now: {state}", text(rail, "/device"))));
    }
    let words = format!(
        "rail {} port {} · {} · {} queue pairs · {} received",
        text(rail, "/device"),
        text(rail, "/port"),
        text(rail, "/kind"),
        text(rail, "/queue_pairs"),
        bytes(rail, "/received_bytes"),
    );
    Line::raw(words)
}

pub(super) fn keeper(keeper: &Value) -> Line<'static> {
    let by = text(keeper, "/by");
    let by = if by.is_empty() { "nobody in particular".to_owned() } else { by };
    Line::raw(format!("{} kept: {} by {by}", text(keeper, "/dataset"), text(keeper, "/kind")))
}

pub(super) fn links(links: &[Value]) -> String {
    if links.is_empty() {
        return "nobody now".into();
    }
    let words = links.iter().take(6).map(|l| format!("{} {}/s", text(l, "/peer"), bytes(l, "/bytes_per_s")));
    words.collect::<Vec<_>>().join(", ")
}

/// Shapes of the map, by the API's letters.
pub(super) const SHAPES: [(char, &str, char, Color); 6] = [
    ('o', "ready", '█', Color::Green),
    ('v', "verifying", '▓', Color::Magenta),
    ('r', "receiving", '▒', Color::Blue),
    ('q', "queued", '░', Color::Reset),
    ('m', "missing", '·', Color::Reset),
    ('b', "bad", '✕', Color::Red),
];

pub(super) fn map_row(row: &Value) -> Line<'static> {
    let label: String = text(row, "/label").chars().take(LABEL as usize - 1).collect();
    let mut spans = vec![Span::raw(format!("{label:<width$}", width = LABEL as usize))];
    let cells = text(row, "/cells");
    spans.extend(cells.chars().step_by(2).map(|letter| {
        let shape = SHAPES.iter().find(|s| s.0 == letter);
        shape.map_or(Span::raw("?"), |s| Span::styled(s.2.to_string(), Style::new().fg(s.3)))
    }));
    Line::from(spans)
}

pub(super) fn legend(map: &Value) -> Line<'static> {
    let words = SHAPES.map(|(_, name, shape, color)| {
        Span::styled(format!("{shape} {name} {}  ", text(map, &format!("/totals/{name}"))), Style::new().fg(color))
    });
    Line::from(words.to_vec())
}
