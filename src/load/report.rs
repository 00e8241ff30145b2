//! What every kind of load test says in the same way: its conditions, its progress, a table, a JSON
//! file, and a verdict on its own work that becomes the exit code.

pub mod conditions;
mod html;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::LoadError;
use super::latency::Percentiles;
use super::process::Usage;
use super::series::Point;
use conditions::Conditions;

/// How often the progress bar moves.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What a load test found wrong with the messages it sent. Nothing of it is ever allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Messages that were never acknowledged, or acknowledged and never delivered.
    pub lost: u64,
    /// Deliveries of what had been delivered before.
    pub duplicated: u64,
    /// Deliveries of what should have come before something delivered already.
    pub out_of_order: u64,
    /// Numbers missing between those that were delivered.
    pub gaps: u64,
}

impl Verdict {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what was found wrong elsewhere.
    pub fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.gaps += other.gaps;
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, duplicated, out_of_order, gaps } = self;
        write!(f, "lost {lost}, duplicated {duplicated}, out of order {out_of_order}, gaps {gaps}")
    }
}

/// What happened on the way, counted over all time; what of it is wrong is in the [`Verdict`] as well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incidents {
    /// Sends that were answered with an error. They count as lost.
    pub refused: u64,
    /// The first of these errors.
    pub first_refusal: Option<String>,
    /// How often the server left out pushes of a conversation and said so; they were pulled.
    pub lagged: u64,
    /// How often pushes did not come though later ones did, and were pulled after a while. Where the nodes stay the same there
    /// is no reason for it.
    pub missed: u64,
    /// How often the server could not keep an acknowledgement of pushes.
    pub unkept: u64,
    /// How often a connection was lost and came back, to the same node or another.
    pub returned: u64,
    /// With a rate: messages whose time came and that were not sent, because too many were in flight.
    pub unsent: u64,
}

impl Incidents {
    /// Counts a send that was answered with an error.
    pub fn refuse(&mut self, error: impl fmt::Display) {
        self.refused += 1;
        self.first_refusal.get_or_insert_with(|| error.to_string());
    }

    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: Self) {
        let Self { refused, first_refusal, lagged, missed, unkept, returned, unsent } = other;
        self.refused += refused;
        self.first_refusal = self.first_refusal.take().or(first_refusal);
        self.lagged += lagged;
        self.missed += missed;
        self.unkept += unkept;
        self.returned += returned;
        self.unsent += unsent;
    }
}

impl fmt::Display for Incidents {
    /// A line for each kind of which there was any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = &self.first_refusal {
            writeln!(f, "{} sends were refused; the first: {first}", self.refused)?;
        }
        for (count, what) in [
            (self.lagged, "times the server left out pushes, which were pulled"),
            (self.missed, "times the numbers showed that pushes were missing, which were pulled"),
            (self.unkept, "times the server could not keep how far a client had come"),
            (self.returned, "times a connection was lost and came back"),
            (self.unsent, "messages were due and not sent: too many were in flight"),
        ] {
            if count > 0 {
                writeln!(f, "{count} {what}")?;
            }
        }
        Ok(())
    }
}

/// The result of a load test: serialized as it is, printed as its table.
pub trait Outcome: Serialize {
    /// Under what conditions it ran.
    fn conditions(&self) -> &Conditions;
    /// One line for each thing that was measured.
    fn rows(&self) -> Vec<Row>;
    /// What it found wrong.
    fn verdict(&self) -> Verdict;
    /// What is drawn with `--html`.
    fn charts(&self) -> Charts {
        Charts::default()
    }
    /// Lines below the table.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What is drawn of a result.
#[derive(Debug, Clone, Default)]
pub struct Charts {
    /// What the points count.
    pub unit: &'static str,
    /// The measured time, second by second.
    pub points: Vec<Point>,
    /// Latencies: a name, and for a rising share of all how many milliseconds it took at most.
    pub curves: Vec<(&'static str, Vec<(f64, f64)>)>,
}

/// Where a result goes beside the terminal.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Files {
    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the result to this file as a page with plots, which needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Prints a result on stdout, writes it to the files that are named, and gives the exit code: not 0
/// if the verdict is not clean.
///
/// # Errors
/// If stdout or a file cannot be written.
pub fn conclude(outcome: &impl Outcome, files: &Files) -> Result<ExitCode, LoadError> {
    let verdict = outcome.verdict();
    let remarks = outcome.remarks().iter().fold(String::new(), |all, line| all + line + "\n");
    write!(
        std::io::stdout().lock(),
        "{}\n{}\n{remarks}{verdict}\n",
        outcome.conditions(),
        Table(&outcome.rows())
    )
    .map_err(LoadError::doing("printing the result"))?;
    let mut text = serde_json::to_string_pretty(outcome)?;
    text.push('\n');
    if let Some(path) = &files.json {
        std::fs::write(path, &text).map_err(LoadError::file(path))?;
    }
    if let Some(path) = &files.html {
        std::fs::write(path, html::page(outcome, &text)).map_err(LoadError::file(path))?;
    }
    Ok(if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// How many a second.
    pub per_s: f64,
    /// How long each took, where that was measured.
    pub latency: Option<Percentiles>,
    /// What the server used in that time.
    pub server: Option<Usage>,
    /// What the server used for each, in microseconds of CPU.
    pub cpu_us_each: Option<f64>,
}

/// Lines of a result, in columns.
#[derive(Debug)]
pub struct Table<'a>(pub &'a [Row]);

const HEADINGS: [&str; 10] =
    ["", "per second", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "RSS MB", "CPU s", "CPU µs each"];

impl Row {
    fn cells(&self) -> [String; HEADINGS.len()] {
        let missing = || "–".to_owned();
        let latency = |pick: fn(&Percentiles) -> f64| {
            self.latency.as_ref().map_or_else(missing, |all| millis(pick(all)))
        };
        [
            self.what.clone(),
            thousands(self.per_s),
            latency(|all| all.p50),
            latency(|all| all.p90),
            latency(|all| all.p99),
            latency(|all| all.p999),
            latency(|all| all.max),
            self.server.map_or_else(missing, |usage| megabytes(usage.rss_bytes)),
            self.server.map_or_else(missing, |usage| format!("{:.2}", usage.cpu_s)),
            self.cpu_us_each.map_or_else(missing, |each| format!("{each:.1}")),
        ]
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells: Vec<_> = self.0.iter().map(Row::cells).collect();
        let lines = || std::iter::once(HEADINGS.map(str::to_owned)).chain(cells.iter().cloned());
        let mut widths = [0; HEADINGS.len()];
        for line in lines() {
            for (width, cell) in widths.iter_mut().zip(&line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for line in lines() {
            let mut columns = line.iter().zip(widths);
            if let Some((what, width)) = columns.next() {
                write!(f, "{what:<width$}")?;
            }
            for (cell, width) in columns {
                write!(f, "  {cell:>width$}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2}") } else { format!("{ms:.1}") }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// A number without decimals, in groups of three digits.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// How many a second.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a rate is shown with few digits")]
pub fn rate(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

/// A bar on stderr that says how far a load test is; nothing is drawn where stderr is no terminal.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar for a load test that takes so long in all.
    #[must_use]
    pub fn new(total: Duration) -> Self {
        let bar = ProgressBar::with_draw_target(Some(whole_millis(total)), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar} {percent:>3}% {msg}");
        bar.set_style(style.expect("the template is a constant that names known fields"));
        Self(bar)
    }

    /// Says what is being done now.
    pub fn say(&self, doing: impl Into<String>) {
        self.0.set_message(doing.into());
    }

    /// Moves on by some time that has passed.
    pub fn advance(&self, by: Duration) {
        self.0.inc(whole_millis(by));
    }

    /// Waits while something is measured, and moves on by that time. It blocks its thread.
    #[expect(clippy::disallowed_methods, reason = "no runtime's thread: the one that runs the load test")]
    pub fn wait(&self, measured: Duration) {
        let started = Instant::now();
        let mut shown = Duration::ZERO;
        while shown < measured {
            std::thread::sleep((measured - shown).min(PROGRESS_EVERY));
            let now = started.elapsed().min(measured);
            self.advance(now - shown);
            shown = now;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_finding_spoils_the_verdict() {
        assert!(Verdict::default().is_clean());
        let spoils: [fn(&mut Verdict); 4] =
            [|v| v.lost = 1, |v| v.duplicated = 1, |v| v.out_of_order = 1, |v| v.gaps = 1];
        for spoil in spoils {
            let (mut found, mut sum) = (Verdict::default(), Verdict::default());
            spoil(&mut found);
            assert!(!found.is_clean(), "{found}");
            sum.add(found);
            sum.add(found);
            assert_eq!(sum.lost + sum.duplicated + sum.out_of_order + sum.gaps, 2);
        }
    }

    #[test]
    fn the_table_lines_up() {
        let rows = [
            Row { what: "fdatasync".into(), per_s: 1234.4, latency: None, server: None, cpu_us_each: None },
            Row {
                what: "relays".into(),
                per_s: 54_000.0,
                latency: Some(Percentiles { p50: 1.0, p90: 2.0, p99: 41.26, p999: 50.0, max: 1000.0 }),
                server: Some(Usage { rss_bytes: 25_000_000, cpu_s: 5.0 }),
                cpu_us_each: Some(20.04),
            },
        ];
        let table = Table(&rows).to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{table}");
        let words = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["fdatasync", "1,234", "–", "–", "–", "–", "–", "–", "–", "–"]);
        assert_eq!(
            words(2),
            ["relays", "54,000", "1.00", "2.00", "41.3", "50.0", "1000.0", "25.0", "5.00", "20.0"]
        );
    }

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }
}
