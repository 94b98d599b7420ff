//! Each view's part of the screen: from its documents to lines and tables.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, Wrap};
use serde_json::Value;

use super::Screen;
use super::words::{
    alarm, bytes, count, counted, dim, failure, items, keeper, lacking, legend, links, map_row, mark, number, rail,
    right, stage, text, titled,
};

/// A list in which rows are selected.
pub(super) struct Listed<'a> {
    heads: Vec<&'static str>,
    widths: Vec<Constraint>,
    rows: Vec<Vec<Cell<'a>>>,
    /// Of each row, what may be too long for its cell: shown below the list for the selected row where it is.
    long: Vec<String>,
}

/// Lines that a text takes when it is wrapped, with some room for words that do not fill them.
fn height(lines: &[Line<'_>], width: u16) -> u16 {
    let width = (usize::from(width) * 9 / 10).max(1);
    lines.iter().map(|l| if l.width() <= width * 10 / 9 { 1 } else { l.width().div_ceil(width) as u16 }).sum()
}

/// Alarms are told in full as far as there is room; the title says how many there are.
fn shorten(alarms: &mut Vec<Line<'_>>, width: u16, most: u16) -> String {
    let all = alarms.len();
    while alarms.len() > 1 && height(alarms, width) > most {
        alarms.pop();
    }
    if alarms.len() < all { format!("Alarms: showing {} of {all}", alarms.len()) } else { "Alarms".to_owned() }
}

/// What the columns of fixed width leave.
fn left_by(widths: &[Constraint], width: u16) -> usize {
    let fixed = widths.iter().map(|w| if let Constraint::Length(n) = w { n + 1 } else { 1 });
    usize::from(width).saturating_sub(usize::from(fixed.sum::<u16>()))
}

impl Screen {
    fn document(&self, name: &str) -> &Value {
        self.documents.get(name).unwrap_or(&Value::Null)
    }

    pub(super) fn overview(&self, frame: &mut Frame<'_>, area: Rect) {
        let o = self.document("overview");
        let mut alarms: Vec<Line<'_>> = items(o, "/alarms").iter().map(alarm).collect();
        let stages: Vec<Row<'_>> = items(o, "/stages/items").iter().map(stage).collect();
        let most = area.height / 3;
        let title = shorten(&mut alarms, area.width, most.saturating_sub(1));
        let gaps: Vec<Line<'_>> = items(o, "/stages/items").iter().flat_map(lacking).take(3).collect();
        let [head, alarm_area, datasets, stage_area, gap_area] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(if alarms.is_empty() { 0 } else { (height(&alarms, area.width) + 1).min(most) }),
            Constraint::Min(4),
            Constraint::Length((stages.len() as u16 + 3).min(most)),
            Constraint::Length(height(&gaps, area.width).min(most)),
        ])
        .areas(area);
        let t = |field: &str| bytes(o, &format!("/totals/rate_bytes_per_s/{field}"));
        let lines = vec![
            Line::from(mark(&text(o, "/headline/state"), text(o, "/headline/text"))),
            Line::raw(format!(
                "{} of {} nodes up · S3 {}/s · RDMA {}/s · TCP {}/s · local hits {}/s · {}",
                text(o, "/totals/nodes_up"),
                text(o, "/totals/nodes"),
                t("origin"),
                t("rdma"),
                t("tcp"),
                t("local"),
                count(o, "/totals/alarms", "alarm"),
            )),
        ];
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), head);
        frame.render_widget(Paragraph::new(alarms).wrap(Wrap { trim: true }).block(titled(title)), alarm_area);
        let waits = |d: &Value| {
            let waits = items(d, "/verdict/waiting_for").first();
            waits.map(|b| format!("{}: {}", text(b, "/node"), text(b, "/reason"))).unwrap_or_default()
        };
        let rows = items(o, "/datasets/items").iter().map(|d| {
            let verdict = mark(&text(d, "/verdict/state"), text(d, "/verdict/text"));
            vec![
                Cell::new(text(d, "/dataset")),
                Cell::new(Line::from(verdict)),
                Cell::new(waits(d)),
                right(bytes(d, "/bytes")),
            ]
        });
        let widths = [Constraint::Length(24), Constraint::Length(34), Constraint::Min(20), Constraint::Length(10)];
        self.list(
            frame,
            datasets,
            &counted("Datasets", o, "/datasets"),
            Listed {
                heads: ["DATASET", "WHERE", "WAITS FOR", "SIZE"].into(),
                widths: widths.into(),
                rows: rows.collect(),
                long: items(o, "/datasets/items").iter().map(waits).collect(),
            },
        );
        let heads = Row::new(["STAGE", "DATASET", "STATE", "READY", "LEFT", "T/T*", "S3/DATA"]).style(dim());
        let widths = [6, 24, 10, 8, 10, 16, 8].map(Constraint::Length);
        frame.render_widget(
            Table::new(stages, widths).header(heads).block(titled(counted("Stages", o, "/stages"))),
            stage_area,
        );
        frame.render_widget(Paragraph::new(gaps).wrap(Wrap { trim: true }), gap_area);
    }

    pub(super) fn dataset(&self, frame: &mut Frame<'_>, area: Rect) {
        let (d, m) = (self.document("dataset"), self.document("map"));
        let rows = items(m, "/rows");
        let failures: Vec<Line<'_>> = items(d, "/failures/items").iter().take(4).map(failure).collect();
        let state = mark(&text(d, "/verdict/state"), text(d, "/verdict/text"));
        let facts = format!(
            "{} in {} · from the origin {} · {} from it, {} from peers",
            bytes(d, "/bytes"),
            count(d, "/shards", "shard"),
            bytes(d, "/origin_bytes"),
            count(d, "/transfers_from_origin", "transfer"),
            text(d, "/transfers_from_peers"),
        );
        let words = vec![Line::from(state), Line::raw(facts), legend(m)];
        let [head, map, bad, nodes] = Layout::vertical([
            Constraint::Length(height(&words, area.width)),
            Constraint::Length(rows.len() as u16 + 2),
            Constraint::Length(if failures.is_empty() {
                0
            } else {
                (height(&failures, area.width) + 2).min(area.height / 3)
            }),
            Constraint::Min(4),
        ])
        .areas(area);
        frame.render_widget(Paragraph::new(words).wrap(Wrap { trim: true }), head);
        let title = format!(
            "Map: one cell is {} by {}",
            count(m, "/nodes_per_row", "node"),
            count(m, "/shards_per_column", "shard")
        );
        frame.render_widget(Paragraph::new(rows.iter().map(map_row).collect::<Vec<_>>()).block(titled(title)), map);
        frame.render_widget(Paragraph::new(failures).wrap(Wrap { trim: true }).block(titled("Failures".into())), bad);
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
        let listed = Listed {
            heads: ["NODE", "STATE", "%", "WHY"].into(),
            widths: widths.into(),
            rows: rows.collect(),
            long: reasons(items(self.document("nodes"), "/items")),
        };
        self.list(frame, nodes, &title, listed);
    }

    pub(super) fn node(&self, frame: &mut Frame<'_>, area: Rect) {
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
        let carriers: Vec<String> = items(n, "/transports").iter().filter_map(Value::as_str).map(Into::into).collect();
        let why = text(n, "/rdma_reason");
        let why = if matches!(why.as_str(), "" | "-") { String::new() } else { format!(" (no RDMA: {why})") };
        lines.push(Line::raw(format!("carriers {}{why}", carriers.join(", "))));
        lines.extend(items(n, "/rails").iter().map(rail));
        lines.extend(items(n, "/keepers").iter().take(5).map(keeper));
        lines.extend(items(n, "/alarms").iter().map(alarm));
        let stands_out = items(n, "/compared").iter().filter(|c| c.get("outlier") == Some(&Value::Bool(true)));
        lines.extend(stands_out.map(|c| {
            let text = format!("{}: {} (median {})", text(c, "/what"), number(c, "/value"), number(c, "/median"));
            Line::from(mark("warning", text))
        }));
        let errors = items(n, "/errors").iter().take(3);
        lines.extend(
            errors.map(|e| Line::styled(format!("error, {} times: {}", text(e, "/count"), text(e, "/text")), dim())),
        );
        let [head, datasets] =
            Layout::vertical([Constraint::Length(height(&lines, area.width)), Constraint::Min(4)]).areas(area);
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), head);
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
            Listed {
                heads: ["DATASET", "STATE", "SHARDS", "PIN", "WHY"].into(),
                widths: widths.into(),
                rows: rows.collect(),
                long: reasons(items(n, "/datasets")),
            },
        );
    }

    pub(super) fn node_rows(&self, document: &str) -> Listed<'_> {
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
        let mut widths = [14, 9, 21, 11, 11, 8].map(Constraint::Length);
        widths[0] = Constraint::Min(14);
        let heads = ["NODE", "STATE", "DISK", "IN", "OUT", "IO"].into();
        Listed { heads, widths: widths.into(), rows: rows.collect(), long: Vec::new() }
    }

    /// The list in which rows are selected.
    pub(super) fn list(&self, frame: &mut Frame<'_>, area: Rect, title: &str, listed: Listed<'_>) {
        let Listed { heads, widths, rows, long } = listed;
        let cut = long.get(self.selected).filter(|text| text.chars().count() > left_by(&widths, area.width));
        let whole = cut.map(|text| vec![Line::raw(text.clone())]).unwrap_or_default();
        // The list itself comes first.
        let below = height(&whole, area.width).min(area.height.saturating_sub(4));
        let [area, foot] = Layout::vertical([Constraint::Min(0), Constraint::Length(below)]).areas(area);
        frame.render_widget(Paragraph::new(whole).wrap(Wrap { trim: true }), foot);
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

fn reasons(items: &[Value]) -> Vec<String> {
    items.iter().map(|i| text(i, "/reason")).collect()
}
