//! Lines in columns, for people.

/// Columns under their headings; the last is as wide as it likes.
pub(super) fn table<const N: usize>(
    headings: [&str; N],
    lines: impl IntoIterator<Item = [String; N]>,
) -> String {
    let lines: Vec<[String; N]> = lines.into_iter().collect();
    let headings = headings.map(str::to_owned);
    let width = |column: usize| {
        let cells = std::iter::once(&headings).chain(&lines).map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in std::iter::once(&headings).chain(&lines) {
        let cells: Vec<String> =
            line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Bytes with a unit that keeps the number short.
pub(super) fn bytes(count: usize) -> String {
    const UNITS: [&str; 4] = ["B", "KB", "MB", "GB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut number = count as f64;
    let mut unit = 0;
    while number >= 1_000.0 && unit + 1 < UNITS.len() {
        number /= 1_000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{number:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let text = table(["user", "n"], [["alice".into(), "1".into()], ["é".into(), "20".into()]]);
        assert_eq!(text, "user   n\nalice  1\né      20\n");
        assert_eq!(table(["a"], []), "a\n");
    }

    #[test]
    fn bytes_are_short() {
        for (count, text) in [(0, "0 B"), (999, "999 B"), (1_000, "1.0 KB"), (25_276_000, "25.3 MB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
