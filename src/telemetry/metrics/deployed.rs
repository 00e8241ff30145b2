//! What lies in `deploy/` asks only for metrics that there are.

use std::collections::BTreeSet;

use super::Metrics;

/// Every name that a query may use.
fn names() -> BTreeSet<String> {
    let text = Metrics::new().render();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .flat_map(|(name, kind)| match kind {
            "counter" => vec![format!("{name}_total")],
            "info" => vec![format!("{name}_info")],
            "histogram" => ["bucket", "count", "sum"].map(|part| format!("{name}_{part}")).to_vec(),
            _ => vec![name.to_owned()],
        })
        .collect()
}

fn named_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("convoke_")).map(str::to_owned).collect()
}

#[test]
fn the_dashboard_is_json_and_asks_for_metrics_that_there_are() {
    let text = include_str!("../../../deploy/grafana/convoke.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(queries.len() > 20);
    let (names, used) = (names(), named_in(&queries.join(" ")));
    assert_eq!(used.difference(&names).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are() {
    let text = include_str!("../../../deploy/prometheus/alerts.yml");
    let (names, used) = (names(), named_in(text));
    assert!(used.len() >= 8, "{used:?}");
    assert_eq!(used.difference(&names).collect::<Vec<_>>(), Vec::<&String>::new());
    let alerts = text.lines().filter(|line| line.trim_start().starts_with("- alert: ")).count();
    for part in ["expr: ", "severity: ", "summary: ", "description: "] {
        let lines = text.lines().filter(|line| line.trim_start().starts_with(part)).count();
        assert_eq!(lines, alerts, "each has its {part}");
    }
}
