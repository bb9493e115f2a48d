//! Columns that line up: text to the left, numbers to the right.

/// Between two columns.
const GAP: &str = "  ";

/// A table in the making.
#[derive(Debug, Default)]
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<(Vec<String>, bool)>,
}

impl Table {
    /// A table with these headings.
    pub(super) fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        Self { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// One more row; a `strong` one stands out.
    pub(super) fn push(&mut self, row: Vec<String>, strong: bool) {
        self.rows.push((row, strong));
    }

    /// The table as text; columns that are empty throughout are left out.
    pub(super) fn rendered(&self, coloured: bool) -> String {
        let filled = |at: &usize| self.rows.iter().any(|(row, _)| row.get(*at).is_some_and(|cell| !cell.is_empty()));
        let columns: Vec<usize> = (0..self.head.len()).filter(filled).collect();
        let mut text = self.line(&self.head, &columns, coloured.then_some("2"));
        for (row, strong) in &self.rows {
            text.push_str(&self.line(row, &columns, (*strong && coloured).then_some("1;32")));
        }
        text
    }

    fn line(&self, cells: &[String], columns: &[usize], style: Option<&str>) -> String {
        let padded = columns.iter().map(|at| {
            let cell = cells.get(*at).map_or("", String::as_str);
            let width = self.width(*at);
            if self.is_number(*at) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let line = padded.collect::<Vec<_>>().join(GAP);
        match style {
            Some(style) => format!("\x1b[{style}m{}\x1b[0m\n", line.trim_end()),
            None => format!("{}\n", line.trim_end()),
        }
    }

    fn width(&self, at: usize) -> usize {
        let cells = self.rows.iter().map(|(row, _)| row).chain([&self.head]);
        cells.filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }

    fn is_number(&self, at: usize) -> bool {
        let cells = self.rows.iter().filter_map(|(row, _)| row.get(at));
        cells.filter(|cell| !cell.is_empty()).all(|cell| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_text_left_and_empty_columns_are_left_out() {
        let mut table = Table::new(["pod", "nothing", "ms"]);
        table.push(vec!["a".into(), String::new(), "7.5".into()], false);
        table.push(vec!["long-name".into(), String::new(), "120.0".into()], true);
        assert_eq!(table.rendered(false), "pod           ms\na            7.5\nlong-name  120.0\n");
    }
}
