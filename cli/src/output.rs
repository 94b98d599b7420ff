//! What verbs print: results on standard output, progress on standard error.
//!
//! A closed pipe ends a verb quietly. Spinners and bars appear only on a terminal; elsewhere a plain line now and
//! then. With `--json`, standard output has JSON and nothing else.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millstream_types::size::{counted, format_size};
use serde::Serialize;

use crate::failure::{Failure, Result};
use crate::limits::PLAIN_PROGRESS_EVERY;

/// One line on standard output.
pub fn line(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").map_err(Failure::from)
}

/// One JSON document on one line: also a JSON line of a stream.
pub fn json_line(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value).map_err(|e| Failure::other("output", e))?)
}

/// One JSON document, indented for people who read it anyway.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value).map_err(|e| Failure::other("output", e))?)
}

/// A remark on standard error.
pub fn note(text: &str) {
    // Nothing can be done when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// "1 node", "3 nodes".
pub fn nodes(count: usize) -> String {
    counted(count as u64, "node")
}

/// Columns of texts under headings.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// Headings; those that begin with `>` are for numbers and flush right.
    pub fn new(headings: &[&str]) -> Table {
        let right = headings.iter().map(|h| h.starts_with('>')).collect();
        let first = headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
        Table { rows: vec![first], right }
    }

    /// One row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, without a last line feed.
    pub fn render(&self) -> String {
        let columns = self.right.len();
        let width = |c: usize| self.rows.iter().map(|r| r.get(c).map_or(0, |t| t.chars().count())).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let cell = |row: &Vec<String>, c: usize| {
            let text = row.get(c).map_or("", String::as_str);
            let pad = " ".repeat(widths[c] - text.chars().count());
            if self.right[c] { format!("{pad}{text}") } else { format!("{text}{pad}") }
        };
        let lines = self.rows.iter().map(|row| {
            let cells: Vec<String> = (0..columns).map(|c| cell(row, c)).collect();
            cells.join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Prints it.
    pub fn print(&self) -> Result<()> {
        line(&self.render())
    }
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    Plain(Option<Instant>),
}

/// How far something is, on standard error.
pub struct Progress(Shown);

impl Progress {
    /// With `--json` nothing is shown: the stream itself is the progress.
    pub fn new(json: bool) -> Progress {
        if json {
            return Progress(Shown::Nothing);
        }
        if !std::io::stderr().is_terminal() {
            return Progress(Shown::Plain(None));
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let template = if plain { "{bar:30} {msg}" } else { "{bar:30.cyan} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Progress(Shown::Bar(bar))
    }

    /// Shows `done` of `total`, and words.
    pub fn show(&mut self, done: u64, total: u64, words: &str) {
        match &mut self.0 {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_length(total.max(1));
                bar.set_position(done.min(total));
                bar.set_message(words.to_owned());
            }
            Shown::Plain(last) => {
                if last.is_none_or(|at| at.elapsed() >= PLAIN_PROGRESS_EVERY) {
                    *last = Some(Instant::now());
                    note(words);
                }
            }
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Shown::Bar(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

/// `1.25 MiB of 4.00 MiB`.
pub fn of(done: u64, total: u64) -> String {
    format!("{} of {}", format_size(done), format_size(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", ">BYTES", "STATE"]);
        table.row(["ü".into(), "1".into(), "ready".into()]);
        table.row(["longer".into(), "12345678".into(), String::new()]);
        assert_eq!(table.render(), "NAME       BYTES  STATE\nü              1  ready\nlonger  12345678");
    }
}
