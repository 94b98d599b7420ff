//! Each view's part of the screen: from its documents to lines and tables.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, Wrap};
use serde_json::Value;

use super::Screen;
use super::words::{
    alarm, bytes, counted, dim, failure, items, keeper, legend, links, map_row, mark, number, rail, right, stage, text,
    titled,
};

pub(super) type Listed<'a> = (Vec<&'static str>, Vec<Constraint>, Vec<Vec<Cell<'a>>>);

impl Screen {
    fn document(&self, name: &str) -> &Value {
        self.documents.get(name).unwrap_or(&Value::Null)
    }

    pub(super) fn overview(&self, frame: &mut Frame<'_>, area: Rect) {
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
                "{} of {} nodes up · S3 {}/s · RDMA {}/s · TCP {}/s · local hits {}/s · {} alarms",
                text(o, "/totals/nodes_up"),
                text(o, "/totals/nodes"),
                t("origin"),
                t("rdma"),
                t("tcp"),
                t("local"),
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

    pub(super) fn dataset(&self, frame: &mut Frame<'_>, area: Rect) {
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
        let widths = [20, 12, 24, 14, 14, 10].map(Constraint::Length);
        (["NODE", "STATE", "DISK", "IN", "OUT", "IO"].into(), widths.into(), rows.collect())
    }

    /// The list in which rows are selected.
    pub(super) fn list(&self, frame: &mut Frame<'_>, area: Rect, title: &str, (heads, widths, rows): Listed<'_>) {
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
