//! What a figure comes to: tables and targets, as Markdown (which is legible as it is) or as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::pairs::Spread;

/// One figure's result.
pub struct Report {
    pub name: &'static str,
    pub title: String,
    pub tables: Vec<Table>,
    pub targets: Vec<Target>,
    pub notes: Vec<String>,
    /// Every run, for JSON.
    pub runs: Value,
}

pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// What was aimed at, and what came out.
pub struct Target {
    pub aim: String,
    pub measured: String,
    pub met: bool,
}

impl Report {
    pub fn new(name: &'static str, title: impl Into<String>) -> Self {
        Self { name, title: title.into(), tables: Vec::new(), targets: Vec::new(), notes: Vec::new(), runs: Value::Null }
    }

    pub fn table(&mut self, columns: &[&str]) -> &mut Table {
        self.tables.push(Table { columns: columns.iter().map(|column| (*column).to_owned()).collect(), rows: Vec::new() });
        let last = self.tables.len() - 1;
        &mut self.tables[last]
    }

    pub fn target(&mut self, aim: impl Into<String>, measured: impl Into<String>, met: bool) {
        self.targets.push(Target { aim: aim.into(), measured: measured.into(), met });
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("### {}: {}\n", self.name, self.title);
        for table in &self.tables {
            text += "\n";
            text += &table.markdown();
        }
        if !self.targets.is_empty() {
            text += "\n";
            let mut table = Table { columns: ["target", "measured", ""].map(str::to_owned).into(), rows: Vec::new() };
            for target in &self.targets {
                table.row([target.aim.clone(), target.measured.clone(), if target.met { "met" } else { "NOT MET" }.to_owned()]);
            }
            text += &table.markdown();
        }
        for note in &self.notes {
            let _ = write!(text, "\n* {note}");
        }
        text + if self.notes.is_empty() { "" } else { "\n" }
    }

    pub fn json(&self) -> Value {
        let targets: Vec<Value> =
            self.targets.iter().map(|Target { aim, measured, met }| json!({ "target": aim, "measured": measured, "met": met })).collect();
        let tables: Vec<Value> = self.tables.iter().map(Table::json).collect();
        json!({ "name": self.name, "title": self.title, "tables": tables, "targets": targets, "notes": self.notes, "runs": self.runs })
    }
}

impl Table {
    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }

    fn markdown(&self) -> String {
        let lines: Vec<&Vec<String>> = [&self.columns].into_iter().chain(&self.rows).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| lines.iter().filter_map(|cells| cells.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3))
            .collect();
        let mut text = String::new();
        for (number, cells) in lines.into_iter().enumerate() {
            for (at, width) in widths.iter().enumerate() {
                let cell = cells.get(at).map_or("", String::as_str);
                // Names to the left, figures to the right.
                text += &if at == 0 { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
            }
            text += "|\n";
            if number == 0 {
                for (at, width) in widths.iter().enumerate() {
                    text += &if at == 0 { format!("|{}", "-".repeat(width + 2)) } else { format!("|{}:", "-".repeat(width + 1)) };
                }
                text += "|\n";
            }
        }
        text
    }

    fn json(&self) -> Value {
        let row = |cells: &Vec<String>| -> Value {
            self.columns.iter().zip(cells).map(|(column, cell)| (column.clone(), Value::from(cell.as_str()))).collect()
        };
        self.rows.iter().map(row).collect()
    }
}

/// "0.997 (0.991 to 1.002)": the median, and the middle half.
pub fn ratio(spread: Spread) -> String {
    let Spread { low, median, high } = spread;
    format!("{median:.3} ({low:.3} to {high:.3})")
}

/// The same of a figure with a unit.
pub fn spread(spread: Spread, digits: usize) -> String {
    let Spread { low, median, high } = spread;
    format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
}

/// "12,345"
pub fn grouped(n: f64) -> String {
    let digits = format!("{n:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_markdown_and_json() {
        let mut report = Report::new("storm", "aborts");
        report.table(&["under", "rate"]).row(["rsttrace".to_owned(), grouped(73_020.4)]);
        report.target("at least 0.90", "0.95", true);
        report.note("a note");
        let expected = "### storm: aborts\n\n\
                        | under    |   rate |\n|----------|-------:|\n| rsttrace | 73,020 |\n\n\
                        | target        | measured |     |\n|---------------|---------:|----:|\n| at least 0.90 |     0.95 | met |\n\n* a note\n";
        assert_eq!(report.markdown(), expected);
        assert_eq!(report.json()["tables"][0][0]["rate"], "73,020");
        assert_eq!(report.json()["targets"][0]["met"], true);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0.0, 999.0, 1_000.0, 1_234_567.0].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
