//! A result as one page that needs nothing else: the table, and plots drawn as SVG.

use std::fmt::{self, Write as _};

use super::{Charts, Outcome, Table};
use crate::load::series::Point;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 30.0;
const TOP: f64 = 14.0;
const RIGHT: f64 = 16.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#223}\
pre{background:#f4f5f8;padding:1em;overflow-x:auto}svg{width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#556}\
.grid{stroke:#dde;stroke-width:1}.a{stroke:#2463c9;fill:none;stroke-width:2}.b{stroke:#c9572a;fill:none;stroke-width:2}\
@media(prefers-color-scheme:dark){body{background:#15171c;color:#dde}pre{background:#1e2129}text{fill:#99a}.grid{stroke:#334}}";

/// The page.
pub(super) fn page(outcome: &impl Outcome, json: &str) -> String {
    let mut out = String::new();
    let title = format!("convoke bench {}", name_in(json));
    let charts = outcome.charts();
    let written = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style>\n\
         <h1>{title}</h1>\n<pre>{}\n\n{}\n{}{}</pre>\n",
        escaped(&outcome.conditions().to_string()),
        escaped(&Table(&outcome.rows()).to_string()),
        outcome.remarks().iter().fold(String::new(), |all, line| all + &escaped(line) + "\n"),
        escaped(&outcome.verdict().to_string()),
    )
    .and_then(|()| write_charts(&mut out, &charts))
    .and_then(|()| write!(out, "<h2>All figures</h2>\n<pre>{}</pre>\n</html>\n", escaped(json)));
    written.expect("writing to a string cannot fail");
    out
}

fn name_in(json: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(json).ok();
    let name = value.as_ref().and_then(|value| value.get("bench")).and_then(|name| name.as_str());
    name.unwrap_or_default().to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn write_charts(out: &mut String, charts: &Charts) -> fmt::Result {
    if charts.points.len() > 1 {
        let over = |pick: fn(&Point) -> f64| -> Vec<(f64, f64)> {
            charts.points.iter().map(|point| (f64::from(point.t_s), pick(point))).collect()
        };
        #[expect(clippy::cast_precision_loss, reason = "drawn to the pixel")]
        let counts = over(|point| point.count as f64);
        writeln!(out, "<h2>Throughput over time ({} in each second)</h2>", escaped(charts.unit))?;
        plot(out, &[("a", charts.unit, counts)], |s| format!("{s:.0} s"))?;
        writeln!(out, "<h2>Latency over time (ms)</h2>")?;
        plot(out, &[("a", "p50", over(|p| p.p50_ms)), ("b", "p99", over(|p| p.p99_ms))], |s| {
            format!("{s:.0} s")
        })?;
    }
    let curves: Vec<_> = charts
        .curves
        .iter()
        .zip(["a", "b"])
        .filter(|((_, curve), _)| !curve.is_empty())
        // Each step to the right leaves a tenth of those that took longer.
        .map(|((name, curve), class)| {
            let points = curve.iter().map(|(share, ms)| (-(1.0 - share).log10(), *ms)).collect();
            (class, *name, points)
        })
        .collect();
    if !curves.is_empty() {
        writeln!(out, "<h2>Percentiles (ms)</h2>")?;
        plot(out, &curves, |nines| match nines {
            n if n < 0.5 => "0".to_owned(),
            n => format!("{}%", 100.0 - 100.0 / 10_f64.powf(n)),
        })?;
    }
    Ok(())
}

/// A line of a plot: how it is drawn, its name, its points.
type Line<'a> = (&'a str, &'a str, Vec<(f64, f64)>);

/// Lines over a common axis, with a label at each fifth of either.
fn plot(out: &mut String, lines: &[Line<'_>], label: fn(f64) -> String) -> fmt::Result {
    let all = || lines.iter().flat_map(|(_, _, points)| points);
    let (first, last) = all().fold((f64::MAX, f64::MIN), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    let most = all().fold(0.0_f64, |high, (_, y)| high.max(*y)).max(f64::MIN_POSITIVE) * 1.05;
    let x_of = |x: f64| LEFT + (x - first) / (last - first).max(f64::MIN_POSITIVE) * (WIDTH - LEFT - RIGHT);
    let y_of = |y: f64| HEIGHT - BOTTOM - y / most * (HEIGHT - BOTTOM - TOP);
    writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">")?;
    for step in 0..=4_u8 {
        let (x, y) = (first + (last - first) * f64::from(step) / 4.0, most * f64::from(step) / 4.0);
        let (end, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let decimals = usize::from(most < 10.0) * 2;
        writeln!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{end}M{px:.1} {TOP}V{bottom}\"/>\
             <text x=\"{tx}\" y=\"{ty:.1}\" text-anchor=\"end\">{y:.decimals$}</text>\
             <text x=\"{px:.1}\" y=\"{by}\" text-anchor=\"middle\">{text}</text>",
            at = y_of(y),
            px = x_of(x),
            tx = LEFT - 6.0,
            ty = y_of(y) + 4.0,
            by = HEIGHT - 10.0,
            text = label(x),
        )?;
    }
    for (n, (class, name, points)) in lines.iter().enumerate() {
        let path: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
        let (x, y) = (LEFT + 12.0, TOP + 14.0 + 18.0 * f64::from(u8::try_from(n).unwrap_or(u8::MAX)));
        writeln!(
            out,
            "<polyline class=\"{class}\" points=\"{}\"/><path class=\"{class}\" d=\"M{x} {y}h20\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            path.join(" "),
            x + 26.0,
            y + 4.0,
            escaped(name),
        )?;
    }
    writeln!(out, "</svg>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_stays_within_its_frame_and_names_its_lines() {
        let points = vec![(1.0, 5.0), (2.0, 50.0), (3.0, 0.0)];
        let mut out = String::new();
        plot(&mut out, &[("a", "p<99>", points)], |x| format!("{x}")).unwrap();
        assert!(out.contains("p&lt;99&gt;"), "{out}");
        let line = out.lines().find(|line| line.contains("polyline")).unwrap();
        let drawn = line.split('"').nth(3).unwrap();
        for pair in drawn.split(' ') {
            let (x, y) = pair.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{pair}");
        }
    }

    #[test]
    fn a_flat_line_is_drawn_and_nothing_is_divided_by_nothing() {
        let mut out = String::new();
        plot(&mut out, &[("a", "one", vec![(1.0, 0.0)])], |x| format!("{x}")).unwrap();
        assert!(!out.contains("NaN") && !out.contains("inf"), "{out}");
    }
}
